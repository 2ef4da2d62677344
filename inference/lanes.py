"""Batches through a network several at a time, each on processor cores of its own.

A small network's kernels are too short to be worth sharing between cores: every one ends with the cores waiting for
each other, and longer when one of them decodes an image besides. Whole images side by side never wait.
"""

import contextlib
import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from iaunet.errors import PredictionError

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")
Result = TypeVar("Result")

MOST_LANES = 8
"""Batches that are under way at once at most: each takes memory."""


class NotEnoughMemory(PredictionError):
    """Memory does not suffice for a batch beside what else is under way."""


def lanes_of(cores: int) -> int:
    """How many batches to run at once on a number of cores, shared out evenly."""
    return cores // math.ceil(cores / MOST_LANES)


def in_lanes(
    function: Callable[[Batch], Result], batches: Iterable[Batch], lanes: int
) -> Generator[Result, None, None]:
    """Apply a function of torch to batches in threads.

    Args:
        function: Called in threads. A batch for which it raises `NotEnoughMemory` is run once more, all others done.
        batches: Taken from as the work goes on.
        lanes: Threads; torch's own threads are shared out between them, with fewer batches between fewer.

    Yields:
        The results in the order of the batches, of which at most ``2 * lanes`` are under way or wait. Once memory
        ran out they are run one at a time.
    """
    remaining = iter(batches)
    first = list(itertools.islice(remaining, lanes))
    if not first:
        return
    room = 2 * lanes
    waiting: deque[tuple[Batch, Future[Result]]] = deque()

    def settled() -> Result:
        nonlocal room
        batch, future = waiting.popleft()
        try:
            return future.result()
        except NotEnoughMemory:
            if room > 1:
                logger.warning("memory ran out with several images at once: going on with one at a time")
            room = 1
            wait([other for _, other in waiting])
            return pool.submit(function, batch).result()

    with _sharing_threads(len(first)), ThreadPoolExecutor(len(first)) as pool:
        try:
            for batch in itertools.chain(first, remaining):
                waiting.append((batch, pool.submit(function, batch)))
                while len(waiting) >= room:
                    yield settled()
            while waiting:
                yield settled()
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _sharing_threads(parts: int) -> Iterator[None]:
    """Let each thread that is started in the block have a part of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // parts))
    try:
        yield
    finally:
        torch.set_num_threads(before)
