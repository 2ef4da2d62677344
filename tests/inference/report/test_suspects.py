import shutil

import numpy as np
import pytest

from iaunet.errors import PredictionError
from iaunet.inference.out_of_fold import LogitWriter, logits_path
from iaunet.inference.report.suspects import find_suspects
from iaunet.inference.runs import Run, RunRecord
from iaunet.inference.scores import CaseScore, LabelScore, write_scores
from iaunet.metrics import METRICS, Counts
from iaunet.planners.folds import load_splits
from iaunet.planners.plan import load_plan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.storage import write_json
from iaunet.workspace import DatasetFolder


@pytest.fixture
def folder(workspace):
    return DatasetFolder(workspace / "toy")


@pytest.fixture
def add_run(folder):
    """Write a run of which each fold said of its cases what ``say(marked, name)`` gives, [64, 64]."""

    def add(name, say):
        plan, run = load_plan(folder.plan_json), Run(folder.runs / name)
        arrays, split = open_arrays(folder.preprocessed, plan.arrays_digest), load_splits(folder.splits_json)
        record = RunRecord(plan=plan, split="random", split_digest="", seed=0, micro_batch=1, device="cpu", threads=1)
        run.write_record(record)
        for number, fold in enumerate(split.splits["random"].folds):
            of_fold = run.fold(str(number))
            for case in fold.validation:
                [row] = arrays.cases[case].rows
                said = say(arrays.masks[row] == 1, case).astype(np.float32)
                LogitWriter(logits_path(of_fold.logits, case), (1, 1, 64, 64)).add(said[None])
            write_scores(of_fold.scores_csv, [CaseScore(name=case, labels=LABELS) for case in fold.validation])
            write_json(of_fold.summary_json, {})
        return run

    return add


@pytest.fixture
def mark(folder):
    """Change the mask of a case in the arrays, as if it had been drawn so."""

    def mark(name, mask):
        arrays = open_arrays(folder.preprocessed, load_plan(folder.plan_json).arrays_digest)
        [row] = arrays.cases[name].rows
        masks = np.load(folder.preprocessed / "masks.npy", mmap_mode="r+")
        masks[row] = mask(masks[row])
        masks.flush()

    return mark


LABELS = {"foreground": LabelScore(counts=Counts(), metrics=dict.fromkeys(METRICS, 1.0))}


def knowing(marked, name):
    """A network that knows the truth but for outlines: it is unsure at the two pixels around them."""
    said = np.where(marked, 0.97, 0.02)
    grown, shrunk = (
        np.any([np.roll(of, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)], 0) for of in (marked, ~marked)
    )
    return np.where(grown & shrunk, 0.5, said)


def test_masks_that_were_spoilt_come_first_and_are_told_apart(folder, add_run, mark):
    run = add_run("knowing", knowing)
    assert find_suspects(folder, [run]) == ()
    mark("case_03", np.zeros_like)
    mark("case_07", lambda mask: np.roll(mask, 32, axis=1))
    mark("case_11", lambda mask: np.where(np.arange(64)[:, None] < 8, 1, mask))

    suspects = {suspect.name: suspect for suspect in find_suspects(folder, [run])}

    assert {name: suspect.kind for name, suspect in suspects.items()} == {
        "case_03": "not marked",
        "case_07": "both",
        "case_11": "marked without sign",
    }
    assert (suspects["case_03"].score, suspects["case_03"].marked, suspects["case_03"].without_sign) == (1, 0, 0)
    assert (suspects["case_11"].without_sign, suspects["case_11"].not_marked) == (8 * 64, 0)
    assert suspects["case_11"].score == 8 * 64 / suspects["case_11"].marked
    folds = load_splits(folder.splits_json).splits["random"].folds
    assert all(name in folds[suspect.fold].validation for name, suspect in suspects.items())


def test_the_most_suspect_come_first_and_only_so_many_as_asked_for(folder, add_run, mark):
    run = add_run("knowing", knowing)
    for case, rows in (("case_01", 2), ("case_02", 12), ("case_03", 6)):
        mark(case, lambda mask, rows=rows: np.where(np.arange(64)[:, None] < rows, 1, mask))

    suspects = find_suspects(folder, [run], most=2)

    assert [suspect.name for suspect in suspects] == ["case_02", "case_03"]
    assert suspects[0].score > suspects[1].score > 0


def test_an_unsure_network_suspects_nothing(folder, add_run, mark):
    run = add_run("unsure", lambda marked, name: np.where(marked, 0.8, 0.15))
    mark("case_03", np.zeros_like)

    assert find_suspects(folder, [run]) == ()


def test_a_network_that_is_too_sure_suspects_less_once_it_is_calibrated(folder, add_run, mark):
    run = add_run("knowing", knowing)
    mark("case_03", np.zeros_like)
    calibrated = {"knowing": {"0": 2.0, "1": 2.0, "2": 2.0}}

    assert [suspect.name for suspect in find_suspects(folder, [run])] == ["case_03"]
    assert find_suspects(folder, [run], calibrated) == ()


def test_probabilities_no_higher_than_the_share_of_lesions_are_no_contradiction(folder, add_run):
    def say(marked, name):
        return np.full((64, 64), 0.09) if name == "case_05" else knowing(marked, name)

    run = add_run("knows nothing of case_05", say)

    assert find_suspects(folder, [run]) == ()


def test_a_probability_that_is_not_sure_is_no_contradiction_even_if_it_is_low_for_pixels_that_are_not_marked(
    folder, add_run
):
    run = add_run("dim", lambda marked, name: np.full((64, 64), 0.3) if name == "case_05" else np.full((64, 64), 0.4))

    assert find_suspects(folder, [run]) == ()


def test_a_few_pixels_in_an_empty_image_do_not_come_first(folder, add_run, mark):
    two_pixels = np.where(np.arange(64 * 64).reshape(64, 64) < 2, 0.99, 0.01)
    run = add_run("two pixels", lambda marked, name: two_pixels if name == "case_03" else knowing(marked, name))
    mark("case_03", np.zeros_like)

    [suspect] = find_suspects(folder, [run])

    assert (suspect.kind, suspect.not_marked, suspect.marked) == ("not marked", 2, 0)
    assert suspect.score == pytest.approx(2 / (0.001 * 64 * 64))


def test_ignored_pixels_contradict_nobody(folder, add_run, mark):
    run = add_run("knowing", knowing)
    mark("case_03", lambda mask: np.where(mask == 1, 255, 0))

    assert find_suspects(folder, [run]) == ()


def test_runs_contradict_together(folder, add_run, mark):
    runs = [add_run("knowing", knowing), add_run("unsure", lambda marked, name: np.where(marked, 0.6, 0.4))]
    mark("case_03", np.zeros_like)

    assert find_suspects(folder, runs[:1])
    assert find_suspects(folder, runs) == ()


def test_cases_without_logits_are_left_out(folder, add_run, mark):
    run = add_run("knowing", knowing)
    mark("case_03", np.zeros_like)
    mark("case_04", np.zeros_like)
    [suspect] = find_suspects(folder, [run], most=1)
    logits_path(run.fold(str(suspect.fold)).logits, suspect.name).unlink()

    assert {suspect.name, *(each.name for each in find_suspects(folder, [run]))} == {"case_03", "case_04"}
    shutil.rmtree(run.root / "fold_0" / "validation" / "logits")
    assert all(each.fold != 0 for each in find_suspects(folder, [run]))


def test_logits_of_other_data_are_refused(folder, add_run):
    run = add_run("knowing", knowing)
    [name, *_] = load_splits(folder.splits_json).splits["random"].folds[1].validation
    LogitWriter(logits_path(run.fold("1").logits, name), (1, 1, 32, 32)).add(np.full((1, 32, 32), 0.5, np.float32))

    with pytest.raises(PredictionError, match=rf"the logits of {name} in .* are of other data: run iaunet_train with"):
        find_suspects(folder, [run])
