"""A model written into one file."""

import hashlib
import io
import json
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path

from iaunet.errors import PredictionError, WorkspaceError
from iaunet.inference.best import AGAIN as CHOOSE_AGAIN
from iaunet.inference.best import CROSSVAL, BestFolder, BestModel, Member, find_chosen
from iaunet.inference.model_card import write_card
from iaunet.inference.model_file import require_one_input
from iaunet.inference.model_manifest import (
    CARD,
    MANIFEST,
    SCORES,
    FileEntry,
    ModelData,
    ModelFacts,
    ModelManifest,
    ModelRun,
    ModelScoreFile,
    ModelScores,
    ScoreNote,
    TrainingFacts,
    weights_file,
)
from iaunet.inference.runs import FoldFolder, Run, choose_folds, choose_runs
from iaunet.inference.tuning import Tuning
from iaunet.planners.familiar import find_familiar
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.plan import Plan
from iaunet.records import FieldError, from_json, load_record, to_json
from iaunet.storage import file_digest, read_json, remove_leftovers, replacing
from iaunet.workspace import DatasetFolder, locked_output

MOST_NOTES = 100_000
"""Characters that the owner adds to the card."""

SCORE_AGAIN = "run iaunet_train with --val_only again"

_DATE = (1980, 1, 1, 0, 0, 0)


def export_model(
    folder: DatasetFolder,
    path: Path,
    runs: list[str] | None = None,
    folds: list[str] | None = None,
    notes: str = "",
) -> ModelManifest:
    """Write a model into one file, the same bytes for the same model.

    It holds no images, no names of cases and no paths: plans, weights, postprocessing, scores over cases, and a card
    that tells people about the model.

    Args:
        folder: The dataset's folder in the workspace.
        path: The file to write, whole or not at all.
        runs: Names of runs; None for those of ``iaunet_find_best``, or the only one.
        folds: Their folds; None for all finished ones that held cases out.
        notes: What the owner says of the model in its card: licence, origin of the data, citation.

    Raises:
        PredictionError: A run or fold is unknown or unfinished, the runs do not take the same input, or the notes are
            too long.
        WorkspaceError: The disk is full, the file cannot be written, or another process is writing it.
    """
    if path.is_dir() or path.suffix.lower() != ".zip":
        raise PredictionError(f"{path} cannot be a model's file: give one whose name ends in .zip")
    if len(notes) > MOST_NOTES:
        raise PredictionError(f"notes of {len(notes)} characters do not fit a model card: give {MOST_NOTES} at most")
    with locked_output(path):
        remove_leftovers(path.parent, path.name)
        try:
            manifest, files = _collect(folder, runs, folds, notes)
        except FieldError as fault:
            raise PredictionError(f"{folder.name} cannot be exported: {fault}") from fault
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            _add(archive, MANIFEST, _as_bytes(manifest))
            for name, content in files.items():
                _add(archive, name, content)
    return manifest


def _collect(
    folder: DatasetFolder, wished_runs: list[str] | None, wished_folds: list[str] | None, notes: str
) -> tuple[ModelManifest, dict[str, bytes | Path]]:
    """The manifest, and what its files hold: bytes, or a file to copy."""
    choice = find_chosen(folder)
    runs = choose_runs(folder, wished_runs or (choice.runs if choice else None))
    chosen = choice.tuning if choice and [run.name for run in runs] == choice.runs else Tuning()
    plans = {run.name: run.record.plan for run in runs}
    require_one_input(plans)
    folds = {run.name: _in_order(choose_folds(run, wished_folds)) for run in runs}
    described = tuple(_describe_run(run, folds[run.name]) for run in runs)
    best = _narrowed(BestFolder.of(folder).read()[0], described) if chosen.postprocessing else None
    scores = ModelScoreFile(scores=tuple(_scores(folder, runs, described, best)))
    plan = plans[runs[0].name]
    facts = ModelFacts(
        iaunet=version("iaunet"),
        dataset=plan.dataset,
        fingerprint=plan.fingerprint,
        runs=described,
        postprocessing=chosen.postprocessing,
        calibration=chosen.calibration,
        expected_dice=chosen.expected_dice,
        familiar=find_familiar(folder, plan),
        chosen=best,
        data=_data(folder, plan),
        scores=tuple(map(ScoreNote.about, scores.scores)),
    )
    texts = {
        CARD: write_card(facts, plans, scores.scores, notes).encode(),
        SCORES: _as_bytes(scores),
        **{run.plan: _as_bytes(plans[run.name]) for run in described},
    }
    weights = [fold.weights for of_run in folds.values() for fold in of_run]
    copied = {weights_file(member): file for member, file in zip(facts.members, weights, strict=True)}
    files: dict[str, bytes | Path] = {**texts, **copied}
    return ModelManifest(model=facts, files={name: _entry(content) for name, content in files.items()}), files


def _entry(content: bytes | Path) -> FileEntry:
    if isinstance(content, bytes):
        return FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return FileEntry(size=content.stat().st_size, sha256=file_digest(content))


def _in_order(folds: Sequence[FoldFolder]) -> list[FoldFolder]:
    """In the order in which all of them would be averaged: sums of floats depend on it."""
    return sorted(folds, key=lambda folder: folder.root.name)


def _describe_run(run: Run, folds: Sequence[FoldFolder]) -> ModelRun:
    record = run.record
    training = TrainingFacts(**{field.name: getattr(record, field.name) for field in fields(TrainingFacts)})
    return ModelRun(name=run.name, training=training, folds={fold.fold: fold.weights_digest() for fold in folds})


def _narrowed(best: BestModel, runs: Sequence[ModelRun]) -> BestModel:
    """A choice as if there were no other folds than these of its runs."""
    return replace(best, members=tuple(Member(run=run.name, weights_sha256=run.held_out_sha256) for run in runs))


def _scores(
    folder: DatasetFolder, runs: Sequence[Run], described: Sequence[ModelRun], best: BestModel | None
) -> Iterator[ModelScores]:
    """The scores of just these networks: of all together, else of each run, else of each fold."""
    chosen = BestFolder.of(folder)
    if best is not None and best == chosen.read()[0] and all(run.holds_all_out for run in described):
        path = chosen.root / CROSSVAL
        content = read_json(path, PredictionError, CHOOSE_AGAIN)
        if not isinstance(content, dict) or content.get("members") != to_json(best.members):
            raise PredictionError(f"{path} is of another choice than best.json: {CHOOSE_AGAIN}")
        yield from _read_scores(path, {"of": "model"}, CHOOSE_AGAIN)
    for run, of_run in zip(runs, described, strict=True):
        about = {"of": "run", "run": run.name}
        scores: list[ModelScores] = []
        if run.crossval_json.exists() and of_run.holds_all_out:
            scores = _read_scores(run.crossval_json, about, SCORE_AGAIN, of_run.held_out_sha256)
        for fold in () if scores else of_run.folds:
            scores += _read_scores(run.fold(fold).summary_json, {**about, "of": "fold", "fold": fold}, SCORE_AGAIN)
        yield from scores


def _read_scores(
    path: Path, about: dict[str, str], mend: str, weights: Sequence[str] | None = None
) -> list[ModelScores]:
    """The scores in a file, none where it holds none or is of other ``weights``."""
    content = read_json(path, PredictionError, mend)
    try:
        if content["scores"] is None or (weights is not None and content["weights_sha256"] != [*weights]):
            return []
        return [from_json(ModelScores, about | {name: content[name] for name in ("split", "inflated", "scores")})]
    except (FieldError, KeyError, TypeError) as fault:
        raise PredictionError(f"{path} holds no scores ({fault}): {mend}") from fault


def _data(folder: DatasetFolder, plan: Plan) -> ModelData | None:
    """The data in numbers, None where they are not known or have changed since."""
    try:
        found = load_record(Fingerprint, folder.fingerprint_json, WorkspaceError, "")
        groups = folder.load_dataset().groups
    except WorkspaceError:
        return None
    if found.digest != plan.fingerprint:
        return None
    (low, left), (high, right) = found.sizes.min(0).tolist(), found.sizes.max(0).tolist()
    return ModelData(
        n_cases=len(found.cases),
        n_groups=len({groups[case.name] for case in found.cases if case.name in groups}),
        smallest=(low, left),
        largest=(high, right),
        n_volumes=sum(case.shape[0] > 1 for case in found.cases),
        n_empty=found.empty_masks,
    )


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> None:
    """Add a file as it is: weights hardly shrink, and what is not packed cannot unpack to more than it says."""
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # the same on every system
    info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
    with (
        io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source,
        archive.open(info, "w") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)


def _as_bytes(record: object) -> bytes:
    return (json.dumps(to_json(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
