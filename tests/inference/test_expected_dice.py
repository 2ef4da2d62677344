import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from iaunet.inference.expected_dice import (
    FEATURES,
    STATISTICS,
    DiceModel,
    ExpectedDice,
    features_of,
    fit_dice_model,
    judge,
    measure_rows,
    rank_correlation,
)
from iaunet.inference.tuning import NetworkName, Tuning
from iaunet.records import FieldError, from_json, to_json

A, B = NetworkName(run="a", fold="0"), NetworkName(run="b", fold="1")


def made_up(n=200, n_groups=40, noise=0.05, seed=0):
    """Features of which the first tells the Dice, folds of whole groups."""
    rng = np.random.default_rng(seed)
    features = rng.random((n, len(FEATURES)))
    features[:, -1] = 0
    dice = (0.2 + 0.6 * features[:, 0] + noise * rng.normal(size=n)).clip(0, 1)
    groups = rng.integers(0, n_groups, n)
    return features, dice, groups % 5, groups.tolist()


def test_statistics_are_sums_over_the_pixels_of_each_output():
    probabilities = torch.tensor([[[[0.0, 0.5], [0.6, 1.0]], [[0.2, 0.2], [0.2, 0.2]]]])
    disagreement = torch.full_like(probabilities, 0.1)

    found = dict(zip(STATISTICS, measure_rows(probabilities, disagreement, (0.5, 0.3))[0].T.tolist(), strict=True))

    assert found["said"] == pytest.approx([2.1, 0.8])
    assert found["marked"] == [3, 0]
    assert found["agreed"] == pytest.approx([2.1, 0])
    of_six, of_two = (-(p * np.log(p) + (1 - p) * np.log(1 - p)) for p in (0.6, 0.2))
    assert found["entropy"] == pytest.approx([np.log(2) + of_six, 4 * of_two], abs=1e-5)
    assert found["disagreement"] == pytest.approx([0.4, 0.4])
    assert found["pixels"] == [4, 4]


def test_statistics_of_rows_add_up_to_those_of_the_case():
    probabilities = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = measure_rows(probabilities, probabilities / 10, (0.5, 0.5)).sum(0)

    whole = measure_rows(torch.cat([*probabilities], -1)[None], torch.cat([*probabilities / 10], -1)[None], (0.5, 0.5))[
        0
    ]

    np.testing.assert_allclose(parts, whole, rtol=1e-6)


def test_the_soft_dice_is_that_of_mask_and_probabilities_and_sure_masks_have_1():
    sure = torch.zeros(1, 1, 8, 8)
    sure[..., 2:6, 2:6] = 1
    features = features_of(measure_rows(sure, torch.zeros_like(sure), (0.5,))[0].numpy())

    named = dict(zip(FEATURES, features, strict=True))
    assert named["soft Dice"] == pytest.approx(1)
    assert named["entropy"] == pytest.approx(0, abs=1e-4)
    assert named["area"] == pytest.approx(np.log(17 / 65))
    assert named["nothing marked"] == 0

    empty = dict(zip(FEATURES, features_of(measure_rows(sure * 0.3, sure, (0.5,))[0].numpy()), strict=True))
    assert (empty["soft Dice"], empty["nothing marked"]) == (0, 1)


def test_a_linear_dice_is_found_again():
    rng = np.random.default_rng(0)
    features = rng.random((500, len(FEATURES)))
    slopes = np.array([0.3, -0.2, 0.1, 0.0, 0.2])

    model = fit_dice_model(features, 0.3 + features @ slopes)

    np.testing.assert_allclose(model.coefficients, slopes, atol=0.01)
    np.testing.assert_allclose(model.expect(features), 0.3 + features @ slopes, atol=0.01)
    assert dataclasses.replace(model, lowest=(), highest=()).expect(100 * features).max() == 1  # never above 1


def test_what_lies_beyond_the_cases_of_the_fit_is_expected_as_the_outermost_of_them():
    rng = np.random.default_rng(0)
    features = rng.random((500, len(FEATURES)))
    model = fit_dice_model(features, 0.9 - 0.5 * features[:, 3])
    inner = features.mean(0)
    tiny, least = inner.copy(), inner.copy()
    tiny[3], least[3] = -9, features[:, 3].min()

    assert model.expect(tiny) == model.expect(least) < 0.91
    assert from_json(DiceModel, to_json(model)) == model
    with pytest.raises(FieldError, match=r"lowest is .*: give no number above that of highest"):
        dataclasses.replace(model, lowest=model.highest, highest=model.lowest)


def test_expected_and_true_dice_correlate_on_cases_the_model_was_not_fitted_on():
    features, dice, folds, groups = made_up()

    judged = judge({"run": features}, dice, folds, groups, mirroring=True)

    found = judged.models
    assert found.skipped == ""
    assert found.rank_correlation == pytest.approx(spearmanr(judged.expected, dice).statistic)
    assert 0.8 < found.low < found.rank_correlation < found.high < 1
    flagged = judged.expected < found.flag_below
    assert found.n_flagged == flagged.sum() == 40
    assert found.dice_flagged == pytest.approx(dice[flagged].mean())
    assert found.dice_unflagged == pytest.approx(dice[~flagged].mean())
    assert from_json(ExpectedDice, to_json(found)) == found
    there = folds == 3
    own = fit_dice_model(features[~there], dice[~there])
    np.testing.assert_allclose(judged.expected[there], own.expect(features[there]))


@pytest.mark.parametrize(
    ("cases", "why"),
    [
        (made_up(n=99), "99 cases in 3. groups: at least 100 in 20 are needed"),
        (made_up(n_groups=19), "200 cases in 19 groups: at least 100 in 20 are needed"),
        (made_up(noise=30.0), r"rank correlation of .* no more than chance"),
    ],
)
def test_where_there_is_too_little_to_learn_from_it_is_skipped_and_said_why(cases, why):
    features, dice, folds, groups = cases

    judged = judge({"run": features}, dice, folds, groups, mirroring=True)

    assert judged.expected is None
    assert judged.models.models == {}
    assert re.search(why, judged.models.skipped)


def test_one_fold_alone_cannot_be_judged_by_others():
    features, dice, folds, groups = made_up()

    assert judge({"run": features}, dice, 0 * folds, groups, True).models.skipped.startswith("one fold only")


def test_an_image_is_judged_by_the_mean_of_its_networks_models():
    statistics = np.zeros((2, 1, len(STATISTICS)))
    statistics[:, 0] = [10, 10, 8, 1, 0, 100], [10, 10, 4, 1, 0, 100]
    models = {
        "a": {"0": DiceModel(intercept=0.0, coefficients=(1.0, 0, 0, 0, 0))},
        "b": {"1": DiceModel(intercept=0.1, coefficients=(0.5, 0, 0, 0, 0))},
    }
    learnt = ExpectedDice(
        flag_below=0.4, rank_correlation=0.7, low=0.6, high=0.8, dice_unflagged=0.9, models=models, mirroring=True
    )
    tuning = Tuning(expected_dice=learnt)

    found = tuning.judge([A, B], mirroring=True)

    assert found.expect(statistics) == pytest.approx((0.8 + 0.1 + 0.2) / 2)
    assert found.flag_below == 0.4
    assert tuning.judge([A, B], mirroring=False) is None
    assert tuning.judge([A, NetworkName(run="b", fold="2")], mirroring=True) is None
    assert Tuning().judge([A], mirroring=True) is None


def test_a_constant_has_no_rank_correlation():
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5.0)))
    assert rank_correlation(np.arange(5.0), np.array([0, 1, 1, 3, 9.0])) == pytest.approx(
        spearmanr(range(5), [0, 1, 1, 3, 9]).statistic
    )


def test_models_of_other_features_are_refused():
    with pytest.raises(FieldError, match=r"coefficients is \(1\.0,\): give 5 numbers: soft Dice"):
        DiceModel(intercept=0, coefficients=(1.0,))
    with pytest.raises(FieldError, match=r"coefficients is \(nan"):
        DiceModel(intercept=0, coefficients=(math.nan, 0, 0, 0, 0))
    with pytest.raises(FieldError, match=r"intercept is nan: give a number"):
        DiceModel(intercept=math.nan, coefficients=(0, 0, 0, 0, 0))
    with pytest.raises(FieldError, match="skipped is"):
        ExpectedDice(skipped="\x1b[31mred")
    with pytest.raises(FieldError, match="why there are no models, or models with all"):
        ExpectedDice()
