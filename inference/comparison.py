"""Compares runs on the cases they held out: tables of means and intervals, and paired tests against one of them."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from iaunet.errors import PlanError, PredictionError
from iaunet.inference.crossval import Summary, pool, summarise
from iaunet.inference.permutation import PairedTest, holm, sign_flip_test
from iaunet.inference.published import PAPER_METRICS, TITLES
from iaunet.inference.runs import Run, RunRecord
from iaunet.inference.scores import CaseScore, read_scores
from iaunet.planners.folds import Split, load_splits
from iaunet.planners.plan import Plan, load_plan
from iaunet.records import to_json
from iaunet.storage import digest, read_json
from iaunet.workspace import DatasetFolder

Size = Literal["native", "input"]
"""Of the masks that are scored: the images' own, or the network's input."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contestant:
    """A run with the scores of the cases that its scored folds held out, by size and fold.

    ``title`` tells it from the others: its network, and the settings that only it has.
    """

    run: Run
    record: RunRecord
    title: str
    scores: Mapping[Size, Mapping[int, Sequence[CaseScore]]]

    @property
    def epochs(self) -> int:
        """How long a fold was trained."""
        return self.record.epochs or self.record.plan.recipe.epochs

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that were scored."""
        return tuple(sorted(self.scores["native"]))

    def cases(self, size: Size, folds: Iterable[int]) -> dict[str, CaseScore]:
        """The scores of the cases that these folds held out, by name."""
        by_fold = self.scores[size]
        return {score.name: score for fold in folds for score in by_fold.get(fold, ())}

    def fold_of(self, size: Size, folds: Iterable[int]) -> dict[str, int]:
        """The fold that held each of these cases out."""
        return {score.name: fold for fold in folds for score in self.scores[size].get(fold, ())}


@dataclass(frozen=True, kw_only=True, eq=False)
class Contest:
    """Runs that can be compared: of one state of the data and its labels, one split and one recipe.

    ``knows_split`` tells whether the split is among those planned now. ``n_folds`` is the number of its folds; of one
    that is not known, of the folds up to the last that was scored. ``inflated`` is empty, or says why its scores are
    too good. ``is_current`` tells whether their data are those planned now. ``reference`` is the one that the others
    are tested against, None where it has not been trained.
    """

    recipe: str
    split: str
    inflated: str
    knows_split: bool
    n_folds: int
    is_current: bool
    groups: Mapping[str, str]
    contestants: tuple[Contestant, ...]
    reference: Contestant | None

    @cached_property
    def fold_sets(self) -> list[tuple[int, ...]]:
        """The folds to make tables of: all, and all but the first, on which settings may have been chosen."""
        every = tuple(range(self.n_folds))
        scored = {fold for contestant in self.contestants for fold in contestant.folds}
        return [every, every[1:]] if 0 in scored and scored > {0} else [every]

    @property
    def labels(self) -> tuple[str, ...]:
        """What is scored."""
        return self.contestants[0].record.plan.labels

    @cached_property
    def tables(self) -> "list[Table]":
        """A table for each label, size and set of folds."""
        return [
            Table(label=label, size=size, folds=folds, standings=tuple(rank(self, label, size, folds)))
            for label in self.labels
            for size in get_args(Size)
            for folds in self.fold_sets
        ]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A row of a table: how one run did on the cases that some folds held out.

    ``folds`` are those of the table that were scored; it is complete if they are all of them. ``tests`` are those
    against the reference by metric, on the cases that both held out, and ``adjusted`` their p values after Holm's
    correction over the other runs of the table; both are empty for the reference itself and without one. ``means`` are
    over cases, ``pooled`` over their pixels, by metric; ``n_empty`` cases have no pixel of the label.
    """

    contestant: Contestant
    folds: tuple[int, ...]
    is_complete: bool
    n_cases: int
    n_empty: int
    means: Mapping[str, Summary]
    pooled: Mapping[str, float]
    tests: Mapping[str, PairedTest]
    adjusted: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Table:
    """How the runs of a contest did on one label at one size, on the cases that these folds held out."""

    label: str
    size: Size
    folds: tuple[int, ...]
    standings: tuple[Standing, ...]


def collect_contests(folder: DatasetFolder, runs: Sequence[Run], reference: str = "iaunet") -> list[Contest]:
    """Sort runs into contests, those with the most runs first.

    Args:
        folder: The dataset that the runs were trained on.
        runs: Runs with a scored fold, with or without their weights.
        reference: The run, or else the network, that the others are tested against.

    Raises:
        PredictionError: No run has scores of held-out cases, or the scores of a fold cannot be read.
        TrainingError: The record of a run is damaged.
    """
    dataset = folder.load_cases()
    planned, splits = _planned(folder), _splits(folder)
    sorted_runs: dict[tuple[str, str, str, str, tuple[str, ...]], list[Run]] = {}
    for run in runs:
        if run.scored_folds():
            plan, record = run.record.plan, run.record
            key = (plan.recipe.name, record.split, record.split_digest, plan.fingerprint, plan.labels)
            sorted_runs.setdefault(key, []).append(run)
    if not sorted_runs:
        raise PredictionError(f"{folder.name} has no scored fold yet: run iaunet_train {folder.name} 0 first")
    contests = []
    for (recipe, split, split_digest, fingerprint, _), members in sorted_runs.items():
        contestants = _contestants(members, planned)
        known = splits.get(split_digest)
        highest = max(fold for contestant in contestants for fold in contestant.folds)
        contests.append(
            Contest(
                recipe=recipe,
                split=split,
                inflated=known.inflated if known else _recorded_inflation(members),
                knows_split=known is not None,
                n_folds=len(known.folds) if known else highest + 1,
                is_current=planned is not None and planned.fingerprint == fingerprint,
                groups=dataset.groups,
                contestants=contestants,
                reference=_find_reference(contestants, reference, planned),
            )
        )
    return sorted(contests, key=lambda contest: (-len(contest.contestants), contest.recipe, contest.split))


def rank(contest: Contest, label: str, size: Size, folds: Sequence[int]) -> list[Standing]:
    """The table of one label: a row for every run that scored a case in these folds, in the order of the contest."""
    standings = []
    for contestant in contest.contestants:
        cases = contestant.cases(size, folds)
        if not cases:
            continue
        fold_of = contestant.fold_of(size, folds)
        groups = [contest.groups.get(name, name) for name in cases]
        scores = [case.labels[label] for case in cases.values()]
        scored = tuple(sorted(set(fold_of.values())))
        standings.append(
            Standing(
                contestant=contestant,
                folds=scored,
                is_complete=scored == tuple(folds),
                n_cases=len(cases),
                n_empty=sum(score.counts.truth_is_empty for score in scores),
                means={
                    metric: summarise([score.metrics[metric] for score in scores], groups, [*fold_of.values()])
                    for metric in PAPER_METRICS
                },
                pooled=pool([score.counts for score in scores]),
                tests=_tests(contest, contestant, label, size, folds),
                adjusted={},
            )
        )
    return _adjusted(standings)


def _tests(
    contest: Contest, contestant: Contestant, label: str, size: Size, folds: Sequence[int]
) -> dict[str, PairedTest]:
    """The paired test of each of the paper's metrics against the reference."""
    if contest.reference is None or contestant is contest.reference:
        return {}
    own, others = contestant.cases(size, folds), contest.reference.cases(size, folds)
    common = [name for name in own if name in others]
    groups = [contest.groups.get(name, name) for name in common]
    return {
        metric: sign_flip_test(
            [own[name].labels[label].metrics[metric] - others[name].labels[label].metrics[metric] for name in common],
            groups,
        )
        for metric in PAPER_METRICS
    }


def _adjusted(standings: Sequence[Standing]) -> list[Standing]:
    tested = {standing.contestant.run.name: standing for standing in standings if standing.tests}
    by_metric = {
        metric: holm({name: standing.tests[metric].p for name, standing in tested.items()}) for metric in PAPER_METRICS
    }
    return [
        dataclasses.replace(
            standing,
            adjusted={metric: by_metric[metric][standing.contestant.run.name] for metric in PAPER_METRICS}
            if standing.tests
            else {},
        )
        for standing in standings
    ]


def _contestants(runs: Sequence[Run], planned: Plan | None) -> tuple[Contestant, ...]:
    titles = _titles([run.record.plan for run in runs], [run.name for run in runs], planned)
    contestants = [
        Contestant(run=run, record=run.record, title=title, scores=_read_scores(run))
        for run, title in zip(runs, titles, strict=True)
    ]
    position = {name: i for i, name in enumerate(TITLES)}
    # the paper's order; settings of one network by their titles, the plain one first
    return tuple(
        sorted(contestants, key=lambda each: (position.get(each.record.plan.network.name, len(position)), each.title))
    )


def _titles(plans: Sequence[Plan], names: Sequence[str], planned: Plan | None) -> list[str]:
    """A title for each run: the network, and what sets it apart from the plan's or from others of this network."""
    titles = []
    for plan in plans:
        network = plan.network
        title = TITLES.get(network.name, network.name)
        usual = planned.network.options if planned is not None and planned.network.name == network.name else {}
        apart = [f"{key} {value}" for key, value in network.options.items() if (key, value) not in usual.items()]
        titles.append(f"{title} ({', '.join(apart)})" if apart else title)
    doubles = {title for title, n in Counter(titles).items() if n > 1}
    return [f"{title} [{name}]" if title in doubles else title for title, name in zip(titles, names, strict=True)]


def _read_scores(run: Run) -> dict[Size, dict[int, Sequence[CaseScore]]]:
    """The scores of every scored fold; those whose weights are there must be of these weights."""
    native: dict[int, Sequence[CaseScore]] = {}
    at_input: dict[int, Sequence[CaseScore]] = {}
    for folder in run.scored_folds():
        if folder.weights.exists():
            folder.weights_digest()
        native[int(folder.fold)] = _read_fold(folder.scores_csv, run.record.plan.labels)
        if folder.input_scores_csv.exists():
            at_input[int(folder.fold)] = _read_fold(folder.input_scores_csv, run.record.plan.labels)
    return {"native": native, "input": at_input}


def _read_fold(path: Path, labels: Sequence[str]) -> list[CaseScore]:
    """The scores of the cases of a fold, each with every label: a file that was cut short may lack some."""
    scores = read_scores(path)
    for score in scores:
        if {*score.labels} != {*labels}:
            raise PredictionError(
                f"{path} does not score {', '.join(labels)} of case {score.name!r}: "
                "run iaunet_train with --val_only for this fold"
            )
    return scores


def _recorded_inflation(runs: Sequence[Run]) -> str:
    """Why the scores of a split that is not known are too good, as its folds say."""
    for run in runs:
        for folder in run.scored_folds():
            summary = read_json(folder.summary_json, PredictionError, "train this fold again")
            if isinstance(summary, dict) and summary.get("inflated"):
                return str(summary["inflated"])
    return ""


def _find_reference(contestants: Sequence[Contestant], wish: str, planned: Plan | None) -> Contestant | None:
    by_run = [each for each in contestants if each.run.name == wish]
    by_network = [each for each in contestants if each.record.plan.network.name == wish]
    as_planned = [each for each in by_network if planned is not None and each.record.plan.network == planned.network]
    return next(iter([*by_run, *as_planned, *by_network]), None)


def _splits(folder: DatasetFolder) -> dict[str, Split]:
    """The splits of a dataset by the digests that runs name them with."""
    try:
        splits = load_splits(folder.splits_json).splits.values()
    except PlanError:
        return {}
    return {digest(to_json(split.folds)): split for split in splits}


def _planned(folder: DatasetFolder) -> Plan | None:
    try:
        return load_plan(folder.plan_json)
    except PlanError:
        return None
