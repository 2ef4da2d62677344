"""The Dice of a predictor that never looks: the mean training mask, cut where it does best on the training cases.

python benchmarks/mean_mask.py WORKSPACE/DATASET SPLIT FOLD
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet.planners.folds import load_splits
from iaunet.planners.plan import load_plan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.workspace import DatasetFolder


def main() -> None:
    """Print the mean Dice per image on the held-out cases, at the network's size."""
    folder, split, fold = DatasetFolder(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    cases = load_splits(folder.splits_json).splits[split].folds[fold]
    arrays = open_arrays(folder.preprocessed, load_plan(folder.plan_json).arrays_digest)
    rows = {row.case: i for i, row in enumerate(arrays.index.rows)}
    train = arrays.masks[[rows[name] for name in cases.train]] > 0
    held_out = arrays.masks[[rows[name] for name in cases.validation]] > 0
    mean = train.mean(axis=0)
    cut = max(np.unique(mean.round(2)), key=lambda level: _dice(train, mean >= level))
    dice = _dice(held_out, mean >= cut)
    print(f"mean mask cut at {cut:.2f}: Dice {dice:.3f} on {len(held_out)} cases of {split} fold {fold}")


def _dice(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    overlap = (truth & prediction).sum((1, 2))
    total = truth.sum((1, 2)) + prediction.sum()
    return float(np.mean(np.where(total > 0, 2 * overlap / np.maximum(total, 1), 1.0)))


if __name__ == "__main__":
    main()
