"""Reads TIFF files: plain images, stacks and volumes, 8 to 64 bits, and the sizes in mm they state."""

import logging
import lzma
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from iaunet.errors import FileError
from iaunet.silence import ignoring_warnings

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffFrame, TiffPage, TiffPageSeries

    _Page = TiffPage | TiffFrame

MAX_PIXELS = 2**31
"""Pixels a file may have in all its pages and channels."""

MAX_PIXELS_BY_PILLOW = 178_956_970
"""Pixels a page may have that Pillow decodes, its own limit."""

AXES = {"Z": "slices", "T": "slices", "C": "channels", "S": "channels", "Y": "height", "X": "width"}
"""The axes of a file and what they become."""

_PRINT_DPI = (1, 72, 75, 90, 96, 100, 120, 144, 150, 180, 200, 220, 240, 300, 350, 360, 400, 600, 720, 1200, 2400, 4800)
"""Resolutions of screens, printers and office scanners: they are written without anything having been measured."""

_BELIEVABLE_MM = (1e-6, 10.0)

_UNIT_IN_MM = {
    "m": 1e3,
    "meter": 1e3,
    "cm": 10.0,
    "centimeter": 10.0,
    "mm": 1.0,
    "millimeter": 1.0,
    "um": 1e-3,
    "\u00b5m": 1e-3,
    "\u03bcm": 1e-3,
    "\\u00b5m": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
    "micrometer": 1e-3,
    "nm": 1e-6,
    "nanometer": 1e-6,
    "pm": 1e-9,
    "inch": 25.4,
    "in": 25.4,
}

_MOST_DENSE = 1100
"""Bytes that one byte of a file may unfold to: deflate reaches 1032."""

_INVERTED, _GREY, _RGB, _PALETTE = 0, 1, 2, 3
_COLOURS = (_RGB, 5, 6, 8)  # RGB, CMYK, YCbCr, CIELAB
_UNSPECIFIED, _PREMULTIPLIED = 0, 1
_DEEP_LAYOUTS = (";16B", ";16L", ";16N")
_GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N", "I", "F")

_DECODER_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
"""What tifffile and Pillow are known to raise on damaged files."""

_UNKNOWN_TO_PILLOW = (UnidentifiedImageError, SyntaxError, LookupError, EOFError, OSError, ValueError)
"""What Pillow raises for pages it cannot read, before it decodes them."""

_reading: ContextVar[bool] = ContextVar("reading", default=False)


@dataclass(frozen=True, eq=False)
class TiffImage:
    """The pixels of a TIFF file as they are displayed.

    ``pixels`` is [channels, slices, height, width] in uint8, uint16, int16, int32 or float32, native byte order; one
    slice for a plain image; perhaps a read-only map of the file. ``spacing_mm`` is the distance of slices, rows and
    columns in mm, None if the file does not state it; 1 between slices if only that is not stated.
    ``has_transparency`` tells that an alpha channel was left out that was not opaque everywhere.
    """

    pixels: NDArray[np.generic]
    spacing_mm: tuple[float, float, float] | None = None
    has_transparency: bool = False


@dataclass(frozen=True, kw_only=True)
class TiffHeader:
    """What `read_tiff` will give, without the pixels.

    ``shape`` is (channels, slices, height, width). ``axes`` are the file's own, those of length 1 left out.
    """

    shape: tuple[int, int, int, int]
    axes: str
    dtype: np.dtype[Any]
    spacing_mm: tuple[float, float, float] | None


@dataclass(frozen=True, eq=False)
class _Layout:
    """How the pages of a file make up an image.

    ``letters`` name the axes of the planes: those of ``outer``, then samples, rows and columns. ``samples`` are
    the samples of a pixel that are kept, ``alpha`` is the one that is transparency.
    """

    file: "TiffFile"
    series: "TiffPageSeries"
    pages: tuple["_Page", ...]
    page: "TiffPage"
    axes: str
    letters: str
    outer: tuple[int, ...]
    samples: tuple[int, ...]
    alpha: int | None
    as_mask: bool

    @property
    def channels(self) -> int:
        """Channels a page gives."""
        if self.page.photometric == _PALETTE:
            return 1 if self.as_mask else 3
        return len(self.samples)

    @property
    def plane(self) -> tuple[int, int]:
        """(height, width) of a page as displayed."""
        size = (self.page.imagelength, self.page.imagewidth)
        return size[::-1] if _orientation(self.page) >= 5 else size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(channels, slices, height, width) of the image."""
        lengths = dict(zip(self.letters, (*self.outer, self.channels, *self.plane), strict=True))
        return (
            lengths.get("C", 1) * lengths.get("S", 1),
            lengths.get("Z", 1) * lengths.get("T", 1),
            lengths["Y"],
            lengths["X"],
        )


def read_tiff(path: Path, axes: str | None = None, *, as_mask: bool = False) -> TiffImage:
    """Read a TIFF file: its first image at full size, without thumbnails and smaller levels.

    Alpha and, beside colours, other extra samples are left out. Pixels that are stored whole and unpacked are mapped,
    not loaded. Inverted grey (white is 0) of up to 8 bits becomes usual grey.

    Args:
        path: The file.
        axes: What the axes of a file with several pages are, in its order, where it does not say so or is wrong:
            Z or T slices, C or S channels, Y height, X width. A single page needs none: it only minds ``YXC``, which
            says that the samples of its pixels are channels, none of them alpha.
        as_mask: Keep the indices of a palette instead of its colours.

    Raises:
        FileError: It is no TIFF file, damaged, too large, packed in a way that cannot be read, does not say what its
            pages are, holds several images or times, or nan, infinite or complex values.
    """
    with _described(path, axes, as_mask) as layout:
        _require_whole(layout)
        planes, transparent = _read_planes(path, layout)
        pixels = _arranged(planes.reshape(*layout.outer, *planes.shape[1:]), layout.letters)
        pixels = _in_usual_type(pixels)
        _require_finite(pixels)
        return TiffImage(pixels, _spacing_mm(layout), transparent)


def tiff_header(path: Path, axes: str | None = None, *, as_mask: bool = False) -> TiffHeader:
    """What `read_tiff` will give for these arguments, found without decoding a pixel.

    Raises:
        FileError: As `read_tiff`, for all but the pixels.
    """
    with _described(path, axes, as_mask) as layout:
        dtype = np.dtype(np.uint8) if layout.page.photometric == _PALETTE else _usual_type(layout.page.dtype)
        return TiffHeader(shape=layout.shape, axes=layout.axes, dtype=dtype, spacing_mm=_spacing_mm(layout))


@contextmanager
def _described(path: Path, axes: str | None, as_mask: bool) -> Iterator[_Layout]:
    """Open a file and understand its layout, quietly, with every fault named."""
    from tifffile import TiffFile, TiffFileError

    logging.getLogger("tifffile").addFilter(_is_for_others)
    token = _reading.set(True)
    try:
        with ignoring_warnings(), _opened(path, TiffFile, TiffFileError) as file:
            yield _layout(file, axes, as_mask)
    except FileError:
        raise
    except _DECODER_FAULTS as fault:
        raise _damaged(fault) from fault
    finally:
        _reading.reset(token)


def _is_for_others(record: logging.LogRecord) -> bool:
    """Whether tifffile logs for another than us: we raise, or do not mind."""
    return not _reading.get()


def _opened(path: Path, reader: type["TiffFile"], no_tiff: type[Exception]) -> "TiffFile":
    try:
        return reader(path, _multifile=False)  # files that a file names are not opened
    except FileNotFoundError as fault:
        raise FileError("file is missing", "restore it, or plan again without it") from fault
    except no_tiff as fault:
        if path.stat().st_size == 0:
            raise FileError("file is empty", "copy it again or remove it") from fault
        if "not a TIFF file" not in str(fault):
            raise
        raise FileError(
            "is not a readable TIFF image, whatever its name says", "remove it or save it again as PNG"
        ) from fault
    except OSError as fault:
        raise FileError(f"cannot be read ({fault.strerror})", "mend its permissions or copy it again") from fault


def _require_end(file: "TiffFile") -> None:
    """Refuse pages that lead back to earlier ones: tifffile may follow them for ever."""
    form, handle, seen = file.tiff, file.filehandle, set()
    offset = file.pages.first.offset
    while 0 < offset < handle.size:
        if offset in seen:
            raise _damaged(ValueError("its pages lead in a circle"))
        seen.add(offset)
        handle.seek(offset)
        count = handle.read(form.tagnosize)
        if len(count) < form.tagnosize:
            return
        handle.seek(offset + form.tagnosize + struct.unpack(form.tagnoformat, count)[0] * form.tagsize)
        following = handle.read(form.offsetsize)
        if len(following) < form.offsetsize:
            return
        offset = struct.unpack(form.offsetformat, following)[0]


def _layout(file: "TiffFile", axes: str | None, as_mask: bool) -> _Layout:
    _require_end(file)
    series = _full_image(file)
    page = series.keyframe
    pages = tuple(page for page in series if page is not None)
    if len(pages) != len(series):
        raise FileError("lacks some of its pages, which other files may hold", "save all pages in one file")
    if 0 in page.shape or not page.shape or page.dtype is None:
        raise _damaged(ValueError(f"pixels of {page.bitspersample} bits, shape {page.shape}"))
    if math.prod(series.shape) > MAX_PIXELS:
        size = " x ".join(map(str, series.shape))
        raise FileError(f"has {size} pixels, more than the {MAX_PIXELS:,} allowed", "cut or shrink it")
    own, lengths = series.axes, series.shape
    inner = "".join(axis for axis, n in zip(page.axes, page.shape, strict=True) if axis in "YX" or n > 1)
    inner_lengths = tuple(n for axis, n in zip(page.axes, page.shape, strict=True) if axis in "YX" or n > 1)
    if lengths[len(lengths) - len(inner) :] != inner_lengths or page.imagedepth > 1:
        raise FileError(
            f"holds pages of {_times(inner_lengths)} as an image of {_times(lengths)}", "save it again without metadata"
        )
    named = _named_axes(own, lengths, axes)
    split = len(named) - len(inner)
    where = dict(zip(inner, named[split:], strict=True))
    letters = named[:split] + where.get("S", "C" if "S" in named else "S") + where["Y"] + where["X"]
    samples, alpha = _samples(page, are_channels=where.get("S", "S") != "S")
    return _Layout(file, series, pages, page, own, letters, lengths[:split], samples, alpha, as_mask)


def _full_image(file: "TiffFile") -> "TiffPageSeries":
    """The first image that is no thumbnail, unless another is as large."""
    images = [series for series in file.series if series.keyframe.subfiletype & 0b101 == 0] or list(file.series)
    if not images:
        raise _damaged(ValueError("holds no page"))
    sizes = [series.keyframe.imagelength * series.keyframe.imagewidth for series in images]
    if any(size >= sizes[0] for size in sizes[1:]):
        raise FileError(f"holds {len(images)} images of different kinds", "save each as an image of its own")
    return images[0]


def _named_axes(own: str, lengths: tuple[int, ...], wish: str | None) -> str:
    """A letter of `AXES` for each axis of the file.

    Raises:
        FileError: An axis has no name, or the wish does not fit.
    """
    named = own
    if wish is not None:
        letters = wish.upper()
        if not {"Y", "X"} <= {*letters} <= AXES.keys() or len({*letters}) != len(letters):
            raise FileError(
                f"cannot be read with --axes {wish}", "name each axis of the file once: Y, X, and Z, T, C or S"
            )
        named = _fitted(own, letters)
        if len(named) != len(own):
            raise FileError(
                f"has {len(own)} axes of length {_times(lengths)}, --axes {wish} names {len(letters)}",
                "name each once, in their order",
            )
    if not {*named} <= AXES.keys() or len({*named}) != len(named):
        pages = math.prod(n for axis, n in zip(own, lengths, strict=True) if axis not in AXES)
        raise FileError(
            f"holds {pages} pages and does not say what they are",
            "say it with --axes ZYX (slices) or --axes CYX (channels), or save each page as an image of its own",
        )
    size = dict(zip(named, lengths, strict=True))
    if "Z" in size and "T" in size:
        raise FileError(f"holds {size['T']} times of {size['Z']} slices", "save each time as an image of its own")
    return named


def _fitted(own: str, letters: str) -> str:
    """The wished letters with what a page says of itself: the axes of a single page, and where its samples are."""
    if {*own} <= {"Y", "X", "S"}:
        same_place = len(own) == len(letters) and all(a in ("S", b) for a, b in zip(own, letters, strict=True))
        return letters if same_place else own
    if "S" in own and "S" not in letters and len(letters) == len(own) - 1:
        place = own.index("S")
        return letters[:place] + "S" + letters[place:]
    return letters


def _samples(page: "TiffPage", are_channels: bool) -> tuple[tuple[int, ...], int | None]:
    """Which samples of a pixel are kept, and which is alpha; as Pillow has it where Pillow reads such files."""
    n, extra = page.samplesperpixel, page.extrasamples
    if are_channels or (page.photometric in (_INVERTED, _GREY) and n > 2 and not any(extra)):
        return tuple(range(n)), None
    colours = min(n, 3 if page.photometric in _COLOURS and n >= 3 else 1)
    if page.photometric == 5 or n == colours:
        return tuple(range(colours)), None
    is_alpha = not extra or extra[0] != _UNSPECIFIED
    return tuple(range(colours)), colours if is_alpha else None


def _orientation(page: "TiffPage") -> int:
    value = page.tags.valueof(274, default=1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _require_whole(layout: _Layout) -> None:
    """Refuse sizes that the bytes of an unpacked file cannot fill, before anything is allocated."""
    stored = layout.file.filehandle.size
    page, series = layout.page, layout.series
    needed = math.prod(series.shape) * max(1, page.bitspersample if isinstance(page.bitspersample, int) else 8) // 8
    if page.compression == 1 and needed > stored:
        raise _damaged(ValueError(f"{stored:,} bytes cannot hold {needed:,}"))


def _read_planes(path: Path, layout: _Layout) -> tuple[NDArray[Any], bool]:
    """All pages [pages, channels, height, width] as displayed, and whether any of them is transparent somewhere."""
    n = math.prod(layout.outer)
    mapped = _mapped(path, layout, n)
    if mapped is not None:
        return _displayed(mapped, layout)
    if len(layout.pages) != n:
        raise _damaged(ValueError(f"{len(layout.pages)} pages instead of {n}"))
    with _opened_by_pillow(path, layout.page) as image:
        first, transparent = _decoded(layout, layout.pages[0], image)
        if n == 1:
            return first[None], transparent
        planes = np.empty((n, *first.shape), first.dtype)
        planes[0] = first
        for i, page in enumerate(layout.pages[1:], start=1):
            planes[i], is_transparent = _decoded(layout, page, image)
            transparent |= is_transparent
    return planes, transparent


def _mapped(path: Path, layout: _Layout, n: int) -> NDArray[Any] | None:
    """The samples of all pages as a map of the file [pages, samples, height, width], if they are stored like that."""
    offset = layout.series.dataoffset
    page = layout.page
    if offset is None or not _is_plain(page) or page.dtype is None:
        return None
    end = offset + n * page.nbytes
    if end > layout.file.filehandle.size:
        raise _damaged(ValueError(f"ends {end - layout.file.filehandle.size:,} bytes too early"))
    dtype = page.dtype.newbyteorder(layout.file.byteorder)
    planes = np.memmap(path, dtype, "r", offset, (n, *page.shaped))
    return _samples_first(planes)


def _decoded(layout: _Layout, page: "_Page", image: Image.Image | None) -> tuple[NDArray[Any], bool]:
    """A page [channels, height, width] as displayed, and whether it is transparent somewhere."""
    if image is not None and isinstance(page.index, int):
        decoded = _decoded_by_pillow(image, page.index, layout)
        if decoded is not None:
            return decoded
    if not _is_plain(layout.page):
        raise _packed(layout.page)
    parts = math.prod(layout.page.chunked)
    if not len(page.dataoffsets) == len(page.databytecounts) == parts:
        raise _damaged(ValueError(f"{len(page.dataoffsets)} parts instead of {parts}"))
    size = layout.file.filehandle.size
    pairs = zip(page.dataoffsets, page.databytecounts, strict=True)
    if any(count <= 0 or start <= 0 or start + count > size for start, count in pairs):
        raise _damaged(ValueError("parts of a page are missing"))
    if len(layout.pages) * layout.page.nbytes > size * _MOST_DENSE:
        raise _damaged(ValueError(f"{size:,} bytes cannot unfold to {len(layout.pages) * layout.page.nbytes:,}"))
    try:
        samples = page.asarray(squeeze=False, maxworkers=1)
    except (ValueError, NotImplementedError) as fault:
        if "imagecodecs" not in str(fault):
            raise
        raise _packed(layout.page) from fault
    planes, transparent = _displayed(_samples_first(samples[None]), layout)
    return planes[0], transparent


def _samples_first(pages: NDArray[Any]) -> NDArray[Any]:
    """From tifffile's [pages, samples or 1, 1, height, width, samples or 1] to [pages, samples, height, width]."""
    n, planar, _, height, width, chunky = pages.shape
    return pages.transpose(0, 1, 5, 2, 3, 4).reshape(n, planar * chunky, height, width)


def _is_plain(page: "TiffPage") -> bool:
    """Whether the samples are what is displayed, but for a palette, inversion and alpha beside."""
    premultiplied = _PREMULTIPLIED in page.extrasamples and page.bitspersample == 8
    return (
        page.photometric in (_INVERTED, _GREY, _RGB, _PALETTE)
        and page.bitspersample in (8, 16, 32, 64)
        and page.fillorder == 1
        and not premultiplied
        and not (page.photometric == _PALETTE and (page.bitspersample != 8 or page.samplesperpixel > 1))
    )


def _by_pillow_first(page: "TiffPage") -> bool:
    """Whether Pillow is asked first: always the same, so that values do not depend on what else is installed."""
    return not (_is_plain(page) and page.compression in (1, 8, 32946) and page.predictor in (1, 2))


@contextmanager
def _opened_by_pillow(path: Path, page: "TiffPage") -> Iterator[Image.Image | None]:
    """The file as Pillow sees it; None if tifffile reads it better or Pillow does not know the like."""
    if not _by_pillow_first(page) or page.imagelength * page.imagewidth > MAX_PIXELS_BY_PILLOW:
        yield None
        return
    with path.open("rb") as stream:  # a path would be mapped, and mapped pages lose their orientation
        try:
            image = Image.open(stream, formats=["TIFF"])
        except _UNKNOWN_TO_PILLOW:
            image = None
        yield image


def _decoded_by_pillow(image: Image.Image, page: int, layout: _Layout) -> tuple[NDArray[Any], bool] | None:
    """A page [channels, height, width] as displayed; None if Pillow does not know the like or would cut bits off."""
    try:
        image.seek(page)
    except _UNKNOWN_TO_PILLOW:
        return None
    layouts = [args if isinstance(args, str) else (args or [""])[0] for *_, args in getattr(image, "tile", ())]
    if image.mode not in _GREY_MODES and any(str(name).endswith(_DEEP_LAYOUTS) for name in layouts):
        return None
    if image.mode in ("I", "F") and layout.file.byteorder == ">":  # decoded without swapping the bytes of packed ones
        return None
    if {*image.size} != {layout.page.imagewidth, layout.page.imagelength}:  # perhaps turned already
        raise _damaged(ValueError("a page of another size"))
    image.load()  # has turned packed pages as displayed, and taken the tag away
    return _planes_of(ImageOps.exif_transpose(image), layout)


def _planes_of(image: Image.Image, layout: _Layout) -> tuple[NDArray[Any], bool]:
    shown = image.convert("LA") if image.mode == "La" else image  # "La" converts to nothing else
    transparent = shown.has_transparency_data and shown.convert("RGBA").getchannel("A").getextrema()[0] != 255
    if shown.mode in ("P", "PA") and layout.as_mask:
        plane = np.asarray(shown.getchannel("P"))
    elif shown.mode in _GREY_MODES:
        plane = np.asarray(shown.convert("L") if shown.mode in ("1", "LA") else shown)
    else:
        plane = np.moveaxis(np.asarray(shown.convert("RGB")), 2, 0)
    plane = plane[None] if plane.ndim == 2 else plane
    if plane.shape != (layout.channels, *layout.plane):
        raise _damaged(ValueError(f"{_times(plane.shape)} pixels instead of {layout.channels} channels"))
    return plane, transparent


def _displayed(pages: NDArray[Any], layout: _Layout) -> tuple[NDArray[Any], bool]:
    """Samples [pages, samples, height, width] as they are displayed [pages, channels, height, width]."""
    page, alpha = layout.page, layout.alpha
    transparent = False
    if alpha is not None:
        opaque = np.iinfo(pages.dtype).max if np.issubdtype(pages.dtype, np.integer) else 1
        transparent = bool((pages[:, alpha] < opaque).any())
    shown = pages[:, : len(layout.samples)]
    if page.photometric == _INVERTED and page.bitspersample == 8:
        shown = 255 - shown
    elif page.photometric == _PALETTE and not layout.as_mask:
        colours = (np.asarray(page.colormap) // 256).astype(np.uint8)  # as Pillow rounds them
        shown = np.moveaxis(colours[:, shown[:, 0]], 0, 1)
    return _turned(shown, _orientation(page)), transparent


def _turned(planes: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror [..., rows, columns] as stored to what the orientation of TIFF and EXIF displays."""
    if orientation >= 5:
        planes = planes.swapaxes(-1, -2)
    if orientation in (2, 3, 6, 7):
        planes = planes[..., ::-1]
    if orientation in (3, 4, 7, 8):
        planes = planes[..., ::-1, :]
    return planes


def _arranged(planes: NDArray[Any], letters: str) -> NDArray[Any]:
    """From the axes of the file to [channels, slices, height, width], without a copy where that can be."""
    order = sorted(range(len(letters)), key=lambda i: "CSTZYX".index(letters[i]))
    lengths = dict(zip(letters, planes.shape, strict=True))
    channels = lengths.get("C", 1) * lengths.get("S", 1)
    slices = lengths.get("Z", 1) * lengths.get("T", 1)
    return planes.transpose(order).reshape(channels, slices, lengths["Y"], lengths["X"])


def _usual_type(dtype: np.dtype[Any] | None) -> np.dtype[Any]:
    """The type in which pixels of a file's type are given.

    Raises:
        FileError: They are complex.
    """
    if dtype is None or dtype.kind not in "biuf":
        raise FileError("holds complex numbers", "save their magnitude")
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind == "f":
        return np.dtype(np.float32)
    usual = {"u1": np.uint8, "u2": np.uint16, "i1": np.int16, "i2": np.int16}
    return np.dtype(usual.get(dtype.str[1:], np.int32))


def _in_usual_type(pixels: NDArray[Any]) -> NDArray[np.generic]:
    dtype = _usual_type(pixels.dtype)
    if pixels.dtype == dtype:
        return pixels
    if dtype == np.int32 and pixels.dtype != ">i4":
        limits = np.iinfo(np.int32)
        if pixels.min() < limits.min or pixels.max() > limits.max:
            raise FileError(f"holds whole numbers beyond {limits.max:,}", "save it as 32-bit float")
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        return pixels.astype(dtype)


def _require_finite(pixels: NDArray[np.generic]) -> None:
    """Look at some rows at a time: a mapped file may be larger than memory."""
    if pixels.dtype != np.float32:
        return
    rows = max(1, 2**22 // pixels.shape[3])
    for plane in (plane for channel in pixels for plane in channel):
        for top in range(0, len(plane), rows):
            if not np.isfinite(plane[top : top + rows]).all():
                raise FileError("holds nan or infinite values", "replace them, with 0 for instance")


def _spacing_mm(layout: _Layout) -> tuple[float, float, float] | None:
    """What the file states: OME first, then ImageJ, then the resolution tags."""
    file = layout.file
    if file.is_ome:
        stated = _ome_spacing_mm(file.ome_metadata)
    elif file.is_imagej:
        stated = _imagej_spacing_mm(file.imagej_metadata or {}, layout.page)
    else:
        stated = _tagged_spacing_mm(layout.page)
    low, high = _BELIEVABLE_MM
    if stated is None or not all(low < value < high for value in stated):  # false for nan, too
        return None
    slices, rows, columns = stated
    return (slices, columns, rows) if _orientation(layout.page) >= 5 else stated


def _ome_spacing_mm(text: str | None) -> tuple[float, float, float] | None:
    from xml.etree import ElementTree

    root = ElementTree.fromstring(text or "<OME/>")
    pixels = next((element for element in root.iter() if element.tag.endswith("Pixels")), None)
    if pixels is None or not {"PhysicalSizeX", "PhysicalSizeY"} <= pixels.attrib.keys():
        return None
    sizes = []
    for axis in "ZYX":
        unit = _UNIT_IN_MM.get(pixels.attrib.get(f"PhysicalSize{axis}Unit", "um"))
        size = pixels.attrib.get(f"PhysicalSize{axis}")
        if size is not None and unit is None:
            return None
        sizes.append(float(size) * (unit or 1.0) if size is not None else 1.0)
    return sizes[0], sizes[1], sizes[2]


def _imagej_spacing_mm(metadata: dict[str, Any], page: "TiffPage") -> tuple[float, float, float] | None:
    unit = _UNIT_IN_MM.get(str(metadata.get("unit", "")).lower())
    per_unit = _resolution(page)
    if unit is None or per_unit is None:
        return None
    rows, columns = per_unit
    spacing = metadata.get("spacing")
    return float(spacing) * unit if spacing else 1.0, unit / rows, unit / columns


def _tagged_spacing_mm(page: "TiffPage") -> tuple[float, float, float] | None:
    unit = {2: 25.4, 3: 10.0}.get(page.tags.valueof(296, default=2))
    per_unit = _resolution(page)
    if unit is None or per_unit is None:
        return None
    rows, columns = per_unit
    if any(abs(25.4 * rows / unit / dpi - 1) < 0.005 for dpi in _PRINT_DPI):
        return None
    return 1.0, unit / rows, unit / columns


def _resolution(page: "TiffPage") -> tuple[float, float] | None:
    """Rows and columns per unit."""
    values = [page.tags.valueof(code) for code in (283, 282)]
    if not all(isinstance(value, tuple) and len(value) == 2 and value[0] and value[1] for value in values):
        return None
    return values[0][0] / values[0][1], values[1][0] / values[1][1]


def _times(lengths: tuple[int, ...]) -> str:
    return " x ".join(map(str, lengths))


def _packed(page: "TiffPage") -> FileError:
    name = getattr(page.compression, "name", str(page.compression))
    bits = page.bitspersample
    return FileError(
        f"is packed as {name} with {bits} bits and {page.samplesperpixel} samples a pixel, which cannot be read here",
        "save it uncompressed or with deflate, or install the Python package imagecodecs",
    )


def _damaged(fault: BaseException) -> FileError:
    if isinstance(fault, MemoryError):
        return FileError("needs more memory than there is", "use fewer workers, close other programs, or shrink it")
    reason = str(fault).split("\n")[0].rstrip(".") or type(fault).__name__
    if isinstance(fault, (LookupError, TypeError, AttributeError)):  # their words are for programmers
        reason = "its tags contradict each other or end too early"
    return FileError(f"is truncated or damaged ({reason})", "copy it again from its source or remove it")
