"""Runs on disk: one network trained one way over its folds."""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from iaunet.errors import PlanError, PredictionError, TrainingError
from iaunet.planners.plan import Plan, decisions, load_plan
from iaunet.records import load_record, to_json
from iaunet.storage import digest, file_digest, read_json, write_json
from iaunet.workspace import DatasetFolder

logger = logging.getLogger(__name__)

ALL_CASES = "all"

Precision = Literal["float32", "bfloat16", "float16"]
"""Names in `iaunet.device.PRECISIONS`, which is not imported here: it brings torch."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run was made from and with.

    ``plan`` is the resolved plan; ``overrides`` are the options that changed it. ``split_digest`` names the folds.
    ``micro_batch`` is the number of rows that go through the network at once. ``epochs`` is None, or the number
    that a limit of hours allowed. ``weights_sha256`` is the hash of the weights it started from, if it did.
    ``device`` says on what the run began, ``precision`` the type that products are taken in (None if it was begun
    before that was recorded). ``versions`` are those of Python and the libraries.
    """

    version: int = 1
    plan: Plan
    overrides: dict[str, str | int | float] = field(default_factory=dict)
    split: str
    split_digest: str
    seed: int
    micro_batch: int
    device: str
    precision: Precision | None = None
    threads: int
    versions: dict[str, str] = field(default_factory=dict)
    hours: float | None = None
    epochs: int | None = None
    weights_sha256: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for a run to be gone on with, and for its weights to be used."""
        names = ("split", "split_digest", "seed", "hours", "weights_sha256")
        return {"plan": decisions(self.plan), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class FoldFolder:
    """The folder of one fold of a run; ``fold`` is a number from 0 or "all"."""

    root: Path

    @property
    def fold(self) -> str:
        """The fold's number as text, or "all"."""
        return self.root.name.removeprefix("fold_")

    @property
    def weights(self) -> Path:
        """What inference reads."""
        return self.root / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        """What training resumes from."""
        return self.root / "checkpoint.pt"

    @property
    def metrics_csv(self) -> Path:
        """A row an epoch."""
        return self.root / "metrics.csv"

    @property
    def progress_png(self) -> Path:
        """The curves."""
        return self.root / "progress.png"

    @property
    def validation(self) -> Path:
        """The folder of the predicted masks of the held-out cases."""
        return self.root / "validation"

    @property
    def scores_csv(self) -> Path:
        """The scores of the held-out cases."""
        return self.validation / "scores.csv"

    @property
    def input_scores_csv(self) -> Path:
        """Their scores at the network's size, as papers give them, where pictures are stretched to it."""
        return self.validation / "scores_input_size.csv"

    @property
    def logits(self) -> Path:
        """The folder of the logits of their rows, see `iaunet.inference.out_of_fold`."""
        return self.validation / "logits"

    @property
    def disagreement_csv(self) -> Path:
        """How far the flips of each held-out case disagree, see `iaunet.inference.out_of_fold`."""
        return self.validation / "mirror_disagreement.csv"

    @property
    def summary_json(self) -> Path:
        """Written last: its presence means that the fold is finished."""
        return self.root / "summary.json"

    @property
    def is_finished(self) -> bool:
        """Whether it was trained and, but for "all", validated."""
        return self.summary_json.exists() and self.weights.exists()

    @property
    def is_scored(self) -> bool:
        """Whether the scores of held-out cases are there, whether or not the weights are."""
        return self.summary_json.exists() and self.scores_csv.exists()

    def weights_digest(self) -> str:
        """The hash of the weights.

        Raises:
            PredictionError: The weights are not those that were scored, or the settings of their run are others now.
        """
        summary = read_json(self.summary_json, PredictionError, "train this fold again")
        found = file_digest(self.weights)
        if not isinstance(summary, dict) or summary.get("weights_sha256") != found:
            raise PredictionError(
                f"{self.weights} is not the file that was scored: run iaunet_train with --val_only for this fold"
            )
        run = Run(self.root.parent)
        if summary.get("settings_sha256") not in (None, digest(run.record.settings)):  # None: as it was written once
            raise PredictionError(
                f"{run.run_json} has changed since fold {self.fold} was scored: bring it back from a copy, "
                f"or score every fold again, iaunet_train with cv, --val_only and --name {run.name}"
            )
        return found


@dataclass(frozen=True)
class Run:
    """The folder of one run."""

    root: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.root.name

    @property
    def run_json(self) -> Path:
        """The file of its `RunRecord`."""
        return self.root / "run.json"

    @property
    def crossval_json(self) -> Path:
        """The out-of-fold scores, once every fold is finished."""
        return self.root / "crossval.json"

    @cached_property
    def record(self) -> RunRecord:
        """What the run was made from and with.

        Raises:
            TrainingError: run.json is missing or holds something else.
        """
        return load_record(RunRecord, self.run_json, TrainingError, "start the run anew with --restart")

    def write_record(self, record: RunRecord) -> None:
        """Write run.json and use it from here on."""
        write_json(self.run_json, to_json(record))
        self.__dict__["record"] = record

    def fold(self, fold: str) -> FoldFolder:
        """The folder of a fold, whether or not it exists yet."""
        return FoldFolder(self.root / f"fold_{fold}")

    def finished_folds(self) -> list[FoldFolder]:
        """The finished folds by name; "all" among them if it is."""
        folders = (FoldFolder(path) for path in sorted(self.root.glob("fold_*")))
        return [folder for folder in folders if folder.is_finished]

    def trained_folds(self) -> list[FoldFolder]:
        """The finished folds that held cases out, by number, whether or not the scores of single cases are there."""
        folders = (folder for folder in self.finished_folds() if folder.fold.isdecimal())
        return sorted(folders, key=lambda folder: int(folder.fold))

    def scored_folds(self) -> list[FoldFolder]:
        """The folds with scores of held-out cases, by number, whether or not their weights are there."""
        folders = (FoldFolder(path) for path in self.root.glob("fold_*"))
        scored = [folder for folder in folders if folder.fold.isdecimal() and folder.is_scored]
        return sorted(scored, key=lambda folder: int(folder.fold))


def list_runs(folder: Path) -> list[Run]:
    """The runs in a folder of runs, by name."""
    return [Run(path.parent) for path in sorted(folder.glob("*/run.json"))]


def choose_runs(dataset: DatasetFolder, wished: list[str] | None) -> list[Run]:
    """The runs to predict with: those named, else the only one with a finished fold.

    Raises:
        PredictionError: A run is unknown or has no finished fold, or there are several and none was named.
    """
    usable = {run.name: run for run in list_runs(dataset.runs) if run.finished_folds()}
    train = f"run iaunet_train {dataset.name} 0 first"
    if not usable:
        raise PredictionError(f"{dataset.name} has no finished fold yet: {train}")
    if wished:
        unknown = [name for name in wished if name not in usable]
        if unknown:
            raise PredictionError(f"no finished fold of a run {unknown[0]!r}: choose among {', '.join(usable)}")
        runs = [usable[name] for name in dict.fromkeys(wished)]
    elif len(usable) > 1:
        raise PredictionError(f"{dataset.name} has several runs: choose with --run among {', '.join(usable)}")
    else:
        runs = list(usable.values())
    for run in runs:
        _tell_if_old(dataset, run)
    return runs


def _tell_if_old(dataset: DatasetFolder, run: Run) -> None:
    """Say that a run does not know of changes of the data since it was begun."""
    try:
        now = load_plan(dataset.plan_json).fingerprint
    except PlanError:
        return  # a model that was copied without its data
    if run.record.plan.fingerprint != now:
        logger.warning(
            "warning    %s was trained on an older state of the data: iaunet_train with --name trains on the new one",
            run.name,
        )


def choose_folds(run: Run, wished: list[str] | None) -> list[FoldFolder]:
    """The folds to predict with: those named, else all finished ones that held cases out, else "all".

    Raises:
        PredictionError: A fold is not finished.
    """
    finished = {folder.fold: folder for folder in run.finished_folds()}
    if not wished:
        return [folder for fold, folder in finished.items() if fold != ALL_CASES] or list(finished.values())
    missing = [fold for fold in wished if fold not in finished]
    if missing:
        raise PredictionError(f"fold {missing[0]} of {run.name} is not finished: choose among {', '.join(finished)}")
    return [finished[fold] for fold in dict.fromkeys(wished)]
