"""Predicts masks with a model that iaunet exported, without iaunet: needs numpy, Pillow and onnxruntime alone.

On the command line ``python iaunet_runtime.py -i IMAGES -o MASKS``; in Python ``Runtime(folder).predict("image.png")``.
Axes are always (height, width), arrays (channels, height, width). Every step is the one that iaunet takes, and its
tests hold both to the same pixels.
"""

import argparse
import csv
import hashlib
import io
import json
import logging
import math
import os
import re
import secrets
import struct
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

logger = logging.getLogger("iaunet_runtime")

SETTINGS, MODEL, TABLE = "runtime.json", "model.onnx", "predictions.csv"
SETTINGS_VERSION = 1
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".dcm")
WORKSPACE = "iaunet_workspace"
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "original", "imagestr")
MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "ground truth", "ground_truth", "groundtruth", "gt"),
    *("segmentations", "annotations", "labelstr"),
)
MASK_SUFFIXES = ("_segmentation", "_masks", "_mask", "_seg")
MADE_FROM = "iaunet:made-from"
TEMPORARY = ".iaunet-tmp"
BATCH = 4
MAX_PIXELS, MAX_PNG_PIXELS = 178_956_970, 2**29
MOST_DENSE_JPEG, MOST_DENSE_PNG = 1024, 1032
PIXELS_AT_ONCE = 1 << 20
MOST_MEASURED = 2**24
LARGEST_INTENSITY, SD_FLOOR = 64.0, 1e-6
TILE_OVERLAP, TILE_SIGMA = 0.5, 1 / 8
AGAIN = "copy the exported folder again, or export the model again"

DEEP_LAYOUTS = (";16B", ";16L", ";16N")
GREY_MODES = {"1", "L", "LA", "I;16", "I;16L", "I;16B", "I;16N", "I", "F"}
DECODER_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    MemoryError,
    Image.DecompressionBombError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders are known to raise on damaged files."""

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]
Size = tuple[int, int]
Box = tuple[int, int, int, int]


class RuntimeFault(Exception):
    """The request cannot be done; the message says in one line why, and what to do."""


class ImageFault(RuntimeFault):
    """One image cannot be predicted; others can."""


# --- the model's settings -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cleaning:
    """What is done to the components of one label, in this order."""

    smallest: int
    largest_only: bool
    fill_holes: bool


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What runtime.json says: how images become inputs, and probabilities masks.

    ``mean`` and ``sd`` are numbers for each channel, after clipping to ``windows``; where they are empty each image's
    own count, clipped to its ``percentiles``. ``names`` are the outputs of the network, ``outputs`` the labels each
    unites, ``painted`` the label each paints where they are regions. ``written`` is the value of each label in masks.
    """

    onnx_sha256: str
    channels: int
    depth: str
    size: Size
    mode: str
    tile_scale: float
    channel_files: int
    reads_tiff: bool
    mean: Sequence[float]
    sd: Sequence[float]
    windows: Sequence[Sequence[float]]
    percentiles: Sequence[float]
    thresholds: Sequence[float]
    painted: Sequence[int]
    cleaning: Sequence[Cleaning]
    names: Sequence[str]
    outputs: Sequence[Sequence[int]]
    written: Sequence[int]

    def __post_init__(self) -> None:
        n = len(self.names)
        fits = {
            "depth": self.depth in ("uint8", "uint16", "int16", "int32", "float32"),
            "channel_files": self.channel_files >= 0,
            "reads_tiff": isinstance(self.reads_tiff, bool),
            "size": len(self.size) == 2 and min(self.size) >= 1,
            "mode": self.mode in ("resize", "letterbox", "tiles"),
            "tile_scale": 0 < self.tile_scale <= 1,
            "mean": len(self.mean) in (0, self.channels) and len(self.mean) == len(self.sd),
            "windows": len(self.windows) in (0, self.channels) and all(low < high for low, high in self.windows),
            "percentiles": len(self.percentiles) in (0, 2) and all(0 <= each <= 100 for each in self.percentiles),
            "thresholds": 0 < n == len(self.thresholds) and all(0 < each < 1 for each in self.thresholds),
            "painted": len(self.painted) in (0, n),
            "outputs": len(self.outputs) == n and all(0 < max(output) < 255 for output in self.outputs),
            "written": 0 < len(self.written) < 255 and all(0 < value <= 65535 for value in self.written),
            "cleaning": len(self.cleaning) in (0, len(self.written)),
        }
        for name in (name for name, is_fit in fits.items() if not is_fit):
            raise ValueError(f"{name} cannot be {getattr(self, name)}")


def read_settings(path: Path) -> Settings:
    """Read runtime.json.

    Raises:
        RuntimeFault: It is missing or damaged, or of another version.
    """
    try:
        data = json.loads(path.read_bytes())
        if data["version"] != SETTINGS_VERSION:
            raise RuntimeFault(f"{path} is of version {data['version']!r:.40}: use the {Path(__file__).name} beside it")
        fields = data["settings"]
        cleaning = tuple(Cleaning(**steps) for steps in fields["cleaning"])
        return Settings(**fields | {"size": tuple(fields["size"]), "cleaning": cleaning})
    except OSError as fault:
        raise RuntimeFault(f"{path} cannot be read ({fault.strerror}): {AGAIN}") from fault
    except (KeyError, TypeError, ValueError, RecursionError) as fault:
        raise RuntimeFault(f"{path} is damaged ({_reason(fault)}): {AGAIN}") from fault


# --- reading images -------------------------------------------------------------------------------------------------


def read_image(path: Path) -> NDArray[np.generic]:
    """The pixels [channels, H, W] of an image as it is displayed: uint8, uint16, int16, int32 or float32.

    Raises:
        ImageFault: It cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise ImageFault(f"cannot be read ({fault.strerror}): mend its permissions or copy it again") from fault
    if not data:
        raise ImageFault("file is empty: copy it again or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are refused then, or read all the same
            return _decode(data)
    except DECODER_FAULTS as fault:
        raise ImageFault(f"is no image that Pillow can read, or damaged ({_reason(fault)}): copy it again") from fault


def _decode(data: bytes) -> NDArray[np.generic]:
    image = _open(data)
    dtype = _tiff_dtype(image, len(data)) if image.format == "TIFF" else None
    if image.format == "PNG":
        _require_whole_png(data)
    elif image.format in ("JPEG", "MPO") and image.width * image.height > len(data) * MOST_DENSE_JPEG:
        raise ImageFault(
            f"is damaged ({len(data):,} bytes are no {image.height} x {image.width} pixels): copy it again"
        )
    image.load()
    shown = ImageOps.exif_transpose(image)
    if shown.mode == "La":  # converts to nothing else
        shown = shown.convert("LA")
    if shown.mode not in GREY_MODES:
        return np.ascontiguousarray(np.moveaxis(np.asarray(shown.convert("RGB")), 2, 0))
    plane = np.asarray(shown.convert("L") if shown.mode in ("1", "LA") else shown)
    if dtype is not None:
        plane = plane.astype(dtype, copy=False)
    elif plane.dtype == np.int32 and plane.min() >= 0 and plane.max() <= 65535:
        plane = plane.astype(np.uint16)
    if plane.dtype == np.float32 and not np.isfinite(plane).all():
        raise ImageFault("holds nan or infinite values: replace them, with 0 for instance")
    return plane.astype(plane.dtype.newbyteorder("="), copy=False)[None]


def _open(data: bytes) -> Image.Image:
    """Open an image whose pixels are still to be decoded; one of a kind that is not read is refused."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is below
    try:
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            image: Image.Image = Image.open(io.BytesIO(data), formats=sorted(set(FORMATS.values())))
    except UnidentifiedImageError as fault:
        kinds = "is not a readable PNG, JPEG, BMP or TIFF image, whatever its name says"
        raise ImageFault(f"{kinds}: remove it or save it again as PNG") from fault
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if image.format == "TIFF" and any(str(each.message).startswith(("Corrupt", "Truncated")) for each in remarks):
        raise ImageFault("is truncated or damaged (its tags end too early): copy it again")
    width, height = image.size
    most = MAX_PNG_PIXELS if image.format == "PNG" else MAX_PIXELS
    if width * height > most:
        raise ImageFault(f"has {height} x {width} pixels, more than the {most:,} allowed: cut or shrink it")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a JPEG whose further pages are previews
        raise ImageFault("holds several pages, which only iaunet_predict reads: save each as an image of its own")
    layouts = [args if isinstance(args, str) else (args or [""])[0] for *_, args in getattr(image, "tile", ())]
    if image.mode not in GREY_MODES and any(str(layout).endswith(DEEP_LAYOUTS) for layout in layouts):
        raise ImageFault("holds colour with 16 bits a channel, which Pillow cuts to 8: use iaunet_predict")
    return image


def _require_whole_png(data: bytes) -> None:
    """Refuse a PNG file some of whose rows are missing or changed: Pillow leaves them black, or takes them."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    sizes = [(-(-(height - y) // dy), -(-(width - x) // dx)) for y, x, dy, dx in passes] if interlaced else []
    pixel = bits * {2: 3, 4: 2, 6: 4}.get(colour, 1)
    promised = sum(h * (1 + -(-w * pixel // 8)) for h, w in sizes or [(height, width)] if h > 0 and w > 0)
    unpacker, held, place = zlib.decompressobj(), 0, 8
    while place + 8 <= len(data) and promised <= len(data) * MOST_DENSE_PNG:
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if kind == b"IDAT":
            if zlib.crc32(data[place + 4 : end]).to_bytes(4, "big") != data[end : end + 4]:
                raise ImageFault("is damaged (a checksum of its pixels does not fit): copy it again")
            packed = data[place + 8 : end]
            while packed and held < promised:
                held += len(unpacker.decompress(packed, 1 << 20))
                packed = unpacker.unconsumed_tail
        place = end + 4
    if held < promised and held + len(unpacker.flush()) < promised:
        raise ImageFault(f"is truncated or damaged (its rows are {held:,} of {promised:,} bytes): copy it again")


def _require_whole_tiff(image: Image.Image, tags: Any, size: int) -> None:
    """Refuse a TIFF image that lies beyond its file's end: Pillow fills what is missing, and tells nobody."""
    starts, counts = tags.get(273) or tags.get(324) or (), tags.get(279) or tags.get(325) or ()
    is_inside = len(starts) == len(counts) and all(
        start > 0 and count > 0 and start + count <= size for start, count in zip(starts, counts, strict=True)
    )
    n_bytes = image.width * image.height * tags.get(277, 1) * tags.get(258, (1,))[0] // 8
    if not is_inside or (tags.get(259, 1) == 1 and n_bytes > size):
        raise ImageFault(f"is truncated or damaged ({size:,} bytes do not hold its pixels): copy it again")


def _tiff_dtype(image: Image.Image, size: int) -> np.dtype[Any] | None:
    """The type of a grey TIFF image, None for colours; kinds that Pillow and iaunet read differently are refused."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    _require_whole_tiff(image, tags, size)
    bits, sample, photometric = tags.get(258, (1,)), tags.get(339, (1,)), tags.get(262, 1)
    n, compression, is_big = tags.get(277, 1), tags.get(259, 1), tags.prefix == b"MM"
    if re.search(r"^images=(?!1$)", str(tags.get(270, "")), re.MULTILINE):
        raise ImageFault("holds several pages, which only iaunet_predict reads: save each as an image of its own")
    kind = (bits[0], sample[0])
    if photometric in (0, 1):
        types = {(16, 1): np.uint16, (16, 2): np.int16, (32, 2): np.int32, (32, 3): np.float32}
        if kind in types and n == 1 and not (is_big and kind[0] == 32 and compression != 1):
            return np.dtype(types[kind])
        if n <= 2 and kind[0] in (1, 2, 4, 8) and kind[1] == 1:
            return np.dtype(np.uint8)
    elif photometric in (2, 3, 6) and set(bits) <= {1, 2, 4, 8} and set(sample) == {1}:
        return None
    raise ImageFault(f"is a TIFF file of a kind that is not read here ({n} x {bits[0]} bits): save it as PNG")


def _reason(fault: BaseException) -> str:
    reason = str(fault).split("\n")[0].rstrip(".") or type(fault).__name__
    return "".join(each if each.isprintable() else " " for each in reason)[:300]


def to_channels(pixels: NDArray[np.generic], channels: int) -> NDArray[np.generic]:
    """Bring an image [own channels, H, W] to a number of channels: grey is repeated, colour becomes grey.

    Raises:
        ImageFault: There is no way.
    """
    own = len(pixels)
    if own == channels:
        return pixels
    if own == 1:
        return np.broadcast_to(pixels, (channels, *pixels.shape[1:]))
    if own != 3 or channels != 1:
        raise ImageFault(f"has {own} channels, the model {channels}: give images with {channels} channels")
    grey = np.empty((1, *pixels.shape[1:]), pixels.dtype)
    for row in range(pixels.shape[1]):
        line = np.tensordot(np.array([0.299, 0.587, 0.114]), pixels[:, row], axes=1)
        grey[0, row] = np.rint(line) if np.issubdtype(pixels.dtype, np.integer) else line
    return grey


# --- geometry and intensities ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How a picture of ``native`` size lies in inputs: resized to ``scaled``, of which each input holds the window
    from one of ``origins`` on, in its ``content`` box (top, left, height, width)."""

    native: Size
    scaled: Size
    origins: tuple[tuple[int, int], ...]
    content: Box

    @property
    def is_whole(self) -> bool:
        """Whether one input holds all of it."""
        return self.content[2:] == self.scaled


def lay_out(native: Size, settings: Settings) -> Layout:
    """Place a picture in one input or more."""
    size = settings.size
    if settings.mode == "resize":
        scaled = size
    elif settings.mode == "letterbox":
        shrink = min(room / side for room, side in zip(size, native, strict=True))
        height, width = (max(1, min(room, round(side * shrink))) for side, room in zip(native, size, strict=True))
        scaled = height, width
    else:
        height, width = (max(1, round(side * settings.tile_scale)) for side in native)
        scaled = height, width
    rows, columns = (_origins(length, side) for length, side in zip(scaled, size, strict=True))
    height, width = (min(side, room) for side, room in zip(scaled, size, strict=True))
    content = (size[0] - height) // 2, (size[1] - width) // 2, height, width
    return Layout(native, scaled, tuple((top, left) for top in rows for left in columns), content)


def _origins(length: int, side: int) -> list[int]:
    last = max(0, length - side)
    steps = -(-last // max(1, int(side * (1 - TILE_OVERLAP))))
    return [last * step // max(steps, 1) for step in range(steps + 1)]


def resize(planes: NDArray[np.generic], size: Size, window: Box | None = None) -> Floats:
    """Planes [n, H, W] resized to ``size``, or a window (top, left, height, width) of that, by Pillow's bilinear
    filter: half-pixel centred, and widened where it shrinks. uint8 stays whole."""
    planes = planes if planes.dtype == np.uint8 else planes.astype(np.float32, copy=False)
    top, left, height, width = window or (0, 0, *size)
    if planes.shape[1:] == size:
        return planes[:, top : top + height, left : left + width].astype(np.float32)
    box = None
    if window is not None:
        (first, last, up, down), (begin, end, right, wide) = (
            _reach(start, length, here, there)
            for start, length, here, there in zip((top, left), (height, width), planes.shape[1:], size, strict=True)
        )
        planes, box = planes[:, first:last, begin:end], (right, up, wide, down)
    resized = np.empty((len(planes), height, width), np.float32)
    for plane, target in zip(planes, resized, strict=True):
        image = Image.fromarray(np.ascontiguousarray(plane))
        target[...] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return resized


def _reach(start: int, length: int, here: int, there: int) -> tuple[int, int, float, float]:
    """The pixels that a stretch depends on, from first to last; and where in these it begins and ends."""
    step = here / there
    margin = max(step, 1.0) + 1
    first, last = max(0, int(start * step - margin)), min(here, math.ceil((start + length) * step + margin))
    return first, last, max(0.0, start * step - first), min(last - first, (start + length) * step - first)


def normaliser(settings: Settings, image: NDArray[np.generic]) -> Callable[[Floats], Floats]:
    """What brings the intensities of an image [C, H, W] at native size to mean 0 and sd 1."""
    mean, sd = _column(settings.mean), _column(settings.sd)
    ends = tuple(map(_column, zip(*settings.windows, strict=True)))
    if not settings.mean:
        every = max(1, round(image[0].size / MOST_MEASURED))
        pixels = image[:, ::every].reshape(len(image), -1).astype(np.float32)
        if settings.percentiles:
            ends = tuple(map(_column, np.percentile(pixels, settings.percentiles, axis=1)))
            pixels = pixels.clip(*(end[:, 0] for end in ends))
        mean, sd = _column(pixels.mean(1)), _column(pixels.std(1))
    scale = _column(np.maximum(sd.ravel(), SD_FLOOR))

    def normalise(part: Floats) -> Floats:
        clipped = part.clip(*ends) if ends else part
        return (clipped - mean) / scale

    return normalise


def _column(numbers: object) -> Floats:
    return np.asarray(numbers, np.float32)[:, None, None]


def inputs(image: NDArray[np.generic], layout: Layout, settings: Settings) -> Iterator[Floats]:
    """The network's inputs [C, *size] of an image [C, H, W], in the order of the layout's origins."""
    normalise = normaliser(settings, image)
    top, left, height, width = layout.content
    for origin in layout.origins:
        content = normalise(resize(image, layout.scaled, None if layout.is_whole else (*origin, height, width)))
        filled = np.zeros((len(image), *settings.size), np.float32)
        filled[:, top : top + height, left : left + width] = content.clip(-LARGEST_INTENSITY, LARGEST_INTENSITY)
        yield filled


def assemble(maps: Iterator[Floats], layout: Layout, n_outputs: int) -> Floats:
    """The probabilities [outputs, *scaled] of a picture from those of its inputs, in the order of their origins."""
    top, left, height, width = layout.content
    contents = (each[:, top : top + height, left : left + width] for each in maps)
    if layout.is_whole:
        return next(contents)
    sums, weights = np.zeros((n_outputs, *layout.scaled), np.float32), np.zeros(layout.scaled, np.float32)
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (TILE_SIGMA * n)) ** 2) for n in (height, width)]
    weight = np.asarray(np.outer(*axes), np.float32)
    for (first, begin), content in zip(layout.origins, contents, strict=True):
        part = slice(first, first + height), slice(begin, begin + width)
        sums[:, *part] += content * weight
        weights[part] += weight
    sums /= weights
    return sums


# --- from probabilities to a mask -----------------------------------------------------------------------------------


def decide(probabilities: Floats, settings: Settings) -> Labels:
    """Labels [H, W] of probabilities [outputs, H, W]: the most probable of those that reach their threshold, the
    first of equals; regions paint where they reach theirs, later over earlier. 0 is background."""
    mask = np.zeros(probabilities.shape[1:], np.uint8)
    best = np.full(mask.shape, -1, np.float32)
    for index, candidate in enumerate(probabilities):
        wins = candidate >= np.float32(settings.thresholds[index])
        if settings.painted:
            mask[wins] = settings.painted[index]
        else:
            wins &= candidate > best
            mask[wins] = index + 1
            np.copyto(best, candidate, where=wins)
    return mask


def decide_native(probabilities: Floats, layout: Layout, settings: Settings) -> Labels:
    """Labels at native size of probabilities [outputs, *scaled]; those of many tiles are resized in bands."""
    height, width = layout.native
    if layout.is_whole:
        return decide(resize(probabilities, layout.native), settings)
    labels = np.empty(layout.native, np.uint8)
    step = max(1, PIXELS_AT_ONCE // width)
    for top in range(0, height, step):
        band = (top, 0, min(step, height - top), width)
        labels[top : top + step] = decide(resize(probabilities, layout.native, band), settings)
    return labels


def number_components(mask: NDArray[np.bool_], reach: int) -> NDArray[np.int64]:
    """For each True pixel of a mask [H, W], in reading order, the number of its component.

    Args:
        mask: The mask.
        reach: 1 where pixels that touch at corners belong together, 0 where only those that touch at sides do.

    Returns:
        Numbers 0, 1, ... by the components' first pixels.
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)  # the runs of each row, from start to before end
    ends = np.nonzero(edges == -1)[1]
    pitch = mask.shape[1] + 3  # between rows, so that no run reaches into another's row
    first = np.searchsorted(rows * pitch + ends, (rows + 1) * pitch + starts - reach, "right")
    last = np.searchsorted(rows * pitch + starts, (rows + 1) * pitch + ends + reach, "left")
    touching = np.maximum(last - first, 0)  # runs in the next row
    above = np.repeat(np.arange(len(rows)), touching)
    below = np.arange(len(above)) - np.repeat(np.cumsum(touching) - touching, touching) + np.repeat(first, touching)
    root = _join(len(rows), above, below)
    numbers = np.unique(root, return_inverse=True)[1]
    return np.repeat(numbers, ends - starts)


def _join(n: int, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest member of the set of each of ``n`` things, when ``left[i]`` and ``right[i]`` belong together."""
    root = np.arange(n)
    while True:
        a, b = root[left], root[right]
        apart = a != b
        if not apart.any():
            return root
        np.minimum.at(root, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while not np.array_equal(above := root[root], root):
            root = above


def clean(labels: Labels, cleaning: Sequence[Cleaning]) -> Labels:
    """Clean a mask [H, W] in place, one label after the other, and return it."""
    for label, steps in enumerate(cleaning, start=1):
        rows, columns = (np.flatnonzero((labels == label).any(axis)) for axis in (1, 0))
        if not len(rows):
            continue
        window = labels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if steps.smallest > 1 or steps.largest_only:
            _remove_components(window, label, steps)
        if steps.fill_holes:
            _fill_holes(window, label)
    return labels


def _remove_components(window: Labels, label: int, steps: Cleaning) -> None:
    here = window == label
    numbers = number_components(here, reach=1)
    areas = np.bincount(numbers)
    kept = areas >= steps.smallest
    if steps.largest_only and kept.any():
        kept &= np.arange(len(areas)) == areas.argmax()
    window[here] = np.where(kept[numbers], label, 0)


def _fill_holes(window: Labels, label: int) -> None:
    gaps = np.pad(window != label, 1, constant_values=True)
    holes = np.zeros(gaps.shape, np.bool_)
    holes[gaps] = number_components(gaps, reach=0) > 0  # 0 is outside
    window[holes[1:-1, 1:-1] & (window == 0)] = label


# --- the model ------------------------------------------------------------------------------------------------------


def open_session(model: Path, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """Load an ONNX file into onnxruntime, which else tells its maker about models and keeps an identifier in the home.

    Raises:
        RuntimeFault: This onnxruntime cannot run it.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # counts only before the import
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # counts on Windows
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # twice as fast where cores are shared
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=list(providers))
    except Exception as fault:  # onnxruntime's errors have no other base
        raise RuntimeFault(
            f"{model} cannot be loaded by onnxruntime {onnxruntime.__version__} ({_reason(fault)}): "
            "install what requirements.txt asks for"
        ) from fault


class Runtime:
    """An exported model.

    Args:
        folder: What ``iaunet_export_model --onnx`` wrote.
        threads: For the network; 0 for as many as there are cores.
        providers: Where onnxruntime runs it.

    Raises:
        RuntimeFault: A file is missing, damaged or changed, or this onnxruntime cannot run the model.
    """

    def __init__(
        self, folder: Path | str, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        folder = Path(folder)
        self.settings = read_settings(folder / SETTINGS)
        self.digest = hashlib.sha256((folder / SETTINGS).read_bytes()).hexdigest()
        model = folder / MODEL
        try:
            with model.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as fault:
            raise RuntimeFault(f"{model} cannot be read ({fault.strerror}): {AGAIN}") from fault
        if found != self.settings.onnx_sha256:
            raise RuntimeFault(f"{model} is not the file that {SETTINGS} names: {AGAIN}")
        self.session = open_session(model, threads, providers)

    def predict(self, image: NDArray[np.generic] | Path | str) -> NDArray[np.integer]:
        """Predict one image.

        Args:
            image: A file, or [H, W] grey or [H, W, C] colour in the type and units of the training images.

        Returns:
            The mask [H, W] with the values of the training masks, uint8 or uint16.

        Raises:
            ImageFault: It cannot be read, or is unlike the training images in channels or type.
            ValueError: The array has other axes.
        """
        if isinstance(image, Path | str):
            pixels = self.read([Path(image)])
        elif image.ndim in (2, 3):
            pixels = image[None] if image.ndim == 2 else np.moveaxis(image, 2, 0)
        else:
            raise ValueError(f"an image is [H, W] or [H, W, C], not {image.shape}")
        return self.to_values(self.labels(pixels))

    def read(self, files: Sequence[Path]) -> NDArray[np.generic]:
        """The pixels [channels, H, W] of an image, of which each file may hold some channels."""
        for path in files:
            if path.name.lower().endswith(VOLUMES):
                raise ImageFault("is a volume, which this runtime does not read: use iaunet_predict")
            if not self.settings.reads_tiff and FORMATS.get(path.suffix.lower()) == "TIFF":
                raise ImageFault("is a TIFF file whose axes or spacing this model minds: use iaunet_predict, or PNG")
        expected = self.settings.channel_files
        if expected and len(files) != expected:
            raise ImageFault(f"has {len(files)} of {expected} channel files: add those that are missing")
        first, *others = (read_image(path) for path in files)
        if any((other.shape, other.dtype) != (first.shape, first.dtype) for other in others):
            raise ImageFault("has channels of several sizes or types: bring all to one")
        return np.concatenate([first, *others]) if others else first

    def labels(self, pixels: NDArray[np.generic]) -> Labels:
        """The labels [H, W] of an image [channels, H, W]: 0 for background, i + 1 for label i."""
        settings = self.settings
        if str(pixels.dtype) != settings.depth:
            raise ImageFault(
                f"pixels are {pixels.dtype}, those of the data set {settings.depth}: convert it to {settings.depth}"
            )
        image = to_channels(pixels, settings.channels)
        layout = lay_out((image.shape[1], image.shape[2]), settings)
        maps = self._probabilities(inputs(image, layout, settings))
        scaled = assemble(maps, layout, len(settings.names))
        return clean(decide_native(scaled, layout, settings), settings.cleaning)

    def to_values(self, labels: Labels) -> NDArray[np.integer]:
        """The values of the training masks for labels."""
        written = [0, *self.settings.written]
        table = np.array(written, np.uint8 if max(written) <= 255 else np.uint16)
        return np.stack([table[row] for row in labels])  # numpy looks up with 8 bytes a pixel

    def _probabilities(self, rows: Iterator[Floats]) -> Iterator[Floats]:
        batch: list[Floats] = []
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH:
                yield from self._run(batch)
                batch = []
        if batch:
            yield from self._run(batch)

    def _run(self, batch: Sequence[Floats]) -> Floats:
        maps: Floats = self.session.run(None, {self.session.get_inputs()[0].name: np.stack(batch)})[0]
        return maps


# --- a folder of images ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputCase:
    """An image: its path below the folder with and without ending, and the files of its channels."""

    name: str
    stem: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of one image: ``status`` is done, kept (its mask was there) or failed, for the ``problem`` told."""

    image: str
    mask: str
    status: str
    problem: str = ""
    pixels: tuple[int, ...] = ()


def predict_folder(runtime: Runtime, source: Path, output: Path, overwrite: bool = False) -> list[Outcome]:
    """Write a mask for every image of a folder, or for one image, and predictions.csv.

    Args:
        runtime: Predicts.
        source: The folder, searched to its depth, or the image.
        output: Gets ``NAME.png`` for each image, whole or not at all. A mask that this model made from the same image
            is kept.
        overwrite: Replace masks that are there and were made by something else.

    Returns:
        An outcome for each image, by name. An image that cannot be read fails; the rest goes on.

    Raises:
        RuntimeFault: There is nothing to predict, other masks are in the way, or the output cannot be written.
    """
    source, output = source.resolve(), output.resolve()
    root = source if source.is_dir() else source.parent
    if output == root:
        raise RuntimeFault(f"{output} holds the images themselves: give another folder for the masks")
    cases = list_cases(source, root, output, runtime.settings.channel_files)
    jobs = dict(zip(cases, mask_names(cases), strict=True))
    masks = [output / name for name in jobs.values()]
    strangers = [mask for mask in masks if mask.exists() and not _made_from(mask).endswith(f" {runtime.digest}")]
    if strangers and not overwrite:
        raise RuntimeFault(f"{strangers[0]} was made by something else: use --overwrite, or another folder")
    output.mkdir(parents=True, exist_ok=True)
    for leftover in output.rglob(f".*{TEMPORARY}"):
        leftover.unlink(missing_ok=True)
    outcomes = [_predict_case(runtime, case, output, name) for case, name in jobs.items()]
    outcomes.sort(key=lambda outcome: _natural_order(outcome.image))
    _write_table(output / TABLE, outcomes, runtime.settings.names)
    return outcomes


def list_cases(source: Path, root: Path, output: Path, channel_files: int) -> list[InputCase]:
    """The images below a folder, or the one given, as cases.

    Hidden ones are left out, those in ``output``, and masks: of an earlier prediction, in folders beside images, and
    called as an image beside them with a suffix (``a_mask.png``).
    """
    paths = [source] if source.is_file() else sorted(_walk(source, output), key=lambda path: path.as_posix())
    stems = {path: path.name[: -len(ending)] for path in paths if (ending := _ending(path))}
    images = {(path.parent, stem) for path, stem in stems.items()}
    groups: dict[tuple[str, str], list[Path]] = {}
    masks = [path for path, stem in stems.items() if (path.parent, _image_of(stem)) in images]
    if masks:
        what = "masks called as images beside them (move them to a folder of their own to predict them)"
        logger.warning("left out: %d %s, the first is %s", len(masks), what, masks[0])
    for path in masks:
        del stems[path]
    for path, stem in stems.items():
        ending = _ending(path)
        numbered = re.fullmatch(r".+_(\d{4})", stem, re.ASCII)
        if numbered and int(numbered[1]) < channel_files:
            stem, ending = stem[: -len("_0000")], ending.lower()
        folder = path.parent.relative_to(root)
        groups.setdefault(((folder / (stem + ending)).as_posix(), (folder / stem).as_posix()), []).append(path)
    if not groups:
        raise RuntimeFault(f"{source} holds no images ({', '.join(FORMATS)}): check the path")
    return [InputCase(name, stem, tuple(files)) for (name, stem), files in groups.items()]


def _image_of(stem: str) -> str | None:
    """What the image of a mask is called, None where a name has no suffix for masks."""
    found = (stem[: -len(suffix)] for suffix in MASK_SUFFIXES if stem.lower().endswith(suffix))
    return next(found, None) or None


def mask_names(cases: Sequence[InputCase]) -> list[str]:
    """The mask's path for each image; images whose stems collide keep their endings."""
    times = Counter(text.lower() for case in cases for text in {case.name, case.stem})
    return [f"{case.name if times[case.stem.lower()] > 1 else case.stem}.png" for case in cases]


def _walk(folder: Path, output: Path) -> Iterator[Path]:
    def refuse(fault: OSError) -> None:
        raise fault

    for parent, folders, files in os.walk(folder, onerror=refuse):
        below = [name for name in folders if not name.startswith(".") and name != WORKSPACE]
        below = [name for name in below if Path(parent, name) != output]
        has_images = any(name.lower() in IMAGE_FOLDERS for name in (*folders, *files))
        masks = {name for name in below if has_images and name.lower() in MASK_FOLDERS}
        masks |= {name for name in below if Path(parent, name, TABLE).is_file()}
        for name in sorted(masks):
            logger.warning("left out: %s holds masks: give it by itself to predict them", Path(parent, name))
        folders[:] = [name for name in below if name not in masks]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _ending(path: Path) -> str:
    """The ending of an image's or volume's name, empty for other files."""
    endings = (ending for ending in (".nii.gz", path.suffix) if path.name.lower().endswith(ending.lower()))
    return next((path.name[-len(e) :] for e in endings if e.lower() in FORMATS or e.lower() in VOLUMES), "")


def _predict_case(runtime: Runtime, case: InputCase, output: Path, name: str) -> Outcome:
    mask = output / name
    try:
        made_from = f"{_digest_of(case.files)} {runtime.digest}"
        if _made_from(mask) == made_from:
            return Outcome(case.name, name, "kept")
        labels = runtime.labels(runtime.read(case.files))
    except ImageFault as fault:
        logger.warning("failed: %s: %s", case.name, fault)
        return Outcome(case.name, "", "failed", str(fault))
    write_mask(mask, runtime.to_values(labels), made_from)
    counts = np.bincount(labels.ravel(), minlength=256)
    pixels = tuple(int(counts[list(labels_of)].sum()) for labels_of in runtime.settings.outputs)
    return Outcome(case.name, name, "done", pixels=pixels)


def write_mask(path: Path, values: NDArray[np.integer], made_from: str) -> None:
    """Write a mask [H, W] as PNG, whole or not at all."""
    note, data = PngInfo(), io.BytesIO()
    note.add_text(MADE_FROM, made_from)
    Image.fromarray(values).save(data, format="PNG", compress_level=1, pnginfo=note)
    _write_whole(path, data.getvalue())


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as fault:
        temporary.unlink(missing_ok=True)
        raise RuntimeFault(
            f"{path} cannot be written ({fault.strerror}): free some space or mend the folder's permissions, and run "
            "the same command again"
        ) from fault


def _made_from(mask: Path) -> str:
    """What a mask says it was made from; empty when it is missing, damaged or does not say."""
    try:
        with Image.open(mask, formats=["PNG"]) as image:
            return str(image.info.get(MADE_FROM, ""))
    except DECODER_FAULTS:
        return ""


def _digest_of(files: Sequence[Path]) -> str:
    """Names the bytes of an image's files."""
    try:
        hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    except OSError as fault:
        raise ImageFault(f"cannot be read ({fault.strerror}): mend its permissions or copy it again") from fault
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _natural_order(name: str) -> list[tuple[int, int, str]]:
    """A sort key under which ``2`` comes before ``10``."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def _write_table(path: Path, outcomes: Sequence[Outcome], names: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "mask", "status", "problem", *(f"{name}_pixels" for name in names)])
    for outcome in outcomes:
        blanks = [""] * (len(names) - len(outcome.pixels))
        writer.writerow([outcome.image, outcome.mask, outcome.status, outcome.problem, *outcome.pixels, *blanks])
    _write_whole(path, text.getvalue().encode(errors="backslashreplace"))


# --- the command ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 all done, 1 some images failed, 2 the request cannot be done, 130 stopped."""
    parser = argparse.ArgumentParser(description="Make a mask for each image.", allow_abbrev=False)
    parser.add_argument("-i", "--input", type=Path, required=True, metavar="IN", help="a folder of images, or one")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the folder for the masks")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="for the network; 0: one a core")
    parser.add_argument("--overwrite", action="store_true", help="replace masks that something else made")
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name the terminal cannot show stops nothing
    handler = logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return _run(arguments.model, arguments.threads, arguments.input, arguments.output, arguments.overwrite)
    except RuntimeFault as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    except OSError as fault:
        print(f"error: {fault.filename} cannot be used ({fault.strerror}): check the path", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: run the same command again to go on", file=sys.stderr)
        return 130
    finally:
        logger.removeHandler(handler)


def _run(model: Path, threads: int, source: Path, output: Path, overwrite: bool) -> int:
    outcomes = predict_folder(Runtime(model, threads), source, output, overwrite)
    count = Counter(outcome.status for outcome in outcomes)
    numbers = ", ".join(f"{count[status]} {status}" for status in ("done", "kept", "failed"))
    logger.info("masks: %s: %s", numbers, output)
    if not count["failed"]:
        return 0
    return 1 if count["failed"] < len(outcomes) else 2


if __name__ == "__main__":
    sys.exit(main())
