"""A table as CSV to compute with, every digit, and as LaTeX for a paper."""

import csv
import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

Cell = str | int | float | None

LATEX_BEGINS = (
    "% Needs \\usepackage{booktabs} and, for tables over several pages, \\usepackage{longtable}.\n"
    "% Names in other scripts than Latin need LuaLaTeX or XeLaTeX.\n"
)

LATEX_SIZE = ("\\footnotesize", "\\setlength{\\tabcolsep}{3pt}")
"""So that nine columns fit into a page of plain article."""

LATEX_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a row's end it would be an option of it, as would a star
    "]": "{]}",
    "*": "{*}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Args:
        name: In the CSV; empty where it is not there.
        title: In LaTeX; empty where it is not there.
        pattern: How LaTeX gives a number.
    """

    name: str = ""
    title: str = ""
    pattern: str = "{}"

    def text(self, value: Cell) -> str:
        """What LaTeX gives, a dash for what is undefined."""
        if isinstance(value, str):
            return escape_latex(value)
        return "--" if value is None or math.isnan(value) else escape_latex(self.pattern.format(value))


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table: a cell a column in each row. ``is_long`` sets it over several pages."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_long: bool = False

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of the table {self.name} has not {len(self.columns)} cells")


def format_csv(table: ReportTable) -> str:
    """A table as CSV; what is undefined is blank."""
    kept = [i for i, column in enumerate(table.columns) if column.name]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([table.columns[i].name for i in kept])
    writer.writerows([_plain(row[i]) for i in kept] for row in table.rows)
    return text.getvalue()


def format_latex(table: ReportTable) -> str:
    """A table as LaTeX with the rules of booktabs, to be included with ``\\input``."""
    kept = [i for i, column in enumerate(table.columns) if column.title]
    head = _latex_row(escape_latex(table.columns[i].title) for i in kept)
    rows = [_latex_row(table.columns[i].text(row[i]) for i in kept) for row in table.rows]
    shape = "".join("l" if _is_text(table, i) else "r" for i in kept)
    caption = f"\\caption{{{escape_latex(table.caption)}}}\\label{{tab:{table.name}}}"
    if table.is_long:
        head_lines = ["\\toprule", head, "\\midrule"]
        lines = [
            *("\\begingroup", *LATEX_SIZE),
            f"\\begin{{longtable}}{{{shape}}}",
            f"{caption}\\\\",
            *(*head_lines, "\\endfirsthead", *head_lines, "\\endhead", "\\bottomrule", "\\endfoot"),
            *rows,
            *("\\end{longtable}", "\\endgroup"),
        ]
    else:
        lines = [
            *("\\begin{table}", "\\centering", *LATEX_SIZE, caption, f"\\begin{{tabular}}{{{shape}}}"),
            *("\\toprule", head, "\\midrule", *rows, "\\bottomrule"),
            *("\\end{tabular}", "\\end{table}"),
        ]
    return LATEX_BEGINS + "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Any text as LaTeX that prints it, in one line."""
    one_line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text)
    return "".join(LATEX_CHARACTERS.get(character, character) for character in one_line)


def _plain(value: Cell) -> Cell:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _latex_row(cells: Iterable[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _is_text(table: ReportTable, i: int) -> bool:
    return any(isinstance(row[i], str) for row in table.rows)
