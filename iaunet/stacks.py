"""A case's files as one stack of pictures: a plain image is a stack of one, a volume is cut into slices."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from iaunet.dataset import SliceAxis, Slicing
from iaunet.dicom import (
    Series,
    find_series,
    is_dicom_file,
    is_segmentation,
    read_segmentation,
    read_series,
    read_series_header,
)
from iaunet.errors import FileError
from iaunet.files import decode_image, decode_mask, read_bytes
from iaunet.orientation import as_float32
from iaunet.storage import file_digest
from iaunet.tiffs import read_tiff
from iaunet.volumes import (
    Volume,
    VolumeHeader,
    files_of,
    is_volume_file,
    read_header,
    read_label_volume,
    read_volume,
    require_same_space,
)

TIFF_ENDINGS = (".tif", ".tiff")

SLICE_AXES: dict[SliceAxis, int] = {"axial": 0, "coronal": 1, "sagittal": 2}
"""The canonical axis (I, P, L) along which the slices of each plane follow each other."""

Pixel = TypeVar("Pixel", bound=np.generic)

Spacing = tuple[float, float, float]
"""Distance of slices, rows and columns in mm."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The pictures of a case.

    ``pixels`` is [channels, slices, height, width] in the files' type. ``spacing_mm`` is the distance of slices, rows
    and columns, None if unknown. ``header`` tells the place of a volume, None for pictures. ``sha256`` names the
    files' bytes. ``series`` are the files of a DICOM series, in order.
    """

    pixels: NDArray[np.generic]
    sha256: str = ""
    spacing_mm: Spacing | None = None
    header: VolumeHeader | None = None
    has_transparency: bool = False
    series: tuple[Path, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, height, width)."""
        slices, height, width = self.pixels.shape[1:]
        return slices, height, width


@dataclass(frozen=True, eq=False)
class MaskStack:
    """The mask of a case: raw values [slices, height, width] of a whole type; all else as in a `Stack`."""

    values: NDArray[np.integer]
    sha256: str
    spacing_mm: Spacing | None = None
    header: VolumeHeader | None = None


def is_volume(path: Path) -> bool:
    """Whether a file or folder is read as a volume: NIfTI, MHA, NRRD, or a DICOM file or folder."""
    return is_volume_file(path) or path.is_dir() or is_dicom_file(path)


def read_volume_header(path: Path) -> VolumeHeader:
    """What a volume is without its voxels, whatever its format.

    Raises:
        FileError: It cannot be read.
    """
    if is_volume_file(path):
        return read_header(path)
    return read_series_header(series_files(path))


def read_stack(files: Sequence[Path], slicing: Slicing) -> Stack:
    """Read the image of a case.

    Args:
        files: One file (or folder with a DICOM series) that holds all channels, or one a channel.
        slicing: How volumes are cut and pages understood.

    Raises:
        FileError: One cannot be read, or the channels do not fit each other.
    """
    first, *others = (_read_one(path, slicing) for path in files)
    if not others:
        return first
    for path, other in zip(files[1:], others, strict=True):
        if (other.shape, other.pixels.dtype) != (first.shape, first.pixels.dtype):
            raise FileError(
                f"channel {path.name} is {_by(other.shape)} {other.pixels.dtype}, {files[0].name} "
                f"{_by(first.shape)} {first.pixels.dtype}",
                "bring all channels of a case to one size and type",
            )
        if first.header is not None and other.header is not None:
            require_same_space(first.header, other.header)
    return Stack(
        pixels=np.concatenate([first.pixels, *(other.pixels for other in others)]),
        sha256=_hash_of_hashes([first.sha256, *(other.sha256 for other in others)]),
        spacing_mm=first.spacing_mm,
        header=first.header,
        has_transparency=any(stack.has_transparency for stack in (first, *others)),
    )


def read_mask_stack(path: Path, slicing: Slicing, image: Stack | None = None) -> MaskStack:
    """Read the mask of a case.

    Args:
        path: Its file, or folder with a DICOM series.
        slicing: How volumes are cut and pages understood.
        image: What it is the mask of.

    Raises:
        FileError: It cannot be read, or does not fit the image in size or place.
    """
    if is_volume(path):
        volume = read_label_volume(path) if is_volume_file(path) else _label_series(path, image)
        if image is not None and image.header is not None:
            require_same_space(image.header, volume)
        values = _cut(volume.voxels, slicing)[0]
        mask = MaskStack(values, _hash_files(stack_files(path)), _spacing(volume, slicing), volume.header)
    elif path.suffix.lower() in TIFF_ENDINGS:
        image_file = read_tiff(path, slicing.axes, as_mask=True)
        values = whole_values(_one_channel(image_file.pixels))
        mask = MaskStack(values, _hash_files([path]), image_file.spacing_mm)
    else:
        data = read_bytes(path)
        mask = MaskStack(decode_mask(data)[None], hashlib.sha256(data).hexdigest())
    if image is not None and mask.values.shape != image.shape:
        raise FileError(
            f"mask is {_by(mask.values.shape)}, its image {_by(image.shape)} (height x width)",
            "bring the mask to the image's size, or find the mask that belongs to it",
        )
    return mask


def stack_files(path: Path) -> list[Path]:
    """The files that an image or mask consists of.

    Raises:
        FileError: They are not there.
    """
    if is_volume_file(path):
        return files_of(path)
    return series_files(path) if path.is_dir() else [path]


def series_files(path: Path) -> list[Path]:
    """The DICOM files of a folder, or the one file.

    Raises:
        FileError: The folder holds none, or several series.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and is_dicom_file(file))
    if not files:
        raise FileError("holds no DICOM files", "give the folder of a series")
    series = find_series(files)
    if len(series) > 1:
        named = ", ".join(f"{each.description or 'unnamed'} ({_count(each.files)})" for each in series[:5])
        if len({each.uid for each in series}) == 1:
            raise FileError(
                f"holds slices of {len(series)} sizes or orientations in one series: {named}",
                "put those of each kind in a folder of their own",
            )
        raise FileError(f"holds {len(series)} series: {named}", "put each series in a folder of its own")
    return list(series[0].files)


def hash_files(files: Sequence[Path]) -> str:
    """What names the bytes of an image's files, as `read_stack` gives it.

    Raises:
        FileError: One is missing or cannot be read.
    """
    hashes = [_hash_files(stack_files(path)) for path in files]
    return hashes[0] if len(hashes) == 1 else _hash_of_hashes(hashes)


def volume_labels(labels: NDArray[Pixel], slicing: Slicing) -> NDArray[Pixel]:
    """Put slices [slices, height, width] together to a volume [I, P, L]; the inverse of cutting it."""
    return np.moveaxis(labels, 0, SLICE_AXES[slicing.slice_axis])


def whole_values(values: NDArray[np.generic]) -> NDArray[np.integer]:
    """Mask values as whole numbers.

    Raises:
        FileError: They are not whole.
    """
    if np.issubdtype(values.dtype, np.integer):
        return values  # type: ignore[return-value]
    with np.errstate(invalid="ignore"):  # nan and infinity become some number, which differs
        whole = values.astype(np.int32)
    if not np.array_equal(whole, values):
        raise FileError("mask holds values that are not whole numbers", "save it with whole values")
    return whole


def _read_one(path: Path, slicing: Slicing) -> Stack:
    if path.suffix.lower() in TIFF_ENDINGS:
        image = read_tiff(path, slicing.axes)
        return Stack(image.pixels, _hash_files([path]), image.spacing_mm, None, image.has_transparency)
    if is_volume_file(path):
        return _stack_of(read_volume(path), files_of(path), slicing)
    if path.is_dir() or is_dicom_file(path):
        files = series_files(path)
        return dataclasses.replace(_stack_of(read_series(files), files, slicing), series=tuple(files))
    data = read_bytes(path)
    raw = decode_image(data)
    return Stack(raw.pixels[:, None], hashlib.sha256(data).hexdigest(), None, None, raw.has_transparency)


def _stack_of(volume: Volume, files: Sequence[Path], slicing: Slicing) -> Stack:
    # one type for all volumes: files of one study differ in theirs
    pixels = as_float32(_cut(volume.voxels, slicing))
    return Stack(pixels, _hash_files(files), _spacing(volume, slicing), volume.header)


def _spacing(volume: Volume, slicing: Slicing) -> Spacing:
    axis = SLICE_AXES[slicing.slice_axis]
    rows, columns = (side for i, side in enumerate(volume.spacing_mm) if i != axis)
    return volume.spacing_mm[axis], rows, columns


def _cut(voxels: NDArray[np.generic], slicing: Slicing) -> NDArray[np.generic]:
    """Voxels [C, I, P, L] as [C, slices, height, width]."""
    return np.moveaxis(voxels, 1 + SLICE_AXES[slicing.slice_axis], 1)


def _label_series(path: Path, image: Stack | None) -> Volume:
    """The mask that a DICOM series holds, or a DICOM segmentation of the image's series."""
    files = series_files(path)
    if len(files) > 1 or not is_segmentation(files[0]):
        volume = read_series(files)
        return Volume(whole_values(volume.voxels), volume.spacing_mm, volume.orientation, volume.affine)
    if image is None or image.header is None or not image.series:
        raise FileError("is a DICOM segmentation without its series", "give the series as the image, or a mask file")
    labels, _ = read_segmentation(files[0], Series("", "", image.series))
    place = image.header
    return Volume(labels[None], place.spacing_mm, place.orientation, place.affine)


def _one_channel(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """The only channel of a mask [C, slices, H, W], or that of its equal channels."""
    if not (pixels == pixels[:1]).all():
        raise FileError("mask holds colours", "save it with one channel, 0 for background and a value for each label")
    plane: NDArray[np.generic] = pixels[0]
    return plane


def _hash_files(files: Sequence[Path]) -> str:
    hashes = []
    for path in files:
        try:
            hashes.append(file_digest(path))
        except FileNotFoundError as fault:
            raise FileError("file is missing", "restore it, or plan again without it") from fault
        except OSError as fault:
            raise FileError(f"cannot be read ({fault.strerror})", "mend its permissions or copy it again") from fault
    return hashes[0] if len(hashes) == 1 else _hash_of_hashes(hashes)


def _hash_of_hashes(hashes: Sequence[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _by(shape: Sequence[int]) -> str:
    """Sizes as words; the one slice of a picture is not told."""
    return " x ".join(map(str, shape[1:] if shape[0] == 1 else shape))


def _count(files: Sequence[Path]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files)} files"
