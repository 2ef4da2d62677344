"""From probabilities to a mask: the one rule for validation, prediction and evaluation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def decide(probabilities: NDArray[np.float32], thresholds: Sequence[float]) -> NDArray[np.uint8]:
    """Decide exclusive labels: among the labels whose probability reaches their threshold, the most probable.

    Args:
        probabilities: (L, ...) in [0, 1], one map a label over pixels or voxels. NaN reaches no threshold.
        thresholds: One a label.

    Returns:
        Mask (...): 0 where no label reaches its threshold, else the label's index + 1, the first of equals.

    Raises:
        ValueError: The thresholds are not one a label.
    """
    reached = find_reached(probabilities, thresholds)
    if len(reached) == 1:
        return reached.astype(np.uint8).reshape(reached.shape[1:])
    mask = np.zeros(reached.shape[1:], np.uint8)
    best = np.full(mask.shape, -1, probabilities.dtype)
    for index, (candidate, there) in enumerate(zip(probabilities, reached, strict=True), start=1):
        wins = there & (candidate > best)
        mask[wins] = index
        np.copyto(best, candidate, where=wins)
    return mask


def decide_regions(
    probabilities: NDArray[np.float32], thresholds: Sequence[float], regions_class_order: Sequence[int]
) -> NDArray[np.uint8]:
    """Decide regions: each is painted where it reaches its threshold, in order, later over earlier.

    Args:
        probabilities: (R, ...) in [0, 1], one map a region over pixels or voxels. NaN reaches no threshold.
        thresholds: One a region.
        regions_class_order: The value that each region paints, as in nnU-Net: whole before part.

    Returns:
        Mask (...): 0 where no region reaches its threshold.

    Raises:
        ValueError: The thresholds or the values are not one a region.
    """
    reached = find_reached(probabilities, thresholds)
    if len(regions_class_order) != len(reached):
        raise ValueError(f"{len(regions_class_order)} values in regions_class_order for {len(reached)} regions")
    mask = np.zeros(reached.shape[1:], np.uint8)
    for region, value in zip(reached, regions_class_order, strict=True):
        mask[region] = value
    return mask


def find_reached(probabilities: NDArray[np.float32], thresholds: Sequence[float]) -> NDArray[np.bool_]:
    """Where each map of probabilities (L, ...) reaches its threshold.

    Raises:
        ValueError: The thresholds are not one a map.
    """
    if len(thresholds) != len(probabilities):
        raise ValueError(f"{len(thresholds)} thresholds for {len(probabilities)} maps of probabilities")
    # In the dtype of the probabilities, or a float32 0.3 would not reach 0.3.
    levels = np.array(thresholds, probabilities.dtype)
    return probabilities >= levels.reshape(-1, *[1] * (probabilities.ndim - 1))
