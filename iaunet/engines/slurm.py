"""SLURM: calls as the jobs of an array, through submitit."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar

from iaunet.engines.logs import LogFollower
from iaunet.engines.tasks import EngineError, Task, pack, work
from iaunet.errors import IaunetError
from iaunet.records import from_json, require

RETRIES = 3
"""How often a job is submitted again that ended without a result: it was killed, or its machine was."""

MOST_REQUEUES = 1000
"""How often a job may be cut off by its time limit: it goes on from its files each time."""

SECONDS_BETWEEN_NEWS = 1.0
SECONDS_TO_STOP = 60

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What a user may decide of each job: the options of ``sbatch``, with their units.

    ``gpus`` None is one where the call can use it. ``at_once`` is how many jobs may run at a time. ``executor``
    "local" starts processes of this machine instead, all at once.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    minutes: int = 1440
    processors: int = 8
    gpus: int | None = None
    memory_gb: float = 32
    at_once: int = 256
    executor: Literal["slurm", "local"] = "slurm"

    def __post_init__(self) -> None:
        for name in ("minutes", "processors", "memory_gb", "at_once"):
            value = getattr(self, name)
            require(value > 0, name, value, "a number above 0")
        require(self.gpus is None or self.gpus >= 0, "gpus", self.gpus, "a whole number of 0 or more")


class Requeueable:
    """A call that submitit hands in again when its time is up: it goes on from its files."""

    def __call__(self, *arguments: Any) -> Any:
        """Make the call, see `iaunet.engines.tasks.work`."""
        return work(*arguments)

    def checkpoint(self, *arguments: Any) -> Any:
        """What is to be run next: the same."""
        return _import_submitit().helpers.DelayedSubmission(self, *arguments)


class SlurmEngine:
    """Makes each call as a job, see `iaunet.engines.Engine`."""

    def __init__(self, given: Mapping[str, object], folder: Path) -> None:
        self.options = from_json(SlurmOptions, dict(given))
        self.folder = folder

    def run(
        self,
        function: Callable[[Item], Result],
        tasks: Sequence[Task[Item]],
        on_gpu: bool,
        begin: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Task[Item], Result | IaunetError]]:
        """Call the function for each task, see `iaunet.engines.Engine`.

        Raises:
            EngineError: This machine cannot submit jobs, submitit is not installed, or several jobs of this machine
                would share its first GPUs.
        """
        gpus = int(on_gpu) if self.options.gpus is None else self.options.gpus
        if self.options.executor == "local" and gpus and len(tasks) > 1:
            _require_no_gpu()
        array = _Array(self._executor(gpus), function, self.options.processors)
        begin()
        follower = LogFollower({task.name: task.log for task in tasks})
        with array.cancelling():
            array.submit(tasks)
            while array.running:
                time.sleep(SECONDS_BETWEEN_NEWS)
                follower.tell_news()
                yield from array.take_ended()

    def _executor(self, gpus: int) -> Any:
        options = self.options
        try:
            executor = _import_submitit().AutoExecutor(
                self.folder, cluster=options.executor, slurm_max_num_timeout=MOST_REQUEUES
            )
        except RuntimeError as fault:
            raise EngineError("there is no SLURM here: run this where sbatch and srun are") from fault
        executor.update_parameters(
            name="iaunet",
            timeout_min=options.minutes,
            cpus_per_task=options.processors,
            gpus_per_node=gpus,
            mem_gb=options.memory_gb,
            slurm_partition=options.partition,
            slurm_account=options.account,
            slurm_qos=options.qos,
            slurm_constraint=options.constraint,
            slurm_array_parallelism=options.at_once,
        )
        return executor


class _Array:
    """The jobs of one call of `SlurmEngine.run`."""

    def __init__(self, executor: Any, function: Callable[[Any], Any], processors: int) -> None:
        self.executor = executor
        self.function = function
        self.processors = processors
        self.running: dict[Any, Task[Any]] = {}
        self._retries: Counter[str] = Counter()

    def submit(self, tasks: Sequence[Task[Any]]) -> None:
        """Hand in a job for each task.

        Raises:
            EngineError: SLURM does not take them.
        """
        utils = _import_submitit().core.utils
        try:
            with self.executor.batch():
                calls = [pack(self.function, task, self.processors) for task in tasks]
                jobs = [self.executor.submit(Requeueable(), *call) for call in calls]
        except (utils.FailedJobError, utils.FailedSubmissionError) as fault:
            said = str(fault).strip().splitlines() or ["it does not say why"]
            mend = "mend the options given with --engine_option"
            raise EngineError(f"SLURM takes no jobs ({said[-1]}): {mend}") from fault
        self.running |= zip(jobs, tasks, strict=True)

    def take_ended(self) -> Iterator[tuple[Task[Any], Any]]:
        """The tasks whose jobs ended with an outcome; those of jobs that were killed are handed in again."""
        for job in [job for job in self.running if job.done()]:
            task = self.running.pop(job)
            outcome = self._outcome(job, task)
            _remove_pickles(job)
            if outcome is None:
                self._retries[task.name] += 1
                logger.warning("%s was killed and begins again: see %s", task.name, job.paths.stderr)
                try:
                    self.submit([task])
                except EngineError as fault:  # the other jobs go on
                    yield task, fault
            else:
                yield task, outcome[0]

    def _outcome(self, job: Any, task: Task[Any]) -> tuple[Any] | None:
        try:
            return (job.result(),)
        except _import_submitit().core.utils.FailedJobError:
            raise
        except _import_submitit().core.utils.UncompletedJobError:
            if self._retries[task.name] < RETRIES:
                return None
            return (
                EngineError(
                    f"its job ended {RETRIES + 1} times without a result: look into {job.paths.stderr}, "
                    "give it more memory_gb or minutes if it wants for them, and run the same command again"
                ),
            )

    @contextlib.contextmanager
    def cancelling(self) -> Iterator[None]:
        """Cancel the jobs that still run when a block ends early, and wait a little for them."""
        try:
            yield
        except BaseException:
            for job in self.running:
                job.cancel(check=False)
            limit = time.monotonic() + SECONDS_TO_STOP
            while time.monotonic() < limit and not all(job.done() for job in self.running):
                time.sleep(SECONDS_BETWEEN_NEWS)
            raise


def _require_no_gpu() -> None:
    """Refuse jobs that are to have GPUs of this machine: submitit starts all at once and gives each the first ones."""
    import torch

    if torch.cuda.is_available():
        raise EngineError(
            "executor=local starts all jobs at once on the same GPU: give --engine ray, where each has its own, "
            "or gpus=0 to compute on the CPU"
        )


def _remove_pickles(job: Any) -> None:
    """Leave of a job that ended only what it logged."""
    for path in (job.paths.submitted_pickle, job.paths.result_pickle):
        path.unlink(missing_ok=True)


def _import_submitit() -> Any:
    try:
        return import_module("submitit")
    except ImportError as fault:
        raise EngineError(
            f"the engine slurm needs a package that is not installed ({fault}): pip install 'iaunet[slurm]'"
        ) from fault
