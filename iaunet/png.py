"""Whether the packed pixels of a PNG file are whole: Pillow looks at no checksum of theirs, and leaves missing rows
black."""

import struct
import zlib
from collections.abc import Iterator

MOST_DENSE = 1032
"""Bytes that one byte of deflated data unfolds to at most."""

_SIGNATURE = 8
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel by the type of colour."""

_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""Of an interlaced file: the first row and column of each pass, and its steps."""


def promised_bytes(data: bytes) -> int:
    """How many bytes the rows of a PNG file unfold to, by its header."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, _SIGNATURE + 8)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(height - top) // down), -(-(width - left) // right)) for top, left, down, right in passes]
    pixel = bits * _SAMPLES.get(colour, 1)
    return sum(rows * (1 + -(-columns * pixel // 8)) for rows, columns in sizes if rows > 0 and columns > 0)


def is_interlaced(data: bytes) -> bool:
    """Whether the rows come in seven passes."""
    return data[_SIGNATURE + 20] != 0


def held_bytes(data: bytes, enough: int) -> int:
    """How many bytes its packed rows unfold to; what comes after ``enough`` of them is not looked at."""
    unpacker, held = zlib.decompressobj(), 0
    for start, end in _packed(data):
        packed = data[start:end]
        while packed and held < enough:
            held += len(unpacker.decompress(packed, 1 << 20))
            packed = unpacker.unconsumed_tail
    return held if held >= enough else held + len(unpacker.flush())


def has_sound_pixels(data: bytes) -> bool:
    """Whether the checksums of its packed rows fit."""
    view = memoryview(data)
    sums = ((zlib.crc32(view[start - 4 : end]), view[end : end + 4]) for start, end in _packed(data))
    return all(found.to_bytes(4, "big") == told for found, told in sums)


def _packed(data: bytes) -> Iterator[tuple[int, int]]:
    """Where packed rows begin and end."""
    place = _SIGNATURE
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            yield place + 8, place + 8 + length
        place += 12 + length
