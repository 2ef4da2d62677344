"""Reads volumes (NIfTI, MetaImage, NRRD) in one orientation, and writes label volumes in that of the input.

Arrays are [channels, inferior, posterior, left], see `iaunet.orientation`.
"""

import gzip
import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import FileError
from iaunet.itk import data_file, encode_meta, encode_nrrd, read_itk, read_itk_header, read_itk_note, volume_from_sitk
from iaunet.nifti import encode_nifti, read_nifti, read_nifti_header, read_nifti_note
from iaunet.orientation import MAX_VOXELS, Orientation, Volume, VolumeHeader, sizes_text
from iaunet.storage import write_bytes

__all__ = [
    "MADE_FROM",
    "MAX_VOXELS",
    "VOLUME_ENDINGS",
    "WRITTEN_ENDINGS",
    "Orientation",
    "Volume",
    "VolumeHeader",
    "files_of",
    "is_volume_file",
    "read_header",
    "read_label_volume",
    "read_made_from",
    "read_volume",
    "require_same_space",
    "volume_from_sitk",
    "volume_stem",
    "write_label_volume",
    "write_probabilities",
]

VOLUME_ENDINGS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")
"""Endings of the files that hold a volume, in lower case."""

WRITTEN_ENDINGS = (".nii", ".nii.gz", ".mha", ".nrrd")
"""Endings of the volumes that are written: those of one file, which can appear whole or not at all."""

MADE_FROM = "iaunet_made_from"
"""The key under which a written volume names what it was made from."""

_COMPRESSION = 6
"""The level at which voxels are deflated: at gzip's own, 9, labels take 8 times as long for a seventh less."""


def is_volume_file(path: Path) -> bool:
    """Whether the ending is one of `VOLUME_ENDINGS`, in lower or upper case."""
    return path.name.lower().endswith(VOLUME_ENDINGS)


def volume_stem(path: Path) -> str:
    """The name of a volume's file without its whole ending: ``a`` for ``a.nii.gz``."""
    return path.name[: len(path.name) - len(_ending(path))]


def files_of(path: Path) -> list[Path]:
    """The files a volume consists of: its own, and the one that holds its voxels if that is another.

    Raises:
        FileError: One of them is missing, or the voxels lie in several files.
    """
    _require_file(path)
    if _is_nifti(path):
        return [path]
    data = data_file(path)
    return [path] if data == path else [path, data]


def read_header(path: Path) -> VolumeHeader:
    """What a volume's file says of it; no voxels are decoded.

    Raises:
        FileError: It is missing, no such file, damaged, too large, holds several volumes or an impossible spacing.
    """
    _require_file(path)
    return read_nifti_header(path) if _is_nifti(path) else read_itk_header(path)


def read_volume(path: Path) -> Volume:
    """Read an image volume.

    Returns:
        The voxels in the file's dtype, float32 where the file scales them; colour and vectors are channels.

    Raises:
        FileError: As `read_header`; also for voxels that are truncated or damaged, complex, nan or infinite.
    """
    volume = _read(path)
    voxels = volume.voxels
    if np.issubdtype(voxels.dtype, np.floating) and not np.isfinite(voxels).all():
        raise FileError("holds nan or infinite values", "replace them, with 0 for instance")
    return volume


def read_label_volume(path: Path) -> Volume:
    """Read a mask volume.

    Returns:
        Voxels [1, I, P, L], the smallest of uint8, uint16 and int32 that holds them. Values that a scaling in the
        file's header keeps within a millionth of whole numbers are those.

    Raises:
        FileError: As `read_header`; also for damaged voxels, several channels and values that are not whole.
    """
    volume = _read(path)
    if volume.voxels.shape[0] != 1:
        raise FileError(
            f"mask has {volume.voxels.shape[0]} channels", "save it with one, 0 for background and a value a label"
        )
    return Volume(_as_labels(volume.voxels), volume.spacing_mm, volume.orientation, volume.affine)


def require_same_space(image: Volume | VolumeHeader, mask: Volume | VolumeHeader, tolerance: float = 0.1) -> None:
    """Refuse a mask that does not lie where its image lies, whatever the order of axes in either file.

    Args:
        image: The image.
        mask: Its mask.
        tolerance: How far a corner of the mask may lie from that of the image, as a share of the image's least
            spacing.

    Raises:
        FileError: They differ in shape or place.
    """
    image, mask = (value.header if isinstance(value, Volume) else value for value in (image, mask))
    if image.shape != mask.shape:
        sizes = f"{sizes_text(mask.shape)} voxels, its image {sizes_text(image.shape)}"
        raise FileError(
            f"mask has {sizes} (inferior x posterior x left)",
            "give the mask of this image, or resample it to the image",
        )
    corners = np.array([*itertools.product(*((0, side - 1) for side in image.shape))])
    moved = np.c_[corners, np.ones(8)] @ (mask.canonical_affine - image.canonical_affine).T
    away = float(np.linalg.norm(moved[:, :3], axis=1).max())
    if away > tolerance * min(image.spacing_mm):
        raise FileError(
            f"mask lies up to {away:.3g} mm away from its image",
            "resample it to the image, or give it the image's header if only that is wrong",
        )


def write_label_volume(path: Path, labels: NDArray[np.integer], like: Path | VolumeHeader, made_from: str = "") -> None:
    """Write labels with the axes and the place of another volume, whole or not at all.

    Args:
        path: Its ending, one of `WRITTEN_ENDINGS`, decides the format.
        labels: uint8 or uint16 [I, P, L].
        like: The file of the volume, or its header. A file of the same family gives its affine to the bit, another
            as precisely as the written format can.
        made_from: One line of ASCII that names what they were made from, see `read_made_from`.

    Raises:
        FileError: ``like`` cannot be read.
        WorkspaceError: The file cannot be written.
        ValueError: The ending, shape, dtype or ``made_from`` is not as said.
    """
    if labels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"labels are uint8 or uint16, not {labels.dtype}")
    _write(path, labels, like, made_from)


def write_probabilities(
    path: Path, probabilities: NDArray[np.float32], like: Path | VolumeHeader, made_from: str = ""
) -> None:
    """Write float32 probabilities [I, P, L]; all else as in `write_label_volume`."""
    if probabilities.dtype != np.float32:
        raise ValueError(f"probabilities are float32, not {probabilities.dtype}")
    _write(path, probabilities, like, made_from)


def read_made_from(path: Path) -> str:
    """What a written volume says it was made from; empty when it is missing, damaged or does not say."""
    try:
        return read_nifti_note(path, MADE_FROM) if _is_nifti(path) else read_itk_note(path, MADE_FROM)
    except (FileError, OSError):
        return ""


def _ending(path: Path) -> str:
    name = path.name.lower()
    return max((ending for ending in VOLUME_ENDINGS if name.endswith(ending)), key=len, default=path.suffix)


def _is_nifti(path: Path) -> bool:
    return _ending(path).startswith(".nii")


def _require_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as fault:
        raise FileError("file is missing", "restore it, or plan again without it") from fault
    except OSError as fault:
        raise FileError(f"cannot be read ({fault.strerror})", "mend its permissions or copy it again") from fault
    if empty:
        raise FileError("file is empty", "copy it again or remove it")


def _read(path: Path) -> Volume:
    _require_file(path)
    return read_nifti(path) if _is_nifti(path) else read_itk(path)


def _as_labels(values: NDArray[np.generic]) -> NDArray[np.integer]:
    if not np.issubdtype(values.dtype, np.integer):
        with np.errstate(invalid="ignore"):
            whole = np.rint(values)
            is_whole = np.isfinite(values).all() and np.allclose(values, whole, rtol=1e-6, atol=1e-6)
        if not is_whole:
            raise FileError("mask holds values that are not whole numbers", "save it with whole values")
        values = whole
    least, most = float(values.min()), float(values.max())
    for dtype in (np.uint8, np.uint16, np.int32):
        limits = np.iinfo(dtype)
        if limits.min <= least and most <= limits.max:
            return values.astype(dtype)
    raise FileError(f"mask holds values from {least:.0f} to {most:.0f}", "save it with values up to 65535")


def _write(path: Path, voxels: NDArray[np.generic], like: Path | VolumeHeader, made_from: str) -> None:
    ending = _ending(path)
    if ending not in WRITTEN_ENDINGS:
        raise ValueError(f"{path.name} does not end in one of {', '.join(WRITTEN_ENDINGS)}")
    if not (made_from.isascii() and (made_from.isprintable() or not made_from)):
        raise ValueError(f"made_from is one line of ASCII, not {made_from!r}")
    header = like if isinstance(like, VolumeHeader) else read_header(like)
    if voxels.shape != header.shape:
        raise ValueError(f"the array has shape {voxels.shape}, the volume {header.shape}")
    array = header.orientation.to_file(voxels)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    encode = {".mha": encode_meta, ".nrrd": encode_nrrd}.get(ending, encode_nifti)
    kin = like if isinstance(like, Path) and _is_nifti(like) == _is_nifti(path) else None
    data = encode(array, header, kin, (MADE_FROM, made_from) if made_from else None)
    write_bytes(path, gzip.compress(data, _COMPRESSION, mtime=0) if ending == ".nii.gz" else data)
