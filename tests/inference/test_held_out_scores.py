import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iaunet.errors import PredictionError, WorkspaceError
from iaunet.inference import held_out_scores
from iaunet.inference.predict_command import main as predict
from iaunet.inference.scores import read_scores
from iaunet.preprocessing.command import main as prepare
from iaunet.stacks import hash_files
from iaunet.trainers.command import main as train
from iaunet.workspace import DatasetFolder, locked

REMARK = "scored 2 times: with each look the score becomes more optimistic"


@pytest.fixture
def folder(trained, tmp_path, write_toy):
    """The trained toy dataset, planned again with a test set of cases 18 to 20, which its run never saw."""
    whole = write_toy(tmp_path / "whole", 21)
    for part in ("images", "masks"):
        (tmp_path / "test" / part).mkdir(parents=True)
        for number in range(18, 21):
            shutil.copy(whole / part / f"case_{number}.png", tmp_path / "test" / part)
    assert prepare(["toy", "--workspace", str(trained), "--workers", "1", "--test", str(tmp_path / "test")]) == 0
    return DatasetFolder(trained / "toy")


def score(folder):
    return held_out_scores.score_test_once(folder, device="cpu", workers=1)


def find(folder):
    return held_out_scores.find_test_scores(folder)


def mean_dice(look):
    return look.summary.labels["foreground"].all_cases["dice"].mean


def change_weights(folder):
    """Another model: the run without its last fold."""
    shutil.rmtree(folder.runs / "unet-best-random" / "fold_2")


def test_the_test_set_is_predicted_and_scored_as_iaunet_predict_does_it(folder, tmp_path):
    scores = score(folder)

    assert predict(["--test", "-d", "toy", "-o", str(tmp_path / "out"), "--workspace", str(folder.root.parent)]) == 0
    masks = held_out_scores.masks_folder(folder, scores.present)
    assert repr(read_scores(masks / "scores.csv")) == repr(read_scores(tmp_path / "out" / "scores.csv"))
    for name in ("case_18.png", "case_19.png", "case_20.png"):
        assert (masks / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert mean_dice(scores.present) > 0.8
    assert scores.present.runs == ("unet-best-random",)
    assert (scores.present.unscored, scores.present.leakage) == ((), "")
    assert (scores.times, scores.remark, scores.earlier) == (1, "", ())


def test_the_record_is_read_back_and_names_no_place(folder):
    scores = score(folder)

    assert repr(find(folder)) == repr(scores)
    text = (folder.root / "test_scores" / "test_scores.json").read_text(encoding="utf-8")
    assert str(folder.root.parent) not in text
    assert "test_scores" not in text


def test_asked_again_with_the_same_model_nothing_is_predicted(folder, tmp_path):
    before = score(folder)
    masks = held_out_scores.masks_folder(folder, before.present)
    times = {path: path.stat().st_mtime_ns for path in masks.iterdir()}
    shutil.rmtree(tmp_path / "test")  # it is not needed any more

    again = score(folder)

    assert repr(again) == repr(before)
    assert {path: path.stat().st_mtime_ns for path in masks.iterdir()} == times


def test_another_model_is_another_look_and_the_first_one_is_not_forgotten(folder):
    first = score(folder)
    change_weights(folder)

    second = score(folder)

    assert (second.times, second.remark) == (2, REMARK)
    assert second.present.model != first.present.model
    assert repr(second.earlier) == repr((first.present,))
    assert repr(find(folder)) == repr(second)
    assert held_out_scores.masks_folder(folder, first.present).is_dir()


def test_the_first_model_asked_again_gets_its_own_scores_and_no_further_look(folder, tmp_path):
    run, kept = folder.runs / "unet-best-random" / "fold_2", tmp_path / "kept"
    shutil.copytree(run, kept)
    first = score(folder)
    change_weights(folder)
    second = score(folder)
    shutil.copytree(kept, run)

    again = score(folder)

    assert repr(again.present) == repr(first.present)
    assert repr(again.earlier) == repr((second.present,))
    assert again.times == 2


def test_a_test_set_that_was_changed_and_checked_again_is_another_look(folder, tmp_path):
    first = score(folder)
    for part in ("images", "masks"):
        (tmp_path / "test" / part / "case_20.png").unlink()
    assert prepare(["toy", "--workspace", str(folder.root.parent), "--workers", "1"]) == 0

    second = score(folder)

    assert second.present.model == first.present.model
    assert (first.present.summary.n_cases, second.present.summary.n_cases) == (3, 2)
    assert second.times == 2


def test_masks_that_were_removed_are_made_again_and_count_as_the_same_look(folder):
    first = score(folder)
    shutil.rmtree(held_out_scores.masks_folder(folder, first.present))

    again = score(folder)

    assert repr(again) == repr(first)
    assert (held_out_scores.masks_folder(folder, again.present) / "case_18.png").exists()


@pytest.fixture
def predict_test(folder, tmp_path, capsys):
    """Predict the test set with ``iaunet_predict --test``; returns what is said."""

    def predict_test(*options):
        where = ["-o", str(tmp_path / "out"), "--workspace", str(folder.root.parent), "--overwrite"]
        assert predict(["--test", "-d", "toy", *where, *options]) == 0
        return capsys.readouterr().out

    return predict_test


def test_iaunet_predict_looks_at_the_test_set_too(folder, predict_test):
    assert REMARK not in predict_test()
    first = find(folder)
    assert (first.times, first.present.masks, first.present.unscored) == (1, "", ())

    assert REMARK not in predict_test()
    assert find(folder).times == 1
    assert f"warning    the test set was {REMARK}" in predict_test("-f", "0")
    assert f"warning    the test set was {REMARK}" in predict_test()

    assert repr(find(folder).present) == repr(first.present)
    assert len(find(folder).earlier) == 1
    scores = score(folder)  # the first model's again, whose masks lie elsewhere
    assert (scores.times, scores.present.model) == (2, first.present.model)
    assert repr(scores.present.summary) == repr(first.present.summary)
    assert (held_out_scores.masks_folder(folder, scores.present) / "case_18.png").exists()
    assert f"warning    the test set was {REMARK}" in predict_test()
    assert repr(find(folder)) == repr(scores)


def test_leakage_is_told(folder, tmp_path):
    raw = Path(folder.load_dataset().source.root)
    shutil.copy(raw / "images" / "case_00.png", tmp_path / "test" / "images" / "case_18.png")
    assert prepare(["toy", "--workspace", str(folder.root.parent), "--workers", "1"]) == 0

    assert "1 image(s) equal to training images: its scores are inflated" in score(folder).present.leakage


def test_a_case_that_cannot_be_predicted_is_named_and_the_rest_scored(folder, tmp_path):
    image = tmp_path / "test" / "images" / "case_19.png"
    Image.fromarray(np.full((64, 64), 30_000, np.uint16)).save(image)  # what checking would have refused
    checked = json.loads(folder.held_out_json.read_text(encoding="utf-8"))
    checked["sha256"]["case_19"][0] = hash_files([image])
    folder.held_out_json.write_text(json.dumps(checked), encoding="utf-8")

    look = score(folder).present

    assert look.unscored == ("case_19",)
    assert look.summary.n_cases == 2


def test_a_test_set_that_changed_unchecked_is_not_scored(folder, tmp_path):
    shutil.copy(tmp_path / "test" / "masks" / "case_18.png", tmp_path / "test" / "masks" / "case_19.png")

    with pytest.raises(PredictionError, match="the test case case_19 has changed since it was checked"):
        score(folder)

    assert find(folder) is None


def test_without_a_test_set_nothing_is_loaded(trained):
    with pytest.raises(PredictionError, match="toy has no held-out test set: run iaunet_plan_and_preprocess toy"):
        score(DatasetFolder(trained / "toy"))


def test_several_runs_without_a_choice_are_a_question(folder):
    assert train(["toy", "0", "--name", "other", "--epochs", "1", "--workspace", str(folder.root.parent)]) == 0

    with pytest.raises(PredictionError, match="toy has several runs and none was chosen: run iaunet_find_best toy"):
        score(folder)


def test_a_damaged_record_is_not_overwritten(folder):
    score(folder)
    path = folder.root / "test_scores" / "test_scores.json"
    path.write_text(json.dumps({"version": 1}), encoding="utf-8")

    with pytest.raises(PredictionError, match="present is missing; bring it back from a copy"):
        score(folder)

    assert json.loads(path.read_text(encoding="utf-8")) == {"version": 1}


def test_two_processes_do_not_look_at_once(folder):
    with (
        locked(folder.root / "test_scores", "scoring the test set"),
        pytest.raises(WorkspaceError, match="another process is scoring the test set"),
    ):
        score(folder)
