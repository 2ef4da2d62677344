import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.dataset import IGNORED
from iaunet.errors import PredictionError
from iaunet.inference.crossval import summarise
from iaunet.inference.scores import (
    CaseScore,
    LabelScore,
    format_table,
    read_scores,
    score_masks,
    summarise_scores,
    write_scores,
)
from iaunet.metrics import METRICS, Counts, score_case
from iaunet.records import to_json


def box(top, bottom, label=1):
    mask = np.zeros((20, 30), np.uint8)
    mask[top:bottom, 5:25] = label
    return mask


EMPTY = box(0, 0)


def some_scores():
    """Three cases with one label: a good one, a poor one, a truly empty one."""
    return [
        score_masks("p1/a", box(4, 12), box(4, 12), ["polyp"]),
        score_masks("p1/b", box(4, 12), box(10, 18), ["polyp"]),
        score_masks("p2/c", EMPTY, EMPTY, ["polyp"]),
    ]


def plain(scores):
    """Scores as texts: NaN does not equal itself."""
    return repr(scores)


def test_labels_are_scored_by_their_names():
    prediction, truth = box(2, 6) + box(10, 14, label=2), box(2, 6) + box(12, 16, label=2)

    score = score_masks("a", prediction, truth, ["organ", "tumour"])

    assert score.name == "a"
    assert list(score.labels) == ["organ", "tumour"]
    assert score.labels["organ"].metrics["dice"] == 1
    assert score.labels["tumour"].metrics["dice"] == 0.5
    assert score.labels["tumour"].counts == Counts(tp=40, fp=40, fn=40, tn=480)


def test_spacing_and_tolerance_reach_the_metrics():
    score = score_masks("a", box(4, 12), box(7, 15), ["x"], spacing_mm=(0.5, 0.5), tolerance=3.0)

    expected = score_case(box(4, 12), box(7, 15), [1], (0.5, 0.5), tolerance=3.0)[1]
    assert score.labels["x"].metrics == expected
    assert score.labels["x"].metrics["hd95"] == 1.5
    assert score.labels["x"].metrics["surface_dice"] == 1


def test_regions_are_scored_as_the_union_of_their_labels():
    prediction, truth = box(2, 6) + box(10, 14, label=2), box(2, 6, label=2) + box(12, 16, label=2)

    score = score_masks("a", prediction, truth, ["whole", "core"], outputs=[(1, 2), (2,)])

    assert score.labels["whole"].counts == Counts(tp=120, fp=40, fn=40, tn=400)
    assert score.labels["whole"].metrics["dice"] == pytest.approx(240 / 320)
    assert score.labels["core"].counts == Counts(tp=40, fp=40, fn=120, tn=400)
    assert score.labels["core"].metrics["hd95"] == 8.0  # from row 2 of the truth to row 10 of the prediction


def test_ignored_pixels_count_nowhere_and_distances_do_not_see_them():
    truth = box(4, 12)
    truth[:, 15:] = IGNORED
    prediction = box(6, 12)

    score = score_masks("a", prediction, truth, ["x"]).labels["x"]

    assert score.counts == Counts(tp=60, fp=0, fn=20, tn=300 - 80)
    assert score.metrics["dice"] == pytest.approx(120 / 140)
    assert score.metrics["specificity"] == 1
    assert score.metrics["hd95"] == 2.0
    prediction[:, 15:] = 1
    assert score_masks("a", prediction, truth, ["x"]).labels["x"] == score


def test_regions_of_a_truth_with_ignored_pixels():
    truth = box(4, 12) + box(12, 16, label=2)
    truth[:, :15] = IGNORED
    prediction = box(4, 14) + box(14, 16, label=2)

    score = score_masks("a", prediction, truth, ["whole", "core"], outputs=[(1, 2), (2,)])

    assert score.labels["whole"].counts == Counts(tp=120, fp=0, fn=0, tn=180)
    assert score.labels["core"].counts == Counts(tp=20, fp=0, fn=20, tn=260)


def test_a_volume_is_scored_as_one_with_the_distance_of_its_slices():
    truth, prediction = np.zeros((6, 20, 30), np.uint8), np.zeros((6, 20, 30), np.uint8)
    truth[1:3, 5:15, 5:25] = 1
    prediction[1:4, 5:15, 5:25] = 1

    score = score_masks("a", prediction, truth, ["x"], spacing_mm=(5.0, 0.5, 0.5)).labels["x"]

    assert score.counts == Counts(tp=400, fp=200, fn=0, tn=3000)
    assert score.metrics["dice"] == 0.8
    assert score.metrics["hd95"] == 5.0  # the inside of the third slice is 5 mm from the second's
    assert score_masks("a", prediction, truth, ["x"]).labels["x"].metrics["hd95"] == 1.0


def test_a_volume_of_one_slice_counts_as_a_picture():
    prediction, truth = box(4, 12), box(7, 15)

    volume = score_masks("a", prediction[None], truth[None], ["x"], spacing_mm=(9.0, 0.5, 0.5))

    assert volume == score_masks("a", prediction, truth, ["x"], spacing_mm=(0.5, 0.5))


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="cannot be scored"):
        score_masks("a", box(4, 12), np.zeros((5, 5), np.uint8), ["x"])


def test_a_summary_is_that_of_each_metric_over_the_cases():
    scores = some_scores()
    groups = {"p1/a": "p1", "p1/b": "p1", "p2/c": "p2"}

    summary = summarise_scores(scores, groups, folds={"p1/a": 0, "p1/b": 0, "p2/c": 1})

    dice = [score.labels["polyp"].metrics["dice"] for score in scores]
    polyp = summary.labels["polyp"]
    assert polyp.all_cases["dice"] == summarise(dice, ["p1", "p1", "p2"], [0, 0, 1])
    assert polyp.with_truth["dice"].n_left_out == 1
    assert polyp.pooled["dice"] == pytest.approx((160 * 2 + 40 * 2) / (320 * 2))
    assert (summary.n_cases, summary.n_groups, summary.sd_over, polyp.n_empty) == (3, 2, "folds", 1)


def test_without_folds_the_deviation_is_over_cases_and_without_groups_each_case_is_one():
    scores = some_scores()

    summary = summarise_scores(scores, {})

    dice = [score.labels["polyp"].metrics["dice"] for score in scores]
    of_dice = summary.labels["polyp"].all_cases["dice"]
    assert of_dice.sd == pytest.approx(np.std(dice, ddof=1))
    assert (of_dice.low, of_dice.high) == (min(dice), max(dice))
    assert (summary.n_groups, summary.sd_over) == (0, "cases")


def test_the_interval_over_groups_is_wider_than_over_their_cases():
    rng = np.random.default_rng(0)
    scores, groups = [], {}
    for patient in range(12):
        length = int(rng.integers(1, 14))
        for frame in range(10):
            name = f"{patient}_{frame}"
            scores.append(score_masks(name, box(0, length), box(0, 14), ["x"]))
            groups[name] = str(patient)

    def width(of_groups):
        dice = summarise_scores(scores, of_groups).labels["x"].all_cases["dice"]
        return dice.high - dice.low

    assert width(groups) > 2 * width({})


def test_no_scores_cannot_be_summed_up():
    with pytest.raises(ValueError, match="no scores"):
        summarise_scores([], {})


def test_a_summary_becomes_json():
    data = to_json(summarise_scores(some_scores(), {}))

    assert data["labels"]["polyp"]["all_cases"]["dice"]["n_defined"] == 3
    assert data["labels"]["polyp"]["with_truth"]["hd95"]["n_left_out"] == 1


def test_the_table_shows_each_metric_with_its_interval_and_what_was_left_out():
    lines = format_table(summarise_scores(some_scores(), {}))

    assert lines[0] == "3 cases (no groups: optimistic if images share patients); sd over cases"
    assert lines[2].split() == ["polyp", "mean", "sd", "95", "%", "interval", "pooled", "left", "out"]
    assert lines[3].split() == ["Dice", "0.750", "0.433", "0.250", "to", "1.000", "0.625", "0"]
    assert next(line for line in lines if line.startswith("HD95 (px)")).split()[-2:] == ["-", "1"]
    assert any("without the 1 cases whose truth is empty" in line for line in lines)
    assert len(lines) == 3 + len(METRICS) + 2 + len(METRICS)


def test_the_table_without_empty_cases_is_one_block_and_names_groups_and_unit():
    summary = summarise_scores(some_scores()[:2], {"p1/a": "p1", "p1/b": "p1"}, unit="mm")

    lines = format_table(summary)

    assert lines[0] == "2 cases in 1 groups; sd over cases"
    assert lines[3].split() == ["Dice", "0.625", "0.530", "-", "0.625", "0"]
    assert summary.distance_unit == "mm"
    assert "HD95 (mm)" in "\n".join(lines)
    assert len({len(line) for line in lines[2:]}) == 1
    assert len(lines) == 3 + len(METRICS)


VALUES = st.one_of(st.floats(0, 1e6), st.just(math.nan))
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, st.lists(VALUES, min_size=7, max_size=7), min_size=1), max_size=4))
def test_scores_survive_their_file(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    scores = [
        CaseScore(
            name=name,
            labels={
                label: LabelScore(counts=Counts(tp=1, fp=2, fn=3, tn=4), metrics=dict(zip(METRICS, of, strict=True)))
                for label, of in labels.items()
            },
        )
        for name, labels in values.items()
    ]

    write_scores(path, scores)

    assert plain(read_scores(path)) == plain(scores)


def test_the_file_has_a_row_a_case_and_label_with_blanks_for_the_undefined(tmp_path):
    write_scores(tmp_path / "scores.csv", some_scores())

    header, *rows = (tmp_path / "scores.csv").read_text().splitlines()
    assert header == "case,label,tp,fp,fn,tn," + ",".join(METRICS)
    assert rows[2] == "p2/c,polyp,0,0,0,600,1.0,1.0,,,1.0,,"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "a,b\n1,2\n", "does not have the columns case, label"),
        (lambda text: "", "does not have the columns"),
        (lambda text: text.replace("p1/a,polyp,160", "p1/a,polyp,many"), "line 2, holds no score"),
        (lambda text: text + "p3/d\n", "line 5, holds no score"),
        (lambda text: text + "p3/d,polyp,1,2\n", "line 5, holds no score"),
    ],
)
def test_another_file_is_refused_with_its_line(tmp_path, change, message):
    path = tmp_path / "scores.csv"
    write_scores(path, some_scores())
    path.write_text(change(path.read_text()))

    with pytest.raises(PredictionError, match=message + r".*evaluate again"):
        read_scores(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PredictionError, match=r"scores.csv is missing: evaluate again"):
        read_scores(tmp_path / "scores.csv")
