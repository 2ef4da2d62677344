"""Names masks that can be read and yet seem wrong beside the others: inverted, outlined, or labelled otherwise."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from iaunet.dataset import Problem

ALL_MASKS = "masks"
"""Stands for the file where a problem is one of all masks together."""

LEAST_CASES = 10
"""With fewer cases nobody can say what is usual: the spread of ten numbers is known to a quarter."""

LARGEST_MINORITY = 0.2
"""What a larger share of the cases does is a habit of the data set, and its median describes two kinds at once."""

NEARLY_ALL = 0.9
"""Share of the cases from which on something is said of all masks at once."""

AGREES = 3.5
"""Robust deviations from the median within which a value belongs to the others, the usual cut for outliers with the
median absolute deviation (Iglewicz and Hoaglin, 1993)."""

FRAME_COVERED = 0.9
"""An inverted mask covers the whole frame unless its object touched it. Masks that do so rightly leave corners open:
of 2594 skin lesions one covers more than 0.97."""

HOLE_ENCLOSED = 0.9
"""Share of an inverted mask's background that lies in closed holes. Lesions that fill the frame enclose nothing."""

FRAME_FREE = 0.1
"""Share of the frame up to which foreground lies inside it. The median of polyps, lesions and hippocampi is 0."""

OUTLINE_RATIO = 3.0
"""Filling an outline multiplies its area by at least this. A ring does where its wall is under a tenth of its diameter;
all of 612 polyps do when traced 1 px thick, 97 of 100 when traced 3 px thick."""

OUTLINE_HOLES = 2.0
"""An outline encloses one hole, perhaps a second where it touches itself. The vessels of a retina enclose 4 to 22."""

OUTLINE_WIDTH = 5.0
"""The `MaskShape.width` of a line traced 1 to 3 px thick, whatever it surrounds."""

OUTLINE_RELATIVE_WIDTH = 0.15
"""The same as a share of the diameter of what it surrounds: at 27 px across, a line of 3 px reaches it."""

SOLID_WIDTH = 0.3
"""Width by diameter of the median mask from which on masks are solid: 0.6 for polyps and lesions, 0.03 for vessels, of
which a single loop may well be all that an image shows."""

TELLING = 6.0
"""Robust deviations between a pair of labels and the same pair swapped from which on the two cannot be confused: each
then lies within 3 of its own."""

LEAST_SPREADS = (0.1, 0.1, 0.02, 0.02)
"""The spread assumed at least of the contrasts of `_contrast`, about what two careful annotators differ by: a tenth of
the area, of the image's standard deviation, a fiftieth of its sides."""

FEW = 0.05
"""A value that is the only one of at most this share of the masks may be a slip; more often it is a class."""

FULL_SCALE = (255, 65535)
"""Values that stand for 1 where a mask was saved for the eye."""


@dataclass(frozen=True, kw_only=True)
class MaskShape:
    """The shape of one label in one image.

    ``share`` is its share of the pixels, ``border_share`` its share of those in the image's outermost rows and columns.
    ``filled_ratio`` is its area after filling its holes, divided by its own. ``holes_per_part`` is the number of its
    holes divided by that of its connected parts, both weighted by area, so that specks do not matter. ``width`` is
    twice the largest chessboard distance to what is not it, in pixels: 2 for a line of one or two pixels, 4 for three.
    ``diameter`` is the equivalent diameter in pixels of a part when filled. ``relative_intensity`` is its mean less
    that of the rest, in standard deviations of the image; 0 in a constant image. ``centre`` is its centre of mass
    (row, column) as a share of height and width.
    """

    share: float
    border_share: float
    filled_ratio: float
    holes_per_part: float
    width: float
    diameter: float
    relative_intensity: float
    centre: tuple[float, float]

    @property
    def enclosed_background(self) -> float:
        """The share of what is not it that lies in its holes, 0 to 1."""
        return self.share * (self.filled_ratio - 1) / (1 - self.share) if self.share < 1 else 0.0

    @property
    def is_outline(self) -> bool:
        """Whether it is a closed thin line around an area."""
        return (
            self.filled_ratio >= OUTLINE_RATIO
            and self.holes_per_part <= OUTLINE_HOLES
            and self.width <= max(OUTLINE_WIDTH, OUTLINE_RELATIVE_WIDTH * self.diameter)
        )


@dataclass(frozen=True, kw_only=True)
class CaseShapes:
    """The labels of one image of a case.

    ``shapes`` maps each label that occurs to its shape; numbered instances are one label. ``values`` are the raw values
    of the mask, with or without 0. The slices of a volume are entries of one ``name``.
    """

    name: str
    mask_file: str
    shapes: Mapping[int, MaskShape]
    values: frozenset[int]


def measure_shape(label_map: NDArray[np.bool_], grey: NDArray[np.float32]) -> MaskShape:
    """Measure the shape of one label in one image.

    Args:
        label_map: (H, W), true where the label is, which is somewhere.
        grey: (H, W), the image; finite.

    Raises:
        ValueError: The label is nowhere, or the sizes differ.
    """
    if label_map.shape != grey.shape:
        raise ValueError(f"label map is {label_map.shape}, its image {grey.shape}")
    area = int(np.count_nonzero(label_map))
    if area == 0:
        raise ValueError("label map is empty")
    rows, columns = extent(label_map, 0), extent(label_map, 1)
    padded = np.pad(label_map[rows, columns], 1)
    parts = _areas(padded, diagonal=True)
    holes = _hole_areas(padded)
    filled = area + float(holes.sum())
    n_parts = _effective_number(parts)
    return MaskShape(
        share=area / label_map.size,
        border_share=_border_share(label_map),
        filled_ratio=filled / area,
        holes_per_part=_effective_number(holes) / n_parts,
        width=2.0 * float(ndimage.distance_transform_cdt(padded).max()),
        diameter=math.sqrt(filled / n_parts * 4 / math.pi),
        relative_intensity=_relative_intensity(label_map, grey, area),
        centre=(_centre(padded, 1, rows, len(label_map)), _centre(padded, 0, columns, len(label_map.T))),
    )


def find_suspicions(cases: Sequence[CaseShapes]) -> list[Problem]:
    """Find the masks that seem wrong beside the others.

    Args:
        cases: Of the whole data set, those without foreground among them; cases without a mask file are left out.

    Returns:
        A fault for each mask whose one value is 255 where the others' is 1, or the reverse, and for each inverted one.
        A note for each that is an outline, has two labels swapped or a rare value, and for what concerns all masks.
        Sorted by kind, label and the order of the cases.
    """
    joined = _join_slices(cases)
    has_one_label = all(len(case.shapes) <= 1 for case in joined)
    problems = list(_strange_values(joined))
    for label in sorted({0} if has_one_label else {label for case in joined for label in case.shapes}):
        subject = "mask" if has_one_label else f"label {label}"
        shapes = {
            case.mask_file: shape
            for case in joined
            for own, shape in case.shapes.items()
            if has_one_label or own == label
        }
        if len(shapes) >= LEAST_CASES:
            problems += _inverted(subject, shapes)
            problems += _outlines(subject, shapes)
    problems += _swapped(joined)
    return problems


def extent(mask: NDArray[np.generic], axis: int) -> slice:
    """From the first to the last place along an axis where a mask, which is not empty, holds anything."""
    places = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
    return slice(int(places[0]), int(places[-1]) + 1)


def _centre(padded: NDArray[np.bool_], axis: int, own: slice, side: int) -> float:
    """The centre of mass along the axis that is not summed over, 0 to 1, of what lies at ``own`` of its pixels."""
    counts = padded.sum(axis=axis)[1:-1]
    return float(np.average(np.arange(own.start, own.stop) + 0.5, weights=counts) / side)


def _areas(shape: NDArray[np.bool_], diagonal: bool = False) -> NDArray[np.int64]:
    """The areas of its connected components, in the order of their first pixel."""
    components, _ = ndimage.label(shape, structure=np.ones((3, 3)) if diagonal else None)
    return np.bincount(components.ravel())[1:]


def _hole_areas(padded: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The areas of the holes of a shape that leaves the frame free."""
    return _areas(~padded)[1:]  # the first holds the frame: the outside


def _effective_number(areas: NDArray[np.int64]) -> float:
    """The number of areas of one size that are as unlike as these (inverse Simpson index), 0 for none."""
    sizes = areas.astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def _border_share(label_map: NDArray[np.bool_]) -> float:
    frame = np.concatenate([label_map[0], label_map[-1], label_map[1:-1, 0], label_map[1:-1, -1]])
    return float(frame.mean())


def _relative_intensity(label_map: NDArray[np.bool_], grey: NDArray[np.float32], area: int) -> float:
    others = label_map.size - area
    if others == 0 or grey.min() == grey.max():  # rounding gives a constant image some deviation
        return 0.0
    centred = grey.astype(np.float64)
    centred -= centred.mean()
    inside = float(centred[label_map].sum())  # and all else is as much less
    return inside * (1 / area + 1 / others) * math.sqrt(centred.size / float(np.vdot(centred, centred)))


def _join_slices(cases: Sequence[CaseShapes]) -> list[CaseShapes]:
    """One entry a name, in the order of their first."""
    by_name = defaultdict(list)
    for case in cases:
        by_name[case.name].append(case)
    return [_joined(slices) if len(slices) > 1 else slices[0] for slices in by_name.values()]


def _joined(slices: Sequence[CaseShapes]) -> CaseShapes:
    shapes = defaultdict(list)
    for one in slices:
        for label, shape in one.shapes.items():
            shapes[label].append(shape)
    return CaseShapes(
        name=slices[0].name,
        mask_file=slices[0].mask_file,
        shapes={label: _mean(found, len(slices)) for label, found in shapes.items()},
        values=frozenset(value for one in slices for value in one.values),
    )


def _mean(shapes: Sequence[MaskShape], n_slices: int) -> MaskShape:
    """The shape of a label in a volume: shares over all slices, the rest weighted with the label's pixels."""
    shares = np.array([shape.share for shape in shapes])
    contrasts = shares * (1 - shares)  # so that the rest of the volume has the opposite intensity
    intensities = [shape.relative_intensity for shape in shapes]

    def weighted(values: Sequence[float]) -> float:
        return float(np.average(values, weights=shares))

    return MaskShape(
        share=float(shares.sum()) / n_slices,
        border_share=sum(shape.border_share for shape in shapes) / n_slices,
        filled_ratio=weighted([shape.filled_ratio for shape in shapes]),
        holes_per_part=weighted([shape.holes_per_part for shape in shapes]),
        width=weighted([shape.width for shape in shapes]),
        diameter=weighted([shape.diameter for shape in shapes]),
        relative_intensity=float(np.average(intensities, weights=contrasts)) if contrasts.any() else 0.0,
        centre=(weighted([shape.centre[0] for shape in shapes]), weighted([shape.centre[1] for shape in shapes])),
    )


def _strange_values(cases: Sequence[CaseShapes]) -> Iterator[Problem]:
    """Masks of one value that is not the value of the others."""
    if any(len(case.values - {0}) > 1 for case in cases):
        return
    own = {case.mask_file: value for case in cases for value in case.values - {0}}
    counts = Counter(own.values())
    if len(counts) < 2:
        return
    usual = max(sorted(counts), key=counts.__getitem__)
    others = {file: value for file, value in own.items() if value != usual}
    are_few = len(own) >= LEAST_CASES and len(others) <= FEW * len(own)
    for file, value in others.items():
        what = f"mask uses {value} where the others use {usual}"
        if 1 in (value, usual) and (value in FULL_SCALE or usual in FULL_SCALE):
            yield Problem(level="fault", file=file, what=what, mend=f"save it with {usual} in place of {value}")
        elif are_few:
            yield _note(file, what, f"save it with {usual}, unless {value} is a label of its own")


def _inverted(subject: str, shapes: Mapping[str, MaskShape]) -> Iterator[Problem]:
    """Masks that cover the frame around a hole that is like what the others mark."""
    covering = [shape for shape in shapes.values() if shape.share > 0.5 and shape.border_share >= FRAME_COVERED]
    if len(covering) >= NEARLY_ALL * len(shapes):
        what = f"{subject} covers most of the image and its border in {len(covering)} of {len(shapes)} masks"
        yield _note(ALL_MASKS, what, "invert all masks, if what they mark is what they leave out")
        return
    around = {file: shape for file, shape in shapes.items() if _is_around_hole(shape)}
    rest = [shape for file, shape in shapes.items() if file not in around]
    is_minority = 0 < len(around) <= LARGEST_MINORITY * len(shapes)
    if not is_minority or np.median([shape.border_share for shape in rest]) > FRAME_FREE:
        return
    size = _Usual.of([math.log(shape.share) for shape in rest], least_spread=LEAST_SPREADS[0])
    intensity = _Usual.of([shape.relative_intensity for shape in rest], least_spread=LEAST_SPREADS[1])
    for file, shape in around.items():
        hole_fits = size.deviation(math.log(1 - shape.share)) <= AGREES
        if hole_fits and intensity.deviation(-shape.relative_intensity) <= AGREES:
            what = f"{subject} seems inverted: it covers the border around a hole that is like what the others mark"
            yield Problem(level="fault", file=file, what=what, mend="swap foreground and background")


def _is_around_hole(shape: MaskShape) -> bool:
    return shape.border_share >= FRAME_COVERED and shape.enclosed_background >= HOLE_ENCLOSED


def _outlines(subject: str, shapes: Mapping[str, MaskShape]) -> Iterator[Problem]:
    """Masks that are thin closed lines: each by name where the others are solid, else all at once."""
    outlined = [file for file, shape in shapes.items() if shape.is_outline]
    rest = [shape.width / shape.diameter for shape in shapes.values() if not shape.is_outline]
    mend = "fill it if it means the area inside"
    if len(outlined) >= NEARLY_ALL * len(shapes):
        what = f"{subject} is a closed thin outline in {len(outlined)} of {len(shapes)} masks"
        yield _note(ALL_MASKS, what, mend)
    elif len(outlined) <= LARGEST_MINORITY * len(shapes) and np.median(rest) >= SOLID_WIDTH:
        for file in outlined:
            yield _note(file, f"{subject} is a closed thin outline, the others are solid", mend)


def _swapped(cases: Sequence[CaseShapes]) -> Iterator[Problem]:
    """Masks in which a pair of labels agrees with the other masks only when swapped."""
    labels = sorted({label for case in cases for label in case.shapes})
    found = {pair: _gains_by_swapping(*pair, cases) for pair in combinations(labels, 2)}
    for case in cases:
        gains = {pair: files[case.mask_file] for pair, files in found.items() if case.mask_file in files}
        if gains:  # a label between two that are swapped seems swapped with each of them, but gains less by it
            first, second = max(gains, key=gains.__getitem__)
            what = f"labels {first} and {second} seem swapped: they fit the other masks only the other way round"
            yield _note(case.mask_file, what, "swap them, unless the image is mirrored")


def _gains_by_swapping(first: int, second: int, cases: Sequence[CaseShapes]) -> dict[str, float]:
    """By mask file how much better two labels fit when swapped, where that makes them fit; empty if it is a habit."""
    contrasts = {
        case.mask_file: _contrast(case.shapes[first], case.shapes[second])
        for case in cases
        if first in case.shapes and second in case.shapes
    }
    if len(contrasts) < LEAST_CASES:
        return {}
    columns = zip(*contrasts.values(), strict=True)
    usual = [_Usual.of(column, spread) for column, spread in zip(columns, LEAST_SPREADS, strict=True)]
    gains = {}
    for file, contrast in contrasts.items():
        before = [one.deviation(number) for one, number in zip(usual, contrast, strict=True)]
        after = [one.deviation(-number) for one, number in zip(usual, contrast, strict=True)]
        speaks = any(one.sets_apart and far >= TELLING for one, far in zip(usual, before, strict=True))
        if speaks and max(after) <= AGREES:
            gains[file] = sum(before) - sum(after)
    return gains if len(gains) <= LARGEST_MINORITY * len(contrasts) else {}


def _contrast(first: MaskShape, second: MaskShape) -> tuple[float, float, float, float]:
    """How two labels of a case differ in size, intensity and place; swapping them changes each sign."""
    return (
        math.log(first.share / second.share),
        first.relative_intensity - second.relative_intensity,
        first.centre[0] - second.centre[0],
        first.centre[1] - second.centre[1],
    )


@dataclass(frozen=True)
class _Usual:
    """What is usual of a number: its median, and the median absolute deviation as a standard deviation."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float], least_spread: float) -> "_Usual":
        median = float(np.median(values))
        deviation = float(np.median(np.abs(np.subtract(values, median))))
        return cls(median, max(1.4826 * deviation, least_spread))

    @property
    def sets_apart(self) -> bool:
        """Whether a value and its opposite cannot be confused."""
        return 2 * abs(self.median) >= TELLING * self.spread

    def deviation(self, value: float) -> float:
        """How far a value lies from the median, in spreads."""
        return abs(value - self.median) / self.spread


def _note(file: str, what: str, mend: str) -> Problem:
    return Problem(level="note", file=file, what=what, mend=mend)
