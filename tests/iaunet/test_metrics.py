import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from iaunet.metrics import (
    METRICS,
    Counts,
    count,
    count_case,
    hd95,
    score_case,
    surface_dice,
    surface_distances,
)

IMAGES = st.tuples(st.integers(1, 9), st.integers(1, 9))
VOLUMES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
SHAPES = st.one_of(IMAGES, VOLUMES)
COUNTS = st.builds(Counts, **dict.fromkeys(("tp", "fp", "fn", "tn"), st.integers(0, 1000)))
SPACINGS = st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.5]), min_size=3, max_size=3)

EMPTY = np.zeros((6, 7), bool)
DOT = EMPTY.copy()
DOT[2, 3] = True


@st.composite
def mask_pairs(draw, shapes=SHAPES):
    shape = draw(shapes)
    return draw(arrays.arrays(bool, shape)), draw(arrays.arrays(bool, shape))


def surface_by_scipy(mask):
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))


def distances_of_all_pairs(prediction, truth, spacing):
    points, others = (surface_by_scipy(mask) * spacing for mask in (prediction, truth))
    pairs = np.linalg.norm(points[:, None] - others[None], axis=-1)
    return (pairs.min(axis=1), pairs.min(axis=0)) if pairs.size else (np.empty(0), np.empty(0))


def by_name(counts):
    return {name: value for name, value in counts.metrics().items() if not math.isnan(value)}


def test_overlap_metrics_of_a_known_count():
    counts = Counts(tp=6, fp=2, fn=4, tn=8)

    assert counts.metrics() == pytest.approx(
        {"dice": 12 / 18, "iou": 6 / 12, "precision": 6 / 8, "sensitivity": 6 / 10, "specificity": 8 / 10}
    )


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (EMPTY, EMPTY, {"dice": 1, "iou": 1, "specificity": 1}),
        (DOT, EMPTY, {"dice": 0, "iou": 0, "precision": 0, "specificity": 41 / 42}),
        (EMPTY, DOT, {"dice": 0, "iou": 0, "sensitivity": 0, "specificity": 1}),
        (~EMPTY, ~EMPTY, {"dice": 1, "iou": 1, "precision": 1, "sensitivity": 1}),
    ],
)
def test_empty_and_full_masks_leave_out_what_is_undefined(prediction, truth, expected):
    assert by_name(count(prediction, truth)) == pytest.approx(expected)


@given(mask_pairs())
def test_counts_are_those_of_the_definitions(masks):
    prediction, truth = masks

    assert count(prediction, truth) == Counts(
        tp=(prediction & truth).sum(),
        fp=(prediction & ~truth).sum(),
        fn=(~prediction & truth).sum(),
        tn=(~prediction & ~truth).sum(),
    )


@given(COUNTS)
def test_dice_follows_from_iou(counts):
    assert counts.dice == pytest.approx(2 * counts.iou / (1 + counts.iou))


@given(COUNTS)
def test_swapping_the_masks_swaps_precision_and_sensitivity(counts):
    swapped = Counts(tp=counts.tp, fp=counts.fn, fn=counts.fp, tn=counts.tn)

    assert (swapped.dice, swapped.iou) == (counts.dice, counts.iou)
    np.testing.assert_equal((swapped.precision, swapped.sensitivity), (counts.sensitivity, counts.precision))


@given(mask_pairs(), st.data())
def test_counts_of_parts_add_up_and_pixels_outside_valid_are_left_out(masks, data):
    prediction, truth = masks
    valid = data.draw(arrays.arrays(bool, truth.shape))

    inside, outside = count(prediction, truth, valid), count(prediction, truth, ~valid)

    assert sum([inside, outside], Counts()) == count(prediction, truth)
    assert inside == count(prediction[valid], truth[valid])


def test_the_truth_is_empty_without_positives():
    assert count(DOT, EMPTY).truth_is_empty
    assert not count(EMPTY, DOT).truth_is_empty


@given(mask_pairs(), SPACINGS, st.booleans())
def test_surface_distances_are_those_of_all_pairs(masks, spacing, known):
    prediction, truth = masks
    spacing = spacing[: truth.ndim]

    there, back = surface_distances(prediction, truth, spacing if known else None)

    expected = distances_of_all_pairs(prediction, truth, spacing if known else 1)
    np.testing.assert_allclose(there, expected[0])
    np.testing.assert_allclose(back, expected[1])


@given(mask_pairs(), SPACINGS)
def test_distance_metrics_are_symmetric_and_scale_with_the_spacing(masks, spacing):
    prediction, truth = masks
    spacing = np.array(spacing[: truth.ndim])

    distance, share = hd95(prediction, truth, spacing), surface_dice(prediction, truth, spacing, 1.0)

    assert hd95(truth, prediction, spacing) == pytest.approx(distance, nan_ok=True)
    assert surface_dice(truth, prediction, spacing, 1.0) == pytest.approx(share, nan_ok=True)
    assert hd95(prediction, truth, 3 * spacing) == pytest.approx(3 * distance, nan_ok=True)
    assert surface_dice(prediction, truth, 3 * spacing, 3.0) == pytest.approx(share, nan_ok=True)


@given(arrays.arrays(bool, SHAPES))
def test_a_mask_agrees_with_itself_wherever_it_has_a_surface(mask):
    assert hd95(mask, mask) == (pytest.approx(0) if mask.any() else pytest.approx(math.nan, nan_ok=True))
    assert surface_dice(mask, mask, tolerance=0.0) == pytest.approx(1 if mask.any() else math.nan, nan_ok=True)


@pytest.mark.parametrize(("prediction", "truth"), [(EMPTY, EMPTY), (DOT, EMPTY), (EMPTY, DOT)])
def test_distances_are_undefined_where_either_mask_is_empty(prediction, truth):
    assert math.isnan(hd95(prediction, truth))
    assert math.isnan(surface_dice(prediction, truth))


def test_hd95_is_the_larger_of_the_two_directed_percentiles():
    truth = np.zeros((1, 101), bool)
    truth[0, 0] = True
    prediction = np.ones((1, 101), bool)

    assert hd95(prediction, truth) == pytest.approx(95)  # 0, 1, ..., 100 px there, 0 px back
    assert hd95(prediction, truth, (1.0, 0.2)) == pytest.approx(19)


def test_the_border_of_the_image_belongs_to_the_surface():
    full = np.ones((5, 5), bool)
    inner = np.pad(np.ones((3, 3), bool), 1)

    there, back = surface_distances(full, inner)

    assert (there.size, back.size) == (16, 8)
    assert sorted(set(there)) == pytest.approx([1, math.sqrt(2)])


def test_surface_dice_counts_both_surfaces_and_includes_the_tolerance():
    left, right = np.zeros((1, 9), bool), np.zeros((1, 9), bool)
    left[0, [0, 4]] = True
    right[0, 3] = True

    assert surface_dice(left, right, tolerance=1.0) == pytest.approx(2 / 3)
    assert surface_dice(left, right, tolerance=0.9) == 0
    assert surface_dice(left, right, (0.1, 0.1), tolerance=0.3) == 1
    assert surface_dice(left, right, tolerance=3.0) == surface_dice(left, right, tolerance=9.0) == 1


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"prediction of \(2, 3\) px .* truth of \(3, 2\) px"):
        count(np.ones((2, 3), bool), np.ones((3, 2), bool))
    with pytest.raises(ValueError, match=r"prediction of \(2, 3\) px .* truth of \(1, 3\) px"):
        surface_distances(np.ones((2, 3), bool), np.ones((1, 3), bool))


def random_case(values=4, shape=(20, 24)):
    rng = np.random.default_rng(0)
    return rng.integers(0, values, (2, *shape), dtype=np.uint8)


def test_a_case_is_scored_label_by_label_with_every_metric():
    prediction, truth = random_case()

    scores = score_case(prediction, truth, [1, 3], spacing_mm=(0.5, 2.0))

    assert list(scores) == [1, 3]
    for label, metrics in scores.items():
        masks = prediction == label, truth == label
        assert list(metrics) == list(METRICS)
        assert metrics == count(*masks).metrics() | {
            "hd95": hd95(*masks, (0.5, 2.0)),
            "surface_dice": surface_dice(*masks, (0.5, 2.0), tolerance=1.0),
        }


def test_a_region_is_scored_as_one_binary_mask():
    prediction, truth = random_case()

    scores = score_case(prediction, truth, [(1, 2)])

    joined = score_case(np.isin(prediction, (1, 2)) * np.uint8(1), np.isin(truth, (1, 2)) * np.uint8(1), [1])
    assert scores[1, 2] == joined[1]


def test_ignored_pixels_leave_counts_and_distances():
    prediction, truth = random_case(3)
    truth[:, 12:] = 255

    ignoring = score_case(prediction, truth, [1, 2], ignore=255)

    assert ignoring == score_case(prediction[:, :12], truth[:, :12], [1, 2])
    assert count_case(prediction, truth, [1], ignore=255) == count_case(prediction[:, :12], truth[:, :12], [1])


def test_a_volume_is_scored_as_one():
    prediction, truth = random_case(2, (3, 8, 9))

    scores = score_case(prediction, truth, [1], spacing_mm=(5.0, 1.0, 1.0))

    there, back = distances_of_all_pairs(prediction == 1, truth == 1, (5.0, 1.0, 1.0))
    assert scores[1]["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))


def test_the_list_of_metrics_is_what_is_scored_and_says_how_it_prints():
    assert [METRICS[name].title for name in ("dice", "hd95")] == ["Dice", "HD95"]
    assert METRICS["dice"].text(0.87456) == "0.875"
    assert METRICS["hd95"].text(12.3456) == "12.35"
    assert METRICS["precision"].text(math.nan) == "-"
