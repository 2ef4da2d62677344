"""Folds of one network or several trained beside each other: as calls of an engine, or in parts."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from iaunet.allocation import keep_freed_memory
from iaunet.engines import Engine
from iaunet.engines.parts import Part
from iaunet.engines.tasks import Task
from iaunet.errors import IaunetError, TrainingError
from iaunet.inference.runs import Run
from iaunet.trainers.distributed import ALONE, Ranks, require_alone
from iaunet.trainers.training import TrainingOptions, find_folds, put_aside, sum_up, train
from iaunet.workspace import DatasetFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unit:
    """One fold of one run: what is trained by itself."""

    folder: DatasetFolder
    run: Run
    fold: str
    options: TrainingOptions

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.run.name} fold {self.fold}"

    @property
    def log(self) -> Path:
        """The file of what is told while it is trained elsewhere."""
        return self.run.fold(self.fold).root / "log.txt"

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.run.fold(self.fold).is_finished and not (self.options.val_only or self.options.restart)


def train_unit(unit: Unit) -> None:
    """Train a unit and leave summing up to others."""
    keep_freed_memory()
    train(unit.folder, unit.fold, unit.options, sums_up=False)


def train_networks(
    folder: DatasetFolder,
    fold: str,
    choices: Sequence[TrainingOptions],
    engine: Engine | None = None,
    part: Part | None = None,
    ranks: Ranks = ALONE,
) -> list[Run]:
    """Train one fold of each network or all: one after the other here, beside each other on an engine, or in parts.

    Args:
        folder: The dataset's folder in the workspace; for an engine and for parts on a disk that all machines share.
        fold: "0", "1", ..., "cv" for every fold, or "all", see `iaunet.trainers.training.train`.
        choices: What to do otherwise than planned, for each network.
        engine: Where to train; None for here.
        part: Train only this share of all folds; who ends last sums up. None for all of them.
        ranks: The processes that train each fold together, where that is done here.

    Returns:
        The runs.

    Raises:
        TrainingError: A fold or a setting cannot be, a run was begun with other settings, two networks would have
            the same run, or folds failed. All but the last is told before anything is begun or put aside.
        EngineError: The engine cannot be reached.
        Stopped: A signal asked to stop; everything is saved.
    """
    ranks.first(lambda: _refuse(choices, engine, part, ranks))
    if engine is None and part is None:
        if len(choices) > 1:  # the last one's faults are told before the first one is trained
            ranks.lead(lambda: _find_units(folder, fold, choices))
        return [train(folder, fold, options, ranks) for options in choices]
    units = ranks.first(lambda: _find_units(folder, fold, choices))
    for run in dict.fromkeys(unit.run for unit in units):
        logger.info("run        %s", run.root)
    if engine is not None:
        _train_on(engine, folder, units)
    elif part is not None:
        _train_part(part, units, ranks)
    return [sum_up(folder, dataclasses.replace(options, restart=False), ranks) for options in choices]


def _refuse(choices: Sequence[TrainingOptions], engine: Engine | None, part: Part | None, ranks: Ranks) -> None:
    """Refuse what cannot be done for several networks or folds beside each other."""
    if len(choices) > 1 and any(options.name is not None for options in choices):
        raise TrainingError("--name is the name of one run: leave it out, or give one --network")
    if (len(choices) > 1 or engine or part) and any(options.hours is not None for options in choices):
        raise TrainingError("--hours is shared out among the folds of one run in turn: give --epochs instead")
    if part and any(options.restart for options in choices):
        raise TrainingError("--restart would put aside what other parts train: give --name for another run")
    if engine:
        require_alone(ranks.size)


def _train_on(engine: Engine, folder: DatasetFolder, units: Sequence[Unit]) -> None:
    """Train what is left to do as calls of an engine; old runs are put aside once it is reached."""
    units = [unit for unit in units if not unit.is_finished]
    if not units:
        return
    tasks = [Task(unit.name, dataclasses.replace(unit, options=_anywhere(unit.options)), unit.log) for unit in units]
    on_gpu = any(unit.options.device != "cpu" for unit in units)
    faults: dict[str, IaunetError] = {}
    for task, outcome in engine.run(train_unit, tasks, on_gpu, begin=lambda: _put_aside_restarted(folder, units)):
        if outcome is not None:
            faults[task.name] = outcome
        logger.info("%s %s", task.name, "is finished" if outcome is None else f"failed: {outcome}")
    _require_none(faults, len(tasks))


def _require_none(faults: Mapping[str, IaunetError], n: int) -> None:
    """Refuse to go on after faults, of so many units, by name."""
    if faults:
        name, fault = next(iter(faults.items()))
        raise TrainingError(f"{len(faults)} of {n} folds failed; {name}: {fault}")


def _put_aside_restarted(folder: DatasetFolder, units: Sequence[Unit]) -> None:
    """Put aside the runs that --restart replaces: all, or none if one of them is being trained."""
    runs = dict.fromkeys(unit.run for unit in units if unit.options.restart)
    if runs:
        put_aside(folder, [*runs])


def _train_part(part: Part, units: Sequence[Unit], ranks: Ranks) -> None:
    """Train a share of the units here."""
    mine = part.of(units)
    logger.info("part       %s: %d of %d folds", part, len(mine), len(units))
    faults: dict[str, IaunetError] = {}
    for unit in mine:
        try:
            train(unit.folder, unit.fold, unit.options, ranks, sums_up=False)
        except IaunetError as fault:
            if ranks.size > 1:
                raise  # of which the other ranks may know nothing
            logger.warning("%s failed: %s", unit.name, fault)
            faults[unit.name] = fault
    _require_none(faults, len(mine))


def _find_units(folder: DatasetFolder, fold: str, choices: Sequence[TrainingOptions]) -> list[Unit]:
    """The units of all networks, checked; nothing is begun. The folder's path is made absolute."""
    folder = DatasetFolder(folder.root.resolve())
    units: list[Unit] = []
    for options in choices:
        run, names = find_folds(folder, fold, options)
        if any(unit.run == run for unit in units):
            raise TrainingError(f"two networks would have the same run {run.name}: give each --network once")
        units += [Unit(folder, run, name, options) for name in names]
    return units


def _anywhere(options: TrainingOptions) -> TrainingOptions:
    """The same for another process: paths are absolute, and an old run is put aside already."""
    split, weights = options.split, options.weights
    if split is not None and Path(split).is_file():
        split = str(Path(split).resolve())
    return dataclasses.replace(options, restart=False, split=split, weights=weights and weights.resolve())
