"""Cases through the network with decoding, computing and encoding at the same time, in flat memory."""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import IaunetError, PredictionError
from iaunet.exhaustion import MEMORY_FAULTS, is_out_of_memory
from iaunet.inference.lanes import in_lanes
from iaunet.inference.mosaic import Assembly, Prediction, RowPrediction
from iaunet.inference.predictor import Predictor
from iaunet.preprocessing.cases import CaseInput
from iaunet.workers import default_workers

Item = TypeVar("Item")
Result = TypeVar("Result")

FEWEST_THREADS, MOST_THREADS = 2, 8
"""Threads that decode, as many that make rows of large cases, and as many that encode; all leave Python's lock while
they work."""

ROWS_AHEAD = 64
"""Rows of the cases that are loaded ahead, one case at least: large ones take memory enough."""

BATCHES_BEHIND = 2
"""Batches that are encoded behind each lane of the network at most."""

MOST_IN_LOT = 4
"""Items that a lane takes at a time at most."""

LOT_WITHIN = 0.2
"""Seconds that a lane may be at the items that it takes at a time: by so much longer may it work than the others."""


@dataclass(eq=False)
class _Job(Generic[Item, Result]):
    """A case under way: ``last`` is its latest part in the encoders, which take the parts one after the other, and
    ``fault`` why its next row could not be made."""

    item: Item
    assembly: Assembly
    last: Future[Result | IaunetError | None] | None = None
    fault: IaunetError | None = None

    @property
    def is_done(self) -> bool:
        """Whether its last part was encoded, or there will be no further one."""
        if self.last is None or not self.last.done():
            return False
        return self.fault is not None or self.assembly.is_complete or self.last.result() is not None

    def outcome(self) -> tuple[Item, Result | IaunetError]:
        """The item with what came of it, when its last part is encoded."""
        assert self.last is not None  # cases are queued with their first part
        result = self.last.result() if self.fault is None else self.fault
        assert result is not None  # and asked only after their last one
        return self.item, result


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A case with its first row, made beside the network as well."""

    case: CaseInput
    first: NDArray[np.float32]


def predict_stream(
    predictor: Predictor,
    items: Iterable[Item],
    load: Callable[[Item], CaseInput],
    finish: Callable[[Item, Prediction], Result],
    keep_probabilities: bool = False,
    watch: Callable[[Item, RowPrediction], None] | None = None,
    keep_uncertainty: bool = False,
    measure: bool = False,
) -> Generator[tuple[Item, Result | IaunetError], None, None]:
    """Predict many cases.

    Args:
        predictor: Runs in threads of its own.
        items: What stands for a case each; taken from as the work goes on.
        load: Makes the network's inputs of an item; called in threads.
        finish: Does with a prediction what is to be done, and returns what is to be told; called in threads.
        keep_probabilities: Whether ``finish`` needs the probabilities.
        watch: Is given what the networks say of every row before ``finish`` is called, the rows of a case in their
            order; called in threads.
        keep_uncertainty: Whether ``finish`` needs the uncertainty.
        measure: Whether ``finish`` needs the statistics even if the predictor does not.

    Yields:
        Each item once with its result, or with the error that ``load`` or ``finish`` raised; the order may differ
        from that of the items. A few batches are under way at a time, and a few cases.
    """
    known = _Known(load)
    wish = _Wish(
        predictor=predictor,
        load=known.load,
        finish=finish,
        keep_probabilities=keep_probabilities,
        watch=watch,
        keep_uncertainty=keep_uncertainty,
        measure=measure,
    )
    remaining, n_rows = iter(items), 0
    if _lanes_have_all_cores(predictor):
        for item in remaining:
            found = _attempt(known.load_first, item)
            if not isinstance(found, IaunetError):  # the others are mostly like the first
                remaining, n_rows = itertools.chain([item], remaining), found
                break
            yield item, found
    predict = wish.predict_whole if n_rows == 1 else wish.predict_beside
    with contextlib.closing(predict(remaining)) as outcomes:
        yield from outcomes


def _lanes_have_all_cores(predictor: Predictor) -> bool:
    """Whether none is left for threads beside those of the network, which take them row by row."""
    return predictor.device.type == "cpu" and predictor.batch_size == 1 and predictor.lanes == default_workers()


class _Known(Generic[Item]):
    """Loads cases, the first of them once only though it is asked for twice."""

    def __init__(self, load: Callable[[Item], CaseInput]) -> None:
        self._load = load
        self._first: tuple[Item, CaseInput] | None = None

    def load_first(self, item: Item) -> int:
        """Load a case that will be asked for once more; gives the number of its rows."""
        case = self._load(item)
        self._first = item, case
        return len(case.places)

    def load(self, item: Item) -> CaseInput:
        """The case."""
        if self._first is None or item is not self._first[0]:
            return self._load(item)
        (_, case), self._first = self._first, None
        return case


@dataclass(frozen=True, eq=False, kw_only=True)
class _Wish(Generic[Item, Result]):
    """What `predict_stream` is asked for."""

    predictor: Predictor
    load: Callable[[Item], CaseInput]
    finish: Callable[[Item, Prediction], Result]
    keep_probabilities: bool
    watch: Callable[[Item, RowPrediction], None] | None
    keep_uncertainty: bool
    measure: bool

    def predict_whole(self, items: Iterable[Item]) -> Generator[tuple[Item, Result | IaunetError], None, None]:
        """Predict items each in one thread, which keeps one core busy from its file to its mask."""
        at_a_time = 1

        def lots() -> Iterator[_Lot[Item, Result]]:
            remaining = iter(items)
            while some := list(itertools.islice(remaining, at_a_time)):
                yield _Lot(self, some)

        with contextlib.closing(in_lanes(_Lot[Item, Result].finish, lots(), self.predictor.lanes)) as finished:
            for lot in finished:
                yield from lot.outcomes
                at_a_time = max(1, min(MOST_IN_LOT, int(LOT_WITHIN / lot.seconds_an_item)))

    def steps(self, item: Item) -> "_Steps[Result]":
        """All that is done with an item but for the networks: yields its rows, is sent what they say of each.

        Beside each row stands whether it is the only one.
        """
        case = self.load(item)
        assembly = self.assemble(case)
        for number in range(len(case.places)):
            said = yield case.make(number), len(case.places) == 1
            self.add(item, assembly, said)
        return self.conclude(item, assembly)

    def predict_beside(self, items: Iterable[Item]) -> Generator[tuple[Item, Result | IaunetError], None, None]:
        """Predict items, decoded and encoded beside the networks, in threads of their own."""
        predictor = self.predictor
        lanes = predictor.lanes
        with contextlib.ExitStack() as stack:
            cores = lanes if predictor.device.type == "cpu" else default_workers()  # of a GPU's machine none computes
            threads = max(FEWEST_THREADS, min(MOST_THREADS, cores))
            decoders, makers, encoders = (stack.enter_context(ThreadPoolExecutor(threads)) for _ in range(3))
            stream = _Stream(wish=self, decoders=decoders, makers=makers, encoders=encoders)
            predicted = stack.enter_context(
                contextlib.closing(predictor.predict_batches(stream.batches(items), *self.told))
            )
            behind: deque[list[Future[Result | IaunetError | None]]] = deque()
            for said in predicted:
                behind.append(stream.encode(said))
                if len(behind) > BATCHES_BEHIND * lanes:
                    _raise_faults(behind.popleft())
                yield from stream.outcomes()
            for parts in behind:
                _raise_faults(parts)
                yield from stream.outcomes()
            yield from stream.outcomes()

    @property
    def told(self) -> tuple[bool, bool]:
        """What the predictor is to tell besides probabilities: the uncertainty, and the statistics in any case."""
        return self.keep_uncertainty, self.measure

    def assemble(self, case: CaseInput) -> Assembly:
        """What a case's rows are added to."""
        plan, cleaning = self.predictor.plan, self.predictor.cleaning
        return Assembly(case, plan, self.keep_probabilities, cleaning, self.keep_uncertainty)

    def add(self, item: Item, assembly: Assembly, rows: Sequence[RowPrediction]) -> None:
        """Take in what the networks say of the next rows."""
        for row in rows:
            assembly.add(row)
            if self.watch is not None:
                self.watch(item, row)

    def conclude(self, item: Item, assembly: Assembly) -> Result:
        """What comes of an item whose rows were all added."""
        return self.finish(item, assembly.prediction)


_Steps = Generator[tuple[NDArray[np.float32], bool], list[RowPrediction], Result]
"""See `_Wish.steps`."""


@dataclass(eq=False)
class _Whole(Generic[Item, Result]):
    """An item in a lane: the ``row`` that it has come to, None before the first, whether it is the only one, and what
    the networks ``said`` of it, None until they have."""

    item: Item
    steps: _Steps[Result]
    row: NDArray[np.float32] | None = None
    is_only_row: bool = False
    said: list[RowPrediction] | None = None


class _Lot(Generic[Item, Result]):
    """A few items that a lane does at a time: the files of all, the networks, then the masks of all.

    What is done beside a network is slow the first time after it, which has driven all else from the caches. An item of
    several rows, which may be large, is done by itself.
    """

    def __init__(self, wish: _Wish[Item, Result], items: Sequence[Item]) -> None:
        self.outcomes: list[tuple[Item, Result | IaunetError]] = []
        self.seconds_an_item = 0.0
        self._wish = wish
        self._waiting = deque(_Whole(item, wish.steps(item)) for item in items)
        self._together: deque[_Whole[Item, Result]] = deque()

    def finish(self) -> "_Lot[Item, Result]":
        """Do all that is to be done.

        Raises:
            NotEnoughMemory: For a row of the network; called again, this goes on there.
        """
        start = time.perf_counter()
        while self._waiting:
            self._begin(self._waiting[0])
            self._waiting.popleft()
        for each in self._together:
            self._ask(each)
        while self._together:
            self._go_on(self._together.popleft())
        self.seconds_an_item = (time.perf_counter() - start) / len(self.outcomes)
        return self

    def _begin(self, each: _Whole[Item, Result]) -> None:
        """Go on with an item as far as its only row, or else to its end."""
        is_at_a_row = each.row is not None or self._go_on(each)
        while is_at_a_row and not each.is_only_row:
            self._ask(each)
            is_at_a_row = self._go_on(each)
        if is_at_a_row:
            self._together.append(each)

    def _ask(self, each: _Whole[Item, Result]) -> None:
        """Have the networks say something of an item's row, if they have not."""
        assert each.row is not None
        if each.said is None:
            each.said = self._wish.predictor.predict_batch(each.row[None], *self._wish.told)

    def _go_on(self, each: _Whole[Item, Result]) -> bool:
        """Go on with an item as far as its next row; whether there is one."""
        try:
            found = _attempt(next, each.steps) if each.said is None else _attempt(each.steps.send, each.said)
        except StopIteration as end:
            self.outcomes.append((each.item, end.value))
            return False
        if isinstance(found, IaunetError):
            self.outcomes.append((each.item, found))
            return False
        (each.row, each.is_only_row), each.said = found, None
        return True


@dataclass(eq=False, kw_only=True)
class _Stream(Generic[Item, Result]):
    """What `_Wish.predict_beside` has under way.

    ``owners`` are the cases of the rows of each batch that the networks are at, ``encoding`` those with a part in the
    encoders, ``failed`` the items that could not be begun.
    """

    wish: _Wish[Item, Result]
    decoders: ThreadPoolExecutor
    makers: ThreadPoolExecutor
    encoders: ThreadPoolExecutor
    owners: deque[list[_Job[Item, Result]]] = field(default_factory=deque)
    encoding: deque[_Job[Item, Result]] = field(default_factory=deque)
    failed: deque[tuple[Item, IaunetError]] = field(default_factory=deque)

    def batches(self, items: Iterable[Item]) -> Iterator[NDArray[np.float32]]:
        """The rows of all cases, in their order, stacked as the networks take them."""
        waiting = self._rows(items)
        while batch := list(itertools.islice(waiting, self.wish.predictor.batch_size)):
            self.owners.append([job for job, _ in batch])
            yield np.stack([row for _, row in batch])

    def encode(self, said: Sequence[RowPrediction]) -> list[Future[Result | IaunetError | None]]:
        """Hand what the networks say of the next batch to the encoders, for each of its cases a part."""
        parts = []
        for job, rows in itertools.groupby(zip(self.owners.popleft(), said, strict=True), lambda each: each[0]):
            if job.last is None:
                self.encoding.append(job)
            job.last = self.encoders.submit(_attempt, self._add, job, [row for _, row in rows], job.last)
            parts.append(job.last)
        return parts

    def outcomes(self) -> Iterator[tuple[Item, Result | IaunetError]]:
        """What has come to its end since, in the order of the items but for those that could not be loaded."""
        while self.failed:
            yield self.failed.popleft()
        while self.encoding and self.encoding[0].is_done:
            yield self.encoding.popleft().outcome()

    def _rows(self, items: Iterable[Item]) -> Iterator[tuple[_Job[Item, Result], NDArray[np.float32]]]:
        ahead = self.wish.predictor.lanes * self.wish.predictor.batch_size
        for item, loaded in _loaded(self.decoders, items, self.wish.load, 2 * ahead):
            if isinstance(loaded, IaunetError):
                self.failed.append((item, loaded))
                continue
            case = loaded.case
            assembly = _attempt(self.wish.assemble, case)
            if isinstance(assembly, IaunetError):
                self.failed.append((item, assembly))
                continue
            job = _Job[Item, Result](item, assembly)
            yield job, loaded.first
            for row in _further_rows(self.makers, case, ahead):
                if isinstance(row, IaunetError):
                    job.fault = row
                    break
                yield job, row

    def _add(
        self, job: _Job[Item, Result], rows: Sequence[RowPrediction], before: "Future[object] | None"
    ) -> Result | None:
        """Encode a part of a case, once the part before is done; the last one finishes it."""
        fault = None if before is None else before.result()
        if isinstance(fault, IaunetError):
            raise fault
        self.wish.add(job.item, job.assembly, rows)
        return self.wish.conclude(job.item, job.assembly) if job.assembly.is_complete else None


def _loaded(
    pool: ThreadPoolExecutor, items: Iterable[Item], load: Callable[[Item], CaseInput], ahead: int
) -> Iterator[tuple[Item, _Loaded | IaunetError]]:
    """The items with their inputs, in order, a few loaded ahead."""

    def load_with_first(item: Item) -> _Loaded:
        case = load(item)
        return _Loaded(case, case.make(0))

    waiting: deque[tuple[Item, Future[_Loaded | IaunetError]]] = deque()
    room = 1  # until the size of the first is known
    for item in items:
        waiting.append((item, pool.submit(_attempt, load_with_first, item)))
        while len(waiting) > room:
            settled = _settled(waiting)
            if isinstance(settled[1], _Loaded):  # cases that follow each other are mostly alike
                room = min(ahead, max(1, ROWS_AHEAD // len(settled[1].case.places)))
            yield settled
            del settled  # or its pictures would stay while the next are awaited
    while waiting:
        yield _settled(waiting)


def _further_rows(pool: ThreadPoolExecutor, case: CaseInput, ahead: int) -> Iterator[NDArray[np.float32] | IaunetError]:
    """The rows of a case after its first, in order, a batch of them made ahead."""
    waiting: deque[Future[NDArray[np.float32] | IaunetError]] = deque()
    for number in range(1, len(case.places)):
        waiting.append(pool.submit(_attempt, case.make, number))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _attempt(function: Callable[..., Result], *arguments: object) -> Result | IaunetError:
    try:
        return function(*arguments)
    except IaunetError as fault:
        return fault
    except MEMORY_FAULTS as fault:
        if not is_out_of_memory(fault):
            raise
        return PredictionError("memory ran out for this image: close other programs and run the same command again")


def _raise_faults(parts: Iterable[Future[Any]]) -> None:
    """Wait for parts; an error that is no outcome ends all work."""
    for part in parts:
        part.result()


def _settled(waiting: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    """The first of those that wait, when it is done."""
    item, future = waiting.popleft()
    return item, future.result()
