"""Expected Dice: how good a mask is likely to be, from what the networks themselves say of the image."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iaunet.inference.out_of_fold import LOWEST_PROBABILITY
from iaunet.records import require

STATISTICS = ("said", "marked", "agreed", "entropy", "disagreement", "pixels")
"""Of an output over pixels, sums that add up over the rows of a case: the probabilities; the pixels that reach the
threshold; the probabilities in these; the entropies in nats; how far flips are from their mean; all pixels."""

FEATURES = ("soft Dice", "mirror disagreement", "entropy", "area", "nothing marked")

FEWEST_CASES, FEWEST_GROUPS = 100, 20
FLAGGED_SHARE = 0.2
"""Flagged are images that are expected to be as bad as this share of the training images at most."""

RIDGE = 0.01
"""Weight of the coefficients' squares beside the mean squared error, for features of sd 1."""

N_BOOTSTRAP = 2000


@dataclass(frozen=True, kw_only=True)
class DiceModel:
    """A linear model of the Dice of a mask: ``intercept`` plus a coefficient times each of `FEATURES`, which are taken
    to be between ``lowest`` and ``highest``, those of the cases it was fitted to (empty: as they are)."""

    intercept: float
    coefficients: tuple[float, ...]
    lowest: tuple[float, ...] = ()
    highest: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        fits = len(self.coefficients) == len(FEATURES) and all(map(math.isfinite, self.coefficients))
        require(fits, "coefficients", self.coefficients, f"{len(FEATURES)} numbers: {', '.join(FEATURES)}")
        require(math.isfinite(self.intercept), "intercept", self.intercept, "a number")
        n = len(self.lowest)
        is_range = n in (0, len(FEATURES)) and len(self.highest) == n
        is_range = is_range and all(low <= high for low, high in zip(self.lowest, self.highest, strict=True))
        require(is_range, "lowest", self.lowest, "no number above that of highest, one a feature or none")

    def expect(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """The expected Dice for features [..., F], in [0, 1]."""
        if self.lowest:
            features = features.clip(np.array(self.lowest), np.array(self.highest))
        expected: NDArray[np.float64] = self.intercept + features @ np.array(self.coefficients)
        return expected.clip(0, 1)


@dataclass(frozen=True, kw_only=True)
class ExpectedDice:
    """Models of the Dice, fitted out of fold, and how well they do on cases they were not fitted on.

    Args:
        skipped: Empty, or why there are no models.
        mirroring: Whether the features are of mirrored predictions.
        flag_below: An image is flagged where its expected Dice is lower.
        rank_correlation: Spearman's, of expected and true Dice; ``low`` and ``high`` are the ends of its 95 %
            bootstrap interval over groups.
        n_flagged: Of the cases that were predicted out of fold.
        dice_flagged: Their mean Dice, None without any; ``dice_unflagged`` that of the others.
        models: By run and fold: fitted on what the networks of the other folds said of the cases they held out.
    """

    version: int = 1
    skipped: str = ""
    mirroring: bool = True
    flag_below: float | None = None
    rank_correlation: float | None = None
    low: float | None = None
    high: float | None = None
    n_flagged: int = 0
    dice_flagged: float | None = None
    dice_unflagged: float | None = None
    models: dict[str, dict[str, DiceModel]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = self.flag_below, self.rank_correlation, self.low, self.high, self.dice_unflagged
        known = [number is not None and math.isfinite(number) for number in numbers]
        fits = all(known) and bool(self.models) and not self.skipped
        fits_not = bool(self.skipped) and self.skipped.isprintable() and not (any(known) or self.models)
        require(fits or fits_not, "skipped", self.skipped, "why there are no models, or models with all their numbers")


@dataclass(frozen=True, eq=False)
class Judged:
    """The models, and the expected Dice [cases] of the cases they were fitted around, None where skipped."""

    models: ExpectedDice
    expected: NDArray[np.float64] | None


def measure_rows(probabilities: Tensor, disagreement: Tensor, thresholds: Sequence[float]) -> Tensor:
    """The statistics of rows.

    Args:
        probabilities: [B, L, h, w] of one network, in [0, 1].
        disagreement: Of the same shape, how far flips are from their mean.
        thresholds: One an output.

    Returns:
        [B, L, S] float64, by `STATISTICS`; of an Apple GPU's maps on the CPU.
    """
    if probabilities.device.type == "mps":  # which has no float64
        probabilities, disagreement = probabilities.cpu(), disagreement.cpu()
    # against plain numbers: a tensor of them would be copied to a GPU, which waits for what runs there
    marked = torch.stack([maps >= level for maps, level in zip(probabilities.unbind(1), thresholds, strict=True)], 1)
    p = probabilities.clamp(LOWEST_PROBABILITY, 1 - LOWEST_PROBABILITY)
    entropy = -(p * p.log() + (1 - p) * (-p).log1p())
    maps = (probabilities, marked, probabilities * marked, entropy, disagreement, torch.ones_like(probabilities))
    return torch.stack([each.sum((-2, -1), dtype=torch.float64) for each in maps], -1)


def features_of(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a model takes.

    Args:
        statistics: [..., L, S] of a case, see `STATISTICS`.

    Returns:
        [..., F] by `FEATURES`, the mean over outputs: the Dice of mask and probabilities; disagreement and entropy a
        pixel's worth of probability; the logarithm of the marked share; whether nothing is marked.
    """
    said, marked, agreed, entropy, disagreement, pixels = np.moveaxis(statistics, -1, 0)
    amount = said + 1
    features = (
        2 * agreed / (said + marked + LOWEST_PROBABILITY),
        disagreement / amount,
        entropy / amount,
        np.log((marked + 1) / (pixels + 1)),
        (marked == 0).astype(np.float64),
    )
    return np.asarray(np.stack(features, -1).mean(-2), np.float64)


def fit_dice_model(features: NDArray[np.float64], dice: NDArray[np.float64]) -> DiceModel:
    """Fit a model by ridge regression to the features [cases, F] and Dice [cases] of cases."""
    mean, sd = features.mean(0), features.std(0)
    scale = np.where(sd > 0, sd, 1.0)
    scaled = (features - mean) / scale
    penalty = RIDGE * len(dice) * np.eye(scaled.shape[1])
    coefficients = np.linalg.solve(scaled.T @ scaled + penalty, scaled.T @ (dice - dice.mean())) / scale
    return DiceModel(
        intercept=float(dice.mean() - mean @ coefficients),
        coefficients=tuple(coefficients.tolist()),
        lowest=tuple(features.min(0).tolist()),
        highest=tuple(features.max(0).tolist()),
    )


def judge(
    features: dict[str, NDArray[np.float64]],
    dice: NDArray[np.float64],
    folds: NDArray[np.int64],
    groups: Sequence[Hashable],
    mirroring: bool,
    seed: int = 0,
) -> Judged:
    """Fit models of the Dice out of fold, where the cases suffice and the models do better than chance.

    Args:
        features: By run [cases, F], of the network that held the case out.
        dice: Of the masks [cases], as they are predicted out of fold.
        folds: Of each case.
        groups: What cases share that are not independent.
        mirroring: Whether the features are of mirrored predictions.
        seed: Decides the bootstrap.
    """
    n_groups = len({*groups})
    if len(dice) < FEWEST_CASES or n_groups < FEWEST_GROUPS:
        few = f"{len(dice)} cases in {n_groups} groups: at least {FEWEST_CASES} in {FEWEST_GROUPS} are needed"
        return Judged(ExpectedDice(skipped=few), None)
    numbers = [int(fold) for fold in np.unique(folds)]
    if len(numbers) < 2:
        return Judged(ExpectedDice(skipped="one fold only: models are fitted on the other folds"), None)
    models = {
        run: {str(fold): fit_dice_model(values[folds != fold], dice[folds != fold]) for fold in numbers}
        for run, values in features.items()
    }
    expected = np.zeros(len(dice))
    for fold in numbers:
        there = folds == fold
        expected[there] = np.mean([models[run][str(fold)].expect(features[run][there]) for run in models], axis=0)
    correlation = rank_correlation(expected, dice)
    low, high = _correlation_interval(expected, dice, groups, seed)
    if not low > 0:
        chance = f"expected and true Dice have a rank correlation of {correlation:.2f} ({low:.2f} to {high:.2f})"
        return Judged(ExpectedDice(skipped=f"{chance}: no more than chance"), None)
    flag_below = float(np.quantile(expected, FLAGGED_SHARE))
    flagged = expected < flag_below
    found = ExpectedDice(
        mirroring=mirroring,
        flag_below=flag_below,
        rank_correlation=correlation,
        low=low,
        high=high,
        n_flagged=int(flagged.sum()),
        dice_flagged=float(dice[flagged].mean()) if flagged.any() else None,
        dice_unflagged=float(dice[~flagged].mean()),
        models=models,
    )
    return Judged(found, expected)


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's rank correlation, NaN where one of the two is constant."""
    from scipy.stats import rankdata  # slow to import, and prediction needs it not

    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    norm = math.sqrt(float((ranks[0] ** 2).sum()) * float((ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / norm if norm else math.nan


def _correlation_interval(
    expected: NDArray[np.float64], dice: NDArray[np.float64], groups: Sequence[Hashable], seed: int
) -> tuple[float, float]:
    """The middle 95 % of the rank correlations of as many groups as there are, drawn with replacement."""
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    parts = [np.array(numbers) for numbers in members.values()]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(N_BOOTSTRAP):
        drawn = np.concatenate([parts[i] for i in rng.integers(0, len(parts), len(parts))])
        found.append(rank_correlation(expected[drawn], dice[drawn]))
    if np.isnan(found).any():
        return math.nan, math.nan
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
