"""What is measured on one case: everything the fingerprint needs, from one decoding of each file."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from iaunet.dataset import BINARY_CUT, DEFAULT_SLICING, IGNORED, MaskCoding, Problem, Slicing
from iaunet.errors import FileError
from iaunet.planners.histogram import Histogram, Intensity, Totals
from iaunet.planners.pictures import KeptPicture, KeptPictures, KeptPlace
from iaunet.planners.suspicions import CaseShapes, extent, measure_shape
from iaunet.resample import Size, ceiling_dice, resize_image, resize_mask, restored_dice
from iaunet.stacks import Stack, read_mask_stack, read_stack

MOST_MASK_VALUES = 32
"""A mask with more values is no map of labels."""

THUMBNAIL_SIDE = 32

TILE_SCALES = (0.25, 0.5)
"""What pictures may be resized by before they are cut into tiles, besides not at all."""

MOST_SHAPES = 8
"""Masks of more values are no label maps whose labels could be told apart by shape."""

MOST_SHAPE_SLICES = 16
LARGEST_FOR_SHAPES = 2**23

HIGH_CEILING = 0.97
"""The ceiling from which the input's size loses little."""

CodingKind = Literal["values", "binary", "nonzero"]


@dataclass(frozen=True, kw_only=True)
class MeasureTask:
    """A case to measure.

    ``coding`` is how to read its mask, None before all masks were judged: then the mask's own values decide.
    ``input_size`` is the (height, width) the ceiling is taken for. ``with_width`` asks for the local width.
    ``pictures`` keeps what was decoded, where that can be used.
    """

    case: str
    images: tuple[Path, ...]
    image_file: str
    mask: Path | None
    mask_file: str | None
    input_size: Size
    with_width: bool
    slicing: Slicing = DEFAULT_SLICING
    coding: MaskCoding | None = None
    pictures: KeptPictures | None = None


@dataclass(frozen=True, kw_only=True)
class LabelMeasures:
    """One label in one case: ``share`` of the pixels, equivalent ``diameters`` of its components in native pixels,
    and ``ceiling``, the Dice of its mask taken to the input's size and back. ``tile_ceilings`` are the same for its
    pictures resized by `TILE_SCALES`, empty where the input's size loses little."""

    share: float
    diameters: tuple[float, ...]
    ceiling: float
    tile_ceilings: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """What was measured on a case.

    ``problems`` is empty unless a file cannot be used, and then the rest is empty. ``shape`` is (slices, height,
    width), ``spacing_mm`` the distance of slices, rows and columns.
    ``labels`` holds the measures by label, or by raw mask value where no coding was given. ``mask_values`` counts
    the raw values. ``instances`` is n where the values are 1..n, a connected component each, else 0.
    ``local_width`` is in native pixels. ``thumbnail`` is 32x32 grey, uint8. ``kept`` is where what was decoded is kept.
    """

    case: str
    problems: tuple[Problem, ...] = ()
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing_mm: tuple[float, float, float] | None = None
    depth: str = ""
    image_sha256: str = ""
    mask_sha256: str | None = None
    histograms: tuple[Histogram, ...] = ()
    foreground: tuple[Histogram, ...] = ()
    intensity: tuple[Intensity, ...] = ()
    foreground_intensity: tuple[Intensity, ...] = ()
    thumbnail: NDArray[np.uint8] | None = None
    has_transparency: bool = False
    mask_values: Mapping[int, int] | None = None
    read_as: CodingKind | None = None
    instances: int = 0
    labels: Mapping[int, LabelMeasures] | None = None
    local_width: float | None = None
    shapes: tuple[CaseShapes, ...] = ()
    kept: KeptPlace | None = None

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return len(self.intensity)


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurements:
    """What was measured on several cases, without their histograms; those are added up in ``pixels``, by pixel type,
    and ``foreground``, by pixel type and how the mask was read."""

    measurements: tuple[Measurement, ...]
    pixels: Totals
    foreground: Totals


def measure_cases(tasks: Sequence[MeasureTask]) -> Measurements:
    """Measure several cases; faults of their files are part of the result."""
    pixels, foreground = Totals(), Totals()
    measurements = []
    for measured in map(measure_case, tasks):
        pixels.add(measured.depth, measured.histograms)
        foreground.add((measured.depth, measured.read_as), measured.foreground)
        measurements.append(dataclasses.replace(measured, histograms=(), foreground=()))
    return Measurements(measurements=tuple(measurements), pixels=pixels.united(), foreground=foreground.united())


def measure_case(task: MeasureTask) -> Measurement:
    """Measure one case; faults of its files are part of the result."""
    problems = []
    stack = mask = None
    try:
        stack = read_stack(task.images, task.slicing)
    except FileError as fault:
        problems.append(Problem.of(task.image_file, fault))
    if task.mask is not None and task.mask_file is not None:
        try:
            mask = read_mask_stack(task.mask, task.slicing, stack)
            if task.coding is not None:
                task.coding.encode(mask.values)
        except FileError as fault:
            problems.append(Problem.of(task.mask_file, fault))
    if problems or stack is None:
        return Measurement(case=task.case, problems=tuple(problems))
    raw = np.zeros(stack.shape, np.uint8) if mask is None else mask.values
    values = count_values(raw)
    read_as, labelled = _label_map(raw, values, task.coding)
    occurring = [value for value in (values if labelled is raw else count_values(labelled)) if value > 0]
    foreground = (labelled > 0) & ((labelled != IGNORED) if task.coding else True)
    present = [value for value in occurring if task.coding is None or value != IGNORED][:IGNORED]
    compact = _number(labelled, present)
    small = [resize_mask(slice_map, task.input_size) for slice_map in compact]
    kept = None
    if task.pictures is not None and labelled is raw and _can_be_kept(stack, raw):
        picture = resize_image(stack.pixels[:, 0], task.input_size).astype(np.uint8)
        kept = task.pictures.keep(KeptPicture(picture, np.array([0, *present], np.uint8)[small[0]], raw[0]))
    histograms = tuple(Histogram.of(plane) for plane in stack.pixels)
    middle = _grey(stack, stack.shape[0] // 2)
    foreground_histograms = tuple(Histogram.of(plane[foreground]) for plane in stack.pixels)
    return Measurement(
        case=task.case,
        shape=stack.shape,
        spacing_mm=stack.spacing_mm,
        depth=str(stack.pixels.dtype),
        image_sha256=stack.sha256,
        mask_sha256=mask.sha256 if mask else None,
        histograms=histograms,
        foreground=foreground_histograms,
        intensity=tuple(map(Intensity.of, histograms)),
        foreground_intensity=tuple(map(Intensity.of, foreground_histograms)),
        thumbnail=_thumbnail(middle),
        has_transparency=stack.has_transparency,
        mask_values=values,
        read_as=read_as,
        instances=_count_instances(raw, values),
        labels=_measure_labels(compact, small, present),
        local_width=local_width(_fullest(foreground)) if task.with_width and foreground.any() else None,
        shapes=_measure_shapes(task, stack, labelled, occurring, values, middle) if task.mask_file else (),
        kept=kept,
    )


def _can_be_kept(stack: Stack, mask: NDArray[np.integer]) -> bool:
    """Whether it is one picture, and both it and its mask have eight bits."""
    return stack.shape[0] == 1 and stack.pixels.dtype == np.uint8 and mask.dtype == np.uint8


def _number(labelled: NDArray[np.integer], present: Sequence[int]) -> NDArray[np.uint8]:
    """1, 2, ... where the values are, else 0."""
    compact = np.zeros(labelled.shape, np.uint8)
    for index, value in enumerate(present, start=1):
        np.copyto(compact, np.uint8(index), where=labelled == value)
    return compact


def _measure_shapes(
    task: MeasureTask,
    stack: Stack,
    labelled: NDArray[np.integer],
    labels: Sequence[int],
    values: Mapping[int, int],
    middle: NDArray[np.float32],
) -> tuple[CaseShapes, ...]:
    """The shapes of the labels in evenly spread slices that have any; none of images too large to be quick."""
    if len(labels) > MOST_SHAPES or stack.shape[1] * stack.shape[2] > LARGEST_FOR_SHAPES:
        return ()
    full = np.flatnonzero((labelled > 0).any(axis=(1, 2)))
    shapes = []
    for number in full[:: -(-len(full) // MOST_SHAPE_SLICES) or 1]:
        grey = middle if len(labelled) == 1 else _grey(stack, number)
        found = ((label, labelled[number] == label) for label in labels)
        shapes.append(
            CaseShapes(
                name=task.case,
                mask_file=str(task.mask_file),
                shapes={label: measure_shape(where, grey) for label, where in found if where.any()},
                values=frozenset(values),
            )
        )
    return tuple(shapes)


def _fullest(foreground: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The slice with most foreground."""
    slices: NDArray[np.bool_] = foreground[foreground.sum((1, 2)).argmax()]
    return slices


def count_values(mask: NDArray[np.integer]) -> dict[int, int]:
    """How often each value occurs in a mask, by rising values."""
    largest = int(mask.max())
    ends = {value: int(np.count_nonzero(mask == value)) for value in sorted({0, largest})}
    if sum(ends.values()) == mask.size:  # as in most masks, and several times faster
        return {value: number for value, number in ends.items() if number}
    if mask.dtype in (np.uint8, np.uint16):
        counts = np.bincount(mask.ravel().astype(np.intp))
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, numbers = np.unique(mask, return_counts=True)
    return {int(value): int(number) for value, number in zip(values, numbers, strict=True)}


def local_width(foreground: NDArray[np.bool_]) -> float:
    """The median width of a shape: twice the distance to the background along its skeleton.

    Args:
        foreground: (H, W), true somewhere. What lies outside counts as background.

    Returns:
        The width in pixels: 2 for a line of one pixel.
    """
    from skimage.morphology import skeletonize  # slow to import, needed for few cases

    rows, columns = ndimage.find_objects(foreground.astype(np.uint8))[0]
    padded = np.pad(foreground[rows, columns], 1)
    distances = ndimage.distance_transform_edt(padded)
    skeleton: NDArray[np.bool_] = skeletonize(padded)  # type: ignore[no-untyped-call]
    return float(np.median(2 * distances[skeleton]))


def _label_map(
    mask: NDArray[np.integer], values: Mapping[int, int], coding: MaskCoding | None
) -> tuple[CodingKind, NDArray[np.integer]]:
    """The mask's labels: by its coding, or as its own values suggest before all masks are known."""
    if coding is not None:
        return coding.kind, coding.encode(mask)
    if len(values) > MOST_MASK_VALUES:
        return "binary", (mask > BINARY_CUT).astype(np.uint8)
    return "values", mask


def _measure_labels(
    compact: NDArray[np.uint8], small: Sequence[NDArray[np.uint8]], present: Sequence[int]
) -> dict[int, LabelMeasures]:
    """The measures of each value above 0, numbered in ``compact``; ``small`` are its slices at the input's size."""
    if not present:
        return {}
    labels = range(1, len(present) + 1)
    ceilings = restored_dice(compact, small, labels)
    tiles: list[dict[int, float]] = []
    if min(ceilings.values()) < HIGH_CEILING:
        height, width = compact.shape[1:]
        sizes = [(max(1, round(height * scale)), max(1, round(width * scale))) for scale in TILE_SCALES]
        tiles = [ceiling_dice(compact, size, labels) for size in sizes]
    occupied = compact[tuple(extent(compact, axis) for axis in range(compact.ndim))]
    boxes = ndimage.find_objects(occupied)
    measures = {}
    for index, value in zip(labels, present, strict=True):
        components, _ = ndimage.label(occupied[boxes[index - 1]] == index, structure=np.ones((3, 3, 3)))
        areas = np.bincount(components.ravel())[1:]
        measures[value] = LabelMeasures(
            share=float(areas.sum() / compact.size),
            diameters=tuple(round(float(diameter), 2) for diameter in _diameters(areas, len(compact) > 1)),
            ceiling=ceilings[index],
            tile_ceilings=tuple(ceiling[index] for ceiling in tiles),
        )
    return measures


def _diameters(areas: NDArray[np.integer], are_volumes: bool) -> NDArray[np.float64]:
    """The diameters of the circles, or of the balls, with as many pixels or voxels."""
    return np.cbrt(areas * 6 / np.pi) if are_volumes else np.sqrt(areas * 4 / np.pi)


def _count_instances(mask: NDArray[np.integer], values: Mapping[int, int]) -> int:
    """n where the values above 0 are 1..n and each is one connected component, else 0."""
    n = sum(value > 0 for value in values)
    if n == 0 or max(values) != n:
        return 0
    boxes = ndimage.find_objects(mask.astype(np.int32))
    return n if all(_is_one_component(mask[box] == i) for i, box in enumerate(boxes, start=1)) else 0


def _is_one_component(shape: NDArray[np.bool_]) -> bool:
    _, n = ndimage.label(shape, structure=np.ones((3,) * shape.ndim))
    return bool(n == 1)


def _grey(stack: Stack, number: int) -> NDArray[np.float32]:
    """A slice [H, W] as the sum of its channels."""
    grey: NDArray[np.float32] = stack.pixels[:, number].sum(axis=0, dtype=np.float32)
    return grey


def _thumbnail(grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A slice [H, W], small."""
    small = resize_image(grey[None], (THUMBNAIL_SIDE, THUMBNAIL_SIDE))[0]
    low, high = float(small.min()), float(small.max())
    stretched: NDArray[np.uint8] = np.rint((small - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    return stretched
