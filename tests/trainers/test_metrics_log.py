import dataclasses
import math
import signal
import sys
from importlib.util import find_spec

import pytest

from iaunet.console import Stopped
from iaunet.errors import TrainingError, WorkspaceError
from iaunet.inference.runs import Run
from iaunet.trainers.command import main
from iaunet.trainers.metrics_log import LOGS, find_log
from iaunet.trainers.progress import COLUMNS, Metrics
from iaunet.trainers.trainer import Trainer

tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the extra iaunet[tensorboard]")


def row(epoch, **changes):
    return dict.fromkeys(COLUMNS, 0.25) | {"epoch": epoch} | changes


def scalars(folder):
    """What TensorBoard reads from a folder: the (epoch, value) of each name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


@tensorboard
def test_every_log_of_the_table_can_be_found_written_and_closed(tmp_path):
    for name in LOGS:
        log = find_log(name)(tmp_path / name, 0)
        log.add(row(1))
        log.close()

        assert (tmp_path / name).exists()


def test_metrics_csv_is_the_log_called_csv():
    assert find_log("csv") is Metrics


def test_an_unknown_log_answers_with_the_known_ones():
    with pytest.raises(TrainingError, match="no log 'wandb': choose among csv, tensorboard"):
        find_log("wandb")


def test_without_the_extra_the_message_names_it_and_nothing_is_begun(workspace, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for module in ("iaunet.trainers.tensorboard_log", "torch.utils.tensorboard", "torch.utils.tensorboard.writer"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    assert main(["toy", "0", "--log", "tensorboard", "--workspace", str(workspace)]) == 2

    message = capsys.readouterr().err
    assert "the log tensorboard needs a package that is not installed" in message
    assert "pip install 'iaunet[tensorboard]'" in message
    assert not (workspace / "toy" / "runs").exists()


@tensorboard
def test_scalars_are_the_columns_by_epoch_without_what_is_undefined(tmp_path):
    log = find_log("tensorboard")(tmp_path / "events", 0)
    log.add(row(1, loss=0.5, validation_dice=math.nan))
    log.add(row(2, loss=0.25, validation_dice=0.75))

    written = scalars(tmp_path / "events")  # before it is closed
    log.close()

    assert written.keys() == {*COLUMNS} - {"epoch"}
    assert written["loss"] == [(1, 0.5), (2, 0.25)]
    assert written["validation_dice"] == [(2, 0.75)]


@tensorboard
@pytest.mark.parametrize("behind", [0, 1, 2])
def test_a_resumed_log_shows_each_epoch_once(tmp_path, behind):
    first = find_log("tensorboard")(tmp_path / "events", 0)
    for epoch in (1, 2):
        first.add(row(epoch, loss=0.5))
    first.close()

    resumed = find_log("tensorboard")(tmp_path / "events", behind)
    resumed.add(row(behind + 1, loss=0.125))
    resumed.close()

    expected = [(epoch, 0.5) for epoch in range(1, behind + 1)] + [(behind + 1, 0.125)]
    assert scalars(tmp_path / "events")["loss"] == expected


@tensorboard
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(WorkspaceError, match="file/events cannot be written"):
        find_log("tensorboard")(tmp_path / "file" / "events", 0)


@pytest.fixture
def setup(setup):
    """Two epochs on fold 0 of the toy dataset, told to TensorBoard."""
    plan = dataclasses.replace(setup.plan, recipe=dataclasses.replace(setup.plan.recipe, epochs=2))
    return dataclasses.replace(setup, plan=plan, log="tensorboard")


class KilledAfterLogging(Trainer):
    """Is stopped when an epoch's numbers are written and its checkpoint is not."""

    def log_epoch(self, validation):
        super().log_epoch(validation)
        if self.epoch == 2:
            raise Stopped("killed")


@tensorboard
def test_tensorboard_holds_what_metrics_csv_holds_after_a_kill_between_log_and_checkpoint(setup):
    with pytest.raises(Stopped, match="killed"):
        KilledAfterLogging(setup).fit()

    Trainer(setup).fit()

    rows = Metrics(setup.folder.metrics_csv, 2).rows
    written = scalars(setup.folder.root / "tensorboard")
    assert [step for step, _ in written["loss"]] == [1, 2]
    for name in ("loss", "validation_dice", "lr"):
        assert [value for _, value in written[name]] == pytest.approx([r[name] for r in rows], rel=1e-6)


class Kept:
    """A log of one's own."""

    def __init__(self):
        self.epochs = []
        self.is_closed = False

    def add(self, row):
        self.epochs.append(row["epoch"])

    def close(self):
        self.is_closed = True


def test_a_log_of_ones_own_gets_every_epoch_and_is_closed_however_training_ends(setup):
    class Stopping(Trainer):
        log = Kept()

        def further_logs(self):
            return [self.log]

        def validate(self):
            if self.epoch == 1:
                signal.raise_signal(signal.SIGINT)
            return super().validate()

    class FailingAtOnce(Stopping):
        log = Kept()

        def train_epoch(self):
            raise TrainingError("the loss is nan")

    with pytest.raises(TrainingError, match="nan"):
        FailingAtOnce(setup).fit()
    with pytest.raises(Stopped):
        Stopping(dataclasses.replace(setup, epochs=3)).fit()

    assert (FailingAtOnce.log.epochs, FailingAtOnce.log.is_closed) == ([], True)
    assert (Stopping.log.epochs, Stopping.log.is_closed) == ([1, 2], True)


@tensorboard
def test_the_command_tells_tensorboard_and_a_run_may_go_on_with_another_log(workspace):
    options = ["--epochs", "1", "--workspace", str(workspace)]
    assert main(["toy", "0", "--log", "tensorboard", *options]) == 0
    assert main(["toy", "1", *options]) == 0

    run = Run(workspace / "toy" / "runs" / "unet-best-random")
    assert [step for step, _ in scalars(run.fold("0").root / "tensorboard")["validation_dice"]] == [1]
    assert not (run.fold("1").root / "tensorboard").exists()
