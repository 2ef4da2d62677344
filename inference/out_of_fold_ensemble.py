"""Runs that predict together, each case by the networks that held it out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from iaunet.errors import PredictionError
from iaunet.inference.best import Member
from iaunet.inference.calibration import LogitTable, ReliabilityCounter, counted, output_truth
from iaunet.inference.expected_dice import STATISTICS, measure_rows
from iaunet.inference.mosaic import Assembly, Prediction, RowPrediction
from iaunet.inference.out_of_fold import read_disagreement, read_logits, sigmoid
from iaunet.inference.runs import FoldFolder, Run
from iaunet.planners.plan import Plan
from iaunet.preprocessing.arrays import Arrays

AGAIN = "run iaunet_train with --val_only for this fold"


@dataclass(frozen=True, eq=False)
class Entrant:
    """A run and those of its folds that are compared, by number; with their temperatures, 1 where there is none."""

    run: Run
    folds: Mapping[int, FoldFolder]
    temperatures: Mapping[int, float] = field(default_factory=dict)

    @property
    def member(self) -> Member:
        """The run and the hashes of all its weights: folds that are not compared predict as well."""
        weights = tuple(fold.weights_digest() for fold in self.run.trained_folds())
        return Member(run=self.run.name, weights_sha256=weights)

    @property
    def tells_disagreement(self) -> bool:
        """Whether it was kept how far the flips of held-out cases disagree."""
        return all(fold.disagreement_csv.exists() for fold in self.folds.values())

    def logits(self, name: str, fold: int, shape: tuple[int, ...]) -> NDArray[np.float16]:
        """The logits of a case by the fold that held it out, [rows, outputs, h, w], mapped.

        Raises:
            PredictionError: They are missing or damaged, or of another shape: kept of other data.
        """
        logits = read_logits(self.folds[fold].logits, name)
        if logits.shape != shape:
            raise PredictionError(f"the logits of {name} in {self.folds[fold].logits} are of other data: {AGAIN}")
        return logits

    def rows(self, name: str, fold: int, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
        """The calibrated probabilities of a case's rows one after the other, [outputs, h, w]."""
        temperature = np.float32(self.temperatures.get(fold, 1.0))
        return (sigmoid(row.astype(np.float32) / temperature) for row in self.logits(name, fold, shape))


@dataclass(frozen=True, eq=False)
class OutOfFoldEnsemble:
    """What runs say together of cases that they did not see.

    Args:
        entrants: One at least.
        fold_of: The fold that held each case out.
        arrays: The preprocessed cases.
    """

    entrants: tuple[Entrant, ...]
    fold_of: Mapping[str, int]
    arrays: Arrays

    @property
    def title(self) -> str:
        """Its runs in one line."""
        return " + ".join(entrant.run.name for entrant in self.entrants)

    def rows(self, name: str, plan: Plan) -> Iterator[NDArray[np.float32]]:
        """The mean probabilities of a case's rows one after the other, [outputs, h, w].

        Raises:
            PredictionError: They were kept of other data, or are missing or damaged.
        """
        fold, shape = self.fold_of[name], rows_shape(self.arrays, name, plan)
        for said in zip(*(entrant.rows(name, fold, shape) for entrant in self.entrants), strict=True):
            yield np.mean(said, axis=0) if len(said) > 1 else said[0]

    def assemble(self, name: str, plan: Plan, keep_probabilities: bool = False) -> Prediction:
        """The case at its native size, decided as a plan says."""
        assembly = Assembly(self.arrays.case_input(name), plan, keep_probabilities)
        for row in self.rows(name, plan):
            assembly.add(RowPrediction(row))
        return assembly.prediction

    def count_reliability(self, plan: Plan) -> ReliabilityCounter:
        """How often what is said is so, over the pixels of all rows."""
        counter = ReliabilityCounter()
        for name in self.fold_of:
            truth = self.arrays.masks[self.arrays.cases[name].rows]
            for said, mask in zip(self.rows(name, plan), truth, strict=True):
                valid = counted(mask)
                counter.add(said[:, valid], output_truth(mask[valid], plan.coding.outputs))
        return counter


def rows_shape(arrays: Arrays, name: str, plan: Plan) -> tuple[int, ...]:
    """(rows, outputs, h, w) of what is said of a case."""
    return arrays.cases[name].n_rows, len(plan.labels), *plan.input_size


def logit_tables(entrant: Entrant, fold_of: Mapping[str, int], arrays: Arrays, plan: Plan) -> dict[int, LogitTable]:
    """What each fold of a run said of the pixels it held out.

    Raises:
        PredictionError: What it said is missing, damaged, or of other data.
    """
    tables = {fold: LogitTable() for fold in entrant.folds}
    for name, fold in fold_of.items():
        logits = entrant.logits(name, fold, rows_shape(arrays, name, plan))
        for row, mask in zip(logits, arrays.masks[arrays.cases[name].rows], strict=True):
            valid = counted(mask)
            tables[fold].add(row[:, valid], output_truth(mask[valid], plan.coding.outputs))
    return tables


def case_statistics(entrant: Entrant, fold_of: Mapping[str, int], arrays: Arrays, plan: Plan) -> NDArray[np.float64]:
    """The statistics of each case by the network that held it out, [cases, L, S].

    Raises:
        PredictionError: What flips disagree about was not kept when the run was validated, or is of other data.
    """
    disagreement = {fold: read_disagreement(folder.disagreement_csv) for fold, folder in entrant.folds.items()}
    found = np.zeros((len(fold_of), len(plan.labels), len(STATISTICS)))
    for statistics, (name, fold) in zip(found, fold_of.items(), strict=True):
        for row in entrant.rows(name, fold, rows_shape(arrays, name, plan)):
            said = torch.from_numpy(row)[None]
            statistics += measure_rows(said, torch.zeros_like(said), plan.inference.thresholds)[0].numpy()
        own = disagreement[fold].get(name)
        if own is None or len(own) != len(plan.labels):
            raise PredictionError(f"{entrant.folds[fold].disagreement_csv} is of other data than {name}: {AGAIN}")
        statistics[:, STATISTICS.index("disagreement")] = own
    return found
