"""Out-of-fold statistics: what the scores of cases say about a run, and how sure that is."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iaunet.metrics import METRICS, Counts

DRAWS_AT_ONCE = 2_000_000
"""Groups drawn in one step of the bootstrap: about 50 MB of indices, sums and counts."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One metric over cases, in the metric's unit; NaN where undefined.

    Args:
        mean: Over the cases where the metric is defined.
        sd: Sample standard deviation (n - 1) over the means of folds; undefined below two folds.
        low: Lower end of the 95 % bootstrap interval of the mean; undefined below two groups.
        high: Its upper end.
        n_defined: Number of cases where the metric is defined.
        n_left_out: Number of the others.
    """

    mean: float
    sd: float
    low: float
    high: float
    n_defined: int
    n_left_out: int


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """Every metric of one label over cases.

    Args:
        all_cases: `Summary` by name of the metric, over all cases.
        with_truth: The same, the cases whose truth is empty left out.
        pooled: The overlap metrics of the counts of all cases, added up.
        n_empty: Number of cases whose truth is empty.
    """

    all_cases: Mapping[str, Summary]
    with_truth: Mapping[str, Summary]
    pooled: Mapping[str, float]
    n_empty: int


def summarise(
    scores: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    folds: Sequence[int] | None = None,
    n_bootstrap: int = 10_000,
    seed: int = 0,
) -> Summary:
    """Summarise one metric over cases.

    The interval holds the middle 95 % of the means of as many groups as there are, drawn with replacement.
    Cases of one group come and go together; large groups weigh more, as they do in the mean.

    Args:
        scores: One value a case, NaN where undefined.
        groups: The group of each case; None where each is its own.
        folds: The fold of each case; None where there are none.
        n_bootstrap: Number of means drawn.
        seed: Seed of the drawing: equal arguments give equal results.

    Raises:
        ValueError: The groups or folds are not one a case.
    """
    values = np.asarray(scores, np.float64)
    defined = ~np.isnan(values)
    group_sums, group_counts = _totals(values, range(len(values)) if groups is None else groups, defined)
    low, high = _bootstrap_interval(group_sums, group_counts, n_bootstrap, seed)
    fold_sums, fold_counts = _totals(values, [0] * len(values) if folds is None else folds, defined)
    return Summary(
        mean=float(values[defined].mean()) if defined.any() else math.nan,
        sd=float(np.std(fold_sums / fold_counts, ddof=1)) if len(fold_sums) > 1 else math.nan,
        low=low,
        high=high,
        n_defined=int(defined.sum()),
        n_left_out=int((~defined).sum()),
    )


def pool(counts: Sequence[Counts]) -> dict[str, float]:
    """The overlap metrics of many cases as if they were one: of their counts, added up."""
    return sum(counts, Counts()).metrics()


def summarise_label(
    scores: Sequence[Mapping[str, float]],
    counts: Sequence[Counts],
    groups: Sequence[Hashable] | None = None,
    folds: Sequence[int] | None = None,
    n_bootstrap: int = 10_000,
    seed: int = 0,
) -> LabelSummary:
    """Summarise every metric of one label over cases, with and without those whose truth is empty.

    Args:
        scores: For each case the value of each metric, as `iaunet.metrics.score_case` gives it for the label.
        counts: For each case its counts, as `iaunet.metrics.count_case` gives them for the label.
        groups: The group of each case; None where each is its own.
        folds: The fold of each case; None where there are none.
        n_bootstrap: Number of means drawn, see `summarise`.
        seed: Seed of the drawing.

    Raises:
        ValueError: The counts, groups or folds are not one a case.
    """
    if len(counts) != len(scores):
        raise ValueError(f"{len(counts)} counts for {len(scores)} cases")
    with_truth = [
        case if not count.truth_is_empty else dict.fromkeys(case, math.nan)
        for case, count in zip(scores, counts, strict=True)
    ]

    def summaries(cases: Sequence[Mapping[str, float]]) -> dict[str, Summary]:
        return {name: summarise([case[name] for case in cases], groups, folds, n_bootstrap, seed) for name in METRICS}

    n_empty = sum(count.truth_is_empty for count in counts)
    all_cases = summaries(scores)
    return LabelSummary(
        all_cases=all_cases,
        with_truth=summaries(with_truth) if n_empty else all_cases,
        pooled=pool(counts),
        n_empty=n_empty,
    )


def _totals(
    values: NDArray[np.float64], keys: Sequence[Hashable], defined: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the defined values of each key that has any, in the order the keys appear."""
    if len(keys) != len(values):
        raise ValueError(f"{len(keys)} groups or folds for {len(values)} cases")
    positions: dict[Hashable, int] = {}
    used = [key for key, is_defined in zip(keys, defined, strict=True) if is_defined]
    index = np.array([positions.setdefault(key, len(positions)) for key in used], np.intp)
    return np.bincount(index, values[defined]).astype(np.float64), np.bincount(index).astype(np.float64)


def _bootstrap_interval(
    sums: NDArray[np.float64], counts: NDArray[np.float64], n_bootstrap: int, seed: int
) -> tuple[float, float]:
    n_groups = len(sums)
    if n_groups < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    rows = max(1, DRAWS_AT_ONCE // n_groups)
    means = []
    for start in range(0, n_bootstrap, rows):
        drawn = rng.integers(0, n_groups, (min(rows, n_bootstrap - start), n_groups))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)
