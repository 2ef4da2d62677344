"""Gathers what the report of a dataset says from the files of its folder."""

import dataclasses
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from iaunet.dataset import Dataset, Source
from iaunet.errors import IaunetError, PlanError, PredictionError, PreprocessingError, WorkspaceError
from iaunet.inference.best import AGAIN, SCORES, BestFolder, BestModel, CaseRow, Chosen
from iaunet.inference.crossval import summarise
from iaunet.inference.held_out import load_held_out
from iaunet.inference.held_out_scores import find_staleness, find_test_scores
from iaunet.inference.postprocessing import describe_postprocessing
from iaunet.inference.report.facts import (
    CaseFacts,
    Choice,
    ChosenFacts,
    DataFacts,
    FoldSize,
    HeldOutFacts,
    LeakageFacts,
    Missing,
    ReportFacts,
    ScoredFacts,
    SplitFacts,
)
from iaunet.inference.report.masks import HeldOutMasks
from iaunet.inference.report.runs import (
    OWN_SPLITS,
    RunFacts,
    collect_runs,
    read_cases,
    split_digests,
    summarise_cases,
    summarise_dice,
)
from iaunet.inference.runs import Run
from iaunet.inference.scores import CaseScore, ScoreSummary
from iaunet.inference.tuning import Tuning
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.folds import Splits, load_splits
from iaunet.planners.plan import EDITED, Plan, content_digest, decisions, load_plan, with_reasons
from iaunet.planners.planner import find_planner
from iaunet.preprocessing.arrays import open_arrays
from iaunet.records import load_record
from iaunet.storage import file_digest
from iaunet.workspace import DatasetFolder

if TYPE_CHECKING:
    from iaunet.detection import DetectionSummary
    from iaunet.inference.report.suspects import Suspect

MOST_SUSPECTS = 20
UNKNOWN_REASON = "plan.json was edited by hand: the planner's reason may not hold"
PLAN_AGAIN = "iaunet_plan_and_preprocess DATA_FOLDER"


def gather_facts(folder: DatasetFolder, anonymous: bool = False) -> ReportFacts:
    """Gather everything the report says.

    Args:
        folder: The dataset's folder in the workspace.
        anonymous: Replace the names of cases and groups by numbers, and leave paths out.

    Raises:
        PredictionError: No fold was scored yet, or what was written of a run or of the choice is damaged.
        PlanError: The plan or the folds are missing or damaged.
        TrainingError: The record of a run is damaged.
        WorkspaceError: dataset.json or fingerprint.json is missing or damaged.
    """
    return Gathering(folder, anonymous).gather()


class Aliases:
    """What cases and groups are called in the report: by their names, or by numbers in the order of the dataset.

    Args:
        dataset: Knows the cases and groups.
        anonymous: Whether to number them.
        others: Cases of runs, among them those that the dataset has no more.
    """

    def __init__(self, dataset: Dataset, anonymous: bool, others: Iterable[str] = ()) -> None:
        cases = [*dict.fromkeys([*(case.name for case in dataset.cases), *others])]
        groups = [*dict.fromkeys(dataset.groups[name] for name in cases if name in dataset.groups)]
        self._cases = _numbered("case", cases) if anonymous else dict(zip(cases, cases, strict=True))
        self._groups = _numbered("group", groups) if anonymous else dict(zip(groups, groups, strict=True))

    def case(self, name: str) -> str:
        """What a case is called."""
        return self._cases[name]

    def group(self, name: str) -> str:
        """What a group is called; an empty one stays empty."""
        return self._groups[name] if name else ""


def _numbered(what: str, names: Sequence[str]) -> dict[str, str]:
    digits = max(3, len(str(len(names))))
    return {name: f"{what}_{number:0{digits}}" for number, name in enumerate(names, start=1)}


class Gathering:
    """Gathers the facts of one dataset; the masks and raw data behind them stay within reach for pictures.

    Args and errors are those of `gather_facts`.
    """

    def __init__(self, folder: DatasetFolder, anonymous: bool) -> None:
        self.folder = folder
        self.anonymous = anonymous
        self.dataset = folder.load_cases()
        self.plan: Plan = load_plan(folder.plan_json)
        self.splits: Splits = load_splits(folder.splits_json)
        self.missing: list[Missing] = []
        self.runs = collect_runs(folder, self.plan, split_digests(self.splits.splits), self.dataset.groups)
        self.aliases = Aliases(self.dataset, anonymous, (name for run in self.runs for name in run.cases))
        self.model, self.tuning = self._read_choice()
        self.shown = self._choose_shown()

    def gather(self) -> ReportFacts:
        """Everything, with the names of cases and groups as they are called in the report."""
        fingerprint = load_record(Fingerprint, self.folder.fingerprint_json, WorkspaceError, f"run {PLAN_AGAIN} again")
        detection, suspects = self._detection(), self._suspects()
        cases, scored = self._scored_cases()
        return ReportFacts(
            dataset=self.folder.name,
            anonymous=self.anonymous,
            iaunet=version("iaunet"),
            data=_describe_data(self.dataset, fingerprint, self.aliases, self.anonymous),
            plan=self.plan,
            choices=tuple(_describe_choices(self.plan, self._planned(fingerprint))),
            splits=tuple(_describe_splits(self.splits, self.dataset.groups)),
            missing_splits=self.splits.missing,
            runs=tuple(map(self._aliased, self.runs)),
            shown=self._aliased(self.shown),
            chosen=self._describe_choice(),
            scored=scored,
            leakage=tuple(self._leakage()),
            cases=tuple(self._describe_cases(cases, fingerprint, suspects)),
            detection=detection,
            suspects=tuple(dataclasses.replace(suspect, name=self.aliases.case(suspect.name)) for suspect in suspects),
            calibration=self.tuning.calibration if self.tuning else None,
            expected_dice=self.tuning.expected_dice if self.tuning else None,
            held_out=self._held_out(),
            missing=tuple(self.missing),
            commands=tuple(_commands(self.dataset, self.folder.name, self.plan, self.runs, self.anonymous)),
        )

    @property
    def _quoted(self) -> str:
        """The dataset's name in a command."""
        return shlex.quote(self.folder.name)

    @property
    def _chosen(self) -> Chosen | None:
        """What iaunet_find_best chose, as prediction wants it."""
        if self.model is None or self.tuning is None:
            return None
        return Chosen(runs=[member.run for member in self.model.members], tuning=self.tuning)

    def _planned(self, fingerprint: Fingerprint) -> Plan | None:
        """The plan as the planner made it; None where that is not known any more."""
        if not self.plan.is_edited:
            return self.plan
        try:
            planner = find_planner(self.plan.planner)
            made = planner.plan(self.dataset, fingerprint, self.dataset.source.width, self.splits.missing)
        except PlanError:
            return None
        return made if content_digest(made) == self.plan.planned else None

    def _tell_missing(self, what: str, why: str, command: str = "") -> None:
        self.missing.append(Missing(what=what, why=why, command=command))

    def _read_choice(self) -> tuple[BestModel | None, Tuning | None]:
        """What iaunet_find_best chose, if it is of the weights there are now."""
        best = BestFolder.of(self.folder)
        again = f"iaunet_find_best {self._quoted}"
        what = "chosen model, calibration and expected Dice"
        if not best.exists:
            none_complete = not any(run.is_complete for run in self.runs)
            first = f"iaunet_train {self._quoted} cv, then " if none_complete else ""
            self._tell_missing(
                what, "iaunet_find_best was not run: the scores are those of a single run", first + again
            )
            return None, None
        model, tuning = best.read()
        runs = {run.name: run for run in self.runs}
        for member in model.members:
            run = runs.get(member.run)
            weights = tuple(file_digest(fold.weights) for fold in Run(self.folder.runs / member.run).trained_folds())
            if run is None or run.stale or weights != member.weights_sha256:
                self._tell_missing(what, f"the choice was of other weights of {member.run} than there are now", again)
                return None, None
            if not run.is_complete:
                why = f"the choice was of {member.run}, which has not every fold yet"
                self._tell_missing(what, why, f"iaunet_train {self._quoted} cv, then {again}")
                return None, None
            if not run.is_current:
                why = f"the choice was of {member.run}, which was trained on another state of the data or the folds"
                self._tell_missing(what, why, f"iaunet_train {self._quoted} cv, then {again}")
                return None, None
        absent = {"calibration": tuning.calibration, "expected Dice": tuning.expected_dice}
        for part in (name for name, found in absent.items() if found is None):
            self._tell_missing(part, "the model was chosen before this was measured", again)
        return model, tuning

    def _choose_shown(self) -> RunFacts:
        """The best member of the chosen model; without one the best run, of the present data and complete if any is."""
        scored = [run for run in self.runs if run.cases]
        if not scored:
            raise PredictionError(
                f"{self.folder.name} has no scored fold yet: run iaunet_train {self._quoted} cv first"
            )
        members = {member.run for member in self.model.members} if self.model else {run.name for run in scored}
        among = [run for run in scored if run.name in members]
        planned = self.plan.split
        return max(
            among, key=lambda run: (run.is_current, not run.stale, run.is_complete, run.split == planned, run.dice)
        )

    def _scored_cases(self) -> tuple[Mapping[str, CaseScore], ScoredFacts]:
        """The scores the report is about: those of the chosen model, else of the shown run."""
        if self.model is None or self.tuning is None:
            assert self.shown.summary is not None  # a run is shown only if it was scored
            return self.shown.cases, self._about("run", self.shown.name, self.shown.summary, self.shown.cases)
        path = BestFolder.of(self.folder).root / SCORES
        scores = {case.name: case for case in read_cases(path, self.plan.labels)}
        if {*scores} != ({*self._expected} or {*self.shown.fold_of}):
            raise PredictionError(f"{path} does not hold the cases of the chosen model: {AGAIN}")
        unit = self.shown.summary.distance_unit if self.shown.summary else "px"
        folds = {name: self.shown.fold_of[name] for name in scores}
        summary = summarise_cases([*scores.values()], self.dataset.groups, folds, unit)
        return scores, self._about("model", " + ".join(member.run for member in self.model.members), summary, scores)

    @cached_property
    def _expected(self) -> Mapping[str, CaseRow]:
        """What was expected of each case of the chosen model."""
        return {row.name: row for row in BestFolder.of(self.folder).read_cases()} if self.model else {}

    def _about(
        self, of: Literal["model", "run"], title: str, summary: ScoreSummary, scores: Mapping[str, CaseScore]
    ) -> ScoredFacts:
        return ScoredFacts(
            of=of,
            title=title,
            split=self.shown.split,
            inflated=self.shown.inflated,
            folds=tuple(fold.fold for fold in self.shown.folds),
            n_folds=self.shown.n_folds,
            summary=summary,
            overall=summarise_dice([*scores.values()], self.dataset.groups, self.shown.fold_of),
        )

    def _describe_cases(
        self, scores: Mapping[str, CaseScore], fingerprint: Fingerprint, suspects: "Sequence[Suspect]"
    ) -> list[CaseFacts]:
        shapes = {case.name: case.shape for case in fingerprint.cases}
        kinds = {suspect.name: suspect.kind for suspect in suspects}
        expected, fold_of = self._expected, self.shown.fold_of
        return [
            CaseFacts(
                name=self.aliases.case(name),
                fold=fold_of[name],
                group=self.aliases.group(self.dataset.groups.get(name, "")),
                shape=shapes.get(name),
                labels=scores[name].labels,
                of_runs={run.name: run.cases[name].dice for run in self.runs if name in run.cases},
                expected_dice=expected[name].expected_dice if name in expected else None,
                flagged=name in expected and expected[name].flagged,
                suspect=kinds.get(name, ""),
            )
            for name in sorted(scores, key=lambda name: (fold_of[name], self.aliases.case(name)))
        ]

    def _leakage(self) -> Iterator[LeakageFacts]:
        """Pairs of runs that differ by the split alone."""
        if not self.splits.splits["random"].inflated:
            why = "no groups and no near duplicates are known, so whether the random split leaks cannot be told"
            self._tell_missing("random against grouped", why)
            return
        if "grouped" not in self.splits.splits:
            why = self.splits.missing.get("grouped", "there is no grouped split")
            self._tell_missing("random against grouped", why)
            return
        pairs = [
            (random, grouped)
            for random in self.runs
            for grouped in self.runs
            if (random.split, grouped.split) == OWN_SPLITS and _differ_by_split_alone(random, grouped)
        ]
        if not pairs:
            other = "random" if self.shown.split == "grouped" else "grouped"
            why = "it takes the same network and recipe trained on both splits as they are now"
            options = _train_options(self.shown, f" --split {other}", "")
            self._tell_missing("random against grouped", why, f"iaunet_train {self._quoted} cv{options}")
        for random, grouped in pairs:
            yield self._compare_splits(random, grouped)

    def _compare_splits(self, random: RunFacts, grouped: RunFacts) -> LeakageFacts:
        names = [name for name in grouped.cases if name in random.cases]
        groups = [self.dataset.groups.get(name, name) for name in names]
        ours, theirs = ([run.cases[name].dice for name in names] for run in (random, grouped))
        return LeakageFacts(
            network=random.title,
            recipe=random.plan.recipe.name,
            random_run=random.name,
            grouped_run=grouped.name,
            n_cases=len(names),
            random=summarise(ours, groups),
            grouped=summarise(theirs, groups),
            difference=summarise([mine - other for mine, other in zip(ours, theirs, strict=True)], groups),
        )

    def _detection(self) -> "dict[str, DetectionSummary]":
        from iaunet.detection import detect

        masks = self.shown_masks
        if masks is None:
            return {}
        try:
            found = detect(masks.pairs(), self.shown.plan.coding.outputs)
        except (PredictionError, PreprocessingError) as fault:
            self._tell_missing("detection", self._public(fault))
            return {}
        return dict(zip(self.shown.plan.labels, found, strict=True))

    def _suspects(self) -> "tuple[Suspect, ...]":
        from iaunet.inference.report.suspects import find_suspects

        names = [member.run for member in self.model.members] if self.model else [self.shown.name]
        runs = [Run(self.folder.runs / name) for name in names]
        if not any(fold.logits.is_dir() for run in runs for fold in run.scored_folds()):
            self._tell_missing("suspect labels", "the logits of the held-out cases are not there")
            return ()
        calibration = self.tuning.calibration if self.tuning else None
        temperatures = calibration.temperatures if calibration else None
        try:
            return find_suspects(self.folder, runs, temperatures, MOST_SUSPECTS)
        except (PredictionError, PreprocessingError) as fault:
            self._tell_missing("suspect labels", self._public(fault))
            return ()

    @cached_property
    def shown_masks(self) -> HeldOutMasks | None:
        """The masks of the shown run, None where the arrays it was trained on are gone."""
        try:
            arrays = open_arrays(self.folder.preprocessed, self.shown.plan.arrays_digest)
        except PreprocessingError as fault:
            self._tell_missing("detection and pictures", self._public(fault))
            return None
        return HeldOutMasks(self.folder.runs / self.shown.name, self.shown, arrays)

    def _public(self, fault: IaunetError) -> str:
        """What is wrong, without names and paths in an anonymous report."""
        return "files of it are missing or damaged" if self.anonymous else str(fault)

    def _held_out(self) -> HeldOutFacts | None:
        if not self.folder.held_out_json.exists():
            return None
        held_out, scores = load_held_out(self.folder), find_test_scores(self.folder)
        if scores is None:
            command = f"iaunet_report {self._quoted} --test"
            self._tell_missing("scores of the held-out test set", "do it once, when all choices are made", command)
            return HeldOutFacts(n_cases=len(held_out.cases), leakage=held_out.leakage or "")
        look = scores.present
        return HeldOutFacts(
            n_cases=len(held_out.cases),
            leakage=look.leakage,
            summary=look.summary,
            n_times=scores.times,
            model=" + ".join(look.runs),
            stale=find_staleness(self.folder, look, self._chosen),
            n_unscored=len(look.unscored),
        )

    def _describe_choice(self) -> ChosenFacts | None:
        if self.model is None or self.tuning is None:
            return None
        postprocessing = self.tuning.postprocessing
        return ChosenFacts(
            runs=tuple(member.run for member in self.model.members),
            candidates=self.model.candidates,
            why=self.model.why,
            masks=describe_postprocessing(postprocessing, self.plan) if postprocessing else "as they come",
            masks_why=self.model.postprocessing_why,
        )

    def _aliased(self, run: RunFacts) -> RunFacts:
        """A run with the cases as they are called in the report."""
        name = self.aliases.case
        overrides = {option: value for option, value in run.overrides.items() if option != "weights"}
        return dataclasses.replace(
            run,
            overrides=overrides if self.anonymous else run.overrides,
            cases={name(case): dataclasses.replace(score, name=name(case)) for case, score in run.cases.items()},
            fold_of={name(case): fold for case, fold in run.fold_of.items()},
        )


def _differ_by_split_alone(one: RunFacts, other: RunFacts) -> bool:
    mine, theirs = ({**decisions(run.plan), "split": "", "epochs": run.epochs} for run in (one, other))
    return mine == theirs and all(run.cases and run.is_current for run in (one, other))


def _describe_data(dataset: Dataset, fingerprint: Fingerprint, aliases: Aliases, anonymous: bool) -> DataFacts:
    cases = fingerprint.cases
    sizes = Counter(case.size for case in cases)
    usual, n_usual = sizes.most_common(1)[0]
    groups = Counter(dataset.groups.values()).most_common()
    (low, left), (high, right) = fingerprint.sizes.min(0).tolist(), fingerprint.sizes.max(0).tolist()
    spacings = [case.spacing_mm for case in cases if case.spacing_mm is not None]
    spacing = tuple(np.median(spacings, axis=0).tolist()) if len(spacings) == len(cases) else None
    return DataFacts(
        n_cases=len(cases),
        n_volumes=sum(case.shape[0] > 1 for case in cases),
        n_slices=sum(case.shape[0] for case in cases),
        n_empty=fingerprint.empty_masks,
        n_groups=len(groups),
        groups_from=dataset.groups_from.split()[0] if anonymous else dataset.groups_from,
        group_sizes=tuple((aliases.group(name), n) for name, n in groups),
        labels=dataset.labels,
        channels=fingerprint.channels,
        depth=fingerprint.depth,
        smallest=(low, left),
        largest=(high, right),
        usual=usual,
        n_usual=n_usual,
        n_sizes=len(sizes),
        spacing_mm=spacing,
        foreground_share=float(np.median([case.foreground_share for case in cases])),
        n_copies=sum(len(group) - 1 for group in fingerprint.exact_duplicates),
        n_near=sum(map(len, fingerprint.near_duplicates)),
        ceiling=float(np.median(fingerprint.ceilings)) if len(fingerprint.ceilings) else None,
        fingerprint=fingerprint.digest,
        understood="" if anonymous else dataset.understood,
    )


def _describe_choices(plan: Plan, planned: Plan | None) -> Iterator[Choice]:
    """What the plan decided, its values in words, each with its reason unless it was edited since it was planned."""
    network, recipe = plan.network, plan.recipe
    height, width = plan.input_size
    options = "".join(f", {name.replace('_', ' ')} {value}" for name, value in network.options.items())
    tiles = f"tiles of {height} x {width} px at {plan.tile_scale:g} of the native size"
    thresholds = ", ".join(f"{threshold:g}" for threshold in plan.inference.thresholds)
    of_what = "the dataset" if plan.normalisation.kind == "dataset" else "each case"
    values = {
        "input_mode": tiles if plan.input_mode == "tiles" else f"{plan.input_mode} to {height} x {width} px",
        "normalisation": f"by the mean and sd of {of_what}",
        "network": f"{network.name}, width {network.width}, depth {network.depth}{options}",
        "recipe": f"{recipe.name}, {recipe.epochs} epochs, batches of {recipe.batch_size}, lr {recipe.lr:g}",
        "inference": f"mirroring {'on' if plan.inference.mirroring else 'off'}, thresholds {thresholds}",
        "split": plan.split,
    }
    why = with_reasons(plan, planned).why if planned else dict.fromkeys(values, UNKNOWN_REASON)
    for name, value in values.items():
        yield Choice(name=name.removesuffix("_mode"), value=value, why=why.get(name, EDITED))


def _describe_splits(splits: Splits, groups: Mapping[str, str]) -> Iterator[SplitFacts]:
    for split in splits.splits.values():
        sizes = [
            FoldSize(
                fold=i,
                n_train=len(fold.train),
                n_held_out=len(fold.validation),
                n_groups=len({groups[name] for name in fold.validation if name in groups}),
            )
            for i, fold in enumerate(split.folds)
        ]
        yield SplitFacts(name=split.name, inflated=split.inflated, folds=tuple(sizes))


def _commands(dataset: Dataset, name: str, plan: Plan, runs: Sequence[RunFacts], anonymous: bool) -> Iterator[str]:
    """What makes the report again from the raw data."""
    quoted = shlex.quote(name)
    yield f"iaunet_plan_and_preprocess {_plan_options(dataset.source, name, anonymous)}"
    if plan.is_edited:
        yield f"cp PLAN.json WORKSPACE/{quoted}/plan.json"
        yield f"iaunet_plan_and_preprocess {quoted}"
    for run in runs:
        default = f"{run.plan.network.name.rpartition(':')[2]}-{run.plan.recipe.name}-{run.split}"
        is_own = run.split in OWN_SPLITS
        called = "" if is_own and run.name == default else f" --name {shlex.quote(run.name)}"
        split = f" --split {run.split if is_own else 'SPLIT.json'}"
        yield f"iaunet_train {quoted} cv{_train_options(run, split, called)}"
    yield f"iaunet_find_best {quoted}"
    yield f"iaunet_report {quoted}{' --anonymous' if anonymous else ''}"


def _plan_options(source: Source, name: str, anonymous: bool) -> str:
    paths = {"images": source.images, "masks": source.masks, "groups": source.groups, "test": source.test}
    given = [
        f"--{option} {option.upper() if anonymous else shlex.quote(path)}" for option, path in paths.items() if path
    ]
    if source.skip_faulty:
        given.append("--skip_faulty")
    if source.missing_mask != "error":
        given.append(f"--missing_mask {source.missing_mask}")
    if source.mask_suffixes:
        suffixes = "MASK_SUFFIX" if anonymous else " ".join(map(shlex.quote, source.mask_suffixes))
        given.append(f"--mask_suffix {suffixes}")
    values = {"slice_axis": source.slice_axis, "axes": source.axes, "width": source.width, "folds": source.n_folds}
    usual = {"folds": 5, "planner": "auto"}
    given += [
        f"--{option} {value}"
        for option, value in {**values, "planner": source.planner}.items()
        if value is not None and value != usual.get(option)
    ]
    if name != Path(source.root).name:
        given.append(f"--dataset_name {shlex.quote(name)}")
    return " ".join(["DATA_FOLDER" if anonymous else shlex.quote(source.root), *given])


def _train_options(run: RunFacts, split: str, called: str) -> str:
    """What a run was trained with otherwise than planned."""
    options = {name: value for name, value in run.overrides.items() if name not in ("memory_gb", "weights")}
    own = [f"{name.removeprefix('network_options.')}={value}" for name, value in options.items() if "." in name]
    given = "".join(f" --{name} {shlex.quote(str(value))}" for name, value in options.items() if "." not in name)
    given += "".join(f" --network_option {shlex.quote(option)}" for option in own)
    given += " --weights WEIGHTS.safetensors" if "weights" in run.overrides else ""
    return f"{given}{split}{f' --seed {run.seed}' if run.seed else ''}{called}"
