"""Suspect labels: cases whose mask the networks that never saw it contradict with confidence.

As in confident learning (Northcutt et al., Journal of Artificial Intelligence Research, 2021), a label is doubtful
where a prediction from outside the training data is confident of another one, and confident means more probable than
that label is on average where it is given. So for each output of the network a pixel that is not marked counts from the
mean probability of marked pixels on, `SURE` at least, and a marked pixel up to the mean probability of pixels that are
not, 1 - `SURE` at most: lesions are rare, and a probability of 0.1 may be no more than their share. Outlines, where
networks and readers are unsure, hardly count. What is left is mostly a lesion that was missed, one that is none, labels
mixed up, or an error of the network: a reader has to look.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iaunet.inference.calibration import counted, output_truth
from iaunet.inference.out_of_fold import logits_path
from iaunet.inference.out_of_fold_ensemble import Entrant, OutOfFoldEnsemble
from iaunet.inference.runs import Run
from iaunet.inference.scores import read_scores
from iaunet.planners.plan import Plan
from iaunet.preprocessing.arrays import Arrays, open_arrays
from iaunet.workspace import DatasetFolder

SURE = 0.9
"""The least probability that counts as confident: a calibrated network is wrong in at most a tenth of such pixels."""

SMALLEST_AREA = 0.001
"""Of a row's pixels: areas below count as this much, or three pixels in an otherwise empty image came first."""

MOSTLY = 0.75
"""The share of the contradicted pixels from which a suspect is of one kind."""

Kind = Literal["not marked", "marked without sign", "both"]


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A case whose mask should be looked at; pixels are those of the network's input, over all its rows and labels.

    Args:
        name: The case.
        fold: The fold that held it out.
        kind: Which of both contradictions makes up most of it.
        score: The contradicted pixels as a share of those that the mask marks or the networks are sure of, in (0, 1].
        not_marked: Pixels that the networks are sure of and the mask leaves out.
        without_sign: Pixels that the mask marks and the networks are sure to be nothing.
        marked: Pixels that the mask marks.
    """

    name: str
    fold: int
    kind: Kind
    score: float
    not_marked: int
    without_sign: int
    marked: int


def find_suspects(
    folder: DatasetFolder,
    runs: Sequence[Run],
    temperatures: Mapping[str, Mapping[str, float]] | None = None,
    most: int = 20,
) -> tuple[Suspect, ...]:
    """Find the cases whose masks the networks that held them out contradict most, the most suspect first.

    Args:
        folder: The dataset's folder in the workspace.
        runs: Those that predict together, of one split and one plan but for the network; one at least.
        temperatures: What logits are divided by, by run and by the fold's number; None for 1 each.
        most: So many at most.

    Returns:
        Cases with a contradiction; those without logits of every run are left out.

    Raises:
        PredictionError: Scores or logits are damaged, or not of these data.
        PreprocessingError: The arrays are missing, or made from other data than the runs.
    """
    evidence = _Evidence(folder, runs, temperatures)
    limits = evidence.limits()
    suspects = [
        _judge(name, fold, evidence.count(name, limits), evidence.plan) for name, fold in evidence.fold_of.items()
    ]
    found = [suspect for suspect in suspects if suspect.score > 0]
    return tuple(sorted(found, key=lambda each: (-each.score, -each.not_marked - each.without_sign, each.name))[:most])


@dataclass(frozen=True, eq=False)
class _Limits:
    """For each output [outputs], the probability from which it is surely there, and up to which it surely is not."""

    there: NDArray[np.float64]
    nothing: NDArray[np.float64]


class _Evidence:
    """What runs said of the cases they held out, beside the masks; read case by case, none is kept."""

    def __init__(
        self, folder: DatasetFolder, runs: Sequence[Run], temperatures: Mapping[str, Mapping[str, float]] | None
    ) -> None:
        self.plan: Plan = runs[0].record.plan
        self.arrays: Arrays = open_arrays(folder.preprocessed, self.plan.arrays_digest)
        self.fold_of = {
            score.name: int(fold.fold)
            for fold in runs[0].scored_folds()
            for score in read_scores(fold.scores_csv)
            if all(logits_path(run.fold(fold.fold).logits, score.name).exists() for run in runs)
        }
        entrants = tuple(_entrant(run, (temperatures or {}).get(run.name, {})) for run in runs)
        self.ensemble = OutOfFoldEnsemble(entrants, self.fold_of, self.arrays)

    def limits(self) -> _Limits:
        """The mean probabilities of marked pixels and of the others, nowhere less sure than `SURE`."""
        n_outputs = len(self.plan.labels)
        sums, pixels = np.zeros((2, n_outputs)), np.zeros((2, n_outputs))
        for name in self.fold_of:
            for said, marked in self._pixels(name):
                for i, part in enumerate((marked, ~marked)):
                    sums[i] += (said * part).sum(axis=1, dtype=np.float64)
                    pixels[i] += part.sum(axis=1)
        of_marked, of_others = sums / np.maximum(pixels, 1)
        return _Limits(there=np.maximum(of_marked, SURE), nothing=np.minimum(of_others, 1 - SURE))

    def count(self, name: str, limits: _Limits) -> tuple[int, int, int]:
        """The pixels of a case that are surely there but not marked, marked but surely not there, and marked."""
        not_marked = without_sign = all_marked = 0
        for said, marked in self._pixels(name):
            not_marked += int(np.count_nonzero((said >= limits.there[:, None]) & ~marked))
            without_sign += int(np.count_nonzero((said <= limits.nothing[:, None]) & marked))
            all_marked += int(np.count_nonzero(marked))
        return not_marked, without_sign, all_marked

    def _pixels(self, name: str) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Of each row of a case the calibrated probabilities [outputs, n] of its pixels, and what the mask marks."""
        rows = self.ensemble.rows(name, self.plan)
        for said, labels in zip(rows, self.arrays.masks[self.arrays.cases[name].rows], strict=True):
            valid = counted(labels)
            yield said[:, valid], output_truth(labels[valid], self.plan.coding.outputs)


def _entrant(run: Run, temperatures: Mapping[str, float]) -> Entrant:
    folds = {int(fold.fold): fold for fold in run.scored_folds()}
    return Entrant(run, folds, {fold: temperatures.get(str(fold), 1.0) for fold in folds})


def _judge(name: str, fold: int, counts: tuple[int, int, int], plan: Plan) -> Suspect:
    not_marked, without_sign, marked = counts
    contradicted = not_marked + without_sign
    area = max(marked + not_marked, SMALLEST_AREA * plan.input_size[0] * plan.input_size[1])
    kind: Kind = "both"
    if not_marked >= MOSTLY * contradicted:
        kind = "not marked"
    elif without_sign >= MOSTLY * contradicted:
        kind = "marked without sign"
    return Suspect(
        name=name,
        fold=fold,
        kind=kind,
        score=float(contradicted / area),
        not_marked=not_marked,
        without_sign=without_sign,
        marked=marked,
    )
