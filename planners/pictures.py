"""Pictures and masks that measuring has decoded, kept on the disk until preprocessing asks for them."""

import contextlib
import itertools
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet.resample import Size
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
class KeptPictures:
    """A folder of pictures at the size of the network's input with their masks.

    They are named by the files they come from and their size. What is missing, or could not be written, is decoded
    again: nothing else is lost.
    """

    folder: Path

    def if_there_is_room(self, n_cases: int) -> "KeptPictures | None":
        """Itself, None where the pictures of so many cases would crowd the disk."""
        fits = n_cases <= MOST_KEPT and shutil.disk_usage(self.folder).free > n_cases * SPARE_BYTES
        return self if fits else None

    def keep(self, image_sha256: str, mask_sha256: str | None, kept: KeptPicture) -> None:
        """Keep a picture, named by the files it is of."""
        path = self._path(image_sha256, mask_sha256, kept.picture.shape)
        try:
            path.write_bytes(b"".join(part.tobytes() for part in kept.parts))
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()

    def find(
        self, image_sha256: str, mask_sha256: str | None, shape: tuple[int, int, int], native_size: Size
    ) -> KeptPicture | None:
        """A picture of shape (C, h, w) whose mask has a size (H, W), None if it was not kept whole."""
        try:
            data = np.frombuffer(self._path(image_sha256, mask_sha256, shape).read_bytes(), np.uint8)
        except OSError:
            return None
        shapes = [shape, shape[1:], *([native_size] if math.prod(native_size) <= MOST_PIXELS else [])]
        *ends, end = itertools.accumulate(map(math.prod, shapes))
        if len(data) != end:
            return None
        parts = (part.reshape(own) for part, own in zip(np.split(data, ends), shapes, strict=True))
        return KeptPicture(next(parts), next(parts), next(parts, None))

    def _path(self, image_sha256: str, mask_sha256: str | None, shape: tuple[int, ...]) -> Path:
        size = "x".join(map(str, shape))
        return self.folder / f"{image_sha256[:32]}-{(mask_sha256 or 'none')[:32]}-{size}"


@contextlib.contextmanager
def keeping_pictures(folder: Path) -> Iterator[KeptPictures]:
    """An empty folder for pictures, which is removed when the block ends."""
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    make_folder(folder)
    try:
        yield KeptPictures(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
