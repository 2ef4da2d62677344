"""Paired tests: whether one network scores otherwise than another on the same cases by more than chance."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIGNS_AT_ONCE = 2_000_000
"""Signs flipped in one step of the test: about 40 MB."""

ROUNDING = 1e-12
"""Share of the summed magnitudes by which two orders of adding the same numbers may differ."""


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """What `sign_flip_test` found.

    Args:
        mean_difference: Over the cases where it is defined; NaN where there are none. Large groups weigh more here, as
            they do in a table of means; in the test all groups weigh the same.
        p: Two-sided p value, NaN below two groups.
        n_cases: Number of cases where the difference is defined.
        n_groups: Number of groups these cases are from.
        exact: Whether all flips were counted; otherwise they were drawn.
    """

    mean_difference: float
    p: float
    n_cases: int
    n_groups: int
    exact: bool


def sign_flip_test(
    differences: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    n_permutations: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """Test whether the differences of two networks on the same cases lie around zero.

    The null hypothesis: which of the two networks is which makes no difference, so that the mean difference of each
    group is as likely to be its negative, independently of the other groups. The statistic is the magnitude of the
    mean of the group means. All flips of their signs are counted where these are at most ``n_permutations``; then no
    p value is below 2 / 2^n for n groups: five groups cannot reach 0.05, however much they differ. Otherwise b of n
    drawn flips are at least as extreme as what was seen, and p is (b + 1) / (n + 1) (Phipson & Smyth 2010).

    Args:
        differences: One value a case: the metric of one network minus that of the other; NaN where either is
            undefined, which leaves the case out.
        groups: What cases share that are not independent, as a patient or a video; None where each case is its own.
        n_permutations: Most flips that are counted, else the number that is drawn.
        seed: Seed of the drawing: equal arguments give equal results.

    Raises:
        ValueError: The groups are not one a case, or a difference is infinite.
    """
    values = np.asarray(differences, np.float64)
    if np.isinf(values).any():
        raise ValueError("a difference is infinite: give NaN where a metric is undefined")
    means = _group_means(values, range(len(values)) if groups is None else groups)
    defined = values[~np.isnan(values)]
    exact = 2 ** len(means) <= n_permutations
    return PairedTest(
        mean_difference=float(defined.mean()) if len(defined) else math.nan,
        p=_p_value(means, n_permutations, None if exact else seed),
        n_cases=len(defined),
        n_groups=len(means),
        exact=exact,
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p values for being several: Holm 1979, step-down.

    Args:
        p_values: The p value of each test by its name, NaN where a test could say nothing.

    Returns:
        The adjusted p values in the same order, NaN where they were NaN: such tests do not count as tests. Rejecting
        those at most alpha keeps the chance of any false rejection at most alpha.

    Raises:
        ValueError: A p value is below 0 or above 1.
    """
    outside = [name for name, p in p_values.items() if p < 0 or p > 1]
    if outside:
        raise ValueError(f"the p value of {outside[0]!r} is {p_values[outside[0]]}: it must lie in [0, 1]")
    adjusted = dict(p_values)
    rising = sorted((name for name, p in p_values.items() if not math.isnan(p)), key=p_values.__getitem__)
    least = 0.0
    for rank, name in enumerate(rising):
        least = max(least, min(1.0, (len(rising) - rank) * p_values[name]))
        adjusted[name] = least
    return adjusted


def _group_means(values: NDArray[np.float64], groups: Sequence[Hashable]) -> NDArray[np.float64]:
    """The mean of the defined values of each group that has any, in the order the groups appear."""
    if len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} cases")
    members: dict[Hashable, list[float]] = {}
    for value, group in zip(values.tolist(), groups, strict=True):
        if not math.isnan(value):
            members.setdefault(group, []).append(value)
    return np.array([np.mean(of_group) for of_group in members.values()], np.float64)


def _p_value(means: NDArray[np.float64], n_permutations: int, seed: int | None) -> float:
    """Of drawn flips, or of all flips where the seed is None."""
    if len(means) < 2:
        return math.nan
    # flips that are as extreme as what was seen must count as such, in whatever order they are added up
    bound = abs(means.sum()) - ROUNDING * np.abs(means).sum()
    steps = _every_flip(len(means)) if seed is None else _drawn_flips(len(means), n_permutations, seed)
    n_extreme = sum(int((np.abs(means.sum() - 2 * (flips @ means)) >= bound).sum()) for flips in steps)
    return n_extreme / 2 ** len(means) if seed is None else (n_extreme + 1) / (n_permutations + 1)


def _every_flip(n_groups: int) -> Iterator[NDArray[np.bool_]]:
    """All flips [flips, groups], in steps."""
    rows = max(1, SIGNS_AT_ONCE // n_groups)
    for start in range(0, 2**n_groups, rows):
        codes = np.arange(start, min(start + rows, 2**n_groups))
        yield (codes[:, None] >> np.arange(n_groups) & 1).astype(np.bool_)


def _drawn_flips(n_groups: int, n_permutations: int, seed: int) -> Iterator[NDArray[np.bool_]]:
    """Random flips [flips, groups], in steps."""
    rng = np.random.default_rng(seed)
    rows = max(1, SIGNS_AT_ONCE // n_groups)
    for start in range(0, n_permutations, rows):
        yield rng.random((min(rows, n_permutations - start), n_groups)) < 0.5
