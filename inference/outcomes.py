"""What came of the images of a folder, and its table predictions.csv."""

import csv
import functools
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from iaunet.inference.postprocessing import PIXELS_AT_ONCE, number_components
from iaunet.stacks import Spacing
from iaunet.storage import write_text

STRIP = 256
"""Rows of a picture that are counted at once."""

Label = TypeVar("Label", bound=np.generic)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskMeasures:
    """The sizes of what a mask marks, one an output of the network.

    ``pixels`` (of a volume: voxels), ``components`` that touch at sides or corners, and where the spacing is known
    ``areas_mm2``, of a volume ``volumes_mm3``.
    """

    pixels: tuple[int, ...] = ()
    components: tuple[int, ...] = ()
    areas_mm2: tuple[float, ...] = ()
    volumes_mm3: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one image: its mask's name and what it marks, or the problem.

    ``expected_dice`` is None where it is not known; ``flag`` says why somebody should look at the mask.
    """

    image: str
    mask: str
    status: Literal["done", "kept", "failed"]
    problem: str = ""
    measures: MaskMeasures = MaskMeasures()
    expected_dice: float | None = None
    flag: str = ""


def measure_mask(
    labels: NDArray[np.uint8], outputs: Sequence[tuple[int, ...]], spacing_mm: Spacing | None
) -> MaskMeasures:
    """Measure what a mask marks.

    Args:
        labels: [slices, H, W].
        outputs: The labels that each output of the network unites.
        spacing_mm: Distance of slices, rows and columns, None if unknown.
    """
    marked = _marked(labels)
    pixels = tuple(sum(int(_unite(strip, output).sum()) for strip in strips(marked)) for output in outputs)
    components = tuple(count_components(marked, output) if n else 0 for output, n in zip(outputs, pixels, strict=True))
    if spacing_mm is None:
        return MaskMeasures(pixels=pixels, components=components)
    if len(labels) == 1:
        area = spacing_mm[1] * spacing_mm[2]
        return MaskMeasures(pixels=pixels, components=components, areas_mm2=tuple(n * area for n in pixels))
    volume = float(np.prod(spacing_mm))
    return MaskMeasures(pixels=pixels, components=components, volumes_mm3=tuple(n * volume for n in pixels))


def _unite(labels: NDArray[np.uint8], output: Sequence[int]) -> NDArray[np.bool_]:
    """Where an output is: a comparison a label is several times faster than `numpy.isin` for a few."""
    united: NDArray[np.bool_] = functools.reduce(np.logical_or, (labels == label for label in output))
    return united


def _marked(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The box of a mask [S, H, W] outside of which nothing is marked, a view."""
    box = []
    for axis in range(labels.ndim):
        there = np.flatnonzero(labels.any(axis=tuple(other for other in range(labels.ndim) if other != axis)))
        box.append(slice(there[0], there[-1] + 1) if len(there) else slice(0))
    return labels[tuple(box)]


def strips(slices: NDArray[Label]) -> Iterator[NDArray[Label]]:
    """The slices [S, H, W] in strips of rows: numpy counts and looks up with 8 bytes a pixel."""
    for picture in slices:
        for top in range(0, len(picture), STRIP):
            yield picture[top : top + STRIP]


def write_outcomes(path: Path, outcomes: Sequence[Outcome], labels: Sequence[str]) -> None:
    """Write the table, a line an image; columns in mm are there where an image tells its spacing.

    Raises:
        WorkspaceError: The disk is full.
    """
    columns: dict[str, str] = {"pixels": "d", "components": "d", "areas_mm2": ".6g", "volumes_mm3": ".6g"}
    used = [
        name
        for name in columns
        if not name.endswith(("mm2", "mm3")) or any(getattr(outcome.measures, name) for outcome in outcomes)
    ]
    headings = [f"{label}_{name.removeprefix('areas_').removeprefix('volumes_')}" for name in used for label in labels]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "mask", "status", "problem", *headings, "expected_dice", "flag"])
    for outcome in outcomes:
        cells: list[str] = []
        for name in used:
            values = getattr(outcome.measures, name)
            cells += [format(value, columns[name]) for value in values] or [""] * len(labels)
        expected = "" if outcome.expected_dice is None else f"{outcome.expected_dice:.4f}"
        writer.writerow([outcome.image, outcome.mask, outcome.status, outcome.problem, *cells, expected, outcome.flag])
    write_text(path, text.getvalue())


def count_components(labels: NDArray[np.uint8], output: Sequence[int]) -> int:
    """How many components an output has, touching at sides or corners.

    They are numbered in bands of `PIXELS_AT_ONCE`, and joined where bands meet: the numbers of all pixels of a large
    mask would take several times its memory.

    Args:
        labels: [slices, H, W]; one slice is a picture, several are a volume.
        output: The labels that the output unites.
    """
    plane = labels[0] if len(labels) == 1 else labels
    step = max(1, PIXELS_AT_ONCE // max(1, plane[0].size))
    n, joints, edge = 0, [], np.zeros(plane.shape[1:], np.int64)
    for start in range(0, len(plane), step):
        numbers, found = number_components(_unite(plane[start : start + step], output))
        if n:
            joints += _joints(edge, _beyond(numbers[0], n))
        edge = _beyond(numbers[-1], n)
        n += found
    if not joints:
        return n
    from scipy import sparse  # slow to import, and needed for large masks alone
    from scipy.sparse import csgraph

    first, second = np.concatenate(joints, axis=1) - 1
    graph = sparse.coo_array((np.ones(len(first), np.int8), (first, second)), shape=(n, n))
    return int(csgraph.connected_components(graph, directed=False)[0])


def _beyond(numbers: NDArray[np.integer], n: int) -> NDArray[np.int64]:
    """Numbers of components that go on after ``n`` others; 0 stays 0."""
    return np.where(numbers > 0, numbers.astype(np.int64) + n, 0)


def _joints(above: NDArray[np.int64], below: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The numbers of components that touch between two layers [...], as pairs [2, n]; nothing where none do."""
    padded = np.pad(above, 1)
    found = []
    for shift in itertools.product(range(3), repeat=above.ndim):
        neighbour = padded[tuple(slice(by, by + side) for by, side in zip(shift, above.shape, strict=True))]
        touch = (neighbour > 0) & (below > 0)
        if touch.any():
            found.append(np.unique(np.stack([neighbour[touch], below[touch]]), axis=1))
    return found
