"""Compares sets of masks: several models on one truth, people with each other and models with them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet.dataset import Problem
from iaunet.errors import PredictionError
from iaunet.inference.crossval import Summary, pool, summarise
from iaunet.inference.mask_sets import TRUTH, Pairing, SetScores, join_sets, score_sets
from iaunet.inference.permutation import PairedTest, holm, sign_flip_test
from iaunet.inference.scores import CaseScore, DistanceUnit, LabelScore
from iaunet.metrics import METRICS, Counts, Metric

KAPPA = "kappa"

SYMMETRIC = ("dice", "iou", KAPPA, "hd95", "surface_dice")
"""Metrics of two sets of masks that are the same whichever of them is called the truth."""

RATER_METRICS: Mapping[str, Metric] = {**METRICS, KAPPA: Metric(title="Cohen's kappa")}

AMONG_RATERS = "raters among themselves"

Series = Mapping[tuple[str, str], Sequence[float]]
"""The values of the compared cases by label and metric."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """How well one set of masks agrees with another, which is called the truth, on the cases that are compared.

    ``means`` are over cases, ``pooled`` of the pixels of all cases together, both by label and metric.
    """

    first: str
    second: str
    means: Mapping[str, Mapping[str, Summary]]
    pooled: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric of one label, case by case: ``first`` less ``second``.

    ``adjusted`` is the p value of the test after Holm's correction over all differences of this label and metric.
    """

    first: str
    second: str
    label: str
    metric: str
    summary: Summary
    test: PairedTest
    adjusted: float


@dataclass(frozen=True, kw_only=True)
class SetComparison:
    """Sets of masks compared on the cases that all of them have.

    ``sets`` are folders by name; ``raters`` those among them that are of people, empty where there is a truth.
    ``scores`` holds all cases of a pairing, also those that another set lacks. ``tolerance`` is that of surface Dice
    in pixels.
    """

    sets: Mapping[str, str]
    raters: tuple[str, ...]
    labels: tuple[str, ...]
    cases: tuple[str, ...]
    n_groups: int
    groups_from: str
    understood: str
    distance_unit: DistanceUnit
    tolerance: float
    problems: tuple[Problem, ...]
    matches: tuple[Match, ...]
    differences: tuple[Difference, ...]
    scores: Mapping[Pairing, tuple[CaseScore, ...]]

    @property
    def failures(self) -> list[Problem]:
        """Why masks that should have been scored were not."""
        return [problem for problem in self.problems if problem.level == "fault"]

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """What matches are measured by."""
        return RATER_METRICS if self.raters else METRICS


def compare_predictions(
    predictions: Mapping[str, Path], truth: Path, groups: str | None, tolerance: float = 2.0, workers: int = 1
) -> SetComparison:
    """Score several sets of predicted masks on one truth, and test each two of them against each other.

    Args:
        predictions: Folders of predicted masks by name, two at least.
        truth: The folder of true masks.
        groups: Which cases share a patient or video, as `iaunet.grouping.resolve_groups` takes it.
        tolerance: Tolerance of surface Dice in pixels.
        workers: Processes at most.

    Raises:
        DatasetError: A folder does not exist, or the groups cannot be used.
        PredictionError: No case has a mask in every set, two sets have one name, or the values of the masks cannot be
            read.
    """
    sets = join_sets([*predictions.items(), (TRUTH, truth)])
    pairings = [(name, TRUTH) for name in predictions]
    scored = score_sets(sets, [TRUTH], pairings, groups, tolerance, workers)
    metrics = {name: _by_metric(scored, (name, TRUTH), METRICS) for name in predictions}
    return _compare(sets, (), tolerance, scored, METRICS, metrics, [*itertools.combinations(predictions, 2)])


def compare_raters(
    raters: Mapping[str, Path],
    predictions: Mapping[str, Path],
    groups: str | None,
    tolerance: float = 2.0,
    workers: int = 1,
) -> SetComparison:
    """Score the masks of people on each other and those of models on each of them.

    Of a case, the agreement of raters among themselves is the mean over all two of them, that of a model with them the
    mean over the raters. Whether these differ is tested for the metrics that are symmetric, since nobody among the
    raters is the truth.

    Args:
        raters: Folders of masks by name, two at least.
        predictions: Folders of predicted masks by name, perhaps none.
        groups: Which cases share a patient or video, as `iaunet.grouping.resolve_groups` takes it.
        tolerance: Tolerance of surface Dice in pixels.
        workers: Processes at most.

    Raises:
        DatasetError: A folder does not exist, or the groups cannot be used.
        PredictionError: There are less than two raters, no case has a mask in every set, two sets have one name, or
            the values of the masks cannot be read.
    """
    if len(raters) < 2:
        raise PredictionError("agreement takes two people at least: give --raters the folders of two or more")
    sets = join_sets([*raters.items(), *predictions.items()])
    of_people = [*itertools.combinations(raters, 2)]
    of_models = {name: [(name, rater) for rater in raters] for name in predictions}
    pairings = [*of_people, *itertools.chain(*of_models.values())]
    scored = score_sets(sets, [*raters], pairings, groups, tolerance, workers)
    series = {AMONG_RATERS: _mean_by_metric(scored, of_people)}
    series |= {f"{name} with raters": _mean_by_metric(scored, pairs) for name, pairs in of_models.items()}
    contrasts = [(name, AMONG_RATERS) for name in series if name != AMONG_RATERS]
    return _compare(sets, tuple(raters), tolerance, scored, RATER_METRICS, series, contrasts)


def kappa(counts: Counts) -> float:
    """Cohen's kappa of two masks, pixel by pixel: agreement beyond chance, 1 at most.

    NaN where chance alone would agree everywhere: both masks are empty, or both full.
    """
    first, second = counts.tp + counts.fp, counts.tp + counts.fn
    first_off, second_off = counts.fn + counts.tn, counts.fp + counts.tn
    expected = first * second_off + second * first_off
    return 2 * (counts.tp * counts.tn - counts.fp * counts.fn) / expected if expected else math.nan


def _compare(
    sets: Mapping[str, Path],
    raters: tuple[str, ...],
    tolerance: float,
    scored: SetScores,
    metrics: Mapping[str, Metric],
    series: Mapping[str, Series],
    contrasts: Sequence[tuple[str, str]],
) -> SetComparison:
    groups = _groups(scored)
    first, *_ = scored.scores.values()
    return SetComparison(
        sets={name: str(folder) for name, folder in sets.items()},
        raters=raters,
        labels=tuple(first[0].labels),
        cases=scored.common,
        n_groups=len(set(groups or ())),
        groups_from=scored.grouping.source,
        understood=scored.understood,
        distance_unit=scored.unit,
        tolerance=tolerance,
        problems=scored.problems,
        matches=tuple(_match(scored, pairing, metrics, groups) for pairing in scored.scores),
        differences=_differences(series, contrasts, groups),
        scores=scored.scores,
    )


def _groups(scored: SetScores) -> list[str] | None:
    groups = scored.grouping.groups
    return [groups[name] for name in scored.common] if groups else None


def _cases(scored: SetScores, pairing: Pairing) -> list[CaseScore]:
    """The scores of the cases that are compared, in their order."""
    by_name = {score.name: score for score in scored.scores[pairing]}
    return [by_name[name] for name in scored.common]


def _value(score: LabelScore, metric: str) -> float:
    return kappa(score.counts) if metric == KAPPA else score.metrics[metric]


def _by_metric(scored: SetScores, pairing: Pairing, metrics: Mapping[str, Metric]) -> Series:
    cases = _cases(scored, pairing)
    return {
        (label, metric): [_value(case.labels[label], metric) for case in cases]
        for label in cases[0].labels
        for metric in metrics
    }


def _mean_by_metric(scored: SetScores, pairings: Sequence[Pairing]) -> Series:
    """Of each case the mean over pairings, by label and symmetric metric; NaN where one of them is."""
    each = [_by_metric(scored, pairing, {name: RATER_METRICS[name] for name in SYMMETRIC}) for pairing in pairings]
    return {key: np.mean([series[key] for series in each], axis=0).tolist() for key in each[0]}


def _match(scored: SetScores, pairing: Pairing, metrics: Mapping[str, Metric], groups: Sequence[str] | None) -> Match:
    cases = _cases(scored, pairing)
    means: dict[str, dict[str, Summary]] = {label: {} for label in cases[0].labels}
    for (label, metric), values in _by_metric(scored, pairing, metrics).items():
        means[label][metric] = summarise(values, groups, range(len(values)))
    pooled = {}
    for label in means:
        counts = [case.labels[label].counts for case in cases]
        pooled[label] = pool(counts) | ({KAPPA: kappa(sum(counts, Counts()))} if KAPPA in metrics else {})
    return Match(first=pairing[0], second=pairing[1], means=means, pooled=pooled)


def _differences(
    series: Mapping[str, Series], contrasts: Sequence[tuple[str, str]], groups: Sequence[str] | None
) -> tuple[Difference, ...]:
    """Every contrast in every label and metric, those of one label and metric corrected together."""
    found = []
    for label, metric in next(iter(series.values())):
        values = {
            pair: np.subtract(series[pair[0]][label, metric], series[pair[1]][label, metric]).tolist()
            for pair in contrasts
        }
        tests = {pair: sign_flip_test(of_pair, groups) for pair, of_pair in values.items()}
        adjusted = holm({str(i): tests[pair].p for i, pair in enumerate(contrasts)})
        found += [
            Difference(
                first=pair[0],
                second=pair[1],
                label=label,
                metric=metric,
                summary=summarise(values[pair], groups, range(len(values[pair]))),
                test=tests[pair],
                adjusted=adjusted[str(i)],
            )
            for i, pair in enumerate(contrasts)
        ]
    return tuple(found)
