import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from iaunet.errors import FileError
from iaunet.files import (
    MAX_PIXELS,
    decode_image,
    decode_mask,
    is_image_file,
    read_bytes,
    read_image,
    read_made_from,
    read_mask,
    to_channels,
    write_png,
)

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
FLOATS = RNG.normal(size=(5, 7)).astype(np.float32)
SMOOTH = np.mgrid[:40, :60].sum(0).astype(np.uint8)
ORIENTATION = 0x0112


def in_words(value):
    """A test's id without the bytes of its file."""
    return value if isinstance(value, str) else "data"


def encoded(pixels, file_format="PNG", mode=None, **options):
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, file_format, **options)
    return buffer.getvalue()


def tiff(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def tiff_with_alpha(grey, kind):
    pixels = np.dstack([grey, np.full_like(grey, 255)])
    return tiff(pixels, photometric="minisblack", planarconfig="contig", extrasamples=[kind])


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (encoded(GREY), GREY[None]),
        (encoded(COLOUR), COLOUR.transpose(2, 0, 1)),
        (encoded(COLOUR, "BMP"), COLOUR.transpose(2, 0, 1)),
        (encoded(COLOUR, "TIFF"), COLOUR.transpose(2, 0, 1)),
        (encoded(COLOUR, "TIFF", compression="tiff_lzw"), COLOUR.transpose(2, 0, 1)),
        (encoded(DEEP), DEEP[None]),
        (encoded(DEEP, "TIFF"), DEEP[None]),
        (tiff(DEEP, byteorder=">"), DEEP[None]),
        (tiff(DEEP.astype(np.int16)), DEEP.astype(np.int16)[None].astype(np.int32)),
        (tiff(FLOATS), FLOATS[None]),
        (tiff(COLOUR, photometric="rgb"), COLOUR.transpose(2, 0, 1)),
        (encoded(GREY > 127), np.where(GREY > 127, np.uint8(255), np.uint8(0))[None]),
        (encoded(GREY, mode="LA"), GREY[None]),
        (tiff_with_alpha(GREY, "assocalpha"), GREY[None]),
        (tiff_with_alpha(GREY, "unassalpha"), GREY[None]),
        (encoded(COLOUR, mode="RGBA"), COLOUR.transpose(2, 0, 1)),
    ],
    ids=in_words,
)
def test_an_image_keeps_its_values_and_its_depth(data, pixels):
    image = decode_image(data)

    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.pixels.dtype == pixels.dtype
    assert image.size == (5, 7)
    assert not image.has_transparency


def test_a_palette_image_has_the_colours_of_its_palette():
    indexed = Image.fromarray(GREY % 3).convert("P")
    indexed.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])

    pixels = decode_image(encoded(indexed)).pixels

    np.testing.assert_array_equal(pixels, np.array([[10, 40, 70], [20, 50, 80], [30, 60, 90]], np.uint8)[:, GREY % 3])


def test_a_photograph_as_jpeg_is_near_what_was_saved():
    np.testing.assert_allclose(decode_image(encoded(SMOOTH, "JPEG", quality=95)).pixels[0], SMOOTH, atol=4)


def test_a_jpeg_with_a_preview_is_its_first_picture():
    photo = Image.fromarray(SMOOTH)
    with_preview = encoded(photo, "MPO", save_all=True, append_images=[photo.resize((8, 8))])

    np.testing.assert_array_equal(decode_image(with_preview).pixels, decode_image(encoded(photo, "JPEG")).pixels)


def test_an_opaque_alpha_channel_is_no_transparency_and_any_other_is():
    half = np.dstack([COLOUR, np.full((5, 7), 128, np.uint8)])

    assert not decode_image(encoded(COLOUR, mode="RGBA")).has_transparency
    assert decode_image(encoded(half)).has_transparency
    np.testing.assert_array_equal(decode_image(encoded(half)).pixels, COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("pixels", [GREY, COLOUR, DEEP])
def test_an_image_has_the_orientation_in_which_it_is_displayed(pixels):
    displayed = {3: np.rot90(pixels, 2), 6: np.rot90(pixels, -1), 8: np.rot90(pixels, 1), 2: pixels[:, ::-1]}

    for orientation, expected in displayed.items():
        image = decode_image(encoded(pixels, exif=turned(orientation)))
        expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
        np.testing.assert_array_equal(image.pixels, expected)


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (encoded(GREY), GREY),
        (encoded(GREY > 127), np.where(GREY > 127, 255, 0)),
        (encoded(DEEP), DEEP),
        (encoded(np.dstack([GREY] * 3)), GREY),
        (encoded(np.dstack([GREY] * 4)), GREY),
        (encoded(Image.fromarray(GREY % 3).convert("P")), GREY % 3),
        (tiff((GREY % 4).astype(np.float32)), GREY % 4),
        (tiff(-(GREY % 4).astype(np.int16)), -(GREY % 4).astype(int)),
        (tiff((GREY % 4).astype(np.int16)), GREY % 4),
        (encoded(GREY, exif=turned(6)), np.rot90(GREY, -1)),
    ],
    ids=in_words,
)
def test_a_mask_keeps_its_values(data, values):
    mask = decode_mask(data)

    np.testing.assert_array_equal(mask, values)
    assert np.issubdtype(mask.dtype, np.integer)


def test_a_palette_mask_has_its_indices_whatever_the_colours():
    indexed = Image.fromarray(GREY % 3).convert("P")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])

    np.testing.assert_array_equal(decode_mask(encoded(indexed)), GREY % 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(COLOUR), "mask holds colours: save it with one channel"),
        (tiff(FLOATS), "mask holds values that are not whole numbers: save it with whole values"),
        (tiff(np.full((5, 7), np.nan, np.float32)), "not whole numbers"),
        (tiff(np.full((5, 7), 1e20, np.float32)), "not whole numbers"),
    ],
    ids=in_words,
)
def test_a_mask_that_is_no_map_of_numbers_is_refused(data, message):
    with pytest.raises(FileError, match=message):
        decode_mask(data)


def png(size, depth, colour_type, content):
    """A PNG built by hand: what its header tells, and the bytes of its rows."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size[::-1], depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def bomb(side):
    """A PNG whose header tells of a square of this side, and which holds next to nothing."""
    return png((side, side), 8, 0, b"")


def deep_png(colour_type, channels):
    """A PNG of 5 x 7 px, all 1000 in 16 bits a channel."""
    row = b"\0" + struct.pack(">H", 1000) * 7 * channels
    return png((5, 7), 16, colour_type, row * 5)


def test_a_grey_png_of_16_bits_built_by_hand_keeps_its_values():
    np.testing.assert_array_equal(decode_image(deep_png(0, 1)).pixels, np.full((1, 5, 7), 1000, np.uint16))


@pytest.mark.parametrize(
    "data",
    [
        deep_png(2, 3),
        deep_png(4, 2),
        deep_png(6, 4),
        tiff(np.dstack([DEEP] * 3), photometric="rgb"),
        tiff(np.dstack([DEEP] * 3), photometric="rgb", byteorder=">"),
        tiff(np.dstack([DEEP] * 3), photometric="rgb", compression="zlib"),
        tiff(np.dstack([DEEP] * 4), photometric="rgb", extrasamples=["unassalpha"]),
    ],
    ids=["PNG RGB", "PNG LA", "PNG RGBA", "TIFF", "TIFF big-endian", "TIFF zlib", "TIFF RGBA"],
)
def test_colour_with_16_bits_a_channel_is_refused_and_not_cut_to_8(data):
    for decode in (decode_image, decode_mask):
        with pytest.raises(FileError, match="16 bits a channel, which is not read yet: save it with 8 bits a channel"):
            decode(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(COLOUR)[:-40], r"is truncated or damaged \(.+\): copy it again from its source or remove it"),
        (encoded(SMOOTH, "JPEG")[:-200], "is truncated or damaged"),
        (encoded(COLOUR, "BMP")[:-30], "is truncated or damaged"),
        (b"not an image", "is not a readable PNG, JPEG, BMP or TIFF image, whatever its name says: remove it or save"),
        (b"", "is not a readable PNG"),
        (encoded(COLOUR, "GIF"), "is not a readable PNG"),
        (encoded(Image.fromarray(GREY), "PDF"), "is not a readable PNG"),
        (bomb(30_000), "has 30000 x 30000 pixels, more than the 536,870,912 allowed: cut or shrink it"),
        (bomb(13_000), "is truncated or damaged"),
        (encoded(Image.new("1", (13_378, 13_378)), "TIFF", compression="group4"), "more than the 178,956,970 allowed"),
        (tiff(np.stack([GREY, GREY])), "holds 2 pages: save each page as an image of its own"),
        (
            encoded(COLOUR, save_all=True, append_images=[Image.fromarray(COLOUR[::-1])]),
            "holds 2 pages: save each page as an image of its own",
        ),
        (tiff(np.full((5, 7), np.inf, np.float32)), "holds nan or infinite values: replace them"),
    ],
    ids=in_words,
)
def test_what_is_no_whole_image_is_refused_with_a_mend(data, message):
    with pytest.raises(FileError, match=message):
        decode_image(data)


def test_the_cap_holds_where_somebody_switched_off_that_of_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)

    with pytest.raises(FileError, match="has 23171 x 23171 pixels, more than the 536,870,912 allowed"):
        decode_image(bomb(23_171))


def test_pillows_own_limit_is_as_it_was_afterwards_whatever_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    write_png(tmp_path / "a.png", GREY, made_from="a model")

    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), GREY)
    assert read_made_from(tmp_path / "a.png") == "a model"
    for data in (b"no image", bomb(30_000)):
        with pytest.raises(FileError):
            decode_image(data)
    assert Image.MAX_IMAGE_PIXELS == 20


def test_a_mask_of_twenty_thousand_by_ten_thousand_is_read_again(tmp_path):
    labels = np.zeros((20_000, 10_000), np.uint8)
    labels[12_345, 6_789] = 255

    write_png(tmp_path / "a.png", labels, made_from="a model")

    assert read_made_from(tmp_path / "a.png") == "a model"
    np.testing.assert_array_equal(np.argwhere(read_mask(tmp_path / "a.png")), [[12_345, 6_789]])


def test_the_pixel_cap_lets_an_image_of_two_thousand_by_two_thousand_pass():
    blank = Image.new("1", (2000, 2000))

    assert decode_image(encoded(blank)).size == (2000, 2000)
    assert MAX_PIXELS > 13_000**2


SOUND = [
    encoded(SMOOTH),
    encoded(COLOUR, "BMP"),
    encoded(SMOOTH, "JPEG"),
    encoded(COLOUR, "TIFF", compression="tiff_lzw"),
    encoded(Image.fromarray(GREY % 3).convert("P")),
    tiff(DEEP),
]


@settings(max_examples=300)
@given(st.sampled_from(SOUND), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8), st.floats(0, 1))
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own on damaged metadata
def test_a_damaged_file_is_an_image_or_a_named_fault(data, changes, kept):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * (len(damaged) - 1))] = value
    damaged = bytes(damaged[: max(1, int(kept * len(damaged)))])

    for decode in (decode_image, decode_mask):
        try:
            decode(damaged)
        except FileError as fault:
            assert "\n" not in str(fault)


def test_a_missing_an_empty_and_an_unreadable_file_are_told_apart(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()

    with pytest.raises(FileError, match="file is missing: restore it"):
        read_bytes(tmp_path / "nothing.png")
    with pytest.raises(FileError, match="file is empty: copy it again"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(FileError, match=r"cannot be read \(.+\): mend its permissions"):
        read_mask(tmp_path / "folder.png")


@pytest.mark.parametrize("pixels", [GREY, DEEP])
def test_a_png_is_read_back_as_it_was_written(tmp_path, pixels):
    path = tmp_path / "Größe 1" / "ä b.png"
    write_png(path, pixels)

    np.testing.assert_array_equal(read_mask(path), pixels)
    assert [path.name for path in path.parent.iterdir()] == ["ä b.png"]


def test_a_colour_png_is_read_back_as_it_was_written(tmp_path):
    write_png(tmp_path / "a.png", COLOUR)

    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, COLOUR.transpose(2, 0, 1))


def test_a_png_tells_what_it_was_made_from(tmp_path):
    write_png(tmp_path / "a.png", GREY, made_from="model ä")
    write_png(tmp_path / "b.png", GREY)
    (tmp_path / "c.png").write_text("text")

    assert [read_made_from(tmp_path / name) for name in ("a.png", "b.png", "c.png", "d.png")] == ["model ä", "", "", ""]
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), GREY)


def test_grey_becomes_colour_and_back_without_loss():
    colour = to_channels(GREY[None], 3)

    assert colour.shape == (3, 5, 7)
    np.testing.assert_array_equal(to_channels(colour, 1), GREY[None])
    assert to_channels(colour, 1).dtype == np.uint8


def test_colour_becomes_grey_by_the_eyes_weights():
    pure = np.array([[[255]], [[0]], [[0]]], np.uint8), np.array([[[0]], [[255]], [[0]]], np.uint8)

    assert [int(to_channels(pixels, 1)[0, 0, 0]) for pixels in pure] == [76, 150]
    np.testing.assert_allclose(to_channels(np.ones((3, 1, 1), np.float32), 1), 1, rtol=1e-6)


def test_channels_without_a_way_are_refused():
    with pytest.raises(FileError, match="has 3 channels, the data set has 2: give images with 2 channels"):
        to_channels(np.zeros((3, 4, 4), np.uint8), 2)


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a.b.Jpeg", "ä.tIf", "x.bmp"])
def test_endings_count_whatever_their_case(tmp_path, name):
    assert is_image_file(tmp_path / name)
    assert not is_image_file(tmp_path / (name + ".txt"))


READ_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from iaunet.errors import FileError
from iaunet.files import read_image

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)
try:
    read_image(Path(sys.argv[1]))
except FileError as fault:
    print(fault)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from /proc")
def test_an_image_too_large_for_the_memory_is_not_called_damaged(tmp_path):
    Image.new("RGB", (9000, 9000)).save(tmp_path / "large.png")

    said = subprocess.run(
        [sys.executable, "-c", READ_WITH_LITTLE_MEMORY, str(tmp_path / "large.png")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert said == "needs more memory than there is: use fewer workers, close other programs, or shrink it\n"
