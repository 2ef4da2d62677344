import csv
import io
import math
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.inference.report.table_formats import Column, ReportTable, escape_latex, format_csv, format_latex

NASTY = r"50 % of a_b & c #1 $x$ {y} \z ~ ^ <p> | [q] *r* é"
COLUMNS = (Column(name="case", title="Case"), Column(name="dice", title="Dice", pattern="{:.3f}"))


def make_table(rows, columns=COLUMNS, **fields):
    return ReportTable(name="toy", caption=NASTY, columns=columns, rows=tuple(rows), **fields)


def latex_cells(text):
    """The cells of the rows below the head, as LaTeX has them."""
    body = text.split("\\endfoot\n" if "\\endfoot" in text else "\\midrule\n")[1]
    rows = [line.removesuffix(" \\\\") for line in body.splitlines() if line.endswith(" \\\\")]
    return [row.split(" & ") for row in rows]


def test_csv_keeps_every_digit_and_leaves_blank_what_is_undefined():
    table = make_table([("a", 1 / 3), ('b, "c"\nd', math.nan), ("e", None)])

    rows = [*csv.reader(io.StringIO(format_csv(table), newline=""))]

    assert rows == [["case", "dice"], ["a", repr(1 / 3)], ['b, "c"\nd', ""], ["e", ""]]


def test_latex_rounds_and_has_a_dash_for_what_is_undefined():
    text = format_latex(make_table([("a", 2 / 3), ("b", math.nan), ("c", None)]))

    assert latex_cells(text) == [["a", "0.667"], ["b", "--"], ["c", "--"]]
    assert "\\begin{tabular}{lr}" in text
    assert "Case & Dice \\\\" in text


def test_columns_are_where_they_have_a_name_or_a_title():
    columns = Column(name="low"), Column(title="Low", pattern="{:.1f}")
    table = make_table([(0.25, 0.25)], columns)

    assert format_csv(table) == "low\n0.25\n"
    assert latex_cells(format_latex(table)) == [["0.2"]]


def test_what_latex_takes_for_commands_is_escaped():
    assert escape_latex(NASTY) == (
        r"50 \% of a\_b \& c \#1 \$x\$ \{y\} \textbackslash{}z \textasciitilde{} \textasciicircum{} "
        r"\textless{}p\textgreater{} \textbar{} {[}q{]} {*}r{*} é"
    )
    assert escape_latex("two\nlines\x00\tand more") == "two lines and more"


@given(st.text())
def test_whatever_text_leaves_braces_balanced_and_nothing_special_bare(text):
    escaped = escape_latex(text)

    bare = re.sub(r"\\[{}$&#_%]|\\text\w+\{\}|\{[*\[\]]\}", "", escaped)
    assert not re.search(r"[\\{}$&#_%^~\n]", bare)


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="a row of the table toy has not 2 cells"):
        make_table([("a",)])


@pytest.mark.parametrize("is_long", [False, True])
def test_latex_is_a_whole_table_with_the_rules_of_booktabs(is_long):
    text = format_latex(make_table([(NASTY, 0.5)], is_long=is_long))

    rules = [text.count(f"\\{rule}") for rule in ("toprule", "midrule", "bottomrule")]
    assert rules == ([2, 2, 1] if is_long else [1, 1, 1])
    begun = re.findall(r"\\begin\{(\w+)\}", text)
    assert begun[::-1] == re.findall(r"\\end\{(\w+)\}", text)
    assert "\\label{tab:toy}" in text
    [[name, dice]] = latex_cells(text)
    assert (name, dice) == (escape_latex(NASTY), "0.500")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_pdflatex_compiles_a_table_of_nasty_names(tmp_path):
    rows = [(character + NASTY + character, 0.5) for character in "*[]&%$#_{}~^\\|<>-'`\""]
    for name, is_long in (("short", False), ("long", True)):
        (tmp_path / f"{name}.tex").write_text(format_latex(make_table(rows, is_long=is_long)), encoding="utf-8")
    document = (
        "\\documentclass{article}\\usepackage{booktabs,longtable}\\begin{document}"
        "\\input{short}\\input{long}\\end{document}"
    )
    (tmp_path / "all.tex").write_text(document)

    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )

    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 5000
