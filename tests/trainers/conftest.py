"""A short training that tests of the trainer begin with."""

import pytest
import torch

from iaunet.inference.runs import FoldFolder
from iaunet.planners.folds import load_splits
from iaunet.planners.plan import load_plan
from iaunet.trainers.trainer import FoldSetup
from iaunet.workspace import DatasetFolder


@pytest.fixture
def setup(toy_workspace, tmp_path):
    """Two epochs of three steps of four rows on fold 0 of the toy dataset."""
    dataset = DatasetFolder(toy_workspace / "toy")
    fold = load_splits(dataset.splits_json).splits["random"].folds[0]
    return FoldSetup(
        plan=load_plan(dataset.plan_json),
        folder=FoldFolder(tmp_path / "fold_0"),
        preprocessed=dataset.preprocessed,
        run="a run",
        train=fold.train,
        validation=fold.validation,
        seed=0,
        device=torch.device("cpu"),
        micro_batch=4,
        workers=0,
        epochs=2,
    )
