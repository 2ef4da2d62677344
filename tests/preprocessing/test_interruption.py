"""The real command beside a second one, and without one of its workers."""

import os
import signal

import numpy as np
import pytest

from iaunet.preprocessing.command import main

NARROW = ("--width", "1")  # the time of training is estimated sooner
N_CASES = 60


@pytest.fixture(scope="module")
def toy(tmp_path_factory, write_toy):
    return write_toy(tmp_path_factory.mktemp("raw") / "toy", N_CASES)


@pytest.fixture(scope="module")
def undisturbed(toy, tmp_path_factory):
    """The files of a run that nobody stopped."""
    workspace = tmp_path_factory.mktemp("undisturbed")
    assert main([*NARROW, str(toy), "--workspace", str(workspace), "--workers", "1"]) == 0
    return files_of(workspace)


@pytest.fixture
def workspace(tmp_path):
    return tmp_path / "workspace"


@pytest.fixture
def start(start_command, toy, workspace):
    """Starts the real command with two workers."""
    options = (*NARROW, toy, "--workspace", workspace, "--workers", "2")
    return lambda: start_command("plan_and_preprocess", *options)


def files_of(folder):
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.endswith(".lock")}


def arrays_being_made(workspace):
    return workspace / "toy" / "preprocessed.partial"


def rows_done(workspace):
    try:
        return np.fromfile(arrays_being_made(workspace) / "done.npy", np.uint8)[-N_CASES:].sum()
    except FileNotFoundError:
        return 0


def test_a_second_process_at_the_same_time_is_refused_and_the_first_goes_on(start, workspace, undisturbed, toy, capsys):
    first = start()
    first.wait_until(lambda: rows_done(workspace) > 0, "some rows are done")
    os.kill(first.pid, signal.SIGSTOP)

    assert main([*NARROW, str(toy), "--workspace", str(workspace), "--workers", "1"]) == 2
    assert capsys.readouterr().err == (
        f"error: another process is preparing the data set in {workspace / 'toy'}: "
        "wait until it ends, or stop it first\n"
    )

    os.kill(first.pid, signal.SIGCONT)
    first.communicate()
    assert first.returncode == 0
    assert files_of(workspace) == undisturbed


def test_a_killed_worker_is_reported_and_the_same_command_goes_on(start, workspace, undisturbed, toy):
    process = start()
    process.wait_until(arrays_being_made(workspace).exists, "arrays are being made")
    process.wait_until(lambda: len(process.workers()) == 2, "both workers have started")
    os.kill(process.workers()[0], signal.SIGKILL)
    code, said, _ = process.end()

    assert code == 2
    assert said.startswith("error: a worker process was killed, most likely because memory ran out: run the same")
    assert main([*NARROW, str(toy), "--workspace", str(workspace), "--workers", "1"]) == 0
    assert files_of(workspace) == undisturbed
