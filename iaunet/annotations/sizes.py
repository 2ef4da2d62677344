"""The size of an image, from its header."""

import struct
from pathlib import Path

from PIL import Image
from PIL.Image import DecompressionBombError

from iaunet.errors import FileError
from iaunet.files import FORMATS, MAX_PIXELS
from iaunet.silence import ignoring_warnings
from iaunet.tiffs import tiff_header

_ORIENTATION = 0x0112
_FIRST_TURNED = 5
"""From this value on the EXIF orientation exchanges height and width."""


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image as it is displayed, EXIF orientation honoured; no pixel is decoded.

    Raises:
        FileError: It is missing, no readable image, has several pages, or is too large for a mask in one PNG file.
    """
    is_tiff = FORMATS.get(path.suffix.lower()) == "TIFF"
    height, width = _tiff_size(path) if is_tiff else _picture_size(path)
    if height * width > MAX_PIXELS:
        raise _too_large()
    return height, width


def _tiff_size(path: Path) -> tuple[int, int]:
    _, pages, height, width = tiff_header(path).shape
    if pages > 1:
        raise FileError(f"holds {pages} pages, annotations are for one", "save each page as an image of its own")
    return height, width


def _picture_size(path: Path) -> tuple[int, int]:
    try:
        # there are warnings of damage that ends in a fault, and of a limit that is half of ours
        with ignoring_warnings(), Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
            width, height = image.size
            turned = _orientation(image) >= _FIRST_TURNED
    except DecompressionBombError as fault:
        raise _too_large() from fault
    except FileNotFoundError as fault:
        raise FileError("image is missing", "restore it") from fault
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error) as fault:
        raise FileError("is not a readable PNG, JPEG, BMP or TIFF image", "copy it again or remove it") from fault
    return (width, height) if turned else (height, width)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asking further would decode the pixels
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def _too_large() -> FileError:
    return FileError(f"has more pixels than the {MAX_PIXELS:,} allowed", "cut or shrink it")
