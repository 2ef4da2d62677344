"""What a report says of each run: its settings, the curves of its folds and the scores of the cases they held out."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet.errors import PredictionError
from iaunet.inference.crossval import Summary, summarise
from iaunet.inference.published import TITLES
from iaunet.inference.runs import FoldFolder, Run, list_runs
from iaunet.inference.scores import CaseScore, DistanceUnit, ScoreSummary, read_scores, summarise_scores
from iaunet.planners.folds import Split
from iaunet.planners.plan import Plan
from iaunet.records import to_json
from iaunet.storage import digest, read_json, read_text
from iaunet.workspace import DatasetFolder

OWN_SPLITS = ("random", "grouped")
SCORE_AGAIN = "score again, with iaunet_train --val_only or iaunet_find_best"
COLUMNS = ("epoch", "loss", "validation_loss", "validation_dice", "lr", "seconds")
"""The columns of metrics.csv that are shown."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How the training of one fold ("0", ... or "all") went: a value an epoch, NaN where it was not measured.

    ``validation_dice`` is that of the network's outputs at its own size. ``seconds`` is what each epoch took.
    """

    fold: str
    epoch: tuple[float, ...]
    loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    validation_dice: tuple[float, ...]
    lr: tuple[float, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class FoldScore:
    """The cases that one fold held out: how many, and the mean Dice of each label and over labels."""

    fold: int
    n_cases: int
    labels: Mapping[str, float]
    dice: float


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run with the scores of the cases that its scored folds held out, as masks come from the networks.

    ``title`` names its network. ``n_folds`` is the number of folds of its split. ``inflated`` is empty, or says why
    its scores are too good. ``is_current`` tells whether it was trained on the data and the folds as they are planned
    now; folds that the user gave in a file are not compared. ``stale`` is empty, or says why its scores are not those
    of its weights. ``summary`` is None, and ``cases`` and ``folds`` are
    empty, where no fold was scored. ``fold_of`` is the fold that held a case out. ``overrides`` are the options that
    changed the plan. ``overall`` is the Dice, the mean over labels; None as ``summary`` is.
    """

    name: str
    title: str
    plan: Plan
    split: str
    inflated: str
    seed: int
    epochs: int
    device: str
    versions: Mapping[str, str]
    overrides: Mapping[str, str | int | float]
    n_folds: int
    is_current: bool
    stale: str
    curves: tuple[Curve, ...]
    folds: tuple[FoldScore, ...]
    cases: Mapping[str, CaseScore]
    fold_of: Mapping[str, int]
    summary: ScoreSummary | None
    overall: Summary | None

    @property
    def is_complete(self) -> bool:
        """Whether every fold of its split was scored."""
        return len(self.folds) == self.n_folds

    @property
    def dice(self) -> float:
        """The mean over cases of the mean Dice over labels; NaN without scores."""
        return self.overall.mean if self.overall else math.nan

    @property
    def seconds(self) -> float:
        """What the epochs of all its folds took."""
        return sum(sum(curve.seconds) for curve in self.curves)


def summarise_dice(scores: Sequence[CaseScore], groups: Mapping[str, str], fold_of: Mapping[str, int]) -> Summary:
    """The Dice of cases, of each the mean over labels, with its interval over groups."""
    names = [case.name for case in scores]
    return summarise(
        [case.dice for case in scores],
        [groups.get(name, name) for name in names],
        [fold_of[name] for name in names],
    )


def summarise_cases(
    scores: Sequence[CaseScore], groups: Mapping[str, str], fold_of: Mapping[str, int], unit: DistanceUnit
) -> ScoreSummary:
    """The scores of cases with intervals over groups, over cases where the group of one is not known."""
    known = {case.name: groups[case.name] for case in scores if case.name in groups}
    several = len({*fold_of.values()}) > 1
    return summarise_scores(scores, known if len(known) == len(scores) else {}, fold_of if several else None, unit)


def collect_runs(
    folder: DatasetFolder, plan: Plan, splits: Mapping[str, Split], groups: Mapping[str, str]
) -> tuple[RunFacts, ...]:
    """The runs of a dataset by name.

    Args:
        folder: The dataset's folder in the workspace.
        plan: The present one.
        splits: The present splits by the digests that runs name them with.
        groups: The group of each case, empty where groups are not known.

    Raises:
        PredictionError: Scores or a curve cannot be read, or scores are not those of the cases that a fold held out.
        TrainingError: The record of a run is damaged.
    """
    return tuple(_read_run(run, plan, splits, groups) for run in list_runs(folder.runs))


def read_cases(path: Path, labels: Sequence[str]) -> list[CaseScore]:
    """The scores of cases, each with every label: a file that was cut short may lack some.

    Raises:
        PredictionError: The file is missing or damaged, or a case lacks a label.
    """
    scores = read_scores(path)
    for score in scores:
        if {*score.labels} != {*labels}:
            raise PredictionError(f"{path} does not score {', '.join(labels)} of case {score.name!r}: {SCORE_AGAIN}")
    return scores


def split_digests(splits: Mapping[str, Split]) -> dict[str, Split]:
    """Splits by the digests that runs name them with."""
    return {digest(to_json(split.folds)): split for split in splits.values()}


def read_curve(path: Path, fold: str) -> Curve:
    """The curve in a metrics.csv.

    Raises:
        PredictionError: The file is missing or holds something else.
    """
    mend = "remove the file to make the report without the curve"
    table = csv.DictReader(io.StringIO(read_text(path, PredictionError, mend), newline=""))
    try:
        if not {*COLUMNS} <= {*(table.fieldnames or ())}:
            raise PredictionError(f"{path} does not have the columns {', '.join(COLUMNS)}: {mend}")
        rows = [{name: float(row[name]) for name in COLUMNS} for row in table]
    except (TypeError, ValueError, csv.Error) as fault:
        raise PredictionError(f"{path} holds no metrics in line {table.line_num}: {mend}") from fault
    return Curve(fold=fold, **{name: tuple(row[name] for row in rows) for name in COLUMNS})


def _read_run(run: Run, plan: Plan, splits: Mapping[str, Split], groups: Mapping[str, str]) -> RunFacts:
    record, folders = run.record, run.scored_folds()
    by_fold = {int(folder.fold): read_cases(folder.scores_csv, record.plan.labels) for folder in folders}
    summaries = [read_json(folder.summary_json, PredictionError, SCORE_AGAIN) for folder in folders]
    scores = [case for cases in by_fold.values() for case in cases]
    fold_of = {case.name: fold for fold, cases in by_fold.items() for case in cases}
    split = splits.get(record.split_digest)
    if split is not None:
        for folder in folders:
            _require_whole(folder, by_fold[int(folder.fold)], split)
    return RunFacts(
        name=run.name,
        title=TITLES.get(record.plan.network.name, record.plan.network.name),
        plan=record.plan,
        split=record.split,
        inflated=split.inflated if split else next(filter(None, map(_inflation, summaries)), ""),
        seed=record.seed,
        epochs=record.epochs or record.plan.recipe.epochs,
        device=record.device,
        versions=record.versions,
        overrides=record.overrides,
        n_folds=len(split.folds) if split else max(by_fold, default=0) + 1,
        is_current=record.plan.arrays_digest == plan.arrays_digest
        and (split is not None or record.split not in OWN_SPLITS),
        stale=_staleness(folders),
        curves=tuple(_curves(run)),
        folds=tuple(_score_fold(fold, cases) for fold, cases in by_fold.items() if cases),
        cases={case.name: case for case in scores},
        fold_of=fold_of,
        summary=summarise_cases(scores, groups, fold_of, _unit(summaries)) if scores else None,
        overall=summarise_dice(scores, groups, fold_of) if scores else None,
    )


def _require_whole(folder: FoldFolder, cases: Sequence[CaseScore], split: Split) -> None:
    """Refuse scores that were cut short between two rows."""
    held_out = split.folds[int(folder.fold)].validation if int(folder.fold) < len(split.folds) else ()
    if {case.name for case in cases} != {*held_out}:
        raise PredictionError(
            f"{folder.scores_csv} holds {len(cases)} cases, not the {len(held_out)} that the fold held out: "
            "run iaunet_train with --val_only for this fold"
        )


def _score_fold(fold: int, cases: Sequence[CaseScore]) -> FoldScore:
    return FoldScore(
        fold=fold,
        n_cases=len(cases),
        labels={
            label: float(np.mean([case.labels[label].metrics["dice"] for case in cases])) for label in cases[0].labels
        },
        dice=float(np.mean([case.dice for case in cases])),
    )


def _staleness(folders: Sequence[FoldFolder]) -> str:
    """Why scores are not those of the weights, empty if they are or the weights are not there."""
    for folder in folders:
        try:
            if folder.weights.exists():
                folder.weights_digest()
        except PredictionError:
            return f"the weights of fold {folder.fold} or their settings are not those that were scored"
    return ""


def _curves(run: Run) -> list[Curve]:
    folders = sorted(run.root.glob("fold_*"), key=lambda path: (len(path.name), path.name))
    found = [FoldFolder(path) for path in folders if (path / "metrics.csv").exists()]
    return [read_curve(folder.metrics_csv, folder.fold) for folder in found]


def _inflation(summary: object) -> str:
    return str(summary.get("inflated") or "") if isinstance(summary, dict) else ""


def _unit(summaries: Sequence[object]) -> DistanceUnit:
    """What all folds have their distances in."""
    found = [summary.get("scores") for summary in summaries if isinstance(summary, dict)]
    units = {scores.get("distance_unit") for scores in found if isinstance(scores, dict)}
    return "mm" if units == {"mm"} else "px"
