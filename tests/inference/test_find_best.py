import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from iaunet.errors import PredictionError, WorkspaceError
from iaunet.files import read_mask
from iaunet.inference.best import BestFolder, find_chosen
from iaunet.inference.find_best import find_best
from iaunet.inference.find_best_command import describe_finding, main
from iaunet.inference.model_export import export_model
from iaunet.inference.out_of_fold import LogitWriter, logits_path, read_logits, sigmoid
from iaunet.inference.postprocessing import clean_labels
from iaunet.inference.predict_command import main as predict
from iaunet.inference.runs import Run
from iaunet.inference.scores import read_scores
from iaunet.planners.plan import load_plan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.workspace import DatasetFolder, locked

RUN = "unet-best-random"


@pytest.fixture
def folder(trained):
    return DatasetFolder(trained / "toy")


@pytest.fixture
def add_run(folder):
    """Add a run whose networks said of each row what ``say(truth, probabilities, number)`` gives."""

    def add(name, say):
        root = shutil.copytree(folder.runs / RUN, folder.runs / name)
        arrays = open_arrays(folder.preprocessed, load_plan(folder.plan_json).arrays_digest)
        for fold in Run(root).scored_folds():
            for score in read_scores(fold.scores_csv):
                [row] = arrays.cases[score.name].rows
                before = sigmoid(read_logits(fold.logits, score.name))
                said = say((arrays.masks[row] == 1).astype(np.float32), before[0, 0], row)
                LogitWriter(logits_path(fold.logits, score.name), before.shape).add(said[None].astype(np.float32))
        return name

    return add


def test_a_single_run_is_chosen_with_the_dice_of_its_cross_validation(folder):
    finding = find_best(folder)

    crossval = json.loads((folder.runs / RUN / "crossval.json").read_text())
    expected = crossval["scores"]["labels"]["foreground"]["all_cases"]["dice"]
    [candidate] = finding.model.candidates
    assert candidate.runs == (RUN,)
    assert candidate.dice == pytest.approx(expected["mean"], abs=2e-4)
    assert (candidate.low, candidate.high) == pytest.approx((expected["low"], expected["high"]), abs=1e-3)
    assert finding.model.why.endswith("the only run with every fold")


def test_the_best_of_several_runs_is_chosen(folder, add_run):
    add_run("perfect", lambda truth, probabilities, row: 0.05 + 0.9 * truth)
    add_run("empty", lambda truth, probabilities, row: 0 * truth)

    finding = find_best(folder)

    assert [member.run for member in finding.model.members] == ["perfect"]
    by_title = {candidate.title: candidate.dice for candidate in finding.model.candidates}
    assert by_title["perfect"] == 1
    assert by_title["empty"] == 0
    assert len(by_title) == 3 + 3 + 1
    assert [*by_title.values()] == sorted(by_title.values(), reverse=True)
    assert "the best single run; the best ensemble" in finding.model.why


def test_an_ensemble_that_is_worse_by_more_than_chance_is_said_to_be(folder, add_run):
    add_run("perfect", lambda truth, probabilities, row: 0.45 + 0.1 * truth)
    add_run("empty", lambda truth, probabilities, row: 0 * truth)
    shutil.rmtree(folder.runs / RUN)

    said = find_best(folder).model.why

    assert re.fullmatch(r"Dice 1\.0000, the best single run; .* differs by -0\..* \(-0\..* to -0\..*\): worse", said)


def test_an_ensemble_is_chosen_where_it_is_better_by_more_than_chance(folder, add_run):
    def knowing(known):
        def say(truth, probabilities, row):
            maps = 0.2 + 0.7 * truth
            unknown = ~known
            maps[:, unknown] = np.random.default_rng(row).choice([0.45, 0.55], (64, unknown.sum()))
            return maps

        return say

    left_half = np.arange(64) < 32
    add_run("left", knowing(left_half))
    add_run("right", knowing(~left_half))

    finding = find_best(folder)

    assert {"left", "right"} <= {member.run for member in finding.model.members}
    assert finding.model.candidates[0].dice > 0.99
    assert finding.model.why.endswith(f"over the best single run {RUN}")


def test_what_was_chosen_is_read_back_until_its_weights_change(folder, caplog):
    finding = find_best(folder)

    assert BestFolder.of(folder).read() == (finding.model, finding.tuning)
    chosen = find_chosen(folder)
    assert (chosen.runs, chosen.tuning) == ([RUN], finding.tuning)

    other, fold = Run(folder.runs / RUN).fold("0"), Run(folder.runs / RUN).fold("1")
    shutil.copyfile(other.weights, fold.weights)
    shutil.copyfile(other.summary_json, fold.summary_json)
    assert find_chosen(folder) is None
    assert f"was of other weights of {RUN}: run iaunet_find_best again" in caplog.text


def test_a_choice_that_could_not_be_finished_does_not_leave_the_one_before_with_its_scores(folder):
    find_best(folder)
    scores = BestFolder.of(folder).root / "crossval.json"
    scores.unlink()
    scores.mkdir()  # in the way of what is written after scores.csv

    with pytest.raises(WorkspaceError, match=r"crossval\.json cannot be written"):
        find_best(folder)

    assert find_chosen(folder) is None


def test_nothing_is_chosen_before_the_command_was_run(folder):
    assert find_chosen(folder) is None


@pytest.fixture
def speckled(folder, add_run):
    """The only run: it knows the truth, and adds three speckles of four pixels far from it."""

    def say(truth, probabilities, row):
        maps = 0.1 + 0.8 * truth
        corners = [(2, 2), (2, 60), (60, 2), (60, 60)]
        for i in np.random.default_rng(row).choice(4, 3, replace=False):
            top, left = corners[i]
            maps[top : top + 2, left : left + 2] = 0.9
        return maps

    name = add_run("speckled", say)
    shutil.rmtree(folder.runs / RUN)
    return name


def test_cleaning_that_helps_is_kept_and_scored_as_other_folds_chose_it(folder, speckled):
    finding = find_best(folder)

    assert finding.search.is_kept
    [cleaning] = finding.tuning.postprocessing.cleaning
    assert cleaning.smallest > 4 or cleaning.largest_only
    best = BestFolder.of(folder).root
    before = 1 - finding.search.dice_before
    assert 0.002 < before < 0.1
    assert [score.labels["foreground"].metrics["dice"] for score in read_scores(best / "scores.csv")] == [1.0] * 18
    crossval = json.loads((best / "crossval.json").read_text())
    assert crossval["scores"]["labels"]["foreground"]["all_cases"]["dice"]["mean"] == 1
    assert finding.model.postprocessing_why.startswith("kept: ")


def test_prediction_uses_what_was_chosen_unless_told_not_to(folder, speckled, toy, tmp_path, capsys, trained):
    find_best(folder)
    common = ("-i", str(toy / "images"), "-d", "toy", "--no_mirroring", "--workspace", str(trained))

    assert predict([*common, "-o", str(tmp_path / "chosen")]) == 0
    assert predict([*common, "-o", str(tmp_path / "plain"), "--no_postprocessing"]) == 0

    shown = capsys.readouterr().out
    assert shown.count("as iaunet_find_best chose") == 1
    [cleaning] = find_chosen(folder).tuning.postprocessing.cleaning
    chosen = json.loads((tmp_path / "chosen" / "predictions.json").read_text())
    assert chosen["cleaning"][0]["smallest"] == cleaning.smallest
    for path in sorted((tmp_path / "chosen").glob("*.png")):
        plain = (read_mask(tmp_path / "plain" / path.name) > 0).astype(np.uint8)
        cleaned = clean_labels(plain[None], [cleaning])[0]
        np.testing.assert_array_equal(read_mask(path) > 0, cleaned > 0)


def test_the_command_shows_the_table_and_the_next_command(folder, add_run, trained, capsys):
    add_run("perfect", lambda truth, probabilities, row: 0.05 + 0.9 * truth)

    assert main(["toy", "--workspace", str(trained)]) == 0

    shown = capsys.readouterr().out
    assert "perfect                     1.0000  1.0000 to 1.0000" in shown
    assert "model      perfect" in shown
    assert "masks      foreground from 0.5 on" in shown
    assert "next       iaunet_predict -i FOLDER -o FOLDER -d toy" in shown


def test_runs_that_cannot_be_compared_are_left_out_with_the_reason(folder, add_run):
    add_run("half", lambda truth, probabilities, row: truth)
    shutil.rmtree(folder.runs / "half" / "fold_2")
    add_run("bare", lambda truth, probabilities, row: truth)
    shutil.rmtree(folder.runs / "bare" / "fold_1" / "validation" / "logits")
    add_run("elsewhere", lambda truth, probabilities, row: truth)
    record = Run(folder.runs / "elsewhere").record
    Run(folder.runs / "elsewhere").write_record(dataclasses.replace(record, split="mine"))
    add_run("old", lambda truth, probabilities, row: truth)
    record = Run(folder.runs / "old").record
    plan = dataclasses.replace(record.plan, fingerprint="0")
    Run(folder.runs / "old").write_record(dataclasses.replace(record, plan=plan))

    finding = find_best(folder)

    assert finding.left_out == {
        "bare": "lacks weights or logits: run iaunet_train with --val_only for its folds",
        "elsewhere": "is of the split mine",
        "half": "lacks fold 2",
        "old": "was trained on another state of the data",
    }


def test_without_a_whole_run_the_command_to_train_one_is_named(folder, trained, capsys):
    shutil.rmtree(folder.runs / RUN / "fold_0")

    assert main(["toy", "--workspace", str(trained)]) == 2

    assert capsys.readouterr().err == (
        f"error: no run of toy has every fold of the split random; {RUN}: lacks fold 0: "
        "run iaunet_train toy cv --split random, or give --incomplete\n"
    )

    assert main(["toy", "--incomplete", "--workspace", str(trained)]) == 0
    fold_of = {row.name: row.fold for row in BestFolder.of(folder).read_cases()}
    assert {*fold_of.values()} == {1, 2}
    assert find_chosen(folder).runs == [RUN]


def test_incomplete_runs_are_compared_on_the_folds_that_all_have(folder, add_run):
    add_run("perfect", lambda truth, probabilities, row: 0.05 + 0.9 * truth)
    shutil.rmtree(folder.runs / "perfect" / "fold_2")

    assert find_best(folder).left_out == {"perfect": "lacks fold 2"}
    finding = find_best(folder, incomplete=True)

    assert [member.run for member in finding.model.members] == ["perfect"]
    assert [len(member.weights_sha256) for member in finding.model.members] == [2]
    assert "incomplete nothing is known of the cases of fold 2" in describe_finding(finding)
    assert {row.fold for row in BestFolder.of(folder).read_cases()} == {0, 1}
    assert find_chosen(folder).runs == ["perfect"]

    shutil.rmtree(folder.runs / RUN / "fold_0")
    shutil.rmtree(folder.runs / RUN / "fold_1")
    with pytest.raises(PredictionError, match="have no fold in common: train one more"):
        find_best(folder, incomplete=True)


def test_logits_of_other_data_are_refused(folder):
    fold = Run(folder.runs / RUN).fold("0")
    [first, *_] = read_scores(fold.scores_csv)
    writer = LogitWriter(logits_path(fold.logits, first.name), (2, 1, 64, 64))
    for _ in range(2):
        writer.add(np.zeros((1, 64, 64), np.float32))

    with pytest.raises(PredictionError, match=f"the logits of {first.name} in .* are of other data: run iaunet_train"):
        find_best(folder)


def test_two_calls_at_once_are_refused(folder):
    best = BestFolder.of(folder)
    with locked(best.root, "choosing the best model"), pytest.raises(WorkspaceError, match="choosing the best model"):
        find_best(folder)
    find_best(folder)


def test_an_earlier_choice_stands_until_all_of_a_new_one_is_known(folder, monkeypatch):
    finding = find_best(folder)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("iaunet.inference.find_best.score_masks", stop)
    with pytest.raises(KeyboardInterrupt):
        find_best(folder)
    assert find_chosen(folder).tuning == finding.tuning


def test_a_choice_that_was_not_finished_is_told(folder, caplog):
    find_best(folder)
    BestFolder.of(folder).forget()

    assert find_chosen(folder) is None
    assert "a choice of iaunet_find_best was not finished: run iaunet_find_best again" in caplog.text


def test_scores_of_another_choice_are_not_exported(folder, tmp_path):
    find_best(folder)
    path = BestFolder.of(folder).root / "crossval.json"
    content = json.loads(path.read_text())
    content["members"][0]["run"] = "other"
    path.write_text(json.dumps(content))

    with pytest.raises(PredictionError, match=r"crossval\.json is of another choice than best\.json"):
        export_model(folder, tmp_path / "m.zip")


def test_folds_that_are_not_compared_are_calibrated_as_well(folder, add_run):
    whole = find_best(folder).tuning.calibration.temperatures[RUN]
    add_run("half", lambda truth, probabilities, row: probabilities / 2)
    shutil.rmtree(folder.runs / "half" / "fold_2")

    finding = find_best(folder, incomplete=True)

    assert RUN in [member.run for member in finding.model.members]
    assert finding.tuning.calibration.temperatures[RUN] == whole
    assert [*whole] == ["0", "1", "2"]


def test_a_seed_that_is_none_is_refused_first(capsys):
    with pytest.raises(SystemExit):
        main(["toy", "--seed", "-1"])

    assert "'-1' is no seed: give a whole number of 0 or more" in capsys.readouterr().err
