import json
import shutil

import numpy as np
import pytest
from PIL import Image

from iaunet.errors import PredictionError
from iaunet.inference.held_out import load_held_out
from iaunet.inference.predict_command import main as predict
from iaunet.preprocessing.command import main as prepare
from iaunet.workspace import DatasetFolder


@pytest.fixture
def test_set(tmp_path, write_toy):
    """Cases 18 to 20 of the toy dataset, which `trained` never saw."""
    whole = write_toy(tmp_path / "whole", 21)
    folder = tmp_path / "test"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
        for number in range(18, 21):
            shutil.copy(whole / part / f"case_{number:02d}.png", folder / part)
    return folder


@pytest.fixture
def check(trained):
    """Plans the trained dataset again with a test set; gives the exit code."""

    def check(*options):
        return prepare(["toy", "--workspace", str(trained), "--workers", "1", *map(str, options)])

    return check


@pytest.fixture
def score(trained, tmp_path):
    """Predicts and scores the test set; gives the exit code."""

    def score(workspace=trained):
        return predict(["--test", "-d", "toy", "-o", str(tmp_path / "out"), "--workspace", str(workspace)])

    return score


def test_a_test_set_is_predicted_and_scored(check, score, test_set, tmp_path):
    assert check("--test", test_set) == 0

    assert score() == 0

    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["summary"]
    assert summary["n_cases"] == 3
    assert summary["labels"]["foreground"]["all_cases"]["dice"]["mean"] > 0.8
    assert (tmp_path / "out" / "case_18.png").exists()


def test_one_label_may_be_written_by_another_value_there(check, score, test_set, tmp_path):
    assert check("--test", test_set) == 0
    assert score() == 0
    before = (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8")
    for path in (test_set / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)

    assert check() == 0
    assert score() == 0

    assert (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8") == before


def test_masks_drawn_of_annotations_are_found_in_a_copied_workspace(check, score, trained, test_set, tmp_path):
    rows = ["ImageId,EncodedPixels"]
    for path in sorted((test_set / "masks").iterdir()):
        flat = np.asarray(Image.open(path)).ravel(order="F") > 0
        edges = np.flatnonzero(np.diff(np.r_[0, flat.astype(int), 0]))
        runs = " ".join(f"{start + 1} {end - start}" for start, end in zip(edges[::2], edges[1::2], strict=True))
        rows.append(f"{path.stem},{runs}")
    shutil.rmtree(test_set / "masks")
    (test_set / "runs.csv").write_text("\n".join(rows), encoding="utf-8")
    assert check("--test", test_set) == 0
    copied = shutil.copytree(trained, tmp_path / "copied")
    shutil.rmtree(trained)

    assert score(copied) == 0

    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["summary"]
    assert summary["labels"]["foreground"]["all_cases"]["dice"]["mean"] > 0.8


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_test_set_that_changed_is_refused_before_anything_is_predicted(
    check, score, test_set, tmp_path, capsys, part
):
    assert check("--test", test_set) == 0
    shutil.copy(test_set / part / "case_18.png", test_set / part / "case_19.png")

    assert score() == 2

    assert "the test case case_19 has changed since it was checked: run iaunet_plan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_test_set_that_went_away_is_refused_and_can_be_given_up(check, score, test_set, trained, capsys):
    assert check("--test", test_set) == 0
    shutil.rmtree(test_set)

    assert score() == 2
    again = "run iaunet_plan_and_preprocess toy again with --test DIR"
    assert capsys.readouterr().err == f"error: the test set {test_set} is gone: bring it back, or {again}\n"
    assert check() == 2
    mend = "give --test with its folder, or --no_test"
    assert capsys.readouterr().err == f"error: the test set {test_set} does not exist: {mend}\n"
    assert check("--no_test") == 0
    assert not DatasetFolder(trained / "toy").held_out_json.exists()


def test_a_run_with_other_labels_is_refused(check, score, test_set, trained, capsys):
    assert check("--test", test_set) == 0
    path = DatasetFolder(trained / "toy").held_out_json
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"labels": ["polyp"]}), encoding="utf-8")

    assert score() == 2

    assert "the run was trained with labels foreground as they were coded then" in capsys.readouterr().err


def test_a_dataset_without_a_test_set_says_how_to_name_one(trained):
    with pytest.raises(
        PredictionError, match="toy has no held-out test set: run iaunet_plan_and_preprocess toy --test"
    ):
        load_held_out(DatasetFolder(trained / "toy"))
