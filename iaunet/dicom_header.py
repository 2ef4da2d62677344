"""Reads the headers of DICOM files (PS3.5, PS3.10): every element before the pixel data, without decoding pixels."""

import io
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from iaunet.errors import FileError

PREAMBLE = 128
"""Bytes before the letters ``DICM``."""

MAX_INFLATED = 2**30
"""Bytes a deflated header may unpack to. More is taken for a decompression bomb."""

PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA = 0x7FE00010, 0x7FE00008, 0x7FE00009

_TRANSFER_SYNTAX = 0x00020010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG_FORMS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""Value representations whose length takes four bytes."""

_SHORT_FORMS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Those whose length takes two; there are no others."""

_MAX_DEPTH = 32


class _Coding(NamedTuple):
    """How elements are written: with their value representation or not, and in which byte order."""

    is_explicit: bool = True
    is_little: bool = True

    def integer(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self.is_little else "big")


_EXPLICIT_LITTLE = _Coding()

_CODINGS = {
    "1.2.840.10008.1.2": _Coding(is_explicit=False),
    "1.2.840.10008.1.2.2": _Coding(is_little=False),
}
"""By transfer syntax; all others are explicit and little endian."""

_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class Elements:
    """The elements of a file or of one item of a sequence: undecoded values by tag, 0xGGGGEEEE."""

    values: Mapping[int, bytes]
    coding: _Coding = _EXPLICIT_LITTLE

    def __contains__(self, tag: int) -> bool:
        return tag in self.values

    def text(self, tag: int) -> str:
        """A text without padding; empty when the element is not there."""
        data = self.values.get(tag, b"")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        return " ".join(text.strip("\0 ").split())

    def numbers(self, tag: int) -> tuple[float, ...]:
        """The finite values of a decimal or integer string; empty when the element is not there or has none.

        Raises:
            FileError: They are no such numbers.
        """
        text = self.text(tag)
        try:
            numbers = tuple(float(part) for part in text.split("\\")) if text else ()
        except ValueError:
            numbers = (math.nan,)
        if not all(map(math.isfinite, numbers)):
            raise FileError(f"holds {text[:40]!r} where numbers belong, {_named(tag)}", "export it again")
        return numbers

    def whole(self, tag: int, missing: int = 0) -> int:
        """An unsigned binary integer, or ``missing``."""
        data = self.values.get(tag, b"")
        return self.coding.integer(data[:2]) if data else missing

    def items(self, tag: int) -> list["Elements"]:
        """The items of a sequence; none when the element is not there.

        Raises:
            FileError: It is damaged.
        """
        stream = io.BytesIO(self.values.get(tag, b""))
        return [Elements(values, self.coding) for values in _read_items(stream, self.coding, 1)]


@dataclass(frozen=True)
class Header(Elements):
    """The elements of a file before its pixel data.

    ``pixel_tag`` is that of its pixel data, None when it has none; ``pixel_bytes`` is their length, None when they
    are compressed, and ``pixel_start`` their place in the (inflated) file. ``is_whole`` tells whether the file is as
    long as its pixel data say. ``pixel_end`` is where these end if other things than elements follow, else None.
    """

    path: Path = Path()
    pixel_tag: int | None = None
    pixel_bytes: int | None = None
    pixel_start: int = 0
    is_whole: bool = True
    pixel_end: int | None = None

    @property
    def transfer_syntax(self) -> str:
        """The UID that says how the file is encoded."""
        return self.text(_TRANSFER_SYNTAX)


def has_dicom_magic(path: Path) -> bool:
    """Whether ``DICM`` stands where a DICOM file has it."""
    try:
        with path.open("rb") as file:
            file.seek(PREAMBLE)
            return file.read(4) == b"DICM"
    except OSError:
        return False


def read_elements(path: Path) -> Header:
    """Read the header of a DICOM file.

    Raises:
        FileError: It is missing, cannot be read, is no DICOM file or its header is damaged.
    """
    try:
        with path.open("rb") as file:
            return _read_file(path, file)
    except FileNotFoundError as fault:
        raise FileError("file is missing", "restore it, or plan again without it") from fault
    except OSError as fault:
        raise FileError(f"cannot be read ({fault.strerror})", "mend its permissions or copy it again") from fault


def _read_file(path: Path, file: BinaryIO) -> Header:
    file.seek(PREAMBLE)
    if file.read(4) != b"DICM":
        raise FileError("is no DICOM file, whatever its name says", "remove it or export it again")
    values = _read_meta(file)
    syntax = Elements(values).text(_TRANSFER_SYNTAX)
    coding = _CODINGS.get(syntax, _EXPLICIT_LITTLE)
    stream = _inflated(file) if syntax == _DEFLATED else file
    values |= _read_elements(stream, coding, 0, is_delimited=False)
    if not _has_more(stream):
        return Header(values, coding, path)
    pixel_tag, length, _ = _read_tag(stream, coding)
    pixel_bytes = None if length == _UNDEFINED else length
    pixel_start = stream.tell()
    is_whole = _skip_pixels(stream, length, coding)
    behind = stream.tell()
    ends_well = not is_whole or _holds_elements(stream, coding)
    if not ends_well and syntax == _DEFLATED:
        raise _damaged()
    return Header(
        values, coding, path, pixel_tag, pixel_bytes, pixel_start, is_whole, pixel_end=None if ends_well else behind
    )


def _read_meta(file: BinaryIO) -> dict[int, bytes]:
    """The elements of group 2, which are always explicit and little endian."""
    values: dict[int, bytes] = {}
    while True:
        start = file.tell()
        if not _has_more(file) or int.from_bytes(file.read(2), "little") != 2:
            file.seek(start)
            return values
        file.seek(start)
        tag, length, is_un = _read_tag(file, _EXPLICIT_LITTLE)
        values[tag] = _read_value(file, length, _EXPLICIT_LITTLE, 0, is_un)


def _inflated(file: BinaryIO) -> BinaryIO:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = unpacker.decompress(file.read(), MAX_INFLATED)
    except zlib.error as fault:
        raise _damaged() from fault
    if unpacker.unconsumed_tail:
        raise FileError(f"unpacks to more than the {MAX_INFLATED:,} bytes allowed", "export it without compression")
    return io.BytesIO(data)


def _read_elements(stream: BinaryIO, coding: _Coding, depth: int, is_delimited: bool) -> dict[int, bytes]:
    """Read elements up to the end of the item or stream; the outermost ones (depth 0) up to the pixel data."""
    values: dict[int, bytes] = {}
    while is_delimited or _has_more(stream):
        start = stream.tell()
        tag, length, is_un = _read_tag(stream, coding)
        if is_delimited and tag == _ITEM_END:
            break
        if depth == 0 and tag in (PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA):
            stream.seek(start)
            break
        values[tag] = _read_value(stream, length, coding, depth, is_un)
    return values


def _read_tag(stream: BinaryIO, coding: _Coding) -> tuple[int, int, bool]:
    """The tag and length of the next element, and whether its representation is unknown (UN)."""
    tag = coding.integer(_take(stream, 2)) << 16 | coding.integer(_take(stream, 2))
    if not coding.is_explicit or tag >> 16 == 0xFFFE:
        return tag, coding.integer(_take(stream, 4)), False
    form = _take(stream, 2)
    if form in _SHORT_FORMS:
        return tag, coding.integer(_take(stream, 2)), False
    if form not in _LONG_FORMS:  # GDCM would take what follows for a length
        raise _damaged()
    _take(stream, 2)
    return tag, coding.integer(_take(stream, 4)), form == b"UN"


def _read_item_tag(stream: BinaryIO, coding: _Coding) -> tuple[int, int]:
    """The tag and length of an item or of a sequence's end, which never have a value representation."""
    return _read_tag(stream, coding._replace(is_explicit=False))[:2]


def _read_value(stream: BinaryIO, length: int, coding: _Coding, depth: int, is_un: bool) -> bytes:
    if length != _UNDEFINED:
        return _take(stream, length)
    start = stream.tell()
    # an unknown sequence is written as implicit VR little endian, whatever the rest is (PS3.5, 6.2.2)
    _read_items(stream, _Coding(is_explicit=False) if is_un else coding, depth + 1)
    end = stream.tell()
    stream.seek(start)
    return _take(stream, end - start)


def _read_items(stream: BinaryIO, coding: _Coding, depth: int) -> list[dict[int, bytes]]:
    if depth > _MAX_DEPTH:
        raise _damaged()
    items = []
    while _has_more(stream):
        tag, length = _read_item_tag(stream, coding)
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM:
            raise _damaged()
        is_delimited = length == _UNDEFINED
        inside = stream if is_delimited else io.BytesIO(_take(stream, length))
        items.append(_read_elements(inside, coding, depth, is_delimited))
    return items


def _skip_pixels(stream: BinaryIO, length: int, coding: _Coding) -> bool:
    """Go behind the pixel data that begin here, one block or fragments; whether they end within the stream."""
    size = _size(stream)
    if length != _UNDEFINED:
        return stream.seek(length, os.SEEK_CUR) <= size
    while stream.tell() + 8 <= size:
        tag, length = _read_item_tag(stream, coding)
        if tag == _SEQUENCE_END:
            return True
        if tag != _ITEM:
            return False
        stream.seek(length, os.SEEK_CUR)
    return False


def _holds_elements(stream: BinaryIO, coding: _Coding) -> bool:
    """Whether all that follows are sound elements."""
    try:
        _read_elements(stream, coding, 1, is_delimited=False)
    except FileError:
        return False
    return True


def _size(stream: BinaryIO) -> int:
    here = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(here)
    return size


def _has_more(stream: BinaryIO) -> bool:
    more = bool(stream.read(1))
    if more:
        stream.seek(-1, os.SEEK_CUR)
    return more


def _take(stream: BinaryIO, length: int) -> bytes:
    if length > 1 << 16 and length > _size(stream):  # nothing is allocated for a length that cannot be
        raise _damaged()
    data = stream.read(length)
    if len(data) != length:
        raise _damaged()
    return data


def _damaged() -> FileError:
    return FileError("has a truncated or damaged DICOM header", "copy or export it again")


def _named(tag: int) -> str:
    return f"element ({tag >> 16:04X},{tag & 0xFFFF:04X})"
