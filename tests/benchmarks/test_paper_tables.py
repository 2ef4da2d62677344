"""The script that makes the paper's tables, with tiny settings."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iaunet.inference.runs import Run
from iaunet.workspace import locked

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "paper_tables.py"


@pytest.fixture
def make_tables(workspace, tmp_path):
    """Run the script on the toy data set; returns what it printed."""

    def make(*options, results=tmp_path / "results", code=0, says=""):
        command = [sys.executable, str(SCRIPT), "toy", "--workspace", str(workspace), "--results", str(results)]
        settings = ["--epochs", "1", "--recipes", "best", "--splits", "random", "--train_options", "--width 4"]
        done = subprocess.run([*command, *settings, *options], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return make


def lines(output):
    words = ("finished", "done", "no time", "unfinished", "failed ")
    return [line for line in output.splitlines() if line.startswith(words)]


def test_results_add_up_over_calls_and_nothing_is_trained_twice(make_tables, workspace, tmp_path):
    results = tmp_path / "results"

    first = lines(make_tables("--networks", "unet", "--folds", "0", "--commit", "abc"))
    (workspace / "toy" / "runs").rename(tmp_path / "gone")  # as on another machine
    second = lines(make_tables("--networks", "unet", "--folds", "0", "1"))

    assert [line.partition(":")[0] for line in first] == ["finished   unet-best-random-e1, fold 0"]
    assert [line.partition(":")[0] for line in second] == [
        "done       unet-best-random-e1, fold 0",
        "finished   unet-best-random-e1, fold 1",
    ]
    assert [folder.fold for folder in Run(results / "unet-best-random-e1").scored_folds()] == ["0", "1"]
    assert not [*results.rglob("*.safetensors"), *results.rglob("*.pt")]
    unit = json.loads((results / "unet-best-random-e1" / "fold_0" / "unit.json").read_text())
    assert {name: unit[name] for name in ("network", "recipe", "split", "fold", "epochs", "seed", "commit")} == {
        "network": "unet",
        "recipe": "best",
        "split": "random",
        "fold": 0,
        "epochs": 1,
        "seed": 0,
        "commit": "abc",
    }
    assert unit["device"].startswith("cpu")
    assert unit["command"].startswith("iaunet_train toy 0 --network unet --recipe best --split random --name unet-best")
    assert unit["seconds"] > 0
    assert len(json.loads((results / "tables" / "units.json").read_text())) == 2
    with (results / "tables" / "comparison.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "dice"]
    assert {(row["network"], row["folds"], row["complete"]) for row in rows if row["fold_set"] == "0 1 2"} == {
        ("U-Net", "0 1", "False")
    }


def test_no_unit_is_begun_without_time(make_tables, workspace):
    assert make_tables("--networks", "unet", "--minutes", "1", code=1).splitlines()[-2:] == [
        "no time    unet-best-random-e1, fold 0: 0 s are left",
        "no unit is finished",
    ]
    assert not (workspace / "toy" / "runs").exists()


@pytest.mark.slow
def test_a_unit_that_takes_longer_is_stopped_and_keeps_its_checkpoint(make_tables, workspace):
    stopped = make_tables("--networks", "unet", "--epochs", "100000", "--minutes", "1.5", code=1)

    assert lines(stopped) == ["unfinished unet-best-random-e100000, fold 0"]
    assert (workspace / "toy" / "runs" / "unet-best-random-e100000" / "fold_0" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_the_ablation_trains_variants_on_fold_0(make_tables, tmp_path):
    make_tables("--ablation", "no_attention")

    runs = sorted(path.parent.name for path in (tmp_path / "results").glob("*/run.json"))
    assert runs == ["iaunet-best-random-e1", "iaunet-no_attention-best-random-e1"]
    options = Run(tmp_path / "results" / "iaunet-no_attention-best-random-e1").record.plan.network.options
    assert options == {
        "max_keys": 256,  # as planners give so narrow a network
        "scale_attention": "none",
        "spatial_attention": "none",
        "channel_attention": False,
    }


@pytest.mark.slow
def test_results_of_other_settings_are_refused_before_anything_is_trained(make_tables, workspace):
    make_tables("--networks", "unet")
    (workspace / "toy" / "runs" / "unet-best-random-e1").rename(workspace / "gone")

    other = ("--networks", "unet", "--folds", "1", "--train_options", "--width 6")
    make_tables(*other, code=2, says="unet-best-random-e1/fold_0 was trained with the settings --network unet --recipe")

    assert not (workspace / "toy" / "runs" / "unet-best-random-e1").exists()


@pytest.mark.slow
def test_a_training_that_fails_is_told_and_the_others_go_on(make_tables):
    output = make_tables("--networks", "nonsense", "unet", code=1)

    assert [line.partition(":")[0] for line in lines(output)] == [
        "failed     nonsense-best-random-e1, fold 0",
        "finished   unet-best-random-e1, fold 0",
    ]


def test_an_unknown_variant_is_answered_with_the_known_ones(make_tables):
    make_tables("--ablation", "none", code=2, says="variant 'none' is not known: choose among paper5, ")
    make_tables("--ablation", "--folds", "1", code=2, says="on fold 0: leave out --networks and --folds")


def test_results_that_cannot_be_written_are_named(make_tables, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "unet-best-random-e1").write_text("in the way")

    make_tables("--networks", "unet", code=2, says="unet-best-random-e1 cannot be written")


@pytest.mark.slow
def test_a_signal_stops_the_training_as_well(workspace, tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        "toy",
        "--workspace",
        str(workspace),
        "--results",
        str(tmp_path / "results"),
    ]
    settings = ["--networks", "unet", "--recipes", "best", "--splits", "random", "--epochs", "100000"]
    process = subprocess.Popen([*command, *settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    fold = workspace / "toy" / "runs" / "unet-best-random-e100000" / "fold_0"
    until = time.monotonic() + 120
    while not (fold / "metrics.csv").exists() and time.monotonic() < until:
        time.sleep(0.1)

    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)

    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped: run the same command again to go on"
    assert "Traceback" not in said
    assert (fold / "checkpoint.pt").exists()
    with locked(fold, "training"):  # nobody trains it any more
        pass
