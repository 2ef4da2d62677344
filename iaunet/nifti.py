"""Reads and writes NIfTI files."""

import contextlib
import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import FileError
from iaunet.orientation import (
    Volume,
    VolumeHeader,
    damaged,
    require_affine,
    require_one_volume,
    require_size,
    sizes_text,
)

_CHUNK = 1 << 20
_MAX_DEFLATE_RATIO = 1032
"""The most bytes that one compressed byte can stand for."""

_MM_PER_UNIT = {1: 1000.0, 3: 0.001}
"""NIfTI's codes of metres and micrometres; all else is taken for millimetres."""

_GEOMETRY = (
    "pixdim",
    "xyzt_units",
    "qform_code",
    "sform_code",
    *("quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


def read_nifti_header(path: Path) -> VolumeHeader:
    """The header of a file that exists, as `iaunet.volumes.read_header`."""
    with _open(path) as stream:
        return _Layout.read(stream, path).header


def read_nifti(path: Path) -> Volume:
    """The volume of a file that exists; real voxels may be nan."""
    with _open(path) as stream:
        layout = _Layout.read(stream, path)
        return Volume.of(layout.read_voxels(stream), layout.affine)


def read_nifti_note(path: Path, key: str) -> str:
    """What a comment that starts with ``key=`` says; empty if there is none. Nothing behind the comments is read."""
    with _open(path) as stream:
        nifti = _read_fields(stream)
        end = float(nifti["vox_offset"])
        if not nifti.sizeof_hdr <= end:
            return ""
        stream.seek(nifti.sizeof_hdr)
        extensions = stream.read(int(min(end - nifti.sizeof_hdr, _CHUNK)))
    found = re.search(key.encode() + rb"=([ -~]*)", extensions)
    return found[1].decode() if found else ""


def encode_nifti(
    array: NDArray[np.generic], header: VolumeHeader, like: Path | None = None, note: tuple[str, str] | None = None
) -> bytes:
    """The bytes of a file with an array [file's axes] of little-endian numbers.

    Args:
        array: The voxels.
        header: Where they lie.
        like: A NIfTI file whose shape and place in space are taken to the bit, instead of the header's.
        note: A key and a line of ASCII, kept as a comment.
    """
    from nibabel.nifti1 import Nifti1Extension

    nifti = _fields_like(like) if like is not None else _fields_of(header, array.shape)
    nifti.set_data_dtype(array.dtype)
    nifti["scl_slope"], nifti["scl_inter"] = 1, 0
    if note:
        nifti.extensions.append(Nifti1Extension("comment", "=".join(note).encode()))
    stream = io.BytesIO()
    nifti.write_to(stream)
    return stream.getvalue() + array.tobytes("F")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a NIfTI file, decompressed if the file (whatever its name) is compressed; their faults are named."""
    try:
        with path.open("rb") as file:
            if _is_gzip(path):
                with gzip.GzipFile(fileobj=file) as stream:
                    yield cast(BinaryIO, stream)
            else:
                yield file
    except (OSError, EOFError, zlib.error) as fault:
        raise damaged(str(fault).rstrip(".")) from fault


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _read_fields(stream: BinaryIO) -> Any:
    """nibabel's header of the NIfTI-1 or NIfTI-2 file that a stream starts with; nothing in it is checked yet."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    block = stream.read(Nifti2Header.sizeof_hdr)
    if block[344:348] == b"n+1\0":
        return Nifti1Header(block[: Nifti1Header.sizeof_hdr], check=False)
    if block[4:8] == b"n+2\0" and len(block) == Nifti2Header.sizeof_hdr:
        return Nifti2Header(block, check=False)
    raise FileError("is no NIfTI file, whatever its name says", "remove it or save it again as .nii.gz")


@dataclass(frozen=True, eq=False)
class _Layout:
    """What a NIfTI header says, checked.

    ``shape`` is along the file's axes. ``components`` is what one voxel holds: the bytes of a colour lie side by side,
    the parts of a vector one volume after the other.
    """

    nifti: Any
    shape: tuple[int, int, int]
    components: int
    is_colour: bool
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]

    @classmethod
    def read(cls, stream: BinaryIO, path: Path) -> "_Layout":
        nifti = _read_fields(stream)
        n = int(nifti["dim"][0])
        if not 1 <= n <= 7:
            raise damaged(f"its header says {n} dimensions")
        dims = [*map(int, nifti["dim"][1 : n + 1]), 1, 1][: max(n, 3)]
        require_size(dims)
        dtype = _dtype_of(nifti)
        is_colour = dtype.names is not None
        is_vector = not is_colour and len(dims) == 5 and dims[3] == 1
        require_one_volume([] if is_vector else dims[3:])
        components = len(dtype.names) if dtype.names else dims[4] if is_vector else 1
        affine = _affine_of(nifti, n)
        require_affine(affine)
        base = np.dtype(np.uint8) if is_colour else dtype
        layout = cls(nifti, (dims[0], dims[1], dims[2]), components, is_colour, base, affine)
        layout._require_bytes(path)
        return layout

    @property
    def header(self) -> VolumeHeader:
        channels = min(self.components, 3) if self.is_colour else self.components
        return VolumeHeader.of(self.shape, channels, self.affine)

    def read_voxels(self, stream: BinaryIO) -> NDArray[np.generic]:
        """The voxels [channels, file's axes] in native byte order, scaled where the header says so."""
        flat = np.empty(math.prod(self.shape) * self.components, self.dtype)
        stream.seek(int(self.nifti["vox_offset"]))
        _fill(stream, flat)
        while stream.read(_CHUNK):
            pass  # at its end a gzip file compares its checksum
        if self.is_colour:
            return flat.reshape(self.components, *self.shape, order="F")[:3]
        voxels = np.moveaxis(flat.reshape(*self.shape, self.components, order="F"), 3, 0)
        return _scaled(voxels.astype(self.dtype.newbyteorder("="), copy=False), self.nifti)

    def _require_bytes(self, path: Path) -> None:
        """Compare what the header promises with the file, before anything is allocated."""
        offset = float(self.nifti["vox_offset"])
        if not self.nifti.sizeof_hdr <= offset <= 2**40:
            raise damaged(f"its header says the voxels start at byte {offset:g}")
        promised = int(offset) + math.prod(self.shape) * self.components * self.dtype.itemsize
        held = path.stat().st_size * (_MAX_DEFLATE_RATIO if _is_gzip(path) else 1)
        if promised > held:
            raise damaged(f"its header promises {promised:,} bytes, it can hold {held:,}")


def _fill(stream: BinaryIO, array: NDArray[np.generic]) -> None:
    view = memoryview(cast(Any, array.view(np.uint8)))
    for start in range(0, len(view), _CHUNK):
        part = view[start : start + _CHUNK]
        if stream.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise damaged("it ends before its last voxel")


def _dtype_of(nifti: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = nifti.get_data_dtype()
    except KeyError as fault:
        raise damaged(f"its header says a data type of {fault}") from fault
    if dtype.names is None and (dtype.kind not in "iuf" or dtype.itemsize > 8):
        raise FileError(f"holds voxels of type {dtype}", "save it with whole numbers or with float32")
    return dtype


def _affine_of(nifti: Any, n: int) -> NDArray[np.float64]:
    """The affine in mm: the sform, else the qform, else the spacings alone; a slice without thickness is 1 thick."""
    from nibabel.spatialimages import HeaderDataError

    if abs(nifti["pixdim"][0]) != 1:
        nifti["pixdim"][0] = 1  # as NIfTI says of a sign that is not set
    placed = int(nifti["sform_code"]) != 0 or int(nifti["qform_code"]) != 0
    spacing = nifti["pixdim"][1 : min(n, 3) + 1]
    if not placed and not (spacing > 0).all():
        raise damaged(f"its header says a spacing of {sizes_text(spacing)}")
    try:
        with np.errstate(invalid="ignore"):  # nan is refused later
            affine = np.array(nifti.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError) as fault:
        raise damaged(str(fault)) from fault
    affine[:3] *= _MM_PER_UNIT.get(int(nifti["xyzt_units"]) & 7, 1.0)
    if n < 3 and not affine[:3, 2].any() and np.isfinite(affine).all():
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / max(float(np.linalg.norm(normal)), 1e-30)
    return affine


def _scaled(voxels: NDArray[np.generic], nifti: Any) -> NDArray[np.generic]:
    """Slope and intercept applied as float32 where there are any, one slice after the other to spare memory."""
    from nibabel.spatialimages import HeaderDataError

    try:
        slope, intercept = nifti.get_slope_inter()
    except HeaderDataError as fault:
        raise damaged(str(fault)) from fault
    if slope is None or (slope, intercept) == (1, 0):
        return voxels
    scaled = np.empty_like(voxels, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
        for index in range(voxels.shape[-1]):
            scaled[..., index] = voxels[..., index].astype(np.float64) * float(slope) + float(intercept)
    return scaled


def _fields_like(like: Path) -> Any:
    """A header with another file's shape and place in space, and nothing else of it."""
    with _open(like) as stream:
        source = _read_fields(stream)
    fresh = type(source)(endianness="<")
    fresh.set_data_shape(source.get_data_shape()[:3])
    for field in _GEOMETRY:
        fresh[field] = source[field]
    return fresh


def _fields_of(header: VolumeHeader, shape: tuple[int, ...]) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    kind: Any = Nifti1Header if max(shape) < 2**15 else Nifti2Header
    fresh = kind(endianness="<")
    fresh.set_data_shape(shape)
    fresh.set_xyzt_units("mm")
    fresh.set_qform(header.affine, code="scanner")
    fresh.set_sform(header.affine, code="scanner")
    return fresh
