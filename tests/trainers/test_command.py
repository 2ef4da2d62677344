"""The real command as a process of its own: stopped, refused, out of disk."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iaunet.inference.runs import Run
from iaunet.storage import TEMPORARY_SUFFIX
from iaunet.trainers.checkpoint import load_checkpoint
from iaunet.trainers.command import main

RUN = "unet-best-random"


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


def test_a_signal_stops_after_the_step_and_says_so(start, workspace):
    process = start("--workers", "0")
    process.read_until("epoch 3/12")
    os.killpg(process.pid, signal.SIGINT)

    code, err, out = process.end()

    assert code == 130
    kept = load_checkpoint(fold_of(workspace).checkpoint)
    assert err.startswith(f"stopped: saved after epoch {kept.epoch}")
    assert "stopping after this step ..." in out


def test_a_signal_while_the_loading_processes_start_stops_as_well(start, workspace):
    process = start("--workers", "2")
    process.read_until("run ")
    time.sleep(0.7)
    os.killpg(process.pid, signal.SIGINT)

    code, err, _ = process.end()

    assert code == 130
    assert err.count("\n") == 1
    assert "run the same command again to go on" in err
    assert not fold_of(workspace).weights.exists()


def test_what_a_killed_process_left_of_the_files_of_a_run_is_removed(trained):
    left = [fold_of(trained).root.parent / f".{name}{TEMPORARY_SUFFIX}" for name in ("run", "crossval")]
    for path in left:
        path.touch()

    go_on(trained)

    assert not any(path.exists() for path in left)


def test_a_fault_of_a_network_keeps_its_traceback_and_leaves_no_process(start):
    process = start("--network", "strange_networks:Failing", "--workers", "1")

    code, err, _ = process.end()

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
    assert process.end()[0] == 130


def test_a_full_disk_is_named_and_the_last_good_checkpoint_stays(start, workspace, same_as_undisturbed, capsys):
    resource = pytest.importorskip("resource", reason="no limits on file sizes on this system")
    process = start()
    process.read_until("epoch 2/12")
    process.terminate()
    process.end()
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
