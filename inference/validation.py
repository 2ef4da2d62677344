"""Predicts and scores the held-out cases of a fold, and sums up the folds of a run."""

import contextlib
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from iaunet.dataset import Dataset
from iaunet.errors import IaunetError, PredictionError
from iaunet.files import write_png
from iaunet.inference.expected_dice import STATISTICS
from iaunet.inference.mosaic import Prediction, RowPrediction
from iaunet.inference.out_of_fold import LogitWriter, logits_path, write_disagreement
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import FoldFolder, Run
from iaunet.inference.scores import (
    CaseScore,
    DistanceUnit,
    ScoreSummary,
    format_table,
    read_scores,
    score_masks,
    summarise_scores,
    write_scores,
)
from iaunet.inference.stream import predict_stream
from iaunet.preprocessing.arrays import Arrays
from iaunet.records import to_json
from iaunet.storage import file_digest, read_json, write_json

logger = logging.getLogger(__name__)


def validate_fold(
    predictor: Predictor,
    folder: FoldFolder,
    dataset: Dataset,
    arrays: Arrays,
    names: Sequence[str],
    notes: Mapping[str, Any],
) -> ScoreSummary:
    """Predict held-out cases at native size, keep their masks and scores, and mark the fold as finished.

    Args:
        predictor: With the fold's network.
        folder: Gets ``validation/`` with masks, logits of rows, disagreement of flips, and scores, at native size and,
            where the plan stretches pictures, at the network's; then summary.json.
        dataset: Knows the groups.
        arrays: The preprocessed inputs and true masks.
        names: The held-out cases.
        notes: Further facts for summary.json.

    Raises:
        PreprocessingError: The true mask of a case is missing or damaged.
        WorkspaceError: The disk is full.
    """
    folder.summary_json.unlink(missing_ok=True)  # first, or a killed rerun would count as finished
    shutil.rmtree(folder.validation, ignore_errors=True)
    scored = _score_cases(predictor, folder, arrays, names)
    scores = [scored[name].native for name in names]
    write_scores(folder.scores_csv, scores)
    disagreement = {name: scored[name].disagreement for name in names}
    write_disagreement(folder.disagreement_csv, disagreement, predictor.plan.labels)
    at_input_size = [score for name in names if (score := scored[name].at_input_size)]
    if at_input_size:
        write_scores(folder.input_scores_csv, at_input_size)
    summary = summarise_scores(scores, _groups(dataset, names), unit=_distance_unit(arrays))
    write_summary(folder, {**notes, "scores": to_json(summary)})
    return summary


def write_summary(folder: FoldFolder, content: Mapping[str, Any]) -> None:
    """Write summary.json with the hash of the weights it tells about: the fold is finished."""
    write_json(folder.summary_json, {"weights_sha256": file_digest(folder.weights), **content})


def summarise_run(run: Run, n_folds: int, dataset: Dataset, inflated: str) -> ScoreSummary | None:
    """Write crossval.json from the held-out cases of all folds; None while folds are missing.

    Args:
        run: The run.
        n_folds: Folds of its split.
        dataset: Knows the groups.
        inflated: Empty, or why the split's scores are too good.
    """
    folders = [run.fold(str(fold)) for fold in range(n_folds)]
    if not all(folder.is_finished for folder in folders):
        return None
    scores: list[CaseScore] = []
    folds: dict[str, int] = {}
    units = set()
    for fold, folder in enumerate(folders):
        held_out = read_scores(folder.scores_csv)
        scores += held_out
        folds |= {score.name: fold for score in held_out}
        units.add(_read_unit(folder))
    summary = summarise_scores(scores, _groups(dataset, folds), folds, units.pop() if len(units) == 1 else "px")
    content = {
        "run": run.name,
        "split": run.record.split,
        "inflated": inflated,
        "weights_sha256": [folder.weights_digest() for folder in folders],
        "scores": to_json(summary),
    }
    write_json(run.crossval_json, content)
    return summary


def describe_scores(summary: ScoreSummary, inflated: str) -> list[str]:
    """The table of a summary, with the reason why it is too good, if there is one."""
    return [*format_table(summary), *([f"these scores are {inflated}"] if inflated else [])]


def _groups(dataset: Dataset, names: Iterable[str]) -> dict[str, str]:
    return {name: dataset.groups[name] for name in names if name in dataset.groups}


@dataclass(frozen=True, eq=False)
class _Scored:
    """The scores of a held-out case at native size, and where pictures are stretched at the network's; and how far the
    flips of each output disagree."""

    native: CaseScore
    at_input_size: CaseScore | None
    disagreement: NDArray[np.float64]


def _score_cases(predictor: Predictor, folder: FoldFolder, arrays: Arrays, names: Sequence[str]) -> dict[str, _Scored]:
    """Predict cases and keep their masks."""
    plan = predictor.plan
    in_mm = _distance_unit(arrays) == "mm"
    writers: dict[str, LogitWriter] = {}
    rows: dict[str, list[NDArray[np.uint8]]] = {}

    def watch(name: str, row: RowPrediction) -> None:
        probabilities = row.probabilities
        if name not in writers:
            shape = arrays.cases[name].n_rows, *probabilities.shape
            writers[name] = LogitWriter(logits_path(folder.logits, name), shape)
        writers[name].add(probabilities)
        if plan.input_mode == "resize":
            rows.setdefault(name, []).append(plan.decide(probabilities))

    def finish(name: str, prediction: Prediction) -> _Scored:
        values = plan.coding.decode(prediction.labels)
        write_png(folder.validation / f"{name}.png", values.reshape(-1, values.shape[-1]))
        spacing_mm = arrays.cases[name].spacing_mm if in_mm else None
        outputs, truth = plan.coding.outputs, arrays.truth(name)
        del writers[name]
        native = score_masks(name, prediction.labels, truth, plan.labels, spacing_mm, outputs=outputs)
        at_input_size = None
        if plan.input_mode == "resize":
            true_rows = arrays.masks[arrays.cases[name].rows]
            at_input_size = score_masks(name, np.stack(rows.pop(name)), true_rows, plan.labels, outputs=outputs)
        assert prediction.statistics is not None  # they were asked for
        disagreement = prediction.statistics[0, :, STATISTICS.index("disagreement")]
        return _Scored(native, at_input_size, disagreement)

    scores = {}
    stream = predict_stream(predictor, names, arrays.case_input, finish, watch=watch, measure=True)
    with contextlib.closing(stream):
        for name, result in tqdm(stream, "validate", len(names), unit=" cases", disable=None, leave=False):
            if isinstance(result, IaunetError):
                raise result
            scores[name] = result
    return scores


def _read_unit(folder: FoldFolder) -> DistanceUnit:
    """The unit of the distances that a finished fold was scored with."""
    content = read_json(folder.summary_json, PredictionError, "run iaunet_train with --val_only for this fold")
    return "mm" if content["scores"].get("distance_unit") == "mm" else "px"


def _distance_unit(arrays: Arrays) -> DistanceUnit:
    """Distances are in mm where that is known for every case of the dataset: all folds are summed up together."""
    return "mm" if all(case.spacing_mm for case in arrays.index.cases) else "px"
