import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from iaunet.dataset import IGNORED, MaskCoding
from iaunet.inference.crossval import summarise
from iaunet.inference.postprocessing import NO_CLEANING, LabelCleaning, clean_labels
from iaunet.inference.postprocessing_search import (
    THRESHOLDS,
    Choice,
    OutOfFoldCase,
    search,
    tabulate,
)
from iaunet.metrics import count_case
from iaunet.planners.plan import InferencePlan
from iaunet.records import from_json, to_json

TWO = {"labels": ("a", "b"), "coding": MaskCoding(kind="values", values=(1, 2), written=(1, 2))}
REGIONS = {
    "labels": ("whole", "core"),
    "coding": MaskCoding(
        kind="values", values=(1, 2), written=(1, 2), regions=((1, 2), (2,)), regions_class_order=(1, 2)
    ),
}
SHAPES = st.one_of(
    st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(2, 4), st.integers(1, 6), st.integers(1, 6)),
)
LEVELS = [0.0, 0.1, 0.3, 0.34, 0.45, 0.5, 0.52, 0.65, 0.7, 0.9, 1.0, math.nan]
CLEANINGS = [
    LabelCleaning(smallest=smallest, largest_only=largest_only, fill_holes=fill_holes)
    for smallest, largest_only, fill_holes in itertools.product([0, 2, 5], [False, True], [False, True])
]


@st.composite
def small_cases(draw, outputs):
    shape = draw(SHAPES)
    levels = draw(arrays.arrays(np.float32, (outputs, *shape), elements=st.sampled_from(np.float32(LEVELS).tolist())))
    values = [0, 0, *range(1, outputs + 1), IGNORED]
    truth = draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from(values)))
    return OutOfFoldCase("case", 0, "group", levels, truth)


def with_thresholds(plan, thresholds):
    return dataclasses.replace(plan, inference=InferencePlan(mirroring=False, thresholds=tuple(thresholds)))


def dice_of_pixels(case, plan, thresholds, cleaning, labels):
    """Mean Dice of labels or regions, from the mask that prediction would give."""
    mask = clean_labels(with_thresholds(plan, thresholds).decide(case.probabilities), cleaning)
    return np.mean([count.dice for count in count_case(mask, case.truth, labels, IGNORED).values()])


def assert_tables_agree(case, plan, thresholds_of):
    own = plan.inference.thresholds
    tables = tabulate(case, plan).labels
    for index, table in enumerate(tables):
        for threshold, steps in itertools.product(thresholds_of, CLEANINGS):
            moved = own if plan.coding.regions else (*own[:index], threshold, *own[index + 1 :])
            cleaning = [steps if other == index else NO_CLEANING for other in range(len(tables))]
            dice = dice_of_pixels(case, plan, moved, cleaning, [index + 1])
            assert table.dice(Choice(threshold, steps)) == dice, (index, threshold, steps)


@settings(max_examples=60)
@given(small_cases(outputs=1))
def test_tables_know_the_dice_of_every_choice_for_one_label(make_plan, case):
    assert_tables_agree(case, make_plan(), THRESHOLDS)


@settings(max_examples=40)
@given(small_cases(outputs=2), st.sampled_from([(0.5, 0.5), (0.4, 0.62), (0.2, 0.9)]))
def test_tables_know_the_dice_of_every_choice_for_several_labels(make_plan, case, own):
    plan = with_thresholds(make_plan(**TWO), own)

    assert_tables_agree(case, plan, THRESHOLDS)


@settings(max_examples=40)
@given(small_cases(outputs=2))
def test_tables_know_the_dice_of_every_cleaning_of_regions(make_plan, case):
    assert_tables_agree(case, make_plan(**REGIONS), [0.5])


def test_tables_know_the_dice_of_rings_in_rings(make_plan):
    distance = np.abs(np.indices((17, 17)) - 8).max(axis=0)  # rings of 64, 32 and 1 pixels and the gaps between them
    probabilities = np.where(distance % 4 == 0, [[0.9]], 0.1).astype(np.float32)[None, None]
    truth = (np.random.default_rng(0).random((1, 17, 17)) < 0.5).astype(np.uint8)
    case = OutOfFoldCase("rings", 0, "group", probabilities, truth)
    (table,) = tabulate(case, make_plan()).labels

    for smallest, largest_only in itertools.product([0, 2, 33, 65], [False, True]):
        steps = LabelCleaning(smallest=smallest, largest_only=largest_only, fill_holes=True)
        assert table.dice(Choice(0.5, steps)) == dice_of_pixels(case, make_plan(), (0.5,), [steps], [1])


def disc(shape, middle, radius):
    places = np.indices(shape)
    return sum((axis - at) ** 2 for axis, at in zip(places, middle, strict=True)) <= radius**2


def lesion_case(number, shape=(1, 40, 40), n_lesions=1):
    """Truth [slices, H, W] of discs of radius 5 and the probabilities 0.9 in them and 0.1 elsewhere."""
    rng = np.random.default_rng(number)
    truth = np.zeros(shape, np.bool_)
    for lesion in range(n_lesions):
        middle = (shape[0] // 2, 8 + rng.integers(0, 3), 8 + 20 * lesion + rng.integers(0, 3))
        truth |= disc(shape, middle, 5)
    return rng, truth.astype(np.uint8), np.where(truth, 0.9, 0.1).astype(np.float32)


def as_case(number, probabilities, truth):
    """Cases of five folds, two a group."""
    maps = probabilities if probabilities.ndim == 4 else probabilities[None]
    return OutOfFoldCase(f"case {number}", number // 2 % 5, number // 2, maps.astype(np.float32), truth)


def search_list(cases, plan, **options):
    return search(lambda: iter(cases), plan, **options)


def speckled(number, shape=(1, 40, 40)):
    """Twenty false pixels at 0.8 far from the lesion, no two of which touch."""
    rng, truth, probabilities = lesion_case(number, shape)
    places = rng.permutation([(row, column) for row in range(22, 40, 2) for column in range(0, 40, 2)])[:20]
    for row, column in places:
        probabilities[shape[0] // 2, row, column] = 0.8
    return as_case(number, probabilities, truth)


def test_speckle_is_removed_and_the_gain_is_what_it_cost(make_plan):
    cases = [speckled(number) for number in range(20)]

    result = search_list(cases, make_plan())

    n_true = 81  # pixels of a disc of radius 5
    cost = 1 - 2 * n_true / (2 * n_true + 20)
    assert result.is_kept
    assert result.postprocessing == result.fitted
    assert result.fitted.thresholds == (0.5,)
    assert result.fitted.cleaning == (LabelCleaning(smallest=20),)  # a quarter of the smallest lesion
    assert result.dice_before == pytest.approx(1 - cost)
    assert result.dice_fitted == result.dice_nested == 1
    assert (result.gain.mean, result.gain.low, result.gain.high) == pytest.approx((cost, cost, cost))
    assert (result.p, result.largest_p) == (2 / 2**10, 0.05 / 4)
    assert result.why == (
        "kept: foreground from 0.5 on, without components under 20 px: on folds it was not fitted on Dice changes by "
        "+0.1099 (95 % +0.1099 to +0.1099)"
    )


def test_speckle_in_volumes_is_removed_by_voxels(make_plan):
    cases = [speckled(number, shape=(9, 40, 40)) for number in range(20)]

    result = search_list(cases, make_plan())

    assert result.is_kept
    assert result.fitted.cleaning[0].smallest > 100
    assert result.dice_nested == 1


def test_a_threshold_that_all_cases_share_is_found(make_plan):
    cases = []
    for number in range(20):
        _, truth, probabilities = lesion_case(number)
        rim = disc(truth.shape, np.argwhere(truth).mean(axis=0), 7) & (truth == 0)
        probabilities[rim] = 0.57
        cases.append(as_case(number, probabilities, truth))

    result = search_list(cases, make_plan())

    assert result.is_kept
    assert result.fitted.thresholds == (0.6,)
    assert {choice.thresholds for choice in result.of_folds.values()} == {(0.6,)}
    assert result.fitted.cleaning == (NO_CLEANING,)


def test_the_largest_component_alone_is_not_taken_where_truth_has_two_lesions(make_plan):
    def false_alarm(number, n_lesions):
        _, truth, probabilities = lesion_case(number, n_lesions=n_lesions)
        probabilities[disc(truth.shape, (0, 30, 30), 4.5)] = 0.8
        return as_case(number, probabilities, truth)

    one = search_list([false_alarm(number, 1) for number in range(20)], make_plan())
    two = search_list([false_alarm(number, 2) for number in range(20)], make_plan())

    assert one.fitted.cleaning == (LabelCleaning(largest_only=True),)
    assert one.is_kept
    assert one.dice_nested == 1
    assert not two.fitted.cleaning[0].largest_only
    assert two.postprocessing.is_nothing((0.5,))


def test_holes_are_filled_where_truth_has_none_and_not_where_it_has(make_plan):
    def pierced(number, truth_too):
        _, truth, probabilities = lesion_case(number)
        hole = disc(truth.shape, np.argwhere(truth).mean(axis=0), 2)
        probabilities[hole] = 0.2
        return as_case(number, probabilities, np.where(hole & truth_too, 0, truth).astype(np.uint8))

    filled = search_list([pierced(number, False) for number in range(20)], make_plan())
    kept = search_list([pierced(number, True) for number in range(20)], make_plan())

    assert filled.postprocessing.cleaning == (LabelCleaning(fill_holes=True),)
    assert filled.dice_nested == 1
    assert kept.why == "not kept: no threshold and no cleaning raises Dice on all cases"
    assert (kept.dice_before, kept.gain.mean) == (1, 0)


def test_false_alarms_on_ignored_pixels_are_no_reason_to_clean(make_plan):
    cases = [speckled(number) for number in range(20)]
    for case in cases:
        case.truth[:, 22:] = IGNORED

    result = search_list(cases, make_plan())

    assert result.dice_before == 1
    assert result.postprocessing.is_nothing((0.5,))


def test_no_threshold_is_chosen_on_the_fold_that_it_is_scored_on(make_plan):
    cases = []
    for number in range(20):
        _, truth, probabilities = lesion_case(number)
        rim = disc(truth.shape, np.argwhere(truth).mean(axis=0), 7) & (truth == 0)
        case = as_case(number, np.where(rim, 0.57, probabilities), truth)
        cases.append(case)
        if case.fold == 0:  # here the rim belongs to the lesion
            truth[rim] = 1

    result = search_list(cases, make_plan())

    assert {fold: choice.thresholds[0] for fold, choice in result.of_folds.items()} == dict.fromkeys("01234", 0.6)
    before = [dice_of_pixels(case, make_plan(), (0.5,), [NO_CLEANING], [1]) for case in cases]
    nested = [dice_of_pixels(case, make_plan(), (0.6,), [NO_CLEANING], [1]) for case in cases]
    assert [after < 1 for after in nested] == [case.fold == 0 for case in cases]
    expected = summarise(
        np.subtract(nested, before), [case.group for case in cases], [case.fold for case in cases], seed=3
    )
    assert search_list(cases, make_plan(), seed=3).gain == expected


def test_the_sizes_that_are_tried_are_of_the_other_folds_lesions(make_plan):
    cases = [speckled(number) for number in range(20)]
    for case in cases:
        if case.fold == 0:  # its smallest lesion has 30 pixels, all others 81
            case.truth[0, 30:35, 30:36] = 1
            case.probabilities[0, 0, 30:35, 30:36] = 0.9

    result = search_list(cases, make_plan())

    assert result.fitted.cleaning[0].smallest < 20
    assert result.of_folds["0"].cleaning[0].smallest == 20
    assert result.of_folds["1"].cleaning[0].smallest < 20


def two_label_case(number, maps_of):
    """A disc of label 1 to the left, of label 2 to the right, and what ``maps_of`` makes of their probabilities."""
    rng, truth, probabilities = lesion_case(number, n_lesions=2)
    right = np.arange(40) > 17
    maps = np.stack([np.where(right, 0.1, probabilities), np.where(right, probabilities, 0.1)])
    return as_case(number, maps_of(rng, maps), np.where(right, 2 * truth, truth).astype(np.uint8))


def test_each_label_gets_what_it_needs(make_plan):
    def disturbed(rng, maps):
        for row, column in rng.permutation([(row, column) for row in range(20, 38, 3) for column in range(0, 39, 3)])[
            :20
        ]:
            maps[0, 0, row, column] = 0.8
        maps[1][maps[1] > 0.5] = 0.45
        return maps

    cases = [two_label_case(number, disturbed) for number in range(20)]

    result = search_list(cases, make_plan(**TWO))

    assert result.is_kept
    assert result.fitted.thresholds[0] == 0.5
    assert result.fitted.thresholds[1] < 0.45
    assert result.fitted.cleaning == (LabelCleaning(smallest=20), NO_CLEANING)
    assert result.dice_nested == 1
    assert result.why.startswith("kept: a from 0.5 on, without components under 20 px; b from 0.3 on: on folds")


@pytest.mark.parametrize("fields", [{}, TWO, REGIONS], ids=["one", "two", "regions"])
def test_reported_dice_is_that_of_the_masks_that_prediction_gives(make_plan, fields):
    plan = make_plan(**fields)
    rng = np.random.default_rng(5)
    n = len(plan.labels)
    cases = [
        as_case(number, rng.random((n, 1, 9, 9)) ** 0.8, rng.integers(0, n + 1, (1, 9, 9)).astype(np.uint8))
        for number in range(15)
    ]

    result = search_list(cases, plan)

    def dice(case, found):
        return dice_of_pixels(case, plan, found.thresholds, found.cleaning, plan.coding.outputs)

    before = [dice_of_pixels(case, plan, (0.5,) * n, [NO_CLEANING], plan.coding.outputs) for case in cases]
    nested = [dice(case, result.of_folds[str(case.fold)]) for case in cases]
    assert result.dice_before == pytest.approx(np.mean(before))
    assert result.dice_fitted == pytest.approx(np.mean([dice(case, result.fitted) for case in cases]))
    assert result.dice_nested == pytest.approx(np.mean(nested))
    assert result.gain.mean == pytest.approx(np.mean(nested) - np.mean(before))
    assert result.dice_fitted > result.dice_before


def test_regions_keep_the_plans_thresholds_and_are_cleaned_as_painted(make_plan):
    plan = with_thresholds(make_plan(**REGIONS), (0.5, 0.45))
    cases = []
    for number in range(20):
        _, truth, whole = lesion_case(number)
        core = disc(truth.shape, np.argwhere(truth).mean(axis=0), 3)
        maps = np.stack([whole, np.where(core, 0.9, 0.1)])
        maps[:, 0, 24::4, ::5] = 0.8  # paints the core's label
        cases.append(as_case(number, maps, np.where(core, 2, truth).astype(np.uint8)))

    result = search_list(cases, plan)

    assert result.is_kept
    assert result.fitted.thresholds == (0.5, 0.45)
    assert result.fitted.cleaning[0] == NO_CLEANING
    assert result.fitted.cleaning[1].smallest > 1
    assert result.dice_nested == 1
    assert result.why.startswith("kept: whole as it is; core without components under ")


def noise_case(rng, number):
    """A certain finding of Dice 0.8, and uncertain blocks of which as many are true as to take any changes Dice by
    0.0004 at most."""
    truth, probabilities = np.zeros((1, 30, 30), np.uint8), np.full((1, 30, 30), 0.05)
    truth[0, :10, :10] = 1
    probabilities[0, :8, :10] = 0.9
    probabilities[0, :2, 10:20] = 0.9
    blocks = rng.permutation([(row, column) for row in range(14, 27, 4) for column in range(0, 27, 4)])[:8]
    for row, column in blocks:
        here = (0, slice(row, row + 3), slice(column, column + 3))
        probabilities[here] = rng.uniform(0.25, 0.75, (3, 3))
        truth[here] = rng.random() < 0.363
    return as_case(number, probabilities, truth)


def test_noise_is_not_kept_more_often_than_chance_allows(make_plan):
    n_kept, gains = 0, []
    for draw in range(40):
        rng = np.random.default_rng(draw)
        result = search_list([noise_case(rng, number) for number in range(30)], make_plan())
        n_kept += result.is_kept
        gains.append((result.dice_fitted - result.dice_before, result.gain.mean))

    fitted, nested = np.mean(gains, axis=0)
    assert n_kept <= 1
    assert fitted > 0.001
    assert nested < fitted / 4


def test_a_gain_that_can_be_chance_is_not_kept(make_plan):
    cases = []
    for number in range(20):
        _, truth, probabilities = lesion_case(number)
        probabilities[disc(truth.shape, (0, 30, 30), 3)] = 0.57 if number in (4, 17) else 0.1
        cases.append(as_case(number, probabilities, truth))

    result = search_list(cases, make_plan())

    assert result.gain.mean > 0.01
    assert result.gain.low == 0
    assert not result.is_kept
    assert result.why.startswith("not kept: on folds it was not fitted on Dice changes by +0.0")
    assert result.why.endswith("which can be chance")
    assert result.fitted.thresholds == (0.6,)
    assert result.postprocessing.thresholds == (0.5,)


def test_a_gain_in_few_groups_is_not_kept_even_where_all_gain(make_plan):
    cases = [dataclasses.replace(speckled(number), group=number % 6) for number in range(30)]

    result = search_list(cases, make_plan())

    assert result.gain.low > 0.1
    assert result.p == 2 / 2**6
    assert not result.is_kept
    assert result.why.endswith("(95 % +0.1099 to +0.1099), which can be chance: p is 0.031, above 0.013")


def test_the_more_is_decided_the_less_chance_is_allowed(make_plan):
    case = [as_case(0, np.full((2, 1, 3, 3), 0.1), np.zeros((1, 3, 3), np.uint8))]

    assert search_list(case, make_plan(**TWO)).largest_p == 0.05 / 8
    assert search_list(case, make_plan(**REGIONS)).largest_p == 0.05 / 6


def test_a_gain_too_small_to_matter_is_not_kept(make_plan):
    cases = []
    for number in range(20):
        _, truth, probabilities = lesion_case(number, shape=(1, 90, 90))
        truth[0, 30:80, 30:80] = 1
        probabilities[0, 30:80, 30:80] = 0.9
        probabilities[0, 0, 0] = 0.57
        cases.append(as_case(number, probabilities, truth))

    result = search_list(cases, make_plan())

    assert 0 < result.gain.low < 0.001
    assert not result.is_kept
    assert result.why.endswith("(95 % +0.0002 to +0.0002), less than 0.001")


@pytest.mark.parametrize(
    ("changes", "n", "why"),
    [
        ({}, 9, "not kept: 9 cases are too few to tell a gain from chance, 10 are needed"),
        ({"fold": 2}, 20, "not kept: all cases are of one fold, there is no other to measure a gain on"),
        ({"group": "A"}, 20, "not kept: all cases are of one group, a gain could be that group's alone"),
    ],
)
def test_nothing_is_kept_where_no_gain_can_be_measured(make_plan, changes, n, why):
    cases = [dataclasses.replace(speckled(number), **changes) for number in range(n)]

    result = search_list(cases, make_plan())

    assert result.why == why
    assert not result.is_kept
    assert result.postprocessing.is_nothing((0.5,))
    assert result.of_folds == {}
    assert math.isnan(result.dice_nested)
    assert result.dice_fitted == 1
    assert result.fitted.cleaning == (LabelCleaning(smallest=20),)


def test_empty_masks_that_agree_count_as_one(make_plan):
    empty = np.zeros((1, 40, 40), np.uint8)
    cases = [as_case(number, np.full(empty.shape, 0.1), empty) for number in range(20)]

    result = search_list(cases, make_plan())

    assert result.dice_before == result.dice_fitted == 1
    assert result.postprocessing.is_nothing((0.5,))


def test_the_same_cases_give_the_same_result_and_it_survives_json(make_plan):
    cases = [speckled(number) for number in range(12)]

    result = search_list(cases, make_plan(), seed=1)

    assert search_list(cases, make_plan(), seed=1) == result
    assert from_json(type(result), json.loads(json.dumps(to_json(result)))) == result


def test_without_cases_there_is_nothing_to_search_on(make_plan):
    with pytest.raises(ValueError, match="no cases to search a postprocessing on"):
        search_list([], make_plan())
