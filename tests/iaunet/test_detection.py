import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from iaunet.detection import Detection, detect, match_components, summarise_detection

SHAPES = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
)


@st.composite
def mask_pairs(draw):
    shape = draw(SHAPES)
    return draw(arrays.arrays(bool, shape)), draw(arrays.arrays(bool, shape))


def boxes(*corners, shape=(40, 40)):
    """A mask of boxes (top, left, height, width)."""
    mask = np.zeros(shape, bool)
    for top, left, height, width in corners:
        mask[top : top + height, left : left + width] = True
    return mask


@given(mask_pairs())
def test_of_equal_masks_all_lesions_are_found_wholly(masks):
    match = match_components(masks[0], masks[0])

    assert match.detection.found == match.detection.lesions
    assert match.detection.false_alarms == 0
    assert (match.lesion_ious == 1).all()


@given(mask_pairs(), st.sampled_from([0.1, 0.3, 0.5]))
def test_swapping_the_masks_swaps_misses_and_false_alarms(masks, least_iou):
    there = match_components(*masks, least_iou=least_iou).detection
    back = match_components(*masks[::-1], least_iou=least_iou).detection

    assert (there.missed, there.false_alarms, there.found) == (back.false_alarms, back.missed, back.found)
    assert there.sensitivity == pytest.approx(back.precision, nan_ok=True)
    assert there.f1 == pytest.approx(back.f1, nan_ok=True)


@given(mask_pairs())
def test_each_component_counts_once_and_has_at_most_one_partner(masks):
    prediction, truth = masks
    match = match_components(prediction, truth)

    assert match.lesion_areas.sum() == truth.sum()
    assert match.alarm_areas.sum() == prediction.sum()
    assert match.detection.lesions == len(match.lesion_areas)
    assert match.detection.found + match.detection.false_alarms == len(match.alarm_areas)
    paired = sorted(match.lesion_ious[match.lesion_ious > 0])
    assert paired == sorted(match.alarm_ious[match.alarm_ious > 0])
    assert all(0.1 <= iou <= 1 for iou in paired)


@given(arrays.arrays(bool, (3, 12)), arrays.arrays(bool, (3, 12)))
def test_no_other_matching_has_more_pairs_or_a_higher_sum_of_iou(prediction, truth):
    match = match_components(prediction, truth)

    table = np.zeros((len(match.lesion_areas), len(match.alarm_areas)))
    lesions, alarms = (match_components(mask, mask) for mask in (truth, prediction))
    assert (lesions.detection.lesions, alarms.detection.lesions) == table.shape
    for i, j in np.ndindex(table.shape):
        one, other = component(truth, i), component(prediction, j)
        iou = (one & other).sum() / (one | other).sum()
        table[i, j] = iou if iou >= 0.1 else 0
    sizes = sorted(table.shape)
    wide = table if table.shape[0] <= table.shape[1] else table.T
    best = max(
        (
            (sum(wide[i, j] > 0 for i, j in enumerate(chosen)), sum(wide[i, j] for i, j in enumerate(chosen)))
            for chosen in itertools.permutations(range(sizes[1]), sizes[0])
        ),
    )
    assert (match.detection.found, match.lesion_ious.sum()) == (best[0], pytest.approx(best[1]))


def component(mask, number):
    """The component of this number, found by spreading from its first pixel."""
    left = mask.copy()
    for _ in range(number + 1):
        spread = np.zeros_like(mask)
        spread[tuple(np.argwhere(left)[0])] = True
        while True:
            wider = left & np.any(
                [np.roll(np.pad(spread, 1), (y, x), (0, 1))[1:-1, 1:-1] for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0
            )
            if (wider == spread).all():
                break
            spread = wider
        left &= ~spread
    return spread


def test_a_lesion_in_two_parts_is_one_found_and_one_false_alarm():
    truth = boxes((0, 0, 10, 10))

    match = match_components(boxes((0, 0, 4, 10), (5, 0, 5, 10)), truth)

    assert match.detection == Detection(lesions=1, found=1, false_alarms=1)
    assert [*match.alarm_ious] == [0, 0.5]


def test_two_lesions_predicted_as_one_are_one_found_and_one_missed():
    match = match_components(boxes((0, 0, 10, 11)), boxes((0, 0, 10, 7), (0, 8, 10, 3)))

    assert match.detection == Detection(lesions=2, found=1, false_alarms=0)
    assert [*match.lesion_ious] == [70 / 110, 0]


def test_a_pair_matches_from_an_iou_of_a_tenth_on():
    truth = boxes((0, 0, 10, 10))

    assert match_components(boxes((0, 0, 1, 10)), truth).detection.found == 1
    assert match_components(boxes((0, 0, 1, 9)), truth).detection == Detection(lesions=1, found=0, false_alarms=1)
    assert match_components(boxes((0, 0, 4, 10)), truth, least_iou=0.5).detection.found == 0


def test_pixels_that_touch_at_a_corner_are_of_one_component_in_an_image_and_in_a_volume():
    corner = np.zeros((2, 2, 2), bool)
    corner[0, 0, 0] = corner[1, 1, 1] = True

    assert match_components(np.eye(4, dtype=bool), np.eye(4, dtype=bool)).detection.lesions == 1
    assert match_components(corner, corner).detection.lesions == 1


def test_what_is_ignored_is_neither_lesion_nor_alarm():
    prediction, truth = boxes((0, 0, 5, 5), (20, 20, 5, 5)), boxes((0, 0, 5, 5), (30, 30, 5, 5))
    valid = np.ones((40, 40), bool)
    valid[20:] = False

    match = match_components(prediction, truth, valid)

    assert match.detection == Detection(lesions=1, found=1, false_alarms=0)


def test_rates_of_known_counts():
    detection = Detection(lesions=4, found=3, false_alarms=2)

    assert detection.missed == 1
    assert (detection.sensitivity, detection.precision, detection.f1) == (0.75, 0.6, 6 / 9)
    assert Detection(lesions=2).sensitivity == 0
    assert math.isnan(Detection(lesions=2).precision)
    assert math.isnan(Detection(false_alarms=2).sensitivity)
    assert math.isnan(Detection().f1)


@given(st.lists(mask_pairs(), max_size=4))
def test_the_counts_of_cases_and_of_size_classes_add_up(cases):
    matches = [match_components(*masks) for masks in cases]

    summary = summarise_detection(matches)

    assert summary.overall == sum((match.detection for match in matches), Detection())
    assert summary.n_cases == len(matches)
    if summary.sizes:
        assert sum((size.detection for size in summary.sizes), Detection()) == summary.overall
    else:
        assert summary.overall.lesions < 3


def test_size_classes_are_thirds_of_the_lesions_and_false_alarms_go_by_their_own_area():
    truth = boxes((0, 0, 1, 2), (0, 5, 1, 4), (5, 0, 2, 4), (5, 10, 4, 4), (20, 0, 5, 5), (20, 10, 6, 6))
    prediction = boxes((0, 0, 1, 2), (5, 10, 4, 4), (20, 0, 5, 5), (30, 30, 1, 1), (35, 0, 4, 10))

    small, medium, large = summarise_detection([match_components(prediction, truth)]).sizes

    assert small.detection == Detection(lesions=2, found=1, false_alarms=1)
    assert medium.detection == Detection(lesions=2, found=1, false_alarms=0)
    assert large.detection == Detection(lesions=2, found=1, false_alarms=1)
    assert (small.above, large.most) == (0, None)
    assert 4 <= small.most == medium.above < 8
    assert 16 <= medium.most == large.above < 25


def test_images_without_lesions_are_told_apart_by_whether_anything_was_predicted():
    nothing, something = boxes(), boxes((3, 3, 4, 4), (20, 20, 4, 4))

    summary = summarise_detection(
        [match_components(*masks) for masks in ((nothing, nothing), (something, nothing), (nothing, something))]
    )

    assert (summary.n_cases, summary.n_empty, summary.n_empty_with_alarms) == (3, 2, 1)
    assert summary.overall == Detection(lesions=2, found=0, false_alarms=2)
    assert summary.alarms_per_case == pytest.approx(2 / 3)
    assert summary.sizes == ()
    assert math.isnan(summarise_detection([]).alarms_per_case)


def test_labels_and_regions_of_label_maps_are_detected_each_for_itself():
    truth = np.zeros((1, 20, 20), np.uint8)
    truth[0, 2:6, 2:6], truth[0, 2:6, 6:10], truth[0, 15:] = 1, 2, 255
    prediction = truth * 0
    prediction[0, 2:6, 2:6], prediction[0, 16:18, 2:6] = 1, 2

    one, two, region = detect([(prediction, truth), (truth[0] * 0, truth[0] * 0)], [(1,), (2,), (1, 2)])

    assert one.overall == Detection(lesions=1, found=1, false_alarms=0)
    assert two.overall == Detection(lesions=1, found=0, false_alarms=0)
    assert region.overall == Detection(lesions=1, found=1, false_alarms=0)
    assert (one.n_cases, one.n_empty, one.n_empty_with_alarms) == (2, 1, 0)


def test_thousands_of_small_components_are_matched_within_seconds_and_little_memory():
    rng = np.random.default_rng(0)
    truth = rng.random((1500, 1500)) < 0.02
    prediction = truth ^ (rng.random((1500, 1500)) < 0.005)

    detection = match_components(prediction, truth).detection

    assert detection.lesions > 30_000
    assert detection.sensitivity > 0.9


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"a prediction of \(2, 3\) px cannot be matched with a truth of \(3, 2\) px"):
        match_components(np.zeros((2, 3), bool), np.zeros((3, 2), bool))


@pytest.mark.parametrize("least_iou", [0.0, -0.1, 1.5, math.nan])
def test_a_least_iou_that_is_none_is_refused(least_iou):
    with pytest.raises(ValueError, match="is not above 0 and at most 1"):
        match_components(np.zeros((2, 2), bool), np.zeros((2, 2), bool), least_iou=least_iou)
