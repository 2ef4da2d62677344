"""Reads MetaImage and NRRD files through SimpleITK, and writes them."""

import contextlib
import gzip
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import FileError
from iaunet.orientation import Volume, VolumeHeader, damaged, require_one_volume, require_size

if TYPE_CHECKING:
    import SimpleITK as sitk

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CHUNK = 1 << 20
_COMPRESSION = 6
"""The level at which voxels are deflated: at gzip's own, 9, labels take 8 times as long for a seventh less."""
_SKIPS = ("HeaderSize", "byte skip", "byteskip", "line skip", "lineskip")
_META_TYPES = {"u1": "MET_UCHAR", "u2": "MET_USHORT", "f4": "MET_FLOAT"}
_NRRD_TYPES = {"u1": "uint8", "u2": "uint16", "f4": "float"}


def read_itk_header(path: Path) -> VolumeHeader:
    """The header of a file that exists, as `iaunet.volumes.read_header`."""
    reader = _reader_of(path)
    return VolumeHeader.of((*reader.GetSize(), 1)[:3], reader.GetNumberOfComponents(), _affine_of(reader))


def read_itk(path: Path) -> Volume:
    """The volume of a file that exists; real voxels may be nan."""
    reader = _reader_of(path)
    n = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
    _TextHeader.read(path).require_whole(n * _itemsize(reader))
    with _naming_faults():
        image = reader.Execute()
    return volume_from_sitk(image)


def read_itk_note(path: Path, key: str) -> str:
    """What a file's header says under a key of our own; empty if it has none."""
    return _TextHeader.read(path).fields.get(key, "")


def data_file(path: Path) -> Path:
    """The file that holds the voxels: the same, or another beside a detached header.

    Raises:
        FileError: It is missing, or there are several.
    """
    return _TextHeader.read(path).data_file


def volume_from_sitk(image: "sitk.Image") -> Volume:
    """The volume of an image of SimpleITK: a slice, a volume or one with several components a voxel.

    Raises:
        FileError: It holds more than one volume or its affine is singular.
    """
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)  # [further axes, k, j, i, components]
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    require_one_volume(image.GetSize()[3:])
    array = array.reshape(-1, *array.shape[-3:]) if image.GetDimension() == 2 else array.reshape(array.shape[-4:])
    return Volume.of(array.transpose(3, 2, 1, 0), _affine_of(image))


def encode_meta(
    array: NDArray[np.generic], header: VolumeHeader, like: Path | None = None, note: tuple[str, str] | None = None
) -> bytes:
    """The bytes of a MetaImage file with an array [file's axes] of little-endian numbers.

    Args:
        array: The voxels.
        header: Where they lie.
        like: A MetaImage or NRRD file whose place in space is taken to the bit, instead of the header's.
        note: A key and a line of ASCII for the file's header.
    """
    place = _Place.of(header, like)
    data = zlib.compress(array.tobytes("F"), _COMPRESSION)
    fields = {
        "ObjectType": "Image",
        "NDims": str(len(place.spacing)),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(len(data)),
        "TransformMatrix": _numbers(place.directions.T.ravel()),
        "Offset": _numbers(place.origin),
        "ElementSpacing": _numbers(place.spacing),
        "DimSize": _numbers(array.shape[: len(place.spacing)]),
        **dict([note] if note else []),
        "ElementType": _META_TYPES[array.dtype.str[1:]],
        "ElementDataFile": "LOCAL",  # ends the header
    }
    return "".join(f"{key} = {value}\n" for key, value in fields.items()).encode() + data


def encode_nrrd(
    array: NDArray[np.generic], header: VolumeHeader, like: Path | None = None, note: tuple[str, str] | None = None
) -> bytes:
    """The bytes of a NRRD file; arguments as in `encode_meta`."""
    place = _Place.of(header, like)
    n = len(place.spacing)
    lines = [
        "NRRD0004",
        f"type: {_NRRD_TYPES[array.dtype.str[1:]]}",
        f"dimension: {n}",
        *_nrrd_space(like, place),
        f"sizes: {_numbers(array.shape[:n])}",
        f"kinds: {' '.join(['domain'] * n)}",
        "endian: little",
        "encoding: gzip",
        *([":=".join(note)] if note else []),
    ]
    text = "\n".join(lines) + "\n\n"
    return text.encode() + gzip.compress(array.tobytes("F"), _COMPRESSION, mtime=0)


@dataclass(frozen=True)
class _TextHeader:
    """The fields of a MetaImage or NRRD file by key, and where its voxels lie: a file and the byte they start at."""

    fields: dict[str, str]
    data_file: Path
    offset: int

    @classmethod
    def read(cls, path: Path) -> "_TextHeader":
        with path.open("rb") as file:
            block = file.read(_CHUNK)
        is_nrrd = _is_nrrd(path)
        return cls._of_nrrd(path, block) if is_nrrd else cls._of_meta(path, block)

    @classmethod
    def _of_meta(cls, path: Path, block: bytes) -> "_TextHeader":
        end = re.search(rb"^ElementDataFile[ \t]*=[^\n]*(\n|\Z)", block, re.MULTILINE)
        if end is None:
            raise FileError("is no MetaImage file, whatever its name says", "remove it or save it again as .mha")
        lines = (line.partition("=") for line in block[: end.end()].decode("utf-8", "replace").splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
        missing = {"NDims", "DimSize", "ElementType"} - fields.keys()
        if missing:
            raise damaged(f"its header lacks {min(missing)}")
        sizes = fields["DimSize"].split()
        if fields["NDims"] != str(len(sizes)) or not all(size.isascii() and size.isdecimal() for size in sizes):
            raise damaged(f"its header says a size of {fields['DimSize'][:60]!r}")
        _require_spacing(fields.get("ElementSpacing", fields.get("ElementSize", "1")).split())
        name = fields["ElementDataFile"]
        if name.upper() == "LOCAL":
            return cls(fields, path, end.end())
        return cls(fields, _beside(path, name), 0)

    @classmethod
    def _of_nrrd(cls, path: Path, block: bytes) -> "_TextHeader":
        if not block.startswith(b"NRRD000"):
            raise FileError("is no NRRD file, whatever its name says", "remove it or save it again as .nrrd")
        end = re.search(rb"\r?\n\r?\n", block)
        start = end.end() if end else len(block)
        lines = block[:start].decode("utf-8", "replace").splitlines()[1:]
        parts = (re.fullmatch(r"([^:#]+):[= ]?(.*)", line) for line in lines)
        fields = {part[1].strip(): part[2].strip() for part in parts if part}
        _require_spacing([value for value in fields.get("spacings", "").split() if value.lower() != "nan"])
        name = fields.get("data file", fields.get("datafile"))
        return cls(fields, path, start) if name is None else cls(fields, _beside(path, name), 0)

    def require_whole(self, promised: int) -> None:
        """Count the voxels' bytes and let compressed ones prove their checksum: SimpleITK reads damaged ones as noise.

        Voxels that are written as text, or otherwise than plain or deflated, are left to SimpleITK.
        """
        if any(self.fields.get(key, "0") != "0" for key in _SKIPS):
            return
        try:
            with self.data_file.open("rb") as file:
                file.seek(self.offset)
                held = self._count(file)
        except (OSError, EOFError, zlib.error) as fault:
            raise damaged(str(fault)) from fault
        if held is not None and held < promised:
            raise damaged(f"its header promises {promised:,} bytes of voxels, it holds {held:,}")

    def _count(self, file: BinaryIO) -> int | None:
        """The bytes of the voxels from here on, decompressed; None if this is not known."""
        if self._says("CompressedData"):
            size = self.fields.get("CompressedDataSize", "")
            if not (size.isascii() and size.isdecimal()):
                raise damaged("its header lacks CompressedDataSize")
            return sum(map(len, _inflated(file, int(size[:20]))))
        encoding = self.fields.get("encoding", "").lower()
        if encoding in ("gzip", "gz"):
            with gzip.GzipFile(fileobj=file) as stream:
                return sum(map(len, iter(lambda: stream.read(_CHUNK), b"")))
        if encoding == "raw" or self._says("BinaryData"):
            return self.data_file.stat().st_size - self.offset
        return None

    def _says(self, key: str) -> bool:
        return self.fields.get(key, "").lower().startswith(("t", "1"))


def _is_nrrd(path: Path) -> bool:
    return path.suffix.lower() == ".nrrd"


def _inflated(file: BinaryIO, size: int) -> Iterator[bytes]:
    """What the next ``size`` bytes of a file hold in compressed form."""
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    while not inflater.eof:
        data = file.read(min(size, _CHUNK >> 4))
        if not data:
            raise EOFError("its compressed voxels end too early")
        size -= len(data)
        yield inflater.decompress(data)


def _require_spacing(values: Sequence[str]) -> None:
    try:
        fits = all(0 < float(value) < math.inf for value in values)
    except ValueError:
        fits = False
    if not fits:
        raise damaged(f"its header says a spacing of {' x '.join(values)[:60]!r}")


def _beside(path: Path, name: str) -> Path:
    """The file beside a header that holds the voxels."""
    if not name or "%" in name or name.upper().startswith("LIST"):
        raise FileError("its voxels lie in several files", f"save it as {'.nrrd' if _is_nrrd(path) else '.mha'}")
    if Path(name).anchor or ".." in Path(name).parts:
        raise FileError(f"its voxels lie in {name[:40]!r}, outside of its folder", "copy that file beside it")
    data = path.parent / name
    if len(name) > 255 or not name.isprintable() or not data.is_file():
        raise FileError(f"its voxels lie in {name[:40]!r}, which is missing", "copy that file beside it")
    return data


@contextlib.contextmanager
def _naming_faults() -> Iterator[None]:
    """Turn the errors of SimpleITK into one line, and keep its warnings off stderr."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except RuntimeError as fault:
        said = re.findall(r"(?:ERROR: (?:\w+\(\w+\): )?|\[nrrd\] \w+: )([^\n]*)", str(fault))
        reason = said[-1].split(": /")[0].rstrip(".: ") if said else "unreadable"  # without the path
        raise damaged(f"SimpleITK says: {reason}") from fault
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _reader_of(path: Path) -> "sitk.ImageFileReader":
    """SimpleITK's reader of a file, its header read and checked."""
    import SimpleITK as sitk

    _TextHeader.read(path)  # names faults that SimpleITK does not
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if _is_nrrd(path) else "MetaImageIO")  # no other decoder is ever tried
    reader.SetFileName(str(path))
    with _naming_faults():
        reader.ReadImageInformation()
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    require_size(size, components)
    require_one_volume(size[3:])
    if _itemsize(reader) == 0:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
        raise FileError(f"holds voxels of type {kind}", "save it with whole numbers or with float32")
    return reader


def _itemsize(reader: "sitk.ImageFileReader") -> int:
    """The bytes of one component of a voxel, 0 if it is no real or whole number."""
    import SimpleITK as sitk

    kind = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
    bits = re.search(r"(\d+)-bit", kind)
    return 0 if bits is None or "complex" in kind else int(bits[1]) // 8


def _affine_of(image: Any) -> NDArray[np.float64]:
    """The affine from voxel (i, j, k) to RAS mm; a slice gets a third axis of 1 mm, a fourth axis is left out."""
    n = image.GetDimension()
    directions = np.reshape(image.GetDirection(), (n, n)) * image.GetSpacing()
    affine = np.eye(4)
    size = min(n, 3)
    affine[:size, :size] = directions[:size, :size]
    affine[:size, 3] = image.GetOrigin()[:size]
    return _LPS_TO_RAS @ affine + 0.0  # no negative zeros


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a volume lies as ITK says it, in LPS: a spacing and a column of directions an axis, and the origin."""

    spacing: NDArray[np.float64]
    directions: NDArray[np.float64]
    origin: NDArray[np.float64]

    @classmethod
    def of(cls, header: VolumeHeader, like: Path | None) -> "_Place":
        """As the file ``like`` has it, to the bit; else from the header's affine."""
        if like is None:
            lps = _LPS_TO_RAS @ header.affine
            spacing = np.linalg.norm(lps[:3, :3], axis=0)
            return cls(spacing, lps[:3, :3] / spacing, lps[:3, 3])
        reader = _reader_of(like)
        n = reader.GetDimension()
        directions = np.reshape(reader.GetDirection(), (n, n))[:3, :3]
        return cls(np.array(reader.GetSpacing()[:3]), directions, np.array(reader.GetOrigin()[:3]))


def _nrrd_space(like: Path | None, place: _Place) -> list[str]:
    """The lines that place a NRRD file.

    Those of a NRRD file are copied: it holds the product of spacing and direction, which their quotient may miss by
    the last bit.
    """
    fields = _TextHeader.read(like).fields if like is not None and _is_nrrd(like) else {}
    vectors = re.findall(r"\([^)]*\)", fields.get("space directions", ""))
    n = len(place.spacing)
    if len(vectors) == n:
        space = {key: fields[key] for key in ("space", "space dimension", "space origin") if key in fields}
        return [*(f"{key}: {value}" for key, value in space.items()), f"space directions: {' '.join(vectors)}"]
    columns = (place.directions * place.spacing).T
    return [
        "space: left-posterior-superior" if n == 3 else f"space dimension: {n}",
        f"space directions: {' '.join(map(_vector, columns))}",
        f"space origin: {_vector(place.origin)}",
    ]


def _numbers(values: Iterable[float]) -> str:
    return " ".join(repr(value.item() if isinstance(value, np.generic) else value) for value in values)


def _vector(values: Iterable[float]) -> str:
    return f"({_numbers(values).replace(' ', ',')})"
