"""Damages the bytes of sound files as bad disks, broken transfers and attackers do."""

import re
from collections.abc import Callable

import numpy as np

MOST_CHANGES = 4
HEADER = 512
"""Half of all changes begin in as many bytes: there files say what they hold."""

NUMBERS = (b"0", b"-1", b"1", b"255", b"65536", b"2147483648", b"9" * 20, b"1e400", b"nan", b"0.5", b"")
"""What takes the place of a number that a file holds as text."""

Change = Callable[[bytes, np.random.Generator, bytes], bytes]


def mutate(data: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """A file with one to `MOST_CHANGES` changes.

    Args:
        data: The bytes of a sound file.
        rng: Decides everything.
        other: The bytes of another sound file, which parts are taken from; the same one if empty.
    """
    for _ in range(int(rng.integers(1, MOST_CHANGES + 1))):
        change = CHANGES[int(rng.integers(len(CHANGES)))]
        data = change(data, rng, other or data)
    return data


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Where a change begins."""
    reach = min(HEADER, len(data)) if rng.integers(2) else len(data)
    return int(rng.integers(reach)) if reach else 0


def _block(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """Beginning and end of a block of up to 64 bytes, or of up to the whole."""
    start = _place(data, rng)
    longest = 64 if rng.integers(2) else max(len(data), 1)
    return start, start + 1 + int(rng.integers(longest))


def _flip_bits(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4)) if data else 0):
        changed[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _set_bytes(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    start = _place(data, rng)
    return data[:start] + rng.bytes(int(rng.integers(1, 5))) + data[start + 1 :]


def _set_field(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    """An extreme number where a field of 1, 2, 4 or 8 bytes may be."""
    size = 1 << int(rng.integers(4))
    extremes = (0, 1, 1 << (8 * size - 1), (1 << (8 * size - 1)) - 1, (1 << 8 * size) - 1, (1 << 4 * size) - 1)
    field = extremes[int(rng.integers(len(extremes)))].to_bytes(size, "big" if rng.integers(2) else "little")
    start = _place(data, rng) // size * size
    return data[:start] + field + data[start + size :]


def _set_number(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    """Another number in the place of one that is written as text."""
    found = [*re.finditer(rb"-?\d+(\.\d+)?", data[: 4 * HEADER])]
    if not found:
        return data
    number = found[int(rng.integers(len(found)))]
    return data[: number.start()] + NUMBERS[int(rng.integers(len(NUMBERS)))] + data[number.end() :]


def _truncate(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    return data[: _place(data, rng)]


def _remove(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    start, end = _block(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    start, end = _block(data, rng)
    return data[:end] + data[start:end] * int(rng.integers(1, 4)) + data[end:]


def _insert(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    start = _place(data, rng)
    return data[:start] + rng.bytes(int(rng.integers(1, 65))) + data[start:]


def _append(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 65)))


def _take_part(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """A part of another file in the same place."""
    start, end = _block(other, rng)
    return data[:start] + other[start:end] + data[end:]


def _splice(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """The beginning of one file and the end of another."""
    return data[: _place(data, rng)] + other[_place(other, rng) :]


CHANGES: tuple[Change, ...] = (
    _flip_bits,
    _flip_bits,
    _set_bytes,
    _set_field,
    _set_field,
    _set_number,
    _truncate,
    _remove,
    _repeat,
    _insert,
    _append,
    _take_part,
    _splice,
)
