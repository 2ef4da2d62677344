"""Short trainings that tests begin with: the settings of a fold, and the command as a process."""

from pathlib import Path

import pytest
import torch

from iaunet.inference.runs import FoldFolder
from iaunet.planners.folds import load_splits
from iaunet.planners.plan import load_plan
from iaunet.trainers.fold_setup import FoldSetup
from iaunet.workspace import DatasetFolder


@pytest.fixture(scope="session")
def setup_in(toy_workspace):
    """Two epochs of three steps of four rows on fold 0 of the toy dataset, to be trained in a folder of the test's."""
    dataset = DatasetFolder(toy_workspace / "toy")
    fold = load_splits(dataset.splits_json).splits["random"].folds[0]

    def setup_in(folder):
        return FoldSetup(
            plan=load_plan(dataset.plan_json),
            folder=FoldFolder(folder),
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

    return setup_in


@pytest.fixture
def setup(setup_in, tmp_path):
    """The same in the test's own folder."""
    return setup_in(tmp_path / "fold_0")


@pytest.fixture
def start(start_command, workspace):
    """Start ``iaunet_train toy 0`` with options and variables as a process, see `start_command`."""

    def start(*options, **environment):
        variables = {"PYTHONPATH": str(Path(__file__).parent), **environment}
        return start_command("train", "toy", "0", "--workspace", workspace, *options, **variables)

    return start
