import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from iaunet.decision import decide, decide_regions

SHARES = st.integers(0, 10).map(lambda tenths: tenths / 10)
PROBABILITIES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    elements=SHARES.map(lambda share: float(np.float32(share))),
)


def thresholds_for(data, probabilities):
    return data.draw(st.lists(SHARES, min_size=len(probabilities), max_size=len(probabilities)))


def decide_by_hand(values, thresholds):
    reached = [
        (-value, index)
        for index, (value, threshold) in enumerate(zip(values, thresholds, strict=True), start=1)
        if value >= np.float32(threshold)
    ]
    return min(reached)[1] if reached else 0


@given(st.data(), PROBABILITIES)
def test_among_labels_that_reach_their_threshold_the_most_probable_wins(data, probabilities):
    thresholds = thresholds_for(data, probabilities)

    mask = decide(probabilities, thresholds)

    by_hand = [[decide_by_hand(pixel, thresholds) for pixel in row] for row in probabilities.transpose(1, 2, 0)]
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, by_hand)


def test_a_label_below_its_threshold_gives_way_to_a_less_probable_one():
    probabilities = np.array([[[0.8]], [[0.3]]], np.float32)

    assert decide(probabilities, [0.5, 0.2]) == 1
    assert decide(probabilities, [0.9, 0.2]) == 2
    assert decide(probabilities, [0.9, 0.4]) == 0


def test_equal_labels_go_to_the_first_and_reaching_is_enough():
    probabilities = np.full((3, 1, 1), 0.3, np.float32)

    assert decide(probabilities, [0.3, 0.3, 0.3]) == 1
    assert decide(probabilities[:1], [0.3]) == 1


@pytest.mark.parametrize("n_labels", [1, 2])
def test_nan_reaches_no_threshold(n_labels):
    assert decide(np.full((n_labels, 1, 1), np.nan, np.float32), [0.0] * n_labels) == 0


@pytest.mark.parametrize("n_labels", [1, 3])
def test_volumes_are_decided_like_their_slices(n_labels):
    volume = np.random.default_rng(0).random((n_labels, 4, 5, 6), np.float32)
    thresholds = [0.6] * n_labels

    expected = np.stack([decide(volume[:, depth], thresholds) for depth in range(4)])

    np.testing.assert_array_equal(decide(volume, thresholds), expected)


def test_regions_are_painted_later_over_earlier():
    whole = np.array([[0.9, 0.9, 0.2, 0.2]], np.float32)
    part = np.array([[0.1, 0.5, 0.6, 0.4]], np.float32)

    mask = decide_regions(np.stack([whole, part]), [0.5, 0.5], [1, 3])

    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[1, 3, 3, 0]])


@given(st.data(), PROBABILITIES)
def test_a_pixel_has_the_value_of_the_last_region_that_reaches_it(data, probabilities):
    thresholds = thresholds_for(data, probabilities)
    values = [7, 2, 5, 9][: len(probabilities)]

    mask = decide_regions(probabilities, thresholds, values)

    reached = probabilities >= np.array(thresholds, np.float32)[:, None, None]
    for row, column in np.ndindex(mask.shape):
        painted = [value for value, there in zip(values, reached[:, row, column], strict=True) if there]
        assert mask[row, column] == ([0, *painted])[-1]


def test_one_region_is_one_label():
    probabilities = np.random.default_rng(0).random((1, 8, 8), np.float32)

    np.testing.assert_array_equal(decide_regions(probabilities, [0.4], [1]), decide(probabilities, [0.4]))


def test_thresholds_are_one_a_map():
    probabilities = np.zeros((2, 3, 3), np.float32)

    with pytest.raises(ValueError, match="1 thresholds for 2 maps"):
        decide(probabilities, [0.5])
    with pytest.raises(ValueError, match="3 thresholds for 2 maps"):
        decide_regions(probabilities, [0.5] * 3, [1, 2])


def test_values_are_one_a_region():
    with pytest.raises(ValueError, match="1 values in regions_class_order for 2 regions"):
        decide_regions(np.zeros((2, 3, 3), np.float32), [0.5, 0.5], [1])
