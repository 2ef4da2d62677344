"""Several processes that train one network together, each with its own part of every batch: its ranks.

What starts them (torchrun, or `start_ranks`) tells each process by its environment which one it is. A process that
was started alone joins nobody: every exchange gives back what it was given.
"""

import atexit
import contextlib
import logging
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from iaunet.console import CANNOT_BE_DONE, RANK_VARIABLES, STOPPED, Stopped, is_rank
from iaunet.errors import IaunetError, TrainingError
from iaunet.workers import default_workers

if TYPE_CHECKING:
    import torch
    from torch import nn

Result = TypeVar("Result")

EXCHANGE_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the gradients of the others: they do the same work."""

WAITING_TIMEOUT = timedelta(days=7)
"""How long it waits while rank 0 works alone, as when that scores a fold."""


@dataclass(frozen=True)
class Ranks:
    """Which of the processes that train together this is, and what it exchanges with the others.

    Every rank must make the same calls in the same order. The numbers that are exchanged travel between CPUs, so that
    a rank that waits keeps no GPU busy.

    Args:
        rank: This one, from 0.
        size: How many there are.
        local_rank: This one among those on this machine, which is also its GPU.
        local_size: How many are on this machine.
        waiting: The process group of those exchanges; None for a process alone.
        parent: The number of the process that started this one, 0 where that does not matter.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    waiting: Any = None
    parent: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and tells what is done."""
        return self.rank == 0

    @property
    def is_orphan(self) -> bool:
        """Whether what started the ranks is gone, which can no longer stop them."""
        return self.parent not in (0, os.getppid())

    def share(self, n: int) -> slice:
        """This rank's part of ``n`` rows: neighbours, and as many as the others have or one less."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def largest_share(self, n: int) -> int:
        """The most rows that a rank has of ``n``."""
        return -(-n // self.size)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over the ranks of each of some numbers."""
        if self.size == 1:
            return list(values)
        import torch
        import torch.distributed

        total = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(total, group=self.waiting)
        return cast(list[float], total.tolist())

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return self.sum([float(flag)])[0] > 0

    def from_first(self, value: float) -> float:
        """The number that rank 0 gives, whatever the others do."""
        return self.sum([value if self.is_first else 0.0])[0]

    def lead(self, action: Callable[[], Result]) -> Result | None:
        """Let rank 0 act while the others wait.

        Returns:
            What rank 0 gets by it; None on the others.

        Raises:
            SystemExit: On the others, when rank 0 failed: it tells why.
        """
        if not self.is_first:
            if not self.from_first(0):
                raise SystemExit(CANNOT_BE_DONE)
            return None
        went_well = False
        try:
            result = action()
            went_well = True
        finally:
            self.from_first(went_well)
        return result

    def first(self, action: Callable[[], Result]) -> Result:
        """Let rank 0 act, then the others: they find what it has written; `SystemExit` as in `lead`."""
        result = self.lead(action)
        return cast(Result, result) if self.is_first else action()

    def told_once(self, fault: IaunetError | Stopped) -> BaseException:
        """What to raise for a fault that every rank knows of: itself on rank 0, on the others a silent end."""
        if self.is_first:
            return fault
        return SystemExit(STOPPED if isinstance(fault, Stopped) else CANNOT_BE_DONE)

    def average(self, tensors: Sequence["torch.Tensor"]) -> None:
        """Set tensors of floating point to their mean over the ranks, in place."""
        if self.size == 1 or not tensors:
            return
        import torch
        import torch.distributed

        flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        means = torch.split(flat / self.size, [tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, mean in zip(tensors, means, strict=True):
                tensor.copy_(mean.view_as(tensor))

    def parallel(self, network: "nn.Module", device: "torch.device", some_unused: bool) -> "nn.Module":
        """The network as one of the ranks': its backward pass gives the mean gradients over them.

        Args:
            network: Keeps its parameters, which become equal to those of rank 0.
            device: Where it is.
            some_unused: Whether some parameters have no influence on its output.
        """
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():
            # torch 2.13 has another name for broadcast_buffers, which older ones do not know
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                network,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=some_unused,
                gradient_as_bucket_view=True,
            )

    def exchanging(self, network: "nn.Module", now: bool) -> AbstractContextManager[None]:
        """Let the backward pass in a block exchange gradients, or only add them up on this rank.

        Args:
            network: What `parallel` gave.
            now: Whether to exchange what was added up; always for a process alone, which has nothing to exchange.
        """
        from torch.nn.parallel import DistributedDataParallel

        if now or not isinstance(network, DistributedDataParallel):
            return contextlib.nullcontext()
        return network.no_sync()


ALONE = Ranks()
"""A process that trains without others."""


SHARED_DEVICES = ("auto", "cuda", "cpu")
"""The devices that several ranks can be asked to compute on, each on its own GPU or all on the CPU."""


def must_be_started(environment: Mapping[str, str], gpus: int | None) -> bool:
    """Whether the ranks that the user asks for are still to be started.

    Args:
        environment: The environment's variables.
        gpus: How many GPUs the user asks for, if at all.

    Raises:
        TrainingError: No number of GPUs, or other than that of the ranks that were started.
    """
    if gpus is None:
        return False
    if gpus < 1:
        raise TrainingError(f"--gpus {gpus} cannot be: give 1 or more")
    if not is_rank(environment):
        return gpus > 1
    if gpus != int(environment["WORLD_SIZE"]):
        raise TrainingError(f"--gpus {gpus} within {environment['WORLD_SIZE']} ranks: leave it out")
    return False


def require_alone(n: int) -> None:
    """Refuse several ranks where an engine is to train.

    Raises:
        TrainingError: ``n`` is more than one.
    """
    if n > 1:
        raise TrainingError("an engine trains each fold in one process: give --engine or several ranks, not both")


def _read_rank(environment: Mapping[str, str]) -> Ranks:
    return Ranks(*(int(environment[name]) for name in RANK_VARIABLES)) if is_rank(environment) else ALONE


@contextlib.contextmanager
def joined(environment: Mapping[str, str], device: str) -> Iterator[Ranks]:
    """Join the ranks that the environment tells of for a block; no more than one makes `ALONE`.

    A process that leaves the block by a fault has left for good: it can go on only to tell of it, see `_leaving`.

    Args:
        environment: The environment's variables, as torchrun sets them: RANK, WORLD_SIZE, LOCAL_RANK and others.
        device: The device asked for, see `rank_device`.

    Raises:
        TrainingError: The ranks do not find each other, or another one ended too early, or there is no such device.
        SystemExit: Another rank ended too early, and what started the ranks tells of it; or there is no such device,
            and another rank of this machine tells of it.
    """
    ranks = _read_rank(environment)
    if ranks.size == 1:
        yield ALONE
        return
    import torch
    from torch import distributed

    own, fault = _find_device(device, ranks)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    with _leaving():
        try:
            backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
            distributed.init_process_group(backend, timeout=EXCHANGE_TIMEOUT)
            group = distributed.new_group(backend="gloo", timeout=WAITING_TIMEOUT)
            distributed.barrier(group)  # a rank that ends before others are there has them killed, untold
            if fault is not None:
                raise replace(ranks, rank=ranks.local_rank).told_once(fault)  # each machine has its own GPUs
            yield replace(ranks, waiting=group, parent=os.getppid())
        except RuntimeError as error:
            if not _is_lost_rank(error):
                raise
            if distributed.is_torchelastic_launched():
                atexit.register(_end_at_once, CANNOT_BE_DONE)  # the other has told why, and has ended
                raise SystemExit(CANNOT_BE_DONE) from error
            reason = str(error).split("\n")[0]
            raise TrainingError(
                f"another of the {ranks.size} ranks ended or cannot be reached ({reason}): "
                "run the same command again to go on"
            ) from error


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    """Leave the process groups that are joined in a block when it ends well or every rank stops.

    After a fault of one rank the others are amid an exchange. Leaving NCCL would wait for them before the fault is
    told, and the exit of Python for exchanges of gloo: this process tells it and ends at once, which ends the others.
    One that ends silently takes its time: a launcher would stop the rank that is still to tell why.
    """
    from torch import distributed

    try:
        yield
    except BaseException as fault:
        if _is_stop_of_all(fault):
            distributed.destroy_process_group()
        elif not isinstance(fault, SystemExit):
            atexit.register(_end_at_once, STOPPED if isinstance(fault, KeyboardInterrupt) else CANNOT_BE_DONE)
        raise
    distributed.destroy_process_group()


def _is_stop_of_all(fault: BaseException) -> bool:
    """Whether an exception is what `Ranks.told_once` makes of a stop: it is raised on all ranks after the same step."""
    return isinstance(fault, Stopped) or (isinstance(fault, SystemExit) and fault.code == STOPPED)


def _end_at_once(code: int) -> None:
    """End this process without freeing what torch holds, which may wait for other ranks."""
    try:
        sys.stdout.flush()
    finally:
        os._exit(code)


def _find_device(wish: str, ranks: Ranks) -> "tuple[torch.device, TrainingError | None]":
    """The device of this rank, or the CPU with the fault of the one that is wished for."""
    import torch

    try:
        return torch.device(rank_device(wish, ranks)), None
    except TrainingError as fault:
        return torch.device("cpu"), fault


def rank_device(wish: str, ranks: Ranks) -> str:
    """The device of this rank: the GPU of its own where GPUs are meant.

    Args:
        wish: ``cpu``, ``cuda``, or ``auto`` for a GPU where there are any; a process alone may name any of torch's.
        ranks: Which rank this is.

    Raises:
        TrainingError: There are fewer GPUs than ranks on this machine, or the wish is for one device.
    """
    import torch

    if ranks.size == 1 or wish == "cpu" or (wish == "auto" and not torch.cuda.is_available()):
        return "cpu" if ranks.size > 1 else wish
    _require_shared(wish, ranks.size)
    found = torch.cuda.device_count()
    if ranks.local_size > found:
        raise TrainingError(
            f"{ranks.local_size} ranks on this machine need a GPU each, and torch can use {found}: "
            + (f"start {found} of them, or " if found else "")
            + "give --device cpu"
        )
    return f"cuda:{ranks.local_rank}"


def _require_shared(device: str, n: int) -> None:
    if device not in SHARED_DEVICES:
        raise TrainingError(f"--device {device} is one device for {n} ranks: give auto, cuda or cpu")


def require_gpus(n: int) -> None:
    """Refuse more ranks than this machine has GPUs.

    Raises:
        TrainingError: There are fewer than ``n``.
    """
    import torch

    found = torch.cuda.device_count()
    if n > found:
        raise TrainingError(
            f"{n} GPUs are asked for, and torch can use {found} on this machine: "
            + (f"give --gpus {found}" if found else "leave out --gpus, or give --device cpu")
        )


def start_ranks(n: int, device: str, command: Sequence[str]) -> int:
    """Run a command in several processes on this machine, each one rank, until the last has ended.

    Args:
        n: How many.
        device: The device asked for; unless it is ``cpu`` there must be ``n`` GPUs.
        command: Program and arguments. What one process fails by ends the others.

    Returns:
        The exit code: 0, or that of the rank that ended first with another one.

    Raises:
        TrainingError: There are fewer GPUs, the device is a single one, or a rank was killed.
    """
    _require_shared(device, n)
    if device != "cpu":
        require_gpus(n)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    launchers = logging.getLogger("torch.distributed.elastic")  # it tells of what is told below, in many lines
    launchers.addHandler(logging.NullHandler())
    launchers.propagate = False
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, default_workers() // n)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, command[0])(*command[1:])
    except SignalException:
        return STOPPED
    except ChildFailedError as fault:
        rank, failure = fault.get_first_failure()
        if failure.exitcode < 0:
            raise TrainingError(
                f"rank {rank} was killed by signal {-failure.exitcode}: run the same command again to go on"
            ) from fault
        return failure.exitcode
    return 0


def _is_lost_rank(fault: RuntimeError) -> bool:
    """Whether an error of torch means that another rank is gone; gloo has no class of its own."""
    from torch import distributed

    return isinstance(fault, distributed.DistError) or "gloo" in str(fault)
