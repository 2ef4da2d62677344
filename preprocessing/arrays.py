"""The preprocessed arrays on disk: rows of inputs and masks, and an index that says whose they are.

They are filled in a folder beside their own, which is renamed when every row is there: ``preprocessed/`` is whole
or not there at all.
"""

import dataclasses
import errno
import logging
import math
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from iaunet.dataset import require_case_name
from iaunet.errors import FileError, PreprocessingError, WorkspaceError
from iaunet.files import read_mask, save_png
from iaunet.preprocessing.cases import CaseInput, Place
from iaunet.preprocessing.geometry import Geometry
from iaunet.records import load_record, require, to_json
from iaunet.storage import make_folder, naming_disk_faults, sync_files, sync_folder, write_json

logger = logging.getLogger(__name__)

IMAGES, MASKS, INDEX, DONE, TRUTH = "images.npy", "masks.npy", "index.json", "done.npy", "truth"
WITHOUT_FOREGROUND, WITH_FOREGROUND = 1, 2
"""What stands in `DONE` for a row that is filled; 0 for one that is not."""

PNG_BEGINS = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
"""What stands in a PNG file before its width and height."""

AGAIN = "run iaunet_plan_and_preprocess {name} again"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One entry of the arrays.

    ``slice`` is the number of its slice in a volume, 0 in a picture.
    """

    case: str
    slice: int
    geometry: Geometry


@dataclass(frozen=True, kw_only=True)
class ArrayCase:
    """A case of the arrays: its rows lie together.

    ``shape`` is (slices, height, width) in pixels, ``spacing_mm`` the distance of slices, rows and columns, None if
    unknown. The hashes are those of the files it was made of.
    """

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    image_sha256: str
    mask_sha256: str | None
    first_row: int
    n_rows: int

    def __post_init__(self) -> None:
        require_case_name(self.name)

    @property
    def rows(self) -> range:
        """The numbers of its rows."""
        return range(self.first_row, self.first_row + self.n_rows)

    def is_made_like(self, other: "ArrayCase") -> bool:
        """Whether both have the same files, so that one preparation makes the same rows of them."""
        return self == dataclasses.replace(other, first_row=self.first_row)


@dataclass(frozen=True, kw_only=True)
class Index:
    """What the arrays hold: ``made_from`` is the digest of data and plan, ``prepared`` that of the preparation alone;
    rows lie in the order of the arrays."""

    version: int = 2
    made_from: str
    prepared: str
    channels: int
    input_size: tuple[int, int]
    cases: tuple[ArrayCase, ...]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        end = 0
        for case in self.cases:
            fits = case.first_row == end and case.n_rows > 0
            fits = fits and all(self._fits(case, row) for row in self.rows_of(case))
            require(fits, "cases", case.name, "cases whose rows follow each other and lie in them")
            end += case.n_rows
        require(end == len(self.rows), "rows", len(self.rows), f"the {end} rows of the cases")
        names = {case.name for case in self.cases}
        require(len(names) == len(self.cases), "cases", len(self.cases), "cases of different names")

    def rows_of(self, case: ArrayCase) -> tuple[Row, ...]:
        """The rows of one of its cases."""
        return self.rows[case.first_row : case.first_row + case.n_rows]

    def _fits(self, case: ArrayCase, row: Row) -> bool:
        sizes = row.geometry.native_size, row.geometry.input_size
        return row.case == case.name and 0 <= row.slice < case.shape[0] and sizes == (case.shape[1:], self.input_size)

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

    ``foreground`` [rows] tells which masks have any label. Beside them lies the true mask of every case at its native
    size, so that a copied workspace can score without the raw data.
    """

    images: NDArray[np.float16]
    masks: NDArray[np.uint8]
    foreground: NDArray[np.bool_]
    index: Index
    folder: Path

    @cached_property
    def cases(self) -> dict[str, ArrayCase]:
        """The cases by name."""
        return {case.name: case for case in self.index.cases}

    def case_input(self, name: str) -> CaseInput:
        """The rows of a case, as `prepare_case` made them but for float16."""
        case = self.cases[name]
        places = tuple(Place(slice=row.slice, geometry=row.geometry) for row in self.index.rows_of(case))
        return CaseInput(case.shape, places, lambda i: self.images[case.first_row + i].astype(np.float32))

    def truth(self, name: str) -> NDArray[np.uint8]:
        """The labels [slices, H, W] of a case at native size, uint8.

        Raises:
            PreprocessingError: Its file is missing or damaged.
        """
        path = truth_path(self.folder, name)
        slices, height, width = self.cases[name].shape
        try:
            values = read_mask(path)
            if values.shape != (slices * height, width):
                raise FileError(f"has {values.shape[0]} x {values.shape[1]} pixels, not those of its case", "")
            return values.astype(np.uint8).reshape(slices, height, width)
        except FileError as fault:
            raise PreprocessingError(f"{path}: {fault.what}: {AGAIN.format(name=self.folder.parent.name)}") from fault


def write_truth(folder: Path, name: str, labels: NDArray[np.uint8]) -> None:
    """Keep the true mask [slices, H, W] of a case: a PNG with the slices below each other.

    It counts once its rows are marked as done, which brings it to the disk.
    """
    path = truth_path(folder, name)
    make_folder(path.parent)
    save_png(path, labels.reshape(-1, labels.shape[-1]), as_indices=True)


def truth_path(folder: Path, case: str) -> Path:
    """Where the true mask of a case lies among the arrays."""
    return folder / TRUTH / f"{case}.png"


def has_truth(folder: Path, case: ArrayCase) -> bool:
    """Whether a case's true mask lies among the arrays; only its header is read."""
    slices, height, width = case.shape
    try:
        with truth_path(folder, case.name).open("rb") as file:
            return file.read(24) == PNG_BEGINS + struct.pack(">II", width, slices * height)
    except OSError:
        return False


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
        images, masks, done = (open_memmap(folder / name, "r") for name in (IMAGES, MASKS, DONE))
    except (OSError, ValueError, EOFError) as fault:
        raise PreprocessingError(f"{folder} cannot be read ({fault}): {mend}") from fault
    shapes = index.image_shape, index.mask_shape, (len(index.rows),)
    types = np.dtype(np.float16), np.dtype(np.uint8), np.dtype(np.uint8)
    arrays = images, masks, done
    if [array.shape for array in arrays] != [*shapes] or [array.dtype for array in arrays] != [*types]:
        raise PreprocessingError(f"{folder} holds arrays of another shape or type than its index: {mend}")
    return Arrays(images, masks, done == WITH_FOREGROUND, index, folder)


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
        self._take_over()

    def missing_rows(self) -> list[int]:
        """The rows not filled yet."""
        return np.flatnonzero(open_memmap(self.folder / DONE, "r") == 0).tolist()

    def mark_done(self, rows: Mapping[int, bool]) -> None:
        """Bring rows to the disk, with the true masks of their cases, and count them as filled.

        Args:
            rows: What was written whole, with or without foreground.
        """
        if not rows:
            return
        truths = {truth_path(self.folder, self.index.rows[row].case) for row in rows}
        with naming_disk_faults(self.folder), (self.folder / DONE).open("rb+") as file:
            sync_files([self.folder / IMAGES, self.folder / MASKS, *sorted(truths)])
            offset = _data_offset(self.folder / DONE)
            for row, foreground in rows.items():
                file.seek(offset + row)
                file.write(bytes([WITH_FOREGROUND if foreground else WITHOUT_FOREGROUND]))

    def finish(self) -> None:
        """Put the whole folder in the place of the final one."""
        sync_files([self.folder / DONE])
        old = _old(self.target)
        _remove_folder(old)
        if self.target.exists():
            self.target.rename(old)
        self.folder.rename(self.target)
        sync_folder(self.target.parent)
        remove_old_arrays(self.target)

    def _take_over(self) -> None:
        """Copy the rows of cases that have not changed from the arrays that are to be replaced."""
        old = _open_any(self.target)
        if old is None or old.index.prepared != self.index.prepared:
            return
        kept: dict[int, bool] = {}
        missing = {*self.missing_rows()}
        with (
            naming_disk_faults(self.folder),
            RowWriter(self.folder, self.index.image_shape) as writer,
        ):
            for case in self.index.cases:
                before = old.cases.get(case.name)
                path = truth_path(self.folder, case.name)
                if missing.isdisjoint(case.rows) or before is None or not case.is_made_like(before):
                    continue
                if not has_truth(self.target, before):
                    continue
                make_folder(path.parent)
                shutil.copyfile(truth_path(self.target, case.name), path)
                for row, there in zip(case.rows, before.rows, strict=True):
                    writer.write(row, old.images[there], old.masks[there])
                    kept[row] = bool(old.foreground[there])
        self.mark_done(kept)

    def _can_be_continued(self) -> bool:
        """Whether the folder holds rows of this very index. Files that are not ours to read mean no."""
        try:
            return open_arrays(self.folder, self.index.made_from).index == self.index
        except PreprocessingError:
            return False

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


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _old(target: Path) -> Path:
    return target.with_name(target.name + ".old")


def _open_any(folder: Path) -> Arrays | None:
    """Arrays of whatever data, None if there are none that can be read."""
    try:
        index = load_record(Index, folder / INDEX, PreprocessingError, "")
        return open_arrays(folder, index.made_from)
    except PreprocessingError:
        return None


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

    def write(self, row: int, image: NDArray[np.floating], mask: NDArray[np.uint8]) -> None:
        """Write the input [C, H, W] (stored as float16) and the mask [H, W] of a row."""
        _write_at(self._images, self._image_offset + row * self._image_bytes, image.astype(np.float16, copy=False))
        _write_at(self._masks, self._mask_offset + row * self._mask_bytes, mask)


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
