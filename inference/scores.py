"""The scores of cases: made from masks, kept as CSV, summed up and laid out as a table."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iaunet.dataset import IGNORED
from iaunet.errors import PredictionError
from iaunet.inference.crossval import LabelSummary, Summary, summarise_label
from iaunet.inference.text_tables import aligned
from iaunet.metrics import METRICS, Counts, Label, count_case, score_case
from iaunet.planners.planner import NO_GROUPS
from iaunet.storage import read_text, write_text

_COUNTS = tuple(field.name for field in dataclasses.fields(Counts))
_COLUMNS = ("case", "label", *_COUNTS, *METRICS)


DistanceUnit = Literal["px", "mm"]


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """One label in one case: its pixels counted, and every metric of `METRICS` by name, NaN where undefined."""

    counts: Counts
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class CaseScore:
    """How well one case was segmented: a score a label, by the label's name and in the labels' order."""

    name: str
    labels: Mapping[str, LabelScore]

    @property
    def dice(self) -> float:
        """The mean over labels."""
        return float(np.mean([label.metrics["dice"] for label in self.labels.values()]))


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What the scores of cases say together, a `LabelSummary` by label.

    ``n_groups`` is 0 where groups are not known. ``sd_over`` tells what the standard deviations are over: the
    cases, or the means of folds.
    """

    n_cases: int
    n_groups: int
    sd_over: Literal["cases", "folds"]
    distance_unit: DistanceUnit
    labels: Mapping[str, LabelSummary]


def score_masks(
    name: str,
    prediction: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    label_names: Sequence[str],
    spacing_mm: Sequence[float] | None = None,
    tolerance: float = 2.0,
    outputs: Sequence[tuple[int, ...]] | None = None,
) -> CaseScore:
    """Score the predicted mask of a case.

    Args:
        name: The case's name.
        prediction: Labels 0..n, (H, W), or (slices, H, W) of a volume; one slice counts as a picture.
        truth: The same, of the same shape; `IGNORED` pixels count nowhere.
        label_names: The names of what is scored: labels 1..n, or ``outputs``.
        spacing_mm: Size of a pixel along each axis; None for distances in pixels.
        tolerance: Tolerance of surface Dice in pixels, see `score_case`.
        outputs: The labels that each of ``label_names`` unites, None for one each.

    Raises:
        ValueError: The shapes differ.
    """
    if truth.ndim == 3 and len(truth) == 1 == len(prediction):
        prediction, truth = prediction[0], truth[0]
        spacing_mm = None if spacing_mm is None else spacing_mm[1:]
    labels: list[Label] = [*(outputs or range(1, len(label_names) + 1))]
    ignore = IGNORED if (truth == IGNORED).any() else None
    counts = count_case(prediction, truth, labels, ignore)
    metrics = score_case(prediction, truth, labels, spacing_mm, ignore, tolerance)
    return CaseScore(
        name=name,
        labels={
            label_name: LabelScore(counts=counts[label], metrics=metrics[label])
            for label, label_name in zip(labels, label_names, strict=True)
        },
    )


def summarise_scores(
    scores: Sequence[CaseScore],
    groups: Mapping[str, str],
    folds: Mapping[str, int] | None = None,
    unit: DistanceUnit = "px",
) -> ScoreSummary:
    """Sum up the scores of cases, with intervals from a bootstrap over groups.

    Args:
        scores: One case or more, all with the same labels.
        groups: The group of each case by its name; empty where groups are not known, and then each case is its own.
        folds: The fold of each case by its name; None where there are none, and then standard deviations are over
            cases.
        unit: What distances are in.

    Raises:
        ValueError: There are no scores: nothing can be said then.
    """
    if not scores:
        raise ValueError("there are no scores to sum up")
    names = [case.name for case in scores]
    groups_of_cases = [groups[name] for name in names] if groups else None
    folds_of_cases = [folds[name] for name in names] if folds else range(len(names))
    summaries = {}
    for label in scores[0].labels:
        of_label = [case.labels[label] for case in scores]
        summaries[label] = summarise_label(
            [score.metrics for score in of_label],
            [score.counts for score in of_label],
            groups_of_cases,
            folds_of_cases,
        )
    return ScoreSummary(
        n_cases=len(scores),
        n_groups=len(set(groups_of_cases or ())),
        sd_over="folds" if folds else "cases",
        distance_unit=unit,
        labels=summaries,
    )


def format_table(summary: ScoreSummary) -> list[str]:
    """The lines that show a summary: a block a label, with a second one without the cases that lack the label."""
    known = f"in {summary.n_groups} groups" if summary.n_groups else f"({NO_GROUPS})"
    lines = [f"{summary.n_cases} cases {known}; sd over {summary.sd_over}"]
    for label, of_label in summary.labels.items():
        lines += ["", *_block(label, of_label.all_cases, summary.distance_unit, of_label.pooled)]
        if of_label.n_empty:
            title = f"{label}, without the {of_label.n_empty} cases whose truth is empty"
            lines += ["", *_block(title, of_label.with_truth, summary.distance_unit)]
    return lines


def write_scores(path: Path, scores: Sequence[CaseScore]) -> None:
    """Write scores as CSV, a row a case and label, whole or not at all; what is undefined is left blank."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for case in scores:
        for label, score in case.labels.items():
            counts = [getattr(score.counts, name) for name in _COUNTS]
            metrics = [score.metrics[name] for name in METRICS]
            blanked = ["" if math.isnan(value) else repr(value) for value in metrics]
            writer.writerow([case.name, label, *counts, *blanked])
    write_text(path, text.getvalue())


def read_scores(path: Path) -> list[CaseScore]:
    """Read what `write_scores` wrote, to the last digit.

    Raises:
        PredictionError: The file is missing or holds something else.
    """
    mend = "evaluate again to write it anew"
    rows = csv.reader(io.StringIO(read_text(path, PredictionError, mend), newline=""))
    cases: dict[str, dict[str, LabelScore]] = {}
    try:
        if tuple(next(rows, ())) != _COLUMNS:
            raise PredictionError(f"{path} does not have the columns {', '.join(_COLUMNS)}: {mend}")
        for name, label, *values in rows:
            cases.setdefault(name, {})[label] = _parse_score(values)
    except (ValueError, csv.Error) as fault:
        raise PredictionError(f"{path}, line {rows.line_num}, holds no score ({fault}): {mend}") from fault
    return [CaseScore(name=name, labels=labels) for name, labels in cases.items()]


def _parse_score(values: Sequence[str]) -> LabelScore:
    counts = map(int, values[: len(_COUNTS)])
    metrics = (float(value or "nan") for value in values[len(_COUNTS) :])
    return LabelScore(
        counts=Counts(**dict(zip(_COUNTS, counts, strict=True))),
        metrics=dict(zip(METRICS, metrics, strict=True)),
    )


def _block(
    title: str,
    summaries: Mapping[str, Summary],
    distance_unit: str,
    pooled: Mapping[str, float] | None = None,
) -> list[str]:
    """A title and a row a metric; the pooled column only where it is given."""
    rows = [[title, "mean", "sd", "95 % interval", *(["pooled"] if pooled else []), "left out"]]
    for name, metric in METRICS.items():
        summary = summaries[name]
        rows.append(
            [
                f"{metric.title} ({distance_unit})" if name == "hd95" else metric.title,
                metric.text(summary.mean),
                metric.text(summary.sd),
                "-" if math.isnan(summary.low) else f"{metric.text(summary.low)} to {metric.text(summary.high)}",
                *([metric.text(pooled.get(name, math.nan))] if pooled else []),
                str(summary.n_left_out),
            ]
        )
    return aligned(rows)
