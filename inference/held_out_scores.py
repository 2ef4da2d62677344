"""The held-out test set scored once for each model, and every look at it counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iaunet.errors import PredictionError
from iaunet.inference.best import Chosen, find_chosen
from iaunet.inference.evaluation import SUMMARY, Evaluation, save_evaluation
from iaunet.inference.folder import predict_cases
from iaunet.inference.held_out import input_cases, load_held_out, require_usable, score_held_out
from iaunet.inference.output import FolderOptions
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run, choose_folds, list_runs
from iaunet.inference.scores import ScoreSummary
from iaunet.inference.tuning import NetworkName, Tuning
from iaunet.preprocessing.held_out import HeldOut
from iaunet.records import load_record, to_json
from iaunet.storage import digest, file_digest, write_json
from iaunet.workers import default_workers
from iaunet.workspace import DatasetFolder, locked

FOLDER, RECORD = "test_scores", "test_scores.json"


@dataclass(frozen=True, kw_only=True)
class TestLook:
    """What one model scored on the test set.

    ``model`` and ``test_set`` name these by their digests; ``runs`` are those that predict together. ``masks`` is the
    folder of the masks beside the record, with their ``scores.csv``, empty where ``iaunet_predict`` wrote them for the
    user. ``leakage`` is empty, or says why the scores are too good. ``unscored`` names cases that could not be
    predicted or scored: ``summary.json`` beside the masks says why.
    """

    __test__ = False  # no test, whatever pytest takes its name for

    model: str
    test_set: str
    runs: tuple[str, ...]
    masks: str
    leakage: str
    unscored: tuple[str, ...]
    summary: ScoreSummary


@dataclass(frozen=True, kw_only=True)
class TestScores:
    """How the model that was asked for last scores on the test set, and what was seen there before with others."""

    __test__ = False  # as above

    version: int = 1
    present: TestLook
    earlier: tuple[TestLook, ...] = ()

    @property
    def times(self) -> int:
        """How many models were scored, or one model on test sets that changed."""
        return 1 + len(self.earlier)

    @property
    def remark(self) -> str:
        """Empty after one look, else what to think of several."""
        if not self.earlier:
            return ""
        return f"scored {self.times} times: with each look the score becomes more optimistic"


def score_test_once(
    folder: DatasetFolder, device: str = "auto", trusted_network: str | None = None, workers: int | None = None
) -> TestScores:
    """Predict and score the held-out test set with the model that ``iaunet_find_best`` chose, or the only run.

    What this model scored on this test set before is given back as it is. Another model is scored, and the scores of
    the earlier ones stay in the record. Masks, ``scores.csv`` and ``summary.json`` of each lie in a folder of its own.

    Args:
        folder: The dataset's.
        device: See `iaunet.device.choose_device`.
        trusted_network: A stranger's network ``package.module:function`` whose code may be run.
        workers: Processes at most; None to choose.

    Raises:
        PredictionError: There is no test set, it has changed, no model can be chosen, or nothing can be scored.
        WorkspaceError: Another process is scoring it.
    """
    held_out = load_held_out(folder)
    predictor = _load_best(folder, device, trusted_network)
    root = folder.root / FOLDER
    with locked(root, "scoring the test set"):
        before = find_test_scores(folder)
        looks = (before.present, *before.earlier) if before is not None else ()
        key = digest(predictor.describe()), _digest_of(held_out)
        present = next((look for look in looks if (look.model, look.test_set) == key), None)
        if present is None or not present.masks or not (root / present.masks / SUMMARY).exists():
            present = _look(folder, held_out, predictor, workers or default_workers())
        earlier = tuple(look for look in looks if (look.model, look.test_set) != key)
        scores = TestScores(present=present, earlier=earlier)
        write_json(root / RECORD, to_json(scores))
    return scores


def count_look(folder: DatasetFolder, held_out: HeldOut, predictor: Predictor, evaluation: Evaluation) -> TestScores:
    """Count that a model was scored on the held-out test set elsewhere, unless it was known to be before.

    Args:
        folder: The dataset's.
        held_out: The test set.
        predictor: The model.
        evaluation: Its scores.

    Returns:
        All that is known of the test set: the present model stays that which `score_test_once` was asked for last.

    Raises:
        PredictionError: The record is damaged.
        WorkspaceError: The record cannot be written, or another process is scoring the test set.
    """
    look = _as_look(held_out, predictor, evaluation, masks="")
    with locked(folder.root / FOLDER, "scoring the test set"):
        before = find_test_scores(folder)
        if before is None:
            scores = TestScores(present=look)
        elif (look.model, look.test_set) in [(each.model, each.test_set) for each in (before.present, *before.earlier)]:
            return before
        else:
            scores = replace(before, earlier=(*before.earlier, look))
        write_json(folder.root / FOLDER / RECORD, to_json(scores))
    return scores


def find_test_scores(folder: DatasetFolder) -> TestScores | None:
    """What is known of the test set of a dataset, None if it was not scored yet.

    Raises:
        PredictionError: The record is damaged.
    """
    path = folder.root / FOLDER / RECORD
    if not path.exists():
        return None
    mend = "bring it back from a copy; who removes it forgets how often the test set was looked at"
    return load_record(TestScores, path, PredictionError, mend)


def find_staleness(folder: DatasetFolder, look: TestLook, chosen: Chosen | None) -> str:
    """Why what was seen is not of the present test set and the present model; empty if it is.

    Args:
        folder: The dataset's.
        look: What was seen.
        chosen: The present model, None for the only run.

    Raises:
        PredictionError: The test set cannot be read.
        TrainingError: The record of a run is damaged.
    """
    if look.test_set != _digest_of(load_held_out(folder)):
        return "it was scored on another state of the test set"
    usable = [run for run in list_runs(folder.runs) if run.finished_folds()]
    runs = usable if chosen is None else [Run(folder.runs / name) for name in chosen.runs]
    if len(runs) > 1 and chosen is None:
        return "none of the runs is chosen now"
    if look.runs != tuple(run.name for run in runs):
        return "it was scored with other runs than those that predict now"
    if look.model != _digest_of_model(runs, chosen.tuning if chosen else Tuning()):
        return "it was scored with other weights, temperatures, thresholds or postprocessing than there are now"
    return ""


def masks_folder(folder: DatasetFolder, look: TestLook) -> Path:
    """Where the masks of a look lie."""
    return folder.root / FOLDER / look.masks


def _load_best(folder: DatasetFolder, device: str, trusted_network: str | None) -> Predictor:
    if find_chosen(folder) is None and sum(bool(run.finished_folds()) for run in list_runs(folder.runs)) > 1:
        raise PredictionError(f"{folder.name} has several runs and none was chosen: run iaunet_find_best {folder.name}")
    return Predictor.from_dataset(folder, device=device, trusted_network=trusted_network)


def _digest_of(held_out: HeldOut) -> str:
    """Names what a test set holds, wherever it lies."""
    return digest([held_out.sha256, to_json(held_out.coding)])


def _digest_of_model(runs: Sequence[Run], tuning: Tuning) -> str:
    """The digest of the model that runs are, without their weights being loaded."""
    from torch import device, nn

    folds = [(run, fold) for run in runs for fold in choose_folds(run, None)]
    members = [
        NetworkName(run=run.name, fold=fold.fold, weights_sha256=file_digest(fold.weights)) for run, fold in folds
    ]
    unused = [nn.Identity() for _ in members]
    plan = runs[0].record.plan
    return digest(Predictor(plan, unused, device("cpu"), tuning=tuning, members=members).describe())


def _look(folder: DatasetFolder, held_out: HeldOut, predictor: Predictor, workers: int) -> TestLook:
    plan = predictor.plan
    require_usable(held_out, plan, folder)
    masks = f"{digest(predictor.describe())[:12]}-{_digest_of(held_out)[:12]}"
    output = folder.root / FOLDER / masks
    outcomes = predict_cases(predictor, input_cases(held_out), output, FolderOptions())
    evaluation = score_held_out(held_out, plan, folder, output, outcomes, workers)
    save_evaluation(output, evaluation)
    return _as_look(held_out, predictor, evaluation, masks)


def _as_look(held_out: HeldOut, predictor: Predictor, evaluation: Evaluation, masks: str) -> TestLook:
    scored = {score.name for score in evaluation.scores}
    return TestLook(
        model=digest(predictor.describe()),
        test_set=_digest_of(held_out),
        runs=tuple(dict.fromkeys(member.run for member in predictor.members)),
        masks=masks,
        leakage=held_out.leakage or "",
        unscored=tuple(case.name for case in held_out.cases if case.name not in scored),
        summary=evaluation.summary,
    )
