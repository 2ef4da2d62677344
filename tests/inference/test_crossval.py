import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.inference import crossval
from iaunet.inference.crossval import pool, summarise, summarise_label
from iaunet.metrics import METRICS, Counts
from iaunet.records import to_json

SCORES = st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=1, max_size=12)


def interval_width(summary):
    return summary.high - summary.low


def is_undefined(*values):
    return all(math.isnan(value) for value in values)


@given(SCORES, st.data())
def test_mean_sd_and_numbers_are_those_of_a_plain_loop(scores, data):
    folds = data.draw(st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores)))

    summary = summarise(scores, folds=folds, n_bootstrap=5)

    by_fold = {}
    for score, fold in zip(scores, folds, strict=True):
        if not math.isnan(score):
            by_fold.setdefault(fold, []).append(score)
    defined = [score for scores_of_fold in by_fold.values() for score in scores_of_fold]
    assert (summary.n_defined, summary.n_left_out) == (len(defined), len(scores) - len(defined))
    assert summary.mean == pytest.approx(np.mean(defined) if defined else math.nan, nan_ok=True)
    means = [np.mean(values) for values in by_fold.values()]
    assert summary.sd == pytest.approx(np.std(means, ddof=1) if len(means) > 1 else math.nan, nan_ok=True)


def test_the_interval_is_that_of_a_plain_loop_over_groups():
    rng = np.random.default_rng(1)
    groups = [f"patient {number}" for number in rng.integers(0, 15, 60)]
    scores = rng.random(60)
    scores[::7] = math.nan

    summary = summarise(scores, groups, n_bootstrap=4000)

    members = {group: [score for score, of in zip(scores, groups, strict=True) if of == group] for group in groups}
    means = []
    for _ in range(4000):
        drawn = rng.choice(list(members), len(members))
        means.append(np.nanmean(np.concatenate([members[group] for group in drawn])))
    assert (summary.low, summary.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.01)


def test_the_interval_narrows_with_the_root_of_the_number_of_cases():
    scores = np.random.default_rng(0).random(1600)

    few, many = summarise(scores[:100], n_bootstrap=2000), summarise(scores, n_bootstrap=2000)

    assert few.low < few.mean < few.high
    assert interval_width(few) / interval_width(many) == pytest.approx(4, rel=0.2)


def test_cases_that_resemble_their_group_widen_the_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    scores = rng.random(20)[groups] + 0.01 * rng.random(200)

    grouped = summarise(scores, groups.tolist(), n_bootstrap=2000)
    alone = summarise(scores, n_bootstrap=2000)

    assert grouped.mean == alone.mean
    assert interval_width(grouped) > 2.5 * interval_width(alone)


def test_the_seed_decides_the_interval_alone():
    scores = np.random.default_rng(0).random(50)

    first, again, other = (summarise(scores, n_bootstrap=100, seed=seed) for seed in (3, 3, 4))

    assert first == again
    assert first.mean == other.mean
    assert first.low != other.low


def test_drawing_in_small_steps_gives_the_same_interval(monkeypatch):
    scores = np.random.default_rng(0).random(30)
    at_once = summarise(scores, n_bootstrap=200)

    monkeypatch.setattr(crossval, "DRAWS_AT_ONCE", 100)

    assert summarise(scores, n_bootstrap=200) == at_once


def test_a_constant_score_has_an_interval_without_width():
    summary = summarise([0.5] * 9, folds=[0, 1, 2] * 3, n_bootstrap=50)

    assert (summary.mean, summary.sd, summary.low, summary.high) == (0.5, 0, 0.5, 0.5)


def test_nothing_is_claimed_where_nothing_can_be_known():
    assert is_undefined(*[getattr(summarise([]), name) for name in ("mean", "sd", "low", "high")])
    assert is_undefined(*[getattr(summarise([math.nan] * 3), name) for name in ("mean", "sd", "low", "high")])

    one_group = summarise([0.2, 0.4], groups=["a", "a"], folds=[1, 1])
    assert one_group.mean == pytest.approx(0.3)
    assert is_undefined(one_group.sd, one_group.low, one_group.high)
    assert is_undefined(summarise([0.2, 0.4]).sd)


def test_groups_and_folds_are_one_a_case():
    with pytest.raises(ValueError, match="3 groups or folds for 2 cases"):
        summarise([0.1, 0.2], groups=["a", "b", "c"])
    with pytest.raises(ValueError, match="1 groups or folds for 2 cases"):
        summarise([0.1, 0.2], folds=[0])


def test_a_summary_is_json_with_null_where_undefined():
    value = to_json(summarise([0.25, math.nan]))

    assert json.loads(json.dumps(value, allow_nan=False)) == {
        "mean": 0.25,
        "sd": None,
        "low": None,
        "high": None,
        "n_defined": 1,
        "n_left_out": 1,
    }


COUNTS = [
    Counts(tp=8, fp=0, fn=2, tn=90),
    Counts(fp=5, tn=95),
    Counts(tn=100),
    Counts(tp=1, fp=1, fn=1, tn=97),
]


def scores_of(counts):
    return [case.metrics() | {"hd95": math.nan, "surface_dice": 0.5} for case in counts]


def test_pooled_metrics_are_those_of_one_large_case():
    assert pool(COUNTS) == Counts(tp=9, fp=6, fn=3, tn=382).metrics()


def test_a_label_is_summarised_with_and_without_the_cases_whose_truth_is_empty():
    summary = summarise_label(scores_of(COUNTS), COUNTS, folds=[0, 0, 1, 1], n_bootstrap=20)

    dices = [case.dice for case in COUNTS]
    assert list(summary.all_cases) == list(summary.with_truth) == list(METRICS)
    assert summary.n_empty == 2
    assert summary.pooled == pool(COUNTS)
    assert summary.all_cases["dice"].mean == pytest.approx(np.mean(dices))
    assert summary.with_truth["dice"].mean == pytest.approx(np.mean([dices[0], dices[3]]))
    assert (summary.with_truth["dice"].n_defined, summary.with_truth["dice"].n_left_out) == (2, 2)
    assert (summary.all_cases["precision"].n_left_out, summary.all_cases["hd95"].n_defined) == (1, 0)


def test_a_label_without_empty_cases_is_summarised_once():
    counts = [COUNTS[0], COUNTS[3]]

    summary = summarise_label(scores_of(counts), counts, groups=["a", "b"], n_bootstrap=20)

    assert summary.with_truth is summary.all_cases


def test_a_label_summary_is_json():
    value = to_json(summarise_label(scores_of(COUNTS), COUNTS, n_bootstrap=20))

    copy = json.loads(json.dumps(value, allow_nan=False))
    assert copy == value
    assert copy["all_cases"]["hd95"]["mean"] is None
    assert copy["pooled"]["dice"] == pytest.approx(18 / 27)


def test_counts_are_one_a_case():
    with pytest.raises(ValueError, match="3 counts for 4 cases"):
        summarise_label(scores_of(COUNTS), COUNTS[:3])
