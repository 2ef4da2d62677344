import csv
import dataclasses
import io
import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from iaunet.inference.comparison import Contest, Contestant
from iaunet.inference.comparison_chart import draw_chart, save_chart
from iaunet.inference.comparison_tables import format_csv, format_markdown, name_folds
from iaunet.inference.costs import Cost
from iaunet.inference.published import PAPER_METRICS, PUBLISHED, TITLES
from iaunet.inference.runs import Run, RunRecord
from iaunet.inference.scores import CaseScore, LabelScore
from iaunet.metrics import METRICS, Counts
from iaunet.planners.plan import NetworkPlan
from iaunet.planners.recipes import find_recipe

CSV_NUMBERS = ("mean", "sd_of_fold_means", "low", "high", "left_out", "pooled", "difference", "p", "p_holm")


def score(name, tp, fp=10, fn=20, labels=("foreground",)):
    counts = Counts(tp=tp, fp=fp, fn=fn, tn=4096 - tp - fp - fn)
    metrics = dict.fromkeys(METRICS, math.nan) | counts.metrics()
    return CaseScore(name=name, labels=dict.fromkeys(labels, LabelScore(counts=counts, metrics=metrics)))


def fold_scores(folds=(0, 1, 2), plus=0, **fields):
    return {
        fold: [score(f"case{fold}{i}", 90 + 20 * i + 33 * fold + plus * (i + 1), **fields) for i in range(3)]
        for fold in folds
    }


@pytest.fixture
def contestant(make_plan):
    """A run that was scored so, at both sizes; each is 64x64 px wide unless ``plan`` says otherwise."""

    def contestant(network="unet", scores=None, epochs=12, width=4, depth=3, **plan):
        plan = make_plan(network=NetworkPlan(name=network, width=width, depth=depth), **plan)
        plan = dataclasses.replace(plan, recipe=dataclasses.replace(find_recipe("paper"), epochs=epochs))
        record = RunRecord(plan=plan, split="random", split_digest="0", seed=0, micro_batch=4, device="cpu", threads=1)
        scores = fold_scores() if scores is None else scores
        return Contestant(
            run=Run(Path("runs") / f"run-{network}-{width}"),
            record=record,
            title=TITLES.get(network, network),
            scores={"native": scores, "input": scores},
        )

    return contestant


def contest(*contestants, reference=None, **fields):
    usual = {
        "recipe": "paper",
        "split": "random",
        "inflated": "",
        "knows_split": True,
        "n_folds": 3,
        "is_current": True,
        "groups": {f"case{fold}{i}": f"patient {fold}{i}" for fold in range(3) for i in range(3)},
        "contestants": contestants,
        "reference": reference,
    }
    return Contest(**(usual | fields))


def markdown(*contests, costs=None, timed_on="", published=None):
    return format_markdown("toy", contests, costs or {}, timed_on, published)


def remarks(text):
    return re.findall(r"^- \*\*(.*)\*\*$", text, re.MULTILINE)


def tables(text):
    """The rows of each table below its heading, each a dict by column."""
    found = {}
    for heading, body in re.findall(r"^### (.*)\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        head, _, *rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in body.strip().split("\n")
        ]
        found[heading] = [dict(zip(head, row, strict=True)) for row in rows]
    return found


def csv_rows(*contests):
    return [*csv.DictReader(io.StringIO(format_csv(contests)))]


# Markdown -----------------------------------------------------------------------------------------------------------


def test_a_row_has_mean_deviation_interval_pooled_difference_and_p(contestant):
    unet, unext = contestant(), contestant("unext", fold_scores(plus=15))
    one = contest(unet, unext, reference=unet)

    rows = tables(markdown(one))["All 3 folds, native size"]

    reference, other = one.tables[0].standings
    assert [row["network"] for row in rows] == ["U-Net", "UNeXt"]
    assert [(row["cases"], row["epochs"]) for row in rows] == [("9", "12")] * 2
    for row, standing in zip(rows, (reference, other), strict=True):
        for metric in PAPER_METRICS:
            title, mean = METRICS[metric].title, standing.means[metric]
            shown = [*map(float, re.findall(r"[\d.]+", row[title]))]
            np.testing.assert_allclose(shown[:2], [100 * mean.mean, 100 * mean.sd], atol=0.00501)
            np.testing.assert_allclose(shown[2:], [100 * mean.low, 100 * mean.high], atol=0.0501)
            assert float(row[f"pooled {title}"]) == pytest.approx(100 * standing.pooled[metric], abs=0.00501)
    assert (rows[0]["Dice less U-Net's"], rows[0]["p"]) == ("-", "-")
    assert float(rows[1]["Dice less U-Net's"]) == pytest.approx(
        100 * (other.means["dice"].mean - reference.means["dice"].mean), abs=0.00501
    )
    assert rows[1]["Dice less U-Net's"].startswith("+")
    assert rows[1]["p"] == f"{other.adjusted['dice']:.3f}" == f"{2 / 2**9:.3f}"


def test_a_small_p_value_is_below_a_thousandth_and_none_without_common_cases(contestant):
    many = {0: [score(f"c{i}", 100 + i) for i in range(40)]}
    better = {0: [score(f"c{i}", 150 + 2 * i) for i in range(40)]}
    unet = contestant(scores=many)
    others = [contestant("unext", better), contestant("resunet", {1: [score("apart", 5)]})]

    rows = tables(markdown(contest(unet, *others, reference=unet)))["All 3 folds, native size"]

    assert [row["p"] for row in rows] == ["-", "<0.001", "-"]
    assert rows[2]["Dice less U-Net's"] == "-"


def test_incomplete_rows_are_marked_and_never_filled_in(contestant):
    unet, unext = contestant(), contestant("unext", fold_scores((0, 2)))
    one = contest(unet, unext)

    text = markdown(one)

    found = tables(text)
    assert [row["network"] for row in found["All 3 folds, native size"]] == [
        "U-Net",
        "UNeXt (*incomplete: folds 0, 2 of all 3 folds*)",
    ]
    assert [row["cases"] for row in found["All 3 folds, native size"]] == ["9", "6"]
    assert [row["network"] for row in found["Folds 1, 2, native size"]] == [
        "U-Net",
        "UNeXt (*incomplete: fold 2 of folds 1, 2*)",
    ]
    assert "Incomplete, not scored yet: UNeXt (fold 1)." in remarks(text)


def test_a_table_that_no_run_has_cases_for_says_so(contestant):
    tiles = contestant()
    tiles = dataclasses.replace(tiles, scores={"native": tiles.scores["native"], "input": {}})

    text = markdown(contest(tiles))

    assert "### All 3 folds, the network's size\n\nNo run has been scored there.\n" in text


def test_undefined_figures_are_dashes_and_counted_and_empty_cases_as_well(contestant):
    nothing = {0: [score("a", 0, fp=0, fn=5), score("b", 0, fp=0, fn=0)]}

    [row] = tables(markdown(contest(contestant(scores=nothing))))["All 3 folds, native size"]

    assert row["cases"] == "2 (1 empty)"
    assert row["Precision"] == "- (2 undefined)"
    assert row["Sensitivity"] == "0.00 (1 undefined)"
    assert row["Dice"].startswith("50.00 [0.0, 100.0]")
    assert row["pooled Precision"] == "-"


def test_each_of_several_labels_has_its_tables(contestant, make_plan):
    labels = ("disc", "cup")
    coding = dataclasses.replace(make_plan().coding, values=(1, 2), written=(1, 2))
    run = contestant(scores=fold_scores((0,), labels=labels), labels=labels, coding=coding)

    headings = re.findall("^### (.*)$", markdown(contest(run)), re.MULTILINE)

    assert headings == [
        "Disc, all 3 folds, native size",
        "Disc, all 3 folds, the network's size",
        "Cup, all 3 folds, native size",
        "Cup, all 3 folds, the network's size",
        "Size and speed",
    ]


def test_the_papers_figures_stand_beside_those_at_the_networks_size_only(contestant):
    one = contest(contestant(), contestant("my_package:net"), contestant("iaunet"))

    text = markdown(one, published="ISIC2018")

    found = tables(text)
    assert "the paper's Dice" not in found["All 3 folds, native size"][0]
    rows = found["All 3 folds, the network's size"]
    shown = [[row[f"the paper's {METRICS[metric].title}"] for metric in PAPER_METRICS] for row in rows]
    assert shown == [["87.92", "80.52", "87.49", "88.35"], ["-"] * 4, ["89.72", "82.93", "90.52", "90.81"]]
    assert text.endswith("so a difference to these figures says little about a network.\n")
    assert "those it gives for ISIC2018" in text
    assert "paper's Dice" not in markdown(one)
    assert "The paper's figures are" not in markdown(one)


def test_what_weakens_a_comparison_is_said(contestant):
    plain = contestant("unet", width=64, depth=5, epochs=500, input_size=(256, 256))
    assert remarks(markdown(contest(plain, reference=plain, n_folds=3))) == [
        "If settings were chosen on fold 0, the tables without it are the ones to quote."
    ]

    weak = contest(
        contestant("unet", fold_scores((0,)), width=8, depth=5, epochs=3, input_size=(128, 128)),
        contestant("unext", fold_scores((0,)), width=16, depth=5, input_size=(64, 128)),
        contestant("my_package:net", fold_scores((0,)), width=1),
        inflated="inflated: 2 groups are spread over training and validation",
        is_current=False,
        knows_split=False,
        groups={},
        n_folds=1,
    )
    assert remarks(markdown(weak)) == [
        "These scores are inflated: 2 groups are spread over training and validation.",
        "No groups: optimistic if images share patients.",
        "These runs were trained on another state of the data than the one planned now.",
        "This split is not among those planned now: whether folds are missing is not known.",
        "The reference has not been trained: there are no tests.",
        "The network's size is 64x64, 64x128, 128x128, the paper's 256x256.",
        "Not of the published size: U-Net (width 8 instead of 64).",
        "Shortened: U-Net (3 of the recipe's 500 epochs); UNeXt, my_package:net (12 of the recipe's 500 epochs).",
        "The runs differ in epochs.",
    ]


def test_settings_that_are_not_the_recipes_are_said(contestant):
    run = contestant()
    usual = run.record.plan.recipe
    edited = dataclasses.replace(
        usual, lr=0.1, augmentation=dataclasses.replace(usual.augmentation, rotation_probability=0.5)
    )
    plan = dataclasses.replace(run.record.plan, recipe=edited)
    record = dataclasses.replace(run.record, plan=plan, seed=9, weights_sha256="0")

    said = remarks(markdown(contest(dataclasses.replace(run, record=record), contestant("unext"))))

    words = "lr: 0.0001 -> 0.1, augmentation.rotation_probability: 0.0 -> 0.5, started from trained weights"
    assert [line for line in said if "alone" in line] == [f"Not trained by the recipe alone: U-Net ({words})."]
    assert "Shortened: all 2 runs (12 of the recipe's 500 epochs)." in said
    assert "The runs differ in seed." in said


def test_rows_that_lack_the_same_are_named_together(contestant):
    first, second = contestant("unet", fold_scores((0,))), contestant("resunet", fold_scores((0,)))
    third = contestant("unext", fold_scores((1,)))

    said = remarks(markdown(contest(first, second, third, n_folds=2)))

    assert "Incomplete, not scored yet: U-Net, ResUNet (fold 1); UNeXt (fold 0)." in said


def test_costs_stand_below_with_dashes_where_they_are_not_known(contestant):
    one = contest(contestant(), contestant("unext"), contestant("my_package:net", width=7))
    costs = {
        "run-unet-4": Cost(parameters=1_234_567, multiply_adds=9_876_543_210, images_per_second=51.234),
        "run-unext-4": Cost(parameters=1_000, multiply_adds=2_000_000),
    }

    rows = tables(markdown(one, costs=costs, timed_on="cpu (2 threads)"))["Size and speed"]

    head = ["network", "width", "depth", "size", "parameters (M)", "multiply-adds (G)"]
    assert [[*row.values()] for row in rows] == [
        ["U-Net", "4", "3", "64x64", "1.235", "9.877", "51.2"],
        ["UNeXt", "4", "3", "64x64", "0.001", "0.002", "-"],
        ["my_package:net", "7", "3", "64x64", "-", "-", "-"],
    ]
    assert [*rows[0]] == [*head, "images/s, bare network, cpu (2 threads)"]
    assert [*tables(markdown(one))["Size and speed"][0]] == [*head, "images/s"]


def test_every_row_has_as_many_cells_as_its_head_whatever_names_hold(contestant):
    odd = dataclasses.replace(contestant(), title="U-Net (a|b $x$) [run*_*]")
    text = markdown(contest(odd, contestant("unext")), published="CVC-ClinicDB")

    titles = [row["network"] for rows in tables(text).values() for row in rows]
    assert titles.count(r"U-Net (a\|b $x$) [run*_*]") == 5


@pytest.mark.parametrize(("folds", "words"), [((0, 1, 2), "all 3 folds"), ((1, 2), "folds 1, 2"), ((2,), "fold 2")])
def test_folds_are_named(folds, words):
    assert name_folds(folds, 3) == words


# CSV ----------------------------------------------------------------------------------------------------------------


def test_the_csv_holds_every_figure_to_the_last_digit(contestant):
    scores = fold_scores((0, 2), plus=15)
    scores[0][0] = score("case00", 0, fp=0, fn=0)
    unet, unext = contestant(), contestant("unext", scores)
    one, another = contest(unet, unext, reference=unet), contest(contestant(), recipe="best")

    rows = iter(csv_rows(one, another))

    for each in (one, another):
        for table in each.tables:
            for standing in table.standings:
                for metric in PAPER_METRICS:
                    row, mean, test = next(rows), standing.means[metric], standing.tests.get(metric)
                    assert (row["recipe"], row["split"], row["metric"]) == (each.recipe, "random", metric)
                    assert (row["size"], row["label"]) == (table.size, "foreground")
                    assert [*map(int, row["fold_set"].split())] == [*table.folds]
                    assert [*map(int, row["folds"].split())] == [*standing.folds]
                    assert row["complete"] == str(standing.is_complete)
                    assert (row["run"], row["network"]) == (
                        standing.contestant.run.name,
                        standing.contestant.title,
                    )
                    counted = (int(row["epochs"]), int(row["cases"]), int(row["without_label"]))
                    assert counted == (12, standing.n_cases, standing.n_empty)
                    figures = [float(row[name] or "nan") for name in CSV_NUMBERS]
                    assert figures == pytest.approx(
                        [
                            *(mean.mean, mean.sd, mean.low, mean.high, mean.n_left_out, standing.pooled[metric]),
                            *((test.mean_difference, test.p) if test else (math.nan, math.nan)),
                            standing.adjusted.get(metric, math.nan),
                        ],
                        rel=0,
                        abs=0,
                        nan_ok=True,
                    )
                    tested = (row["tested_cases"], row["tested_groups"])
                    assert tested == ((str(test.n_cases), str(test.n_groups)) if test else ("", ""))
    assert next(rows, None) is None


def test_undefined_figures_are_blank_in_the_csv(contestant):
    nothing = {0: [score("a", 0, fp=0, fn=5), score("b", 0, fp=0, fn=0)]}

    row = next(row for row in csv_rows(contest(contestant(scores=nothing))) if row["metric"] == "precision")

    assert {row[name] for name in CSV_NUMBERS if name != "left_out"} == {""}
    assert (row["left_out"], row["without_label"], row["complete"]) == ("2", "1", "False")


# Chart --------------------------------------------------------------------------------------------------------------


def lines_of(panel, marker):
    return [line for line in panel.get_lines() if line.get_marker() == marker]


def test_the_chart_shows_means_with_their_intervals_a_panel_a_metric(contestant):
    one = contest(contestant(), contestant("unext", fold_scores((0,), plus=9)), inflated="inflated")
    table = one.tables[0]

    figure = draw_chart(one, table, None)

    assert [panel.get_title() for panel in figure.axes] == ["Dice", "IoU", "Precision", "Sensitivity"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["U-Net", "UNeXt\n(incomplete)"]
    assert figure.axes[0].yaxis_inverted()
    for panel, metric in zip(figure.axes, PAPER_METRICS, strict=True):
        [dots] = lines_of(panel, "o")
        means = [standing.means[metric] for standing in table.standings]
        assert [*dots.get_xdata()] == [100 * mean.mean for mean in means]
        assert [[*line.get_xdata()] for line in lines_of(panel, "None")] == [
            [100 * mean.low, 100 * mean.high] for mean in means
        ]
    assert figure.get_suptitle() == (
        "recipe paper, split random (inflated), foreground: means over cases, all 3 folds, native size"
    )


def test_the_papers_figures_are_drawn_where_they_are_of_that_size(contestant):
    one = contest(contestant("my_package:net"), contestant("unext"))
    native, *_, at_input = [table for table in one.tables if len(table.folds) == 3]

    figure = draw_chart(one, at_input, "CVC-ClinicDB")

    for i, panel in enumerate(figure.axes):
        [diamonds] = lines_of(panel, "D")
        assert [*zip(diamonds.get_xdata(), diamonds.get_ydata(), strict=True)] == [
            (PUBLISHED["CVC-ClinicDB"]["unext"][i], 1)
        ]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["here, with 95 % interval", "the paper, CVC-ClinicDB"]
    assert not any(lines_of(panel, "D") for panel in draw_chart(one, native, "CVC-ClinicDB").axes)
    strangers = contest(contestant("my_package:net"))
    assert not any(lines_of(panel, "D") for panel in draw_chart(strangers, strangers.tables[-1], "ISIC2018").axes)


def test_undefined_means_and_odd_names_are_drawn_without_complaint(contestant, tmp_path):
    nothing = contestant(scores={0: [score("a", 0, fp=0, fn=5)]})
    one = contest(dataclasses.replace(nothing, title="U-Net ($x) [a$b_]"), recipe="b$st")
    path = tmp_path / "new" / "chart.png"

    save_chart(path, one, one.tables[0], None)

    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert (width, height) == (4 * 3.2 * 150, round(1.95 * 150))
