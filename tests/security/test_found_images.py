"""Images that random damage once led to: each was read wrong, took gigabytes, never ended or let a warning through."""

import gzip
import struct
import tempfile
import zlib
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iaunet.dataset import DEFAULT_SLICING
from iaunet.errors import FileError
from iaunet.files import decode_image, decode_mask
from iaunet.inference.runtime import iaunet_runtime
from iaunet.inference.runtime.iaunet_runtime import ImageFault
from iaunet.stacks import read_mask_stack, read_stack

pytest.importorskip("pydicom")
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parent))
    seeds = import_module("image_seeds")

BEYOND = "holds values beyond 3.4e38, the largest of 32-bit floats: scale them down"
HEADER = r"has a truncated or damaged DICOM header: copy or export it again"


def read(path, data):
    path.write_bytes(data)
    return read_stack([path], DEFAULT_SLICING)


@pytest.fixture
def assert_refused(tmp_path):
    """Assert that an image is refused by iaunet, and by the runtime, which Pillow alone reads for."""

    def assert_refused(data, by_iaunet, by_runtime):
        (tmp_path / "image").write_bytes(data)
        with pytest.raises(FileError, match=by_iaunet):
            decode_image(data)
        with pytest.raises(ImageFault, match=by_runtime):
            iaunet_runtime.read_image(tmp_path / "image")

    return assert_refused


def with_size(data, width, height):
    """A PNG whose header tells of another size."""
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_a_palette_with_several_transparent_colours_is_read_without_a_warning():
    data = seeds.by_pillow(seeds.palette(seeds.GREY), "PNG", transparency=bytes([255, 9, 99]))

    assert decode_image(data).has_transparency
    assert decode_mask(data).max() == 2


def test_a_jpeg_whose_further_pictures_are_damaged_is_its_first_without_a_warning():
    picture = Image.fromarray(seeds.COLOUR)
    data = seeds.by_pillow(picture, "MPO", save_all=True, append_images=[picture])
    place = data.index(b"MPF\0") + 4

    image = decode_image(data[: place + 8] + b"\xff" * 20 + data[place + 28 :])

    np.testing.assert_array_equal(image.pixels, decode_image(data).pixels)


@pytest.mark.parametrize(
    ("height", "message"),
    [(16_777_216, r"damaged \(.+ bytes cannot unfold to .+\)"), (22, r"damaged \(its rows end after .+ of .+ bytes\)")],
)
@pytest.mark.parametrize(
    "pixels", [seeds.GREY, np.zeros_like(seeds.GREY), seeds.COLOUR], ids=["grey", "black", "colour"]
)
def test_a_png_with_fewer_rows_than_it_promises_is_damaged(pixels, height, message, assert_refused):
    data = with_size(seeds.by_pillow(pixels, "PNG"), 24, height)

    assert_refused(data, message, r"damaged \(its rows are .+ of .+ bytes\)")


def test_an_interlaced_png_that_lacks_its_last_pass_is_damaged(assert_refused, tmp_path):
    data = seeds.interlaced(seeds.GREY)
    (header, _), (kind, packed), end = seeds.png_chunks(data)
    rows = zlib.decompress(packed)
    shorter = (header, data[16:29]), (kind, zlib.compress(rows[:-25])), end
    (tmp_path / "whole.png").write_bytes(data)

    np.testing.assert_array_equal(decode_image(data).pixels[0], seeds.GREY)
    np.testing.assert_array_equal(iaunet_runtime.read_image(tmp_path / "whole.png")[0], seeds.GREY)
    assert_refused(
        seeds.SIGNATURE + b"".join(seeds.chunk(*part) for part in shorter),
        rf"its rows end after {len(rows) - 25} of {len(rows)} bytes",
        rf"its rows are {len(rows) - 25} of {len(rows)} bytes",
    )


def test_a_wrong_byte_among_the_packed_pixels_of_a_png_is_found(assert_refused):
    data = bytearray(seeds.by_pillow(seeds.GREY, "PNG", compress_level=0))
    data[300] ^= 1

    message = r"damaged \(a checksum of its pixels does not fit\)"
    assert_refused(bytes(data), message, message)


def test_a_jpeg_of_one_kilobyte_is_no_picture_of_13000_x_13000_pixels(assert_refused):
    data = bytearray(seeds.by_pillow(seeds.COLOUR, "JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 13_000, 13_000)

    assert_refused(
        bytes(data),
        r"damaged \(.+ bytes cannot unfold to 13000 x 13000 pixels\)",
        r"damaged \(.+ bytes are no 13000 x 13000 pixels\)",
    )


def test_pages_of_a_tiff_that_lead_back_after_hundreds_are_damaged(tmp_path):
    places = [8, *range(4_000, 4_000 + 300 * 18, 18)]
    data = bytearray(seeds.by_tifffile(seeds.GREY).ljust(places[-1] + 18, b"\0"))
    first = struct.unpack_from("<I", data, 4)[0]
    places[0] = first
    tag = struct.pack("<HHII", 256, 4, 1, 1)
    for place in places[1:]:
        data[place : place + 14] = struct.pack("<H", 1) + tag
    for place, following in [*pairwise(places), (places[-1], places[150])]:
        n = struct.unpack_from("<H", data, place)[0]
        struct.pack_into("<I", data, place + 2 + 12 * n, following)

    with pytest.raises(FileError, match=r"damaged \(its pages lead in a circle\)"):
        read(tmp_path / "a.tif", bytes(data))


def test_values_that_32_bit_floats_cannot_hold_are_refused(tmp_path):
    huge = np.full((3, 4, 5), 1e300)
    volumes = [seeds.by_simpleitk(ending, huge).files[f"a{ending}"] for ending in (".mha", ".nrrd")]
    nifti = seeds.nibabel.Nifti1Image(huge, np.eye(4)).to_bytes()
    slices = seeds.dicom(seeds.DEEP, RescaleSlope="1e300", RescaleIntercept="0.5")

    for name, data in {"a.mha": volumes[0], "a.nrrd": volumes[1], "a.nii": nifti, "a.dcm": slices}.items():
        with pytest.raises(FileError, match=BEYOND):
            read(tmp_path / name, data)


def test_an_affine_of_bits_that_are_no_number_is_refused_without_a_warning(tmp_path):
    data = bytearray(seeds.nifti_images()[0])
    struct.pack_into("<I", data, 300, 0x7FA00000)

    for name, content in {"a.nii": bytes(data), "a.nii.gz": gzip.compress(data)}.items():
        with pytest.raises(FileError, match="its header gives voxels no place in space"):
            read(tmp_path / name, content)


ENDLESS = struct.pack("<HH2sHI", 0x28, 0x10, b"OB", 0, 0xFFFFFFF0)
"""The beginning of an element of four gigabytes."""


@pytest.mark.parametrize("rest", [ENDLESS, b"\0", b"\r\n", bytes(500), b"hello world, hello world"])
@pytest.mark.parametrize("which", [0, 1, 2, 4, 6, 11, 12])
def test_bytes_behind_the_pixels_of_a_dicom_file_change_nothing(tmp_path, which, rest):
    data = seeds.dicom_seeds()[which].files["a.dcm"]
    sound = read(tmp_path / "sound.dcm", data)

    stack = read(tmp_path / "a.dcm", data + rest)

    np.testing.assert_array_equal(stack.pixels, sound.pixels)


def test_bytes_behind_the_pixels_of_a_packed_dicom_file_are_refused(tmp_path):
    data = seeds.dicom_seeds()[3].files["a.dcm"]
    start = 144 + struct.unpack_from("<I", data, 140)[0]  # behind the elements that are never packed
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = packer.compress(zlib.decompress(data[start:], -zlib.MAX_WBITS) + ENDLESS) + packer.flush()

    with pytest.raises(FileError, match=HEADER):
        read(tmp_path / "a.dcm", data[:start] + packed)


def test_no_room_to_copy_a_dicom_file_without_such_bytes_is_told(tmp_path, monkeypatch):
    data = seeds.dicom(seeds.GREY) + ENDLESS
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))

    with pytest.raises(
        FileError,
        match=r"a\.dcm ends in bytes that are no DICOM and cannot be copied without them \(.+\): make room for",
    ):
        read(tmp_path / "a.dcm", data)


@pytest.mark.parametrize("form", [b"UY", b"XX", b"ui", b"\0\0"])
def test_a_dicom_element_of_an_unknown_representation_is_damaged(tmp_path, form):
    data = seeds.dicom(seeds.GREY)

    with pytest.raises(FileError, match=HEADER):
        read(tmp_path / "a.dcm", data.replace(b"\x02\0\x10\0UI", b"\x02\0\x10\0" + form))


def test_a_mask_of_bits_that_are_no_number_is_refused_without_a_warning(tmp_path):
    data = bytearray(seeds.nifti_images()[3])
    struct.pack_into("<I", data, len(data) - 4, 0x7FA00000)
    path = tmp_path / "a.nii"
    path.write_bytes(data)

    with pytest.raises(FileError, match="mask holds values that are not whole numbers"):
        read_mask_stack(path, DEFAULT_SLICING)
