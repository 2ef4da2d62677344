import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from iaunet.errors import PreprocessingError, WorkspaceError
from iaunet.files import read_mask
from iaunet.inference.evaluation import evaluate_folders
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import FoldFolder, Run
from iaunet.inference.scores import read_scores, score_masks, summarise_scores
from iaunet.inference.validation import describe_scores, summarise_run, validate_fold, write_summary
from iaunet.metrics import METRICS
from iaunet.planners.folds import load_splits
from iaunet.planners.plan import load_plan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.preprocessing.command import main as prepare_command
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


def test_scores_at_the_networks_size_are_those_of_its_rows(folder, run, names):
    plan = run.record.plan
    arrays = open_arrays(folder.preprocessed, plan.arrays_digest)
    predictor = Predictor.from_runs([run], ["0"], "cpu")

    scores = read_scores(run.fold("0").input_scores_csv)

    assert [score.name for score in scores] == [*names]
    for score in scores:
        [row] = arrays.cases[score.name].rows
        labels = plan.decide(predictor.predict_inputs(arrays.images[row][None].astype(np.float32))[0])
        expected = score_masks(score.name, labels, arrays.masks[row], plan.labels)
        assert score.labels["foreground"].counts == expected.labels["foreground"].counts
        assert score.labels["foreground"].metrics == pytest.approx(expected.labels["foreground"].metrics, nan_ok=True)


def test_masks_have_the_values_and_the_size_of_the_true_ones(folder, run):
    for path in run.fold("0").validation.glob("*.png"):
        mask = np.asarray(Image.open(path))
        assert mask.shape == read_mask(truth_of(folder) / path.name).shape == (64, 64)
        assert {*np.unique(mask)} <= {0, 255}


def test_validating_again_gives_the_same_files(run, validate):
    before = contents(run.fold("0").root)
    notes = json.loads(run.fold("0").summary_json.read_text())

    validate(notes={name: notes[name] for name in notes if name not in ("weights_sha256", "scores")})

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
        with pytest.raises(WorkspaceError, match=r"no space left for .*case_00.npy: free some space"):
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


# Volumes ------------------------------------------------------------------------------------------------------------


class Bright(torch.nn.Module):
    """Foreground wherever the normalised intensity is above a level."""

    def forward(self, rows):
        return (rows[:, :1] - 0.5) * 20


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """The folder of a prepared dataset: six volumes of 5 slices with a bright box each."""
    root = tmp_path_factory.mktemp("volumes")
    for part in ("images", "labels"):
        (root / "raw" / part).mkdir(parents=True)
    for number in range(6):
        mask = np.zeros((40, 36, 5), np.uint8)
        mask[10 : 20 + number, 8:24, 1:4] = 1
        image = (mask * 100 + np.random.default_rng(number).integers(0, 30, mask.shape)).astype(np.int16)
        affine = np.diag([0.8, 0.8, 3.0, 1.0])
        nib.save(nib.Nifti1Image(image, affine), root / "raw" / "images" / f"v{number}.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), root / "raw" / "labels" / f"v{number}.nii.gz")
    prepare = [str(root / "raw"), "--workspace", str(root / "ws"), "--workers", "1", "--groups", "none"]
    assert prepare_command([*prepare, "--folds", "3"]) == 0
    return DatasetFolder(root / "ws" / "raw")


@pytest.fixture
def validate_volumes(volumes, tmp_path):
    """Validate the first fold: the summary, the fold's folder, the arrays."""

    def validate_volumes(change=lambda arrays: arrays):
        plan = load_plan(volumes.plan_json)
        arrays = change(open_arrays(volumes.preprocessed, plan.arrays_digest))
        names = load_splits(volumes.splits_json).splits[plan.split].folds[0].validation
        fold = FoldFolder(tmp_path / "fold_0")
        fold.root.mkdir()
        fold.weights.write_bytes(b"weights")
        predictor = Predictor(plan, [Bright()], torch.device("cpu"), mirroring=False)
        return validate_fold(predictor, fold, volumes.load_dataset(), arrays, names, {}), fold, arrays

    return validate_volumes


def test_held_out_volumes_are_predicted_as_wholes_and_scored_in_mm(validate_volumes):
    summary, fold, arrays = validate_volumes()

    assert (summary.n_cases, summary.distance_unit) == (2, "mm")
    for score in read_scores(fold.scores_csv):
        truth, spacing_mm = arrays.truth(score.name), arrays.cases[score.name].spacing_mm
        labels = read_mask(fold.validation / f"{score.name}.png").reshape(truth.shape)
        assert truth.shape == (5, 36, 40)
        assert spacing_mm == pytest.approx((3.0, 0.8, 0.8))
        [(name, found)] = score.labels.items()
        assert found == score_masks(score.name, labels, truth, [name], spacing_mm).labels[name]
        assert found.counts.tp + found.counts.fn == (truth == 1).sum()
        assert found.metrics["dice"] > 0.9
    assert json.loads(fold.summary_json.read_text())["scores"]["distance_unit"] == "mm"


def test_distances_are_in_pixels_where_any_case_of_the_dataset_tells_no_spacing(volumes, validate_volumes):
    [stranger, *_] = load_splits(volumes.splits_json).splits["random"].folds[0].train

    def forget(arrays):
        cases = [
            dataclasses.replace(case, spacing_mm=None) if case.name == stranger else case for case in arrays.index.cases
        ]
        return dataclasses.replace(arrays, index=dataclasses.replace(arrays.index, cases=tuple(cases)))

    summary, fold, arrays = validate_volumes(forget)

    assert summary.distance_unit == "px"
    for score in read_scores(fold.scores_csv):
        truth = arrays.truth(score.name)
        labels = read_mask(fold.validation / f"{score.name}.png").reshape(truth.shape)
        [(name, found)] = score.labels.items()
        assert found == score_masks(score.name, labels, truth, [name]).labels[name]
