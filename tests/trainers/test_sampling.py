from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.trainers.sampling import CaseOrder, EpochSampler


def order_of(n_cases, batch_size=4, most_steps=250, seed=0, draws=1):
    return CaseOrder(
        [range(i, i + 1) for i in range(n_cases)],
        [True] * n_cases,
        batch_size=batch_size,
        draws=draws,
        most_steps=most_steps,
        foreground_rows=1 / 3,
        seed=seed,
    )


def stream(order, epochs):
    return [sample.row for epoch in range(epochs) for step in range(order.steps) for sample in order.batch(epoch, step)]


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_over_k_shuffles_every_case_is_seen_k_times_across_the_ends_of_epochs(n_cases, batch_size, most_steps, seed):
    order = order_of(n_cases, batch_size, most_steps, seed)
    epochs = 3 * n_cases  # enough that whole shuffles fit
    seen = stream(order, epochs)

    for start in range(0, len(seen) - n_cases + 1, n_cases):
        assert sorted(seen[start : start + n_cases]) == list(range(n_cases))


@pytest.mark.parametrize(
    ("n_cases", "batch_size", "most_steps", "steps"),
    [(12, 4, 250, 3), (13, 4, 250, 4), (12, 4, 2, 2), (3, 8, 250, 1), (2594, 16, 250, 163), (5000, 16, 250, 250)],
)
def test_an_epoch_is_each_case_once_or_most_steps(n_cases, batch_size, most_steps, steps):
    assert order_of(n_cases, batch_size, most_steps).steps == steps


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 6), st.integers(0, 99))
def test_an_epoch_of_several_draws_has_each_case_so_often_and_goes_on_where_it_ended(n_cases, batch_size, draws, seed):
    order = order_of(n_cases, batch_size, seed=seed, draws=draws)

    assert order.steps == min(250, -(-n_cases * draws // batch_size))
    seen = stream(order, 3)
    counts = Counter(seen[: n_cases * draws])
    assert {counts[case] for case in range(n_cases)} == {draws}
    for start in range(0, len(seen) - n_cases + 1, n_cases):
        assert sorted(seen[start : start + n_cases]) == list(range(n_cases))


def test_many_draws_are_cut_at_the_most_steps_of_an_epoch():
    assert order_of(100, batch_size=4, draws=20).steps == 250
    assert order_of(100, batch_size=4, draws=9).steps == 225


@given(
    st.lists(st.text("f.", min_size=2, max_size=40), min_size=1, max_size=5),
    st.sampled_from([1 / 3, 0.6]),
    st.integers(0, 99),
)
def test_cases_of_several_rows_give_their_own_rows_and_foreground_in_a_third_of_draws(cases, share, seed):
    starts = np.cumsum([0, *map(len, cases)])
    rows = [range(start, end) for start, end in pairwise(starts)]
    has_foreground = [letter == "f" for letter in "".join(cases)]
    order = CaseOrder(
        rows, has_foreground, batch_size=len(cases), draws=50, most_steps=50, foreground_rows=share, seed=seed
    )

    drawn = [sample.row for epoch in range(6) for step in range(50) for sample in order.batch(epoch, step)]

    for own in rows:
        mine = [has_foreground[row] for row in drawn if row in own]
        assert len(mine) == 300  # 6 epochs of 50 draws
        if any(has_foreground[row] for row in own):
            assert np.mean(mine) > share - 4 * (share * (1 - share) / 300) ** 0.5


def test_the_last_batch_is_filled_from_the_next_shuffle_where_the_next_epoch_goes_on():
    order = order_of(10, batch_size=4)
    first, second = stream(order, 2)[:12], stream(order, 2)[12:]

    assert set(first[:10]) == set(range(10))
    assert sorted(first[10:] + second[:8]) == list(range(10))


def test_a_batch_larger_than_the_cases_repeats_them_evenly():
    counts = Counter(sample.row for sample in order_of(3, batch_size=8).batch(0, 0))

    assert sorted(counts.values()) == [2, 3, 3]


def test_batches_depend_on_seed_epoch_and_step_alone_whatever_was_asked_before():
    order, other = order_of(10), order_of(10)
    places = [(epoch, step) for epoch in range(4) for step in range(order.steps)]

    forwards = [order.batch(*place) for place in places]
    backwards = [other.batch(*place) for place in reversed(places)]

    assert forwards == backwards[::-1]
    assert stream(order_of(10, seed=1), 4) != stream(order, 4)
    assert stream(order, 8)[:40] != stream(order, 8)[40:80]


def test_each_sample_bears_its_own_seed():
    order = order_of(10)
    seeds = [sample.seed for epoch in range(3) for step in range(3) for sample in order.batch(epoch, step)]

    assert seeds[:5] == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 0, 4)]
    assert len(set(seeds)) == 36


def draws(letters, foreground_rows, n=3000):
    order = CaseOrder(
        [range(2, 2 + len(letters))],  # behind two rows of a case that is not trained on
        [True, True, *(letter == "f" for letter in letters)],
        batch_size=1,
        most_steps=1,
        foreground_rows=foreground_rows,
        seed=7,
    )
    return [order.batch(epoch, 0)[0] for epoch in range(n)]


@pytest.mark.parametrize(("foreground_rows", "share"), [(0.0, 0.1), (1 / 3, 0.4), (1.0, 1.0)])
def test_rows_with_foreground_are_drawn_at_least_as_often_as_asked(foreground_rows, share):
    rows = Counter(sample.row for sample in draws("f.........", foreground_rows))

    assert rows[2] / 3000 == pytest.approx(share, abs=0.03)
    assert set(rows) <= set(range(2, 12))


def test_a_case_without_foreground_gives_all_its_rows_alike():
    rows = Counter(sample.row for sample in draws("...", 1 / 3))

    assert sorted(rows) == [2, 3, 4]
    assert min(rows.values()) > 900


def test_drawing_a_row_says_nothing_about_its_augmentation():
    samples = draws("f.........", 1 / 3)
    is_foreground = [sample.row == 2 for sample in samples]
    first_number = [np.random.default_rng(sample.seed).random() for sample in samples]

    assert abs(np.corrcoef(is_foreground, first_number)[0, 1]) < 0.06


def test_the_sampler_gives_the_steps_of_an_epoch_that_are_still_to_do():
    order = order_of(10)
    sampler = EpochSampler(order)
    sampler.epoch, sampler.first_step = 2, 1

    assert list(sampler) == [order.batch(2, 1), order.batch(2, 2)]
    assert len(sampler) == 2
    sampler.first_step = 3
    assert list(sampler) == []
