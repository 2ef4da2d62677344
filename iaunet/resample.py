"""Arrays taken to another size: images, probabilities and masks. Pure functions of numpy arrays.

All of them are Pillow's bilinear filter: half-pixel centred, so that nothing shifts, and widened when it
shrinks, so that nothing is skipped (anti-aliasing). Constants stay constant, and nothing leaves the range of
its input.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iaunet.decision import decide
from iaunet.metrics import count

Size = tuple[int, int]
"""(height, width) in pixels."""

COVERAGE_TIE = 1e-6
"""Coverages this close are equal: float32 sums of the same parts differ by about 1e-7 with their order."""


def resize_image(image: NDArray[np.generic], size: Size) -> NDArray[np.float32]:
    """Resize an image of any number of channels.

    Args:
        image: (C, H, W). uint8 stays on Pillow's 8-bit path: whole values, at most 1 from the float result.
            Every other real dtype (uint16, int16, float32, ...) is taken to float32 first.
        size: (h, w) in pixels, at least 1 each.

    Returns:
        (C, h, w) float32 in the units of ``image``; a copy where the size is the same.
    """
    return _resize_planes(image if image.dtype == np.uint8 else image.astype(np.float32, copy=False), size)


def resize_probabilities(probabilities: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """Resize maps of probabilities.

    Args:
        probabilities: (L, H, W) in [0, 1].
        size: (h, w) in pixels, at least 1 each.

    Returns:
        (L, h, w) in [0, 1]; a copy where the size is the same.
    """
    return _resize_planes(probabilities.astype(np.float32, copy=False), size)


def resize_mask(mask: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize a mask: a pixel gets the label that covers most of it.

    The coverage of a label is its 0/1 map, resized; that of the background is what is left of 1. Ties (within
    `COVERAGE_TIE`) go to the lowest label, to the background last: a binary mask is its coverage at 0.5 and
    above.

    Args:
        mask: (H, W).
        size: (h, w) in pixels, at least 1 each.

    Returns:
        (h, w) with the values of ``mask``; a copy where the size is the same.
    """
    if mask.shape == size:
        return mask.copy()
    histogram = Image.fromarray(mask).histogram()  # several times faster than numpy's unique
    labels = [label for label in range(1, 256) if histogram[label]]
    coverage = _resize_planes(one_hot(mask, labels), size)
    most = np.maximum(coverage.max(axis=0, initial=0), 1 - coverage.sum(axis=0)) - COVERAGE_TIE
    resized = np.zeros(size, np.uint8)
    for label, covered in zip(reversed(labels), reversed(coverage), strict=True):
        resized[covered >= most] = label  # downwards: of equal labels the lowest is painted last
    return resized


def one_hot(mask: NDArray[np.uint8], labels: Sequence[int]) -> NDArray[np.float32]:
    """The map of each label as probabilities: (L, H, W), 1 where ``mask`` (H, W) has the label, else 0."""
    return np.equal(mask, np.array(labels, np.uint8)[:, None, None]).astype(np.float32)


def ceiling_dice(mask: NDArray[np.uint8], size: Size, labels: Sequence[int]) -> dict[int, float]:
    """The Dice of a mask taken to a size and back: the best that a network working at that size can score.

    Down by `resize_mask`; up as soft maps, then decided as a prediction is, at thresholds of 0.5.

    Args:
        mask: (H, W).
        size: (h, w) of the network's input in pixels.
        labels: The values to score, above 0 and one at least. Values not among them count as background.

    Returns:
        Dice in [0, 1] per label; 1 for a label that ``mask`` has not.
    """
    small = one_hot(resize_mask(mask, size), labels)
    height, width = mask.shape
    decided = decide(resize_probabilities(small, (height, width)), [0.5] * len(labels))
    return {label: count(decided == index, mask == label).dice for index, label in enumerate(labels, start=1)}


def _resize_planes(planes: NDArray[np.generic], size: Size) -> NDArray[np.float32]:
    # Plane by plane: interleaving three planes into Pillow's RGB costs more than it saves.
    height, width = size
    resized = np.empty((len(planes), height, width), np.float32)
    for plane, target in zip(planes, resized, strict=True):
        target[...] = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
    return resized
