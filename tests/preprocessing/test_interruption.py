"""The real command, stopped at any moment: it leaves no process, and the same command again ends as if undisturbed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from iaunet.preprocessing.command import main

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
NARROW = ("--width", "1")  # the time of training is estimated sooner
N_CASES = 60
PATIENCE = 60.0


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
def start(toy, workspace):
    """Starts the real command in a session of its own, with two workers; kills what is left of it at the end."""
    started = []

    def start():
        options = [*NARROW, toy, "--workspace", workspace, "--workers", "2"]
        command = [sys.executable, "-m", "iaunet", "plan_and_preprocess", *options]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for member in session_of(process):
            os.kill(member, signal.SIGKILL)
        process.communicate()


def files_of(folder):
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.endswith(".lock")}


def session_of(process):
    """The ids of the processes that this one started, itself among them, as long as they run."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == process.pid and state != "Z":
            members.append(int(stat.parent.name))
    return members


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.002)


def wait_until_gone(process):
    wait_until(lambda: not session_of(process), "no process is left")


def rows_done(workspace):
    try:
        return np.fromfile(workspace / "toy" / "preprocessed.partial" / "done.npy", np.uint8)[-N_CASES:].sum()
    except FileNotFoundError:
        return 0


MOMENTS = {
    "workers have started": lambda process, workspace: len(session_of(process)) >= 4,
    "arrays are being made": lambda process, workspace: (workspace / "toy" / "preprocessed.partial").exists(),
    "some rows are done": lambda process, workspace: rows_done(workspace) > 0,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_the_same_command_ends_as_if_undisturbed(start, workspace, undisturbed, moment, toy):
    process = start()
    wait_until(lambda: MOMENTS[moment](process, workspace), moment)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_until_gone(process)

    assert main([*NARROW, str(toy), "--workspace", str(workspace), "--workers", "1"]) == 0

    assert files_of(workspace) == undisturbed


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_undisturbed(start, workspace, undisturbed, toy):
    rng = np.random.default_rng(0)
    for delay in rng.uniform(0.3, 3.5, 25):
        process = start()
        time.sleep(delay)
        process.kill()
        process.wait()
        wait_until_gone(process)

    assert main([*NARROW, str(toy), "--workspace", str(workspace), "--workers", "1"]) == 0

    assert files_of(workspace) == undisturbed


@pytest.mark.parametrize(
    ("moment", "number", "to_all"),
    [("workers have started", signal.SIGINT, True), ("some rows are done", signal.SIGTERM, False)],
)
def test_stopped_it_says_so_leaves_no_process_and_can_go_on(start, workspace, undisturbed, toy, moment, number, to_all):
    process = start()
    wait_until(lambda: MOMENTS[moment](process, workspace), moment)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=PATIENCE)

    assert (process.returncode, said) == (130, "stopped: run the same command again to go on\n")
    wait_until_gone(process)
    assert main([*NARROW, str(toy), "--workspace", str(workspace), "--workers", "1"]) == 0
    assert files_of(workspace) == undisturbed


def test_a_second_process_at_the_same_time_is_refused_and_the_first_goes_on(start, workspace, undisturbed, toy, capsys):
    first = start()
    wait_until(lambda: MOMENTS["some rows are done"](first, workspace), "some rows are done")
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


def workers_of(process):
    return [i for i in session_of(process) if b"spawn_main" in Path(f"/proc/{i}/cmdline").read_bytes()]


def test_a_killed_worker_is_reported_and_the_same_command_goes_on(start, workspace, undisturbed, toy):
    process = start()
    wait_until(lambda: MOMENTS["arrays are being made"](process, workspace), "arrays are being made")
    wait_until(lambda: len(workers_of(process)) == 2, "both workers have started")
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE)

    assert process.returncode == 2
    assert said.startswith("error: a worker process was killed, most likely because memory ran out: run the same")
    assert main([*NARROW, str(toy), "--workspace", str(workspace), "--workers", "1"]) == 0
    assert files_of(workspace) == undisturbed
