"""Arrays taken to another size: images, probabilities and masks. Pure functions of numpy arrays.

All of them are Pillow's bilinear filter: half-pixel centred, so that nothing shifts, and widened when it
shrinks, so that nothing is skipped (anti-aliasing). Constants stay constant, and nothing leaves the range of
its input.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iaunet.decision import decide
from iaunet.metrics import Counts, count

Pixel = TypeVar("Pixel", bound=np.generic)

Size = tuple[int, int]
"""(height, width) in pixels."""

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""

COVERAGE_TIE = 1e-6
"""Coverages this close are equal: float32 sums of the same parts differ by about 1e-7 with their order."""


def resize_image(image: NDArray[np.generic], size: Size, window: Box | None = None) -> NDArray[np.float32]:
    """Resize an image of any number of channels.

    Args:
        image: (C, H, W). uint8 stays on Pillow's 8-bit path: whole values, at most 1 from the float result.
            Every other real dtype (uint16, int16, float32, ...) is taken to float32 first.
        size: (h, w) in pixels, at least 1 each.
        window: The part of the resized image that is wanted; only the pixels it depends on are touched.

    Returns:
        (C, h, w) float32 in the units of ``image``, or that of the window; a copy where the size is the same.
    """
    at, part = _part_for(image, size, window)
    planes = part if part.dtype == np.uint8 else part.astype(np.float32, copy=False)
    return _resize_planes(planes, size, window, at, _size(image))


def resize_probabilities(probabilities: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """Resize maps of probabilities.

    Args:
        probabilities: (L, H, W) in [0, 1].
        size: (h, w) in pixels, at least 1 each.

    Returns:
        (L, h, w) in [0, 1]; a copy where the size is the same.
    """
    return _resize_planes(probabilities.astype(np.float32, copy=False), size)


def resize_around(
    probabilities: NDArray[np.float32], where: NDArray[np.bool_], size: Size
) -> tuple[tuple[slice, slice], NDArray[np.float32]] | None:
    """Resize maps of probabilities where something depends on some of their pixels.

    Args:
        probabilities: (L, H, W) in [0, 1].
        where: (H, W), true at these pixels.
        size: (h, w) in pixels, at least 1 each.

    Returns:
        Rows and columns of the resized maps, and what lies there, as `resize_probabilities` makes it but for the last
        bit; None where no pixel is meant.
    """
    own = _size(where)
    blocks = _blocks_around(where.astype(np.uint8), size)
    if blocks is None:
        return None
    rows, columns = _slices(blocks, size, own)
    part = probabilities[:, *_slices(blocks, own, size)]
    return (rows, columns), resize_probabilities(part, (rows.stop - rows.start, columns.stop - columns.start))


def resize_strip(strip: NDArray[np.float32], first: int, whole: Size, size: Size, rows: range) -> NDArray[np.float32]:
    """Rows of resized maps, of which only some rows are there.

    Args:
        strip: (L, n, W), the rows from ``first`` on of maps (L, *whole).
        first: Number of the strip's first row.
        whole: (H, W) of the maps in pixels.
        size: (h, w) they are resized to.
        rows: The rows of the result that are wanted; those they depend on (`rows_ready`) must be in the strip.

    Returns:
        (L, len(rows), w) float32.
    """
    return _resize_planes(strip, size, (rows.start, 0, len(rows), size[1]), (first, 0), whole)


def rows_ready(n: int, height: int, target: int) -> int:
    """How many rows of maps resized from ``height`` to ``target`` rows depend on the first ``n`` alone."""
    if n >= height:
        return target
    step = height / target
    reach = max(step, 1.0)  # of the filter, in rows of the source
    return max(0, min(target, math.floor((n - reach - 0.5) / step + 0.5)))


def rows_needed(row: int, height: int, target: int) -> int:
    """The first of ``height`` rows that row ``row`` of ``target`` depends on."""
    step = height / target
    return max(0, math.floor((row + 0.5) * step - max(step, 1.0)) - 1)


def resize_mask(mask: NDArray[np.uint8], size: Size, window: Box | None = None) -> NDArray[np.uint8]:
    """Resize a mask: a pixel gets the label that covers most of it.

    The coverage of a label is its 0/1 map, resized; that of the background is what is left of 1. Ties (within
    `COVERAGE_TIE`) go to the lowest label, to the background last: a binary mask is its coverage at 0.5 and
    above.

    Args:
        mask: (H, W).
        size: (h, w) in pixels, at least 1 each.
        window: The part of the resized mask that is wanted.

    Returns:
        (h, w), or that of the window, with the values of ``mask``; a copy where the size is the same.
    """
    own = _size(mask)
    if own == size or window is not None:
        at, part = _part_for(mask, size, window)
        return part.copy() if own == size else _resize_labels(part, size, window, at, own)
    resized = np.zeros(size, np.uint8)
    if blocks := _blocks_around(mask, size):
        target = resized[_slices(blocks, size, own)]
        target[...] = _resize_labels(mask[_slices(blocks, own, size)], _size(target))
    return resized


def _resize_labels(
    mask: NDArray[np.uint8],
    size: Size,
    window: Box | None = None,
    at: tuple[int, int] = (0, 0),
    whole: Size | None = None,
) -> NDArray[np.uint8]:
    """As `resize_mask`, of a part as `_resize_planes` takes it."""
    labels = _labels_of(mask)
    coverage = _resize_planes(one_hot(mask, labels), size, window, at, whole)
    most = np.maximum(coverage.max(axis=0, initial=0), 1 - coverage.sum(axis=0)) - COVERAGE_TIE
    resized = np.zeros(coverage.shape[1:], np.uint8)
    for label, covered in zip(reversed(labels), reversed(coverage), strict=True):
        resized[covered >= most] = label  # downwards: of equal labels the lowest is painted last
    return resized


def _labels_of(mask: NDArray[np.uint8]) -> list[int]:
    """The values above 0, rising."""
    largest = int(mask.max(initial=0))
    if largest <= 2:
        return [label for label in range(1, largest + 1) if (mask == label).any()]
    histogram = Image.fromarray(mask).histogram()  # several times faster than numpy's unique
    return [label for label in range(1, 256) if histogram[label]]


def one_hot(mask: NDArray[np.uint8], labels: Sequence[int]) -> NDArray[np.float32]:
    """The map of each label as probabilities: (L, H, W), 1 where ``mask`` (H, W) has the label, else 0."""
    return np.equal(mask, np.array(labels, np.uint8)[:, None, None]).astype(np.float32)


def ceiling_dice(masks: NDArray[np.uint8], size: Size, labels: Sequence[int]) -> dict[int, float]:
    """The Dice of masks taken to a size and back: the best that a network working at that size can score.

    Down by `resize_mask`; up as soft maps, then decided as a prediction is, at thresholds of 0.5.

    Args:
        masks: (S, H, W), slices that are counted together.
        size: (h, w) of the network's input in pixels.
        labels: The values to score, above 0 and one at least. Values not among them count as background.

    Returns:
        Dice in [0, 1] per label; 1 for a label that ``masks`` has not.
    """
    return restored_dice(masks, (resize_mask(mask, size) for mask in masks), labels)


def restored_dice(
    masks: NDArray[np.uint8], resized: Iterable[NDArray[np.uint8]], labels: Sequence[int]
) -> dict[int, float]:
    """As `ceiling_dice`, of masks (S, H, W) that `resize_mask` took to a size already, (h, w) each."""
    totals = dict.fromkeys(labels, Counts())
    for mask, small in zip(masks, resized, strict=True):
        own, size = _size(mask), _size(small)
        blocks = _blocks_around(mask, size)
        if blocks is None:
            continue
        if reached := _blocks_around(small, own):
            blocks = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(blocks, reached, strict=True)]
        truth = mask[_slices(blocks, own, size)]
        maps = one_hot(small[_slices(blocks, size, own)], labels)
        decided = decide(resize_probabilities(maps, _size(truth)), [0.5] * len(labels))
        for index, label in enumerate(labels, start=1):
            totals[label] += count(decided == index, truth == label)
    return {label: counts.dice for label, counts in totals.items()}


def _size(array: NDArray[np.generic]) -> Size:
    height, width = array.shape[-2:]
    return height, width


_Blocks = list[tuple[int, int]]
"""(first, end) in rows and in columns of blocks, into which arrays of two sizes are cut alike: as many of a whole
number of pixels in both as there can be. Resized from block to block, a part becomes what it becomes in the whole."""


def _blocks_around(mask: NDArray[np.uint8], other: Size) -> _Blocks | None:
    """The blocks that hold all values above 0 and what resizing to another size mixes them with; None of nothing."""
    box = Image.fromarray(np.ascontiguousarray(mask)).getbbox()  # several times faster than numpy
    if box is None:
        return None
    blocks = []
    for start, end, own, there in zip((box[1], box[0]), (box[3], box[2]), _size(mask), other, strict=True):
        number = math.gcd(own, there)
        margin = 2 * max(own / there, 1.0) + 1  # what is mixed with them must itself be mixed with all that it is
        first, last = (start - margin) * number / own, (end + margin) * number / own
        blocks.append((max(0, math.floor(first)), min(number, math.ceil(last))))
    return blocks


def _slices(blocks: _Blocks, own: Size, other: Size) -> tuple[slice, slice]:
    """Blocks as pixels of an array."""
    sides = [here // math.gcd(here, there) for here, there in zip(own, other, strict=True)]
    rows, columns = (slice(first * side, end * side) for (first, end), side in zip(blocks, sides, strict=True))
    return rows, columns


def _part_for(array: NDArray[Pixel], size: Size, window: Box | None) -> tuple[tuple[int, int], NDArray[Pixel]]:
    """The pixels (..., H, W) that a window of the resized array depends on, and where they lie: (top, left)."""
    if window is None:
        return (0, 0), array
    own = _size(array)
    if own == size:
        top, left, height, width = window
        return (top, left), array[..., top : top + height, left : left + width]
    bounds = []
    for start, length, here, there in zip(window[:2], window[2:], own, size, strict=True):
        step = here / there
        margin = max(step, 1.0) + 1
        bounds.append((max(0, int(start * step - margin)), min(here, math.ceil((start + length) * step + margin))))
    (top, bottom), (left, right) = bounds
    return (top, left), array[..., top:bottom, left:right]


def _resize_planes(
    planes: NDArray[np.generic],
    size: Size,
    window: Box | None = None,
    at: tuple[int, int] = (0, 0),
    whole: Size | None = None,
) -> NDArray[np.float32]:
    """A window (None for all) of planes resized to ``size``; ``planes`` are those of ``whole`` size from ``at`` on."""
    # Plane by plane: interleaving three planes into Pillow's RGB costs more than it saves.
    box = None
    height, width = size
    if window is not None and whole is not None:
        if whole == size:
            top, left = window[0] - at[0], window[1] - at[1]
            return planes[:, top : top + window[2], left : left + window[3]].astype(np.float32)
        down, across = whole[0] / size[0], whole[1] / size[1]
        top, left, height, width = window
        box = (
            max(0.0, left * across - at[1]),
            max(0.0, top * down - at[0]),
            min(planes.shape[2], (left + width) * across - at[1]),
            min(planes.shape[1], (top + height) * down - at[0]),
        )
    resized = np.empty((len(planes), height, width), np.float32)
    for plane, target in zip(planes, resized, strict=True):
        image = Image.fromarray(np.ascontiguousarray(plane))
        target[...] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return resized
