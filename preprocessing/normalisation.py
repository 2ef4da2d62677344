"""Brings intensities to mean 0 and sd 1, by the dataset's statistics or by a case's own."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iaunet.planners.plan import Normalisation

SD_FLOOR = 1e-6

MOST_MEASURED = 2**24
"""Statistics of a larger channel are taken from evenly spread rows of it, this many pixels about."""


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Clips, shifts and scales the channels of one case.

    ``mean``, ``sd``, ``low`` and ``high`` are [C, 1, 1] float32 in the units of the files; no clipping where
    ``low`` and ``high`` are None.
    """

    mean: NDArray[np.float32]
    sd: NDArray[np.float32]
    low: NDArray[np.float32] | None = None
    high: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, plan: Normalisation, image: NDArray[np.generic]) -> "Normaliser":
        """The normaliser that a plan means for an image [C, ..., H, W] at native size."""
        if plan.kind == "dataset":
            low, high = map(_column, zip(*plan.windows, strict=True)) if plan.windows else (None, None)
            return cls(_column(plan.mean), np.maximum(_column(plan.sd), SD_FLOOR), low, high)
        pixels = _sampled(image).astype(np.float32)
        if plan.percentiles is None:
            return cls(_column(pixels.mean(1)), np.maximum(_column(pixels.std(1)), SD_FLOOR))
        low, high = np.percentile(pixels, plan.percentiles, axis=1).astype(np.float32)
        clipped = pixels.clip(low[:, None], high[:, None])
        sd = np.maximum(_column(clipped.std(1)), SD_FLOOR)
        return cls(_column(clipped.mean(1)), sd, _column(low), _column(high))

    def apply(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalise [C, h, w] of any size; the argument stays as it is."""
        if self.low is not None:
            image = image.clip(self.low, self.high)
        normalised = image - self.mean
        normalised /= self.sd  # in its place, as `prepare_case` clips it: new memory costs more than the numbers
        return normalised


def _sampled(image: NDArray[np.generic]) -> NDArray[np.generic]:
    """[C, pixels] of an image [C, ..., H, W]: all of them, or those of evenly spread rows."""
    every = max(1, round(image[0].size / MOST_MEASURED))
    return image[..., ::every, :].reshape(len(image), -1)


def _column(numbers: object) -> NDArray[np.float32]:
    return np.asarray(numbers, np.float32)[:, None, None]
