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
from iaunet.errors import IaunetError, PredictionError, PreprocessingError, WorkspaceError
from iaunet.inference.best import SCORES, BestFolder, BestModel
from iaunet.inference.crossval import summarise
from iaunet.inference.held_out import load_held_out
from iaunet.inference.output import RECORD
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
from iaunet.inference.report.runs import RunFacts, collect_runs, mean_dice, read_cases, split_digests, summarise_dice
from iaunet.inference.runs import Run
from iaunet.inference.scores import CaseScore, ScoreSummary, summarise_scores
from iaunet.inference.test_scores import TestLook, find_test_scores, masks_folder
from iaunet.inference.tuning import Tuning
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.folds import Splits, load_splits
from iaunet.planners.plan import Plan, decisions, load_plan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.records import load_record
from iaunet.storage import file_digest, read_json
from iaunet.workspace import DatasetFolder

if TYPE_CHECKING:
    from iaunet.detection import DetectionSummary
    from iaunet.inference.report.suspects import Suspect

MOST_SUSPECTS = 20
TEST_AGAIN = "remove its folder and run iaunet_report with --test"
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
        self.dataset = folder.load_dataset()
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
            choices=tuple(_describe_choices(self.plan)),
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
            commands=tuple(_commands(self.dataset, self.folder.name, self.runs, self.anonymous)),
        )

    def _tell_missing(self, what: str, why: str, command: str = "") -> None:
        self.missing.append(Missing(what=what, why=why, command=command))

    def _read_choice(self) -> tuple[BestModel | None, Tuning | None]:
        """What iaunet_find_best chose, if it is of the weights there are now."""
        best = BestFolder.of(self.folder)
        again = f"iaunet_find_best {self.folder.name}"
        what = "chosen model, calibration and expected Dice"
        if not best.exists:
            none_complete = not any(run.is_complete for run in self.runs)
            first = f"iaunet_train {self.folder.name} cv, then " if none_complete else ""
            self._tell_missing(
                what, "iaunet_find_best was not run: the scores are those of a single run", first + again
            )
            return None, None
        model, tuning = best.read()
        runs = {run.name: run for run in self.runs}
        for member in model.members:
            run = runs.get(member.run)
            weights = tuple(file_digest(fold.weights) for fold in Run(self.folder.runs / member.run).trained_folds())
            if run is None or run.stale or not run.is_complete or weights != member.weights_sha256:
                self._tell_missing(what, f"the choice was of other weights of {member.run} than there are now", again)
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
                f"{self.folder.name} has no scored fold yet: run iaunet_train {self.folder.name} cv first"
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
        found = read_cases(BestFolder.of(self.folder).root / SCORES, self.plan.labels)
        scores = {case.name: case for case in found}
        unit = self.shown.summary.distance_unit if self.shown.summary else "px"
        groups = {name: self.dataset.groups[name] for name in scores if name in self.dataset.groups}
        summary = summarise_scores([*scores.values()], groups, self.shown.fold_of, unit)
        return scores, self._about("model", " + ".join(member.run for member in self.model.members), summary, scores)

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
        expected = {row.name: row for row in BestFolder.of(self.folder).read_cases()} if self.model else {}
        fold_of = self.shown.fold_of
        return [
            CaseFacts(
                name=self.aliases.case(name),
                fold=fold_of[name],
                group=self.aliases.group(self.dataset.groups.get(name, "")),
                shape=shapes.get(name),
                labels=scores[name].labels,
                of_runs={run.name: mean_dice(run.cases[name]) for run in self.runs if name in run.cases},
                expected_dice=expected[name].expected_dice if name in expected else None,
                flagged=name in expected and expected[name].flagged,
                suspect=kinds.get(name, ""),
            )
            for name in sorted(scores, key=lambda name: (fold_of[name], self.aliases.case(name)))
        ]

    def _leakage(self) -> Iterator[LeakageFacts]:
        """Pairs of runs that differ by the split alone."""
        if "grouped" not in self.splits.splits or not self.splits.splits["random"].inflated:
            why = "no groups and no near duplicates are known, so the random split cannot leak"
            self._tell_missing("random against grouped", why)
            return
        pairs = [
            (random, grouped)
            for random in self.runs
            for grouped in self.runs
            if (random.split, grouped.split) == ("random", "grouped") and _differ_by_split_alone(random, grouped)
        ]
        if not pairs:
            other = "random" if self.shown.split == "grouped" else "grouped"
            why = "it takes the same network and recipe trained on both splits"
            options = _train_options(self.shown, "", "")
            self._tell_missing(
                "random against grouped", why, f"iaunet_train {self.folder.name} cv --split {other}{options}"
            )
        for random, grouped in pairs:
            yield self._compare_splits(random, grouped)

    def _compare_splits(self, random: RunFacts, grouped: RunFacts) -> LeakageFacts:
        names = [name for name in grouped.cases if name in random.cases]
        groups = [self.dataset.groups.get(name, name) for name in names]
        ours, theirs = ([mean_dice(run.cases[name]) for name in names] for run in (random, grouped))
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
            command = f"iaunet_report {self.folder.name} --test"
            self._tell_missing("scores of the held-out test set", "do it once, when all choices are made", command)
            return HeldOutFacts(n_cases=len(held_out.cases), leakage=held_out.leakage or "")
        look = scores.present
        return HeldOutFacts(
            n_cases=len(held_out.cases),
            leakage=look.leakage,
            summary=look.summary,
            n_times=scores.times,
            model=" + ".join(look.runs),
            stale=self._staleness_of_look(look),
            n_unscored=len(look.unscored),
        )

    def _staleness_of_look(self, look: TestLook) -> str:
        """Why the test set was not scored with the present model, empty if it was."""
        if self.model is not None and look.runs != tuple(member.run for member in self.model.members):
            return "it was scored with other runs than those that were chosen"
        path = masks_folder(self.folder, look) / RECORD
        record = read_json(path, PredictionError, TEST_AGAIN)
        try:
            scored = {member["weights_sha256"] for member in record["members"]}
        except (KeyError, TypeError) as fault:
            raise PredictionError(f"{path} does not say which weights predicted: {TEST_AGAIN}") from fault
        runs = [Run(self.folder.runs / name) for name in look.runs]
        present = {file_digest(fold.weights) for run in runs for fold in run.finished_folds()}
        return "" if scored <= present else "it was scored with other weights than there are now"

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
    return mine == theirs and bool(one.cases) and bool(other.cases)


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


def _describe_choices(plan: Plan) -> Iterator[Choice]:
    """What the plan decided, its values in words."""
    network, recipe = plan.network, plan.recipe
    height, width = plan.input_size
    options = "".join(f", {name.replace('_', ' ')} {value}" for name, value in network.options.items())
    tiles = f"tiles of {height} x {width} px at {plan.tile_scale:g} of the native size"
    thresholds = ", ".join(f"{threshold:g}" for threshold in plan.inference.thresholds)
    of_what = "the dataset" if plan.normalisation.kind == "dataset" else "each case"
    values = {
        "input": tiles if plan.input_mode == "tiles" else f"{plan.input_mode} to {height} x {width} px",
        "normalisation": f"by the mean and sd of {of_what}",
        "network": f"{network.name}, width {network.width}, depth {network.depth}{options}",
        "recipe": f"{recipe.name}, {recipe.epochs} epochs, batches of {recipe.batch_size}, lr {recipe.lr:g}",
        "inference": f"mirroring {'on' if plan.inference.mirroring else 'off'}, thresholds {thresholds}",
        "split": plan.split,
    }
    for name, value in values.items():
        field = "input_mode" if name == "input" else name
        yield Choice(name=name, value=value, why=plan.why.get(field, "edited by hand"))


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


def _commands(dataset: Dataset, name: str, runs: Sequence[RunFacts], anonymous: bool) -> Iterator[str]:
    """What makes the report again from the raw data."""
    yield f"iaunet_plan_and_preprocess {_plan_options(dataset.source, name, anonymous)}"
    for run in runs:
        default = f"{run.plan.network.name.rpartition(':')[2]}-{run.plan.recipe.name}-{run.split}"
        called = f" --name {shlex.quote(run.name)}" if run.name != default else ""
        split = f" --split {shlex.quote(run.split)}"
        yield f"iaunet_train {shlex.quote(name)} cv{_train_options(run, split, called)}"
    yield f"iaunet_find_best {shlex.quote(name)}"
    yield f"iaunet_report {shlex.quote(name)}{' --anonymous' if anonymous else ''}"


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
        given.append(f"--mask_suffix {' '.join(map(shlex.quote, source.mask_suffixes))}")
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
    given += f" --network_option {' '.join(map(shlex.quote, own))}" if own else ""
    given += " --weights WEIGHTS.safetensors" if "weights" in run.overrides else ""
    return f"{given}{split}{f' --seed {run.seed}' if run.seed else ''}{called}"
