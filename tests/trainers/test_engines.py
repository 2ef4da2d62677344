import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from iaunet.engines.parts import Part
from iaunet.engines.ray_cluster import RayEngine
from iaunet.engines.slurm import SlurmEngine
from iaunet.engines.tasks import EngineError, pack, work
from iaunet.errors import IaunetError, TrainingError, WorkspaceError
from iaunet.inference.runs import Run
from iaunet.trainers.checkpoint import load_checkpoint
from iaunet.trainers.command import main
from iaunet.trainers.training import TrainingOptions, train
from iaunet.trainers.units import train_networks
from iaunet.workspace import DatasetFolder, locked

RUN = "unet-best-random"


class NextDoor:
    """An engine that makes each call in this process."""

    def __init__(self):
        self.names = []

    def run(self, function, tasks, on_gpu, begin):
        begin()
        for task in tasks:
            self.names.append(task.name)
            yield task, work(*pack(function, task, None))


class OutOfReach:
    """An engine that cannot be reached."""

    def run(self, function, tasks, on_gpu, begin):
        raise EngineError("nobody answers")
        yield


@pytest.fixture
def toy(workspace):
    """The dataset's folder in the test's own workspace."""
    return DatasetFolder(workspace / "toy")


def options(**changes):
    return TrainingOptions(**{"epochs": 1, "device": "cpu", **changes})


def run_of(folder, name=RUN):
    return Run(folder.runs / name)


def weights_of(run):
    return {fold.fold: fold.weights.read_bytes() for fold in run.finished_folds()}


def test_an_engine_trains_what_is_left_of_each_network_and_sums_up(toy):
    train(toy, "1", options())
    engine = NextDoor()

    runs = train_networks(toy, "cv", [options(), options(network="unext")], engine)

    other = "unext-best-random"
    assert engine.names == [f"{RUN} fold 0", f"{RUN} fold 2", *(f"{other} fold {fold}" for fold in range(3))]
    assert [run.name for run in runs] == [RUN, other]
    assert all(run.crossval_json.exists() for run in runs)
    assert "epoch 1/1" in (runs[0].fold("0").root / "log.txt").read_text(encoding="utf-8")


def test_an_engine_is_not_started_when_nothing_is_left_to_do(toy):
    train(toy, "0", options())
    engine = NextDoor()

    train_networks(toy, "0", [options()], engine)

    assert engine.names == []


def test_an_old_run_is_put_aside_once_before_its_folds_are_trained(toy):
    train(toy, "0", options())
    engine = NextDoor()

    train_networks(toy, "cv", [options(restart=True)], engine)

    assert len(engine.names) == 3
    assert [path.name for path in toy.runs.glob(f"{RUN}.old-*")] == [f"{RUN}.old-1"]
    assert run_of(toy).crossval_json.exists()


@pytest.mark.parametrize(
    ("engine", "others", "line"),
    [
        (OutOfReach(), [], "nobody answers"),
        (NextDoor(), [options(network="unett", restart=True)], "unett"),
        (
            NextDoor(),
            [options(network="swin_unet", network_options={"drop_path": 2.0}, restart=True)],
            "drop_path is 2.0",
        ),
        (NextDoor(), [options(network="unet", restart=True)], f"two networks would have the same run {RUN}: give each"),
        (None, [options(network="unet", restart=True)], f"two networks would have the same run {RUN}: give each"),
        (None, [options(network="unett", restart=True)], "unett"),
        (None, [options(network="swin_unet", network_options={"drop_path": 2.0}, restart=True)], "drop_path is 2.0"),
    ],
)
def test_old_runs_stay_in_their_places_when_something_cannot_begin(toy, engine, others, line):
    train(toy, "0", options())
    before = weights_of(run_of(toy))

    with pytest.raises(IaunetError, match=line):
        train_networks(toy, "0", [options(restart=True), *others], engine)

    assert [path.name for path in toy.runs.iterdir() if path.is_dir()] == [RUN]
    assert weights_of(run_of(toy)) == before


def test_an_old_run_is_put_aside_by_one_process_at_a_time(toy):
    train(toy, "0", options())
    engine = NextDoor()

    with locked(toy.runs, "beginning a run"):
        second = threading.Thread(target=train_networks, args=(toy, "0", [options(restart=True)], engine))
        second.start()
        time.sleep(1)  # long enough to put it aside, if it did not wait
        assert run_of(toy).fold("0").is_finished
    second.join()

    assert engine.names == [f"{RUN} fold 0"]
    assert (toy.runs / f"{RUN}.old-1").is_dir()


def test_an_old_run_that_is_being_trained_is_not_put_aside(toy):
    fold = train(toy, "0", options()).fold("0")

    with locked(fold.root, "training"), pytest.raises(WorkspaceError, match="another process is training in"):
        train_networks(toy, "0", [options(restart=True)], NextDoor())

    assert fold.is_finished


def test_none_of_several_old_runs_is_put_aside_when_one_is_being_trained(toy):
    choices = [options(), options(network="unext")]
    idle, busy = (train(toy, "0", choice) for choice in choices)
    before = weights_of(idle), weights_of(busy)

    with locked(busy.fold("0").root, "training"), pytest.raises(WorkspaceError, match="another process is training in"):
        train_networks(toy, "0", [dataclasses.replace(choice, restart=True) for choice in choices], NextDoor())

    assert sorted(path.name for path in toy.runs.iterdir() if path.is_dir()) == [idle.name, busy.name]
    assert (weights_of(idle), weights_of(busy)) == before


def test_held_out_cases_are_scored_again_on_an_engine(toy):
    train(toy, "0", options())
    engine = NextDoor()

    train_networks(toy, "0", [options(val_only=True)], engine)

    assert engine.names == [f"{RUN} fold 0"]


def test_a_fold_that_fails_is_named_and_the_others_are_trained(toy):
    with (
        locked(run_of(toy).fold("1").root, "training"),
        pytest.raises(TrainingError, match=rf"^1 of 3 folds failed; {RUN} fold 1: another process is training in"),
    ):
        train_networks(toy, "cv", [options()], NextDoor())

    assert [fold.fold for fold in run_of(toy).finished_folds()] == ["0", "2"]


def test_parts_train_each_fold_once_and_the_last_sums_up(toy):
    summed_up = []
    for number in (1, 2):
        [run] = train_networks(toy, "cv", [options()], part=Part(number, 2))
        summed_up.append((run.crossval_json.exists(), [fold.fold for fold in run.finished_folds()]))

    assert summed_up == [(False, ["0", "2"]), (True, ["0", "1", "2"])]


def test_a_part_whose_fold_fails_trains_the_others(toy):
    with (
        locked(run_of(toy).fold("0").root, "training"),
        pytest.raises(TrainingError, match=rf"^1 of 2 folds failed; {RUN} fold 0: another process is training in"),
    ):
        train_networks(toy, "cv", [options()], part=Part(1, 2))

    assert [fold.fold for fold in run_of(toy).finished_folds()] == ["2"]


def test_a_part_without_folds_names_no_run_to_predict_with(toy, capsys):
    told = []
    for part in ("2/2", "1/2"):
        command = ["toy", "0", "--epochs", "1", "--part", part, "--workspace", str(toy.root.parent)]
        assert main([*command, "--device", "cpu"]) == 0
        told.append(capsys.readouterr().out)

    assert "iaunet_predict" not in told[0]
    assert f"iaunet_predict -i FOLDER -o FOLDER -d toy --run {RUN}\n" in told[1]


def test_networks_are_trained_one_after_the_other_here(toy, capsys):
    workspace = str(toy.root.parent)
    assert main(["toy", "0", "--network", "unet", "--network", "unext", "--epochs", "1", "--workspace", workspace]) == 0

    assert run_of(toy).fold("0").is_finished
    assert run_of(toy, "unext-best-random").fold("0").is_finished
    assert "-d toy --run unet-best-random unext-best-random" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("choices", "how", "line"),
    [
        (
            [options(name="a"), options(name="a")],
            {},
            "--name is the name of one run: leave it out, or give",
        ),
        ([options(hours=1)], {"engine": NextDoor()}, "--hours is shared out among .*: give --epochs instead"),
        ([options(hours=1)], {"part": Part(1, 2)}, "--hours is shared out among .*: give --epochs instead"),
        ([options(hours=1), options(network="unext")], {}, "--hours is shared out among .*: give --epochs instead"),
        (
            [options(restart=True)],
            {"part": Part(1, 2)},
            "--restart would put aside what other parts train",
        ),
    ],
)
def test_what_cannot_be_shared_out_is_refused(toy, choices, how, line):
    with pytest.raises(TrainingError, match=line):
        train_networks(toy, "cv", choices, **how)

    assert not toy.runs.exists()


def test_an_engine_gives_each_fold_one_process(capsys):
    assert main(["toy", "0", "--gpus", "99", "--engine", "ray"]) == 2

    assert capsys.readouterr().err == (
        "error: an engine trains each fold in one process: give --engine or several ranks, not both\n"
    )


def test_a_run_of_other_settings_is_refused_before_an_engine_is_started(toy):
    train(toy, "0", options())
    engine = NextDoor()

    with pytest.raises(TrainingError, match="was begun with other settings"):
        train_networks(toy, "cv", [options(seed=1)], engine)

    assert engine.names == []


def test_of_two_that_begin_a_run_at_once_the_second_takes_what_the_first_recorded(toy):
    train(toy, "0", options())
    run_json = run_of(toy).run_json
    recorded = run_json.read_text(encoding="utf-8").replace('"micro_batch": 4', '"micro_batch": 2')
    run_json.unlink()

    with locked(toy.runs, "beginning a run"):
        second = threading.Thread(target=train, args=(toy, "1", options()))
        second.start()
        time.sleep(1)  # long enough to record its own, if it did not wait
        assert not run_json.exists()
        run_json.write_text(recorded, encoding="utf-8")
    second.join()

    assert run_json.read_text(encoding="utf-8") == recorded
    assert load_checkpoint(run_of(toy).fold("1").checkpoint).micro_batch == 2


@pytest.fixture
def trained_here(toy, tmp_path):
    """The weights of each fold after four epochs in this process, in a workspace of their own."""
    folder = DatasetFolder(shutil.copytree(toy.root, tmp_path / "here" / "toy"))
    return weights_of(train(folder, "cv", options(epochs=4)))


def holder_of(lock):
    """The process that holds a lock's file open."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(file.readlink() == lock for file in (process / "fd").iterdir()):
                return int(process.name)
    raise AssertionError(f"nobody holds {lock}")


def kill_once_saved(fold):
    """Kill the process that trains a fold once it has written a checkpoint; the thread that does so."""

    def kill():
        while not fold.checkpoint.exists():
            time.sleep(0.01)
        os.kill(holder_of(fold.root / ".lock"), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.slow
def test_folds_trained_on_ray_equal_those_trained_here_though_a_worker_is_killed(toy, trained_here, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    killer = kill_once_saved(run_of(toy).fold("0"))

    [run] = train_networks(toy, "cv", [options(epochs=4)], RayEngine({"processors": 1}, toy.root))

    killer.join()
    assert "going on from epoch" in (run.fold("0").root / "log.txt").read_text(encoding="utf-8")
    assert weights_of(run) == trained_here
    assert run.crossval_json.exists()


@pytest.mark.slow
def test_folds_trained_as_jobs_equal_those_trained_here_though_one_is_killed(toy, trained_here, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    killer = kill_once_saved(run_of(toy).fold("0"))
    engine = SlurmEngine({"executor": "local", "processors": 1}, toy.root / "engine")

    [run] = train_networks(toy, "cv", [options(epochs=4)], engine)

    killer.join()
    assert weights_of(run) == trained_here


@pytest.mark.slow
def test_a_command_on_ray_that_is_interrupted_goes_on_by_the_same_command(toy, trained_here, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = [sys.executable, "-m", "iaunet", "train", "toy", "cv", "--epochs", "4", "--device", "cpu"]
    command += ["--workspace", str(toy.root.parent), "--engine", "ray", "--engine_option", "processors=1"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not run_of(toy).fold("0").checkpoint.exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)

    assert first.communicate()[1] == "stopped: run the same command again to go on\n"
    assert first.returncode == 130
    assert "stopping after this step" in (run_of(toy).fold("0").root / "log.txt").read_text(encoding="utf-8")
    assert subprocess.run(command, check=False).returncode == 0
    assert weights_of(run_of(toy)) == trained_here
