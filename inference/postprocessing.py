"""What is done to masks after the network: thresholds of their own, small components, the largest one, holes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from iaunet.planners.plan import Plan
from iaunet.records import require

PIXELS_AT_ONCE = 1 << 20
"""Of a mask, that are counted or changed in one step: numpy looks pixels up with 8 bytes each."""


@dataclass(frozen=True, kw_only=True)
class LabelCleaning:
    """What is done to the components of one label, in this order; by default nothing.

    Args:
        smallest: Components of fewer pixels (of a volume: voxels) become background.
        largest_only: Of what is left only the largest component stays, the first of equals.
        fill_holes: Background that what is left encloses becomes the label.
    """

    smallest: int = 0
    largest_only: bool = False
    fill_holes: bool = False

    def __post_init__(self) -> None:
        require(self.smallest >= 0, "smallest", self.smallest, "a whole number of 0 or more")


NO_CLEANING = LabelCleaning()


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """How probabilities become the final mask.

    Args:
        thresholds: The probability from which a label or region counts, one an output of the network.
        cleaning: One for each label 1..n that masks hold, in order. Where the network gives regions, these are the
            labels that regions paint.
    """

    thresholds: tuple[float, ...]
    cleaning: tuple[LabelCleaning, ...]

    def __post_init__(self) -> None:
        fits = len(self.thresholds) > 0 and all(0 < value < 1 for value in self.thresholds)
        require(fits, "thresholds", self.thresholds, "probabilities between 0 and 1, one an output")
        require(len(self.cleaning) > 0, "cleaning", self.cleaning, "one entry for each label")

    def is_nothing(self, plan_thresholds: Sequence[float]) -> bool:
        """Whether masks stay what a plan with these thresholds makes them."""
        cleans = any(cleaning != NO_CLEANING for cleaning in self.cleaning)
        return not cleans and self.thresholds == tuple(plan_thresholds)


def describe_postprocessing(postprocessing: Postprocessing, plan: Plan) -> str:
    """What is done to each label in words: ``polyp from 0.4 on, without components under 120 px, holes filled``."""
    starts: Sequence[list[str]] = [[] for _ in plan.value_names]
    if not plan.coding.regions:
        starts = [[f"from {threshold:g} on"] for threshold in postprocessing.thresholds]
    steps = [start + _steps_in_words(cleaning) for start, cleaning in zip(starts, postprocessing.cleaning, strict=True)]
    named = zip(plan.value_names, steps, strict=True)
    return "; ".join(f"{name} {', '.join(of_label) or 'as it is'}" for name, of_label in named)


def _steps_in_words(cleaning: LabelCleaning) -> list[str]:
    steps = {
        f"without components under {cleaning.smallest} px": cleaning.smallest > 0,
        "only the largest component": cleaning.largest_only,
        "holes filled": cleaning.fill_holes,
    }
    return [step for step, is_done in steps.items() if is_done]


def clean_labels(labels: NDArray[np.uint8], cleaning: Sequence[LabelCleaning]) -> NDArray[np.uint8]:
    """Clean a mask, one label after the other.

    Components touch at sides or corners: 8 neighbours in a picture, 26 in a volume. Holes therefore touch at sides
    alone, 4 or 6 neighbours, and lie nowhere at the border; what other labels hold in them stays.

    Args:
        labels: The mask [slices, H, W], uint8, 0 for background; one slice is a picture, several are a volume.
        cleaning: One a label, from label 1 on. Labels beyond stay as they are.

    Returns:
        A new mask; the argument itself, where nothing is asked for. It takes about seven times the mask's size, eleven
        times above 2^31 pixels.

    Raises:
        ValueError: The mask has not three axes.
    """
    if labels.ndim != 3:
        raise ValueError(f"a mask of shape {labels.shape} cannot be cleaned: give [slices, H, W]")
    if all(steps == NO_CLEANING for steps in cleaning):
        return labels
    cleaned = labels.copy()
    plane = cleaned[0] if len(cleaned) == 1 else cleaned
    boxes = ndimage.find_objects(plane, len(cleaning))
    for label, (box, steps) in enumerate(zip(boxes, cleaning, strict=True), start=1):
        if box is None or steps == NO_CLEANING:
            continue
        if steps.smallest > 1 or steps.largest_only:
            _remove_components(plane[box], label, steps)
        if steps.fill_holes:
            _fill_holes(plane[box], label)
    return cleaned


def components_kept(areas: NDArray[np.int64], steps: LabelCleaning) -> NDArray[np.bool_]:
    """Which components [n] of these areas [n] in pixels stay, for components in the order of `number_components`."""
    kept = areas >= steps.smallest
    if steps.largest_only and kept.any():
        kept &= np.arange(len(areas)) == areas.argmax()
    return kept


def number_components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.integer], int]:
    """Number the components of a mask that touch at sides or corners.

    Args:
        mask: A picture [H, W] or a volume [slices, H, W].

    Returns:
        For each pixel the number of its component, from 1 on by the components' first pixels, 0 outside the mask; and
        how many there are.
    """
    return _number(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))


def number_gaps(mask: NDArray[np.bool_]) -> tuple[NDArray[np.integer], int]:
    """Number what lies around and between the components of a mask, touching at sides: 1 is outside, others are holes.

    Args:
        mask: A picture [H, W] or a volume [slices, H, W] whose border is empty.

    Returns:
        For each pixel the number of its gap, 0 within the mask; and how many there are.
    """
    return _number(~mask, ndimage.generate_binary_structure(mask.ndim, 1))


def _number(mask: NDArray[np.bool_], structure: NDArray[np.bool_]) -> tuple[NDArray[np.integer], int]:
    numbers, n = ndimage.label(mask, structure)
    return numbers, int(n)


def _remove_components(window: NDArray[np.uint8], label: int, steps: LabelCleaning) -> None:
    """Turn the components of a label that do not stay into background, in place."""
    numbers, n = number_components(window == label)
    areas = np.zeros(n + 1, np.int64)
    for (part,) in _bands(numbers):
        areas += np.bincount(part.ravel(), minlength=n + 1)
    lost = np.zeros(n + 1, np.bool_)
    lost[1:] = ~components_kept(areas[1:], steps)
    if not lost.any():
        return
    for part, of_window in _bands(numbers, window):
        of_window[lost[part]] = 0


def _fill_holes(window: NDArray[np.uint8], label: int) -> None:
    """Paint the background in the holes of a label, in place."""
    gaps, n = number_gaps(np.pad(window == label, 1))
    if n == 1:
        return
    inner = gaps[(slice(1, -1),) * gaps.ndim]
    for part, of_window in _bands(inner, window):
        of_window[(part > 1) & (of_window == 0)] = label


def _bands(*arrays: NDArray[np.integer]) -> Iterator[tuple[NDArray[np.integer], ...]]:
    """Views [n, W] of a few rows, of all arrays at once: together they are the whole arrays."""
    if arrays[0].ndim == 3:
        for planes in zip(*arrays, strict=True):
            yield from _bands(*planes)
        return
    height, width = arrays[0].shape
    step = max(1, PIXELS_AT_ONCE // width)
    for top in range(0, height, step):
        yield tuple(array[top : top + step] for array in arrays)
