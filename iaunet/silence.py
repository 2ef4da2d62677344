"""Keeps off the screen what libraries remark on odd files: such a file is refused in one line, or read all the same."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock


class _Silence:
    """Ignores warnings while any thread is inside.

    `warnings.catch_warnings` alone saves and restores what is global: of two threads, the one that leaves last would
    restore what the other had set.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._before = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._before.enter_context(warnings.catch_warnings(action="ignore"))
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._before.close()


ignoring_warnings = _Silence()
"""A context, or a decorator, in which no warning is shown; another thread's is not either."""
