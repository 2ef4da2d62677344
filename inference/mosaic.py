"""Puts predicted rows together: tiles to pictures, pictures to the case."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import PredictionError
from iaunet.inference.postprocessing import LabelCleaning, clean_labels
from iaunet.planners.plan import Plan
from iaunet.preprocessing.cases import CaseInput
from iaunet.preprocessing.geometry import Geometry
from iaunet.resample import Size, resize_strip, rows_needed, rows_ready

SIGMA = 1 / 8
"""Of the Gaussian that weighs a tile's pixels, as a share of its side: its middle, which has seen its surroundings,
counts most."""


PIXELS_AT_ONCE = 1 << 20
"""Of a picture, that are resized at once: a band of a small resized picture can be much of the native one."""


@dataclass(frozen=True, eq=False)
class RowPrediction:
    """What networks say of a row.

    Args:
        probabilities: Their mean [outputs, h, w], float32 in [0, 1].
        uncertainty: The standard deviation of the probabilities over networks and flips, the largest of all outputs,
            [h, w] float32 in [0, 0.5]; None where it was not asked for.
        statistics: Of each network [networks, outputs, S], see `iaunet.inference.expected_dice.STATISTICS`; None where
            they were not asked for.
    """

    probabilities: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None = None
    statistics: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """A predicted case at its native size.

    Args:
        labels: [slices, H, W] uint8: 0 for background and i + 1 for label i.
        probabilities: [outputs, slices, H, W] float32, None where they were not asked for.
        uncertainty: [slices, H, W] float32, see `RowPrediction`.
        statistics: [networks, outputs, S], of all rows together, see `RowPrediction`.
    """

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None = None
    uncertainty: NDArray[np.float32] | None = None
    statistics: NDArray[np.float64] | None = None


class Assembly:
    """A case whose rows are being predicted.

    Args:
        case: Tells where its rows lie.
        plan: Decides labels.
        keep_probabilities: Whether the prediction has probabilities, which take 4 bytes a pixel and output.
        cleaning: What is done with each label's mask in the end, see `clean_labels`; nothing if it is empty.
        keep_uncertainty: Whether the prediction has uncertainties, of which every row then brings its own.
    """

    def __init__(
        self,
        case: CaseInput,
        plan: Plan,
        keep_probabilities: bool = False,
        cleaning: Sequence[LabelCleaning] = (),
        keep_uncertainty: bool = False,
    ) -> None:
        self._plan = plan
        self._places = case.places
        self._cleaning = cleaning
        self._n_added = 0
        self._labels = np.zeros(case.shape, np.uint8)
        n_outputs = len(plan.labels)
        self._probabilities = np.zeros((n_outputs, *case.shape), np.float32) if keep_probabilities else None
        self._uncertainty = np.zeros(case.shape, np.float32) if keep_uncertainty else None
        self._statistics: NDArray[np.float64] | None = None
        self._picture: _Mosaic | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every row was added."""
        return self._n_added == len(self._places)

    @property
    def prediction(self) -> Prediction:
        """What the rows say together.

        Raises:
            ValueError: Rows are missing.
        """
        if not self.is_complete:
            raise ValueError(f"{len(self._places) - self._n_added} rows of the case are missing")
        labels = clean_labels(self._labels, self._cleaning)
        return Prediction(labels, self._probabilities, self._uncertainty, self._statistics)

    def add(self, row: RowPrediction) -> None:
        """Add the next row; rows come in the order of their places.

        Raises:
            PredictionError: The networks say no numbers.
        """
        if not np.isfinite(row.probabilities).all():  # no threshold is reached: the mask would be empty, untold
            raise PredictionError(
                "the network gives no number for this image: look whether its pixels hold nan or infinite values, "
                "or try --device cpu"
            )
        place = self._places[self._n_added]
        self._n_added += 1
        if row.statistics is not None:
            self._statistics = row.statistics + (0 if self._statistics is None else self._statistics)
        maps = row.probabilities
        if self._uncertainty is not None:
            assert row.uncertainty is not None  # asked for with every row or with none
            maps = np.concatenate([maps, row.uncertainty[None]])
        if place.geometry.is_whole and self._probabilities is None and self._uncertainty is None:
            reached = self._plan.reached(maps)  # resized, only what lies around these pixels can reach its threshold
            if found := place.geometry.restore_around(maps, reached):
                area, restored = found
                self._labels[place.slice][area] = self._plan.decide(restored)
            return
        if place.geometry.is_whole:
            self._keep(place.slice, 0, place.geometry.restore(maps))
            return
        if self._picture is None:
            self._picture = _Mosaic(place.geometry, len(maps))
        for top, rows in self._picture.add(place.geometry, maps):
            self._keep(place.slice, top, rows)
        if self._picture.is_complete:
            self._picture = None

    def _keep(self, number: int, top: int, rows: NDArray[np.float32]) -> None:
        """Keep finished rows of pixels [maps, n, W] of a slice from ``top`` on."""
        bottom = top + rows.shape[1]
        probabilities = rows[: len(self._plan.labels)]
        self._labels[number, top:bottom] = self._plan.decide(probabilities)
        if self._probabilities is not None:
            self._probabilities[:, number, top:bottom] = probabilities
        if self._uncertainty is not None:
            self._uncertainty[number, top:bottom] = rows[-1]


class _Mosaic:
    """The weighted mean of overlapping tiles of one picture, given away from the top as soon as it is final.

    Only a tile's height of the resized picture is held, so memory does not grow with the picture's height.
    """

    def __init__(self, first: Geometry, n_outputs: int) -> None:
        self._scaled, self._native = first.scaled_size, first.native_size
        self._height = first.content[2]
        width = self._scaled[1]
        self._sums = np.zeros((n_outputs, self._height, width), np.float32)
        self._weights = np.zeros((self._height, width), np.float32)
        self._top = 0  # of the band being summed, in the resized picture
        self._strip = np.zeros((n_outputs, 0, width), np.float32)  # final rows that are still needed
        self._n_given = 0  # native rows given away
        self._piece = max(1, PIXELS_AT_ONCE // self._native[1])

    @property
    def is_complete(self) -> bool:
        """Whether every native row was given away."""
        return self._n_given == self._native[0]

    def add(self, tile: Geometry, probabilities: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Add a tile; gives the native rows that became final: the first's number, and [outputs, n, W]."""
        top, left = tile.origin
        if top > self._top:
            yield from self._finish(top - self._top)
        content = tile.crop(probabilities)
        weight = _weight(tile.content[2:])
        self._sums[:, :, left : left + content.shape[2]] += content * weight
        self._weights[:, left : left + content.shape[2]] += weight
        at_the_end = zip(tile.origin, tile.content[2:], tile.scaled_size, strict=True)
        if all(start + length == side for start, length, side in at_the_end):
            yield from self._finish(self._height)

    def _finish(self, n: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The first ``n`` rows of the band are final."""
        final = self._sums[:, :n] / self._weights[:n]
        self._sums = np.concatenate([self._sums[:, n:], np.zeros_like(final)], axis=1)
        self._weights = np.concatenate([self._weights[n:], np.zeros_like(self._weights[:n])])
        first = self._top - self._strip.shape[1]
        self._top += n
        self._strip = np.concatenate([self._strip, final], axis=1)
        ready = rows_ready(self._top, self._scaled[0], self._native[0])
        while self._n_given < ready:
            rows = range(self._n_given, min(ready, self._n_given + self._piece))
            self._n_given = rows.stop
            yield rows.start, resize_strip(self._strip, first, self._scaled, self._native, rows)
        needed = rows_needed(self._n_given, self._scaled[0], self._native[0])
        self._strip = self._strip[:, max(0, needed - first) :].copy()


@lru_cache(maxsize=8)
def _weight(size: Size) -> NDArray[np.float32]:
    """The weight of each pixel of a tile, 1 in its middle; 1e-7 in its corners is still exact enough to divide by."""
    axes = [np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (SIGMA * side)) ** 2) for side in size]
    return np.asarray(np.outer(*axes), np.float32)
