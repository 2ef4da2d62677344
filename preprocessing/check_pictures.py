"""Small pictures of rows and of raw files, as data URIs that a page can hold."""

import base64
import functools
import io
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iaunet.contours import find_contour, label_colour
from iaunet.dataset import DEFAULT_SLICING, IGNORED, Slicing
from iaunet.errors import FileError
from iaunet.stacks import read_mask_stack, read_stack
from iaunet.workers import map_in_processes

ROW_SIDE, FILE_SIDE = 256, 320
"""The longer side, in pixels, that a picture of a row or of a raw file has at most."""

CONTOUR_SIDE = 512
"""Contours are drawn on a grid of about this many pixels, so that they stay fine on small rows."""

CONTOUR_THICKNESS = 3
HATCH_PERIOD, HATCH_LINE = 10, 3
JPEG_QUALITY = 80
MOST_VALUES_NAMED = 6

IGNORED_COLOUR = (176, 176, 176)

Role = Literal["image", "mask"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture on the page.

    ``source`` and ``contours`` are data URIs of one shape; the contours, transparent elsewhere, lie over the picture
    and are empty where there are none. Without ``source`` it is a grey card. ``says`` stands below the picture or on
    the card. ``size`` is (height, width) in pixels.
    """

    alt: str
    source: str = ""
    contours: str = ""
    size: tuple[int, int] = (0, 0)
    says: str = ""

    @property
    def n_bytes(self) -> int:
        """What it adds to the page."""
        return len(self.source) + len(self.contours)


@dataclass(frozen=True)
class FileTask:
    """A raw file to show as an image or as a mask: ``alt`` is its alternative text, ``slicing`` how volumes are cut."""

    path: Path
    role: Role
    alt: str
    slicing: Slicing = DEFAULT_SLICING


@dataclass(frozen=True, eq=False)
class Window:
    """The intensities shown as black and as white, [C, 1, 1] each: one window for colour, else one a channel."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @classmethod
    def of(cls, images: Sequence[NDArray[np.generic]]) -> "Window":
        """The percentiles 0.5 and 99.5 of images [C, H, W] taken together.

        So they are all as bright beside each other as they are in truth.
        """
        channels = len(images[0])
        every = [image[:, ::4, ::4].reshape(channels, -1).astype(np.float32) for image in images]
        values = np.concatenate(every, axis=1)
        if channels == 3:
            values = values.reshape(1, -1)
        low, high = np.percentile(values, [0.5, 99.5], axis=1).astype(np.float32)
        return cls(low[:, None, None], np.where(high > low, high, low + 1)[:, None, None])

    def apply(self, image: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Bring an image [C, H, W] to 0 to 255."""
        share = (image.astype(np.float32) - self.low) / (self.high - self.low)
        return np.asarray(np.rint(share.clip(0, 1) * 255), np.uint8)


@dataclass(frozen=True, eq=False)
class RowTask:
    """What the network gets, to be shown.

    ``image`` is [C, H, W]: three channels are shown in colour, others side by side in grey. ``mask`` holds labels
    [H, W]: `IGNORED` is hatched, the others have a contour each. ``window`` says which intensities are black and white.
    """

    image: NDArray[np.generic]
    mask: NDArray[np.uint8]
    window: Window
    alt: str


def draw_rows(tasks: Sequence[RowTask], workers: int) -> list[Picture]:
    """Show rows, drawn in up to ``workers`` processes."""
    return [*map_in_processes(draw_row, tasks, workers)]


def draw_row(task: RowTask) -> Picture:
    """Show a row."""
    shown = _arrange(task.window.apply(task.image))
    masks = np.tile(task.mask, (1, shown.shape[1] // task.mask.shape[1]))
    picture = _shrink(Image.fromarray(shown), ROW_SIDE)
    contours = _contours(masks) if task.mask.any() else ""
    return Picture(alt=task.alt, source=_jpeg(picture), contours=contours, size=(picture.height, picture.width))


def draw_files(tasks: Sequence[FileTask], workers: int) -> dict[FileTask, Picture]:
    """Show raw files, read in up to ``workers`` processes; one that cannot be read is a grey card that says why."""
    different = [*dict.fromkeys(tasks)]
    return dict(zip(different, map_in_processes(_draw_file, different, workers), strict=True))


def _draw_file(task: FileTask) -> Picture:
    try:
        return _draw_mask(task) if task.role == "mask" else _draw_image(task)
    except FileError as fault:
        return Picture(alt=task.alt, says=fault.what)


def _draw_image(task: FileTask) -> Picture:
    stack = read_stack((task.path,), task.slicing)
    middle = stack.shape[0] // 2
    pixels = stack.pixels[:, middle]
    step = _step(pixels.shape[1:])
    sampled = pixels[:, ::step, ::step]
    eight_bits = sampled if sampled.dtype == np.uint8 else Window.of([sampled]).apply(sampled)
    picture = _shrink(Image.fromarray(_arrange(eight_bits)), FILE_SIDE)
    says = f"image {_by(pixels.shape[1:])}, {pixels.dtype}{_slice(middle, stack.shape[0])}"
    return Picture(alt=task.alt, source=_jpeg(picture), size=(picture.height, picture.width), says=says)


def _draw_mask(task: FileTask) -> Picture:
    """Its values as shades of grey, the largest white: 0 and 1 would both be black."""
    slices = read_mask_stack(task.path, task.slicing).values
    found = np.unique(slices)
    fullest = int(np.argmax(np.count_nonzero(slices, axis=(1, 2))))
    values = slices[fullest]
    rows, columns = (range(0, length, _step(values.shape)) for length in values.shape)
    largest = np.maximum.reduceat(np.maximum.reduceat(values, rows, axis=0), columns, axis=1)
    grey = largest.clip(0).astype(np.float32) * (255 / max(1, int(found[-1])))
    picture = _shrink(Image.fromarray(np.rint(grey).astype(np.uint8)), FILE_SIDE)
    more = ", ..." if len(found) > MOST_VALUES_NAMED else ""
    named = ", ".join(map(str, found[:MOST_VALUES_NAMED]))
    says = f"mask {_by(values.shape)}, values {named}{more}{_slice(fullest, len(slices))}"
    return Picture(alt=task.alt, source=_png(picture), size=(picture.height, picture.width), says=says)


def _slice(number: int, n_slices: int) -> str:
    return f", slice {number} of {n_slices}" if n_slices > 1 else ""


def _step(size: Sequence[int]) -> int:
    """Every how many pixels of a very large file are enough, so that showing it takes no more memory than reading."""
    return max(1, max(size) // (4 * FILE_SIDE))


def _arrange(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Eight bits [C, H, W] as a picture: colour [H, W, 3], or grey channels side by side [H, C * W]."""
    arranged = np.moveaxis(image, 0, 2) if len(image) == 3 else np.concatenate([*image], axis=1)
    return np.ascontiguousarray(arranged, np.uint8)


def _contours(mask: NDArray[np.uint8]) -> str:
    factor = max(1, CONTOUR_SIDE // max(mask.shape))
    drawn = np.zeros([side * factor for side in mask.shape], np.uint8)
    (top, left), labels = _around(mask)
    fine = labels.repeat(factor, axis=0).repeat(factor, axis=1)
    top, left = top * factor, left * factor
    target = drawn[top : top + fine.shape[0], left : left + fine.shape[1]]
    found = [label for label in np.flatnonzero(np.bincount(labels.ravel())).tolist() if label]
    if IGNORED in found:
        diagonals = np.add.outer(np.arange(top, top + fine.shape[0]), np.arange(left, left + fine.shape[1]))
        target[(fine == IGNORED) & (diagonals % HATCH_PERIOD < HATCH_LINE)] = IGNORED
        found.remove(IGNORED)
    for label in found:
        target[find_contour(fine == label, CONTOUR_THICKNESS)] = label
    picture = Image.fromarray(drawn).convert("P")
    picture.putpalette(_palette())
    return _png(picture, transparency=0)


@functools.cache
def _palette() -> bytes:
    """The colours of the labels."""
    return bytes([0, 0, 0, *itertools.chain(*map(label_colour, range(1, IGNORED))), *IGNORED_COLOUR])


def _around(mask: NDArray[np.uint8]) -> tuple[tuple[int, int], NDArray[np.uint8]]:
    """The part of a mask that holds all its labels, with room for their contours: (top, left), labels."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    (top, bottom), (left, right) = ((max(0, line[0] - CONTOUR_THICKNESS), line[-1] + 1) for line in (rows, columns))
    return (top, left), mask[top : bottom + CONTOUR_THICKNESS, left : right + CONTOUR_THICKNESS]


def _shrink(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _jpeg(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return _data_uri("image/jpeg", file)


def _png(picture: Image.Image, **options: int) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_type=zlib.Z_RLE, **options)  # half the time, and hardly larger
    return _data_uri("image/png", file)


def _data_uri(kind: str, file: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]} px"
