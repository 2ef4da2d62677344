"""The same data and seed give the same files to the bit, whatever stands around them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iaunet.__main__ import main

HERE = Path(__file__).parent
WHOLE_WAY = HERE / "whole_way.py"

USUAL = {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
ELSEWHERE = {
    "PYTHONHASHSEED": "12345",
    "TZ": "Asia/Kathmandu",
    "LC_ALL": "tr_TR.UTF-8",
    "PYTHONPATH": str(HERE / "reversed_listing"),
}

TIMED = {"seconds", "time"}
"""What is told of a training step and of a mask besides the result."""

UNLIKE = {"checkpoint.pt", "progress.png", ".lock"}
"""Files with seconds in them, and what only keeps others out."""


@pytest.fixture
def go_the_whole_way(tmp_path):
    """Run `whole_way.py` in a folder and an environment of its own; returns what it wrote, by place."""

    def go(dataset, workspace, *options, folder=tmp_path, environment=USUAL):
        run_python([WHOLE_WAY, dataset, workspace, workspace / "predicted", *options], folder, environment)
        return contents(workspace)

    return go


def run_python(arguments, folder, environment):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def contents(workspace):
    found = [path for path in sorted(workspace.rglob("*")) if path.is_file() and path.name not in UNLIKE]
    return {path.relative_to(workspace).as_posix(): content_of(path) for path in found}


def content_of(path):
    """The bytes of a file, without what tells time or place."""
    if path.name == "dataset.json":
        return {**json.loads(path.read_text()), "source": None}
    if path.name == "audit.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return sorted(json.dumps({key: line[key] for key in line.keys() - TIMED}, sort_keys=True) for line in lines)
    if path.name == "metrics.csv":
        header, *rows = (line.split(",") for line in path.read_text().splitlines())
        kept = [i for i, name in enumerate(header) if name not in TIMED]
        return [[row[i] for i in kept] for row in (header, *rows)]
    return path.read_bytes()


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def copy_in_reverse(dataset, target):
    """The same files, made in another order at another time."""
    for path in sorted(dataset.rglob("*.png"), reverse=True):
        copy = target / path.relative_to(dataset)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        os.utime(copy, (1, 1))
    return target


def test_order_of_listing_locale_time_zone_hash_seed_folder_and_place_change_no_bit_of_the_data(write_toy, tmp_path):
    toy = write_toy(tmp_path / "toy", 6)
    moved = copy_in_reverse(toy, tmp_path / "Ünder a new roof" / "toy")
    plan = ["plan_and_preprocess", str(toy), "--folds", "2", "--width", "2"]
    assert main([*plan, "--workspace", str(tmp_path / "one")]) == 0

    run_python(
        ["-m", "iaunet", *plan[:1], moved, *plan[2:], "--workspace", tmp_path / "two"], tmp_path / "cwd", ELSEWHERE
    )

    assert_same(contents(tmp_path / "one"), contents(tmp_path / "two"))


@pytest.mark.slow
def test_order_of_listing_locale_time_zone_hash_seed_folder_and_place_change_no_bit_of_the_whole_way(
    go_the_whole_way, write_toy, tmp_path
):
    toy = write_toy(tmp_path / "toy", 6)
    usual = go_the_whole_way(toy, tmp_path / "one")
    moved = copy_in_reverse(toy, tmp_path / "Ünder a new roof" / "toy")

    other = go_the_whole_way(moved, tmp_path / "two", folder=tmp_path / "cwd", environment=ELSEWHERE)

    assert_same(usual, other)
    made = {Path(name).name for name in usual}
    assert made >= {
        *("fingerprint.json", "plan.json", "splits.json", "check.html", "images.npy", "masks.npy", "index.json"),
        *("run.json", "weights.safetensors", "crossval.json", "scores.csv", "predictions.csv", "case_00.png"),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "loaders", "environment"),
    [(1, 1, USUAL), (2, 2, USUAL), (3, 0, ELSEWHERE), (2, 1, {**ELSEWHERE, "PYTHONHASHSEED": "random"})],
    ids=str,
)
def test_the_number_of_processes_changes_no_bit_of_data_weights_masks_choice_and_model(
    go_the_whole_way, write_toy, tmp_path, workers, loaders, environment
):
    toy = write_toy(tmp_path / "toy", 60)  # so many that each stage starts as many processes as it may
    then = ["--then", "find_best", "export_model"]
    usual = go_the_whole_way(toy, tmp_path / "one", *then)

    numbers = ["--workers", workers, "--loaders", loaders]
    other = go_the_whole_way(toy, tmp_path / "two", *numbers, *then, environment=environment)

    assert_same(usual, other)
    assert "model.zip" in usual
