import io
import logging
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from iaunet.errors import FileError
from iaunet.tiffs import MAX_PIXELS, read_tiff, tiff_header

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
DEEP_COLOUR = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
FLOATS = RNG.normal(size=(20, 30)).astype(np.float32)
STACK = RNG.integers(0, 256, (5, 20, 30), dtype=np.uint8)
ALPHA = np.dstack([COLOUR, GREY])
INDEXED = Image.fromarray(GREY % 3).convert("P")
INDEXED.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
INKS = Image.fromarray(COLOUR).convert("CMYK")

BY_TIFFFILE = {
    "grey": (GREY, {}),
    "grey, big-endian": (GREY, {"byteorder": ">"}),
    "grey, in tiles": (np.tile(GREY, (4, 4)), {"tile": (32, 32)}),
    "grey, in strips": (GREY, {"rowsperstrip": 3}),
    "grey, deflate": (GREY, {"compression": "zlib", "rowsperstrip": 7}),
    "grey, deflate in tiles, differences": (
        np.tile(DEEP, (4, 4)),
        {"compression": "zlib", "predictor": True, "tile": (32, 32)},
    ),
    "white is zero": (GREY, {"photometric": "miniswhite"}),
    "white is zero, 16 bits": (DEEP, {"photometric": "miniswhite"}),
    "16 bits": (DEEP, {}),
    "16 bits, big-endian": (DEEP, {"byteorder": ">"}),
    "signed 16 bits": (DEEP.astype(np.int16), {}),
    "signed 32 bits": (DEEP.astype(np.int32) - 9, {}),
    "float": (FLOATS, {}),
    "float, big-endian": (FLOATS, {"byteorder": ">"}),
    "colour": (COLOUR, {"photometric": "rgb"}),
    "colour, planes apart": (COLOUR.transpose(2, 0, 1).copy(), {"photometric": "rgb", "planarconfig": "separate"}),
    "colour, deflate": (COLOUR, {"photometric": "rgb", "compression": "zlib", "predictor": True}),
    "colour and alpha": (ALPHA, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "colour multiplied by alpha": (
        np.minimum(ALPHA, GREY[..., None]),
        {"photometric": "rgb", "extrasamples": ["assocalpha"]},
    ),
    "colour and something": (ALPHA, {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "grey and alpha": (
        ALPHA[..., 2:],
        {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]},
    ),
    "grey multiplied by alpha": (
        np.minimum(ALPHA[..., 2:], GREY[..., None]),
        {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["assocalpha"]},
    ),
    "grey and something": (
        ALPHA[..., 2:],
        {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unspecified"]},
    ),
    "inks": (ALPHA, {"photometric": "separated"}),
}
BY_PILLOW = {
    "1 bit": (Image.fromarray(GREY > 127), {}),
    "1 bit, fax": (Image.fromarray(GREY > 127), {"compression": "group4"}),
    "palette": (INDEXED, {}),
    "palette, lzw": (INDEXED, {"compression": "tiff_lzw"}),
    "grey, packbits": (Image.fromarray(GREY // 200), {"compression": "packbits"}),
    "grey, lzw": (Image.fromarray(GREY), {"compression": "tiff_lzw"}),
    "16 bits, lzw": (Image.fromarray(DEEP), {"compression": "tiff_lzw"}),
    "signed 32 bits, lzw": (Image.fromarray(DEEP.astype(np.int32) - 9), {"compression": "tiff_lzw"}),
    "float, lzw": (Image.fromarray(FLOATS), {"compression": "tiff_lzw"}),
    "colour, lzw": (Image.fromarray(COLOUR), {"compression": "tiff_lzw"}),
    "colour, jpeg": (Image.fromarray(COLOUR), {"compression": "jpeg"}),
    "colour and alpha, lzw": (Image.fromarray(ALPHA), {"compression": "tiff_lzw"}),
    "grey and alpha": (Image.fromarray(ALPHA).convert("LA"), {}),
    "inks, lzw": (Image.fromarray(COLOUR).convert("CMYK"), {"compression": "tiff_lzw"}),
    "light and two colours": (Image.fromarray(COLOUR).convert("YCbCr"), {}),
}


def write(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "image ü.tif"


def assert_header_tells(path, axes=None, **options):
    image, header = read_tiff(path, axes, **options), tiff_header(path, axes, **options)

    assert header.shape == image.pixels.shape
    assert header.dtype == image.pixels.dtype
    assert header.spacing_mm == image.spacing_mm
    assert image.pixels.dtype.isnative


def by_pillow(path):
    """The pixels [channels, height, width] as Pillow displays them, and whether any is transparent."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        shown = ImageOps.exif_transpose(image)
        shown = shown.convert("LA") if shown.mode == "La" else shown
        transparent = shown.has_transparency_data and shown.convert("RGBA").getchannel("A").getextrema()[0] != 255
        if shown.mode in ("1", "L", "LA"):
            return np.asarray(shown.convert("L"))[None], transparent
        if shown.mode.startswith(("I", "F")):
            return np.asarray(shown)[None], transparent
        return np.asarray(shown.convert("RGB")).transpose(2, 0, 1), transparent


def assert_reads_as_pillow(path):
    expected, transparent = by_pillow(path)

    image = read_tiff(path)

    np.testing.assert_array_equal(image.pixels[:, 0], expected)
    assert image.has_transparency == transparent
    assert_header_tells(path)


@pytest.mark.parametrize("name", BY_TIFFFILE)
def test_what_tifffile_wrote_is_read_as_pillow_reads_it(file, name):
    pixels, options = BY_TIFFFILE[name]
    write(file, pixels, **options)

    assert_reads_as_pillow(file)


@pytest.mark.parametrize("name", BY_PILLOW)
def test_what_pillow_wrote_is_read_as_pillow_reads_it(file, name):
    image, options = BY_PILLOW[name]
    image.save(file, **options)

    assert_reads_as_pillow(file)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_has_the_orientation_in_which_it_is_displayed(file, orientation, compression):
    for pixels in (GREY, COLOUR, DEEP, GREY > 127, INDEXED, INKS):
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(file, compression=compression, tiffinfo={274: orientation})

        assert_reads_as_pillow(file)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("kind", ["L", "1"])
def test_every_page_of_a_stack_is_turned(file, compression, kind):
    first, *others = [Image.fromarray(page).convert(kind) for page in STACK]
    first.save(file, save_all=True, append_images=others, compression=compression, tiffinfo={274: 6})

    expected = np.stack([np.rot90(np.asarray(page.convert("L")), -1) for page in (first, *others)])
    np.testing.assert_array_equal(read_tiff(file, "ZYX").pixels[0], expected)


def test_the_spacing_turns_with_the_image(file):
    extratags = [(274, "H", 1, 6, True)]
    write(file, GREY, resolution=(1000, 500), resolutionunit="CENTIMETER", extratags=extratags, metadata=None)

    image = read_tiff(file)

    assert image.pixels.shape == (1, 1, 30, 20)
    assert image.spacing_mm == pytest.approx((1, 0.01, 0.02))
    assert_header_tells(file)


@pytest.mark.parametrize(
    ("pixels", "dtype"),
    [
        (DEEP_COLOUR, np.uint16),
        (DEEP.astype(np.int16), np.int16),
        (np.int8(GREY.astype(np.int16) - 128), np.int16),
        (DEEP.astype(np.uint32) * 9, np.int32),
        (DEEP.astype(np.int64) - 9, np.int32),
        (FLOATS, np.float32),
        (FLOATS.astype(np.float16), np.float32),
        (FLOATS.astype(np.float64), np.float32),
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"byteorder": ">"}, {"byteorder": ">", "compression": "zlib"}]
)
def test_values_beyond_8_bits_are_kept(file, pixels, dtype, options):
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    write(file, pixels, photometric=photometric, **options)

    image = read_tiff(file).pixels

    assert image.dtype == dtype
    expected = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
    np.testing.assert_array_equal(image[:, 0], expected.astype(dtype))
    assert_header_tells(file)


def test_an_alpha_channel_of_16_bits_is_left_out_and_told(file):
    half = np.dstack([DEEP_COLOUR, np.full_like(DEEP, 30000)])
    write(file, half, photometric="rgb", extrasamples=["unassalpha"])

    image = read_tiff(file)

    np.testing.assert_array_equal(image.pixels[:, 0], DEEP_COLOUR.transpose(2, 0, 1))
    assert image.has_transparency


def test_many_samples_without_colour_are_channels(file):
    pixels = RNG.integers(0, 65536, (20, 30, 5), dtype=np.uint16)
    write(file, pixels, photometric="minisblack", planarconfig="contig")

    np.testing.assert_array_equal(read_tiff(file).pixels[:, 0], pixels.transpose(2, 0, 1))
    assert_header_tells(file)


def test_two_samples_are_two_channels_when_the_user_says_so(file):
    write(file, ALPHA[..., 2:], photometric="minisblack", planarconfig="contig")

    assert read_tiff(file).pixels.shape == (1, 1, 20, 30)
    np.testing.assert_array_equal(read_tiff(file, "YXC").pixels[:, 0], ALPHA[..., 2:].transpose(2, 0, 1))
    assert_header_tells(file, "YXC")


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_palette_mask_has_its_indices_whatever_the_colours(file, compression):
    INDEXED.save(file, compression=compression)

    mask = read_tiff(file, as_mask=True).pixels

    np.testing.assert_array_equal(mask[0, 0], GREY % 3)
    assert mask.dtype == np.uint8
    assert_header_tells(file, as_mask=True)


@pytest.mark.parametrize(
    ("axes", "shape", "order"),
    [
        ("ZYX", (5, 20, 30), (1, 5)),
        ("TYX", (5, 20, 30), (1, 5)),
        ("CYX", (5, 20, 30), (5, 1)),
        ("ZCYX", (3, 2, 20, 30), (2, 3)),
        ("CZYX", (2, 3, 20, 30), (2, 3)),
        ("ZYXS", (4, 20, 30, 3), (3, 4)),
    ],
)
@pytest.mark.parametrize("kind", ["ome", "imagej", "user"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_are_slices_or_channels_as_ome_imagej_or_the_user_says(file, axes, shape, order, kind, dtype):
    pixels = RNG.integers(0, 256, shape).astype(dtype)
    if kind == "imagej" and axes == "CZYX":  # which ImageJ has the other way round
        axes, pixels = "ZCYX", pixels.swapaxes(0, 1)
    if kind == "imagej" and axes == "ZYXS" and dtype == np.uint16:  # which ImageJ does not have
        pixels = pixels.astype(np.uint8)
    said = {} if kind == "user" else {kind: True, "metadata": {"axes": axes}}
    write(file, pixels, photometric="rgb" if "S" in axes else "minisblack", **said)

    image = read_tiff(file, axes if kind == "user" else None).pixels

    assert image.shape == (*order, 20, 30)
    wanted = [a for a in "CSZTYX" if a in axes]
    np.testing.assert_array_equal(image, pixels.transpose([axes.index(a) for a in wanted]).reshape(*order, 20, 30))
    assert_header_tells(file, axes if kind == "user" else None)


def test_pages_of_colour_need_no_word_about_their_samples(file):
    write(file, np.stack([COLOUR, COLOUR // 2]), photometric="rgb", metadata=None)

    image = read_tiff(file, "ZYX").pixels

    np.testing.assert_array_equal(image[:, 1], (COLOUR // 2).transpose(2, 0, 1))
    assert_header_tells(file, "ZYX")


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_stack_of_packed_pages_is_read_page_by_page(file, compression):
    first, *others = map(Image.fromarray, STACK)
    first.save(file, save_all=True, append_images=others, compression=compression)

    np.testing.assert_array_equal(read_tiff(file, "ZYX").pixels, STACK[None])
    assert_header_tells(file, "ZYX")


def test_pages_of_unsaid_meaning_are_a_question(file):
    write(file, STACK, photometric="minisblack", metadata=None)

    for ask in (read_tiff, tiff_header):
        with pytest.raises(FileError, match=r"holds 5 pages and does not say what they are: say it with --axes ZYX"):
            ask(file)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("ZCYX", "has 3 axes of length 5 x 20 x 30, --axes ZCYX names 4: name each once"),
        ("ZY", "cannot be read with --axes ZY: name each axis"),
        ("ZYXX", "cannot be read with --axes ZYXX: name each axis"),
        ("IYX", "cannot be read with --axes IYX: name each axis"),
    ],
)
def test_axes_that_do_not_fit_are_refused(file, axes, message):
    write(file, STACK, photometric="minisblack", metadata=None)

    with pytest.raises(FileError, match=message):
        read_tiff(file, axes)


def test_axes_for_stacks_do_not_hurt_plain_images_beside_them(file):
    write(file, COLOUR, photometric="rgb")

    np.testing.assert_array_equal(read_tiff(file, "ZYX").pixels[:, 0], COLOUR.transpose(2, 0, 1))


def test_the_user_is_right_where_the_file_is_wrong(file):
    write(file, STACK, imagej=True, metadata={"axes": "TYX"}, photometric="minisblack")

    assert read_tiff(file).pixels.shape == (1, 5, 20, 30)
    np.testing.assert_array_equal(read_tiff(file, "CYX").pixels[:, 0], STACK)


def test_pages_that_are_rows_are_put_upright(file):
    pixels = RNG.integers(0, 256, (20, 30, 7), dtype=np.uint8)
    write(file, pixels, photometric="minisblack")  # 20 pages of 30 x 7

    np.testing.assert_array_equal(read_tiff(file, "YXC").pixels[:, 0], pixels.transpose(2, 0, 1))
    assert_header_tells(file, "YXC")


def test_a_film_of_volumes_is_refused(file):
    write(file, np.zeros((2, 3, 8, 9), np.uint8), ome=True, metadata={"axes": "TZYX"}, photometric="minisblack")

    with pytest.raises(FileError, match="holds 2 times of 3 slices: save each time as an image of its own"):
        read_tiff(file)


def test_smaller_levels_and_thumbnails_are_left_out(file):
    large = np.tile(GREY, (4, 4))
    with tifffile.TiffWriter(file) as writer:
        writer.write(large, subifds=2, tile=(32, 32), metadata=None)
        writer.write(large[::2, ::2].copy(), subfiletype=1, tile=(32, 32), metadata=None)
        writer.write(large[::4, ::4].copy(), subfiletype=1, tile=(32, 32), metadata=None)
        writer.write(COLOUR, photometric="rgb", metadata=None)

    np.testing.assert_array_equal(read_tiff(file).pixels[0, 0], large)


def test_a_thumbnail_in_front_is_left_out(file):
    with tifffile.TiffWriter(file) as writer:
        writer.write(GREY[::2, ::2].copy(), subfiletype=1, metadata=None)
        writer.write(GREY, metadata=None)

    np.testing.assert_array_equal(read_tiff(file).pixels[0, 0], GREY)


def test_two_images_of_one_size_are_a_question(file):
    with tifffile.TiffWriter(file) as writer:
        writer.write(COLOUR, photometric="rgb", metadata=None)
        writer.write(GREY, metadata=None)

    with pytest.raises(FileError, match="holds 2 images of different kinds: save each as an image of its own"):
        read_tiff(file)


def test_the_sizes_of_ome_are_read_in_their_units(file):
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 250, "PhysicalSizeZ": 2}
    metadata |= {"PhysicalSizeYUnit": "nm", "PhysicalSizeZUnit": "µm"}
    write(file, STACK, ome=True, photometric="minisblack", metadata=metadata)

    assert read_tiff(file).spacing_mm == pytest.approx((0.002, 0.00025, 0.0005))


@pytest.mark.parametrize("changes", [{"PhysicalSizeXUnit": "reference frame"}, {"PhysicalSizeX": "-1"}])
def test_sizes_of_ome_that_are_no_lengths_are_unknown(file, changes):
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5} | changes
    write(file, STACK, ome=True, photometric="minisblack", metadata=metadata)

    assert read_tiff(file).spacing_mm is None


@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m"])
def test_the_sizes_of_imagej_are_read_in_their_unit(file, unit):
    metadata = {"axes": "ZYX", "spacing": 3.0, "unit": unit}
    write(file, STACK, imagej=True, resolution=(4, 2), photometric="minisblack", metadata=metadata)

    assert read_tiff(file).spacing_mm == pytest.approx((0.003, 0.0005, 0.00025))


@pytest.mark.parametrize("metadata", [{"unit": "pixel"}, {}])
def test_pixels_are_no_unit_of_length(file, metadata):
    write(file, GREY, imagej=True, resolution=(4, 2), metadata=metadata)

    assert read_tiff(file).spacing_mm is None


@pytest.mark.parametrize(
    ("resolution", "unit", "spacing"),
    [
        ((200, 100), "CENTIMETER", (1, 0.1, 0.05)),
        ((25400, 25400), "INCH", (1, 0.001, 0.001)),
        ((72, 72), "INCH", None),
        ((96, 96), "INCH", None),
        ((300, 300), "INCH", None),
        ((118.11, 118.11), "CENTIMETER", None),
        ((28.35, 28.35), "CENTIMETER", None),
        ((1000, 1000), "NONE", None),
        ((1, 1), "INCH", None),
        ((0.5, 0.5), "CENTIMETER", None),
        ((1e9, 1e9), "CENTIMETER", None),
        ((0, 0), "CENTIMETER", None),
    ],
)
def test_resolutions_count_where_they_were_measured(file, resolution, unit, spacing):
    write(file, GREY, resolution=resolution, resolutionunit=unit, metadata=None)

    found = read_tiff(file).spacing_mm

    assert found == (pytest.approx(spacing, rel=1e-4) if spacing else None)


def test_an_uncompressed_image_is_mapped_and_cannot_be_written(file):
    write(file, COLOUR, photometric="rgb")

    pixels = read_tiff(file).pixels

    assert isinstance(pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0, 0, 0] = 1


def test_a_map_of_400_million_pixels_takes_no_memory_and_no_time(file):
    side = 20_000
    write(file, GREY, metadata=None)
    header = bytearray(tifffile_header(side, side))
    with file.open("wb") as out:
        out.write(header)
        out.truncate(len(header) + side * side)
        out.seek(len(header) + side * side - 1)
        out.write(b"\x07")

    start = time.perf_counter()
    pixels = read_tiff(file).pixels

    assert pixels.shape == (1, 1, side, side)
    assert pixels[0, 0, -1, -1] == 7
    assert time.perf_counter() - start < 5


def tifffile_header(height, width, bits=8, compression=1, stored=None):
    """The header of a little-endian grey file whose one strip follows."""
    stored = height * width * bits // 8 if stored is None else stored
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, compression), (262, 3, 1)]
    start = 8 + 2 + 12 * (len(tags) + 4) + 4
    tags += [(273, 4, start), (277, 3, 1), (278, 4, height), (279, 4, min(stored, 2**32 - 1))]
    entries = b"".join(struct.pack("<HHII", code, kind, 1, value) for code, kind, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tifffile_header(2**31 - 1, 2**31 - 1) + bytes(100), f"more than the {MAX_PIXELS:,} allowed: cut or shrink it"),
        (tifffile_header(40_000, 40_000) + bytes(100), "truncated or damaged .*cannot hold.*: copy it again"),
        (tifffile_header(40_000, 40_000, 8, 8, 100) + bytes(100), "truncated or damaged .*cannot unfold"),
        (tifffile_header(40_000, 40_000, 8, 5, 100) + bytes(100), "truncated or damaged .*cannot unfold"),
        (tifffile_header(3_000, 3_000, 32, 34925, 100) + bytes(100), "truncated or damaged"),
        (
            tifffile_header(40_000, 40_000, 8, 5, 2_000_000) + bytes(2_000_000),
            "is packed as LZW with 8 bits.*imagecodecs",
        ),
        (tifffile_header(0, 40), "is truncated or damaged"),
        (b"", "file is empty: copy it again"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is not a readable TIFF image, whatever its name says: remove it"),
        (b"II*\0" + bytes(99), "is truncated or damaged"),
        (b"II*\0\xff\xff\xff\x7f", "is truncated or damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_absurd_files_are_named_faults_before_memory_is_taken(file, data, message):
    file.write_bytes(data)

    with pytest.raises(FileError, match=message):
        read_tiff(file)


def test_a_header_is_refused_as_its_file_is(file):
    file.write_bytes(tifffile_header(2**31 - 1, 2**31 - 1) + bytes(100))

    with pytest.raises(FileError, match="allowed: cut or shrink it"):
        tiff_header(file)


READ_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import tifffile
from iaunet.errors import FileError
from iaunet.tiffs import read_tiff

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)
try:
    read_tiff(Path(sys.argv[1]))
except FileError as fault:
    print(fault)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from /proc")
def test_an_image_too_large_for_the_memory_is_not_called_damaged(file):
    write(file, np.zeros((20_000, 10_000), np.uint8), compression="zlib")

    command = [sys.executable, "-c", READ_WITH_LITTLE_MEMORY, str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert said == "needs more memory than there is: use fewer workers, close other programs, or shrink it\n"


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileError, match="file is missing: restore it"):
        read_tiff(tmp_path / "no.tif")
    with pytest.raises(FileError, match=r"cannot be read \(.*\): mend its permissions"):
        read_tiff(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_values_that_are_not_finite_are_refused(file, value, options):
    pixels = FLOATS.astype(np.float64)
    pixels[3, 4] = value
    write(file, pixels, **options)

    with pytest.raises(FileError, match="holds nan or infinite values: replace them"):
        read_tiff(file)


def test_numbers_that_fit_no_type_of_ours_are_refused(file):
    write(file, DEEP.astype(np.uint32) + 2**31)
    with pytest.raises(FileError, match="holds whole numbers beyond 2,147,483,647: save it as 32-bit float"):
        read_tiff(file)
    write(file, FLOATS.astype(np.complex64))
    with pytest.raises(FileError, match="holds complex numbers: save their magnitude"):
        read_tiff(file)


def test_a_volume_in_one_page_is_refused(file):
    write(file, np.zeros((16, 32, 32), np.uint8), volumetric=True, photometric="minisblack", metadata=None)

    with pytest.raises(FileError, match=r"holds pages of .* as an image of .*: save it again without metadata"):
        read_tiff(file)


def repacked_as(path, compression):
    """Say of a file that its pixels are packed otherwise than they are."""
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages[0].tags[259]
        data[tag.valueoffset : tag.valueoffset + 2] = struct.pack(f"{tif.byteorder}H", compression)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (DEEP_COLOUR, {"photometric": "rgb"}, "is packed as LZW with 16 bits and 3 samples a pixel"),
        (FLOATS, {"byteorder": ">"}, "is packed as LZW with 32 bits and 1 samples a pixel"),
        (np.dstack([DEEP_COLOUR, DEEP]), {"photometric": "separated"}, "is packed as LZW with 16 bits and 4 samples"),
    ],
)
def test_what_would_be_read_wrong_is_refused_by_name_and_with_a_mend(file, pixels, options, message):
    write(file, pixels, **options)
    repacked_as(file, 5)

    with pytest.raises(FileError, match=f"{message}.* cannot be read here: save it uncompressed or with deflate, or"):
        read_tiff(file)


def test_pages_that_lie_in_other_files_are_missed(file):
    write(file, STACK, ome=True, metadata={"axes": "ZYX"}, photometric="minisblack")
    data = file.read_bytes()
    file.write_bytes(data.replace(b'SizeZ="5"', b'SizeZ="9"'))

    with pytest.raises(FileError, match="lacks some of its pages, which other files may hold: save all pages in one"):
        read_tiff(file)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"rowsperstrip": 2}, {"tile": (16, 16)}])
def test_a_truncated_file_is_called_damaged_and_nothing_is_logged(file, kept, options, caplog):
    noise = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
    write(file, noise, **options)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])

    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(FileError, match=r"is truncated or damaged \(.*\): copy it again"),
    ):
        read_tiff(file)
    assert not caplog.records


def test_an_empty_mask_is_read_however_well_it_packs(file):
    write(file, np.zeros((3000, 3000), np.uint8), compression="zlib", compressionargs={"level": 9})

    assert file.stat().st_size < 12_000
    assert not read_tiff(file).pixels.any()


def test_another_user_of_tifffile_still_gets_its_warnings(file, caplog):
    write(file, GREY)
    read_tiff(file)

    logging.getLogger("tifffile").warning("for others")

    assert "for others" in caplog.text


SAMPLES = {
    "plain": (GREY, {}),
    "deflate": (COLOUR, {"photometric": "rgb", "compression": "zlib", "predictor": True}),
    "tiles": (np.tile(DEEP, (3, 3)), {"tile": (32, 32), "compression": "zlib"}),
    "ome": (STACK, {"ome": True, "metadata": {"axes": "ZYX"}, "photometric": "minisblack"}),
    "imagej": (STACK, {"imagej": True, "metadata": {"axes": "ZYX", "unit": "um"}, "photometric": "minisblack"}),
    "float": (FLOATS, {"byteorder": ">"}),
}


@pytest.mark.parametrize("name", [*SAMPLES, "lzw", "jpeg", "packbits", "palette"])
def test_flipped_bits_give_an_image_or_a_named_fault(file, name):
    if name in SAMPLES:
        pixels, options = SAMPLES[name]
        write(file, pixels, **options)
    else:
        image = INDEXED if name == "palette" else Image.fromarray(COLOUR)
        image.save(file, compression={"lzw": "tiff_lzw", "palette": None}.get(name, name))
    data = np.frombuffer(file.read_bytes(), np.uint8)
    rng = np.random.default_rng(1)
    faults = 0

    for _ in range(60):
        damaged = data.copy()
        where = rng.integers(0, min(len(data), 600), 3) if rng.random() < 0.7 else rng.integers(0, len(data), 3)
        damaged[where] ^= 1 << rng.integers(0, 8, 3).astype(np.uint8)
        file.write_bytes(damaged.tobytes())
        try:
            image = read_tiff(file)
            assert image.pixels.ndim == 4
            assert image.pixels.size <= 2**26
            assert_header_tells(file)
        except FileError as fault:
            faults += 1
            assert fault.mend
    assert faults
