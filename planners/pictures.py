"""Pictures that measuring has decoded, kept small on the disk until preprocessing asks for them."""

import contextlib
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet.storage import make_folder

MOST_KEPT = 2**14
"""Pictures kept at most: 4 GB in colour."""

SPARE_BYTES = 2**21
"""Free space that each picture must find on the disk: its own and that of the arrays, twice."""


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

    def keep(
        self, image_sha256: str, mask_sha256: str | None, picture: NDArray[np.uint8], mask: NDArray[np.uint8]
    ) -> None:
        """Keep a picture [C, h, w] and the raw values [h, w] of its mask."""
        path = self._path(image_sha256, mask_sha256, picture.shape)
        try:
            path.write_bytes(picture.tobytes() + mask.tobytes())
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()

    def find(
        self, image_sha256: str, mask_sha256: str | None, shape: tuple[int, int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """A picture of shape (C, h, w) and its mask's values as they were kept, None if they were not."""
        try:
            data = np.frombuffer(self._path(image_sha256, mask_sha256, shape).read_bytes(), np.uint8)
        except OSError:
            return None
        channels, height, width = shape
        if len(data) != math.prod(shape) + height * width:
            return None
        planes = data.reshape(channels + 1, height, width)
        return planes[:-1], planes[-1]

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
