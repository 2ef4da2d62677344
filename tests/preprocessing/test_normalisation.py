import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from iaunet.planners.plan import Normalisation
from iaunet.preprocessing.normalisation import SD_FLOOR, Normaliser

IMAGES = arrays(np.uint16, array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=6))


def test_the_datasets_mean_becomes_0_and_its_sd_1_channel_by_channel():
    plan = Normalisation(kind="dataset", mean=(100.0, 50.0), sd=(20.0, 0.0))
    image = np.array([[[100, 140]], [[50, 51]]], np.float32)

    normalised = Normaliser.of(plan, image).apply(image)

    np.testing.assert_allclose(normalised, [[[0, 2]], [[0, 1 / SD_FLOOR]]])
    assert normalised.dtype == np.float32


@given(IMAGES)
def test_an_image_by_itself_has_mean_0_and_sd_1_unless_it_is_constant(image):
    normalised = Normaliser.of(Normalisation(kind="case"), image).apply(image.astype(np.float32))

    np.testing.assert_allclose(normalised.mean((1, 2)), 0, atol=0.01)
    constant = np.ptp(image, axis=(1, 2)) == 0
    np.testing.assert_allclose(normalised.std((1, 2))[~constant], 1, atol=0.01)


@given(IMAGES, st.floats(0, 40), st.floats(60, 100))
def test_outliers_are_clipped_to_the_images_percentiles(image, low, high):
    plan = Normalisation(kind="case", percentiles=(low, high))

    with_outlier = image.astype(np.float32)
    normaliser = Normaliser.of(plan, image)
    with_outlier[:, 0, 0] = 1e9

    ends = np.percentile(image.reshape(len(image), -1), high, axis=1)[:, None, None].astype(np.float32)
    np.testing.assert_allclose(normaliser.apply(with_outlier)[:, :1, :1], normaliser.apply(ends), rtol=1e-5, atol=1e-5)


def test_an_image_is_not_changed_and_may_have_another_size_than_the_one_it_was_measured_on():
    image = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    before = image.copy()
    normaliser = Normaliser.of(Normalisation(kind="case", percentiles=(10, 90)), image)

    assert normaliser.apply(np.ones((1, 2, 2), np.float32)).shape == (1, 2, 2)
    normaliser.apply(image)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("factor", [1, 100])
def test_an_images_own_normalisation_does_not_depend_on_its_scale(factor):
    image = np.random.default_rng(0).integers(0, 600, (1, 20, 20)).astype(np.uint16)
    plan = Normalisation(kind="case", percentiles=(0.5, 99.5))

    usual = Normaliser.of(plan, image).apply(image.astype(np.float32))
    scaled = Normaliser.of(plan, image * factor).apply((image * factor).astype(np.float32))

    np.testing.assert_allclose(scaled, usual, atol=1e-4)
