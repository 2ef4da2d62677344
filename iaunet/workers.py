"""Work spread over processes: begun anew or forked from a clean one, in order, bounded, and gone with their parent."""

import concurrent.futures
import contextlib
import contextvars
import errno
import itertools
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import TypeVar

from iaunet.allocation import collect_less, keep_freed_memory
from iaunet.errors import WorkspaceError

Item = TypeVar("Item")
Result = TypeVar("Result")

PIPE_IS_GONE = (None, errno.EPIPE, errno.EBADF, errno.ECONNREFUSED, errno.ECONNRESET)
"""What errors say when a process is started, or told what to do, while the pool finds out that another was killed, or
that from which they are forked."""

IMAGES_WORTH_A_PROCESS = 24
"""Starting a process costs about as much as working on this many images."""


def default_workers() -> int:
    """The number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    items_worth_a_process: int = IMAGES_WORTH_A_PROCESS,
) -> Iterator[Result]:
    """Apply a function to items in several processes.

    Args:
        function: A function of a module (workers import it by name). What it raises reaches the caller with the
            worker's own traceback.
        items: What to apply it to.
        workers: Processes at most. Few items are worked on in this process.
        items_worth_a_process: How many items a further process must have to be worth its start.

    Yields:
        The results in the order of the items. At most a few items a worker are under way at a time, so memory does
        not grow with the number of items.

    Raises:
        WorkspaceError: A worker was killed, most likely for want of memory.
    """
    workers = min(workers, math.ceil(len(items) / items_worth_a_process))
    if workers <= 1:
        yield from map(function, items)
        return
    with _processes() as processes:
        pool = processes.pool(workers)
        waiting: deque[concurrent.futures.Future[Result]] = deque()
        remaining = iter(items)

        def submit(n: int) -> None:
            for item in itertools.islice(remaining, n):
                try:
                    waiting.append(pool.submit(function, item))
                except (OSError, EOFError) as fault:
                    if getattr(fault, "errno", None) not in PIPE_IS_GONE:
                        raise
                    raise BrokenProcessPool from fault

        try:
            with _holding_interrupts():
                submit(4 * workers)
            while waiting:
                result = waiting.popleft().result()
                submit(1)
                yield result
        except BrokenProcessPool as fault:
            processes.kill()
            raise WorkspaceError(
                "a worker process was killed, most likely because memory ran out: "
                f"run the same command with fewer workers (--workers {max(workers // 2, 1)})"
            ) from fault
        finally:
            for future in waiting:
                future.cancel()


class _Processes:
    """A pool that is started when it is needed, and again when more processes are."""

    def __init__(self) -> None:
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        self._workers = 0
        self._others: set[BaseProcess] = set()

    def pool(self, workers: int) -> concurrent.futures.ProcessPoolExecutor:
        """At least so many processes."""
        if self._pool is None or workers > self._workers:
            return self._open(workers, "spawn")
        return self._pool

    def fork_later(self, workers: int, module: str) -> None:
        """Have a process import a module, of which so many are forked when there is work.

        It has one thread and nothing of this process. That several import the same takes half a second longer.
        """
        self._open(workers, "forkserver")  # with Python's tracker of resources, whose start lets interrupts in
        multiprocessing.set_forkserver_preload([module])
        with _holding_interrupts():
            forkserver.ensure_running()

    def _open(self, workers: int, method: str) -> concurrent.futures.ProcessPoolExecutor:
        self.close()
        self._others = {*multiprocessing.active_children()}
        context = multiprocessing.get_context(method)
        self._pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=serve_parent)
        self._workers = workers
        return self._pool

    def kill(self) -> None:
        """Kill the processes that are left of a pool that is broken.

        Python 3.11 does so itself, but for one that was just being started, for whose end it then waits forever.
        """
        for process in {*multiprocessing.active_children()} - self._others:
            process.kill()

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


_kept: contextvars.ContextVar[_Processes | None] = contextvars.ContextVar("kept_processes", default=None)


@contextlib.contextmanager
def keeping_processes() -> Iterator[None]:
    """Let every `map_in_processes` of the block work in the same processes, which end with the outermost block.

    They are started by the first that has work for several, or by `prepare_processes`.
    """
    if _kept.get() is not None:
        yield
        return
    with contextlib.closing(_Processes()) as processes:
        token = _kept.set(processes)
        try:
            yield
        finally:
            _kept.reset(token)


def prepare_processes(workers: int, module: str) -> None:
    """Begin to start the processes that the block keeps before there is work for them, where processes can be forked.

    Args:
        workers: How many; one is none.
        module: What they import, while this process does something else.
    """
    kept = _kept.get()
    if kept is not None and workers > 1 and sys.platform == "linux":
        kept.fork_later(workers, module)


def _processes() -> contextlib.AbstractContextManager[_Processes]:
    """The processes that are kept, else some for one purpose."""
    kept = _kept.get()
    return contextlib.closing(_Processes()) if kept is None else contextlib.nullcontext(kept)


@contextlib.contextmanager
def _holding_interrupts() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block ends; no process started in it ends in a traceback by them.

    Ctrl-C reaches these processes as well, so the signal is blocked, which they inherit. Here it may still arrive
    through a thread of a library that was there before, so the handler waits as well. SIGTERM reaches this process
    alone, and would leave one that it is starting without what it is to do.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    stopping = signal.SIGINT, signal.SIGTERM
    handlers = [signal.signal(number, lambda number, frame: held.append(number)) for number in stopping]
    try:
        yield
    finally:
        for number, handler in zip(stopping, handlers, strict=True):
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if held:
            signal.raise_signal(held[0])


def serve_parent() -> None:
    """Make this process a worker: it leaves stopping to its parent and ends when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    collect_less()
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end_with_parent() -> None:
        with contextlib.suppress(OSError):
            parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
