"""The pictures of one DICOM file: where they lie, and their pixels as the modality measured them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iaunet.dicom_header import PIXEL_DATA, Elements, Header, read_elements
from iaunet.errors import FileError
from iaunet.orientation import MAX_VOXELS
from iaunet.silence import ignoring_warnings

DIRECTION_TOLERANCE = 1e-3
"""Difference between direction cosines that are taken for the same."""

SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of segmentations: BINARY and FRACTIONAL, and LABELMAP."""

SOP_CLASS = 0x00080016

_CLASS_IN_META, _MEDIA_DIRECTORY = 0x00020002, "1.2.840.10008.1.3.10"
_MODALITY = 0x00080060
_POSITION, _ORIENTATION, _PIXEL_SPACING = 0x00200032, 0x00200037, 0x00280030
_IMAGER_SPACING, _SLICE_THICKNESS, _SLICE_SPACING = 0x00181164, 0x00180050, 0x00180088
_SAMPLES, _PHOTOMETRIC, _N_FRAMES, _ROWS, _COLUMNS = 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011
_BITS_ALLOCATED, _BITS_STORED, _IS_SIGNED = 0x00280100, 0x00280101, 0x00280103
_INTERCEPT, _SLOPE = 0x00281052, 0x00281053
_MODALITY_LUT, _LUT_DESCRIPTOR, _LUT_DATA = 0x00283000, 0x00283002, 0x00283006
_SHARED_GROUPS, _FRAME_GROUPS, _TOTAL_COLUMNS = 0x52009229, 0x52009230, 0x00480006
_PLANE_POSITION, _PLANE_ORIENTATION, _MEASURES, _TRANSFORMATION = 0x00209113, 0x00209116, 0x00289110, 0x00289145

_NO_IMAGES = ("RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG")
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_LITTLE_ENDIAN = _UNCOMPRESSED[:2]
_SIGN_LOST = ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
"""RLE and JPEG-LS: GDCM leaves the sign out where fewer bits are stored than allocated."""

_GROUPS_RESCALED = tuple(
    f"1.2.840.10008.5.1.4.1.1.{ending}" for ending in ("2.1", "2.2", "4.1", "4.4", "13.1.1", "13.1.3", "128.1", "130")
)
"""Classes of multi-frame images (CT, MR, PET, tomosynthesis) in which GDCM heeds the rescale slope."""

_EXPORT = "export it again"
_EXTRA = "pip install 'iaunet[dicom]'"


@dataclass(frozen=True, eq=False)
class Frames:
    """The pictures of one file: ``positions`` [frames, 3] and ``axes`` [2, 3] in LPS mm, both None when not known.

    ``axes`` are the directions in which column and row numbers rise, ``spacing_mm`` the steps (between rows, between
    columns, between slices); the last is 0 when not told.
    """

    header: Header
    n: int
    size: tuple[int, int]
    channels: int
    positions: NDArray[np.float64] | None
    axes: NDArray[np.float64] | None
    spacing_mm: tuple[float, float, float]

    @property
    def can_stack(self) -> bool:
        """Whether it is one slice that says where it lies."""
        return self.n == 1 and self.positions is not None

    def is_parallel_to(self, other: "Frames") -> bool:
        """Whether the planes of two that can be stacked have the same axes."""
        assert self.axes is not None
        assert other.axes is not None
        return bool(np.allclose(self.axes, other.axes, rtol=0, atol=DIRECTION_TOLERANCE))

    def has_form_of(self, other: "Frames") -> bool:
        """Whether pictures have the same size and number of values a pixel."""
        return (self.size, self.channels) == (other.size, other.channels)


@dataclass(frozen=True)
class Groups:
    """Where the attributes of one picture stand, nearest first: its own items, those shared by all, the file."""

    places: tuple[Elements, ...]

    def numbers(self, macro: int, tag: int) -> tuple[float, ...]:
        """The numbers of an attribute; ``macro`` is the sequence that holds it in multi-frame files."""
        for place in self.places:
            found = next((item.numbers(tag) for item in place.items(macro)), ()) or place.numbers(tag)
            if found:
                return found
        return ()


def read_frames(path: Path) -> Frames:
    """The pictures an image file promises.

    Raises:
        FileError: It is damaged or no image.
    """
    with _naming(path):
        return _read_frames(path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let what is wrong with a file name it, one of many in a folder."""
    try:
        yield
    except FileError as fault:
        if fault.what.startswith(path.name):
            raise
        raise FileError(f"{path.name}: {fault.what}", fault.mend) from fault


def _read_frames(path: Path) -> Frames:
    header = require_pixels(read_elements(path))
    if header.text(SOP_CLASS) in SEGMENTATION_CLASSES:
        raise FileError(
            f"{path.name} is a DICOM segmentation, which is a mask and no image", "put it where the masks are"
        )
    if _TOTAL_COLUMNS in header:
        raise FileError(f"{path.name} is a microscope slide stored in tiles", "save regions of it as images")
    return frames_of(header)


def require_pixels(header: Header) -> Header:
    """The header, if pixel data follow it whole.

    Raises:
        FileError: They do not.
    """
    name = header.path.name
    modality = header.text(_MODALITY)
    if header.text(_CLASS_IN_META) == _MEDIA_DIRECTORY:
        raise FileError(f"{name} is a DICOMDIR, a list of files and no image", "leave it out")
    if modality in _NO_IMAGES or header.pixel_tag is None:
        raise FileError(f"{name} holds no image (modality {modality or 'not told'})", "leave it out")
    if not header.is_whole:
        raise FileError(f"{name} is truncated", "copy or export it again")
    return header


def frames_of(header: Header) -> Frames:
    """The pictures an image or segmentation promises.

    Raises:
        FileError: Their size, spacing or place cannot be.
    """
    name = header.path.name
    n = int((header.numbers(_N_FRAMES) or (1,))[0])
    rows, columns, samples = header.whole(_ROWS), header.whole(_COLUMNS), header.whole(_SAMPLES, 1)
    if min(n, rows, columns) < 1 or samples not in (1, 3):
        raise FileError(f"{name} promises {n} x {rows} x {columns} pixels of {samples} values", _EXPORT)
    channels = 3 if header.text(_PHOTOMETRIC) == "PALETTE COLOR" else samples
    if n * rows * columns * channels > MAX_VOXELS:
        raise FileError(f"{name} promises more than the {MAX_VOXELS:,} values allowed", "split or shrink it")
    bits = n * rows * columns * samples * header.whole(_BITS_ALLOCATED)
    if header.text(_PHOTOMETRIC) == "YBR_FULL_422":
        bits = bits * 2 // 3
    if header.transfer_syntax in _UNCOMPRESSED and (header.pixel_bytes or 0) * 8 < bits:
        raise FileError(f"{name} holds fewer pixels than its header promises", "copy or export it again")
    groups = functional_groups(header, n)
    axes = _axes(groups, name)
    spacing_mm = _spacing_mm(groups[0], name)
    positions = None if axes is None else _positions(groups, axes, spacing_mm[2], n)
    return Frames(header, n, (rows, columns), channels, positions, None if positions is None else axes, spacing_mm)


def functional_groups(header: Header, n: int) -> list[Groups]:
    """One for each picture, or a single one where the pictures have none of their own."""
    shared = header.items(_SHARED_GROUPS)
    own = header.items(_FRAME_GROUPS)
    if not own:
        return [Groups((*shared, header))]
    if len(own) != n:
        raise FileError(f"{header.path.name} holds {n} pictures and describes {len(own)}", _EXPORT)
    return [Groups((item, *shared, header)) for item in own]


def _axes(groups: Sequence[Groups], name: str) -> NDArray[np.float64] | None:
    """The directions [2, 3] in which column and row numbers rise, of length 1; None when not told."""
    found = [picture.numbers(_PLANE_ORIENTATION, _ORIENTATION) for picture in groups]
    if not all(found):
        return None
    if any(len(numbers) != 6 for numbers in found):
        raise FileError(f"{name} has an orientation of other than 6 numbers", _EXPORT)
    axes = np.reshape(found, (-1, 2, 3))
    if not np.allclose(axes, axes[0], rtol=0, atol=DIRECTION_TOLERANCE):
        raise FileError(f"{name} holds pictures of different orientations", "save each stack as a file of its own")
    lengths = np.linalg.norm(axes[0], axis=1)
    if not np.allclose(lengths, 1, atol=0.01) or abs(axes[0][0] @ axes[0][1]) > 0.01:
        raise FileError(f"{name} has an orientation that is no pair of directions at right angles", _EXPORT)
    return np.asarray(axes[0] / lengths[:, None], np.float64)


def _spacing_mm(groups: Groups, name: str) -> tuple[float, float, float]:
    in_plane = groups.numbers(_MEASURES, _PIXEL_SPACING) or groups.numbers(_MEASURES, _IMAGER_SPACING) or (1.0, 1.0)
    if len(in_plane) != 2 or min(in_plane) <= 0:
        shown = " x ".join(f"{value:g}" for value in in_plane)
        raise FileError(f"{name} has a pixel spacing of {shown} mm", "export it again with its true spacing")
    between = groups.numbers(_MEASURES, _SLICE_SPACING) or groups.numbers(_MEASURES, _SLICE_THICKNESS) or (0.0,)
    return in_plane[0], in_plane[1], between[0]


def _positions(
    groups: Sequence[Groups], axes: NDArray[np.float64], step_mm: float, n: int
) -> NDArray[np.float64] | None:
    """The places [n, 3] of the first pixels; a file with one position for all pictures has them along the normal."""
    found = [picture.numbers(_PLANE_POSITION, _POSITION) for picture in groups]
    if any(len(numbers) != 3 for numbers in found):
        return None
    positions = np.array(found, np.float64)
    if len(found) < n:
        positions = positions + np.arange(n)[:, None] * (step_mm or 1.0) * np.cross(*axes)
    return positions


def decode(frames: Frames) -> NDArray[np.generic]:
    """The pixels [frames, rows, columns, channels] of a file, rescaled.

    Raises:
        FileError: They cannot be decoded.
    """
    header = frames.header
    reason = _why_not_sitk(frames)
    if header.whole(_BITS_ALLOCATED) == 1 and header.transfer_syntax in _LITTLE_ENDIAN:
        pixels = _unpack(header, frames)
    else:
        with _without_rest(header) as path:
            pixels = _decode_file(path, frames, reason)
    if pixels.shape != (frames.n, *frames.size, frames.channels):
        raise FileError(f"{header.path.name} does not hold the pixels its header promises", _EXPORT)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise FileError(f"{header.path.name} holds nan or infinite values", "replace them, with 0 for instance")
    return pixels


@contextlib.contextmanager
def _without_rest(header: Header) -> Iterator[Path]:
    """The file; or a copy without bytes behind its pixels that are no elements: as such, GDCM gives them gigabytes."""
    if header.pixel_end is None:
        yield header.path
        return
    with contextlib.ExitStack() as stack:
        try:
            copy = Path(stack.enter_context(TemporaryDirectory())) / "image.dcm"
            copy.write_bytes(header.path.read_bytes()[: header.pixel_end])
        except OSError as fault:
            raise FileError(
                f"{header.path.name} ends in bytes that are no DICOM and cannot be copied without them "
                f"({fault.strerror})",
                "make room for temporary files, or export it again",
            ) from fault
        yield copy


def _decode_file(path: Path, frames: Frames, reason: str) -> NDArray[np.generic]:
    """The pixels of a file whose header was read; the reason tells why not by SimpleITK."""
    if not reason:
        try:
            return _decode_with_sitk(path)
        except RuntimeError:
            reason = f"is damaged or encoded in a way ({frames.header.transfer_syntax})"
    return _decode_with_pydicom(path, frames, reason)


def _why_not_sitk(frames: Frames) -> str:
    """What the file has that SimpleITK would read wrongly and say nothing; empty when there is nothing."""
    header = frames.header
    is_signed = header.whole(_IS_SIGNED) == 1
    if header.pixel_tag != PIXEL_DATA:
        return "holds pixels as real numbers"
    if header.whole(_BITS_ALLOCATED) == 1:
        return "has one bit a pixel, encoded in a way"
    if header.items(_MODALITY_LUT):
        return "has a modality lookup table"
    if is_signed and header.text(_PHOTOMETRIC) == "MONOCHROME1":
        return "is MONOCHROME1 with signed pixels"
    if (
        is_signed
        and header.transfer_syntax in _SIGN_LOST
        and header.whole(_BITS_STORED) < header.whole(_BITS_ALLOCATED)
    ):
        return "is compressed with sign"
    rescales = {*_rescales(frames)}
    if len(rescales) > 1 or (_is_missed_by_gdcm(header) and rescales != {(1.0, 0.0)}):
        return "has a rescale slope for its pictures"
    return ""


def _is_missed_by_gdcm(header: Header) -> bool:
    return _FRAME_GROUPS in header and header.text(SOP_CLASS) not in _GROUPS_RESCALED


def _rescales(frames: Frames) -> list[tuple[float, float]]:
    """Slope and intercept of each picture, or one for all."""
    found = []
    for picture in functional_groups(frames.header, frames.n):
        slope = (picture.numbers(_TRANSFORMATION, _SLOPE) or (1.0,))[0]
        if slope == 0:
            raise FileError(f"{frames.header.path.name} has a rescale slope of 0", _EXPORT)
        found.append((slope, (picture.numbers(_TRANSFORMATION, _INTERCEPT) or (0.0,))[0]))
    return found


def _unpack(header: Header, frames: Frames) -> NDArray[np.generic]:
    """Pixels of one bit, 0 or 1. GDCM leaves out the last of them where they do not fill a byte."""
    n = frames.n * frames.size[0] * frames.size[1]
    packed = np.fromfile(header.path, np.uint8, count=-(-n // 8), offset=header.pixel_start)
    return np.unpackbits(packed, count=n, bitorder="little").reshape(frames.n, *frames.size, 1)


def _decode_with_sitk(path: Path) -> NDArray[np.generic]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    with _quiet(sitk):
        pixels = np.asarray(sitk.GetArrayFromImage(reader.Execute()))  # [frames, rows, columns(, channels)]
    return pixels.reshape(*pixels.shape[:3], -1)


@contextlib.contextmanager
def _quiet(sitk: Any) -> Iterator[None]:
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _decode_with_pydicom(path: Path, frames: Frames, reason: str) -> NDArray[np.generic]:
    header = frames.header
    name = header.path.name
    try:
        import pydicom
    except ImportError as fault:
        raise FileError(f"{name} {reason} that needs pydicom to be read", _EXTRA) from fault
    try:
        with ignoring_warnings():
            dataset = pydicom.dcmread(path)
            pixels = np.asarray(dataset.pixel_array).reshape(frames.n, *frames.size, -1)
    except MemoryError as fault:
        raise FileError(
            f"{name} needs more memory than there is", "use fewer workers or close other programs"
        ) from fault
    except Exception as fault:  # its plugins and parsers raise what they like, even StopIteration
        raise FileError(f"{name} {reason} that cannot be decoded", "export it again without compression") from fault
    stored = header.whole(_BITS_STORED)
    lowest = -1 << (stored - 1) if header.whole(_IS_SIGNED) == 1 else 0
    highest = lowest + (1 << stored) - 1
    tables = header.items(_MODALITY_LUT)
    if tables:
        pixels, lowest, highest = _looked_up(pixels, tables[0], header)
    if header.text(_PHOTOMETRIC) == "MONOCHROME1":
        pixels = lowest + highest - pixels.astype(np.int64)
    return pixels if tables else _rescaled(pixels, _rescales(frames))


def _looked_up(pixels: NDArray[np.generic], table: Elements, header: Header) -> tuple[NDArray[np.generic], int, int]:
    """Stored values replaced by those of a modality lookup table, and the least and greatest these can be."""
    descriptor, data = table.values.get(_LUT_DESCRIPTOR, b""), table.values.get(_LUT_DATA, b"")
    if len(descriptor) != 6 or not data:
        raise FileError(f"{header.path.name} has a damaged modality lookup table", _EXPORT)
    order = "<" if header.coding.is_little else ">"
    kind = "i2" if header.whole(_IS_SIGNED) == 1 else "u2"
    n, _, bits = np.frombuffer(descriptor, f"{order}u2").tolist()
    first = int(np.frombuffer(descriptor, order + kind)[1])
    # of 2**16 entries the descriptor says 0
    entries = np.frombuffer(data, np.uint8 if len(data) < 2 * (n or 1 << 16) else f"{order}u2")
    places = (pixels.astype(np.int64) - first).clip(0, len(entries) - 1)
    return entries[places].astype(np.int32), 0, (1 << bits) - 1


def _rescaled(pixels: NDArray[np.generic], rescales: Sequence[tuple[float, float]]) -> NDArray[np.generic]:
    """Pixels [frames, rows, columns, channels] with slope and intercept applied: whole where both are whole."""
    factors = np.array(rescales)[..., None, None, None]
    if pixels.dtype.kind != "f" and (factors == np.rint(factors)).all():
        factors, pixels = factors.astype(np.int64), pixels.astype(np.int64)
    return np.asarray(pixels * factors[:, 0] + factors[:, 1])
