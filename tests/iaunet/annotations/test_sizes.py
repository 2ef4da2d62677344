import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from iaunet.annotations.sizes import image_size
from iaunet.errors import FileError
from iaunet.files import decode_image

ORIENTATION = 0x0112


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".tif"])
def test_the_size_is_height_and_width(add_image, ending):
    assert image_size(add_image(f"a{ending}", (7, 12))) == (7, 12)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_displayed_image(add_image, ending, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation

    path = add_image(f"a{ending}", (8, 16), exif=exif)

    assert image_size(path) == decode_image(path.read_bytes()).size == ((16, 8) if orientation >= 5 else (8, 16))


def header_only(width, height):
    """A PNG file without pixels behind its header."""
    chunks = b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0), b"IDAT"
    coded = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a readable PNG, JPEG, BMP or TIFF image: copy it again"),
        (b"\x89PNG\r\n\x1a\n", "is not a readable PNG"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00", "is not a readable PNG"),
        (header_only(20_000, 10_000), "has more pixels than the 178,956,970 allowed: cut or shrink it"),
        (header_only(2**31 - 1, 2**31 - 1), "has more pixels than the 178,956,970 allowed"),
        (b"BM" + bytes(16) + b"\0\0\0\0", "is not a readable PNG"),
        (None, "image is missing: restore it"),
    ],
    ids=["empty", "cut", "gif", "large", "absurd", "bmp", "missing"],
)
def test_what_is_no_image_is_named(tmp_path, data, message):
    path = tmp_path / "a.png"
    if data is not None:
        path.write_bytes(data)

    with pytest.raises(FileError, match=message):
        image_size(path)


def test_a_bomb_just_above_the_limit_is_refused_as_well(tmp_path):
    (tmp_path / "a.png").write_bytes(header_only(13_500, 13_500))

    with pytest.raises(FileError, match="has more pixels than the 178,956,970 allowed"):
        image_size(tmp_path / "a.png")


def test_a_tiff_may_be_larger_than_a_mask_in_a_png_file(tmp_path):
    tifffile.memmap(tmp_path / "a.tif", shape=(13_500, 13_500), dtype=np.uint8)._mmap.close()  # takes no room on disk

    with pytest.raises(FileError, match="has more pixels than the 178,956,970 allowed: cut or shrink it"):
        image_size(tmp_path / "a.tif")


def test_an_image_of_several_pages_has_no_one_mask(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 8, 9), np.uint8), imagej=True, metadata={"axes": "ZYX"})

    with pytest.raises(FileError, match="holds 3 pages, annotations are for one: save each page"):
        image_size(tmp_path / "a.tif")


def test_random_damage_gives_a_size_or_a_fault(add_image):
    rng = np.random.default_rng(0)
    for ending in (".png", ".jpg", ".bmp", ".tif"):
        path = add_image(f"a{ending}", exif=b"") if ending in (".png", ".jpg") else add_image(f"a{ending}")
        data = path.read_bytes()
        for _ in range(100):
            damaged = bytearray(data)
            for position in rng.integers(0, len(data), 3):
                damaged[position] = rng.integers(256)
            path.write_bytes(damaged[: rng.integers(1, len(data) + 1)])
            try:
                height, width = image_size(path)
            except FileError:
                continue
            assert height > 0
            assert width > 0
