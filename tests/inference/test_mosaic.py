import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iaunet import resample
from iaunet.dataset import MaskCoding
from iaunet.inference.mosaic import SIGMA, Assembly, RowPrediction
from iaunet.planners.plan import with_thresholds
from iaunet.preprocessing.cases import CaseInput, place_rows

SIDES = st.integers(40, 900)
SCALES = st.sampled_from([1.0, 0.5, 0.25, 0.37])
TWO = {"labels": ("a", "b"), "coding": MaskCoding(kind="values", values=(1, 2), written=(1, 2))}


def assemble(case, plan, rows):
    """The prediction of a case from the probabilities of all its rows."""
    assembly = Assembly(case, plan, keep_probabilities=True)
    for row in rows:
        assembly.add(RowPrediction(row))
    return assembly.prediction


def case_of(plan, shape, spacing_mm=None):
    return CaseInput(shape, tuple(place_rows(shape, spacing_mm, plan)), make=lambda row: None)


def cut(case, maps):
    """The rows that a network gives which predicts [outputs, H, W] of the resized picture of each slice exactly."""
    for place in case.places:
        top, left, height, width = place.geometry.window
        yield place.geometry.pad(maps(place.slice)[:, top : top + height, left : left + width], fill=0.5)


def smooth(size):
    """Two smooth maps: a ramp downwards, waves across."""
    rows, columns = ((np.arange(side, dtype=np.float32) + 0.5) / side for side in size)
    ramp = np.broadcast_to(0.2 + 0.6 * rows[:, None], size)
    waves = np.broadcast_to(0.5 + 0.4 * np.sin(6 * columns + 2), size)
    return np.stack([ramp, waves]).astype(np.float32)


def at_once(case, rows):
    """Weighted mean of the tiles of one picture, all of it held in memory, in float64."""
    first = case.places[0].geometry
    sums, weights = np.zeros((2, *first.scaled_size)), np.zeros(first.scaled_size)
    for place, row in zip(case.places, rows, strict=True):
        top, left, height, width = place.geometry.window
        down, across = ((np.arange(n) - (n - 1) / 2) / (SIGMA * n) for n in (height, width))
        weight = np.exp(-(down[:, None] ** 2 + across**2) / 2)
        sums[:, top : top + height, left : left + width] += place.geometry.crop(row) * weight
        weights[top : top + height, left : left + width] += weight
    return resample.resize_probabilities((sums / weights).astype(np.float32), first.native_size)


@settings(max_examples=40)
@given(SIDES, SIDES, SCALES)
def test_maps_that_are_known_in_the_resized_picture_come_back_as_they_are(make_plan, height, width, scale):
    plan = make_plan(tile_scale=scale, **TWO)
    case = case_of(plan, (1, height, width))
    scaled = smooth(case.places[0].geometry.scaled_size)

    found = assemble(case, plan, list(cut(case, lambda _: scaled))).probabilities[:, 0]

    np.testing.assert_allclose(found, resample.resize_probabilities(scaled, (height, width)), atol=1e-5)
    half_a_pixel = 0.6 * 0.51 / scaled.shape[1]  # flat from the outermost pixel's middle outwards
    np.testing.assert_allclose(found[0], smooth((height, width))[0], atol=half_a_pixel + 1e-5)


@settings(max_examples=40)
@given(SIDES, SIDES, SCALES, st.integers(0, 9))
def test_bands_give_what_the_whole_picture_gives_at_once(make_plan, height, width, scale, seed):
    plan = make_plan(tile_scale=scale, **TWO)
    case = case_of(plan, (1, height, width))
    rows = np.random.default_rng(seed).random((len(case.places), 2, 64, 64), dtype=np.float32)

    found = assemble(case, plan, rows)

    np.testing.assert_allclose(found.probabilities[:, 0], at_once(case, rows), atol=1e-5)
    np.testing.assert_array_equal(found.labels, plan.decide(found.probabilities))


@settings(max_examples=40)
@given(SIDES, SIDES, st.floats(0.01, 1), st.sampled_from([0.5, 0.25, 0.3, 1.0]))
def test_what_is_constant_stays_constant(make_plan, height, width, scale, value):
    plan = make_plan(tile_scale=scale)
    case = case_of(plan, (1, height, width))
    rows = np.full((len(case.places), 1, 64, 64), value, np.float32)

    np.testing.assert_allclose(assemble(case, plan, rows).probabilities, value, rtol=1e-5)


@settings(max_examples=40)
@given(st.integers(1, 3), SIDES, SIDES, SCALES)
def test_every_row_of_pixels_is_given_once_from_the_top_down(make_plan, slices, height, width, scale):
    plan = make_plan(tile_scale=scale)
    case = case_of(plan, (slices, height, width))

    given_rows = []

    class Watched(Assembly):
        def _keep(self, number, top, rows):
            given_rows.extend((number, top + i) for i in range(rows.shape[1]))
            super()._keep(number, top, rows)

    assembly = Watched(case, plan, keep_probabilities=True)
    for _ in case.places:
        assert not assembly.is_complete
        assembly.add(RowPrediction(np.zeros((1, 64, 64), np.float32)))

    assert assembly.is_complete
    assert given_rows == [(number, row) for number in range(slices) for row in range(height)]


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (17, 50), (1, 1)])
@pytest.mark.parametrize("mode", ["tiles", "letterbox", "resize"])
def test_a_picture_of_one_tile_is_that_of_the_whole_image_to_the_bit(make_plan, size, mode):
    plan = make_plan(input_mode=mode)
    case = case_of(plan, (1, *size))
    [place] = case.places
    row = np.random.default_rng(0).random((1, 64, 64), dtype=np.float32)

    found = assemble(case, plan, [row])

    expected = place.geometry.restore(row)
    np.testing.assert_array_equal(found.probabilities[:, 0], expected)
    np.testing.assert_array_equal(found.labels[0], expected[0] >= 0.5)


@settings(max_examples=60)
@given(SIDES, SIDES, st.sampled_from(["letterbox", "resize"]), st.floats(0.05, 0.95), st.integers(0, 9))
def test_labels_are_the_same_whether_or_not_the_whole_picture_is_restored(
    make_plan, height, width, mode, threshold, seed
):
    plan = with_thresholds(make_plan(input_mode=mode, **TWO), (threshold, 0.5))
    case = case_of(plan, (1, height, width))
    rng = np.random.default_rng(seed)
    row = rng.random((2, 64, 64), np.float32) * 0.04
    top, left = rng.integers(0, 60, 2)
    row[:, top : top + 12, left : left + 9] = rng.random((2, *row[0, top : top + 12, left : left + 9].shape))
    assembly = Assembly(case, plan)
    assembly.add(RowPrediction(row))

    np.testing.assert_array_equal(assembly.prediction.labels, assemble(case, plan, [row]).labels)


@settings(max_examples=20)
@given(st.integers(2, 4), st.integers(65, 200), st.integers(20, 200), st.sampled_from([1.0, 0.5]))
def test_slices_of_several_tiles_do_not_mix(make_plan, slices, height, width, scale):
    plan = make_plan(tile_scale=scale, **TWO)
    case = case_of(plan, (slices, height, width))
    scaled = smooth(case.places[0].geometry.scaled_size)

    found = assemble(case, plan, list(cut(case, lambda number: scaled / (number + 1)))).probabilities

    expected = resample.resize_probabilities(scaled, (height, width))
    for number in range(slices):
        np.testing.assert_allclose(found[:, number], expected / (number + 1), atol=1e-5)


def test_pixels_that_are_not_square_are_made_so_and_back(make_plan):
    plan = make_plan(equal_spacing=True, **TWO)
    case = case_of(plan, (2, 100, 150), spacing_mm=(5.0, 1.2, 0.6))
    assert case.places[0].geometry.scaled_size == (200, 150)
    scaled = smooth((200, 150))

    found = assemble(case, plan, list(cut(case, lambda _: scaled))).probabilities

    assert found.shape == (2, 2, 100, 150)
    np.testing.assert_allclose(found[0, 1], smooth((100, 150))[0], atol=0.01)
    np.testing.assert_allclose(found[1, 1, 2:-2], smooth((100, 150))[1, 2:-2], atol=0.01)


def test_the_middle_of_a_tile_outweighs_the_edge_of_its_neighbour(make_plan):
    plan = make_plan()
    case = case_of(plan, (1, 64, 96))  # two tiles, the second from column 32 on
    ones, zeros = np.ones((1, 64, 64), np.float32), np.zeros((1, 64, 64), np.float32)

    found = assemble(case, plan, [ones, zeros]).probabilities[0, 0]

    assert (found[:, :32] == 1).all()
    assert (found[:, 64:] == 0).all()
    assert (found[:, 36] > 0.95).all()
    np.testing.assert_allclose(found[:, 47] + found[:, 48], 1, atol=1e-6)
    assert (np.diff(found[:, 32:64]) < 0).all()


def test_regions_are_decided_as_the_plan_says(make_plan):
    coding = MaskCoding(
        kind="values", values=(3, 7), written=(3, 7), regions=((3, 7), (7,)), regions_class_order=(3, 7)
    )
    plan = make_plan(labels=("whole", "core"), coding=coding)
    case = case_of(plan, (1, 64, 150))
    scaled = smooth((64, 150))
    scaled[0] = 0.8

    labels = assemble(case, plan, list(cut(case, lambda _: scaled))).labels[0]

    core = smooth((64, 150))[1]
    clear = abs(core - 0.5) > 1e-4
    np.testing.assert_array_equal(labels[clear], np.where(core >= 0.5, 2, 1)[clear])


def test_a_prediction_is_not_given_before_it_is_whole(make_plan):
    plan = make_plan()
    assembly = Assembly(case_of(plan, (1, 64, 130)), plan)
    assembly.add(RowPrediction(np.zeros((1, 64, 64), np.float32)))

    with pytest.raises(ValueError, match="3 rows of the case are missing"):
        _ = assembly.prediction


def test_probabilities_are_kept_only_where_they_are_asked_for(make_plan):
    plan = make_plan()
    case = case_of(plan, (1, 64, 64))
    plain, full = Assembly(case, plan), Assembly(case, plan, keep_probabilities=True)
    for assembly in (plain, full):
        assembly.add(RowPrediction(np.full((1, 64, 64), 0.7, np.float32)))

    assert plain.prediction.probabilities is None
    np.testing.assert_array_equal(full.prediction.probabilities, np.full((1, 1, 64, 64), 0.7, np.float32))
    np.testing.assert_array_equal(plain.prediction.labels, full.prediction.labels)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_memory_does_not_grow_with_the_height_of_a_picture(make_plan, scale):
    plan = dataclasses.replace(make_plan(tile_scale=scale), input_size=(256, 256))
    row = np.zeros((1, 256, 256), np.float32)
    peaks = []
    for height in (2_000, 20_000):
        case = case_of(plan, (1, height, 2_000))
        assembly = Assembly(case, plan)
        tracemalloc.start()
        for _ in case.places:
            assembly.add(RowPrediction(row))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    band = 256 * 2_000 * 4 / scale  # a tile's height of the resized picture becomes so many pixels
    assert peaks[1] < 6 * band
    assert peaks[1] < 1.2 * peaks[0]
