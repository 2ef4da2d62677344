"""Finds the best model of a dataset on its out-of-fold predictions: runs, ensembles, and the cleaning of masks."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from iaunet.dataset import IGNORED, Dataset
from iaunet.errors import PredictionError
from iaunet.inference.best import CASES, CROSSVAL, SCORES, BestFolder, BestModel, Candidate, CaseRow, write_case_table
from iaunet.inference.calibration import (
    Calibration,
    LogitTable,
    Reliability,
    nested_temperatures,
    temperatures_of,
)
from iaunet.inference.crossval import summarise
from iaunet.inference.expected_dice import ExpectedDice, Judged, features_of, judge
from iaunet.inference.out_of_fold_ensemble import Entrant, OutOfFoldEnsemble, case_statistics, logit_tables
from iaunet.inference.postprocessing import Postprocessing, clean_labels, describe_postprocessing
from iaunet.inference.postprocessing_search import OutOfFoldCase, SearchResult, search
from iaunet.inference.runs import list_runs
from iaunet.inference.scores import CaseScore, score_masks, summarise_scores, write_scores
from iaunet.inference.tuning import Tuning
from iaunet.metrics import count_case
from iaunet.planners.folds import Split, find_split, load_splits
from iaunet.planners.plan import Plan, load_plan, with_thresholds
from iaunet.preprocessing.arrays import Arrays, open_arrays
from iaunet.records import to_json
from iaunet.storage import digest, write_json
from iaunet.workers import default_workers
from iaunet.workspace import DatasetFolder, locked

logger = logging.getLogger(__name__)

MOST_IN_ENSEMBLES = 5
"""So many of the best runs are tried together, in pairs and all at once."""

LACKS = "lacks fold"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found, the runs that could not be compared with the reasons, the folds that not all runs have and that
    nothing was learnt from, and where it was written.

    ``masks`` says in words how they are postprocessed.
    """

    model: BestModel
    tuning: Tuning
    masks: str
    search: SearchResult
    left_out: Mapping[str, str]
    missing: tuple[int, ...]
    folder: BestFolder


def find_best(folder: DatasetFolder, split: str | None = None, seed: int = 0, incomplete: bool = False) -> Finding:
    """Choose the runs and the postprocessing that do best on the cases that each fold held out.

    Args:
        folder: The dataset's folder in the workspace.
        split: The split whose runs are compared; None for the plan's.
        seed: Decides the bootstrap.
        incomplete: Whether runs that lack folds are compared as well, all on the folds that every run has.

    Returns:
        The finding; the best model's files are written, see `iaunet.inference.best.BestFolder`; the scores of its
        out-of-fold masks are those of each fold postprocessed as the others ask.

    Raises:
        PredictionError: No run has all folds of the split, the incomplete ones have none in common, or what a fold
            said of its cases cannot be read.
    """
    return _Search(folder, split, seed, incomplete).run()


class _Search:
    """One call of `find_best`."""

    def __init__(self, folder: DatasetFolder, split: str | None, seed: int, incomplete: bool) -> None:
        self.folder = folder
        self.incomplete = incomplete
        self.seed = seed
        self.dataset: Dataset = folder.load_cases()
        self.plan: Plan = load_plan(folder.plan_json)
        names = [case.name for case in self.dataset.cases]
        self.split: Split = find_split(
            load_splits(folder.splits_json), split or self.plan.split, names, self.dataset.groups
        )
        self.arrays: Arrays = open_arrays(folder.preprocessed, self.plan.arrays_digest)
        self.left_out: dict[str, str] = {}
        self.entrants = list(self._entrants())
        folds = range(len(self.split.folds))
        self.compared = [i for i in folds if all(i in entrant.folds for entrant in self.entrants)]
        self.fold_of = self._held_out(self.compared)
        self.groups = [self.dataset.groups.get(name, name) for name in self.fold_of]

    def run(self) -> Finding:
        """Compare, choose, postprocess and write."""
        if not self.entrants:
            reasons = "".join(f"; {name}: {reason}" for name, reason in self.left_out.items())
            lacking = any(reason.startswith(LACKS) for reason in self.left_out.values())
            raise PredictionError(
                f"no run of {self.folder.name} has every fold of the split {self.split.name}{reasons}: "
                f"run iaunet_train {self.folder.name} cv --split {self.split.name}"
                + (", or give --incomplete" if lacking else "")
            )
        if not self.fold_of:
            names = ", ".join(entrant.run.name for entrant in self.entrants)
            raise PredictionError(f"{names} have no fold in common: train one more, or put one of the runs aside")
        best = BestFolder.of(self.folder)
        with locked(best.root, "choosing the best model"):
            return self._choose_and_write(best)

    def _choose_and_write(self, best: BestFolder) -> Finding:
        tables = {
            entrant.run.name: logit_tables(entrant, self._held_out(entrant.folds), self.arrays, self.plan)
            for entrant in self.entrants
        }
        self.entrants = [
            replace(
                entrant,
                folds={i: entrant.folds[i] for i in self.compared},
                temperatures=temperatures_of(tables[entrant.run.name]),
            )
            for entrant in self.entrants
        ]
        single = self._score([self._together(entrant) for entrant in self.entrants])
        best_runs = sorted(single, key=lambda runs: -_mean(single[runs]))[:MOST_IN_ENSEMBLES]
        best_entrants = [runs.entrants[0] for runs in best_runs]
        together = [self._together(*pair) for pair in itertools.combinations(best_entrants, 2)]
        if len(best_entrants) > 2:
            together.append(self._together(*best_entrants))
        scores = single | (self._score(together) if together else {})
        chosen, why = self._choose(best_runs[0], scores)
        found = search(lambda: self._cases(chosen), self.plan, self.seed)
        model = BestModel(
            dataset=self.folder.name,
            split=self.split.name,
            members=tuple(entrant.member for entrant in chosen.entrants),
            candidates=self._describe(scores),
            why=why,
            postprocessing_why=found.why,
        )
        case_scores = self._score_masks(chosen, found)
        dice = {score.name: score.dice for score in case_scores}
        judged = self._judge(chosen, dice, found.postprocessing)
        tuning = Tuning(
            postprocessing=found.postprocessing,
            calibration=self._calibrate(chosen, tables),
            expected_dice=judged.models,
        )
        best.forget()  # only now, when all is known that is written
        self._write_scores(best, model, case_scores)
        write_case_table(best.root / CASES, self._case_rows(dice, judged))
        best.write(model, tuning)
        return Finding(
            model=model,
            tuning=tuning,
            masks=describe_postprocessing(found.postprocessing, self.plan),
            search=found,
            left_out=self.left_out,
            missing=tuple(i for i in range(len(self.split.folds)) if i not in self.compared),
            folder=best,
        )

    def _held_out(self, folds: Iterable[int]) -> dict[str, int]:
        """The fold that held a case out, for the cases of some folds."""
        return {name: i for i in folds for name in self.split.folds[i].validation}

    def _together(self, *entrants: Entrant) -> OutOfFoldEnsemble:
        return OutOfFoldEnsemble(entrants, self.fold_of, self.arrays)

    def _calibrate(self, chosen: OutOfFoldEnsemble, tables: Mapping[str, Mapping[int, LogitTable]]) -> Calibration:
        """The temperatures of the chosen runs, and what they do to folds they were not fitted on."""

        def reliability(temperatures: Callable[[Entrant], Mapping[int, float]]) -> Reliability:
            entrants = [replace(entrant, temperatures=temperatures(entrant)) for entrant in chosen.entrants]
            return self._together(*entrants).count_reliability(self.plan).reliability

        return Calibration(
            temperatures={
                entrant.run.name: {str(fold): value for fold, value in entrant.temperatures.items()}
                for entrant in chosen.entrants
            },
            before=reliability(lambda entrant: {}),
            after=reliability(
                lambda entrant: nested_temperatures({i: tables[entrant.run.name][i] for i in self.compared})
            ),
        )

    def _judge(self, chosen: OutOfFoldEnsemble, dice: Mapping[str, float], postprocessing: Postprocessing) -> Judged:
        """Models of the Dice that masks of the chosen runs have."""
        old = [entrant.run.name for entrant in chosen.entrants if not entrant.tells_disagreement]
        if old:
            why = f"{', '.join(old)} kept no disagreement of flips: run iaunet_train with --val_only for every fold"
            return Judged(ExpectedDice(skipped=why), None)
        plan = with_thresholds(self.plan, postprocessing.thresholds)
        features = {
            entrant.run.name: features_of(case_statistics(entrant, self.fold_of, self.arrays, plan))
            for entrant in chosen.entrants
        }
        folds = np.array([*self.fold_of.values()])
        means = np.array([dice[name] for name in self.fold_of])
        return judge(features, means, folds, self.groups, self.plan.inference.mirroring, self.seed)

    def _case_rows(self, dice: Mapping[str, float], judged: Judged) -> Iterator[CaseRow]:
        expected = [None] * len(self.fold_of) if judged.expected is None else judged.expected.tolist()
        below = judged.models.flag_below
        for (name, fold), group, value in zip(self.fold_of.items(), self.groups, expected, strict=True):
            flagged = value is not None and below is not None and value < below
            yield CaseRow(name=name, fold=fold, group=group, dice=dice[name], expected_dice=value, flagged=flagged)

    def _entrants(self) -> Iterator[Entrant]:
        """The runs that can be compared; the others are left out with the reason."""
        wanted = digest(to_json(self.split.folds))
        for run in list_runs(self.folder.runs):
            record = run.record
            folds = {int(fold.fold): fold for fold in run.scored_folds()}
            missing = [i for i in range(len(self.split.folds)) if i not in folds]
            if record.split != self.split.name:
                self.left_out[run.name] = f"is of the split {record.split}"
            elif record.split_digest != wanted or record.plan.arrays_digest != self.plan.arrays_digest:
                self.left_out[run.name] = "was trained on another state of the data"
            elif (record.plan.labels, record.plan.inference) != (self.plan.labels, self.plan.inference):
                self.left_out[run.name] = "has other labels, thresholds or mirroring than the plan"
            elif missing and not (self.incomplete and folds):
                self.left_out[run.name] = f"{LACKS} {', '.join(map(str, missing))}"
            elif not all(fold.logits.is_dir() and fold.weights.exists() for fold in folds.values()):
                self.left_out[run.name] = "lacks weights or logits: run iaunet_train with --val_only for its folds"
            else:
                yield Entrant(run, {i: folds[i] for i in sorted(folds)})

    def _score(self, ensembles: Sequence[OutOfFoldEnsemble]) -> dict[OutOfFoldEnsemble, dict[str, float]]:
        """The Dice of each case, the mean over labels, for each ensemble."""
        scores: dict[OutOfFoldEnsemble, dict[str, float]] = {ensemble: {} for ensemble in ensembles}

        def score(name: str) -> list[float]:
            truth = self.arrays.truth(name)
            return [self._dice(ensemble.assemble(name, self.plan).labels, truth) for ensemble in ensembles]

        with ThreadPoolExecutor(default_workers()) as pool:
            found = pool.map(score, self.fold_of)
            progress = tqdm(found, "compare", len(self.fold_of), unit=" cases", disable=None, leave=False)
            for name, of_case in zip(self.fold_of, progress, strict=True):
                for ensemble, dice in zip(ensembles, of_case, strict=True):
                    scores[ensemble][name] = dice
        return scores

    def _dice(self, labels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
        counts = count_case(labels, truth, self.plan.coding.outputs, IGNORED if (truth == IGNORED).any() else None)
        return float(np.mean([count.dice for count in counts.values()]))

    def _choose(
        self, single: OutOfFoldEnsemble, scores: Mapping[OutOfFoldEnsemble, Mapping[str, float]]
    ) -> tuple[OutOfFoldEnsemble, str]:
        """The best single run, or the best ensemble if it is better by more than chance; and why."""
        several = [ensemble for ensemble in scores if len(ensemble.entrants) > 1]
        if not several:
            others = f", the best of {len(scores)} runs" if len(scores) > 1 else ", the only run with every fold"
            return single, f"Dice {_mean(scores[single]):.4f}{others}"
        best = max(several, key=lambda ensemble: _mean(scores[ensemble]))
        gain = summarise(
            [scores[best][name] - scores[single][name] for name in self.fold_of], self.groups, seed=self.seed
        )
        by = f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
        if gain.low > 0:
            return best, f"Dice {_mean(scores[best]):.4f}, {by} over the best single run {single.title}"
        verdict = "worse" if gain.high < 0 else "no more than chance"
        return single, (
            f"Dice {_mean(scores[single]):.4f}, the best single run; the best ensemble, {best.title}, differs by "
            f"{by}: {verdict}"
        )

    def _describe(self, scores: Mapping[OutOfFoldEnsemble, Mapping[str, float]]) -> tuple[Candidate, ...]:
        candidates = []
        for ensemble, by_case in scores.items():
            summary = summarise([by_case[name] for name in self.fold_of], self.groups, seed=self.seed)
            known = not math.isnan(summary.low)
            candidates.append(
                Candidate(
                    runs=tuple(entrant.run.name for entrant in ensemble.entrants),
                    dice=summary.mean,
                    low=summary.low if known else None,
                    high=summary.high if known else None,
                )
            )
        return tuple(sorted(candidates, key=lambda candidate: (-candidate.dice, candidate.runs)))

    def _cases(self, ensemble: OutOfFoldEnsemble) -> Iterator[OutOfFoldCase]:
        """The out-of-fold probabilities of an ensemble, case by case."""
        for name, fold in tqdm(self.fold_of.items(), "postprocess", unit=" cases", disable=None, leave=False):
            probabilities = ensemble.assemble(name, self.plan, keep_probabilities=True).probabilities
            assert probabilities is not None  # they were asked for
            yield OutOfFoldCase(
                name=name,
                fold=fold,
                group=self.dataset.groups.get(name, name),
                probabilities=probabilities,
                truth=self.arrays.truth(name),
            )

    @cached_property
    def _in_mm(self) -> bool:
        """Whether distances are in mm: where spacing is known for every case."""
        return all(case.spacing_mm for case in self.arrays.index.cases)

    def _score_masks(self, ensemble: OutOfFoldEnsemble, found: SearchResult) -> list[CaseScore]:
        """Score the out-of-fold masks with every metric, those of a fold postprocessed as the other folds ask."""

        def score(name: str) -> CaseScore:
            chosen = found.of_folds[str(self.fold_of[name])] if found.is_kept else found.postprocessing
            labels = ensemble.assemble(name, with_thresholds(self.plan, chosen.thresholds)).labels
            return score_masks(
                name,
                clean_labels(labels, chosen.cleaning),
                self.arrays.truth(name),
                self.plan.labels,
                self.arrays.cases[name].spacing_mm if self._in_mm else None,
                outputs=self.plan.coding.outputs,
            )

        with ThreadPoolExecutor(default_workers()) as pool:
            progress = pool.map(score, self.fold_of)
            return [*tqdm(progress, "score", len(self.fold_of), unit=" cases", disable=None, leave=False)]

    def _write_scores(self, best: BestFolder, model: BestModel, scores: Sequence[CaseScore]) -> None:
        write_scores(best.root / SCORES, scores)
        groups = {name: group for name, group in self.dataset.groups.items() if name in self.fold_of}
        summary = summarise_scores(scores, groups, self.fold_of, "mm" if self._in_mm else "px")
        content = {
            "split": self.split.name,
            "inflated": self.split.inflated,
            "members": to_json(model.members),
            "scores": to_json(summary),
        }
        write_json(best.root / CROSSVAL, content)


def _mean(scores: Mapping[str, float]) -> float:
    return float(np.mean([*scores.values()]))
