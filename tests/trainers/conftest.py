"""Short trainings that tests begin with: the settings of a fold, and the command as a process of its own."""

import os
import signal
import subprocess
import sys
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


class Command(subprocess.Popen):
    """``iaunet_train toy 0`` in a session of its own."""

    def __init__(self, workspace, options, environment):
        super().__init__(
            [sys.executable, "-m", "iaunet", "train", "toy", "0", "--workspace", str(workspace), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONUTF8": "1",
                "PYTHONPATH": str(Path(__file__).parent),
                **environment,
            },
            start_new_session=True,
        )

    def processes(self):
        """The processes of its session that still run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(group) == self.pid and state != "Z":
                found.append(int(folder.name))
        return found

    def read_until(self, beginning):
        """Read what it prints up to a line that begins so."""
        for line in self.stdout:
            if line.startswith(beginning):
                return
        raise AssertionError(f"no line begins with {beginning!r}: {self.stderr.read()}")


@pytest.fixture
def start(workspace):
    """Start a `Command` with options and variables; whatever is left of it is killed after the test."""
    started = []

    def start_command(*options, **environment):
        started.append(Command(workspace, options, environment))
        return started[-1]

    yield start_command
    for command in started:
        for number in command.processes():
            os.kill(number, signal.SIGKILL)
        command.communicate()
