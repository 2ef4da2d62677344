"""What is learnt out of fold beside what prediction does, and beside the same numbers counted anew."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iaunet.files import read_mask
from iaunet.inference.best import CROSSVAL, SCORES, BestFolder
from iaunet.inference.crossval import summarise
from iaunet.inference.expected_dice import FEATURES, features_of, fit_dice_model
from iaunet.inference.find_best import find_best
from iaunet.inference.model_export import export_model
from iaunet.inference.out_of_fold import LARGEST_LOGIT, read_logits
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run
from iaunet.inference.scores import read_scores
from iaunet.metrics import METRICS
from iaunet.planners.plan import build_planned_network
from iaunet.preprocessing.command import main as prepare
from iaunet.stacks import read_stack
from iaunet.trainers.command import main as train
from iaunet.weights import load_weights, save_weights
from iaunet.workspace import DatasetFolder

SIDE, N_GROUPS, CASES_A_GROUP, N_FOLDS = 32, 24, 5, 3
LESION, IGNORED_VALUE = 1, 2
N_BINS = 15
SHARPNESS_AND_SHIFT = [(3.0, -6.0), (0.6, -1.2), (1.5, -3.0)]
"""What the logits of each fold's network are multiplied by, and what is added: so much that the folds ask for
temperatures far apart, and all for a threshold below 0.5."""


def make_case(group, number):
    """An ellipse, in some groups small and pale and in others large and bright, below an ignored band like a lesion."""
    rng = np.random.default_rng([group, number])
    ease = np.random.default_rng(group).random()
    contrast = 15 + 40 * ease + rng.uniform(0, 5)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    centre, radii = rng.uniform(13, 21, 2), (3 + 5 * ease) * rng.uniform(0.8, 1.2, 2)
    inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1
    mask = np.where(rows < 4, IGNORED_VALUE, inside * LESION).astype(np.uint8)
    image = 90 + contrast * (mask == LESION) + 60 * (mask == IGNORED_VALUE) + rng.normal(0, 25, mask.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def write_dataset(root):
    """The cases of all groups in the folders of nnU-Net, which can say that pixels are ignored."""
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    for group in range(N_GROUPS):
        for number in range(CASES_A_GROUP):
            image, mask = make_case(group, number)
            Image.fromarray(image).save(root / "imagesTr" / f"p{group:02d}_{number}_0000.png")
            Image.fromarray(mask).save(root / "labelsTr" / f"p{group:02d}_{number}.png")
    description = {
        "channel_names": {"0": "grey"},
        "labels": {"background": 0, "lesion": LESION, "ignore": IGNORED_VALUE},
        "numTraining": N_GROUPS * CASES_A_GROUP,
        "file_ending": ".png",
    }
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return root


def plan_small(raw, workspace):
    """Plan and preprocess for a narrow network of the images' own size, briefly trained."""
    command = [str(raw), "--workspace", str(workspace), "--folds", str(N_FOLDS), "--workers", "1"]
    assert prepare([*command, "--groups", r"^(p\d+)"]) == 0
    path = workspace / raw.name / "plan.json"
    plan = json.loads(path.read_text(encoding="utf-8"))
    plan |= {"input_size": [SIDE, SIDE], "network": {"name": "unet", "width": 4, "depth": 3}}
    plan["recipe"] |= {"epochs": 5, "batch_size": 8, "lr": 0.02}
    path.write_text(json.dumps(plan), encoding="utf-8")
    assert prepare(command) == 0


def miscalibrate(run):
    """Make the networks of a run too sure or too unsure, each in its own way, and less inclined to mark."""
    for fold, (sharpness, shift) in enumerate(SHARPNESS_AND_SHIFT):
        network = build_planned_network(run.record.plan)
        load_weights(run.fold(str(fold)).weights, network)
        with torch.no_grad():
            network.last.weight *= sharpness
            network.last.bias *= sharpness
            network.last.bias += shift
        save_weights(run.fold(str(fold)).weights, network.state_dict())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set with the best model found on one run, whose networks say too much or too little; to be read only."""
    torch.set_num_threads(1)  # faster for so small a network
    root = tmp_path_factory.mktemp("chain")
    plan_small(write_dataset(root / "lesions"), root / "workspace")
    command = ["lesions", "cv", "--workspace", str(root / "workspace"), "--name", "net"]
    assert train(command) == 0
    found = DatasetFolder(root / "workspace" / "lesions")
    miscalibrate(Run(found.runs / "net"))
    assert train([*command, "--val_only"]) == 0
    find_best(found)
    return found


@pytest.fixture(scope="module")
def tuning(folder):
    return BestFolder.of(folder).read()[1]


@pytest.fixture(scope="module")
def rows(folder):
    """The rows of best/cases.csv, by case."""
    return {row.name: row for row in BestFolder.of(folder).read_cases()}


@dataclasses.dataclass(frozen=True, eq=False)
class Said:
    """What prediction by the network that held a case out says of it."""

    expected: float
    features: np.ndarray


@pytest.fixture(scope="module")
def said(folder, rows):
    """What prediction from the raw files says of each case, by the fold that held it out alone."""
    dataset = folder.load_dataset()
    images = {case.name: [dataset.path(path) for path in case.images] for case in dataset.cases}
    predictors = [Predictor.from_dataset(folder, folds=[str(fold)], device="cpu") for fold in range(N_FOLDS)]
    found = {}
    for name, row in rows.items():
        predictor = predictors[row.fold]
        prediction = predictor.predict_case(read_stack(images[name], predictor.plan.slicing))
        [features] = features_of(prediction.statistics)
        found[name] = Said(predictor.expect_dice(prediction), features)
    return found


@pytest.fixture(scope="module")
def pixels(folder, rows):
    """The logits of each fold's network in the pixels that it held out and that count, and whether they are lesion."""
    dataset = folder.load_dataset()
    masks = {case.name: read_mask(dataset.path(case.mask)) for case in dataset.cases}
    logits, truth = ([[] for _ in range(N_FOLDS)] for _ in range(2))
    for name, row in rows.items():
        counts = masks[name] != IGNORED_VALUE
        kept = read_logits(Run(folder.runs / "net").fold(str(row.fold)).logits, name)[0, 0]
        logits[row.fold].append(kept[counts].astype(np.float64))
        truth[row.fold].append(masks[name][counts] == LESION)
    return [*map(np.concatenate, logits)], [*map(np.concatenate, truth)]


def log_loss(logits, truth):
    return np.logaddexp(0, np.where(truth, -logits, logits)).mean()


def scan_temperature(logits, truth):
    """The temperature from 0.1 to 10 of the least log loss, by ever finer scans."""
    best, width = 1.0, 10.0
    for _ in range(4):
        tried = np.geomspace(best / width, best * width, 21)
        best = tried[np.argmin([log_loss(logits / temperature, truth) for temperature in tried])]
        width **= 0.15
    return best


def other_folds(parts, fold):
    return np.concatenate([part for other, part in enumerate(parts) if other != fold])


def calibration_error(probabilities, truth):
    bins = np.minimum((probabilities * N_BINS).astype(int), N_BINS - 1)
    gaps = [abs((probabilities - truth)[bins == i].sum()) for i in range(N_BINS)]
    return sum(gaps) / len(truth)


def assert_reliability(found, logits, truth):
    """Compare a reliability with that of logits counted anew."""
    logits = logits.clip(-LARGEST_LOGIT, LARGEST_LOGIT)
    probabilities = 1 / (1 + np.exp(-logits))
    assert sum(found.pixels) == len(truth)
    assert found.ece == pytest.approx(calibration_error(probabilities, truth), abs=2e-4)
    assert found.brier == pytest.approx(((probabilities - truth) ** 2).mean(), abs=1e-4)
    assert found.log_loss == pytest.approx(log_loss(logits, truth), abs=2e-4)


def test_the_made_up_model_can_tell_apart_what_these_tests_are_about(rows, tuning):
    thresholds, temperatures = tuning.postprocessing.thresholds, tuning.calibration.temperatures["net"].values()

    assert (len(rows), len({row.group for row in rows.values()})) == (N_GROUPS * CASES_A_GROUP, N_GROUPS)
    assert thresholds[0] < 0.5
    assert max(temperatures) > 2 * min(temperatures)
    assert np.ptp([row.expected_dice for row in rows.values()]) > 0.1
    assert 0 < sum(row.flagged for row in rows.values()) < len(rows) / 2


def test_a_case_is_expected_to_have_the_dice_that_prediction_by_its_own_fold_says(rows, said, tuning):
    expected = np.array([row.expected_dice for row in rows.values()])
    predicted = np.array([said[name].expected for name in rows])

    np.testing.assert_allclose(expected, predicted, atol=1e-3)
    below = tuning.expected_dice.flag_below
    assert below == pytest.approx(np.quantile(predicted, 0.2), abs=1e-3)
    assert [row.flagged for row in rows.values()] == [value < below for value in expected]


def test_the_expected_dice_is_learnt_from_what_prediction_measures_in_the_other_folds(rows, said, tuning):
    features = np.array([said[name].features for name in rows])
    dice, folds = np.array([(row.dice, row.fold) for row in rows.values()]).T

    assert (features[:, FEATURES.index("mirror disagreement")] > 0).all()
    for fold in range(N_FOLDS):
        anew = fit_dice_model(features[folds != fold], dice[folds != fold])
        learnt = tuning.expected_dice.models["net"][str(fold)]
        np.testing.assert_allclose(learnt.expect(features), anew.expect(features), atol=1e-3)


def test_the_temperature_of_a_fold_is_that_of_the_least_log_loss_over_its_pixels_that_count(pixels, tuning):
    found = tuning.calibration.temperatures["net"]

    for fold, (logits, truth) in enumerate(zip(*pixels, strict=True)):
        assert found[str(fold)] == pytest.approx(scan_temperature(logits, truth), rel=2e-3)


def test_reliability_before_is_that_of_what_the_networks_said(pixels, tuning):
    logits, truth = map(np.concatenate, pixels)

    assert_reliability(tuning.calibration.before, logits, truth)


def test_reliability_after_is_that_of_temperatures_which_the_other_folds_ask_for(pixels, tuning):
    logits, truth = pixels
    nested = [scan_temperature(other_folds(logits, i), other_folds(truth, i)) for i in range(N_FOLDS)]
    tempered = np.concatenate([of_fold / nested[i] for i, of_fold in enumerate(logits)])
    leaking = [of_fold / tuning.calibration.temperatures["net"][str(i)] for i, of_fold in enumerate(logits)]

    assert_reliability(tuning.calibration.after, tempered, np.concatenate(truth))
    assert tuning.calibration.after.log_loss > log_loss(np.concatenate(leaking), np.concatenate(truth)) + 0.01


def assert_interval(found, scores, metric, tolerance=1e-9):
    """Compare a mean and its interval with those over the groups that the cases' names tell."""
    grouped = summarise(
        [score.labels["lesion"].metrics[metric] for score in scores],
        [score.name.partition("_")[0] for score in scores],
    )
    assert found == pytest.approx((grouped.mean, grouped.low, grouped.high), abs=tolerance, nan_ok=True)


def test_intervals_of_the_best_model_are_over_groups_and_not_over_cases(folder, rows):
    best = BestFolder.of(folder)
    scores = read_scores(best.root / SCORES)
    summary = json.loads((best.root / CROSSVAL).read_text(encoding="utf-8"))["scores"]

    assert (summary["n_cases"], summary["n_groups"]) == (len(rows), N_GROUPS)
    assert all(row.group == name.partition("_")[0] for name, row in rows.items())
    for metric in METRICS:
        found = summary["labels"]["lesion"]["all_cases"][metric]
        assert_interval((found["mean"], found["low"], found["high"]), scores, metric)
    dice = summary["labels"]["lesion"]["all_cases"]["dice"]
    single = summarise([score.labels["lesion"].metrics["dice"] for score in scores])
    assert dice["high"] - dice["low"] > 1.2 * (single.high - single.low)


def test_the_interval_of_a_candidate_is_that_of_what_its_run_scored_over_groups(folder):
    run = Run(folder.runs / "net")
    scores = [score for fold in range(N_FOLDS) for score in read_scores(run.fold(str(fold)).scores_csv)]

    [candidate] = BestFolder.of(folder).read()[0].candidates

    # at 0.5 temperatures change no mask, but for what half precision rounds
    assert_interval((candidate.dice, candidate.low, candidate.high), scores, "dice", tolerance=2e-4)


def test_a_models_file_expects_and_flags_what_the_data_set_it_came_from_does(folder, rows, tmp_path):
    path = tmp_path / "lesions.zip"
    export_model(folder, path)
    images = Path(folder.load_dataset().source.root) / "imagesTr"
    (tmp_path / "new").mkdir()
    for name, brightness in (("alike", 0), ("bright", 60)):
        pixels = np.asarray(Image.open(images / "p03_1_0000.png")).astype(int) + brightness
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "new" / f"{name}_0000.png")

    of_dataset = Predictor.from_dataset(folder, device="cpu").predict_folder(tmp_path / "new", tmp_path / "dataset")
    of_file = Predictor.from_model(path, device="cpu").predict_folder(tmp_path / "new", tmp_path / "file")

    by_name = {Path(outcome.mask).stem: outcome for outcome in of_file}
    assert "unlike the training images: mean intensity" in by_name["bright"].flag
    assert "unlike" not in by_name["alike"].flag
    assert 0 < by_name["alike"].expected_dice <= 1
    for outcome, other in zip(of_dataset, of_file, strict=True):
        assert outcome == other
