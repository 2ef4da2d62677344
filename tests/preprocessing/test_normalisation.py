import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from iaunet.planners.plan import Normalisation
from iaunet.preprocessing.normalisation import MOST_MEASURED, SD_FLOOR, Normaliser

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


def test_a_window_clips_before_the_datasets_mean_and_sd_channel_by_channel():
    plan = Normalisation(kind="dataset", mean=(50.0, 0.0), sd=(40.0, 2.0), windows=((-100.0, 240.0), (-1.0, 1.0)))
    image = np.array([[[-1000, 50, 3000]], [[-1000, 0.5, 3000]]], np.float32)

    normalised = Normaliser.of(plan, image).apply(image)

    np.testing.assert_allclose(normalised, [[[-3.75, 0, 4.75]], [[-0.5, 0.25, 0.5]]])
    np.testing.assert_array_equal(image[0], [[-1000, 50, 3000]])


def test_a_stack_is_normalised_as_a_whole_and_not_slice_by_slice():
    stack = np.stack([np.zeros((4, 6)), np.ones((4, 6)), np.full((4, 6), 5)]).astype(np.float32)[None]

    normaliser = Normaliser.of(Normalisation(kind="case"), stack)

    sd = np.std([0, 1, 5])
    for number, value in enumerate((0, 1, 5)):
        np.testing.assert_allclose(normaliser.apply(stack[:, number]), (value - 2) / sd, rtol=1e-6)


@pytest.mark.parametrize("percentiles", [None, (0.5, 99.5)])
def test_a_huge_picture_is_measured_on_evenly_spread_rows(percentiles):
    height, width = 4 * MOST_MEASURED // 4096, 4096
    rows = np.arange(height, dtype=np.float32)
    image = np.broadcast_to(rows[None, :, None], (1, height, width))
    plan = Normalisation(kind="case", percentiles=percentiles)

    normaliser = Normaliser.of(plan, image)

    exact = rows[::4]
    if percentiles:
        exact = exact.clip(*np.percentile(exact, percentiles))
    assert float(normaliser.mean[0, 0, 0]) == pytest.approx(exact.mean(), rel=1e-3)
    assert float(normaliser.sd[0, 0, 0]) == pytest.approx(exact.std(), rel=1e-3)
    assert float(normaliser.mean[0, 0, 0]) == pytest.approx(rows.mean(), rel=1e-3)
