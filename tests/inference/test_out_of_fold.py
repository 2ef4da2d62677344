import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.errors import PredictionError, WorkspaceError
from iaunet.inference.out_of_fold import LARGEST_LOGIT, LogitWriter, logit, read_logits, sigmoid
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run
from iaunet.inference.scores import read_scores
from iaunet.preprocessing.arrays import open_arrays


@given(st.floats(0, 1, width=32))
def test_a_probability_survives_its_logit_in_half_precision(p):
    kept = logit(np.array([p], np.float32)).astype(np.float16)

    assert abs(kept) <= LARGEST_LOGIT
    assert sigmoid(kept)[0] == pytest.approx(p, abs=1e-3)
    assert (sigmoid(kept)[0] >= 0.5) == (p >= 0.5) or abs(p - 0.5) < 1e-4


def test_logits_are_those_of_log_odds():
    np.testing.assert_allclose(logit(np.array([0.5, 0.9, 0.1], np.float32)), [0, np.log(9), -np.log(9)], atol=1e-6)
    np.testing.assert_allclose(logit(np.array([0.0, 1.0], np.float32)), [-LARGEST_LOGIT, LARGEST_LOGIT], rtol=1e-5)


def test_rows_are_written_one_after_the_other_and_the_file_appears_with_the_last(tmp_path):
    rows = np.random.default_rng(0).random((3, 2, 4, 5), np.float32)
    writer = LogitWriter(tmp_path / "patient" / "a.b.npy", rows.shape)
    for row in rows:
        assert not (tmp_path / "patient" / "a.b.npy").exists()
        writer.add(row)

    found = read_logits(tmp_path, "patient/a.b")

    assert found.dtype == np.float16
    np.testing.assert_allclose(sigmoid(found), rows, atol=2e-3)


def test_what_is_never_finished_leaves_nothing(tmp_path):
    writer = LogitWriter(tmp_path / "a.npy", (2, 1, 4, 4))
    writer.add(np.zeros((1, 4, 4), np.float32))

    del writer

    assert not list(tmp_path.iterdir())


def test_a_validated_fold_holds_the_logits_of_every_row_of_its_cases(trained):
    run = Run(trained / "toy" / "runs" / "unet-best-random")
    fold, plan = run.fold("1"), run.record.plan
    arrays = open_arrays(trained / "toy" / "preprocessed", plan.arrays_digest)
    predictor = Predictor.from_runs([run], ["1"], "cpu")

    for score in read_scores(fold.scores_csv):
        expected = predictor.predict_inputs(np.stack([*arrays.case_input(score.name).rows()]))
        np.testing.assert_allclose(sigmoid(read_logits(fold.logits, score.name)), expected, atol=2e-3)


@pytest.mark.parametrize("spoil", ["missing", "truncated", "other"])
def test_logits_that_cannot_be_read_name_the_command(tmp_path, spoil):
    path = tmp_path / "a.npy"
    if spoil != "missing":
        LogitWriter(path, (1, 1, 4, 4)).add(np.zeros((1, 4, 4), np.float32))
        data = path.read_bytes()
        path.write_bytes(data[:-5] if spoil == "truncated" else b"x" + data)

    with pytest.raises(PredictionError, match=r"a\.npy cannot be read .*: run iaunet_train with --val_only"):
        read_logits(tmp_path, "a")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "logits").write_text("a file")

    with pytest.raises(WorkspaceError, match="logits"):
        LogitWriter(tmp_path / "logits" / "a.npy", (1, 1, 4, 4))
