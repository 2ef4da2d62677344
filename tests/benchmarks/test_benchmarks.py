"""The benchmarks of the stages and the page their results go into, on a few small images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(script, *options):
    command = [sys.executable, str(FOLDER / script), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def measure(write_toy, tmp_path):
    """Run a benchmark on toy images, once; returns its tables."""
    folder = write_toy(tmp_path / "toy", 12)

    def measure_stage(script, *options, sizes=(12,)):
        file = tmp_path / "results" / "stage.json"
        run(script, "--data", folder, "--sizes", *sizes, "--rounds", "1", "--json", file, *options)
        facts = json.loads(file.read_text())
        assert facts["settings"]["data"] == "toy"
        assert str(tmp_path) not in file.read_text()
        return facts["tables"]

    return measure_stage


def test_tables_take_their_places_in_a_page_and_the_rest_of_it_stays(tmp_path):
    row = {"images": 612, "s": {"median": 5.0, "lowest": 4.75, "highest": 612.4}, "ratio": 1.23456, "missing": None}
    machine = {"processor": "X", "cores": 2, "memory_gb": 24, "gpu": None, "system": "Linux", "python": "3.11"}
    facts = {
        "machine": machine | {"torch": "2.13.0", "commit": "abc"},
        "settings": {"data": "CVC", "nnunet": True, "rounds": 3, "networks": ["unet:8", "iaunet:8"], "recipe": None},
        "tables": {"first": [row, row]},
    }
    (tmp_path / "stage.json").write_text(json.dumps(facts))
    page = tmp_path / "page.md"
    (tmp_path / "list.json").write_text(json.dumps([{"rows": 4, "ratio": 0.9}]))
    other = "<!-- table other.first -->\nkept\n<!-- end -->\n\n<!-- table list -->\n"
    page.write_text(f"# Title\n\n<!-- table stage.first -->\nold\n<!-- end -->\n\n{other}<!-- end -->\n")

    run("render.py", tmp_path, "--into", page)
    run("render.py", tmp_path, "--into", page)  # again: nothing piles up

    line = "| 612 | 5 (4.75 to 612) | 1.23 |  |"
    told = (
        "CVC; median (lowest to highest) of 3 rounds; 2 cores of X, 24 GB; Linux, Python 3.11, torch 2.13.0; "
        "commit abc; --networks unet:8 iaunet:8."
    )
    table = f"| images | s | ratio | missing |\n| --- | --- | --- | --- |\n{line}\n{line}\n\n{told}\n"
    of_list = "| rows | ratio |\n| --- | --- |\n| 4 | 0.9 |\n"
    first = f"<!-- table stage.first -->\n{table}<!-- end -->"
    assert page.read_text() == f"# Title\n\n{first}\n\n{other}{of_list}<!-- end -->\n"


@pytest.mark.slow
def test_planning_is_compared_with_the_floor_for_each_number_of_images(measure):
    tables = measure("planning.py", "--workers", "1", sizes=(6, 12))

    sizes = [(row["images"], row["estimate of the time"]) for row in tables["planning"]]
    assert sizes == [(6, "yes"), (6, "no"), (12, "yes"), (12, "no")]
    assert all(row["ratio"]["median"] > 0 and row["floor, s"]["median"] > 0 for row in tables["planning"])
    assert tables["planning_costs"][0]["s"] >= tables["planning_costs"][1]["s"] > 0


@pytest.mark.slow
def test_a_training_epoch_falls_into_parts(measure):
    tables = measure("training_epoch.py", "--networks", "unet:1", "--batch_size", "4", "--images", "12")

    [epoch] = tables["training"]
    assert (epoch["network"], epoch["width"], epoch["batch"]) == ("unet", 1, 4)
    assert epoch["steps"] == 3  # of the 9 or 10 cases that are trained on
    assert epoch["ratio"]["median"] > 0
    parts = {row["part"]: row["ms a step"] for row in tables["training_parts"]}
    assert min(parts[part] for part in ("forward", "backward", "optimiser", "average of the weights")) > 0
    assert sum(row["share"] for row in tables["training_parts"]) == pytest.approx(1)
    assert len(tables["training_costs"]) == 3
    assert [row["images"] for row in tables["training_memory"]] == [12]


@pytest.mark.slow
def test_prediction_is_compared_with_the_network_alone(measure):
    tables = measure("prediction.py", "--network", "unet:1", "--images", "6", "--device", "cpu")

    [row] = tables["prediction"]
    assert (row["network"], row["flips"], row["images"]) == ("unet", 1, 6)
    assert row["of the network's speed"]["median"] > 0
    assert [row["images"] for row in tables["prediction_memory"]] == [12]
    assert len(tables["prediction_parts"]) == 4


@pytest.mark.slow
def test_help_the_first_step_and_the_first_mask_are_timed(measure):
    tables = measure("startup.py", "--networks", "unet:1")

    assert tables["help"][0]["times a bare Python"] == 1
    assert all(row["s"]["median"] > 0 for row in tables["help"])
    assert [row["what"] for row in tables["first"]] == [
        "first step of iaunet_train, unet of width 1",
        "first mask of iaunet_predict",
    ]
    assert all(row["s"]["median"] > 0.1 for row in tables["first"])


@pytest.mark.slow
def test_many_images_are_predicted_killed_and_gone_on_with(tmp_path):
    file = tmp_path / "load.json"

    run("load.py", "--images", "400", "--network", "unet:1", "--kill_at", "0.3", "--json", file, "--work", tmp_path)

    tables = json.loads(file.read_text())["tables"]
    calls = {row["call"]: row for row in tables["load_calls"]}
    assert 120 <= calls["the same again"]["kept"] < 400
    assert calls["the same again"]["kept"] + calls["the same again"]["done"] == calls["once more"]["kept"] == 400
    assert all(row["images/s"] > 0 for row in tables["load"])
    *faults, made_again = tables["load_checks"]
    assert [row["number"] for row in faults] == [0] * len(faults)
    assert made_again["number"] <= 4  # masks whose threads had not written their line
