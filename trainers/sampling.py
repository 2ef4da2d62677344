"""In which order cases are seen: a function of the seed, the same whatever the number of workers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Sample:
    """One training sample: the row to take, and the (seed, epoch, position) that decides all its randomness."""

    row: int
    seed: tuple[int, int, int]


class CaseOrder:
    """An endless stream of shuffles of the cases, cut into epochs.

    An epoch is each case ``draws`` times, or ``most_steps`` batches if that is less; its last batch is filled from the
    next shuffle, where the next epoch goes on.

    Args:
        rows: The rows of each case to draw from.
        has_foreground: Whether each row of the arrays has foreground.
        batch_size: Samples a batch.
        draws: How often each case comes in an epoch.
        most_steps: Batches an epoch at most.
        foreground_rows: The least probability of drawing a row with foreground from a case that has such rows.
        seed: Decides everything.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        has_foreground: Sequence[bool],
        *,
        batch_size: int,
        draws: int = 1,
        most_steps: int,
        foreground_rows: float,
        seed: int,
    ) -> None:
        self._rows_of = rows
        self._has_foreground = has_foreground
        self._foreground_rows = foreground_rows
        self._seed = seed
        self._last_shuffle: tuple[int, list[int]] = (-1, [])
        self.batch_size = batch_size
        self.steps = min(-(-len(rows) * draws // batch_size), most_steps)

    def batch(self, epoch: int, step: int) -> list[Sample]:
        """The samples of a step; epochs and steps are counted from 0."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [self._sample(epoch, position) for position in positions]

    def _sample(self, epoch: int, position: int) -> Sample:
        shuffle, place = divmod(epoch * self.steps * self.batch_size + position, len(self._rows_of))
        rows = self._rows_of[self._shuffled(shuffle)[place]]
        seed = (self._seed, epoch, position)
        return Sample(self._draw_row(rows, seed), seed)

    def _shuffled(self, shuffle: int) -> list[int]:
        if self._last_shuffle[0] != shuffle:
            order = np.random.default_rng([self._seed, shuffle]).permutation(len(self._rows_of))
            self._last_shuffle = (shuffle, order.tolist())
        return self._last_shuffle[1]

    def _draw_row(self, rows: Sequence[int], seed: tuple[int, int, int]) -> int:
        """One row of a case; rows with foreground are preferred where they are rare."""
        if len(rows) == 1:
            return rows[0]
        rng = np.random.default_rng((*seed, 1))  # another stream than the augmentation's
        foreground = [row for row in rows if self._has_foreground[row]]
        if foreground and rng.random() < self._foreground_rows:
            rows = foreground
        return rows[int(rng.integers(len(rows)))]


class EpochSampler(Sampler[list[Sample]]):
    """Gives a loader the batches of one epoch, from ``first_step`` on; both are set before each epoch.

    Args:
        order: The batches.
        part: Which samples of each batch; by default all.
    """

    def __init__(self, order: CaseOrder, part: slice = slice(None)) -> None:
        self.order = order
        self._part = part
        self.epoch = 0
        self.first_step = 0

    def __iter__(self) -> Iterator[list[Sample]]:
        for step in range(self.first_step, self.order.steps):
            yield self.order.batch(self.epoch, step)[self._part]

    def __len__(self) -> int:
        return self.order.steps - self.first_step
