import csv
import math
import re
import shutil
import subprocess

import pytest

from iaunet.errors import WorkspaceError
from iaunet.inference.report.tables import TABLE_NAMES, make_tables, write_tables


def read(folder, name):
    """The rows of a written table by column."""
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def test_every_table_is_written_as_csv_and_as_latex(tmp_path, facts):
    written = write_tables(tmp_path / "tables", facts)

    names = ["scores", "runs", "folds", "cases", "random_against_grouped", "detection", "calibration", "reliability"]
    names += ["temperatures", "suspects", "test"]
    assert names == [*TABLE_NAMES]
    assert [path.name for path in written] == [f"{name}.{end}" for name in names for end in ("csv", "tex")]
    assert sorted(written) == sorted((tmp_path / "tables").iterdir())
    assert all(path.read_text(encoding="utf-8").endswith("\n") for path in written)


def test_what_there_are_no_facts_for_is_left_out(samples, make_plan):
    tables = make_tables(samples.make_facts(make_plan, **samples.BARE))

    assert [table.name for table in tables] == ["scores", "runs", "folds", "cases"]


def test_scores_are_those_of_the_facts_with_and_without_empty_cases(tmp_path, facts):
    write_tables(tmp_path, facts)

    label = facts.scored.summary.labels["polyp"]
    rows = {(row["cases"], row["metric"]): row for row in read(tmp_path, "scores")}
    dice = rows["all", "dice"]
    assert [float(dice[column]) for column in ("mean", "low", "high", "sd", "pooled")] == [
        label.all_cases["dice"].mean,
        label.all_cases["dice"].low,
        label.all_cases["dice"].high,
        label.all_cases["dice"].sd,
        label.pooled["dice"],
    ]
    assert float(rows["with the label", "dice"]["mean"]) == label.with_truth["dice"].mean
    assert rows["with the label", "dice"]["pooled"] == ""
    assert (rows["all", "hd95"]["low"], rows["all", "hd95"]["n_left_out"]) == ("", "2")
    latex = (tmp_path / "scores.tex").read_text()
    mean, low, high = (getattr(label.all_cases["dice"], name) for name in ("mean", "low", "high"))
    assert f"polyp & all & Dice & {mean:.3f} ({low:.3f} to {high:.3f})" in latex
    assert "polyp & all & HD95 (px) & 3.50 & -- & -- & 2 \\\\" in latex
    assert "held-out cases; SD over folds, n cases where it is defined}" in latex


def test_several_labels_have_a_mean_and_columns_of_their_own(tmp_path, samples, make_plan):
    facts = samples.make_facts(make_plan, labels=("core", "rim_1"))

    write_tables(tmp_path, facts)

    last = read(tmp_path, "scores")[-1]
    assert (last["label"], last["metric"]) == ("mean over labels", "dice")
    assert float(last["mean"]) == facts.scored.overall.mean
    assert {"dice_core", "dice_rim_1"} <= read(tmp_path, "folds")[0].keys()
    assert "Run & Fold & Cases & Dice & core & rim\\_1 \\\\" in (tmp_path / "folds.tex").read_text()
    assert len(read(tmp_path, "cases")) == 4 * 2


def test_cases_have_a_row_each_with_what_was_expected_of_them(tmp_path, facts):
    write_tables(tmp_path, facts)

    rows = {row["case"]: row for row in read(tmp_path, "cases")}
    assert [*rows] == ["a", "b", "c", "d"]
    assert float(rows["a"]["dice"]) == 16 / 18
    assert (rows["a"]["fold"], rows["a"]["group"], rows["a"]["tp"], rows["a"]["fn"]) == ("0", "x", "8", "2")
    assert (rows["c"]["flagged"], rows["a"]["flagged"], rows["c"]["expected_dice"]) == ("1", "0", "0.25")
    assert (rows["d"]["suspect"], rows["d"]["precision"]) == ("not marked", "")
    latex = (tmp_path / "cases.tex").read_text()
    assert "Case & Fold & Group & Dice & Precision & Sensitivity & HD95 & Expected & Flag \\\\" in latex
    assert "d & 1 & y & 1.000 & -- & -- & -- & 0.250 &  \\\\" in latex


def test_detection_has_a_row_for_all_lesions_and_one_a_size(tmp_path, facts):
    write_tables(tmp_path, facts)

    everything, small, large = read(tmp_path, "detection")
    assert (everything["size"], everything["n_lesions"], everything["n_found"], everything["n_missed"]) == (
        *("all", "4"),
        *("3", "1"),
    )
    assert (everything["sensitivity"], everything["n_empty_cases_with_alarms"]) == ("0.75", "1")
    assert (small["area_above_px"], small["area_at_most_px"], large["area_at_most_px"]) == ("0", "5", "")
    assert (large["precision"], small["f1"]) == ("1.0", "0.5")


def test_calibration_leakage_temperatures_and_suspects_hold_the_values_of_the_facts(tmp_path, facts):
    write_tables(tmp_path, facts)

    assert [(row["probabilities"], row["ece"]) for row in read(tmp_path, "calibration")] == [
        ("as they come", "0.0833"),
        ("tempered", "0.0094"),
    ]
    bins = read(tmp_path, "reliability")
    assert [row["frequency"] for row in bins] == ["0.1", "", "0.6", "0.16", "", "0.8"]
    assert [float(row["bin_low"]) for row in bins[:3]] == pytest.approx([0, 1 / 3, 2 / 3])
    assert [row["temperature"] for row in read(tmp_path, "temperatures")] == ["1.5", "1.25"]
    [pair] = read(tmp_path, "random_against_grouped")
    assert (pair["random"], pair["grouped_low"], pair["difference_high"]) == ("0.75", "0.4", "0.3")
    assert "+0.250 (+0.100 to +0.300)" in (tmp_path / "random_against_grouped.tex").read_text()
    [suspect] = read(tmp_path, "suspects")
    assert (suspect["case"], suspect["kind"], suspect["score"]) == ("d", "not marked", "0.75")


def test_no_table_says_nan_or_none(tmp_path, facts):
    for path in write_tables(tmp_path, facts):
        assert not re.search(r"\b(nan|None)\b", path.read_text(encoding="utf-8"))


def test_a_run_without_scores_and_undefined_means_have_no_row_or_a_dash(samples, make_plan):
    unscored = samples.make_run(make_plan(), ("polyp",), name="new", folds=(), cases={}, summary=None, overall=None)
    facts = samples.make_facts(make_plan)
    tables = {table.name: table for table in make_tables(samples.make_facts(make_plan, runs=(*facts.runs, unscored)))}

    assert [row[0] for row in tables["runs"].rows] == [samples.RUN]
    assert {row[0] for row in tables["folds"].rows} == {samples.RUN}
    distances = next(row for row in tables["scores"].rows if row[2] == "hd95")
    assert math.isnan(distances[5])


def test_tables_fit_on_a_page_of_plain_article(tmp_path, samples, make_plan):
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        pytest.skip("there is no pdflatex")
    facts = samples.make_facts(make_plan, labels=("tumour core", "enhancing rim"))
    written = write_tables(tmp_path, facts)
    inputs = "\n".join(f"\\input{{{path.name}}}" for path in written if path.suffix == ".tex")
    packages = "\\documentclass{article}\\usepackage{booktabs,longtable}"
    (tmp_path / "all.tex").write_text(f"{packages}\\begin{{document}}\n{inputs}\n\\end{{document}}\n")

    for _ in range(2):
        subprocess.run([pdflatex, "-interaction=nonstopmode", "all.tex"], cwd=tmp_path, capture_output=True, check=True)

    assert re.findall(r"Overfull \\hbox.*", (tmp_path / "all.log").read_text(encoding="latin-1")) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path, facts):
    (tmp_path / "tables").write_text("in the way")

    with pytest.raises(WorkspaceError, match="tables"):
        write_tables(tmp_path / "tables", facts)
