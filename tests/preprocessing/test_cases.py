import numpy as np
import pytest

from iaunet.errors import FileError
from iaunet.planners.plan import Normalisation
from iaunet.preprocessing.cases import LARGEST_INTENSITY, prepare_image


def test_an_image_becomes_an_input_with_padding_of_0_and_the_geometry_that_undoes_it(make_plan):
    image, geometry = prepare_image(np.full((1, 32, 128), 150, np.uint8), make_plan())

    assert image.shape == (1, 64, 64)
    assert geometry.content == (24, 0, 16, 64)
    np.testing.assert_allclose(image[0, 24:40], 1)
    assert np.count_nonzero(image[0, :24]) == np.count_nonzero(image[0, 40:]) == 0
    np.testing.assert_allclose(geometry.restore(image), np.ones((1, 32, 128)), rtol=1e-6)


def test_channels_are_brought_to_the_plans(make_plan):
    three = Normalisation(kind="dataset", mean=(0.0,) * 3, sd=(1.0,) * 3)
    grey = np.full((1, 64, 64), 9, np.uint8)

    promoted, _ = prepare_image(grey, make_plan(channels=3, normalisation=three))
    united, _ = prepare_image(np.repeat(grey, 3, axis=0), make_plan())

    assert promoted.shape == (3, 64, 64)
    np.testing.assert_array_equal(promoted[0], promoted[2])
    np.testing.assert_allclose(united, (9 - 100) / 50)
    with pytest.raises(FileError, match="has 3 channels, the data set has 2"):
        prepare_image(np.zeros((3, 9, 9), np.uint8), make_plan(channels=2, normalisation=Normalisation(kind="case")))


@pytest.mark.parametrize("value", [0, 65535])
def test_no_intensity_leaves_what_float16_holds(make_plan, value):
    image = np.full((1, 64, 64), value, np.uint16)

    flat = Normalisation(kind="dataset", mean=(99.0,), sd=(0.0,))
    prepared, _ = prepare_image(image, make_plan(depth="uint16", normalisation=flat))

    np.testing.assert_array_equal(np.abs(prepared.astype(np.float16)), LARGEST_INTENSITY)


def test_an_image_is_normalised_by_its_own_native_pixels(make_plan):
    image = np.random.default_rng(0).integers(0, 60000, (1, 200, 200)).astype(np.uint16)

    prepared, _ = prepare_image(image, make_plan(depth="uint16", normalisation=Normalisation(kind="case")))

    assert prepared.mean() == pytest.approx(0, abs=0.05)
    assert prepared.std() < 0.5  # noise is averaged away by shrinking, after it was measured


def test_pixels_of_another_type_than_the_data_sets_are_refused(make_plan):
    with pytest.raises(FileError, match="pixels are uint16, those of the data set uint8: convert it to uint8"):
        prepare_image(np.zeros((1, 64, 64), np.uint16), make_plan())
