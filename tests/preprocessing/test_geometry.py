import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iaunet.preprocessing.geometry import MODES, Geometry
from iaunet.records import FieldError, from_json, to_json
from iaunet.resample import one_hot, resize_mask, resize_probabilities

SIDES = st.one_of(st.integers(1, 8), st.integers(1, 700))
GEOMETRIES = st.builds(
    Geometry.of,
    st.sampled_from(sorted(MODES)),
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


@settings(deadline=None)
@given(GEOMETRIES, st.integers(1, 3))
def test_an_image_fills_the_input_and_comes_back_at_its_native_size(geometry, channels):
    image = np.random.default_rng(0).random((channels, *geometry.native_size), np.float32)

    filled = geometry.pad(geometry.resize_image(image))
    restored = geometry.restore(filled)

    assert filled.shape == (channels, *geometry.input_size)
    assert restored.shape == image.shape
    assert filled.dtype == restored.dtype == np.float32


@settings(deadline=None)
@given(GEOMETRIES, st.sampled_from(["uint8", "uint16", "float32"]))
def test_a_constant_image_is_constant_in_the_content_and_the_fill_around_it(geometry, dtype):
    content = geometry.resize_image(np.full((1, *geometry.native_size), 200, dtype))

    padded = geometry.pad(content, fill=-3.0)

    np.testing.assert_allclose(content, 200, rtol=1e-6)
    np.testing.assert_array_equal(content_of(geometry, padded), content)
    assert np.count_nonzero(padded != -3.0) == content.size


@settings(deadline=None)
@given(GEOMETRIES)
def test_padding_never_reaches_the_image(geometry):
    image = np.ones((1, *geometry.native_size), np.float32)

    restored = geometry.restore(geometry.pad(geometry.resize_image(image), fill=-1000.0))

    np.testing.assert_allclose(restored, 1, rtol=1e-6)


@settings(deadline=None)
@given(GEOMETRIES)
def test_a_mask_there_and_back_is_what_resizing_makes_of_it(geometry):
    mask = random_mask(geometry)

    taken = geometry.mask_to_input(mask)
    restored = geometry.restore(one_hot(taken, [1, 2, 3]))

    small = resize_mask(mask, geometry.content[2:])
    np.testing.assert_array_equal(content_of(geometry, taken), small)
    assert np.count_nonzero(taken) == np.count_nonzero(small)
    np.testing.assert_array_equal(restored, resize_probabilities(one_hot(small, [1, 2, 3]), geometry.native_size))


@settings(deadline=None)
@given(GEOMETRIES, st.sampled_from([-2, -1]))
def test_flips_commute_with_there_and_back(geometry, axis):
    image = np.random.default_rng(0).random((1, *geometry.native_size), np.float32)

    flipped = there_and_back(geometry, np.flip(image, axis))

    np.testing.assert_allclose(flipped, np.flip(there_and_back(geometry, image), axis), atol=ROUNDING)


@settings(deadline=None)
@given(GEOMETRIES, st.sampled_from([-2, -1]))
def test_flips_commute_with_the_input_where_the_image_can_be_centred(geometry, axis):
    room = np.subtract(geometry.input_size, geometry.content[2:])
    mask = random_mask(geometry)

    flipped, expected = geometry.mask_to_input(np.flip(mask, axis)), geometry.mask_to_input(mask)

    # Room for an odd number of pixels is divided one pixel unevenly.
    shift = room[axis] % 2
    np.testing.assert_array_equal(flipped, np.roll(np.flip(expected, axis), -shift, axis))


@settings(deadline=None)
@given(
    st.sampled_from(sorted(MODES)),
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


@settings(deadline=None)
@given(GEOMETRIES)
def test_letterbox_keeps_the_aspect_to_the_pixel(geometry):
    letterbox = Geometry.of("letterbox", geometry.native_size, geometry.input_size)
    top, left, *sides = letterbox.content

    scale = min(np.divide(letterbox.input_size, letterbox.native_size))
    exact = np.multiply(letterbox.native_size, scale)
    assert np.all(np.abs(sides - np.maximum(exact, 1)) <= 0.5 + 1e-9)
    assert any(side == room for side, room in zip(sides, letterbox.input_size, strict=True))
    assert np.all(np.abs(np.subtract(letterbox.input_size, sides) - np.multiply(2, (top, left))) <= 1)


@settings(deadline=None)
@given(GEOMETRIES)
def test_a_geometry_survives_its_json(geometry):
    assert from_json(Geometry, json.loads(json.dumps(to_json(geometry)))) == geometry


GOOD = to_json(Geometry.of("letterbox", (30, 40), (16, 16)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "stretch"}, "mode is 'stretch': give one of resize, letterbox"),
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
    with pytest.raises(FieldError, match="mode is 'crop': give one of resize, letterbox"):
        Geometry.of("crop", (30, 40), (16, 16))


@pytest.mark.parametrize("method", ["resize_image", "pad", "mask_to_input", "restore"])
def test_arrays_of_another_size_are_refused(method):
    geometry = Geometry.of("letterbox", (30, 40), (16, 16))
    array = np.zeros((17, 23), np.uint8)

    with pytest.raises(ValueError, match=r"an array of \(17, 23\) px where the geometry has"):
        getattr(geometry, method)(array if method == "mask_to_input" else array[None])
