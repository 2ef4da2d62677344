"""Predicted masks as files: a picture's as PNG, those of a stack of pages as TIFF, a volume's with its geometry."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet import volumes
from iaunet.dataset import Slicing
from iaunet.errors import FileError
from iaunet.files import read_made_from as read_png_made_from
from iaunet.files import write_png
from iaunet.stacks import TIFF_ENDINGS, is_volume, volume_labels
from iaunet.storage import replacing
from iaunet.tiffs import tiff_header
from iaunet.volumes import VolumeHeader, is_volume_file, volume_stem

VOLUME_MASK_ENDINGS = {".nii": ".nii.gz", ".nii.gz": ".nii.gz", ".mha": ".mha", ".mhd": ".mha", ".nrrd": ".nrrd"}
"""The ending of a volume's mask by that of the volume; a DICOM series gets NIfTI."""

_DAMAGED_PAGES = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    RuntimeError,
    struct.error,
)
"""What tifffile is known to raise on damaged files, besides its own error."""


def image_stem(path: Path) -> str:
    """The name of an image's file or folder without its ending; a number is none, as in a DICOM file's ``1.2.840``."""
    if is_volume_file(path):
        return volume_stem(path)
    return path.name if path.suffix[1:].isdecimal() or path.is_dir() else path.stem


def mask_ending(image: Path, slicing: Slicing) -> str:
    """The ending of the mask of an image; only the header of a TIFF file is read for it."""
    if is_volume_file(image):
        return VOLUME_MASK_ENDINGS[path_ending(image)]
    if image.suffix.lower() in TIFF_ENDINGS:
        return ".tif" if _has_pages(image, slicing) else ".png"
    return ".nii.gz" if is_volume(image) else ".png"


def _has_pages(image: Path, slicing: Slicing) -> bool:
    try:
        return tiff_header(image, slicing.axes).shape[1] > 1
    except FileError:
        return False  # reading it will tell what is wrong


def path_ending(path: Path) -> str:
    """The whole ending of a file's name in lower case, ``.nii.gz`` as one."""
    return path.name[len(image_stem(path)) :].lower()


def write_mask(
    path: Path,
    labels: NDArray[np.integer],
    slicing: Slicing,
    header: VolumeHeader | None,
    like: Sequence[Path],
    made_from: str = "",
) -> None:
    """Write the values of a mask, whole or not at all.

    Args:
        path: Ends as `mask_ending` says.
        labels: uint8 or uint16 [slices, H, W].
        slicing: How the volume was cut.
        header: The volume's place; None for pictures.
        like: The image's files; a volume's mask has the geometry of the first to the bit.
        made_from: Names what they were made from.
    """
    if header is None:
        if len(labels) == 1:
            write_png(path, labels[0], made_from)
        else:
            write_pages(path, labels, made_from)
        return
    place = like[0] if is_volume_file(like[0]) else header
    volumes.write_label_volume(path, volume_labels(labels, slicing), place, made_from)


def write_pages(path: Path, pages: NDArray[np.generic], made_from: str = "") -> None:
    """Write pages [n, H, W] as a TIFF file whose axes ImageJ and `iaunet.tiffs` understand."""
    import tifffile

    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary, pages, imagej=True, compression="zlib", metadata={"axes": "ZYX", volumes.MADE_FROM: made_from}
        )


def read_made_from(path: Path) -> str:
    """What a mask says it was made from; empty when it is missing, damaged or does not say."""
    if is_volume_file(path):
        return volumes.read_made_from(path)
    return _read_pages_made_from(path) if path.suffix.lower() in TIFF_ENDINGS else read_png_made_from(path)


def _read_pages_made_from(path: Path) -> str:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return str((file.imagej_metadata or {}).get(volumes.MADE_FROM, ""))
    except (*_DAMAGED_PAGES, tifffile.TiffFileError):
        return ""
