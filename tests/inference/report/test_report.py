import csv
import dataclasses
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from iaunet.errors import FileError, PredictionError, WorkspaceError
from iaunet.files import read_mask, write_png
from iaunet.inference.best import BestFolder
from iaunet.inference.find_best import find_best
from iaunet.inference.held_out_scores import find_test_scores, score_test_once
from iaunet.inference.report.command import main
from iaunet.inference.report.gathering import gather_facts
from iaunet.inference.report.pictures import read_image
from iaunet.inference.report.runs import read_curve
from iaunet.inference.report.writing import write_report
from iaunet.inference.runs import Run
from iaunet.inference.scores import read_scores, score_masks, write_scores
from iaunet.inference.validation import write_summary
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.folds import Splits, load_splits, make_splits, save_splits
from iaunet.planners.plan import load_plan, save_plan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.preprocessing.command import main as prepare
from iaunet.records import load_record, to_json
from iaunet.storage import digest, read_json, write_json
from iaunet.trainers.command import main as train
from iaunet.workspace import LOCK, DatasetFolder

RANDOM, GROUPED = "unet-best-random", "unet-best-grouped"
GROUPS = {f"case_{number:02d}": f"patient {'ABCDEF'[number // 3]}" for number in range(18)}


def write_dataset(folder, **fields):
    write_json(folder.dataset_json, to_json(dataclasses.replace(folder.load_dataset(), **fields)))


def set_groups(folder, groups):
    """Plan with these groups; cases keep their folds of the random split. Returns the splits."""
    write_dataset(folder, groups=groups, groups_from="table p.csv")
    known = {"random": [fold.validation for fold in load_splits(folder.splits_json).splits["random"].folds]}
    fingerprint = load_record(Fingerprint, folder.fingerprint_json, PredictionError, "")
    splits = make_splits(fingerprint, groups, 3, known)
    save_splits(splits, folder.splits_json)
    return splits


def regroup(folder):
    """Add groups, the grouped split, and a run on it that finds only the right half of what the random one finds."""
    before = load_splits(folder.splits_json)
    splits = set_groups(folder, GROUPS)
    assert splits.splits["random"].folds == before.splits["random"].folds
    run, other = Run(folder.runs / RANDOM), Run(folder.runs / GROUPED)
    shutil.copytree(run.root, other.root)
    split = splits.splits["grouped"]
    split_digest = digest(to_json(split.folds))
    other.write_record(dataclasses.replace(run.record, split="grouped", split_digest=split_digest))
    arrays = open_arrays(folder.preprocessed, load_plan(folder.plan_json).arrays_digest)
    held_out_by = {score.name: fold for fold in run.scored_folds() for score in read_scores(fold.scores_csv)}
    for number, fold in enumerate(split.folds):
        target = other.fold(str(number))
        shutil.rmtree(target.validation)
        target.logits.mkdir(parents=True)
        scores = []
        for name in fold.validation:
            mask = read_mask(held_out_by[name].validation / f"{name}.png").copy()
            mask[:, :32] = 0
            write_png(target.validation / f"{name}.png", mask)
            shutil.copy(held_out_by[name].logits / f"{name}.npy", target.logits)
            labels = run.record.plan.coding.of_written.encode(mask)[None]
            scores.append(score_masks(name, labels, arrays.truth(name), run.record.plan.labels))
        write_scores(target.scores_csv, scores)
        summary = read_json(target.summary_json, PredictionError, "")
        settings = digest(other.record.settings)
        write_summary(target, {**summary, "settings_sha256": settings, "split": "grouped", "inflated": ""})


@pytest.fixture(scope="module")
def finished(trained_toy, tmp_path_factory):
    """The folder of the toy dataset with six groups, runs on both splits, and a choice; to be read only."""
    folder = DatasetFolder(shutil.copytree(trained_toy, tmp_path_factory.mktemp("finished") / "workspace") / "toy")
    regroup(folder)
    find_best(folder, "grouped")
    return folder


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory):
    """The report of `finished`; to be read only."""
    return write_report(finished, output=tmp_path_factory.mktemp("report"))


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of `finished`, the test's own to spoil."""
    return DatasetFolder(shutil.copytree(finished.root, tmp_path / "workspace" / "toy"))


def texts(folder):
    """Every written file as text, whatever bytes it has."""
    return {
        path: path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file() and path.name != LOCK
    }


# Facts --------------------------------------------------------------------------------------------------------------


def test_the_scores_are_those_of_the_chosen_model(report, finished):
    facts = report.facts

    scores = read_scores(BestFolder.of(finished).root / "scores.csv")
    dice = np.mean([score.dice for score in scores])
    assert facts.chosen.runs == (GROUPED,)
    assert (facts.scored.of, facts.scored.split, facts.scored.folds) == ("model", "grouped", (0, 1, 2))
    assert facts.scored.overall.mean == pytest.approx(dice)
    assert facts.scored.overall.low < dice < facts.scored.overall.high
    assert facts.scored.summary.labels["foreground"].all_cases["dice"] == facts.scored.overall
    assert facts.scored.summary.n_groups == 6


def test_what_the_random_split_makes_better_is_the_mean_of_the_differences(report):
    [pair] = report.facts.leakage

    random, grouped = ({run.name: run for run in report.facts.runs}[name] for name in (RANDOM, GROUPED))
    differences = [random.cases[name].dice - grouped.cases[name].dice for name in GROUPS]
    assert (pair.random_run, pair.grouped_run, pair.n_cases) == (RANDOM, GROUPED, 18)
    assert pair.difference.mean == pytest.approx(np.mean(differences))
    assert pair.random.mean - pair.grouped.mean == pytest.approx(pair.difference.mean)
    assert 0 < pair.difference.low < pair.difference.mean < pair.difference.high
    assert random.inflated == "inflated: 6 of 6 groups are spread over training and validation"
    assert grouped.inflated == ""


def test_the_data_the_plan_and_the_folds_are_told(report):
    facts = report.facts

    assert (facts.data.n_cases, facts.data.n_groups, facts.data.labels) == (18, 6, ("foreground",))
    assert facts.data.group_sizes == tuple((f"patient {letter}", 3) for letter in "ABCDEF")
    assert (facts.data.usual, facts.data.n_sizes, facts.data.n_volumes, facts.data.n_empty) == ((64, 64), 1, 0, 0)
    assert {choice.name: choice.value for choice in facts.choices}["network"] == "unet, width 4, depth 3"
    assert len(facts.choices) == 6
    by_name = {split.name: split for split in facts.splits}
    assert [fold.n_held_out for fold in by_name["grouped"].folds] == [6, 6, 6]
    assert [fold.n_groups for fold in by_name["grouped"].folds] == [2, 2, 2]
    assert sum(fold.n_held_out for fold in by_name["random"].folds) == 18


def test_each_case_has_its_scores_fold_group_and_the_dice_of_every_run(report):
    cases = {case.name: case for case in report.facts.cases}

    assert {name: case.group for name, case in cases.items()} == GROUPS
    case = cases["case_04"]
    assert case.shape == (1, 64, 64)
    assert case.fold == report.facts.shown.fold_of["case_04"]
    assert case.of_runs[GROUPED] < case.of_runs[RANDOM]
    assert [(each.fold, each.name) for each in report.facts.cases] == sorted((c.fold, c.name) for c in cases.values())


def test_curves_detection_suspects_and_calibration_are_those_of_the_shown_run(report):
    facts = report.facts

    assert facts.shown.name == GROUPED
    assert [curve.fold for curve in facts.shown.curves] == ["0", "1", "2"]
    assert facts.shown.curves[0].epoch == tuple(range(1, 13))
    assert facts.detection["foreground"].overall.lesions == 18
    assert facts.detection["foreground"].n_empty == 0
    assert {*facts.calibration.temperatures} == {GROUPED}
    assert facts.expected_dice.skipped != ""
    assert {case.name for case in facts.cases if case.suspect} == {suspect.name for suspect in facts.suspects}


def test_the_commands_make_all_of_it_again(report, finished):
    raw = finished.load_dataset().source.root

    plan, copy, replan, *train, best, again = report.facts.commands

    assert plan.startswith("iaunet_plan_and_preprocess ")
    assert raw in plan
    assert "--groups none" in plan
    assert "--folds 3" in plan
    assert (copy, replan) == ("cp PLAN.json WORKSPACE/toy/plan.json", "iaunet_plan_and_preprocess toy")
    assert train == [f"iaunet_train toy cv --split {split}" for split in ("grouped", "random")]
    assert (best, again) == ("iaunet_find_best toy", "iaunet_report toy")


def test_without_a_choice_the_best_run_of_the_planned_split_is_reported(folder):
    shutil.rmtree(folder.root / "best")

    facts = gather_facts(folder)

    assert facts.chosen is None
    assert (facts.scored.of, facts.shown.name, facts.scored.split) == ("run", RANDOM, "random")
    assert facts.scored.inflated.startswith("inflated: 6 of 6 groups")
    assert facts.scored.summary == facts.shown.summary
    assert facts.missing[0].command == "iaunet_find_best toy"
    assert facts.missing[0].why.startswith("iaunet_find_best was not run")
    assert facts.calibration is None


def test_an_unfinished_run_is_told_to_be_trained_on(folder):
    shutil.rmtree(folder.root / "best")
    shutil.rmtree(folder.runs / GROUPED)
    shutil.rmtree(Run(folder.runs / RANDOM).fold("1").root)

    facts = gather_facts(folder)

    assert (facts.scored.folds, facts.scored.n_folds, facts.scored.is_complete) == ((0, 2), 3, False)
    missing = {each.what: each for each in facts.missing}
    assert missing["random against grouped"].command == "iaunet_train toy cv --split grouped"
    assert missing["chosen model, calibration and expected Dice"].command.startswith("iaunet_train toy cv, then")


def test_a_choice_of_other_weights_is_not_reported_and_scores_of_other_weights_are_told(folder):
    weights = Run(folder.runs / GROUPED).fold("1").weights
    shutil.copy(Run(folder.runs / GROUPED).fold("0").weights, weights)

    facts = gather_facts(folder)

    assert facts.chosen is None
    assert facts.missing[0].why == f"the choice was of other weights of {GROUPED} than there are now"
    stale = {run.name: run.stale for run in facts.runs}
    assert stale == {GROUPED: "the weights of fold 1 or their settings are not those that were scored", RANDOM: ""}


def test_a_choice_whose_run_is_gone_is_not_reported(folder):
    shutil.rmtree(folder.runs / GROUPED)

    facts = gather_facts(folder)

    assert facts.chosen is None
    assert f"other weights of {GROUPED}" in facts.missing[0].why


def test_without_groups_nothing_is_said_of_leakage(trained):
    folder = DatasetFolder(trained / "toy")
    facts = gather_facts(folder)
    splits = load_splits(folder.splits_json)
    random = dataclasses.replace(splits.splits["random"], inflated="inflated: near duplicates")
    save_splits(Splits(splits={"random": random}, missing={"grouped": "2 parts for 3 folds"}), folder.splits_json)
    later = gather_facts(folder)

    told, of_few = ({each.what: each.why for each in of.missing}["random against grouped"] for of in (facts, later))
    assert told == "no groups and no near duplicates are known, so whether the random split leaks cannot be told"
    assert of_few == "2 parts for 3 folds"
    assert facts.leakage == later.leakage == ()


# Stale and damaged files --------------------------------------------------------------------------------------------


def test_groups_corrected_after_training_make_runs_and_choice_old(folder):
    others = {name: f"patient {'ABCDEF'[number % 6]}" for number, name in enumerate(GROUPS)}
    set_groups(folder, others)

    facts = gather_facts(folder)

    assert {run.name: run.is_current for run in facts.runs} == {GROUPED: False, RANDOM: True}
    assert (facts.chosen, facts.shown.name, facts.leakage) == (None, RANDOM, ())
    missing = {each.what: each for each in facts.missing}
    why = missing["chosen model, calibration and expected Dice"].why
    assert why == f"the choice was of {GROUPED}, which was trained on another state of the data or the folds"
    assert "on both splits as they are now" in missing["random against grouped"].why

    shutil.rmtree(folder.runs / RANDOM)
    report = write_report(folder)
    assert "cases of one group were never in both" not in (report.page.parent / "methods.md").read_text("utf-8")
    page = report.page.read_text("utf-8")
    assert '<div class="state mind">' in page
    assert "trained on an older state of the data, the plan or the folds" in page


def test_a_run_on_folds_of_a_file_is_current_and_its_file_is_left_to_the_user(folder):
    run = Run(folder.runs / GROUPED)
    run.write_record(dataclasses.replace(run.record, split="my folds", split_digest="0"))

    facts = gather_facts(folder, anonymous=True)

    assert {each.name: each.is_current for each in facts.runs} == {GROUPED: True, RANDOM: True}
    assert f"iaunet_train toy cv --split SPLIT.json --name {GROUPED}" in facts.commands


def test_after_a_case_was_removed_and_the_data_were_planned_again_the_old_runs_are_told_to_be_old(
    folder, tmp_path, capsys
):
    raw = Path(shutil.copytree(folder.load_dataset().source.root, tmp_path / "toy"))
    for part in ("images", "masks"):
        (raw / part / "case_04.png").unlink()
    table = tmp_path / "groups.csv"
    rows = [f"{name},{group}\n" for name, group in GROUPS.items() if name != "case_04"]
    table.write_text("case,group\n" + "".join(rows), encoding="utf-8")
    write_dataset(folder, source=dataclasses.replace(folder.load_dataset().source, root=str(raw)))
    workspace = ["--workspace", str(folder.root.parent)]
    assert prepare([str(raw), *workspace, "--groups", str(table), "--replan", "--workers", "1", "--width", "4"]) == 0
    capsys.readouterr()

    code = main(["toy", "--anonymous", *workspace])
    said = "".join(capsys.readouterr())
    facts = gather_facts(folder)

    assert code == 0
    assert "trained on another state of the data" in said
    assert not any(name in said for name in GROUPS)
    assert not any(run.is_current for run in facts.runs)
    assert facts.chosen is None
    assert {case.name: (case.shape, case.group) for case in facts.cases}["case_04"] == (None, "")
    assert facts.scored.summary.n_groups == 0, "the group of one case is not known"


@pytest.mark.parametrize("anonymous", [False, True])
def test_scores_of_the_choice_that_end_early_are_refused(folder, anonymous):
    path = BestFolder.of(folder).root / "scores.csv"
    path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:-4]), encoding="utf-8")

    with pytest.raises(
        PredictionError, match="does not hold the cases of the chosen model: run iaunet_find_best again"
    ):
        gather_facts(folder, anonymous)


def test_scores_of_a_fold_that_end_early_are_refused(folder):
    path = Run(folder.runs / RANDOM).fold("1").scores_csv
    path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:-2]), encoding="utf-8")

    with pytest.raises(PredictionError, match="holds 4 cases, not the 6 that the fold held out: run iaunet_train with"):
        gather_facts(folder)


def test_scores_of_a_fold_that_its_split_has_not_are_refused(folder):
    run = Run(folder.runs / RANDOM)
    shutil.copytree(run.fold("1").root, run.fold("7").root)

    with pytest.raises(PredictionError, match="holds 6 cases, not the 0 that the fold held out"):
        gather_facts(folder)


def test_a_choice_of_a_run_that_was_trained_and_scored_again_is_not_reported(folder):
    fold = Run(folder.runs / GROUPED).fold("1")
    shutil.copy(Run(folder.runs / GROUPED).fold("0").weights, fold.weights)
    write_summary(fold, {k: v for k, v in read_json(fold.summary_json, PredictionError, "").items() if "sha" not in k})

    facts = gather_facts(folder)

    assert {run.stale for run in facts.runs} == {""}
    assert facts.chosen is None
    assert facts.missing[0].why == f"the choice was of other weights of {GROUPED} than there are now"


def test_cases_are_flagged_as_iaunet_find_best_flagged_them(folder):
    path = BestFolder.of(folder).root / "cases.csv"
    header, *lines = path.read_text("utf-8").splitlines()
    flagged = [f"{line.rpartition(',')[0]},{int(line.startswith(('case_03', 'case_11')))}" for line in lines]
    path.write_text("\n".join([header, *flagged]), encoding="utf-8")

    assert [case.name for case in sorted(gather_facts(folder).cases, key=lambda case: case.name) if case.flagged] == [
        "case_03",
        "case_11",
    ]


def test_what_was_edited_in_the_plan_has_no_reason_of_the_planner_beside_it(trained):
    folder = DatasetFolder(trained / "toy")
    plan = load_plan(folder.plan_json)

    facts = gather_facts(folder)
    save_plan(dataclasses.replace(plan, planned="0"), folder.plan_json)
    unknown = gather_facts(folder)

    reasons = {choice.name: choice.why for choice in facts.choices}
    edited = {name for name, why in reasons.items() if why == "edited by hand"}
    assert edited == {"input", "network", "recipe"}
    assert reasons["normalisation"] == plan.why["normalisation"]
    assert {choice.why for choice in unknown.choices} == {
        "plan.json was edited by hand: the planner's reason may not hold"
    }


def test_a_name_with_spaces_is_quoted_in_every_command(folder, capsys):
    spaced = DatasetFolder(folder.root.rename(folder.root.with_name("my toy")))
    shutil.rmtree(spaced.root / "best")
    shutil.rmtree(spaced.runs / GROUPED)
    assert train(["my toy", "0", "--workspace", str(spaced.root.parent)]) == 0

    facts = gather_facts(spaced)

    said = [*facts.commands, *(each.command for each in facts.missing if each.command), capsys.readouterr().out]
    assert len(said) >= 8
    assert not [text for text in said if re.search(r"iaunet_\w+ (-i FOLDER -o FOLDER -d )?my toy", text)]
    assert "iaunet_train 'my toy' cv --split random" in said
    assert "iaunet_predict -i FOLDER -o FOLDER -d 'my toy' --run unet-best-random" in said[-1]


def test_without_arrays_masks_or_logits_the_rest_is_reported(folder):
    for run in (RANDOM, GROUPED):
        for fold in Run(folder.runs / run).scored_folds():
            shutil.rmtree(fold.logits)
    (Run(folder.runs / GROUPED).fold("0").validation / f"{gather_facts(folder).cases[0].name}.png").unlink()

    facts = gather_facts(folder)
    shutil.rmtree(folder.preprocessed)
    bare = gather_facts(folder)

    why = {each.what: each.why for each in facts.missing}
    assert why["suspect labels"] == "the logits of the held-out cases are not there"
    assert "run iaunet_train with --val_only for this fold" in why["detection"]
    assert (facts.detection, facts.suspects) == ({}, ())
    assert "preprocessed is missing" in {each.what: each.why for each in bare.missing}["detection and pictures"]
    assert len(bare.cases) == 18


def test_a_mask_of_another_image_is_refused(folder):
    name = gather_facts(folder).cases[0].name
    write_png(Run(folder.runs / GROUPED).fold("0").validation / f"{name}.png", np.zeros((9, 9), np.uint8))

    assert "is not as large as the image" in {each.what: each.why for each in gather_facts(folder).missing}["detection"]


def test_a_dataset_without_scores_is_refused(workspace):
    with pytest.raises(PredictionError, match="toy has no scored fold yet: run iaunet_train toy cv first"):
        gather_facts(DatasetFolder(workspace / "toy"))


def test_scores_that_were_cut_short_are_named(folder):
    path = BestFolder.of(folder).root / "scores.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("case_04,foreground", "case_04,lesion"), encoding="utf-8")

    with pytest.raises(PredictionError, match="does not score foreground of case 'case_04': score again"):
        gather_facts(folder)


HEADER = "epoch,loss,validation_loss,validation_dice,lr,seconds\n"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "does not have the columns epoch, loss, "),
        ("\x00", "does not have the columns"),
        ("epoch,loss\n1,2\n", "does not have the columns"),
        (HEADER + "1,2,3,4,5,6\n2,x,3,4,5,6\n", "holds no metrics in line 3"),
        (HEADER + "1,2\n", "holds no metrics in line 2"),
    ],
)
def test_damaged_metrics_are_named(content, fault, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(content, encoding="utf-8")

    with pytest.raises(PredictionError, match=f"metrics.csv {fault}.*: remove the file to make the report without"):
        read_curve(path, "0")


OTHER_MODEL = "it was scored with other weights, temperatures, thresholds or postprocessing than there are now"


# The held-out test set ----------------------------------------------------------------------------------------------


@pytest.fixture
def hold_out(tmp_path, write_toy):
    """Give the data set of a workspace a test set of three cases."""

    def hold_out(workspace):
        whole, test = write_toy(tmp_path / "whole", 21), tmp_path / "test"
        for part in ("images", "masks"):
            (test / part).mkdir(parents=True)
            for number in range(18, 21):
                shutil.copy(whole / part / f"case_{number:02d}.png", test / part)
        assert prepare(["toy", "--workspace", str(workspace), "--workers", "1", "--test", str(test)]) == 0
        return DatasetFolder(workspace / "toy")

    return hold_out


@pytest.fixture
def tested(trained, hold_out):
    """A trained dataset with a test set of three cases."""
    return hold_out(trained)


def test_the_test_set_is_scored_when_asked_for_and_told_to_be_stale_with_other_weights(tested, capsys):
    before = gather_facts(tested)
    code = main(["toy", "--test", "--workspace", str(tested.root.parent)])
    after = gather_facts(tested)
    page = (tested.root / "report" / "report.html").read_text(encoding="utf-8")
    run = Run(tested.runs / RANDOM)
    shutil.copy(run.fold("0").weights, run.fold("1").weights)
    later = gather_facts(tested)

    assert code == 0
    assert (before.held_out.n_cases, before.held_out.summary) == (3, None)
    assert {each.what: each.command for each in before.missing}["scores of the held-out test set"] == (
        "iaunet_report toy --test"
    )
    assert after.held_out.summary == find_test_scores(tested).present.summary
    assert (after.held_out.n_times, after.held_out.model, after.held_out.stale) == (1, RANDOM, "")
    assert "Scored once, with unet-best-random" in page
    assert later.held_out.stale == OTHER_MODEL


def test_the_test_set_is_predicted_with_a_strangers_network_only_if_it_is_named(
    workspace, hold_out, tmp_path, monkeypatch, capsys
):
    network = "report_network:build"
    (tmp_path / "report_network.py").write_text("from iaunet.networks.unet import build_unet as build\n")
    monkeypatch.syspath_prepend(tmp_path)
    tested, where = hold_out(workspace), ("--workspace", str(workspace))
    assert train(["toy", "0", "--network", network, "--epochs", "1", "--workers", "0", *where]) == 0
    refused = main(["toy", "--test", *where])
    said = capsys.readouterr().err
    code = main(["toy", "--test", "--network", network, *where])

    assert (refused, code) == (2, 0)
    assert f"give --network {network} if you trust it" in said
    assert find_test_scores(tested).present.summary.n_cases == 3


def test_scores_of_the_test_set_are_stale_once_the_model_or_the_test_set_is_another(tested, tmp_path):
    stale = []

    def look():
        stale.append(gather_facts(tested).held_out.stale)

    score_test_once(tested, device="cpu", workers=1)
    look()
    find_best(tested, "random")
    look()
    score_test_once(tested, device="cpu", workers=1)
    look()
    best = BestFolder.of(tested)
    model, tuning = best.read()
    best.write(
        model, dataclasses.replace(tuning, postprocessing=dataclasses.replace(tuning.postprocessing, thresholds=(0.2,)))
    )
    look()
    best.write(model, tuning)
    shutil.copytree(tested.runs / RANDOM, tested.runs / "other")
    look()
    best.forget()
    look()
    shutil.rmtree(tested.runs / RANDOM)
    look()
    for part in ("images", "masks"):
        (tmp_path / "test" / part / "case_19.png").unlink()
    assert prepare(["toy", "--workspace", str(tested.root.parent), "--workers", "1"]) == 0
    look()

    assert stale == [
        *("", OTHER_MODEL, "", OTHER_MODEL, ""),
        "none of the runs is chosen now",
        "it was scored with other runs than those that predict now",
        "it was scored on another state of the test set",
    ]


# Files --------------------------------------------------------------------------------------------------------------


def test_the_page_and_the_words_tables_and_figures_beside_it_are_written(report):
    folder = report.page.parent

    assert report.page == folder / "report.html"
    written = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != LOCK
    }
    assert written == {path.relative_to(folder).as_posix() for path in report.files}
    assert {"report.html", "methods.md", "tables/cases.csv", "tables/cases.tex"} <= written
    assert any(name.startswith("figures/") for name in written)
    with (folder / "tables" / "cases.csv").open(encoding="utf-8", newline="") as file:
        assert {row[0] for row in csv.reader(file)} >= {*GROUPS}
    page = report.page.read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") >= 12
    assert "unet-best-grouped" in page
    assert all(group in page for group in GROUPS.values())


def test_the_same_facts_make_the_same_page_and_only_files_of_an_earlier_report_are_removed(report, folder, tmp_path):
    target = Path(shutil.copytree(report.page.parent, tmp_path / "report"))
    mine = [target / name for name in ("figures/mine.png", "tables/mine.csv", "tables/mine.tex", "notes.md")]
    for path in mine:
        path.write_bytes(b"mine")
    (target / "tables" / ".1.iaunet-tmp").write_text("of a killed process", encoding="utf-8")

    again = write_report(folder, output=target)
    shutil.rmtree(folder.root / "best")
    bare = write_report(folder, output=target)

    assert again.page.name == report.page.name
    assert {*texts(target)} == {*bare.files, *mine}
    assert {path.name for path in {*again.files} - {*bare.files}} >= {"calibration.csv", "calibration.tex"}
    assert {path.read_bytes() for path in mine} == {b"mine"}


def test_the_same_facts_make_the_same_page(report, finished, tmp_path):
    assert write_report(finished, output=tmp_path).page.read_bytes() == report.page.read_bytes()


@pytest.mark.parametrize("name", ["report.html", "methods.md", "tables/cases.csv", "figures/dice_by_fold.png"])
def test_a_file_of_the_user_is_never_overwritten(name, finished, tmp_path):
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine", encoding="utf-8")

    with pytest.raises(WorkspaceError, match=f"{name} was not written by iaunet_report: move it away, or choose"):
        write_report(finished, output=tmp_path)

    assert texts(tmp_path) == {mine: "mine"}


def test_methods_that_the_user_wrote_beside_a_report_are_never_overwritten(folder):
    report = write_report(folder)
    methods = report.page.parent / "methods.md"
    methods.write_text("# Methods\n\nof my own", encoding="utf-8")
    before = texts(report.page.parent)

    with pytest.raises(WorkspaceError, match=r"methods\.md was not written by iaunet_report: move it away"):
        write_report(folder)

    assert texts(report.page.parent) == before


def test_an_anonymous_report_that_is_stopped_leaves_nothing_of_a_named_one(report, finished, tmp_path):
    target = Path(shutil.copytree(report.page.parent, tmp_path / "report"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(WorkspaceError, match="no space left"):
            write_report(finished, anonymous=True, output=target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert texts(target) == {}


def test_a_named_and_an_anonymous_report_lie_in_folders_of_their_own(folder):
    pages = [write_report(folder, anonymous).page for anonymous in (False, True)]

    assert [page.parent.name for page in pages] == ["report", "report_anonymous"]
    assert all(page.exists() for page in pages)


def test_where_the_raw_data_are_gone_the_image_is_what_the_network_got(finished):
    dataset = finished.load_dataset()
    arrays = open_arrays(finished.preprocessed, load_plan(finished.plan_json).arrays_digest)
    gone = dataclasses.replace(dataset, source=dataclasses.replace(dataset.source, root="/nowhere"))

    raw, kept = (read_image("case_03", arrays, source) for source in (dataset, gone))

    assert raw.shape == kept.shape == (3, 1, 64, 64)
    assert raw.dtype == np.uint8
    for channel in range(3):
        assert np.corrcoef(raw[channel].ravel(), kept[channel].ravel())[0, 1] > 0.999


def test_an_image_that_was_overwritten_since_is_not_shown_with_the_old_label(finished, tmp_path):
    dataset = finished.load_dataset()
    arrays = open_arrays(finished.preprocessed, load_plan(finished.plan_json).arrays_digest)
    raw = Path(shutil.copytree(dataset.source.root, tmp_path / "toy"))
    shutil.copy(raw / "images" / "case_07.png", raw / "images" / "case_03.png")
    changed = dataclasses.replace(dataset, source=dataclasses.replace(dataset.source, root=str(raw)))

    before, now = (read_image("case_03", arrays, source) for source in (dataset, changed))

    assert now.shape == before.shape == (3, 1, 64, 64)
    for channel in range(3):
        assert np.corrcoef(now[channel].ravel(), before[channel].ravel())[0, 1] > 0.999


def test_an_image_that_is_gone_and_was_cut_into_tiles_cannot_be_shown(finished):
    dataset = dataclasses.replace(finished.load_dataset(), cases=())
    arrays = open_arrays(finished.preprocessed, load_plan(finished.plan_json).arrays_digest)
    rows = [
        dataclasses.replace(row, geometry=dataclasses.replace(row.geometry, scaled_size=(128, 128)))
        for row in arrays.index.rows
    ]
    tiled = dataclasses.replace(arrays, index=dataclasses.replace(arrays.index, rows=tuple(rows)))

    with pytest.raises(FileError, match="tiles are not put together again: bring it back"):
        read_image("case_03", tiled, dataset)


def test_pictures_are_left_out_before_a_page_grows_too_large(folder, monkeypatch):
    monkeypatch.setattr("iaunet.inference.report.writing.PICTURE_CHARACTERS", 20_000)

    page = write_report(folder).page.read_text(encoding="utf-8")

    assert 1 <= page.count("data:image/jpeg") < 12
    assert "left out: the page would be too large" in page


def test_an_anonymous_report_leaves_no_name_no_group_no_path_and_no_picture_of_one_before(report, finished, tmp_path):
    target = shutil.copytree(report.page.parent, tmp_path / "report")
    for name in ("tables/test.csv", "tables/test.tex", "figures/expected_dice.png"):
        (target / name).write_text("patient A", encoding="utf-8")

    report = write_report(finished, anonymous=True, output=target)

    written = texts(target)
    assert {*written} == {*report.files}
    for path, text in written.items():
        for name in GROUPS:
            assert not re.search(rf"{name}(?!\d)", text), (path, name)
        assert not re.search(r"patient [A-F]", text), path
        assert "p.csv" not in text, path
        for root in (finished.load_dataset().source.root, finished.root):
            assert str(root) not in text, path
            assert Path(root).parent.name not in text, path
        assert "data:image" not in text, path
    page = written[report.page]
    assert "case_001" in page
    assert "group_006" in page
    assert "iaunet_plan_and_preprocess DATA_FOLDER --groups GROUPS --folds 3" in page
    assert "toy" in page, "the name of the dataset stays"


def test_an_anonymous_report_says_nothing_of_how_files_are_named_and_where_they_lie(folder):
    source = dataclasses.replace(folder.load_dataset().source, mask_suffixes=("_drsmith", "_drjones"))
    write_dataset(folder, source=source, understood="18 masks of /data/drsmith")

    named, anonymous = (gather_facts(folder, hidden) for hidden in (False, True))

    assert "--mask_suffix _drsmith _drjones" in named.commands[0]
    assert named.data.understood == "18 masks of /data/drsmith"
    assert "--mask_suffix MASK_SUFFIX" in anonymous.commands[0]
    assert anonymous.data.understood == ""
    assert "drsmith" not in repr(anonymous)


def test_the_numbers_of_an_anonymous_report_are_the_same_each_time(finished, report):
    facts = gather_facts(finished, anonymous=True)

    dice = {case.name: case.dice for case in facts.cases}
    named = {case.name: case.dice for case in report.facts.cases}
    assert [dice[f"case_{number:03d}"] for number in range(1, 19)] == [named[name] for name in GROUPS]
    assert [*facts.shown.cases] == [case.name for case in facts.shown.cases.values()]
    assert {*facts.shown.fold_of} == {*dice}


def test_the_command_says_what_is_missing_and_what_it_wrote(folder, capsys):
    shutil.rmtree(folder.root / "best")

    code = main(["toy", "--anonymous", "--workspace", str(folder.root.parent)])

    said = capsys.readouterr().out
    assert code == 0
    assert "not shown  chosen model, calibration and expected Dice: iaunet_find_best was not run" in said
    assert "run iaunet_find_best toy" in said
    assert "the name of the data set, toy, and those of runs and labels stay" in said
    assert f"look at    {folder.root / 'report_anonymous' / 'report.html'}" in said


def test_the_command_refuses_what_cannot_be_reported_in_one_line(workspace, capsys):
    assert main(["toy", "--workspace", str(workspace)]) == 2
    assert capsys.readouterr().err.strip() == ("error: toy has no scored fold yet: run iaunet_train toy cv first")
    assert not (workspace / "toy" / "report").exists()
