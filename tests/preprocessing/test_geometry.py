import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.preprocessing.geometry import MODES, Geometry, place
from iaunet.records import FieldError, from_json, to_json
from iaunet.resample import one_hot, resize_image, resize_mask, resize_probabilities

WHOLE_MODES = ["letterbox", "resize"]
SIDES = st.one_of(st.integers(1, 8), st.integers(1, 700))
GEOMETRIES = st.builds(
    Geometry.of,
    st.sampled_from(WHOLE_MODES),
    st.tuples(SIDES, SIDES),
    st.tuples(st.integers(1, 96), st.integers(1, 96)),
)
# Rounding of float32 at an edge between two labels.
ROUNDING = 1e-5


def content_of(geometry, array):
    top, left, height, width = geometry.content
    return array[..., top : top + height, left : left + width]


def there_and_back(geometry, image):
    return geometry.restore(geometry.pad(geometry.resize_image(image)))


def random_mask(geometry, seed=0, n_labels=3):
    return np.random.default_rng(seed).integers(0, n_labels + 1, geometry.native_size, dtype=np.uint8)


@given(GEOMETRIES, st.integers(1, 3))
def test_an_image_fills_the_input_and_comes_back_at_its_native_size(geometry, channels):
    image = np.random.default_rng(0).random((channels, *geometry.native_size), np.float32)

    filled = geometry.pad(geometry.resize_image(image))
    restored = geometry.restore(filled)

    assert filled.shape == (channels, *geometry.input_size)
    assert restored.shape == image.shape
    assert filled.dtype == restored.dtype == np.float32


@given(GEOMETRIES, st.sampled_from(["uint8", "uint16", "float32"]))
def test_a_constant_image_is_constant_in_the_content_and_the_fill_around_it(geometry, dtype):
    content = geometry.resize_image(np.full((1, *geometry.native_size), 200, dtype))

    padded = geometry.pad(content, fill=-3.0)

    np.testing.assert_allclose(content, 200, rtol=1e-6)
    np.testing.assert_array_equal(content_of(geometry, padded), content)
    assert np.count_nonzero(padded != -3.0) == content.size


@given(GEOMETRIES)
def test_padding_never_reaches_the_image(geometry):
    image = np.ones((1, *geometry.native_size), np.float32)

    restored = geometry.restore(geometry.pad(geometry.resize_image(image), fill=-1000.0))

    np.testing.assert_allclose(restored, 1, rtol=1e-6)


@given(GEOMETRIES)
def test_a_mask_there_and_back_is_what_resizing_makes_of_it(geometry):
    mask = random_mask(geometry)

    taken = geometry.mask_to_input(mask)
    restored = geometry.restore(one_hot(taken, [1, 2, 3]))

    small = resize_mask(mask, geometry.content[2:])
    np.testing.assert_array_equal(content_of(geometry, taken), small)
    assert np.count_nonzero(taken) == np.count_nonzero(small)
    np.testing.assert_array_equal(restored, resize_probabilities(one_hot(small, [1, 2, 3]), geometry.native_size))


@given(GEOMETRIES, st.sampled_from([-2, -1]))
def test_flips_commute_with_there_and_back(geometry, axis):
    image = np.random.default_rng(0).random((1, *geometry.native_size), np.float32)

    flipped = there_and_back(geometry, np.flip(image, axis))

    np.testing.assert_allclose(flipped, np.flip(there_and_back(geometry, image), axis), atol=ROUNDING)


@given(GEOMETRIES, st.sampled_from([-2, -1]))
def test_flips_commute_with_the_input_where_the_image_can_be_centred(geometry, axis):
    room = np.subtract(geometry.input_size, geometry.content[2:])
    mask = random_mask(geometry)

    flipped, expected = geometry.mask_to_input(np.flip(mask, axis)), geometry.mask_to_input(mask)

    # Room for an odd number of pixels is divided one pixel unevenly.
    shift = room[axis] % 2
    np.testing.assert_array_equal(flipped, np.roll(np.flip(expected, axis), -shift, axis))


@given(
    st.sampled_from(WHOLE_MODES),
    st.tuples(st.integers(64, 160), st.integers(64, 160)),
    st.integers(0, 2**32 - 1),
)
def test_a_smooth_map_survives_there_and_back_within_three_hundredths(mode, native_size, seed):
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, 2)
    rows, columns = (np.linspace(0, 2 * np.pi, side) for side in native_size)
    smooth = 0.5 + 0.25 * (np.sin(rows + phases[0])[:, None] + np.sin(columns + phases[1]))
    smooth = smooth.astype(np.float32)[None]

    restored = there_and_back(Geometry.of(mode, native_size, (96, 96)), smooth)

    np.testing.assert_allclose(restored, smooth, atol=0.03)


@pytest.mark.parametrize("mode", sorted(MODES))
def test_an_image_of_the_inputs_size_is_not_changed(mode):
    image = np.random.default_rng(0).random((2, 30, 40), np.float32)

    np.testing.assert_array_equal(there_and_back(Geometry.of(mode, (30, 40), (30, 40)), image), image)


def test_resize_lies_all_over_the_input():
    assert Geometry.of("resize", (30, 70), (64, 48)).content == (0, 0, 64, 48)


@pytest.mark.parametrize(
    ("native_size", "content"),
    [
        ((288, 384), (32, 0, 192, 256)),
        ((384, 288), (0, 32, 256, 192)),
        ((64, 64), (0, 0, 256, 256)),
        ((255, 256), (0, 0, 255, 256)),
        ((1, 700), (127, 0, 1, 256)),
        ((700, 1), (0, 127, 256, 1)),
        ((1, 1), (0, 0, 256, 256)),
    ],
)
def test_letterbox_centres_the_image_and_keeps_its_aspect(native_size, content):
    assert Geometry.of("letterbox", native_size, (256, 256)).content == content


@given(GEOMETRIES)
def test_letterbox_keeps_the_aspect_to_the_pixel(geometry):
    letterbox = Geometry.of("letterbox", geometry.native_size, geometry.input_size)
    top, left, *sides = letterbox.content

    scale = min(np.divide(letterbox.input_size, letterbox.native_size))
    exact = np.multiply(letterbox.native_size, scale)
    assert np.all(np.abs(sides - np.maximum(exact, 1)) <= 0.5 + 1e-9)
    assert any(side == room for side, room in zip(sides, letterbox.input_size, strict=True))
    assert np.all(np.abs(np.subtract(letterbox.input_size, sides) - np.multiply(2, (top, left))) <= 1)


@given(GEOMETRIES)
def test_a_geometry_survives_its_json(geometry):
    assert from_json(Geometry, json.loads(json.dumps(to_json(geometry)))) == geometry


GOOD = to_json(Geometry.of("letterbox", (30, 40), (16, 16)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "stretch"}, "mode is not known here: the fields are native_size, scaled_size, origin, input_size"),
        ({"scaled_size": [0, 16]}, r"scaled_size is \(0, 16\): give sides of 1 px or more"),
        ({"origin": [0, 1]}, r"origin is \(0, 1\): give a window inside the resized picture of \(12, 16\) px"),
        ({"origin": [-1, 0]}, r"origin is \(-1, 0\): give a window inside the resized picture"),
        ({"native_size": "30, 40"}, "native_size is '30, 40': give a list in brackets"),
        ({"native_size": [0, 40]}, r"native_size is \(0, 40\): give sides of 1 px or more"),
        ({"input_size": [16, -1]}, r"input_size is \(16, -1\): give sides of 1 px or more"),
        ({"content": [0, 0, 16]}, r"content is \[0, 0, 16\]: give a list of 4"),
        ({"content": [0, 0, 16, 0]}, r"content is \(0, 0, 16, 0\): give sides of 1 px or more"),
        ({"content": [-1, 0, 12, 16]}, r"content is .*: give a box inside the input of \(16, 16\) px"),
        ({"content": [0, 4, 12, 13]}, r"content is .*: give a box inside the input of \(16, 16\) px"),
    ],
)
def test_a_broken_json_is_answered_with_its_field(changes, message):
    with pytest.raises(FieldError, match=message):
        from_json(Geometry, GOOD | changes)


def test_an_unknown_mode_is_answered_with_the_known_ones():
    with pytest.raises(FieldError, match="mode is 'crop': give one of resize, letterbox, tiles"):
        Geometry.of("crop", (30, 40), (16, 16))


@pytest.mark.parametrize("method", ["resize_image", "pad", "mask_to_input", "restore"])
def test_arrays_of_another_size_are_refused(method):
    geometry = Geometry.of("letterbox", (30, 40), (16, 16))
    array = np.zeros((17, 23), np.uint8)

    with pytest.raises(ValueError, match=r"an array of \(17, 23\) px where the geometry has"):
        getattr(geometry, method)(array if method == "mask_to_input" else array[None])


TILED = st.tuples(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(8, 64), st.integers(8, 64)),
    st.sampled_from([1.0, 0.5, 0.25]),
)


def place_tiles(tiled):
    native_size, input_size, scale = tiled
    return place("tiles", native_size, input_size, scale=scale)


@given(TILED)
def test_tiles_hold_every_pixel_of_the_resized_picture(tiled):
    geometries = place_tiles(tiled)

    (scaled_size,) = {geometry.scaled_size for geometry in geometries}
    covered = np.zeros(scaled_size, int)
    for geometry in geometries:
        top, left, height, width = geometry.window
        covered[top : top + height, left : left + width] += 1
    assert covered.min() >= 1
    assert scaled_size == tuple(max(1, round(side * tiled[2])) for side in tiled[0])
    assert [geometry.origin for geometry in geometries] == sorted({geometry.origin for geometry in geometries})


@given(TILED)
def test_tiles_put_together_are_the_resized_picture(tiled):
    geometries = place_tiles(tiled)
    scaled_size = geometries[0].scaled_size
    image = np.random.default_rng(0).random((2, *tiled[0]), np.float32)
    mask = random_mask(geometries[0])
    together, labels = np.full((2, *scaled_size), np.nan, np.float32), np.full(scaled_size, 9, np.uint8)

    for geometry in geometries:
        top, left, height, width = geometry.window
        filled = geometry.pad(geometry.resize_image(image), fill=7.0)
        assert filled.shape == (2, *tiled[1])
        together[:, top : top + height, left : left + width] = geometry.crop(filled)
        taken = geometry.mask_to_input(mask)
        assert taken.shape == tiled[1]
        labels[top : top + height, left : left + width] = content_of(geometry, taken)

    np.testing.assert_allclose(together, resize_image(image, scaled_size), atol=5e-5)
    assert (labels != resize_mask(mask, scaled_size)).mean() <= 0.01  # ties


@pytest.mark.parametrize(
    ("size", "scale", "origins"),
    [
        ((584, 565), 1.0, [(0, 0), (0, 103), (0, 206), (0, 309), (109, 0)]),
        ((512, 512), 0.5, [(0, 0)]),
        ((512, 768), 0.5, [(0, 0), (0, 128)]),
    ],
)
def test_tiles_lie_with_half_overlap_in_reading_order(size, scale, origins):
    placed = [geometry.origin for geometry in place("tiles", size, (256, 256), scale=scale)]

    assert placed[:5] == origins
    assert len(placed) == (16 if scale == 1 else len(origins))


def test_a_picture_smaller_than_a_tile_is_padded_and_not_enlarged():
    (geometry,) = place("tiles", (31, 40), (64, 64))

    image = geometry.pad(geometry.resize_image(np.ones((1, 31, 40), np.uint8)))

    assert geometry.is_whole
    assert (geometry.scaled_size, geometry.content) == ((31, 40), (16, 12, 31, 40))
    assert image.sum() == 31 * 40
    assert image[0, 16:47, 12:52].all()


def test_a_long_picture_is_cut_along_one_axis_and_padded_along_the_other():
    first, second, third = place("tiles", (20, 120), (64, 64))

    assert [geometry.origin for geometry in (first, second, third)] == [(0, 0), (0, 28), (0, 56)]
    assert first.content == second.content == third.content == (22, 0, 20, 64)
    assert not first.is_whole


@pytest.mark.parametrize(
    ("mode", "scale", "scaled_size", "content"),
    [
        ("letterbox", 1.0, (64, 32), (0, 16, 64, 32)),
        ("tiles", 1.0, (60, 30), (2, 17, 60, 30)),
        ("tiles", 0.5, (30, 15), (17, 24, 30, 15)),
        ("resize", 1.0, (64, 64), (0, 0, 64, 64)),
    ],
)
def test_pixels_become_square_where_they_are_longer_than_wide(mode, scale, scaled_size, content):
    (geometry,) = place(mode, (30, 30), (64, 64), scale=scale, spacing_mm=(1.4, 0.7))

    assert (geometry.scaled_size, geometry.content) == (scaled_size, content)


@given(SIDES, SIDES, st.floats(0.1, 5))
def test_equal_spacing_changes_nothing(height, width, spacing):
    for mode in MODES:
        assert place(mode, (height, width), (64, 64), spacing_mm=(spacing, spacing)) == place(
            mode, (height, width), (64, 64)
        )


def test_a_tile_alone_cannot_be_taken_back():
    tile = place("tiles", (100, 100), (64, 64))[0]

    with pytest.raises(ValueError, match="a part of a picture cannot be restored alone: put the parts together first"):
        tile.restore(np.zeros((1, 64, 64), np.float32))
