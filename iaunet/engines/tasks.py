"""Work for another process: a function and its argument, called there under the task's own log and processors."""

import contextlib
import contextvars
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from iaunet.console import MEMORY_RAN_OUT, Stopped
from iaunet.engines.logs import logging_to_file
from iaunet.errors import IaunetError
from iaunet.exhaustion import is_out_of_memory

Item = TypeVar("Item")

_processors: contextvars.ContextVar[int | None] = contextvars.ContextVar("processors", default=None)


class EngineError(IaunetError):
    """An engine that is not there, cannot be reached or lost its workers."""


@dataclass(frozen=True)
class Task(Generic[Item]):
    """A call to be made in another process.

    ``name`` tells it apart in messages, ``item`` is the function's argument, and ``log`` the file that takes what the
    call logs, on a disk that all machines share.
    """

    name: str
    item: Item
    log: Path


def pack(function: Callable[[Item], Any], task: Task[Item], processors: int | None) -> tuple[bytes, str, int | None]:
    """The arguments of `work` that make a task's call.

    Args:
        function: A function of a module.
        task: The task.
        processors: How many the call may use; None if nothing says so.
    """
    return pickle.dumps((function, task.item)), os.fspath(task.log), processors


def work(call: bytes, log: str, processors: int | None) -> Any:
    """Make a call in this process, see `pack`: its result, or the fault that the user can mend."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if processors is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(processors))
    with logging_to_file(Path(log)), _allotting(processors):
        try:
            function, item = pickle.loads(call)  # only now: what it imports reads the environment once
            return function(item)
        except Stopped as stop:
            return EngineError(f"stopped: {stop}")
        except IaunetError as fault:
            return fault
        except Exception as fault:
            if not is_out_of_memory(fault):
                raise
            return EngineError(MEMORY_RAN_OUT)


def allotted_processors() -> int | None:
    """How many processors an engine gave to the call that is running; None outside of one."""
    return _processors.get()


@contextlib.contextmanager
def _allotting(processors: int | None) -> Iterator[None]:
    token = _processors.set(processors)
    try:
        yield
    finally:
        _processors.reset(token)
