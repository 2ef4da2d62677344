"""Finds thresholds and cleaning on out-of-fold predictions, and what they gain on folds they were not chosen on."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from iaunet.dataset import IGNORED
from iaunet.decision import decide
from iaunet.inference.crossval import Summary, summarise
from iaunet.inference.permutation import sign_flip_test
from iaunet.inference.postprocessing import (
    NO_CLEANING,
    LabelCleaning,
    Postprocessing,
    clean_labels,
    components_kept,
    describe_postprocessing,
    number_components,
    number_gaps,
)
from iaunet.metrics import Counts, Mask, count_case
from iaunet.planners.plan import Plan

THRESHOLDS = tuple(percent / 100 for percent in range(30, 71, 5))
LESION_QUANTILES = (0.0, 0.05, 0.1)
LESION_PARTS = (0.25, 0.5)
"""Components are tried as too small below these parts of these quantiles of the cases' smallest true components: what
is removed is smaller than half the smallest lesion of nine cases in ten, or of all."""

FEWEST_CASES = 10
LEAST_GAIN = 0.001
LARGEST_P = 0.05
"""Of all decisions together, by Bonferroni. Where nothing helps, one of several useless choices may do well on all
cases by chance; then every fold chooses it, and the nested gain is as lucky: its interval alone lies above 0 in one of
ten such searches instead of one of forty."""

ROUNDING = 1e-9
"""By which two orders of adding the same Dice may differ."""

_PAINTED = 0.5
"""Between the levels of pixels that a region paints, 1, and of all others."""

PixelCounts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class OutOfFoldCase:
    """What the networks that did not see a case say of it.

    ``probabilities`` [outputs, slices, H, W] float32 at native size, ``truth`` [slices, H, W] uint8 with `IGNORED`
    where pixels do not count. ``group`` is what cases share that are not independent.
    """

    name: str
    fold: int
    group: Hashable
    probabilities: NDArray[np.float32]
    truth: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What `search` found. Dice is the mean over cases of the mean over labels or regions, empty masks as in metrics.

    Args:
        fitted: What does best on all cases.
        of_folds: For each fold's number what does best on the cases of the other folds; empty where nothing is nested.
        dice_before: Of the plan's own thresholds, without cleaning.
        dice_fitted: Of ``fitted``, on the cases it was fitted on: optimistic.
        dice_nested: Of ``of_folds``, each on the fold it was not fitted on; NaN where nothing is nested.
        gain: The differences between nested and before, a case each, with a bootstrap interval over groups.
        p: Of a sign-flip test of the gain over groups.
        largest_p: What ``p`` may be: `LARGEST_P`, shared among all that is decided for each label.
        is_kept: Whether ``fitted`` is worth using: it is not nothing, the gain is `LEAST_GAIN` or more, its interval
            above 0 and ``p`` small enough.
        postprocessing: ``fitted`` if it is kept, else what changes nothing.
        why: The same in words.
    """

    fitted: Postprocessing
    of_folds: Mapping[str, Postprocessing]
    dice_before: float
    dice_fitted: float
    dice_nested: float
    gain: Summary
    p: float
    largest_p: float
    is_kept: bool
    postprocessing: Postprocessing
    why: str


@dataclass(frozen=True)
class Choice:
    """What is done to one label: the probability from which it counts, and the cleaning of its components."""

    threshold: float
    cleaning: LabelCleaning


_Choices = tuple[Choice, ...]
"""One a label."""


@dataclass(frozen=True, eq=False)
class _Components:
    """The components of one label of a case at one threshold, in the order of `number_components`.

    ``areas`` [n] in pixels. ``counts`` [2, n]: pixels that count, and those of them that are true. ``holes`` [2, n]:
    the same of the background in the component's holes. ``around`` [n]: 1 + the component in whose hole it lies, or 0.
    """

    areas: NDArray[np.int64]
    counts: PixelCounts
    holes: PixelCounts
    around: NDArray[np.intp]

    def count(self, steps: LabelCleaning) -> tuple[int, int]:
        """Pixels that count and true ones after cleaning."""
        inside = components_kept(self.areas, steps)
        total = self.counts[:, inside].sum(axis=1)
        if steps.fill_holes:
            inside = self._with_enclosed(inside)
            total = (self.counts + self.holes)[:, inside].sum(axis=1)
        return int(total[0]), int(total[1])

    def _with_enclosed(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Those kept and all that lie in their holes, however deep: they were removed, and are filled with the hole."""
        inside = kept
        while True:
            wider = inside | np.append(False, inside)[self.around]
            if (wider == inside).all():
                return inside
            inside = wider


@dataclass(frozen=True, eq=False)
class LabelTable:
    """One label of a case, counted so that any choice can be scored without its pixels.

    ``n_true`` pixels are the label's in the truth; ``smallest_true`` of them are its smallest component, None
    without any. ``at`` holds its predicted components by threshold.
    """

    n_true: int
    smallest_true: int | None
    at: Mapping[float, _Components]

    def dice(self, choice: Choice) -> float:
        """Of the label, other labels untouched; 1 where prediction and truth are empty.

        Raises:
            KeyError: The threshold is none of those tabulated.
        """
        predicted, tp = self.at[choice.threshold].count(choice.cleaning)
        return Counts(tp=tp, fp=predicted - tp, fn=self.n_true - tp).dice


@dataclass(frozen=True, eq=False)
class CaseTable:
    """The labels 1..n of a case, and where it belongs."""

    name: str
    fold: int
    group: Hashable
    labels: tuple[LabelTable, ...]


def search(cases: Callable[[], Iterator[OutOfFoldCase]], plan: Plan, seed: int = 0) -> SearchResult:
    """Find the postprocessing that raises the mean Dice of out-of-fold predictions, and what it gains nested.

    Label by label the threshold is chosen first, with the others at the plan's; then the smallest component, largest
    only and hole filling, each taken only if it raises the label's mean Dice with what was taken before. Where the
    network gives regions, thresholds stay the plan's, as one region's moves what others paint over it, and the labels
    that regions paint are cleaned. Gains are those of all labels' choices together, as they will be used.

    Args:
        cases: Gives all cases, the same each time it is called: once where there is one label, else twice. Only one
            case is held at a time.
        plan: Decides labels.
        seed: Seed of the bootstrap and of the flips.

    Raises:
        ValueError: There are no cases.
    """
    tables = [tabulate(case, plan) for case in cases()]
    if not tables:
        raise ValueError("there are no cases to search a postprocessing on")
    fitter = _Fitter(tables, _grids(plan))
    folds = np.array([table.fold for table in tables])
    fitted = fitter.fit(np.ones(len(tables), np.bool_))
    hindrance = _hindrance(tables)
    of_folds = {} if hindrance else {int(fold): fitter.fit(folds != fold) for fold in np.unique(folds)}
    if len(plan.labels) == 1 and not plan.coding.regions:
        dice = fitter.dice(fitted, of_folds)
    else:
        dice = _dice_by_pixels(cases, plan, fitted, of_folds)
    return _result(tables, plan, fitted, of_folds, dice, hindrance, seed)


def _grids(plan: Plan) -> list[tuple[float, ...]]:
    """The thresholds to try for each label that masks hold, the plan's first."""
    if plan.coding.regions:
        return [(_PAINTED,)] * len(plan.value_names)
    return [(own, *(value for value in THRESHOLDS if value != own)) for own in plan.inference.thresholds]


def tabulate(case: OutOfFoldCase, plan: Plan) -> CaseTable:
    """Count the components of each label of a case at the plan's threshold and those of `THRESHOLDS`.

    One label's threshold is varied with the others at the plan's. Regions have one entry, at 0.5: the labels that the
    plan's thresholds paint.
    """
    valid = case.truth != IGNORED
    tables = []
    for label, grid in enumerate(_grids(plan), start=1):
        truth = case.truth == label
        level, taken = _compete(case.probabilities, plan, label, min(grid))
        tables.append(
            LabelTable(
                n_true=int(np.count_nonzero(truth)),
                smallest_true=_smallest_area(truth),
                at=_components_at(grid, level, taken, truth, valid),
            )
        )
    return CaseTable(case.name, case.fold, case.group, tuple(tables))


def _compete(
    probabilities: NDArray[np.float32], plan: Plan, label: int, lowest: float
) -> tuple[NDArray[np.float32], Mask]:
    """Where a label may win, and where it would not leave background.

    Returns:
        The highest threshold from ``lowest`` on at which each pixel still is the label's, -1 where there is none; and
        where other labels are if this one is not.
    """
    if plan.coding.regions:
        decided = plan.decide(probabilities)
        here = decided == label
        return here.astype(np.float32), (decided > 0) & ~here
    index = label - 1
    thresholds = list(plan.inference.thresholds)
    others = decide(np.delete(probabilities, index, axis=0), np.delete(thresholds, index).tolist()) > 0
    thresholds[index] = lowest
    # who is the most probable of those that reach their thresholds does not change while the label reaches its own
    wins = decide(probabilities, thresholds) == label
    return np.where(wins, probabilities[index], np.float32(-1)), others


def _smallest_area(mask: Mask) -> int | None:
    if not mask.any():
        return None
    numbers, _ = number_components(_plane(mask[_box(mask)]))
    return int(np.bincount(numbers.ravel())[1:].min())


def _components_at(
    grid: Sequence[float], level: NDArray[np.float32], taken: Mask, truth: Mask, valid: Mask
) -> dict[float, _Components]:
    """The components at each threshold of the grid."""
    box = _box(level >= np.float32(min(grid)))
    level, taken, truth, valid = (_plane(array[box]) for array in (level, taken, truth, valid))
    level = np.pad(level, 1, constant_values=-1)
    free, truth, valid = (np.pad(mask, 1) for mask in (~taken & valid, truth, valid))
    # in the dtype of the probabilities, as the decision does
    return {value: _components(level >= np.float32(value), free, truth, valid) for value in grid}


def _components(mask: Mask, free: Mask, truth: Mask, valid: Mask) -> _Components:
    """Count the components of a mask whose border is empty; ``free`` are valid pixels that can be filled."""
    numbers, n = number_components(mask)
    gaps, n_gaps = number_gaps(mask)
    around_gap = np.zeros(n_gaps + 1, np.intp)  # the component each gap lies in
    around = np.zeros(n + 1, np.intp)
    if n_gaps > 1:
        # what touches the first pixel of a component or hole from above lies around it
        above = mask[0].size
        around_gap[2:] = numbers.flat[_first_pixels(gaps, n_gaps)[2:] - above]
        around[1:] = around_gap[gaps.flat[_first_pixels(numbers, n)[1:] - above]]
    in_holes = _count(gaps, (gaps > 1) & free, truth, n_gaps)
    holes = np.stack([np.bincount(around_gap, pixels, minlength=n + 1) for pixels in in_holes]).astype(np.int64)
    return _Components(
        areas=np.bincount(numbers[mask], minlength=n + 1)[1:],
        counts=_count(numbers, mask & valid, truth, n)[:, 1:],
        holes=holes[:, 1:],
        around=around[1:],
    )


def _first_pixels(numbers: NDArray[np.integer], n: int) -> NDArray[np.intp]:
    """The place of the first pixel of each number 0..n in the flattened array; 0 for numbers that are not there."""
    flat = numbers.ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1])[::-1] + 1
    first = np.zeros(n + 1, np.intp)
    first[flat[starts]] = starts  # the last one written stays
    return first


def _count(numbers: NDArray[np.integer], counted: Mask, truth: Mask, n: int) -> PixelCounts:
    """How many pixels of each number 0..n are counted, and how many of them true: [2, n + 1]."""
    return np.stack([np.bincount(numbers[pixels], minlength=n + 1) for pixels in (counted, counted & truth)])


def _plane(array: NDArray[Any]) -> NDArray[Any]:
    """A picture [H, W] for one slice, otherwise the volume."""
    return array[0] if len(array) == 1 else array


def _box(mask: Mask) -> tuple[slice, ...]:
    """The bounding box of a mask [slices, H, W]; all slices, as a slice of a volume is no picture."""
    box = ndimage.find_objects(mask.view(np.uint8), 1)[0]
    return (slice(None), *(box[1:] if box else (slice(0), slice(0))))


class _Fitter:
    """Chooses by the tables of cases."""

    def __init__(self, tables: Sequence[CaseTable], grids: Sequence[tuple[float, ...]]) -> None:
        self._tables = tables
        self._grids = grids
        self._known: dict[tuple[int, Choice], NDArray[np.float64]] = {}

    @property
    def untouched(self) -> _Choices:
        """What changes nothing."""
        return tuple(Choice(grid[0], NO_CLEANING) for grid in self._grids)

    def fit(self, chosen: Mask) -> _Choices:
        """What does best on the chosen cases [n]."""
        return tuple(self._fit_label(label, chosen) for label in range(len(self._grids)))

    def dice(self, fitted: _Choices, of_folds: Mapping[int, _Choices]) -> NDArray[np.float64]:
        """Dice [3, cases] of one label: untouched, fitted, and what was chosen without the case's fold."""
        before = self._dice(0, self.untouched[0])
        nested = [
            self._dice(0, of_folds[table.fold][0])[index] if of_folds else math.nan
            for index, table in enumerate(self._tables)
        ]
        return np.stack([before, self._dice(0, fitted[0]), np.array(nested)])

    def _fit_label(self, label: int, chosen: Mask) -> Choice:
        best = self.untouched[label]
        best = self._best(label, chosen, best, [replace(best, threshold=value) for value in self._grids[label]])
        smallest = [{"smallest": area} for area in self._sizes(label, chosen)]
        for steps in (smallest, [{"largest_only": True}], [{"fill_holes": True}]):
            others = [replace(best, cleaning=replace(best.cleaning, **step)) for step in steps]
            best = self._best(label, chosen, best, others)
        return best

    def _best(self, label: int, chosen: Mask, best: Choice, others: Sequence[Choice]) -> Choice:
        """The best of some choices; another one than ``best`` only where it is better."""
        dice = self._dice(label, best)[chosen].mean()
        for other in others:
            if (other_dice := self._dice(label, other)[chosen].mean()) > dice + ROUNDING:
                best, dice = other, other_dice
        return best

    def _dice(self, label: int, choice: Choice) -> NDArray[np.float64]:
        """Of all cases."""
        if (label, choice) not in self._known:
            self._known[label, choice] = np.array([table.labels[label].dice(choice) for table in self._tables])
        return self._known[label, choice]

    def _sizes(self, label: int, chosen: Mask) -> list[int]:
        """The sizes to try for the smallest component."""
        smallest = (
            table.labels[label].smallest_true for table, is_one in zip(self._tables, chosen, strict=True) if is_one
        )
        areas = [area for area in smallest if area is not None]
        if not areas:
            return []
        sizes = {int(part * area) for area in np.quantile(areas, LESION_QUANTILES) for part in LESION_PARTS}
        return sorted(size for size in sizes if size > 1)


def _hindrance(tables: Sequence[CaseTable]) -> str:
    """Why the cases cannot show a gain; empty where they can."""
    if len(tables) < FEWEST_CASES:
        return f"{len(tables)} cases are too few to tell a gain from chance, {FEWEST_CASES} are needed"
    if len({table.fold for table in tables}) == 1:
        return "all cases are of one fold, there is no other to measure a gain on"
    if len({table.group for table in tables}) == 1:
        return "all cases are of one group, a gain could be that group's alone"
    return ""


def _as_postprocessing(choices: _Choices, plan: Plan) -> Postprocessing:
    own = tuple(choice.threshold for choice in choices)
    return Postprocessing(
        thresholds=plan.inference.thresholds if plan.coding.regions else own,
        cleaning=tuple(choice.cleaning for choice in choices),
    )


def _nothing(plan: Plan) -> Postprocessing:
    return Postprocessing(thresholds=plan.inference.thresholds, cleaning=(NO_CLEANING,) * len(plan.value_names))


def _dice_by_pixels(
    cases: Callable[[], Iterator[OutOfFoldCase]], plan: Plan, fitted: _Choices, of_folds: Mapping[int, _Choices]
) -> NDArray[np.float64]:
    """As `_Fitter.dice`, of the mean over labels or regions: thresholds and holes of one label can touch another."""
    nothing, on_all = _nothing(plan), _as_postprocessing(fitted, plan)
    nested = {fold: _as_postprocessing(choices, plan) for fold, choices in of_folds.items()}
    rows = []
    for case in cases():
        used = [nothing, on_all, *([nested[case.fold]] if nested else [])]
        dice = {postprocessing: _dice_after(case, plan, postprocessing) for postprocessing in {*used}}
        rows.append([*(dice[postprocessing] for postprocessing in used), *([] if nested else [math.nan])])
    return np.array(rows).T


def _dice_after(case: OutOfFoldCase, plan: Plan, postprocessing: Postprocessing) -> float:
    inference = replace(plan.inference, thresholds=postprocessing.thresholds)
    decided = replace(plan, inference=inference).decide(case.probabilities)
    mask = clean_labels(decided, postprocessing.cleaning)
    counts = count_case(mask, case.truth, plan.coding.outputs, IGNORED)
    return float(np.mean([count.dice for count in counts.values()]))


def _result(
    tables: Sequence[CaseTable],
    plan: Plan,
    fitted: _Choices,
    of_folds: Mapping[int, _Choices],
    dice: NDArray[np.float64],
    hindrance: str,
    seed: int,
) -> SearchResult:
    before, on_all, nested = dice
    groups = [table.group for table in tables]
    gain = summarise(nested - before, groups, [table.fold for table in tables], seed=seed)
    p = sign_flip_test(nested - before, groups, seed=seed).p
    n_decisions = len(fitted) * (3 if plan.coding.regions else 4)  # smallest, largest only, holes; threshold
    largest_p = LARGEST_P / n_decisions
    found, nothing = _as_postprocessing(fitted, plan), _nothing(plan)
    doubt = hindrance or _doubt(found == nothing, gain, p, largest_p)
    return SearchResult(
        fitted=found,
        of_folds={str(fold): _as_postprocessing(choices, plan) for fold, choices in of_folds.items()},
        dice_before=float(before.mean()),
        dice_fitted=float(on_all.mean()),
        dice_nested=float(nested.mean()),
        gain=gain,
        p=p,
        largest_p=largest_p,
        is_kept=not doubt,
        postprocessing=nothing if doubt else found,
        why=f"not kept: {doubt}" if doubt else f"kept: {describe_postprocessing(found, plan)}: {_gain_in_words(gain)}",
    )


def _doubt(is_nothing: bool, gain: Summary, p: float, largest_p: float) -> str:
    """Why what was found is not kept; empty where it is."""
    if is_nothing:
        return "no threshold and no cleaning raises Dice on all cases"
    if gain.mean < LEAST_GAIN:
        return f"{_gain_in_words(gain)}, less than {LEAST_GAIN}"
    if not gain.low > 0:
        return f"{_gain_in_words(gain)}, which can be chance"
    if not p <= largest_p:
        return f"{_gain_in_words(gain)}, which can be chance: p is {p:.2g}, above {largest_p:.2g}"
    return ""


def _gain_in_words(gain: Summary) -> str:
    return f"on folds it was not fitted on Dice changes by {gain.mean:+.4f} (95 % {gain.low:+.4f} to {gain.high:+.4f})"
