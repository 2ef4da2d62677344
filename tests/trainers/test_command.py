"""The real command as a process of its own: stopped, killed, out of disk."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iaunet.inference.runs import Run
from iaunet.trainers.checkpoint import load_checkpoint
from iaunet.trainers.command import main

RUN = "unet-best-random"


def wait_for_end(process):
    """The exit code and what was said on stderr; no process of its session may be left soon after."""
    out, err = process.communicate(timeout=120)
    deadline = time.monotonic() + 30
    while process.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not process.processes()
    return process.returncode, err, out


def go_on(workspace, *options):
    """The same command again, in this process."""
    assert main(["toy", "0", "--workspace", str(workspace), *options]) == 0


def rows_of(fold):
    with fold.metrics_csv.open(newline="") as file:
        return [{name: row[name] for name in row if name != "seconds"} for row in csv.DictReader(file)]


def fold_of(workspace):
    return Run(workspace / "toy" / "runs" / RUN).fold("0")


@pytest.fixture
def same_as_undisturbed(workspace, trained_toy):
    """Assert that fold 0 is to the bit what it is in `trained_toy`, and that nothing half-written is left."""

    def check():
        fold, undisturbed = fold_of(workspace), fold_of(trained_toy)
        assert fold.weights.read_bytes() == undisturbed.weights.read_bytes()
        assert rows_of(fold) == rows_of(undisturbed)
        assert fold.scores_csv.read_bytes() == undisturbed.scores_csv.read_bytes()
        assert fold.summary_json.read_bytes() == undisturbed.summary_json.read_bytes()
        assert not list(workspace.rglob("*tmp"))

    return check


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, "0"), (signal.SIGTERM, "1")])
def test_a_signal_stops_after_the_step_and_the_same_command_goes_on_to_the_bit(
    start, workspace, same_as_undisturbed, number, workers
):
    process = start("--workers", workers)
    process.read_until("epoch 3/12")
    os.killpg(process.pid, number)  # as a terminal or a batch system does: workers are signalled too

    code, err, out = wait_for_end(process)

    assert code == 130
    assert err.startswith("stopped: saved after epoch ")
    assert err.endswith(": run the same command again to go on\n")
    assert err.count("\n") == 1
    assert "stopping after this step ..." in out
    kept = load_checkpoint(fold_of(workspace).checkpoint)
    assert f"epoch {kept.epoch}" in err
    go_on(workspace)
    same_as_undisturbed()


def test_a_signal_while_the_loading_processes_start_stops_as_well(start, workspace):
    process = start("--workers", "2")
    process.read_until("run ")
    time.sleep(0.7)
    os.killpg(process.pid, signal.SIGINT)

    code, err, _ = wait_for_end(process)

    assert code == 130
    assert err.count("\n") == 1
    assert "run the same command again to go on" in err
    assert not fold_of(workspace).weights.exists()


@pytest.mark.parametrize("moment", ["run ", "epoch 1/12", "epoch 12/12"])
def test_a_killed_training_goes_on_to_the_bit(start, workspace, same_as_undisturbed, moment):
    process = start()
    process.read_until(moment)
    process.kill()
    wait_for_end(process)

    go_on(workspace)

    same_as_undisturbed()


@pytest.mark.slow
@pytest.mark.parametrize("milliseconds", range(0, 6000, 300))
def test_a_training_killed_at_any_moment_goes_on_to_the_bit(start, workspace, same_as_undisturbed, milliseconds):
    process = start()
    process.read_until("workspace ")
    time.sleep(milliseconds / 1000)
    process.kill()
    wait_for_end(process)

    go_on(workspace)

    same_as_undisturbed()


@pytest.mark.slow
def test_a_training_killed_with_its_loading_process_leaves_none_and_goes_on(start, workspace, same_as_undisturbed):
    process = start("--workers", "1")
    process.read_until("epoch 2/12")
    process.kill()
    wait_for_end(process)

    go_on(workspace)

    same_as_undisturbed()


def test_a_fault_of_a_network_keeps_its_traceback_and_leaves_no_process(start):
    process = start("--network", "strange_networks:Failing", "--workers", "1")

    code, err, _ = wait_for_end(process)

    assert code == 1
    assert err.endswith("ValueError: a fault of the network's own\n")
    assert "Traceback" in err


def test_a_second_process_on_the_same_fold_is_refused(start, workspace, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    options = ("--network", "strange_networks:Slow")
    process = start(*options, SLOW_SECONDS="0.3")
    process.read_until("epoch 1/12")

    assert main(["toy", "0", "--workspace", str(workspace), *options]) == 2

    folder = workspace / "toy" / "runs" / "Slow-best-random" / "fold_0"
    told = f"error: another process is training in {folder}: wait until it ends, or stop it first\n"
    assert capsys.readouterr().err == told
    process.terminate()
    assert wait_for_end(process)[0] == 130


def test_a_full_disk_is_named_and_the_last_good_checkpoint_stays(start, workspace, same_as_undisturbed, capsys):
    resource = pytest.importorskip("resource", reason="no limits on file sizes on this system")
    process = start()
    process.read_until("epoch 2/12")
    process.terminate()
    wait_for_end(process)
    fold = fold_of(workspace)
    before = fold.checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        assert main(["toy", "0", "--workspace", str(workspace)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    told = f"error: no space left for {fold.checkpoint}: free some space and run the same command again\n"
    assert capsys.readouterr().err == told
    assert fold.checkpoint.read_bytes() == before
    go_on(workspace)
    same_as_undisturbed()


@pytest.mark.parametrize("command", ["train", "predict"])
def test_help_imports_no_torch(command):
    program = (
        "import sys\n"
        "from iaunet.__main__ import main\n"
        "try:\n"
        f"    main(['{command}', '--help'])\n"
        "finally:\n"
        "    print('heavy:', sorted({'torch', 'scipy', 'numpy', 'batchgenerators', 'PIL'} & set(sys.modules)))\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: iaunet_{command} ")
    assert done.stdout.endswith("heavy: []\n")


def test_unknown_options_are_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["toy", "0", "--speed", "high"])

    assert caught.value.code == 2
    assert "unrecognized arguments: --speed high" in capsys.readouterr().err
