"""Comparisons of sets of masks as text: lines for the screen, Markdown to read, CSV and JSON to compute with."""

import csv
import io
import math
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from iaunet.errors import PredictionError
from iaunet.inference.crossval import Summary
from iaunet.inference.scores import write_scores
from iaunet.inference.set_comparison import KAPPA, Difference, Match, SetComparison
from iaunet.inference.text_tables import aligned, csv_number, markdown_table, p_text
from iaunet.metrics import Metric
from iaunet.planners.planner import NO_GROUPS
from iaunet.records import to_json
from iaunet.storage import write_json, write_text
from iaunet.workspace import locked

CSV, MARKDOWN, SUMMARY, SCORES = "comparison.csv", "comparison.md", "summary.json", "scores"

CSV_COLUMNS = (
    *("what", "first", "second", "label", "metric", "mean", "sd", "low", "high", "cases", "left_out", "pooled"),
    *("p", "p_holm", "groups"),
)

ABREAST = 3
"""Matches in one table on the screen."""

ON_DIFFERENCES = (
    "Differences are of the same cases, with 95 % bootstrap intervals. p: two-sided sign-flip permutation test of the "
    "means of groups, or of cases where no groups are known; Holm: corrected over all rows of a metric. A p value says "
    "how surprising the difference would be by chance, not that two sets are equal where it is large."
)

ON_RATERS = (
    "Dice, IoU, kappa, HD95 and surface Dice are the same whichever of two sets is called the truth. Precision, "
    "sensitivity and specificity are of the first set with the second as truth: the other way round, precision and "
    "sensitivity change places. Of a case, raters among themselves are the mean over all two of them, a model with "
    "raters is the mean over the raters. A model that was trained on the masks of one of them agrees with that one "
    "more than with a stranger."
)


def describe_comparison(comparison: SetComparison) -> list[str]:
    """The lines that show a comparison on a screen."""
    lines = [f"compared   {_cases(comparison)}"]
    if comparison.raters:
        lines.append("truth      in precision, sensitivity and specificity the second set; the others are symmetric")
    for label in comparison.labels:
        for start in range(0, len(comparison.matches), ABREAST):
            matches = comparison.matches[start : start + ABREAST]
            lines += ["", *aligned(_mean_rows(comparison, label, matches))]
        rows = _difference_rows(comparison, label)
        if len(rows) > 1:
            lines += ["", *aligned(rows)]
    return lines


def format_comparison(comparison: SetComparison) -> str:
    """The whole comparison as Markdown."""
    title = "Raters" if comparison.raters else "Predictions"
    lines = [f"# {title} compared", "", f"Compared on {_cases(comparison)}. {_first_up(comparison.understood)}."]
    if comparison.raters:
        lines += ["", ON_RATERS]
    if comparison.differences:
        lines += ["", ON_DIFFERENCES]
    for label in comparison.labels:
        head, *rows = _mean_rows(comparison, label, comparison.matches)
        lines += ["", f"## {_first_up(label)}", "", *markdown_table(head, rows)]
        head, *rows = _difference_rows(comparison, label)
        if rows:
            lines += ["", *markdown_table(head, rows)]
    if comparison.failures:
        lines += ["", "## Left out", ""]
        lines += [f"- {fault.file}: {fault.what}: {fault.mend}" for fault in comparison.failures]
    return "\n".join(lines) + "\n"


def require_own_scores(folder: Path, names: Set[str]) -> None:
    """Refuse a folder with scores of masks that are not compared now: nobody could tell which belong together.

    Raises:
        PredictionError: There are such scores.
    """
    for path in sorted((folder / SCORES).rglob("*.csv")):
        if not {*path.relative_to(folder / SCORES).with_suffix("").parts} <= names:
            raise PredictionError(f"{path} is of another comparison: remove it, or give another folder with --output")


def save_comparison(folder: Path, comparison: SetComparison) -> None:
    """Write a comparison into a folder.

    ``scores/NAME.csv`` holds the scores of a set on the truth, ``scores/NAME/RATER.csv`` those on a rater;
    ``comparison.csv`` every figure, ``comparison.md`` the tables and ``summary.json`` all but the scores of cases.

    Raises:
        WorkspaceError: The folder cannot be written, or another process is writing there.
    """
    with locked(folder, "writing scores"):
        for (first, second), scores in comparison.scores.items():
            name = f"{first}/{second}.csv" if comparison.raters else f"{first}.csv"
            write_scores(folder / SCORES / name, scores)
        write_text(folder / CSV, format_figures(comparison))
        write_text(folder / MARKDOWN, format_comparison(comparison))
        write_json(folder / SUMMARY, to_json(_without_scores(comparison)))


def format_figures(comparison: SetComparison) -> str:
    """Every figure as CSV, a row a match or difference, label and metric; what is undefined is blank."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for match in comparison.matches:
        writer.writerows(_match_rows(match))
    for each in comparison.differences:
        about = ["difference", each.first, each.second, each.label, each.metric, *_figures(each.summary), ""]
        writer.writerow([*about, csv_number(each.test.p), csv_number(each.adjusted), each.test.n_groups])
    return text.getvalue()


def _match_rows(match: Match) -> Iterator[list[object]]:
    for label, means in match.means.items():
        for metric, summary in means.items():
            pooled = csv_number(match.pooled[label].get(metric, math.nan))
            yield ["score", match.first, match.second, label, metric, *_figures(summary), pooled, "", "", ""]


def _figures(summary: Summary) -> list[object]:
    numbers = map(csv_number, (summary.mean, summary.sd, summary.low, summary.high))
    return [*numbers, summary.n_defined, summary.n_left_out]


def _without_scores(comparison: SetComparison) -> dict[str, object]:
    return {name: value for name, value in vars(comparison).items() if name != "scores"}


def _cases(comparison: SetComparison) -> str:
    known = f"in {comparison.n_groups} groups" if comparison.n_groups else f"({NO_GROUPS})"
    return f"{len(comparison.cases)} cases that all sets have, {known}"


def _mean_rows(comparison: SetComparison, label: str, matches: Sequence[Match]) -> list[list[str]]:
    """A row a metric, a column a match."""
    titles = [_title(comparison, match) for match in matches]
    rows = [[f"{label}: mean [95 % interval]", *titles]]
    for name, metric in comparison.metrics.items():
        summaries = [match.means[label][name] for match in matches]
        rows.append([_named(comparison, name), *(_cell(metric, summary) for summary in summaries)])
    if comparison.raters:
        pooled = [match.pooled[label][KAPPA] for match in matches]
        rows.append(["Cohen's kappa, all pixels", *map(comparison.metrics[KAPPA].text, pooled)])
    return rows


def _difference_rows(comparison: SetComparison, label: str) -> list[list[str]]:
    """A row a difference, those of one pair together."""
    rows = [[f"{label}: difference", "metric", "mean", "95 % interval", "p", "p (Holm)", "cases"]]
    of_label = [each for each in comparison.differences if each.label == label]
    for pair in dict.fromkeys((each.first, each.second) for each in of_label):
        rows += [_difference_row(comparison, each) for each in of_label if (each.first, each.second) == pair]
    return rows


def _difference_row(comparison: SetComparison, each: Difference) -> list[str]:
    metric, summary = comparison.metrics[each.metric], each.summary
    return [
        f"{each.first} less {each.second}",
        _named(comparison, each.metric),
        _signed(metric, summary.mean),
        "-" if math.isnan(summary.low) else f"{_signed(metric, summary.low)} to {_signed(metric, summary.high)}",
        p_text(each.test.p),
        p_text(each.adjusted),
        str(each.test.n_cases),
    ]


def _title(comparison: SetComparison, match: Match) -> str:
    if not comparison.raters:
        return match.first
    link = "and" if match.first in comparison.raters else "on"
    return f"{match.first} {link} {match.second}"


def _named(comparison: SetComparison, name: str) -> str:
    title = comparison.metrics[name].title
    return f"{title} ({comparison.distance_unit})" if name == "hd95" else title


def _cell(metric: Metric, summary: Summary) -> str:
    interval = "" if math.isnan(summary.low) else f" [{metric.text(summary.low)}, {metric.text(summary.high)}]"
    left_out = f" ({summary.n_left_out} undefined)" if summary.n_left_out else ""
    return f"{metric.text(summary.mean)}{interval}{left_out}"


def _signed(metric: Metric, value: float) -> str:
    return metric.text(value) if math.isnan(value) or value < 0 else f"+{metric.text(value)}"


def _first_up(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
