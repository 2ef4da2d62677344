"""Trains folds of a run: settings resolved, folders locked, folds trained and validated, scores summed up."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from iaunet.dataset import Dataset
from iaunet.device import (
    begun_precision,
    choose_device,
    describe_device,
    free_memory,
    precision_name,
    training_precision,
    unused_gpu,
)
from iaunet.engines.tasks import allotted_processors
from iaunet.errors import TrainingError
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import ALL_CASES, FoldFolder, Run, RunRecord
from iaunet.inference.validation import describe_scores, summarise_run, validate_fold, write_summary
from iaunet.networks import DEPTHS, NETWORKS, default_sizes
from iaunet.planners.folds import Fold, Split, find_split, load_splits
from iaunet.planners.plan import WIDEST, NetworkOption, NetworkPlan, Plan, build_planned_network, load_plan
from iaunet.planners.recipes import USUAL_NETWORK, adapt_recipe, find_recipe
from iaunet.planners.rules import choose_max_keys
from iaunet.preprocessing.arrays import open_arrays
from iaunet.records import differences, require, to_json
from iaunet.storage import digest, file_digest, make_folder, remove_leftovers
from iaunet.trainers.device_augmentation import MOST_ORDER
from iaunet.trainers.distributed import ALONE, Ranks, rank_device
from iaunet.trainers.fold_setup import FoldSetup
from iaunet.trainers.memory import find_micro_batch
from iaunet.trainers.metrics_log import find_log
from iaunet.trainers.trainer import Trainer
from iaunet.trainers.versions import library_versions
from iaunet.weights import load_weights
from iaunet.workers import default_workers
from iaunet.workspace import DatasetFolder, locked

logger = logging.getLogger(__name__)

MOST_GPU_WORKERS = 12
READING_WORKERS = 2
"""Where the device augments, loading is reading alone."""

GPU_RESERVE = 2**29
"""Bytes of a GPU for what is no tensor of a step: rows being augmented, what kernels work in. As much again for the
buffers in which several GPUs exchange gradients."""

SECONDS_TO_BEGIN = 60
"""How long a process waits for another that begins a run, which is done in no time."""

STEPS_WORTH_A_WORKER = 400
"""A loading process takes seconds to start, so short trainings on a CPU do without."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What a user may decide otherwise than the plan; None leaves it to the plan.

    ``network_options`` are arguments of the network's builder. ``split`` is a name or a JSON file, ``name`` the run's
    (else NETWORK-RECIPE-SPLIT), ``hours`` a limit for the whole command, ``memory_gb`` for a training step,
    ``weights`` a safetensors file to start from. ``val_only`` predicts and scores finished trainings again, with
    ``name`` those of that run whatever its settings; ``restart`` puts the old run aside and begins anew. ``workers``
    are loading processes. ``precision`` "float32" takes products in it where the device would be faster in another
    type, see `iaunet.device.training_precision`. ``log`` says where the numbers of each epoch go besides metrics.csv,
    by a name of `iaunet.trainers.metrics_log.LOGS`.
    """

    network: str | None = None
    network_options: Mapping[str, NetworkOption] = field(default_factory=dict)
    recipe: str | None = None
    split: str | None = None
    name: str | None = None
    epochs: int | None = None
    hours: float | None = None
    lr: float | None = None
    batch_size: int | None = None
    width: int | None = None
    seed: int = 0
    memory_gb: float | None = None
    device: str = "auto"
    weights: Path | None = None
    val_only: bool = False
    restart: bool = False
    workers: int | None = None
    precision: str | None = None
    log: str = "csv"

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "a whole number of 0 or more")
        for name in ("hours", "memory_gb"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "a number above 0")
        require(self.workers is None or self.workers >= 0, "workers", self.workers, "a whole number of 0 or more")
        require(self.precision in (None, "float32"), "precision", self.precision, "float32, or nothing for the fastest")
        if self.val_only and self.restart:
            raise TrainingError("--restart begins anew and --val_only scores what is there: give one of them")
        if self.weights is not None and not self.weights.is_file():
            raise TrainingError(f"{self.weights} is no file: give the safetensors file to start from")


def train(
    folder: DatasetFolder, fold: str, options: TrainingOptions, ranks: Ranks = ALONE, sums_up: bool = True
) -> Run:
    """Train one fold of a run, all of them, or one model on every case; what was begun is gone on with.

    Args:
        folder: The dataset's folder in the workspace.
        fold: "0", "1", ..., "cv" for every fold, or "all" for one model on every case.
        options: What to do otherwise than planned.
        ranks: The processes that train each fold together, see `iaunet.trainers.distributed.joined`; each calls this.
        sums_up: Whether to do what `sum_up` does at the end.

    Returns:
        The run.

    Raises:
        TrainingError: The fold or a setting cannot be, or the run was begun with other settings.
        Stopped: A signal asked to stop; everything is saved.
        SystemExit: One of these, on other ranks than the first, which alone tells it.
    """

    def begin() -> tuple[_Training, list[str], RunRecord]:
        training = _Training(folder, options, ranks)
        return training, training.parse_folds(fold), training.settle_record()

    training, folds, record = ranks.first(begin)
    logger.info("run        %s", training.run.root)
    for i, name in enumerate(folds):
        with training.holding(name, record):
            still_to_do = sum(not training.run.fold(later).is_finished for later in folds[i:])
            record = training.train_fold(name, record, still_to_do)
    if sums_up and ranks.is_first:
        training.sum_up()
    return training.run


def find_folds(folder: DatasetFolder, fold: str, options: TrainingOptions) -> tuple[Run, list[str]]:
    """The run and the folds that `train` would train: all is checked but what depends on the device, nothing is begun.

    Raises:
        TrainingError: The fold or a setting cannot be, or the run was begun with other settings.
        NetworkError: The network cannot be built with these options.
    """
    training = _Training(folder, options, ALONE)
    names = training.parse_folds(fold)
    # a stranger's network may look at numbers, which are not there
    with contextlib.suppress(RuntimeError), torch.device("meta"):
        build_planned_network(training.plan)
    if not options.restart and (options.val_only or training.run.run_json.exists()):
        training.settle_record()
    return training.run, names


def put_aside(folder: DatasetFolder, runs: Sequence[Run]) -> None:
    """Rename the folders of runs that are there, so that other processes begin them anew, each on its own device.

    Raises:
        WorkspaceError: Another process is training a fold of one of them; all are left where they are.
    """
    with locked(folder.runs, "beginning a run", SECONDS_TO_BEGIN):
        for run in runs:
            _require_idle(run)
        for run in runs:
            _put_aside(run)


def sum_up(folder: DatasetFolder, options: TrainingOptions, ranks: Ranks = ALONE) -> Run:
    """Tell and write the scores over all folds of a run once each is finished; returns the run."""
    training = _Training(folder, options, ranks)
    if ranks.is_first:
        training.sum_up()
    return training.run


class _Training:
    """One call of `train`: the resolved settings and what is made from them."""

    def __init__(self, folder: DatasetFolder, options: TrainingOptions, ranks: Ranks) -> None:
        self.folder = folder
        self.ranks = ranks
        # rank 0 comes first and begins anew for all
        self.options = options if ranks.is_first else dataclasses.replace(options, restart=False)
        find_log(options.log)  # so that what is not installed is told first
        self.dataset: Dataset = folder.load_cases()
        self.named = self._find_named()
        self.plan = resolve_plan(self.named.plan if self.named else load_plan(folder.plan_json), options)
        if ranks.size > self.plan.recipe.batch_size:
            raise TrainingError(
                f"{ranks.size} ranks are more than the {self.plan.recipe.batch_size} rows of a step: start as many at "
                "most, or give a larger --batch_size"
            )
        _tell_unmet_needs(self.plan)
        names = [case.name for case in self.dataset.cases]
        wish = options.split or (self.named.split if self.named else self.plan.split)
        self.split: Split = find_split(load_splits(folder.splits_json), wish, names, self.dataset.groups)
        open_arrays(folder.preprocessed, self.plan.arrays_digest)  # so that what is missing is told first
        default_name = f"{self.plan.network.name.rpartition(':')[2]}-{self.plan.recipe.name}-{self.split.name}"
        self.run = Run(folder.runs / _valid_name(default_name if options.name is None else options.name))

    def _find_named(self) -> RunRecord | None:
        """The record of a run that is to be scored again under its name: its own settings are meant."""
        if not (self.options.val_only and self.options.name):
            return None
        run = Run(self.folder.runs / _valid_name(self.options.name))
        return run.record if run.run_json.exists() else None

    @cached_property
    def device(self) -> torch.device:
        """Where to compute."""
        device = choose_device(rank_device(self.options.device, self.ranks))
        logger.info("device     %s", describe_device(device))
        warning = unused_gpu(device)
        if warning:
            logger.warning("warning    %s", warning)
        return device

    @property
    def augments_on_device(self) -> bool:
        """Whether rows are augmented by the device: on GPUs, as far as they can sample what is planned."""
        return self.device.type == "cuda" and self.plan.recipe.augmentation.interpolation_order <= MOST_ORDER

    def describe_means(self, precision: torch.dtype | None) -> str:
        """Where and how steps are computed: what changes their numbers though no setting changes."""
        device = self.device
        means = [torch.cuda.get_device_name(device) if device.type == "cuda" else device.type]
        if self.ranks.size > 1:
            means.append(f"{self.ranks.size} ranks")
        if precision is not None:
            means.append(f"products in {str(precision).removeprefix('torch.')}")
        if self.augments_on_device:
            means.append("augmented there")
        return ", ".join(means)

    def parse_folds(self, fold: str) -> list[str]:
        """The names of the folds to train."""
        names = [str(i) for i in range(len(self.split.folds))]
        if fold == "cv":
            return names
        if fold in (*names, ALL_CASES):
            return [fold]
        raise TrainingError(
            f"fold {fold!r} is not known: {self.folder.name} has folds {names[0]} to {names[-1]} in the split "
            f"{self.split.name}, 'cv' for all of them, and 'all' for one model on every case"
        )

    def settle_record(self) -> RunRecord:
        """The run's record: the one on disk if it has the same settings, else that of a new run."""
        if self.run.run_json.exists() and not self.options.restart:
            record = self.run.record
            as_begun = self.named is not None and self.plan == self.named.plan
            if not as_begun or digest(to_json(self.split.folds)) != record.split_digest:
                self._require_same(record)
            return record
        if self.options.val_only:
            raise TrainingError(f"{self.run.name} was not trained yet: leave out --val_only")
        record = self._new_record()
        with locked(self.folder.runs, "beginning a run", SECONDS_TO_BEGIN):
            if self.options.restart or not self.run.run_json.exists():
                self._begin(record)
                return record
        return self.settle_record()  # another process began it meanwhile

    def _begin(self, record: RunRecord) -> None:
        if self.options.restart:  # only now: what cannot be begun anew stays where it is
            _require_idle(self.run)
            _put_aside(self.run)
        make_folder(self.run.root)
        remove_leftovers(self.run.root)
        self.run.write_record(record)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from the files of the run itself; what killed processes left of them is removed."""
        with locked(self.folder.runs, "writing the record of a run", SECONDS_TO_BEGIN):
            remove_leftovers(self.run.root)
            yield

    @contextlib.contextmanager
    def holding(self, name: str, record: RunRecord) -> Iterator[None]:
        """Keep others from a fold: rank 0 holds it for all ranks, once it is done with the fold before.

        Raises:
            TrainingError: Another process has begun the run anew since its record was read.
        """
        with contextlib.ExitStack() as stack:

            def hold() -> None:
                stack.enter_context(locked(self.run.fold(name).root, "training"))
                if Run(self.run.root).record.settings != record.settings:
                    raise TrainingError(f"{self.run.root} was begun anew meanwhile: run the same command again")

            self.ranks.lead(hold)
            yield

    def train_fold(self, name: str, record: RunRecord, commands_folds: int) -> RunRecord:
        """Train and validate a fold unless that is done; returns the record, with the epochs fixed if they were."""
        fold = self.run.fold(name)
        if self.ranks.from_first(fold.is_finished) and not self.options.val_only:
            self.ranks.lead(fold.weights_digest)
            logger.info("fold %s is finished: %s", name, fold.root)
            return record
        cases = self._cases(name)
        if not self.options.val_only:
            record = self._fit(self._setup(fold, cases, record, commands_folds), record)
        elif not fold.weights.exists():
            fault = TrainingError(f"fold {name} of {self.run.name} was not trained yet: leave out --val_only")
            raise self.ranks.told_once(fault)
        if self.ranks.is_first:
            self._validate(fold, cases, record)
        return record

    def _fit(self, setup: FoldSetup, record: RunRecord) -> RunRecord:
        """Train a fold; what that took of memory is free again afterwards."""
        trainer = Trainer(setup)
        trainer.fit()
        if record.hours is not None and record.epochs is None:
            record = dataclasses.replace(record, epochs=trainer.epochs)
            if self.ranks.is_first:
                with self._alone():
                    self.run.write_record(record)
        return record

    def sum_up(self) -> None:
        """Tell and write the scores over all folds once each is finished."""
        split = self.split
        with self._alone():
            summary = summarise_run(self.run, len(split.folds), self.dataset, split.inflated)
        if summary is not None:
            logger.info("cross-validation over %d folds: %s", len(split.folds), self.run.crossval_json)
            for line in describe_scores(summary, split.inflated):
                logger.info("%s", line)

    def _cases(self, name: str) -> Fold:
        if name != ALL_CASES:
            return self.split.folds[int(name)]
        return Fold(train=tuple(case.name for case in self.dataset.cases), validation=())

    def _setup(self, fold: FoldFolder, cases: Fold, record: RunRecord, commands_folds: int) -> FoldSetup:
        epochs = record.epochs or self.plan.recipe.epochs
        precision = begun_precision(record.precision, self.device)
        means = self.describe_means(precision)
        if means != record.device:
            logger.info("this run began on %s, this fold is trained on %s: numbers may differ", record.device, means)
        return FoldSetup(
            plan=self.plan,
            folder=fold,
            preprocessed=self.folder.preprocessed,
            run=digest(record.settings),
            train=cases.train,
            validation=cases.validation,
            seed=record.seed,
            device=self.device,
            micro_batch=record.micro_batch,
            workers=self._workers(len(cases.train), epochs),
            epochs=epochs,
            commands_folds=commands_folds,
            hours=record.hours if record.epochs is None else None,
            weights=self.options.weights,
            log=self.options.log,
            ranks=self.ranks,
            precision=precision,
            augments_on_device=self.augments_on_device,
        )

    def _validate(self, fold: FoldFolder, cases: Fold, record: RunRecord) -> None:
        notes = {
            "settings_sha256": digest(record.settings),
            "run": self.run.name,
            "fold": fold.fold,
            "split": self.split.name,
            "inflated": self.split.inflated,
        }
        if not cases.validation:
            write_summary(fold, {**notes, "scores": None})
            logger.info(
                "trained on every case, so there is no score; next: iaunet_predict -d %s -f all", self.folder.name
            )
            return
        network = build_planned_network(record.plan)
        load_weights(fold.weights, network)
        predictor = Predictor(record.plan, [network], self.device)
        # opened anew: somebody may have planned again while this fold was trained
        arrays = open_arrays(self.folder.preprocessed, self.plan.arrays_digest)
        summary = validate_fold(predictor, fold, self.dataset, arrays, cases.validation, notes)
        logger.info("fold %s: %s", fold.fold, fold.root)
        for line in describe_scores(summary, self.split.inflated):
            logger.info("%s", line)

    def _new_record(self) -> RunRecord:
        plan = self.plan
        precision = None if self.options.precision == "float32" else training_precision(self.device)
        rows = find_micro_batch(
            build_planned_network(plan),
            plan.channels,
            plan.input_size,
            plan.recipe.batch_size,
            self._memory(),
            self.device,
            precision,
        )
        return RunRecord(
            plan=plan,
            overrides=self._overrides(),
            split=self.split.name,
            split_digest=digest(to_json(self.split.folds)),
            seed=self.options.seed,
            micro_batch=rows,
            device=self.describe_means(precision),
            precision=precision_name(precision),
            threads=torch.get_num_threads(),
            versions=library_versions(),
            hours=self.options.hours,
            weights_sha256=self._weights_digest(),
        )

    def _memory(self) -> int | None:
        """Bytes that steps may take on the device, None for no limit."""
        if self.options.memory_gb is not None:
            return int(self.options.memory_gb * 2**30)
        free = free_memory(self.device)
        if free is None or self.device.type != "cuda":
            return free
        return max(0, free - GPU_RESERVE * (1 if self.ranks.size == 1 else 2))

    def _weights_digest(self) -> str:
        return file_digest(self.options.weights) if self.options.weights else ""

    def _overrides(self) -> dict[str, str | int | float]:
        names = ("network", "recipe", "epochs", "lr", "batch_size", "width", "memory_gb", "weights", "precision")
        given = {name: getattr(self.options, name) for name in names}
        overrides = {
            name: str(value) if isinstance(value, Path) else value for name, value in given.items() if value is not None
        }
        return overrides | {f"network_options.{name}": str(v) for name, v in self.options.network_options.items()}

    def _require_same(self, record: RunRecord) -> None:
        """Refuse to go on with a run of other settings."""
        wished = dataclasses.replace(
            record,
            plan=self.plan,
            split=self.split.name,
            split_digest=digest(to_json(self.split.folds)),
            seed=self.options.seed,
            hours=self.options.hours,
            weights_sha256=self._weights_digest(),
        )
        if record.plan.fingerprint != self.plan.fingerprint:
            raise TrainingError(
                f"the images or masks of {self.folder.name} have changed since {self.run.root} was begun: "
                "--restart puts it aside and begins anew, --name begins another run beside it"
            )
        if record.split == wished.split and record.split_digest != wished.split_digest:
            raise TrainingError(
                f"the folds of the split {record.split} have changed since {self.run.root} was begun: bring them back "
                "from a copy, --restart puts the run aside and begins anew, --name begins another one beside it"
            )
        changed = differences(record.settings, wished.settings)
        memory = record.overrides.get("memory_gb")
        if self.options.memory_gb not in (None, memory):
            changed.append(f"memory: {memory} -> {self.options.memory_gb}")
        if self.options.precision not in (None, record.precision):
            changed.append(f"precision: {record.precision} -> {self.options.precision}")
        if changed:
            raise TrainingError(
                f"{self.run.root} was begun with other settings ({'; '.join(changed)}): give the same settings to go "
                "on, --restart to put it aside and begin anew, or --name for another run"
            )

    def _workers(self, n_train: int, epochs: int) -> int:
        if self.options.workers is not None:
            return self.options.workers
        if self.device.type != "cpu":
            processors = allotted_processors() or default_workers()
            most = READING_WORKERS if self.augments_on_device else MOST_GPU_WORKERS
            return min(most, max(1, processors // self.ranks.local_size - 1))
        recipe = self.plan.recipe
        steps = -(-n_train * recipe.draws_a_case // recipe.batch_size) * epochs
        return int(steps >= STEPS_WORTH_A_WORKER)


def resolve_plan(plan: Plan, options: TrainingOptions) -> Plan:
    """The plan with what the user decides otherwise.

    Raises:
        TrainingError: The plan names a stranger's network that the user does not name as well.
        PlanError: The recipe is unknown.
        FieldError: A value cannot be.
    """
    network = plan.network
    if options.network is not None and options.network != network.name:
        network = _other_network(options.network, network)
    elif ":" in network.name and options.network is None:
        raise TrainingError(
            f"the plan names the network {network.name}, whose code would be run: give --network {network.name} "
            "if you trust it"
        )
    if options.width is not None:
        network = _widened(network, options.width)
    if options.network_options:
        network = dataclasses.replace(network, options={**network.options, **options.network_options})
    recipe = plan.recipe
    if options.recipe is not None and options.recipe != recipe.name:
        recipe = find_recipe(options.recipe, network.name)
    elif network.name != plan.network.name:
        recipe = adapt_recipe(recipe, network.name, plan.network.name)
    given = {"epochs": options.epochs, "lr": options.lr, "batch_size": options.batch_size}
    recipe = dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    changed = {"network": network != plan.network, "recipe": recipe != plan.recipe}
    why = {name: f"{why}; changed on the command line" if changed.get(name) else why for name, why in plan.why.items()}
    return dataclasses.replace(plan, network=network, recipe=recipe, why=why)


def _tell_unmet_needs(plan: Plan) -> None:
    """Warn of a recipe that is not as the network needs it: the plan's network was changed by hand alone."""
    adapted = adapt_recipe(plan.recipe, plan.network.name)
    apart = differences(to_json(plan.recipe), to_json(adapted))
    if apart:
        logger.warning(
            "warning    %s trains badly under the recipe as it is: change it in plan.json (%s)",
            plan.network.name,
            ", ".join(apart),
        )


def _other_network(name: str, planned: NetworkPlan) -> NetworkPlan:
    """Another network as it was published, but narrower and shallower as the planned one is than it was published."""
    published = default_sizes(name)
    usual = default_sizes(planned.name) if planned.name in NETWORKS else {}
    width, depth = planned.width, planned.depth
    if published.keys() == usual.keys() == {"width", "depth"}:
        width = min(max(1, round(published["width"] * width / usual["width"])), WIDEST)
        depth = min(max(published["depth"] + depth - usual["depth"], DEPTHS[0]), DEPTHS[-1])
    options: dict[str, NetworkOption] = {"max_keys": choose_max_keys(width)} if name == USUAL_NETWORK else {}
    return NetworkPlan(name=name, width=width, depth=depth, options=options)


def _widened(network: NetworkPlan, width: int) -> NetworkPlan:
    """The network with another width, and with the keys a planner gives to that width unless they were edited."""
    options = dict(network.options)
    if options.get("max_keys") == choose_max_keys(network.width):
        options["max_keys"] = choose_max_keys(width)
    return dataclasses.replace(network, width=width, options=options)


def _require_idle(run: Run) -> None:
    """Refuse a run that is not to be touched now.

    Raises:
        WorkspaceError: Another process is training one of its folds.
    """
    for folder in run.root.glob("fold_*"):
        with locked(folder, "training"):
            pass


def _put_aside(run: Run) -> None:
    """Rename a run's folder if there is one: nothing of it is deleted."""
    if not run.root.exists():
        return
    number = 1
    while (aside := run.root.with_name(f"{run.name}.old-{number}")).exists():
        number += 1
    run.root.rename(aside)
    run.__dict__.pop("record", None)
    logger.info("the old run is kept as %s", aside)


def _valid_name(name: str) -> str:
    if not name or any(character in name for character in '/\\:*?"<>|') or name.startswith("."):
        raise TrainingError(f"{name!r} cannot be a run's name: use letters, digits, '-', '_', '.'")
    return name
