import json
import shutil

import pytest

from iaunet.errors import PredictionError, TrainingError
from iaunet.inference.runs import Run, choose_folds, choose_runs, list_runs
from iaunet.storage import file_digest
from iaunet.workspace import DatasetFolder

RUN = "unet-best-random"


@pytest.fixture
def dataset(trained):
    return DatasetFolder(trained / "toy")


@pytest.fixture
def run(dataset):
    return Run(dataset.runs / RUN)


def copy_run(run, name):
    return Run(shutil.copytree(run.root, run.root.with_name(name)))


def folds_of(folders):
    return [folder.fold for folder in folders]


def test_a_fold_is_finished_when_weights_and_summary_are_there(run):
    assert folds_of(run.finished_folds()) == ["0", "1", "2"]

    run.fold("0").weights.unlink()
    run.fold("1").summary_json.unlink()

    assert folds_of(run.finished_folds()) == ["2"]
    assert not run.fold("7").is_finished


def test_the_summary_knows_the_weights_it_was_made_with(run):
    folder = run.fold("1")

    assert folder.weights_digest() == file_digest(folder.weights)


@pytest.mark.parametrize(("text", "message"), [(None, "is missing: train this fold again"), ("{", "is no JSON")])
def test_a_missing_or_damaged_summary_is_named(run, text, message):
    folder = run.fold("1")
    folder.summary_json.unlink()
    if text:
        folder.summary_json.write_text(text)

    with pytest.raises(PredictionError, match=f"summary.json {message}"):
        folder.weights_digest()


@pytest.mark.parametrize("summary", ["[]", "{}", '{"weights_sha256": "0"}'])
def test_weights_that_were_not_scored_are_refused(run, summary):
    folder = run.fold("1")
    folder.summary_json.write_text(summary)

    with pytest.raises(PredictionError, match="is not the file that was scored: run iaunet_train with --val_only"):
        folder.weights_digest()


def test_the_record_survives_its_file(run):
    record = run.record

    run.write_record(record)

    assert Run(run.root).record == record
    assert run.record is record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("seed"), "seed is missing"),
        (lambda record: record.update(seed="one"), "seed is 'one': give a whole number"),
        (lambda record: record.update(colour=1), "colour is not known here"),
        (lambda record: record["plan"]["recipe"].update(lr=-1), "plan.recipe.lr is -1.0: give a number above 0"),
    ],
)
def test_a_record_that_cannot_be_is_named_with_the_field(run, change, message):
    record = json.loads(run.run_json.read_text())
    change(record)
    run.run_json.write_text(json.dumps(record))

    with pytest.raises(TrainingError, match=rf"run\.json: {message}.*; start the run anew with --restart"):
        _ = run.record


def test_runs_are_listed_by_name_and_other_folders_left_out(dataset, run):
    copy_run(run, "another")
    (dataset.runs / "notes").mkdir()

    assert [found.name for found in list_runs(dataset.runs)] == ["another", RUN]


def test_the_only_run_is_chosen_by_itself(dataset):
    assert [run.name for run in choose_runs(dataset, None)] == [RUN]


def test_several_runs_ask_and_those_named_are_taken_once_in_their_order(dataset, run):
    copy_run(run, "another")

    with pytest.raises(PredictionError, match=f"toy has several runs: choose with --run among another, {RUN}"):
        choose_runs(dataset, None)
    assert [found.name for found in choose_runs(dataset, [RUN, "another", RUN])] == [RUN, "another"]


def test_an_unknown_run_or_one_without_a_finished_fold_is_refused_with_those_there_are(dataset, run):
    unfinished = copy_run(run, "unfinished")
    for fold in range(3):
        unfinished.fold(str(fold)).summary_json.unlink()

    for name in ("unfinished", "no-such"):
        with pytest.raises(PredictionError, match=f"no finished fold of a run '{name}': choose among {RUN}"):
            choose_runs(dataset, [name])
    assert [found.name for found in choose_runs(dataset, None)] == [RUN]


def test_a_dataset_without_a_finished_fold_names_the_command(toy_workspace):
    with pytest.raises(PredictionError, match="toy has no finished fold yet: run iaunet_train toy 0 first"):
        choose_runs(DatasetFolder(toy_workspace / "toy"), None)


def test_all_folds_that_held_cases_out_are_chosen_and_all_only_where_it_is_alone_or_named(run):
    shutil.copytree(run.fold("0").root, run.fold("all").root)

    assert folds_of(choose_folds(run, None)) == ["0", "1", "2"]
    assert folds_of(choose_folds(run, ["all"])) == ["all"]
    assert folds_of(choose_folds(run, ["2", "0", "2"])) == ["2", "0"]
    for fold in range(3):
        run.fold(str(fold)).summary_json.unlink()
    assert folds_of(choose_folds(run, None)) == ["all"]


def test_a_fold_that_is_not_finished_is_refused_with_those_that_are(run):
    run.fold("1").summary_json.unlink()

    with pytest.raises(PredictionError, match=f"fold 1 of {RUN} is not finished: choose among 0, 2"):
        choose_folds(run, ["0", "1"])
