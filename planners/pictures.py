"""Pictures and masks that measuring has decoded, kept on the disk until preprocessing asks for them."""

import contextlib
import itertools
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet.storage import make_folder

MOST_KEPT = 2**14
"""Pictures kept at most: 4 GB in colour, and as much for their masks."""

MOST_PIXELS = 2**18
"""Pixels of a mask that is kept at its own size at most; that of a larger picture is read again."""

SPARE_BYTES = 2**21
"""Free space that each picture must find on the disk: its own and that of the arrays, twice."""


@dataclass(frozen=True, eq=False)
class KeptPicture:
    """A picture [C, h, w] at the size of the network's input and the raw values of its mask, at this size [h, w] and
    at its own [H, W], all of eight bits. The last is None where it is too large to be kept."""

    picture: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    whole_mask: NDArray[np.uint8] | None

    @property
    def parts(self) -> list[NDArray[np.uint8]]:
        """What is kept of it."""
        if self.whole_mask is None or self.whole_mask.size > MOST_PIXELS:
            return [self.picture, self.mask]
        return [self.picture, self.mask, self.whole_mask]


@dataclass(frozen=True)
class KeptPlace:
    """Where a picture is kept: its file, the first of its bytes, and the shapes of its parts."""

    file: Path
    start: int
    shapes: tuple[tuple[int, ...], ...]

    def read(self) -> KeptPicture | None:
        """The picture, None if it is not there whole."""
        *ends, end = itertools.accumulate(map(math.prod, self.shapes))
        try:
            with self.file.open("rb") as file:
                file.seek(self.start)
                data = np.frombuffer(file.read(end), np.uint8)
        except OSError:
            return None
        if len(data) != end:
            return None
        parts = (part.reshape(shape) for part, shape in zip(np.split(data, ends), self.shapes, strict=True))
        return KeptPicture(next(parts), next(parts), next(parts, None))


@dataclass(frozen=True)
class KeptPictures:
    """Pictures at the size of the network's input with their masks, in a folder with a file for each process.

    What could not be written is decoded again: nothing else is lost.
    """

    folder: Path

    def if_there_is_room(self, n_cases: int) -> "KeptPictures | None":
        """Itself, None where the pictures of so many cases would crowd the disk."""
        fits = n_cases <= MOST_KEPT and shutil.disk_usage(self.folder).free > n_cases * SPARE_BYTES
        return self if fits else None

    def keep(self, kept: KeptPicture) -> KeptPlace | None:
        """Keep a picture; gives where, None if it cannot be written."""
        path = self.folder / str(os.getpid())
        start = None
        try:
            with path.open("ab") as file:
                start = file.tell()
                file.write(b"".join(part.tobytes() for part in kept.parts))
        except OSError:
            if start is not None:
                with contextlib.suppress(OSError):
                    os.truncate(path, start)
            return None
        return KeptPlace(path, start, tuple(part.shape for part in kept.parts))


@contextlib.contextmanager
def keeping_pictures(folder: Path) -> Iterator[KeptPictures]:
    """An empty folder for pictures, which is removed when the block ends."""
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    make_folder(folder)
    try:
        yield KeptPictures(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
