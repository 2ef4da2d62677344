import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from iaunet.errors import WorkspaceError
from iaunet.inference.report.figures import (
    FIGURES,
    draw_detection,
    draw_dice_by_fold,
    draw_expected_dice,
    draw_figures,
    draw_learning_curves,
    draw_random_against_grouped,
    draw_reliability,
)


def lines(axes, label):
    """The points of the lines of a name."""
    return [line.get_xydata().tolist() for line in axes.lines if line.get_label() == label]


def tick_names(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def test_figures_are_one_column_wide_at_300_dpi(tmp_path, facts):
    written = draw_figures(tmp_path / "figures", facts)

    assert [path.stem for path in written] == [*FIGURES]
    assert sorted(written) == sorted((tmp_path / "figures").iterdir())
    for path in written:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width == int(85 / 25.4 * 300)
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
            assert np.asarray(image.convert("L")).std() > 1


def test_what_there_are_no_facts_for_is_not_drawn(tmp_path, samples, make_plan):
    bare = samples.make_facts(make_plan, **samples.BARE)
    cases = tuple(dataclasses.replace(case, expected_dice=None) for case in bare.cases)
    run = dataclasses.replace(bare.shown, curves=())

    assert [path.stem for path in draw_figures(tmp_path, dataclasses.replace(bare, cases=cases))] == [
        *("dice_by_fold", "learning_curves")
    ]
    assert draw_figures(tmp_path, dataclasses.replace(bare, cases=(), shown=run)) == ()


def test_each_fold_is_a_column_of_its_cases(facts):
    [axes] = draw_dice_by_fold(facts).axes

    points = [line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert points[0] == pytest.approx([16 / 18, 0.5])
    assert points[1] == [0, 1]
    assert tick_names(axes.xaxis) == ["0\nn = 2", "1\nn = 2"]


def test_reliability_shows_the_bins_that_are_not_empty_before_and_after(facts):
    above, below = draw_reliability(facts).axes

    assert lines(above, "as they come, ECE 0.0833") == [[[1 / 6, 0.1], [5 / 6, 0.6]]]
    assert lines(above, "tempered, ECE 0.0094") == [[[1 / 6, 0.16], [5 / 6, 0.8]]]
    assert [patch.get_data().values.tolist() for patch in below.patches] == [[0.9, 0, 0.1]] * 2


def test_flagged_cases_are_told_apart_from_the_others(facts):
    [axes] = draw_expected_dice(facts).axes

    assert lines(axes, "flagged") == [[[0.25, 0]]]
    assert len(lines(axes, "not flagged")[0]) == 3
    assert axes.get_title() == "rank correlation 0.71 (0.60 to 0.80)"


def test_expected_dice_without_a_known_correlation_has_no_title(facts):
    [axes] = draw_expected_dice(dataclasses.replace(facts, expected_dice=None)).axes

    assert axes.get_title() == ""


def test_random_and_grouped_means_stand_beside_each_other_with_their_difference(facts):
    [axes] = draw_random_against_grouped(facts).axes

    assert [lines(axes, name)[0][0][0] for name in ("random folds", "grouped folds")] == [0.75, 0.5]
    assert tick_names(axes.yaxis) == ["U-Net\ndifference +0.250\n(+0.100 to +0.300)"]


def test_learning_curves_are_the_mean_of_folds_and_skip_what_was_not_measured(facts):
    curve = facts.shown.curves[0]
    longer = dataclasses.replace(
        curve,
        fold="1",
        epoch=(1.0, 2.0, 3.0),
        loss=(3.0, 1.5, 1.0),
        validation_loss=(math.nan,) * 3,
        validation_dice=(0.4, 0.6, 0.7),
    )
    above, below = draw_learning_curves(
        dataclasses.replace(facts, shown=dataclasses.replace(facts.shown, curves=(curve, longer)))
    ).axes

    assert lines(above, "training") == [[[1, 2], [2, 1], [3, 1]]]
    assert lines(above, "held-out cases") == [[[1, 1.1]]]
    assert lines(below, "held-out cases")[0] == [[1, pytest.approx(0.3)], [2, 0.5], [3, 0.7]]


def test_detection_has_a_row_a_size_and_label(samples, make_plan, facts):
    [axes] = draw_detection(facts).axes
    assert lines(axes, "sensitivity") == [[[0.75, 0], [0.5, 1], [1, 2]]]
    assert tick_names(axes.yaxis)[0] == "all: 3 of 4 found\n1 false alarm"

    name = "a name of $50$ that would leave no room"
    [axes] = draw_detection(samples.make_facts(make_plan, labels=("core", name))).axes
    assert tick_names(axes.yaxis)[3].startswith("a name of $50$ that w..., all")


def test_names_with_dollar_signs_and_many_cases_are_drawn(tmp_path, samples, make_plan, facts):
    pair = dataclasses.replace(facts.leakage[0], network="$net_{1")
    cases = tuple(dataclasses.replace(facts.cases[i % 4], name=f"{i}") for i in range(9000))

    facts = samples.make_facts(make_plan, labels=("co$re_{", "rim"), leakage=(pair,), cases=cases)

    assert len(draw_figures(tmp_path, facts)) == len(FIGURES)
    [axes] = draw_dice_by_fold(facts).axes
    assert all(len(line.get_ydata()) <= 2000 for line in axes.lines if line.get_marker() == "o")


def test_a_folder_that_cannot_be_made_is_named(tmp_path, facts):
    (tmp_path / "figures").write_text("in the way")

    with pytest.raises(WorkspaceError, match="figures"):
        draw_figures(tmp_path / "figures", facts)
