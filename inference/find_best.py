"""Finds the best model of a dataset on its out-of-fold predictions: runs, ensembles, and the cleaning of masks."""

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from iaunet.dataset import IGNORED, Dataset
from iaunet.errors import PredictionError
from iaunet.inference.best import CROSSVAL, SCORES, BestFolder, BestModel, Candidate, Member
from iaunet.inference.crossval import summarise
from iaunet.inference.mosaic import Assembly, Prediction
from iaunet.inference.out_of_fold import read_logits, sigmoid
from iaunet.inference.postprocessing import Postprocessing, clean_labels, describe_postprocessing
from iaunet.inference.postprocessing_search import OutOfFoldCase, SearchResult, search
from iaunet.inference.runs import FoldFolder, Run, list_runs
from iaunet.inference.scores import CaseScore, score_masks, summarise_scores, write_scores
from iaunet.metrics import count_case
from iaunet.planners.folds import Split, find_split, load_splits
from iaunet.planners.plan import Plan, load_plan, with_thresholds
from iaunet.preprocessing.arrays import Arrays, open_arrays
from iaunet.records import to_json
from iaunet.storage import digest, write_json
from iaunet.workers import default_workers
from iaunet.workspace import DatasetFolder

logger = logging.getLogger(__name__)

MOST_IN_ENSEMBLES = 5
"""So many of the best runs are tried together, in pairs and all at once."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found, the runs that could not be compared with the reasons, and where it was written.

    ``masks`` says in words how they are postprocessed.
    """

    model: BestModel
    postprocessing: Postprocessing
    masks: str
    search: SearchResult
    left_out: Mapping[str, str]
    folder: BestFolder


def find_best(folder: DatasetFolder, split: str | None = None, seed: int = 0) -> Finding:
    """Choose the runs and the postprocessing that do best on the cases that each fold held out.

    Args:
        folder: The dataset's folder in the workspace.
        split: The split whose runs are compared; None for the plan's.
        seed: Decides the bootstrap.

    Returns:
        The finding; the best model's files are written: ``best.json``, ``postprocessing.json``, and the scores of its
        out-of-fold masks, ``crossval.json`` and ``scores.csv``, each fold postprocessed as the others ask.

    Raises:
        PredictionError: No run has all folds of the split, or what a fold said of its cases cannot be read.
    """
    return _Search(folder, split, seed).run()


@dataclass(frozen=True, eq=False)
class _Entrant:
    """A run with all folds of the split."""

    run: Run
    folds: tuple[FoldFolder, ...]

    @property
    def member(self) -> Member:
        return Member(run=self.run.name, weights_sha256=tuple(fold.weights_digest() for fold in self.folds))


_Ensemble = tuple[_Entrant, ...]


class _Search:
    """One call of `find_best`."""

    def __init__(self, folder: DatasetFolder, split: str | None, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.dataset: Dataset = folder.load_dataset()
        self.plan: Plan = load_plan(folder.plan_json)
        names = [case.name for case in self.dataset.cases]
        self.split: Split = find_split(
            load_splits(folder.splits_json), split or self.plan.split, names, self.dataset.groups
        )
        self.arrays: Arrays = open_arrays(folder.preprocessed, self.plan.arrays_digest)
        self.fold_of = {name: i for i, fold in enumerate(self.split.folds) for name in fold.validation}
        self.left_out: dict[str, str] = {}
        self.entrants = list(self._entrants())

    def run(self) -> Finding:
        """Compare, choose, postprocess and write."""
        if not self.entrants:
            reasons = "".join(f"; {name}: {reason}" for name, reason in self.left_out.items())
            raise PredictionError(
                f"no run of {self.folder.name} has every fold of the split {self.split.name}{reasons}: "
                f"run iaunet_train {self.folder.name} cv --split {self.split.name}"
            )
        single = self._score([(entrant,) for entrant in self.entrants])
        best_runs = sorted(single, key=lambda runs: -_mean(single[runs]))[:MOST_IN_ENSEMBLES]
        best_entrants = [entrant for (entrant,) in best_runs]
        together: list[_Ensemble] = [*itertools.combinations(best_entrants, 2)]
        if len(best_entrants) > 2:
            together.append(tuple(best_entrants))
        scores = single | (self._score(together) if together else {})
        chosen, why = self._choose(best_runs[0], scores)
        found = search(lambda: self._cases(chosen), self.plan, self.seed)
        model = BestModel(
            dataset=self.folder.name,
            split=self.split.name,
            members=tuple(entrant.member for entrant in chosen),
            candidates=self._describe(scores),
            why=why,
            postprocessing_why=found.why,
        )
        best = BestFolder.of(self.folder)
        best.forget()
        self._write_scores(best, chosen, found)
        best.write(model, found.postprocessing)
        return Finding(
            model=model,
            postprocessing=found.postprocessing,
            masks=describe_postprocessing(found.postprocessing, self.plan),
            search=found,
            left_out=self.left_out,
            folder=best,
        )

    def _entrants(self) -> Iterator[_Entrant]:
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
            elif missing:
                self.left_out[run.name] = f"lacks fold {', '.join(map(str, missing))}"
            elif not all(fold.logits.is_dir() and fold.weights.exists() for fold in folds.values()):
                self.left_out[run.name] = "lacks weights or logits: run iaunet_train with --val_only for its folds"
            else:
                yield _Entrant(run, tuple(folds[i] for i in sorted(folds)))

    def _score(self, ensembles: Sequence[_Ensemble]) -> dict[_Ensemble, dict[str, float]]:
        """The Dice of each case, the mean over labels, for each ensemble."""
        scores: dict[_Ensemble, dict[str, float]] = {ensemble: {} for ensemble in ensembles}

        def score(name: str) -> list[float]:
            truth = self.arrays.truth(name)
            return [self._dice(self._assemble(ensemble, name, self.plan).labels, truth) for ensemble in ensembles]

        with ThreadPoolExecutor(default_workers()) as pool:
            found = pool.map(score, self.fold_of)
            progress = tqdm(found, "compare", len(self.fold_of), unit=" cases", disable=None, leave=False)
            for name, of_case in zip(self.fold_of, progress, strict=True):
                for ensemble, dice in zip(ensembles, of_case, strict=True):
                    scores[ensemble][name] = dice
        return scores

    def _assemble(self, ensemble: _Ensemble, name: str, plan: Plan, keep_probabilities: bool = False) -> Prediction:
        """What the networks that held a case out say of it together."""
        fold, case = self.fold_of[name], self.arrays.case_input(name)
        logits = [read_logits(entrant.folds[fold].logits, name) for entrant in ensemble]
        shape = len(case.places), len(plan.labels), *plan.input_size
        for entrant, of_run in zip(ensemble, logits, strict=True):
            if of_run.shape != shape:
                raise PredictionError(
                    f"the logits of {name} in {entrant.folds[fold].logits} are of other data: "
                    "run iaunet_train with --val_only for this fold"
                )
        assembly = Assembly(case, plan, keep_probabilities)
        for rows in zip(*logits, strict=True):
            assembly.add(np.mean([sigmoid(row) for row in rows], axis=0))
        return assembly.prediction

    def _dice(self, labels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
        counts = count_case(labels, truth, self.plan.coding.outputs, IGNORED if (truth == IGNORED).any() else None)
        return float(np.mean([count.dice for count in counts.values()]))

    def _choose(self, single: _Ensemble, scores: Mapping[_Ensemble, Mapping[str, float]]) -> tuple[_Ensemble, str]:
        """The best single run, or the best ensemble if it is better by more than chance; and why."""
        several = [ensemble for ensemble in scores if len(ensemble) > 1]
        if not several:
            others = f", the best of {len(scores)} runs" if len(scores) > 1 else ", the only run with every fold"
            return single, f"Dice {_mean(scores[single]):.4f}{others}"
        best = max(several, key=lambda ensemble: _mean(scores[ensemble]))
        gain = summarise(
            [scores[best][name] - scores[single][name] for name in self.fold_of], self._groups(), seed=self.seed
        )
        by = f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
        if gain.low > 0:
            return best, f"Dice {_mean(scores[best]):.4f}, {by} over the best single run {single[0].run.name}"
        return single, (
            f"Dice {_mean(scores[single]):.4f}, the best single run; the best ensemble, {_title(best)}, differs by "
            f"{by}: no more than chance"
        )

    def _describe(self, scores: Mapping[_Ensemble, Mapping[str, float]]) -> tuple[Candidate, ...]:
        candidates = []
        for ensemble, by_case in scores.items():
            summary = summarise([by_case[name] for name in self.fold_of], self._groups(), seed=self.seed)
            known = not math.isnan(summary.low)
            candidates.append(
                Candidate(
                    runs=tuple(entrant.run.name for entrant in ensemble),
                    dice=summary.mean,
                    low=summary.low if known else None,
                    high=summary.high if known else None,
                )
            )
        return tuple(sorted(candidates, key=lambda candidate: (-candidate.dice, candidate.runs)))

    def _groups(self) -> list[str]:
        return [self.dataset.groups.get(name, name) for name in self.fold_of]

    def _cases(self, ensemble: _Ensemble) -> Iterator[OutOfFoldCase]:
        """The out-of-fold probabilities of an ensemble, case by case."""
        for name, fold in tqdm(self.fold_of.items(), "postprocess", unit=" cases", disable=None, leave=False):
            probabilities = self._assemble(ensemble, name, self.plan, keep_probabilities=True).probabilities
            assert probabilities is not None  # they were asked for
            yield OutOfFoldCase(
                name=name,
                fold=fold,
                group=self.dataset.groups.get(name, name),
                probabilities=probabilities,
                truth=self.arrays.truth(name),
            )

    def _write_scores(self, best: BestFolder, ensemble: _Ensemble, found: SearchResult) -> None:
        """Score the out-of-fold masks with every metric, those of a fold postprocessed as the other folds ask."""
        in_mm = all(case.spacing_mm for case in self.arrays.index.cases)

        def score(name: str) -> CaseScore:
            chosen = found.of_folds[str(self.fold_of[name])] if found.is_kept else found.postprocessing
            labels = self._assemble(ensemble, name, with_thresholds(self.plan, chosen.thresholds)).labels
            return score_masks(
                name,
                clean_labels(labels, chosen.cleaning),
                self.arrays.truth(name),
                self.plan.labels,
                self.arrays.cases[name].spacing_mm if in_mm else None,
                outputs=self.plan.coding.outputs,
            )

        with ThreadPoolExecutor(default_workers()) as pool:
            progress = pool.map(score, self.fold_of)
            scores = [*tqdm(progress, "score", len(self.fold_of), unit=" cases", disable=None, leave=False)]
        write_scores(best.root / SCORES, scores)
        groups = {name: group for name, group in self.dataset.groups.items() if name in self.fold_of}
        summary = summarise_scores(scores, groups, self.fold_of, "mm" if in_mm else "px")
        content = {"split": self.split.name, "inflated": self.split.inflated, "scores": to_json(summary)}
        write_json(best.root / CROSSVAL, content)


def _mean(scores: Mapping[str, float]) -> float:
    return float(np.mean([*scores.values()]))


def _title(ensemble: Sequence[_Entrant]) -> str:
    return " + ".join(entrant.run.name for entrant in ensemble)
