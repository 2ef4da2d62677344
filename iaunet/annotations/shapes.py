"""Labelled shapes as annotation files give them, and the one rule by which they become pixels.

Pixel (row y, column x) covers [x, x + 1) times [y, y + 1), its centre lies at (x + 0.5, y + 0.5). It belongs to a
polygon when its centre lies inside; a centre on an edge belongs to the polygon on the right of that edge or below
it. So polygons that share an edge share no pixel and lose none.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from iaunet.dataset import Problem
from iaunet.errors import FileError
from iaunet.files import FORMATS, decode_mask

LARGEST_COORDINATE = 1e9
"""Coordinates beyond this, in pixels, are no coordinates."""

_CROSSINGS_AT_ONCE = 2**22
_OTHER_ENDINGS = (".gif", ".webp", ".jp2", ".dcm", ".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, eq=False)
class Patch:
    """The pixels a shape covers: ``inside`` [h, w] bool, whose first pixel is (``row``, ``column``) of the image."""

    row: int
    column: int
    inside: NDArray[np.bool_]


class Outline(Protocol):
    """What bounds a shape."""

    def cover(self, size: Size) -> Patch:
        """The pixels inside, cut to an image of this size.

        Raises:
            FileError: It cannot belong to an image of this size, or is damaged.
        """

    def reach(self, size: Size) -> tuple[float, float, float, float]:
        """Least and largest x, least and largest y, in pixels of an image of this size."""

    def content(self) -> bytes:
        """Bytes that are equal for equal outlines only."""


@dataclass(frozen=True, eq=False)
class Polygons:
    """Rings of points, each [n, 2] float64 as (x, y); holes by the even-odd rule.

    Points are in pixels or, where ``normalised``, in shares of the image's width and height.
    """

    rings: tuple[NDArray[np.float64], ...]
    normalised: bool = False

    def cover(self, size: Size) -> Patch:
        """See `Outline.cover`."""
        return _fill(self._in_pixels(size), size)

    def reach(self, size: Size) -> tuple[float, float, float, float]:
        """See `Outline.reach`."""
        points = np.concatenate(self._in_pixels(size))
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return left, right, top, bottom

    def content(self) -> bytes:
        """See `Outline.content`."""
        counts = [len(ring) for ring in self.rings]
        return repr(("polygons", self.normalised, counts)).encode() + b"".join(ring.tobytes() for ring in self.rings)

    def _in_pixels(self, size: Size) -> Sequence[NDArray[np.float64]]:
        height, width = size
        return [ring * (width, height) for ring in self.rings] if self.normalised else self.rings


@dataclass(frozen=True, eq=False)
class Circle:
    """All points at most ``radius`` pixels away from (``x``, ``y``)."""

    x: float
    y: float
    radius: float

    def cover(self, size: Size) -> Patch:
        """See `Outline.cover`."""
        left, right, top, bottom = self.reach(size)
        rows, columns = _centres(top, bottom, size[0]), _centres(left, right, size[1])
        if not len(rows) or not len(columns):
            return Patch(0, 0, np.zeros((0, 0), np.bool_))
        room = self.radius**2 - (rows - self.y) ** 2
        inside = (columns - self.x) ** 2 <= room[:, None]
        return Patch(int(rows[0]), int(columns[0]), inside)

    def reach(self, size: Size) -> tuple[float, float, float, float]:
        """See `Outline.reach`."""
        return self.x - self.radius, self.x + self.radius, self.y - self.radius, self.y + self.radius

    def content(self) -> bytes:
        """See `Outline.content`."""
        return b"circle" + struct.pack("<3d", self.x, self.y, self.radius)


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of pixels down the columns, one column after the other: ``starts`` (from 0) and ``lengths``, both int64.

    ``size`` is the image size they were made for, None when the file does not say it.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    size: Size | None = None

    def cover(self, size: Size) -> Patch:
        """See `Outline.cover`."""
        height, width = size
        if self.size is not None and self.size != size:
            raise FileError(
                f"run lengths are for an image of {self.size[0]} x {self.size[1]} pixels, it has {height} x {width}",
                "export the annotations again from these very images",
            )
        ends = self.starts + self.lengths
        last = int(ends.max(initial=0))
        if last > height * width:
            raise FileError(
                f"a run ends at pixel {last}, the image has {height * width} ({height} x {width})",
                "check that the run lengths are those of this image",
            )
        first_column = int(self.starts.min(initial=last)) // height
        n_columns = -(-last // height) - first_column
        steps = np.zeros(n_columns * height + 1, np.int32)
        np.add.at(steps, self.starts - first_column * height, 1)
        np.add.at(steps, ends - first_column * height, -1)
        inside = np.cumsum(steps[:-1], dtype=np.int32) > 0
        return Patch(0, first_column, inside.reshape(n_columns, height).T)

    def reach(self, size: Size) -> tuple[float, float, float, float]:
        """See `Outline.reach`; runs are never outside, `cover` refuses those that are."""
        return 0.0, float(size[1]), 0.0, float(size[0])

    def content(self) -> bytes:
        """See `Outline.content`."""
        return repr(("runs", self.size)).encode() + self.starts.tobytes() + self.lengths.tobytes()


@dataclass(frozen=True, eq=False)
class Bitmap:
    """A mask as the bytes of a PNG file, whose first pixel is (``row``, ``column``) of the image; above 0 is inside."""

    png: bytes
    row: int
    column: int

    def cover(self, size: Size) -> Patch:
        """See `Outline.cover`."""
        inside = decode_mask(self.png) > 0
        above, before = max(0, -self.row), max(0, -self.column)
        row, column = self.row + above, self.column + before
        within = inside[above:, before:][: max(0, size[0] - row), : max(0, size[1] - column)]
        return Patch(row, column, within)

    def reach(self, size: Size) -> tuple[float, float, float, float]:
        """See `Outline.reach`; the size is that of the PNG's header."""
        width, height = struct.unpack(">2I", self.png[16:24].ljust(8, b"\0"))
        return float(self.column), float(self.column + width), float(self.row), float(self.row + height)

    def content(self) -> bytes:
        """See `Outline.content`."""
        return repr(("bitmap", self.row, self.column)).encode() + self.png


@dataclass(frozen=True, eq=False)
class Shape:
    """One labelled shape. ``place`` says where in its file it stands, for messages: ``shape 3``, ``line 12``."""

    label: str
    outline: Outline
    place: str


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """The shapes of one image.

    ``names`` are what the image may go by, best first: a path or name, "/" between parts, without ending. ``size`` is
    the one the annotation tells, if it does. ``file`` is the annotation file as messages show it. ``is_faulty`` tells
    that some of its shapes could not be read, so that those that could are not the whole mask.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    size: Size | None
    file: str
    is_faulty: bool = False


@dataclass(frozen=True, eq=False)
class Annotations:
    """What the annotation files of a folder hold.

    ``labels`` are the names in the order of the format's own table; empty where it has none.
    """

    images: tuple[AnnotatedImage, ...]
    labels: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, eq=False)
class Drawing:
    """A label map [height, width], uint8 or uint16.

    ``painted_over`` counts the pixels where a shape covered one of another label, ``vanished`` the shapes too small
    or too far outside to cover any.
    """

    pixels: NDArray[np.generic]
    painted_over: int
    vanished: int


def draw(shapes: Iterable[Shape], size: Size, values: Mapping[str, int]) -> Drawing:
    """Draw shapes into one label map, later ones over earlier ones.

    Args:
        shapes: In the order of their file.
        size: (height, width) of the image in pixels.
        values: The value of each label, 1 to 65535.

    Raises:
        FileError: A shape cannot belong to an image of this size; the message tells its place.
    """
    pixels = np.zeros(size, np.uint8 if max(values.values(), default=0) <= 255 else np.uint16)
    painted_over = vanished = 0
    for shape in shapes:
        value = values[shape.label]
        patch = _cover(shape, size)
        vanished += not patch.inside.any()
        height, width = patch.inside.shape
        below = pixels[patch.row : patch.row + height, patch.column : patch.column + width]
        painted_over += int(np.count_nonzero(patch.inside & (below != 0) & (below != value)))
        below[patch.inside] = value
    return Drawing(pixels, painted_over, vanished)


def shapes_digest(shapes: Iterable[Shape]) -> str:
    """SHA-256 of labels and outlines, in order."""
    total = hashlib.sha256()
    for shape in shapes:
        total.update(hashlib.sha256(shape.label.encode("utf-8", "backslashreplace")).digest())
        total.update(hashlib.sha256(shape.outline.content()).digest())
    return total.hexdigest()


def ring(points: Any) -> NDArray[np.float64]:
    """Check the points of a polygon.

    Args:
        points: Pairs (x, y), as parsed from a file.

    Returns:
        [n, 2] float64, n at least 3.

    Raises:
        FileError: They are no pairs of numbers, fewer than three, not finite or beyond `LARGEST_COORDINATE`.
    """
    pairs = coordinates(points)
    if len(pairs) < 3:
        raise FileError(f"polygon has {len(pairs)} points", "give it at least 3, or remove it")
    return pairs


def coordinates(points: Any) -> NDArray[np.float64]:
    """Points as [n, 2] float64, n at least 1; see `ring` for what is refused."""
    try:
        pairs = np.array(points, np.float64)
    except (ValueError, TypeError, OverflowError) as fault:
        raise FileError("points are not pairs of numbers", "correct them in the labelling tool") from fault
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise FileError("points are not pairs of numbers", "correct them in the labelling tool")
    if not (np.abs(pairs) <= LARGEST_COORDINATE).all():  # nan compares false
        raise FileError("points hold nan, infinite or absurdly large coordinates", "correct them, or remove the shape")
    return pairs


def image_name(text: str) -> str:
    """The name of an image as annotations give it: "/" between parts, no drive, no ``..``, no image's ending, NFC."""
    parts = [
        part for part in normalize("NFC", text.strip()).replace("\\", "/").split("/") if part not in ("", ".", "..")
    ]
    if parts and parts[0].endswith(":"):
        parts = parts[1:]
    path = "/".join(parts)
    for ending in (*FORMATS, *_OTHER_ENDINGS):
        if path.lower().endswith(ending):
            return path[: -len(ending)]
    return path


def base_name(name: str) -> str:
    """The last part of what `image_name` gave."""
    return PurePosixPath(name).name


def at(place: str, fault: FileError) -> FileError:
    """The same fault, with its place in the file told first."""
    return FileError(f"{place}: {fault.what}", fault.mend)


def _cover(shape: Shape, size: Size) -> Patch:
    try:
        return shape.outline.cover(size)
    except FileError as fault:
        raise at(shape.place, fault) from fault


def _centres(low: float, high: float, length: int) -> NDArray[np.float64]:
    """Centres of the pixels from one coordinate to another, within an axis of this length."""
    first, last = np.clip([np.floor(low), np.ceil(high)], 0, length)
    return np.arange(first, last) + 0.5


def _fill(rings: Sequence[NDArray[np.float64]], size: Size) -> Patch:
    """Even-odd scan conversion: each edge flips all pixels of a row from where it crosses the row's centre line."""
    starts, ends = np.concatenate(rings), np.concatenate([np.roll(points, -1, axis=0) for points in rings])
    falls = (starts[:, 1] > ends[:, 1])[:, None]
    upper, lower = np.where(falls, ends, starts), np.where(falls, starts, ends)  # one direction: one rounding
    first, last = _first_centre(upper[:, 1], size[0]), _first_centre(lower[:, 1], size[0])
    columns = _first_centre(starts[:, 0], size[1])
    top, bottom, left, right = (int(n) for n in (first.min(), last.max(), columns.min(), columns.max()))
    flips = np.zeros((bottom - top, right - left + 1), np.uint8)
    n_rows = last - first
    for edges in _blocks(n_rows):
        n = n_rows[edges]
        edge = np.repeat(edges, n)
        row = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + first[edge]
        run, rise = (lower - upper)[edge].T
        crossing = upper[edge, 0] + (row + 0.5 - upper[edge, 1]) * (run / rise)
        column = np.clip(_first_centre(crossing, size[1]), left, right)
        np.add.at(flips.reshape(-1), (row - top) * flips.shape[1] + column - left, 1)
    inside = np.cumsum(flips[:, :-1], axis=1, dtype=np.uint8) % 2 == 1  # wraps at 256, which keeps what is odd
    return Patch(top, left, inside)


def _first_centre(coordinate: NDArray[np.float64], length: int) -> NDArray[np.int64]:
    """The first pixel of an axis whose centre is not before a coordinate, ``length`` if there is none."""
    return np.clip(np.ceil(coordinate - 0.5), 0, length).astype(np.int64)


def _blocks(n_rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The edges that cross rows, in parts that fit the memory however many there are."""
    edges = np.flatnonzero(n_rows)
    if not len(edges):
        return []
    total = np.cumsum(n_rows[edges])
    cuts = np.searchsorted(total, np.arange(_CROSSINGS_AT_ONCE, total[-1], _CROSSINGS_AT_ONCE))
    return [block for block in np.split(edges, cuts) if len(block)]
