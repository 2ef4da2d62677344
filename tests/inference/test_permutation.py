import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from iaunet.inference import permutation
from iaunet.inference.permutation import holm, sign_flip_test

P_VALUES = st.dictionaries(st.text(max_size=3), st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=8)


def p_by_hand(group_means):
    """Of the signs of all groups the share whose mean is as far from zero."""
    seen = abs(math.fsum(group_means))
    flips = itertools.product([1, -1], repeat=len(group_means))
    sums = [abs(math.fsum(sign * mean for sign, mean in zip(signs, group_means, strict=True))) for signs in flips]
    return sum(value >= seen - 1e-9 for value in sums) / len(sums)


@given(st.lists(st.integers(-6, 6), min_size=2, max_size=9))
def test_few_groups_are_tested_against_every_flip(tenths):
    differences = [value / 10 for value in tenths]  # 0.1 + 0.2 and 0.3 are one sum

    test = sign_flip_test(differences)

    assert test.exact
    assert test.p == p_by_hand(differences)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.1, 0.1], 2 / 4),
        ([0.1, -0.1], 1),
        ([0.3, 0.2, 0.1], 2 / 8),
        ([0.3, 0.2, -0.1], 4 / 8),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 2 / 32),
        ([0.0, 0.0, 0.0], 1),
        ([0.1 + 0.2, -0.3], 1),
    ],
)
def test_small_cases_counted_by_hand(differences, p):
    assert sign_flip_test(differences).p == p


@pytest.mark.parametrize("n", [2, 5, 10, 13])
def test_no_p_is_below_what_so_many_groups_allow(n):
    assert sign_flip_test(np.linspace(0.5, 0.9, n)).p == 2 / 2**n


def test_drawn_flips_come_close_to_all_flips():
    differences = np.random.default_rng(3).normal(0.06, 0.1, 16)

    every = sign_flip_test(differences, n_permutations=2**16)
    drawn = sign_flip_test(differences, n_permutations=2**16 - 1)

    assert (every.exact, drawn.exact) == (True, False)
    assert 0.01 < every.p < 0.5
    assert drawn.p == pytest.approx(every.p, abs=4 * math.sqrt(every.p * (1 - every.p) / 2**16))


def test_it_agrees_with_the_permutation_test_of_scipy():
    differences = np.random.default_rng(1).normal(0.05, 0.1, 11)

    expected = stats.permutation_test(
        (differences, np.zeros(11)), lambda a, b: abs(np.mean(a - b)), permutation_type="samples", alternative="greater"
    )

    assert sign_flip_test(differences).p == pytest.approx(expected.pvalue)


def test_drawn_flips_count_what_was_seen_as_one_of_them():
    test = sign_flip_test([0.5] * 40, n_permutations=999)

    assert (test.exact, test.n_groups, test.p) == (False, 40, 1 / 1000)


@pytest.mark.parametrize("n", [8, 50])
def test_it_does_not_matter_which_network_is_named_first(n):
    differences = np.random.default_rng(n).normal(0.02, 0.1, n)

    one, other = sign_flip_test(differences), sign_flip_test(-differences)

    assert one.p == other.p
    assert one.mean_difference == -other.mean_difference


@pytest.mark.parametrize("n", [7, 30])
def test_the_unit_of_the_metric_does_not_matter(n):
    differences = np.random.default_rng(n).normal(0.02, 0.1, n)

    assert sign_flip_test(differences).p == sign_flip_test(1000 * differences).p == sign_flip_test(differences / 1e6).p


@pytest.mark.parametrize(("n", "n_permutations"), [(9, 10_000), (30, 200)])
def test_without_a_difference_small_p_values_are_as_rare_as_they_say(n, n_permutations):
    rng = np.random.default_rng(0)

    p_values = np.array([sign_flip_test(rng.normal(0, 1, n), None, n_permutations).p for _ in range(1000)])

    for level in (0.05, 0.2, 0.5, 0.8):
        assert np.mean(p_values <= level) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 1000))


def test_cases_of_one_group_count_as_one():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(6), 20)
    differences = rng.normal(0.1, 0.2, 6)[groups] + rng.normal(0, 0.01, 120)

    grouped, alone = sign_flip_test(differences, groups.tolist()), sign_flip_test(differences)

    means = [differences[groups == group].mean() for group in range(6)]
    assert grouped.p == p_by_hand(means)
    assert (grouped.n_cases, grouped.n_groups) == (120, 6)
    assert grouped.p > 10 * alone.p
    assert grouped.mean_difference == alone.mean_difference == pytest.approx(differences.mean())


def test_groups_weigh_the_same_in_the_test_and_by_their_cases_in_the_mean():
    groups = ["large"] * 8 + ["b", "c"]
    differences = [0.1] * 8 + [-0.4, -0.4]

    test = sign_flip_test(differences, groups)

    assert test.mean_difference == pytest.approx(0.0)
    assert test.p == p_by_hand([0.1, -0.4, -0.4])


def test_cases_where_either_network_is_undefined_are_left_out():
    nan = math.nan

    test = sign_flip_test([0.1, nan, 0.3, nan, 0.5, nan], ["a", "a", "b", "b", "b", "c"])

    assert test == sign_flip_test([0.1, 0.3, 0.5], ["a", "b", "b"])
    assert (test.n_cases, test.n_groups) == (3, 2)


@pytest.mark.parametrize(
    ("differences", "groups", "mean", "n_groups"),
    [([], None, math.nan, 0), ([math.nan] * 3, None, math.nan, 0), ([0.2, 0.4], ["a", "a"], 0.3, 1)],
)
def test_nothing_is_claimed_of_fewer_than_two_groups(differences, groups, mean, n_groups):
    test = sign_flip_test(differences, groups)

    assert math.isnan(test.p)
    assert test.mean_difference == pytest.approx(mean, nan_ok=True)
    assert test.n_groups == n_groups


def test_the_seed_decides_what_is_drawn():
    differences = np.random.default_rng(0).normal(0.03, 0.1, 40)

    first, again, other = (sign_flip_test(differences, seed=seed) for seed in (3, 3, 4))

    assert first == again
    assert first.p != other.p


@pytest.mark.parametrize("n_permutations", [200, 1024])
def test_flipping_in_small_steps_gives_the_same_p(monkeypatch, n_permutations):
    differences = np.random.default_rng(0).normal(0.05, 0.1, 10)
    at_once = sign_flip_test(differences, n_permutations=n_permutations)

    monkeypatch.setattr(permutation, "SIGNS_AT_ONCE", 70)

    assert sign_flip_test(differences, n_permutations=n_permutations) == at_once


def test_groups_are_one_a_case_and_differences_finite():
    with pytest.raises(ValueError, match="3 groups for 2 cases"):
        sign_flip_test([0.1, 0.2], ["a", "b", "c"])
    with pytest.raises(ValueError, match="a difference is infinite: give NaN"):
        sign_flip_test([0.1, math.inf])


def test_p_values_are_adjusted_as_by_hand():
    adjusted = holm({"unet": 0.01, "resunet": 0.04, "unext": 0.03, "swin_unet": 0.005})

    assert list(adjusted) == ["unet", "resunet", "unext", "swin_unet"]
    assert adjusted == pytest.approx({"unet": 0.03, "resunet": 0.06, "unext": 0.06, "swin_unet": 0.02})


def test_no_adjusted_p_value_is_above_one():
    assert holm({"a": 0.6, "b": 0.7, "c": 1.0}) == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_a_test_that_says_nothing_is_none():
    adjusted = holm({"a": 0.02, "b": math.nan, "c": 0.03})

    assert adjusted == pytest.approx({"a": 0.04, "b": math.nan, "c": 0.04}, nan_ok=True)
    assert holm({}) == {}


@given(P_VALUES)
def test_adjusting_keeps_the_order_and_lowers_nothing(p_values):
    before = dict(p_values)

    adjusted = holm(p_values)

    assert list(adjusted) == list(p_values)
    assert {name for name, p in adjusted.items() if math.isnan(p)} == {n for n, p in before.items() if math.isnan(p)}
    tested = sorted((p, adjusted[name]) for name, p in before.items() if not math.isnan(p))
    assert all(p <= raised <= min(1, len(tested) * p) for p, raised in tested)
    assert [raised for _, raised in tested] == sorted(raised for _, raised in tested)
    if tested:
        assert tested[0][1] == min(1, len(tested) * tested[0][0])


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(ValueError, match=rf"the p value of 'unet' is {p}: it must lie in \[0, 1\]"):
        holm({"iaunet": 0.5, "unet": p})
