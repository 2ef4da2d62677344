import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iaunet.errors import PreprocessingError, WorkspaceError
from iaunet.files import read_mask
from iaunet.inference.evaluation import evaluate_folders
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run
from iaunet.inference.scores import read_scores, summarise_scores
from iaunet.inference.validation import describe_scores, summarise_run, validate_fold, write_summary
from iaunet.metrics import METRICS
from iaunet.planners.folds import load_splits
from iaunet.preprocessing.arrays import open_arrays
from iaunet.storage import file_digest
from iaunet.workspace import DatasetFolder


@pytest.fixture
def folder(trained):
    return DatasetFolder(trained / "toy")


@pytest.fixture
def run(folder):
    return Run(folder.runs / "unet-best-random")


@pytest.fixture
def names(folder):
    return load_splits(folder.splits_json).splits["random"].folds[0].validation


@pytest.fixture
def validate(folder, run, names):
    """Validate fold 0 again."""

    def again(dataset=None, cases=names, notes=None):
        arrays = open_arrays(folder.preprocessed, run.record.plan.arrays_digest)
        predictor = Predictor.from_runs([run], ["0"], "cpu")
        dataset = dataset or folder.load_dataset()
        return validate_fold(predictor, run.fold("0"), dataset, arrays, cases, notes or {})

    return again


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def truth_of(folder):
    return Path(folder.load_dataset().source.root) / "masks"


def test_scores_are_those_that_evaluating_the_written_masks_gives(folder, run):
    for fold in ("0", "1", "2"):
        evaluation = evaluate_folders(run.fold(fold).validation, truth_of(folder), groups="none")

        mine = {score.name: score for score in read_scores(run.fold(fold).scores_csv)}
        theirs = {score.name: score for score in evaluation.scores}
        assert mine.keys() == theirs.keys()
        for name, score in mine.items():
            assert score.labels["foreground"].counts == theirs[name].labels["foreground"].counts
            for metric in METRICS:
                value = score.labels["foreground"].metrics[metric]
                assert value == pytest.approx(theirs[name].labels["foreground"].metrics[metric], nan_ok=True)


def test_masks_have_the_values_and_the_size_of_the_true_ones(folder, run):
    for path in run.fold("0").validation.glob("*.png"):
        mask = np.asarray(Image.open(path))
        assert mask.shape == read_mask(truth_of(folder) / path.name).shape == (64, 64)
        assert {*np.unique(mask)} <= {0, 255}


def test_validating_again_gives_the_same_files(run, validate):
    before = contents(run.fold("0").root)
    notes = json.loads(run.fold("0").summary_json.read_text())

    validate(notes={name: notes[name] for name in ("run", "fold", "split", "inflated")})

    assert contents(run.fold("0").root) == before


def test_the_summary_is_that_of_the_scores_in_the_order_of_the_names(run, names, validate):
    summary = validate(cases=names[::-1], notes={"fold": "0"})

    scores = read_scores(run.fold("0").scores_csv)
    assert [score.name for score in scores] == list(names[::-1])
    assert summary == summarise_scores(scores, {})
    written = json.loads(run.fold("0").summary_json.read_text())
    assert written["fold"] == "0"
    assert written["weights_sha256"] == file_digest(run.fold("0").weights)
    assert written["scores"]["n_cases"] == 6


def test_groups_make_the_intervals(folder, names, validate):
    dataset = dataclasses.replace(
        folder.load_dataset(), groups={name: f"patient {i // 2}" for i, name in enumerate(names)}
    )

    assert validate(dataset).n_groups == 3


def test_a_fold_counts_as_finished_only_when_all_is_written(folder, run, names, validate):
    truth = folder.preprocessed / "truth" / f"{names[2]}.png"
    truth.unlink()

    with pytest.raises(PreprocessingError, match=rf"{names[2]}\.png: file is missing: run iaunet_plan_and_preprocess"):
        validate()

    assert not run.fold("0").is_finished
    assert summarise_run(run, 3, folder.load_dataset(), "") is None


def test_masks_of_an_earlier_validation_do_not_stay(run, validate):
    (run.fold("0").validation / "stranger.png").write_bytes(b"old")

    validate()

    assert not (run.fold("0").validation / "stranger.png").exists()


def test_a_full_disk_is_named(run, validate):
    resource = pytest.importorskip("resource", reason="no limits on file sizes on this system")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        with pytest.raises(WorkspaceError, match=r"no space left for .*\.png: free some space"):
            validate()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert not run.fold("0").is_finished


def test_a_run_is_summed_up_once_every_fold_is_finished(folder, run):
    dataset = folder.load_dataset()
    run.crossval_json.unlink()
    kept = run.fold("1").summary_json.read_bytes()
    run.fold("1").summary_json.unlink()

    assert summarise_run(run, 3, dataset, "") is None
    assert not run.crossval_json.exists()
    run.fold("1").summary_json.write_bytes(kept)
    summary = summarise_run(run, 3, dataset, "inflated: 3 groups are spread over training and validation")
    assert summary.n_cases == 18
    assert summary.sd_over == "folds"
    written = json.loads(run.crossval_json.read_text())
    assert written["inflated"].startswith("inflated: 3 groups")
    assert len(written["weights_sha256"]) == 3


def test_why_scores_are_too_good_is_told_with_them(folder, run):
    summary = summarise_run(run, 3, folder.load_dataset(), "")

    assert describe_scores(summary, "")[-1] != ""
    assert describe_scores(summary, "inflated: near duplicates")[-1] == "these scores are inflated: near duplicates"


def test_a_model_on_every_case_is_finished_without_scores(run):
    folder = run.fold("all")
    folder.root.mkdir()
    folder.weights.write_bytes(b"weights")

    write_summary(folder, {"scores": None})

    assert folder.is_finished
    assert folder.weights_digest() == file_digest(folder.weights)
