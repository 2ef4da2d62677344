"""Small sound files of every format and variant that is read, as images and as masks."""

import gzip
import io
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pydicom
import SimpleITK
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid

sys.path.append(str(Path(__file__).parents[1] / "preprocessing"))
import forms

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 24), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)
ALPHA = np.dstack([COLOUR, GREY])
DEEP = RNG.integers(0, 65536, (20, 24), dtype=np.uint16)
FLOATS = RNG.normal(size=(20, 24)).astype(np.float32)
STACK = RNG.integers(0, 256, (3, 16, 18), dtype=np.uint8)
DEEP_STACK = RNG.integers(0, 4096, (3, 16, 18)).astype(np.int16)
LABELS = (GREY > 128).astype(np.uint8) * np.uint8(255)
LABEL_STACK = (STACK > 200).astype(np.uint8)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Seed(NamedTuple):
    """The files of one image, by name, and which of them (or ``.``, their folder) is given to be read."""

    files: dict[str, bytes]
    path: str


def one(name: str, data: bytes) -> Seed:
    """An image of one file."""
    return Seed({name: data}, name)


def by_pillow(image: NDArray[np.generic] | Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a picture."""
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


def by_tifffile(pixels: NDArray[np.generic], **options: Any) -> bytes:
    """The bytes of a TIFF file."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def palette(indices: NDArray[np.uint8]) -> Image.Image:
    """A picture of three colours."""
    image = Image.fromarray(indices % 3).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    return image


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG file, whose checksum is right."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each part of a PNG file, as far as it goes."""
    place = len(SIGNATURE)
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length


def interlaced(pixels: NDArray[np.uint8]) -> bytes:
    """A grey PNG in the seven passes of Adam7."""
    height, width = pixels.shape
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right] if row.size
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def run_length_bmp(width: int, height: int) -> bytes:
    """A BMP of 8 bits in run lengths, each row of one value."""
    rows = b"".join(bytes([width, row % 256, 0, 0]) for row in range(height)) + b"\0\1"
    colours = b"".join(bytes([value, value, value, 0]) for value in range(256))
    start = 54 + len(colours)
    head = struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0) + colours + rows


def png_seeds() -> list[Seed]:
    """PNG of every mode."""
    turned = Image.Exif()
    turned[0x0112] = 6
    images = [
        by_pillow(GREY, "PNG"),
        by_pillow(COLOUR, "PNG", exif=turned),
        by_pillow(ALPHA, "PNG", dpi=(200, 200)),
        by_pillow(Image.fromarray(ALPHA).convert("LA"), "PNG"),
        by_pillow(palette(GREY), "PNG"),
        by_pillow(palette(GREY), "PNG", transparency=1),
        by_pillow(Image.fromarray(GREY > 128), "PNG"),
        by_pillow(DEEP, "PNG"),
        interlaced(GREY),
        by_pillow(LABELS, "PNG"),
    ]
    return [one("a.png", data) for data in images]


def jpeg_seeds() -> list[Seed]:
    """JPEG of every mode."""
    turned = Image.Exif()
    turned[0x0112] = 8
    smooth = Image.fromarray(COLOUR).resize((3, 3)).resize((40, 32))
    images = [
        by_pillow(smooth, "JPEG", exif=turned),
        by_pillow(smooth.convert("L"), "JPEG"),
        by_pillow(smooth.convert("CMYK"), "JPEG"),
        by_pillow(smooth, "JPEG", progressive=True),
        by_pillow(smooth, "JPEG", restart_marker_blocks=2),
        by_pillow(smooth, "MPO", save_all=True, append_images=[smooth]),
    ]
    return [one("a.jpg", data) for data in images]


def bmp_seeds() -> list[Seed]:
    """BMP of every depth."""
    images = [
        by_pillow(GREY, "BMP"),
        by_pillow(COLOUR, "BMP"),
        by_pillow(ALPHA, "BMP"),
        by_pillow(palette(GREY), "BMP"),
        by_pillow(Image.fromarray(GREY > 128), "BMP"),
        run_length_bmp(24, 20),
    ]
    return [one("a.bmp", data) for data in images]


def tiff_seeds() -> list[Seed]:
    """TIFF in every layout and packing that is read."""
    axes = {"metadata": {"axes": "ZYX"}, "photometric": "minisblack"}
    images = [
        by_tifffile(GREY),
        by_tifffile(DEEP, byteorder=">"),
        by_tifffile(FLOATS, compression="zlib"),
        by_tifffile(COLOUR, photometric="rgb", rowsperstrip=7),
        by_tifffile(COLOUR.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
        by_tifffile(ALPHA, photometric="rgb", extrasamples=["unassalpha"], compression="zlib", predictor=True),
        by_tifffile(np.tile(DEEP, (2, 2)), tile=(16, 16)),
        by_tifffile(np.tile(GREY, (2, 2)), tile=(16, 16), compression="zlib", predictor=True),
        by_tifffile(GREY, bigtiff=True, resolution=(1234, 1234), resolutionunit="CENTIMETER"),
        by_tifffile(STACK, ome=True, **axes),
        by_tifffile(DEEP_STACK.astype(np.uint16), imagej=True, **axes),
        by_tifffile(STACK, compression="zlib", **axes),
        by_pillow(palette(GREY), "TIFF", compression="tiff_lzw"),
        by_pillow(palette(GREY), "TIFF"),
        by_pillow(Image.fromarray(GREY > 128), "TIFF", compression="group4"),
        by_pillow(GREY, "TIFF", compression="packbits"),
        by_pillow(COLOUR, "TIFF", compression="jpeg"),
        by_pillow(COLOUR, "TIFF", compression="tiff_lzw"),
        by_pillow(Image.fromarray(COLOUR).convert("CMYK"), "TIFF", compression="tiff_lzw"),
        by_tifffile(LABELS, compression="zlib"),
    ]
    return [one("a.tif", data) for data in images]


def nifti_images() -> list[bytes]:
    """NIfTI-1 and -2 of every type that is read."""
    affine = forms.affine()
    scaled = nibabel.Nifti1Image(DEEP_STACK, affine)
    scaled.header.set_slope_inter(0.5, -100)
    big = nibabel.Nifti1Image(DEEP_STACK, affine, nibabel.Nifti1Header(endianness=">"))
    colours = np.ascontiguousarray(COLOUR).view([("R", "u1"), ("G", "u1"), ("B", "u1")])
    turned = affine.copy()
    turned[:2, :2] = [[0.4, 0.5], [-0.5, 0.4]]
    images = (
        nibabel.Nifti1Image(STACK, affine),
        scaled,
        big,
        nibabel.Nifti1Image(STACK.astype(np.float32), turned),
        nibabel.Nifti1Image(STACK.astype(np.float64), None),
        nibabel.Nifti1Image(colours, affine),
        nibabel.Nifti1Image(np.stack([STACK] * 2, axis=-1)[:, :, :, None], affine),
        nibabel.Nifti2Image(STACK.astype(np.uint16), affine),
        nibabel.Nifti1Image(LABEL_STACK, affine),
    )
    return [image.to_bytes() for image in images]


def nifti_seeds() -> list[Seed]:
    """Plain NIfTI."""
    return [one("a.nii", data) for data in nifti_images()]


def packed_nifti_seeds() -> list[Seed]:
    """NIfTI in gzip."""
    return [one("a.nii.gz", gzip.compress(data, 1, mtime=0)) for data in nifti_images()]


def by_simpleitk(ending: str, pixels: NDArray[np.generic], *, packed: bool = False, vector: bool = False) -> Seed:
    """The files of a volume."""
    image = SimpleITK.GetImageFromArray(pixels, isVector=vector)
    image.SetSpacing([0.5, 0.75, 2.5][: image.GetDimension()])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ending}"
        SimpleITK.WriteImage(image, path, packed)
        return Seed({file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}, path.name)


def itk_seeds(ending: str) -> list[Seed]:
    """MetaImage or NRRD of every kind."""
    return [
        by_simpleitk(ending, STACK),
        by_simpleitk(ending, STACK, packed=True),
        by_simpleitk(ending, DEEP_STACK),
        by_simpleitk(ending, STACK.astype(np.float32), packed=True),
        by_simpleitk(ending, STACK.astype(np.float64)),
        by_simpleitk(ending, np.stack([STACK] * 3, axis=-1), vector=True),
        by_simpleitk(ending, FLOATS),
        by_simpleitk(ending, LABEL_STACK, packed=True),
    ]


def mha_seeds() -> list[Seed]:
    """MetaImage in one file."""
    head = b"ObjectType = Image\nNDims = 2\nDimSize = 3 2\nElementSpacing = 1 2\nElementType = MET_UCHAR\n"
    return [*itk_seeds(".mha"), one("a.mha", head + b"ElementDataFile = LOCAL\n1 2 3 4 5 6\n")]


def mhd_seeds() -> list[Seed]:
    """MetaImage in two files."""
    return itk_seeds(".mhd")


def nrrd_seeds() -> list[Seed]:
    """NRRD in one file, in two, and as text."""
    head = b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 3 2\n"
    text = one("a.nrrd", head + b"encoding: text\n\n1 2 3 4 5 6\n")
    hexadecimal = one("a.nrrd", head + b"encoding: hex\n\n010203040506\n")
    detached = Seed({"a.nrrd": head + b"encoding: raw\ndata file: a.raw\n", "a.raw": bytes(range(6))}, "a.nrrd")
    return [*itk_seeds(".nrrd"), text, hexadecimal, detached]


def dicom(
    pixels: NDArray[np.generic], syntax: str = uid.ExplicitVRLittleEndian, place: float = 0, **elements: Any
) -> bytes:
    """The bytes of a DICOM slice, or of several pictures."""
    bits = pixels.dtype.itemsize * 8
    colours = pixels.shape[-1] == 3
    *frames, rows, columns = pixels.shape[:-1] if colours else pixels.shape
    data = pixels.tobytes()
    values = {
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": data + b"\0" * (len(data) % 2),
        **({"NumberOfFrames": frames[0]} if frames else {}),
        **({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0} if colours else {}),
        **elements,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = forms.save_dicom(Path(folder) / "a.dcm", np.zeros((2, 2), np.uint8), place, "s", **values)
        dataset = pydicom.dcmread(path)
        if syntax in (uid.RLELossless, uid.JPEGLSLossless):
            dataset.compress(syntax)
        dataset.file_meta.TransferSyntaxUID = syntax
        coding = {uid.ImplicitVRLittleEndian: (True, True), uid.ExplicitVRBigEndian: (False, False)}
        implicit, little = coding.get(syntax, (False, True))
        pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little, force_encoding=True)
        return path.read_bytes()


def jpeg_dicom(compressor: str) -> bytes:
    """The bytes of a DICOM slice packed as JPEG or JPEG 2000 without loss."""
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.dcm"
        writer.SetFileName(str(path))
        writer.Execute(SimpleITK.GetImageFromArray(GREY))
        return path.read_bytes()


def item(**elements: Any) -> pydicom.Dataset:
    """An item of a sequence."""
    found = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(found, keyword, value)
    return found


def frame_groups(segments: bool = False) -> dict[str, Any]:
    """What an enhanced file of three pictures says of each."""
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.75, 0.5], SliceThickness=2.5)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )
    own = [item(PlanePositionSequence=[item(ImagePositionPatient=[0.0, 0.0, 2.5 * k])]) for k in range(3)]
    for group in own if segments else ():
        group.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=1)]
    return {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": own}


def dicom_seeds() -> list[Seed]:
    """Lone DICOM files of every syntax and kind."""
    table = item(LUTDescriptor=[256, 0, 8], ModalityLUTType="US", LUTData=bytes(range(256)))
    colours = {
        f"{name}PaletteColorLookupTable{part}": value
        for name in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", bytes(512)))
    }
    images = [
        dicom(DEEP_STACK[0], RescaleSlope=2, RescaleIntercept=-1024),
        dicom(GREY, uid.ImplicitVRLittleEndian),
        dicom(GREY, uid.ExplicitVRBigEndian),
        dicom(GREY, uid.DeflatedExplicitVRLittleEndian),
        dicom(DEEP_STACK[0], uid.RLELossless, BitsStored=12, HighBit=11),
        dicom(GREY, uid.JPEGLSLossless),
        jpeg_dicom("JPEG"),
        jpeg_dicom("JPEG2000"),
        dicom(COLOUR),
        dicom(GREY, PhotometricInterpretation="MONOCHROME1"),
        dicom(GREY, PhotometricInterpretation="PALETTE COLOR", **colours),
        dicom(GREY, ModalityLUTSequence=[table]),
        dicom(DEEP_STACK, SOPClassUID=uid.EnhancedCTImageStorage, **frame_groups()),
        dicom(GREY, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=bytes(60)),
        dicom(LABELS),
    ]
    return [one("a.dcm", data) for data in images]


def series_of(pixels: NDArray[np.generic], **options: Any) -> dict[str, bytes]:
    """The files of a series."""
    return {f"{place}.dcm": dicom(plane, place=place, **options) for place, plane in enumerate(pixels)}


def series_seeds() -> list[Seed]:
    """Folders with a DICOM series."""
    return [
        Seed(series_of(STACK), "."),
        Seed(series_of(DEEP_STACK, syntax=uid.ImplicitVRLittleEndian), "."),
        Seed(series_of(LABEL_STACK), "."),
    ]


def segmentation() -> bytes:
    """A DICOM segmentation of the first of `series_seeds`."""
    packed = np.packbits(LABEL_STACK.ravel(), bitorder="little").tobytes()
    return dicom(
        LABEL_STACK,
        SOPClassUID=uid.SegmentationStorage,
        Modality="SEG",
        SegmentationType="BINARY",
        BitsAllocated=1,
        BitsStored=1,
        HighBit=0,
        PixelData=packed + b"\0" * (len(packed) % 2),
        SegmentSequence=[item(SegmentNumber=1, SegmentLabel="polyp")],
        **frame_groups(segments=True),
    )


def segmentation_seeds() -> list[Seed]:
    """A DICOM segmentation; it is a mask only."""
    return [one("a.dcm", segmentation())]


IMAGES: dict[str, Callable[[], list[Seed]]] = {
    "PNG": png_seeds,
    "JPEG": jpeg_seeds,
    "BMP": bmp_seeds,
    "TIFF": tiff_seeds,
    "NIfTI": nifti_seeds,
    "NIfTI in gzip": packed_nifti_seeds,
    "MHA": mha_seeds,
    "MHD": mhd_seeds,
    "NRRD": nrrd_seeds,
    "DICOM": dicom_seeds,
    "DICOM series": series_seeds,
}
"""Formats that images are read from, with sound files of each."""

MASKS = IMAGES | {"DICOM segmentation": segmentation_seeds}
"""Formats that masks are read from."""
