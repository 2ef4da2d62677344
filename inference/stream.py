"""Images through the network with decoding, computing and encoding at the same time, in flat memory."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import IaunetError
from iaunet.inference.predictor import Prediction, Predictor
from iaunet.preprocessing.geometry import Geometry

Item = TypeVar("Item")
Result = TypeVar("Result")
Input = tuple[NDArray[np.float32], Geometry]

THREADS = 2
"""Threads that decode and as many that encode; both leave Python's lock while they work."""


def predict_stream(
    predictor: Predictor,
    items: Iterable[Item],
    load: Callable[[Item], Input],
    finish: Callable[[Item, Prediction], Result],
) -> Iterator[tuple[Item, Result | IaunetError]]:
    """Predict many images.

    Args:
        predictor: Runs in the calling thread.
        items: What stands for an image each; taken from as the work goes on.
        load: Makes the network's input of an item; called in threads.
        finish: Does with a prediction what is to be done, and returns what is to be told; called in threads.

    Yields:
        Each item once with its result, or with the error that ``load`` or ``finish`` raised; the order may differ
        from that of the items. A few batches are under way at a time.
    """
    encoding: deque[tuple[Item, Future[Result | IaunetError]]] = deque()
    with ThreadPoolExecutor(THREADS) as decoders, ThreadPoolExecutor(THREADS) as encoders:

        def encode(item: Item, probabilities: NDArray[np.float32], geometry: Geometry) -> Result:
            return finish(item, predictor.restore(probabilities, geometry))

        loaded = _loaded(decoders, items, load, 2 * predictor.batch_size)
        while batch := list(itertools.islice(loaded, predictor.batch_size)):
            ready = [(item, value) for item, value in batch if not isinstance(value, IaunetError)]
            yield from ((item, value) for item, value in batch if isinstance(value, IaunetError))
            if ready:
                probabilities = predictor.predict_inputs(np.stack([image for _, (image, _) in ready]))
                for (item, (_, geometry)), maps in zip(ready, probabilities, strict=True):
                    encoding.append((item, encoders.submit(_attempt, encode, item, maps, geometry)))
            while len(encoding) > 2 * predictor.batch_size:
                yield _settled(encoding)
        while encoding:
            yield _settled(encoding)


def _loaded(
    pool: ThreadPoolExecutor, items: Iterable[Item], load: Callable[[Item], Input], ahead: int
) -> Iterator[tuple[Item, Input | IaunetError]]:
    """The items with their inputs, in order, a few loaded ahead."""
    waiting: deque[tuple[Item, Future[Input | IaunetError]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(_attempt, load, item)))
        if len(waiting) > ahead:
            yield _settled(waiting)
    while waiting:
        yield _settled(waiting)


def _attempt(function: Callable[..., Result], *arguments: object) -> Result | IaunetError:
    try:
        return function(*arguments)
    except IaunetError as fault:
        return fault


def _settled(waiting: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    """The first of those that wait, when it is done."""
    item, future = waiting.popleft()
    return item, future.result()
