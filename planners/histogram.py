"""Counts of pixel values, from which every statistic of the intensities follows."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_KEPT_MANTISSA = np.uint32(0xFFFFE000)
"""Float values are counted with ten bits of mantissa, three significant digits, so that counts stay few; subnormal
numbers, below 1.2e-38, keep fewer."""

UNITED_AT_ONCE = 32
"""Histograms that are added up together, which takes little longer than adding one."""

PERCENTS = (0.5, 1.0, 5.0, 50.0, 95.0, 99.0, 99.5)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Distinct values, rising, and how often each occurs."""

    values: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, pixels: NDArray[np.generic]) -> "Histogram":
        """Count the values of any array of uint8, uint16, int32 or float32."""
        flat = pixels.ravel()
        if flat.dtype in (np.uint8, np.uint16):
            counts = _count_bytes(flat.view(np.uint8)) if flat.itemsize == 1 else np.bincount(flat.astype(np.intp))
            values = np.flatnonzero(counts)
            return cls(values.astype(np.float64), counts[values])
        if flat.dtype == np.float32:
            flat = (flat.view(np.uint32) & _KEPT_MANTISSA).view(np.float32)
        values, counts = np.unique(flat, return_counts=True)
        return cls(values.astype(np.float64), counts)

    @classmethod
    def union(cls, parts: Sequence["Histogram"]) -> "Histogram":
        """The histogram of all pixels of several."""
        values, places = np.unique(np.concatenate([part.values for part in parts]), return_inverse=True)
        weights = np.concatenate([part.counts for part in parts])
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, places, weights)
        return cls(values, counts)

    @cached_property
    def total(self) -> int:
        """How many pixels were counted."""
        return int(self.counts.sum())

    @cached_property
    def mean(self) -> float:
        """The mean value, nan of nothing."""
        return float(self.values @ self.counts / self.total) if self.total else float("nan")

    @cached_property
    def sd(self) -> float:
        """The standard deviation (of the pixels themselves, not an estimate from a sample), nan of nothing."""
        return float(np.sqrt((self.values - self.mean) ** 2 @ self.counts / self.total)) if self.total else float("nan")

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """The smallest values that at least each ``percents`` of the pixels do not exceed, nan of nothing."""
        if not self.total:
            return [float("nan")] * len(percents)
        ranks = np.cumsum(self.counts).searchsorted([percent / 100 * self.total for percent in percents])
        found: list[float] = self.values[np.minimum(ranks, len(self.values) - 1)].tolist()
        return found


def _count_bytes(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each of 0 to 255 occurs among values [n]; Pillow counts twice as fast as numpy."""
    if not len(values):
        return np.zeros(256, np.int64)
    return np.array(Image.frombuffer("L", (len(values), 1), values, "raw", "L", 0, 1).histogram(), np.int64)


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Statistics of one channel in the units of the files; ``percentiles`` are at `PERCENTS`."""

    mean: float
    sd: float
    percentiles: tuple[float, ...]

    @classmethod
    def of(cls, histogram: Histogram) -> "Intensity":
        """The statistics of counted pixels, nan where there are none; rounded to six digits."""
        numbers = (histogram.mean, histogram.sd, *histogram.percentiles(PERCENTS))
        mean, sd, *percentiles = (float(f"{number:.6g}") for number in numbers)
        return cls(mean=mean, sd=sd, percentiles=tuple(percentiles))


class Totals:
    """Histograms of many images, added up as they come, so that memory does not grow with the images.

    They are kept apart by a key, and by the images' channels: grey counts in every channel once it is promoted.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[Hashable, int], list[tuple[Histogram, ...]]] = defaultdict(list)

    def add(self, key: Hashable, planes: tuple[Histogram, ...]) -> None:
        """Add an image's histograms, one a channel."""
        parts = self._parts[key, len(planes)]
        parts.append(planes)
        if len(parts) >= UNITED_AT_ONCE:
            parts[:] = [_unite(parts)]

    def add_all(self, others: "Totals") -> None:
        """Add what others have added up."""
        for (key, _), parts in others._parts.items():
            for planes in parts:
                self.add(key, planes)

    def united(self) -> "Totals":
        """The same as one histogram each, to be sent to another process."""
        totals = Totals()
        for (key, _), parts in self._parts.items():
            totals.add(key, _unite(parts))
        return totals

    def intensity(self, key: Hashable, channels: int) -> tuple[Intensity, ...]:
        """The statistics of each channel."""
        grey, colour = (_unite(self._parts.get((key, n), [])) for n in (1, channels))
        parts = [[*grey, *([colour[i]] if channels > 1 and colour else [])] for i in range(channels)]
        return tuple(Intensity.of(Histogram.union(part)) for part in parts)


def _unite(parts: Sequence[tuple[Histogram, ...]]) -> tuple[Histogram, ...]:
    """The histograms of all images, one a channel."""
    return parts[0] if len(parts) == 1 else tuple(map(Histogram.union, zip(*parts, strict=True)))
