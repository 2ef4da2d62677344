import numpy as np
import pytest

from iaunet.errors import FileError
from iaunet.planners.plan import Normalisation
from iaunet.preprocessing.cases import LARGEST_INTENSITY, place_rows, prepare_case
from iaunet.stacks import Stack


def picture(pixels):
    """The stack of one picture [C, H, W]."""
    return Stack(pixels[:, None])


def only_row(stack, plan):
    """The input and the place of a case that has one row."""
    case = prepare_case(stack, plan)
    (image,), (place,) = case.rows(), case.places
    return image, place


def test_a_picture_becomes_one_input_with_padding_of_0_and_the_geometry_that_undoes_it(make_plan):
    image, place = only_row(picture(np.full((1, 32, 128), 150, np.uint8)), make_plan())

    assert (image.shape, image.dtype) == ((1, 64, 64), np.float32)
    assert place.slice == 0
    assert place.geometry.content == (24, 0, 16, 64)
    np.testing.assert_allclose(image[0, 24:40], 1)
    assert np.count_nonzero(image[0, :24]) == np.count_nonzero(image[0, 40:]) == 0
    np.testing.assert_allclose(place.geometry.restore(image), np.ones((1, 32, 128)), rtol=1e-6)


def test_channels_are_brought_to_the_plans(make_plan):
    three = Normalisation(kind="dataset", mean=(0.0,) * 3, sd=(1.0,) * 3)
    grey = np.full((1, 64, 64), 9, np.uint8)

    promoted, _ = only_row(picture(grey), make_plan(channels=3, normalisation=three))
    united, _ = only_row(picture(np.repeat(grey, 3, axis=0)), make_plan())

    assert promoted.shape == (3, 64, 64)
    np.testing.assert_array_equal(promoted[0], promoted[2])
    np.testing.assert_allclose(united, (9 - 100) / 50)
    with pytest.raises(FileError, match="has 3 channels, the data set has 2"):
        prepare_case(
            picture(np.zeros((3, 9, 9), np.uint8)), make_plan(channels=2, normalisation=Normalisation(kind="case"))
        )


@pytest.mark.parametrize("value", [0, 65535])
def test_no_intensity_leaves_what_float16_holds(make_plan, value):
    flat = Normalisation(kind="dataset", mean=(99.0,), sd=(0.0,))

    prepared, _ = only_row(
        picture(np.full((1, 64, 64), value, np.uint16)), make_plan(depth="uint16", normalisation=flat)
    )

    np.testing.assert_array_equal(np.abs(prepared.astype(np.float16)), LARGEST_INTENSITY)


def test_a_picture_is_normalised_by_its_own_native_pixels(make_plan):
    image = np.random.default_rng(0).integers(0, 60000, (1, 200, 200)).astype(np.uint16)

    prepared, _ = only_row(picture(image), make_plan(depth="uint16", normalisation=Normalisation(kind="case")))

    assert prepared.mean() == pytest.approx(0, abs=0.05)
    assert prepared.std() < 0.5  # noise is averaged away by shrinking, after it was measured


def test_pixels_of_another_type_than_the_data_sets_are_refused(make_plan):
    with pytest.raises(FileError, match="pixels are uint16, those of the data set uint8: convert it to uint8"):
        prepare_case(picture(np.zeros((1, 64, 64), np.uint16)), make_plan())


def test_a_volume_has_a_row_a_slice_and_is_normalised_as_a_whole(make_plan):
    stack = Stack(np.arange(3, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 64, 64), np.float32))

    case = prepare_case(stack, make_plan(depth="float32", normalisation=Normalisation(kind="case")))

    assert case.shape == (3, 64, 64)
    assert [place.slice for place in case.places] == [0, 1, 2]
    for image, value in zip(case.rows(), (-1, 0, 1), strict=True):
        np.testing.assert_allclose(image, value * np.sqrt(1.5), atol=1e-6)
    np.testing.assert_array_equal(case.make(2), case.make(2))


def test_a_stack_in_tiles_has_all_tiles_of_a_slice_before_the_next(make_plan):
    pixels = np.random.default_rng(0).integers(0, 255, (1, 2, 64, 96), dtype=np.uint8)

    case = prepare_case(Stack(pixels), make_plan(input_mode="tiles"))

    assert [(place.slice, place.geometry.origin) for place in case.places] == [
        (0, (0, 0)),
        (0, (0, 32)),
        (1, (0, 0)),
        (1, (0, 32)),
    ]
    for image, (number, left) in zip(case.rows(), [(0, 0), (0, 32), (1, 0), (1, 32)], strict=True):
        np.testing.assert_allclose(image, (pixels[:, number, :, left : left + 64] - 100.0) / 50, rtol=1e-6)


def test_tiles_are_cut_at_the_plans_scale(make_plan):
    places = place_rows((1, 256, 192), None, make_plan(input_mode="tiles", tile_scale=0.5))

    assert [place.geometry.origin for place in places] == [(0, 0), (0, 32), (32, 0), (32, 32), (64, 0), (64, 32)]
    assert {place.geometry.scaled_size for place in places} == {(128, 96)}


@pytest.mark.parametrize(("equal_spacing", "content"), [(True, (0, 16, 64, 32)), (False, (0, 0, 64, 64))])
def test_pixels_are_made_square_only_where_the_plan_says_so(make_plan, equal_spacing, content):
    (place,) = place_rows((1, 40, 40), (5.0, 2.0, 1.0), make_plan(equal_spacing=equal_spacing))

    assert place.geometry.content == content
