"""Ray: calls on the machines of a cluster, or in processes of this one."""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from iaunet.engines.logs import LogFollower
from iaunet.engines.tasks import EngineError, Task, pack, work
from iaunet.errors import IaunetError
from iaunet.records import from_json, require

RETRIES = 3
"""How often a call is begun again whose process was killed."""

SECONDS_TO_STOP = 120
"""How long calls may take to save what they have when the command is stopped."""

SECONDS_TO_ANSWER = 10
SECONDS_BETWEEN_NEWS = 0.5

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """What a user may decide.

    ``address`` is that of a running cluster, such as 10.0.0.1:6379 (else $RAY_ADDRESS, else processes of this machine
    alone). ``processors`` and ``gpus`` are those of one call; a share of a GPU is allowed.
    """

    address: str | None = None
    processors: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        require(self.processors is None or self.processors > 0, "processors", self.processors, "a number above 0")
        require(self.gpus is None or self.gpus >= 0, "gpus", self.gpus, "a number of 0 or more")


@dataclass(frozen=True)
class Share:
    """What one call gets of a machine."""

    processors: int
    gpus: float


class RayEngine:
    """Makes each call as a task of Ray, see `iaunet.engines.Engine`."""

    def __init__(self, given: Mapping[str, object], folder: Path) -> None:
        self.options = from_json(RayOptions, dict(given))

    def run(
        self,
        function: Callable[[Item], Result],
        tasks: Sequence[Task[Item]],
        on_gpu: bool,
        begin: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Task[Item], Result | IaunetError]]:
        """Call the function for each task, see `iaunet.engines.Engine`.

        Raises:
            EngineError: The cluster cannot be reached, or Ray is not installed.
        """
        with connected(self.options.address) as ray:
            nodes = machines(ray)
            share = choose_share(nodes, len(tasks), on_gpu, self.options)
            _require_room(share, nodes, may_grow=_address(self.options.address) is not None)
            begin()
            # given here and not as .options, GPUs also end the process after its call, which gives their memory back
            remote = ray.remote(num_cpus=share.processors, num_gpus=share.gpus, max_retries=RETRIES)(work)
            remote = remote.options(name="iaunet")
            running = {remote.remote(*pack(function, task, share.processors)): task for task in tasks}
            follower = LogFollower({task.name: task.log for task in tasks})
            with cancelling(ray, running):
                while running:
                    ended, _ = ray.wait(list(running), timeout=SECONDS_BETWEEN_NEWS)
                    follower.tell_news()
                    for reference in ended:
                        task = running.pop(reference)
                        yield task, _outcome(ray, reference, task)


@contextlib.contextmanager
def connected(address: str | None, processors: int | None = None, object_memory: int = 2**29) -> Iterator[Any]:
    """Connect to a cluster of Ray, or start one of processes of this machine that listens on loopback alone.

    Args:
        address: The cluster's; None for $RAY_ADDRESS, and without that for this machine alone.
        processors: Of this machine that a cluster started here may use; None for all.
        object_memory: Bytes of shared memory that a cluster started here may keep results in.

    Yields:
        The package ``ray``, connected. At the end of the block what was started here is gone, with its files.

    Raises:
        EngineError: Ray is not installed, or the cluster cannot be reached.
    """
    address = _address(address)
    if address is None:
        for name, value in _local_settings().items():
            os.environ.setdefault(name, value)
    else:
        _require_reachable(address)
    ray = _import_ray()
    with contextlib.ExitStack() as stack:
        settings = _start_settings(stack, processors, object_memory) if address is None else {}
        stack.callback(ray.shutdown)
        try:
            with _keeping_sigterm():
                ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **settings)
        except (ConnectionError, RuntimeError, ValueError) as fault:
            raise EngineError(
                f"Ray cannot be started or joined ({str(fault).splitlines()[0]}): check that all machines have "
                "the same versions of Python and ray, and the cluster's token"
            ) from fault
        yield ray


def machines(ray: Any) -> list[dict[str, float]]:
    """What each machine of a cluster has: ``CPU`` and ``GPU`` by name, and what else Ray counts."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def choose_share(nodes: Sequence[Mapping[str, float]], n_tasks: int, on_gpu: bool, options: RayOptions) -> Share:
    """What a call gets: a GPU and the processors that belong to it, or as many processors as let all run at once.

    Args:
        nodes: What each machine has, see `machines`.
        n_tasks: How many calls there are.
        on_gpu: Whether a call is given a GPU where there are any.
        options: What the user decides otherwise.
    """
    gpus = options.gpus
    if gpus is None:
        gpus = 1.0 if on_gpu and any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    processors = options.processors
    if processors is None and gpus:
        beside = [node.get("CPU", 0) / (node["GPU"] / gpus) for node in nodes if node.get("GPU", 0) >= gpus]
        processors = int(min(beside, default=1))
    elif processors is None:
        counts = [int(node.get("CPU", 0)) for node in nodes]
        enough = (size for size in range(max(counts, default=1), 0, -1) if sum(n // size for n in counts) >= n_tasks)
        processors = next(enough, 1)
    return Share(max(processors, 1), gpus)


def _require_room(share: Share, nodes: Sequence[Mapping[str, float]], may_grow: bool) -> None:
    """Refuse calls that no machine can ever make: Ray would wait for one without a word.

    Args:
        share: What a call gets.
        nodes: What each machine has.
        may_grow: Whether machines may be added later, which is only warned of.
    """
    if any(node.get("CPU", 0) >= share.processors and node.get("GPU", 0) >= share.gpus for node in nodes):
        return
    gpus = f" and {share.gpus:g} GPUs" if share.gpus else ""
    lacking = f"no machine here has {share.processors} processors{gpus} for a call"
    if not may_grow:
        raise EngineError(f"{lacking}: give fewer with --engine_option processors=N or gpus=N")
    logger.warning("%s: it waits until one joins the cluster", lacking)


def _address(given: str | None) -> str | None:
    """That of a running cluster; None if there is none."""
    return given or os.environ.get("RAY_ADDRESS")


@contextlib.contextmanager
def cancelling(ray: Any, running: Mapping[Any, object]) -> Iterator[None]:
    """Cancel the calls (references of Ray) that still run when a block ends early; they may save what they have."""
    try:
        yield
    except BaseException:
        for reference in running:
            ray.cancel(reference)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=SECONDS_TO_STOP)
        raise


def _outcome(ray: Any, reference: Any, task: Task[Any]) -> Any:
    """The result of a call that ended, or its fault; what it raised otherwise is raised here."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as fault:
        return EngineError(
            f"its process was killed {RETRIES + 1} times ({type(fault).__name__}), most likely because memory ran out: "
            f"give it more, or less to do, and run the same command again; its log is {task.log}"
        )


def _require_reachable(address: str) -> None:
    """Refuse an address at which nothing listens: Ray itself would try for ten minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()
    except (OSError, ValueError) as fault:
        raise EngineError(
            f"no cluster of Ray answers at {address!r} ({fault}): check the address, such as 10.0.0.1:6379, "
            "or leave it out (and $RAY_ADDRESS) to use this machine alone"
        ) from fault


def _import_ray() -> Any:
    try:
        return import_module("ray")
    except ImportError as fault:
        raise EngineError(
            f"the engine ray needs a package that is not installed ({fault}): pip install 'iaunet[ray]'"
        ) from fault


@cache
def _local_settings() -> dict[str, str]:
    """What a cluster of this machine alone is told through the environment, before Ray is imported."""
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # where that is the default, Ray listens on loopback alone
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # or Ray would write one into the user's home
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _start_settings(stack: contextlib.ExitStack, processors: int | None, object_memory: int) -> dict[str, Any]:
    """How to start a cluster of this machine; its files are removed with the stack."""
    # a short path: those of sockets lie below it and may have some 100 characters
    folder = tempfile.mkdtemp(prefix="iaunet-", dir="/tmp" if os.name == "posix" else None)
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return {
        "num_cpus": processors,
        "include_dashboard": False,
        "object_store_memory": object_memory,
        "_temp_dir": folder,
        "_system_config": {"task_oom_retries": RETRIES},  # else for ever
    }


@contextlib.contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Give SIGTERM back its handler after a block in which Ray takes it, as it does where it may."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
