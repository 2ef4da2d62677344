"""The preprocessed arrays on disk: rows of inputs and masks, and an index that says whose they are.

They are filled in a folder beside their own, which is renamed when every row is there: ``preprocessed/`` is whole
or not there at all.
"""

import errno
import logging
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import FileError, PreprocessingError, WorkspaceError
from iaunet.files import read_mask
from iaunet.preprocessing.geometry import Geometry
from iaunet.records import load_record, to_json
from iaunet.storage import TEMPORARY_SUFFIX, make_folder, naming_disk_faults, sync_folder, write_json

logger = logging.getLogger(__name__)

IMAGES, MASKS, INDEX, DONE, TRUTH = "images.npy", "masks.npy", "index.json", "done.npy", "truth"
AGAIN = "run iaunet_plan_and_preprocess {name} again"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One entry of the arrays.

    ``slice`` is the slice's number in a volume, ``tile`` the (top, left) of a tile in pixels; None where the row is
    a whole picture. ``foreground`` tells whether its mask has any label.
    """

    case: str
    slice: int | None = None
    tile: tuple[int, int] | None = None
    geometry: Geometry
    foreground: bool


@dataclass(frozen=True, kw_only=True)
class Index:
    """What the arrays hold: ``made_from`` is the digest of data and plan, rows lie in the order of the arrays."""

    version: int = 1
    made_from: str
    channels: int
    input_size: tuple[int, int]
    rows: tuple[Row, ...]

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """[rows, channels, height, width]."""
        return len(self.rows), self.channels, *self.input_size

    @property
    def mask_shape(self) -> tuple[int, int, int]:
        """[rows, height, width]."""
        return len(self.rows), *self.input_size

    @property
    def n_bytes(self) -> int:
        """Bytes of both arrays on disk."""
        return math.prod(self.image_shape) * 2 + math.prod(self.mask_shape)


@dataclass(frozen=True, eq=False)
class Arrays:
    """The arrays mapped read-only: images float16 [rows, C, H, W], masks uint8 [rows, H, W].

    Beside them lies the true mask of every case at its native size, so that a copied workspace can score without the
    raw data.
    """

    images: NDArray[np.float16]
    masks: NDArray[np.uint8]
    index: Index
    folder: Path

    def truth(self, case: str) -> NDArray[np.uint8]:
        """The labels [H, W] of a case at native size, uint8.

        Raises:
            PreprocessingError: Its file is missing or damaged.
        """
        path = truth_path(self.folder, case)
        try:
            return read_mask(path).astype(np.uint8)
        except FileError as fault:
            raise PreprocessingError(f"{path}: {fault.what}: {AGAIN.format(name=self.folder.parent.name)}") from fault


def truth_path(folder: Path, case: str) -> Path:
    """Where the true mask of a case lies among the arrays."""
    return folder / TRUTH / f"{case}.png"


def open_arrays(folder: Path, made_from: str) -> Arrays:
    """Map the arrays of a dataset.

    Args:
        folder: The ``preprocessed`` folder.
        made_from: The digest of data and plan they must have been made from.

    Raises:
        PreprocessingError: They are missing, or made from other data or another plan.
    """
    mend = AGAIN.format(name=folder.parent.name)
    if not folder.is_dir():
        raise PreprocessingError(f"{folder} is missing: {mend}")
    index = load_record(Index, folder / INDEX, PreprocessingError, mend)
    if index.made_from != made_from:
        raise PreprocessingError(f"{folder} was made from other data or another plan: {mend}")
    try:
        images = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)
        masks = np.load(folder / MASKS, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as fault:
        raise PreprocessingError(f"{folder} cannot be read ({fault}): {mend}") from fault
    if images.shape != index.image_shape or masks.shape != index.mask_shape:
        raise PreprocessingError(f"{folder} holds arrays of another shape than its index: {mend}")
    return Arrays(images, masks, index, folder)


class PartialArrays:
    """Arrays being filled, in a folder beside the final one.

    Args:
        target: The final folder.
        index: What the arrays will hold. Rows that an earlier, killed process filled for the same index are kept.
    """

    def __init__(self, target: Path, index: Index) -> None:
        self.target = target
        self.folder = _partial(target)
        self.index = index
        if not self._can_be_continued():
            self._allocate()

    def missing_rows(self) -> list[int]:
        """The rows not filled yet."""
        return np.flatnonzero(np.load(self.folder / DONE) == 0).tolist()

    def mark_done(self, rows: Sequence[int]) -> None:
        """Count rows as filled; their data must be synced."""
        offset = _data_offset(self.folder / DONE)
        with naming_disk_faults(self.folder), (self.folder / DONE).open("rb+") as file:
            for row in rows:
                file.seek(offset + row)
                file.write(b"\1")

    def finish(self) -> None:
        """Put the whole folder in the place of the final one."""
        for half_written in (self.folder / TRUTH).rglob(f".*{TEMPORARY_SUFFIX}"):
            half_written.unlink()
        old = _old(self.target)
        _remove_folder(old)
        if self.target.exists():
            self.target.rename(old)
        self.folder.rename(self.target)
        sync_folder(self.target.parent)
        remove_old_arrays(self.target)

    def _can_be_continued(self) -> bool:
        """Whether the folder holds rows of this very index. Files that are not ours to read mean no."""
        try:
            done = np.load(self.folder / DONE, allow_pickle=False)
            found = open_arrays(self.folder, self.index.made_from).index
        except (OSError, ValueError, EOFError, PreprocessingError):
            return False
        return found == self.index and done.shape == (len(found.rows),)

    def _allocate(self) -> None:
        _remove_folder(self.folder)
        make_folder(self.folder)
        try:
            with naming_disk_faults(self.folder):
                _require_space(self.folder, self.index.n_bytes)
                _allocate_array(self.folder / IMAGES, self.index.image_shape, np.dtype(np.float16))
                _allocate_array(self.folder / MASKS, self.index.mask_shape, np.dtype(np.uint8))
                _allocate_array(self.folder / DONE, (len(self.index.rows),), np.dtype(np.uint8))
                write_json(self.folder / INDEX, to_json(self.index))  # last: it makes the others count
        except BaseException:
            _remove_folder(self.folder)
            raise


def remove_old_arrays(target: Path) -> None:
    """Delete what killed processes left of earlier arrays, once the final folder is whole."""
    _remove_folder(_partial(target))
    _remove_folder(_old(target))
    (target / DONE).unlink(missing_ok=True)


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _old(target: Path) -> Path:
    return target.with_name(target.name + ".old")


class RowWriter:
    """Writes rows into allocated arrays with plain writes, so that a full disk is an error and not a signal."""

    def __init__(self, folder: Path, index_shape: tuple[int, int, int, int]) -> None:
        self._folder = folder
        self._image_bytes = math.prod(index_shape[1:]) * 2
        self._mask_bytes = math.prod(index_shape[2:])

    def __enter__(self) -> "RowWriter":
        self._images = (self._folder / IMAGES).open("rb+")
        self._masks = (self._folder / MASKS).open("rb+")
        self._image_offset = _data_offset(self._folder / IMAGES)
        self._mask_offset = _data_offset(self._folder / MASKS)
        return self

    def __exit__(self, *exception: object) -> None:
        self._images.close()
        self._masks.close()

    def write(self, row: int, image: NDArray[np.float32], mask: NDArray[np.uint8]) -> None:
        """Write the input [C, H, W] (stored as float16) and the mask [H, W] of a row."""
        _write_at(self._images, self._image_offset + row * self._image_bytes, image.astype(np.float16))
        _write_at(self._masks, self._mask_offset + row * self._mask_bytes, mask)

    def sync(self) -> None:
        """Bring what was written to the disk."""
        for file in (self._images, self._masks):
            file.flush()
            os.fsync(file.fileno())


def _write_at(file: BinaryIO, offset: int, array: NDArray[np.generic]) -> None:
    file.seek(offset)
    file.write(np.ascontiguousarray(array).data)


def _allocate_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    """A file with the header of an .npy array and all its space taken, zeros."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    n_bytes = math.prod(shape) * dtype.itemsize
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        if not _reserve(file, n_bytes):
            _write_zeros(file, n_bytes)
            file.flush()
        os.fsync(file.fileno())


def _reserve(file: BinaryIO, n_bytes: int) -> bool:
    """Have the system take the space from here on, where it and the file system can."""
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(file.fileno(), file.tell(), n_bytes)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return False
    return True


def _write_zeros(file: BinaryIO, n_bytes: int) -> None:
    block = bytes(1 << 20)
    for start in range(0, n_bytes, len(block)):
        file.write(block[: min(len(block), n_bytes - start)])


def _require_space(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise WorkspaceError(
            f"no space left for {folder}: {n_bytes / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB free, "
            "free some space and run the same command again"
        )


def _data_offset(path: Path) -> int:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return file.tell()


def _remove_folder(folder: Path) -> None:
    if folder.exists():
        (folder / INDEX).unlink(missing_ok=True)  # first: without it nobody takes what is left for arrays
        shutil.rmtree(folder)
