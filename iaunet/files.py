"""Reads and writes images and masks. Every stage touches raw data through this module only."""

import dataclasses
import io
import struct
import zlib
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import DecompressionBombError
from PIL.PngImagePlugin import PngInfo

from iaunet import png
from iaunet.errors import FileError
from iaunet.exhaustion import is_out_of_memory
from iaunet.silence import ignoring_warnings
from iaunet.storage import replacing

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""File endings that are read, with Pillow's name of the format. No other decoder is ever tried."""

MADE_FROM = "iaunet:made-from"
"""The key of the text in a PNG file that names what it was made from."""

MAX_PIXELS = 178_956_970
"""Pixels an image may have, Pillow's own limit: 512 MiB as RGB. More is taken for a decompression bomb."""

MAX_PNG_PIXELS = 2**29
"""Pixels a PNG image may have: masks of the largest TIFF images are written as PNG, and read again."""

_pillows_limit = Lock()
"""Held while `Image.MAX_IMAGE_PIXELS` is another than its own."""

_DECODER_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    MemoryError,
    DecompressionBombError,  # a tile of a TIFF image
    struct.error,
    zlib.error,
)
"""What Pillow's decoders are known to raise on damaged files."""

_MOST_DENSE_JPEG = 1024
"""Pixels that one byte of a JPEG file may stand for: a block of 64 takes a bit at least. Pillow makes missing ones grey
and says nothing."""

_DEEP_LAYOUTS = (";16B", ";16L", ";16N")
"""End Pillow's names of how a file lays out 16 bits a channel."""

_GREY_MODES = {"1", "L", "LA", "I;16", "I;16L", "I;16B", "I;16N", "I", "F"}


@dataclasses.dataclass(frozen=True, eq=False)
class RawImage:
    """An image as it is displayed.

    ``pixels`` is [channels, height, width] in uint8, uint16, int32 or float32: one channel for grey, three for
    colour. ``has_transparency`` tells that an alpha channel was left out that was not opaque everywhere.
    """

    pixels: NDArray[np.generic]
    has_transparency: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


def is_image_file(path: Path) -> bool:
    """Whether the ending is one of `FORMATS`."""
    return path.suffix.lower() in FORMATS


def read_bytes(path: Path) -> bytes:
    """The bytes of a raw file.

    Raises:
        FileError: It is missing, empty or not to be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as fault:
        raise FileError("file is missing", "restore it, or plan again without it") from fault
    except OSError as fault:
        raise FileError(f"cannot be read ({fault.strerror})", "mend its permissions or copy it again") from fault
    if not data:
        raise FileError("file is empty", "copy it again or remove it")
    return data


@ignoring_warnings()
def decode_image(data: bytes) -> RawImage:
    """Decode an image file.

    Args:
        data: The bytes of a PNG, JPEG, BMP or TIFF file with one page.

    Raises:
        FileError: It is none of these, damaged, too large, has several pages, or holds nan or infinity.
    """
    image = _open(data)
    transparent = _is_transparent(image)
    if image.mode in _GREY_MODES:
        pixels = _plane(image)[None]
    else:
        colours = image if image.mode == "RGB" else image.convert("RGB")
        pixels = np.stack([np.asarray(band) for band in colours.split()])
    if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
        raise FileError("holds nan or infinite values", "replace them, with 0 for instance")
    return RawImage(pixels, transparent)


@ignoring_warnings()
def decode_mask(data: bytes) -> NDArray[np.integer]:
    """Decode a mask file.

    Args:
        data: The bytes of a PNG, JPEG, BMP or TIFF file with one page. A palette's indices are the values.

    Returns:
        The values [height, width] as uint8, uint16 or int32; a 1-bit mask has 0 and 255.

    Raises:
        FileError: As `decode_image`; also for colours that are not shades of grey and values that are not whole.
    """
    image = _open(data)
    if image.mode == "P":
        return _pixels(image, "P")  # type: ignore[return-value]
    if image.mode in _GREY_MODES:
        values = _plane(image)
    else:
        colours = _pixels(image, "RGB")
        values = np.ascontiguousarray(colours[..., 0])
        if not (colours == values[..., None]).all():
            raise FileError(
                "mask holds colours", "save it with one channel, 0 for background and a value for each label"
            )
    if values.dtype == np.float32:
        with np.errstate(invalid="ignore"):  # nan and infinity become some number, which differs
            whole = values.astype(np.int32)
        if not np.array_equal(whole, values):
            raise FileError("mask holds values that are not whole numbers", "save it with whole values")
        return whole
    return values  # type: ignore[return-value]


@ignoring_warnings()
def may_hold_colours(path: Path) -> bool:
    """Whether a mask file says that it has colours: told by its header, though all may turn out to be grey.

    JPEG is left out: it cannot hold exact colours.
    """
    try:
        with _header(path, ["PNG", "BMP", "TIFF"]) as image:
            return image.mode in ("RGB", "RGBA", "P", "PA")
    except _DECODER_FAULTS:
        return False


def read_image(path: Path) -> RawImage:
    """Read an image file, see `decode_image`."""
    return decode_image(read_bytes(path))


def read_mask(path: Path) -> NDArray[np.integer]:
    """Read a mask file, see `decode_mask`."""
    return decode_mask(read_bytes(path))


def write_png(path: Path, pixels: NDArray[np.generic], made_from: str = "") -> None:
    """Write pixels as PNG, whole or not at all.

    Args:
        path: Ends in ``.png``.
        pixels: uint8 or uint16 [height, width], or uint8 [height, width, 3].
        made_from: Names what they were made from; kept in the file as a text, see `read_made_from`.
    """
    with replacing(path) as temporary:
        save_png(temporary, pixels, made_from)


def save_png(path: Path, pixels: NDArray[np.generic], made_from: str = "", as_indices: bool = False) -> None:
    """Write pixels as `write_png` does, but to a file that counts only once something else says so.

    ``as_indices`` writes uint8 [height, width] as indices of colours that mean nothing, in half the time: Pillow tries
    no filters of rows then.
    """
    note = PngInfo()
    if made_from:
        note.add_text(MADE_FROM, made_from)
    image = Image.fromarray(pixels)
    if as_indices:
        image.putpalette(bytes(3 * (int(pixels.max()) + 1)))
    image.save(path, format="PNG", compress_level=1, pnginfo=note)


@ignoring_warnings()
def read_made_from(path: Path) -> str:
    """What a PNG file says it was made from; empty when it is missing, damaged or does not say."""
    try:
        with _header(path, ["PNG"]) as image:
            return str(image.info.get(MADE_FROM, ""))
    except _DECODER_FAULTS:
        return ""


def to_channels(pixels: NDArray[np.generic], channels: int) -> NDArray[np.generic]:
    """Bring an image [own channels, ..., H, W] to a number of channels.

    Grey is repeated, as a view; colour becomes grey with the weights of ITU-R 601-2, rounded for whole numbers.

    Raises:
        FileError: There is no way from the image's channels to these.
    """
    own = pixels.shape[0]
    if own == channels:
        return pixels
    if own == 1:
        return np.broadcast_to(pixels, (channels, *pixels.shape[1:]))
    if own == 3 and channels == 1:
        grey = np.empty((1, *pixels.shape[1:]), pixels.dtype)
        for rows in np.ndindex(pixels.shape[1:-1]):  # row by row: as floats a large image would not fit
            line = np.tensordot(np.array([0.299, 0.587, 0.114]), pixels[(slice(None), *rows)], axes=1)
            grey[(0, *rows)] = np.rint(line) if np.issubdtype(pixels.dtype, np.integer) else line
        return grey
    raise FileError(f"has {own} channels, the data set has {channels}", f"give images with {channels} channels")


def _header(file: Path | io.BytesIO, formats: list[str]) -> Image.Image:
    """Open an image without Pillow's limit of pixels, which is global; none is decoded yet."""
    with _pillows_limit:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _open(data: bytes) -> Image.Image:
    """Open and decode one page in its displayed orientation, with every fault of the decoder named."""
    try:
        image = _header(io.BytesIO(data), sorted(set(FORMATS.values())))
    except UnidentifiedImageError as fault:
        raise FileError(
            "is not a readable PNG, JPEG, BMP or TIFF image, whatever its name says",
            "remove it or save it again as PNG",
        ) from fault
    except _DECODER_FAULTS as fault:
        raise _damaged(fault) from fault
    width, height = image.size
    most = MAX_PNG_PIXELS if image.format == "PNG" else MAX_PIXELS
    if width * height > most:
        raise FileError(f"has {height} x {width} pixels, more than the {most:,} allowed", "cut or shrink it")
    try:
        pages = getattr(image, "n_frames", 1)
        if pages > 1 and image.format != "MPO":  # a JPEG whose further pages are previews
            raise FileError(f"holds {pages} pages", "save each page as an image of its own")
        if _would_lose_depth(image):
            raise FileError(
                "holds colour with 16 bits a channel, which is not read yet", "save it with 8 bits a channel"
            )
        if image.format == "PNG":
            _load_png(image, data)
        else:
            if image.format in ("JPEG", "MPO") and width * height > len(data) * _MOST_DENSE_JPEG:
                raise ValueError(f"{len(data):,} bytes cannot unfold to {height} x {width} pixels")
            image.load()
        ImageOps.exif_transpose(image, in_place=True)  # else it copies what needs no turning
        return image.convert("LA") if image.mode == "La" else image  # "La" converts to nothing else
    except FileError:
        raise
    except _DECODER_FAULTS as fault:
        raise _damaged(fault) from fault


def _load_png(image: Image.Image, data: bytes) -> None:
    """Decode a PNG file, all of whose rows must be there. Only a picture that may lack the last is unpacked twice."""
    promised = png.promised_bytes(data)
    if promised > len(data) * png.MOST_DENSE:
        raise ValueError(f"{len(data):,} bytes cannot unfold to {promised:,}")
    if not png.has_sound_pixels(data):
        raise ValueError("a checksum of its pixels does not fit")
    image.load()
    width, height = image.size
    if png.is_interlaced(data) or not np.asarray(image.crop((0, height - 1, width, height))).any():
        held = png.held_bytes(data, promised)
        if held < promised:
            raise ValueError(f"its rows end after {held:,} of {promised:,} bytes")


def _would_lose_depth(image: Image.Image) -> bool:
    """Whether Pillow would cut 16 bits a channel to 8, as it does with all but plain grey, and tells nobody."""
    layouts = [args if isinstance(args, str) else args[0] for *_, args in getattr(image, "tile", ())]
    return image.mode not in _GREY_MODES and any(str(layout).endswith(_DEEP_LAYOUTS) for layout in layouts)


def _damaged(fault: BaseException) -> FileError:
    if is_out_of_memory(fault):
        return FileError("needs more memory than there is", "use fewer workers, close other programs, or shrink it")
    reason = str(fault).split("\n")[0].rstrip(".") or type(fault).__name__
    return FileError(f"is truncated or damaged ({reason})", "copy it again from its source or remove it")


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    alpha = image.convert("RGBA").getchannel("A")
    return alpha.getextrema()[0] != 255


def _plane(image: Image.Image) -> NDArray[np.generic]:
    """The pixels [height, width] of a grey image."""
    plane = _pixels(image, "L" if image.mode in ("1", "LA") else image.mode)
    if plane.dtype.byteorder == ">":
        plane = plane.astype(plane.dtype.newbyteorder("="))
    if plane.dtype == np.int32 and plane.min() >= 0 and plane.max() <= 65535:
        return plane.astype(np.uint16)
    return plane


def _pixels(image: Image.Image, mode: str) -> NDArray[np.generic]:
    return np.asarray(image if image.mode == mode else image.convert(mode))
