"""Files that come to the disk beside the work that makes them, and what may only be said once they are there."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from iaunet.storage import FileGroup

SETTLED_AT_ONCE = 8
"""Images that wait when their files are brought to the disk together."""

SETTLED_WITHIN = 0.25
"""Seconds after which fewer are as well, as soon as another image is done: a killed process makes again what waits."""


class Settler:
    """Brings the files of some images at a time to the disk, and then calls what waits for that.

    Threads write with ``files.taking()``, and then `add` what waits for what they wrote.
    """

    def __init__(self) -> None:
        self.files = FileGroup()
        self._waiting: deque[Callable[[], object]] = deque()
        self._settled = time.monotonic()

    def add(self, call: Callable[[], object]) -> None:
        """Have something called when all files that this thread wrote so far are on the disk, under their names."""
        self._waiting.append(call)

    @contextlib.contextmanager
    def beside(self) -> Iterator[Callable[[], None]]:
        """Gives what is to be called now and then: it settles what waits, if that is enough, in a thread.

        No interrupt reaches that thread. When the block ends all the rest is settled, whatever ends it.

        Raises:
            WorkspaceError: The disk is full or fails; what has no name yet is removed.
        """
        with ThreadPoolExecutor(1, "settle") as pool:
            before = pool.submit(self._settle)

            def settle_some() -> None:
                nonlocal before
                if self._is_enough():
                    before.result()  # so that a fault ends the work, and nothing piles up behind a slow disk
                    before = pool.submit(self._settle)

            try:
                yield settle_some
            finally:
                for settled in [before, pool.submit(self._settle)]:
                    settled.result()

    def _is_enough(self) -> bool:
        """Whether waiting longer would gain little, or lose much should the process be killed."""
        waited = time.monotonic() - self._settled
        return bool(self._waiting) and (len(self._waiting) >= SETTLED_AT_ONCE or waited > SETTLED_WITHIN)

    def _settle(self) -> None:
        calls = [self._waiting.popleft() for _ in range(len(self._waiting))]  # before their files are taken, not after
        self.files.settle()
        self._settled = time.monotonic()
        for call in calls:
            call()
