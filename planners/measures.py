"""What is measured on one case: everything the fingerprint needs, from one decoding of each file."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from iaunet.dataset import BINARY_CUT, MaskCoding, Problem
from iaunet.errors import FileError
from iaunet.files import decode_image, decode_mask, read_bytes
from iaunet.planners.histogram import Histogram, Intensity
from iaunet.resample import Size, ceiling_dice, resize_image

MOST_MASK_VALUES = 32
"""A mask with more values is no map of labels."""

THUMBNAIL_SIDE = 32

CodingKind = Literal["values", "binary", "nonzero"]


@dataclass(frozen=True, kw_only=True)
class MeasureTask:
    """A case to measure.

    ``coding`` is how to read its mask, None before all masks were judged: then the mask's own values decide.
    ``input_size`` is the (height, width) the ceiling is taken for. ``with_width`` asks for the local width.
    """

    case: str
    image: Path
    image_file: str
    mask: Path | None
    mask_file: str | None
    input_size: Size
    with_width: bool
    coding: MaskCoding | None = None


@dataclass(frozen=True, kw_only=True)
class LabelMeasures:
    """One label in one case: ``share`` of the pixels, equivalent ``diameters`` of its components in native pixels,
    and ``ceiling``, the Dice of its mask taken to the input's size and back."""

    share: float
    diameters: tuple[float, ...]
    ceiling: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """What was measured on a case.

    ``problems`` is empty unless a file cannot be used, and then the rest is empty. ``size`` is (height, width).
    ``labels`` holds the measures by label, or by raw mask value where no coding was given. ``mask_values`` counts
    the raw values. ``instances`` is n where the values are 1..n, a connected component each, else 0.
    ``local_width`` is in native pixels. ``thumbnail`` is 32x32 grey, uint8.
    """

    case: str
    problems: tuple[Problem, ...] = ()
    size: Size = (0, 0)
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

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return len(self.intensity)

    def without_histograms(self) -> "Measurement":
        """The measurement without what takes most of its memory; the statistics stay."""
        return dataclasses.replace(self, histograms=(), foreground=())


def measure_case(task: MeasureTask) -> Measurement:
    """Measure one case; faults of its files are part of the result."""
    problems = []
    image_bytes = mask_bytes = b""
    image = mask = None
    try:
        image_bytes = read_bytes(task.image)
        image = decode_image(image_bytes)
    except FileError as fault:
        problems.append(Problem.of(task.image_file, fault))
    if task.mask is not None and task.mask_file is not None:
        try:
            mask_bytes = read_bytes(task.mask)
            mask = decode_mask(mask_bytes)
            if image is not None and mask.shape != image.size:
                raise FileError(
                    f"mask is {_by(mask.shape)}, its image {_by(image.size)} (height x width)",
                    "bring the mask to the image's size, or find the mask that belongs to it",
                )
        except FileError as fault:
            problems.append(Problem.of(task.mask_file, fault))
    if problems or image is None:
        return Measurement(case=task.case, problems=tuple(problems))
    if mask is None:
        mask = np.zeros(image.size, np.uint8)
    values = count_values(mask)
    read_as, labelled = _label_map(mask, values, task.coding)
    foreground = labelled > 0
    histograms = tuple(Histogram.of(plane) for plane in image.pixels)
    foreground_histograms = tuple(Histogram.of(plane[foreground]) for plane in image.pixels)
    return Measurement(
        case=task.case,
        size=image.size,
        depth=str(image.pixels.dtype),
        image_sha256=hashlib.sha256(image_bytes).hexdigest(),
        mask_sha256=hashlib.sha256(mask_bytes).hexdigest() if task.mask else None,
        histograms=histograms,
        foreground=foreground_histograms,
        intensity=tuple(map(Intensity.of, histograms)),
        foreground_intensity=tuple(map(Intensity.of, foreground_histograms)),
        thumbnail=_thumbnail(image.pixels),
        has_transparency=image.has_transparency,
        mask_values=values,
        read_as=read_as,
        instances=_count_instances(mask, values),
        labels=_measure_labels(labelled, task.input_size),
        local_width=local_width(foreground) if task.with_width and foreground.any() else None,
    )


def count_values(mask: NDArray[np.integer]) -> dict[int, int]:
    """How often each value occurs in a mask."""
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
    from skimage.morphology import skeletonize  # half a second to import, needed for 200 cases at most

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


def _measure_labels(labelled: NDArray[np.integer], input_size: Size) -> dict[int, LabelMeasures]:
    """The measures of each value above 0."""
    present = [value for value in count_values(labelled) if value > 0]
    if not present:
        return {}
    compact = np.zeros(labelled.shape, np.uint8)
    for index, value in enumerate(present, start=1):
        compact[labelled == value] = index
    ceilings = ceiling_dice(compact, input_size, range(1, len(present) + 1))
    measures = {}
    for index, value in enumerate(present, start=1):
        components, _ = ndimage.label(compact == index, structure=np.ones((3, 3)))
        areas = np.bincount(components.ravel())[1:]
        diameters = np.sqrt(areas * 4 / np.pi)
        measures[value] = LabelMeasures(
            share=float(areas.sum() / labelled.size),
            diameters=tuple(round(float(diameter), 2) for diameter in diameters),
            ceiling=ceilings[index],
        )
    return measures


def _count_instances(mask: NDArray[np.integer], values: Mapping[int, int]) -> int:
    """n where the values above 0 are 1..n and each is one connected component, else 0."""
    n = sum(value > 0 for value in values)
    if n == 0 or max(values) != n:
        return 0
    boxes = ndimage.find_objects(mask.astype(np.int32))
    return n if all(_is_one_component(mask[box] == i) for i, box in enumerate(boxes, start=1)) else 0


def _is_one_component(shape: NDArray[np.bool_]) -> bool:
    _, n = ndimage.label(shape, structure=np.ones((3, 3)))
    return bool(n == 1)


def _thumbnail(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    small: NDArray[np.float32] = resize_image(pixels, (THUMBNAIL_SIDE, THUMBNAIL_SIDE)).mean(axis=0)
    low, high = float(small.min()), float(small.max())
    stretched: NDArray[np.uint8] = np.rint((small - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    return stretched


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
