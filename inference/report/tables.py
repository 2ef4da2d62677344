"""The tables of a report: scores, runs, folds, cases, detection, calibration and what else there is."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from iaunet.detection import Detection, DetectionSummary
from iaunet.inference.calibration import Reliability
from iaunet.inference.crossval import Summary
from iaunet.inference.report.facts import CaseFacts, ReportFacts
from iaunet.inference.report.table_formats import Cell, Column, ReportTable, format_csv, format_latex
from iaunet.inference.scores import ScoreSummary
from iaunet.metrics import METRICS, Counts
from iaunet.storage import make_folder, write_text

TABLE_NAMES = (
    *("scores", "runs", "folds", "cases", "random_against_grouped", "detection", "calibration", "reliability"),
    *("temperatures", "suspects", "test"),
)
"""Of all tables that a report may have."""

ALL_CASES, WITH_LABEL = "all", "with the label"


def write_tables(folder: Path, facts: ReportFacts) -> tuple[Path, ...]:
    """Write the tables of a report, each as CSV and as LaTeX, those without a row left out.

    Args:
        folder: Of the tables; made if it is missing.
        facts: Of the report.

    Returns:
        The files that were written.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    make_folder(folder)
    written = []
    for table in make_tables(facts):
        for ending, text in (("csv", format_csv(table)), ("tex", format_latex(table))):
            written.append(folder / f"{table.name}.{ending}")
            write_text(written[-1], text)
    return tuple(written)


def make_tables(facts: ReportFacts) -> list[ReportTable]:
    """The tables of a report that have a row at least."""
    tables = [
        _scores(
            "scores", f"Scores of {facts.scored.title} on held-out cases", facts.scored.summary, facts.scored.overall
        ),
        _runs(facts),
        _folds(facts),
        _cases(facts),
        _leakage(facts),
        _detection(facts),
        _calibration(facts),
        _reliability(facts),
        _temperatures(facts),
        _suspects(facts),
    ]
    if facts.held_out is not None and facts.held_out.summary is not None:
        tables.append(_scores("test", "Scores on the held-out test set", facts.held_out.summary))
    return [table for table in tables if table.rows]


def _summary_columns(title: str = "Mean", name: str = "mean") -> tuple[Column, ...]:
    """The columns of `_of_summary`."""
    prefix = "" if name == "mean" else f"{name}_"
    return (
        *(Column(name=name), Column(name=f"{prefix}low"), Column(name=f"{prefix}high")),
        Column(title=f"{title} (95 % CI)"),
    )


def _of_summary(summary: Summary, pattern: str = "{:.3f}") -> tuple[Cell, ...]:
    """A mean and the ends of its interval, and what LaTeX makes of the three."""
    text = _text(summary.mean, pattern)
    if text and not math.isnan(summary.low):
        text += f" ({pattern.format(summary.low)} to {pattern.format(summary.high)})"
    return summary.mean, summary.low, summary.high, text


def _text(value: float | None, pattern: str) -> str | None:
    return None if value is None or math.isnan(value) else pattern.format(value)


def _scores(name: str, caption: str, summary: ScoreSummary, overall: Summary | None = None) -> ReportTable:
    """A row a label, metric, and whether cases without the label count; and the mean of the Dice over labels."""
    rows = [
        _score_row(summary, label, cases, metric)
        for label, of_label in summary.labels.items()
        for cases in (ALL_CASES, *([WITH_LABEL] if of_label.n_empty else []))
        for metric in METRICS
    ]
    if overall is not None and len(summary.labels) > 1:
        rows.append((*("mean over labels", ALL_CASES, "dice", "Dice"), *_numbers(overall, "{:.3f}", None)))
    has_empty = any(of_label.n_empty for of_label in summary.labels.values())
    columns = (
        *(Column(name="label", title="Label"), Column(name="cases", title="Cases" if has_empty else "")),
        *(Column(name="metric"), Column(title="Metric"), *_summary_columns()),
        *(Column(name="sd"), Column(title="SD")),
        *(Column(name="pooled"), Column(title="Pooled")),
        *(Column(name="n_defined", title="n"), Column(name="n_left_out")),
    )
    caption = f"{caption}; SD over {summary.sd_over}, n cases where it is defined"
    return ReportTable(name=name, caption=caption, columns=columns, rows=tuple(rows))


def _score_row(summary: ScoreSummary, label: str, cases: str, metric: str) -> tuple[Cell, ...]:
    of_label, about = summary.labels[label], METRICS[metric]
    summaries = of_label.all_cases if cases == ALL_CASES else of_label.with_truth
    pooled = of_label.pooled.get(metric) if cases == ALL_CASES else None
    title = f"{about.title} ({summary.distance_unit})" if metric == "hd95" else about.title
    return label, cases, metric, title, *_numbers(summaries[metric], about.pattern, pooled)


def _numbers(summary: Summary, pattern: str, pooled: float | None) -> tuple[Cell, ...]:
    return (
        *(*_of_summary(summary, pattern), summary.sd, _text(summary.sd, pattern)),
        *(pooled, _text(pooled, pattern), summary.n_defined, summary.n_left_out),
    )


def _runs(facts: ReportFacts) -> ReportTable:
    """A row a run and label."""
    rows = [
        (
            *(run.name, run.title, run.split, "yes" if run.inflated else "no", len(run.folds), run.n_folds),
            *(run.epochs, label, len(run.cases), *_of_summary(of_label.all_cases["dice"])),
        )
        for run in facts.runs
        if run.summary is not None
        for label, of_label in run.summary.labels.items()
    ]
    columns = (
        *(Column(name="run"), Column(name="network", title="Network"), Column(name="split", title="Split")),
        *(Column(name="inflated"), Column(name="folds", title="Folds"), Column(name="folds_of_split")),
        *(Column(name="epochs", title="Epochs"), Column(name="label", title="Label")),
        *(Column(name="n_cases", title="Cases"), *_summary_columns("Dice", name="dice")),
    )
    caption = "Dice of each run on the cases it held out, masks as they come"
    return ReportTable(name="runs", caption=caption, columns=columns, rows=tuple(rows))


def _folds(facts: ReportFacts) -> ReportTable:
    """A row a fold of each run."""
    scored = [run for run in facts.runs if run.folds]
    labels = [*facts.scored.summary.labels]
    rows = [
        (run.name, fold.fold, fold.n_cases, fold.dice, *(fold.labels.get(label) for label in labels))
        for run in scored
        for fold in run.folds
    ]
    columns = (
        *(Column(name="run", title="Run"), Column(name="fold", title="Fold"), Column(name="n_cases", title="Cases")),
        Column(name="dice", title="Dice", pattern="{:.3f}"),
        *(_label_column(label, len(labels)) for label in labels),
    )
    caption = "Mean Dice of the cases that each fold held out, masks as they come"
    return ReportTable(name="folds", caption=caption, columns=columns, rows=tuple(rows))


def _label_column(label: str, n_labels: int) -> Column:
    """Of one label's Dice; it is the mean where there is but one, which LaTeX does not say twice."""
    return Column(name=f"dice_{label}", title=label if n_labels > 1 else "", pattern="{:.3f}")


def _cases(facts: ReportFacts) -> ReportTable:
    """A row a case and label."""
    rows = [_case_row(case, label) for case in facts.cases for label in case.labels]
    is_expected = any(case.expected_dice is not None for case in facts.cases)
    columns = (
        *(Column(name="case", title="Case"), Column(name="fold", title="Fold"), Column(name="group", title="Group")),
        Column(name="label", title="Label" if len(facts.scored.summary.labels) > 1 else ""),
        *(_metric_column(name) for name in METRICS),
        *(Column(name=field.name) for field in dataclasses.fields(Counts)),
        Column(name="expected_dice", title="Expected" if is_expected else "", pattern="{:.3f}"),
        *(Column(name="flagged"), Column(title="Flag" if is_expected else ""), Column(name="suspect")),
    )
    unit = facts.scored.summary.distance_unit
    caption = f"Scores of each held-out case; HD95 in {unit}"
    return ReportTable(name="cases", caption=caption, columns=columns, rows=tuple(rows), is_long=True)


def _case_row(case: CaseFacts, label: str) -> tuple[Cell, ...]:
    score = case.labels[label]
    whose: tuple[Cell, ...] = case.name, case.fold, case.group, label
    counts = dataclasses.astuple(score.counts)
    flagged = "yes" if case.flagged else ""
    metrics = (score.metrics[name] for name in METRICS)
    return (*whose, *metrics, *counts, case.expected_dice, int(case.flagged), flagged, case.suspect)


def _metric_column(name: str) -> Column:
    """LaTeX gives those that fit on a page."""
    shown = name in ("dice", "precision", "sensitivity", "hd95")
    return Column(name=name, title=METRICS[name].title if shown else "", pattern=METRICS[name].pattern)


def _leakage(facts: ReportFacts) -> ReportTable:
    """A row a pair of runs that differ by the split alone."""
    rows = [
        (
            *(pair.network, pair.recipe, pair.random_run, pair.grouped_run, pair.n_cases),
            *(*_of_summary(pair.random), *_of_summary(pair.grouped), *_of_summary(pair.difference, "{:+.3f}")),
        )
        for pair in facts.leakage
    ]
    columns = (
        *(Column(name="network", title="Network"), Column(name="recipe")),
        *(Column(name="random_run"), Column(name="grouped_run"), Column(name="n_cases", title="Cases")),
        *_summary_columns("Random", name="random"),
        *_summary_columns("Grouped", name="grouped"),
        *_summary_columns("Difference", name="difference"),
    )
    caption = "Dice with random and with grouped folds: random folds share groups between training and validation"
    return ReportTable(name="random_against_grouped", caption=caption, columns=columns, rows=tuple(rows))


def _detection(facts: ReportFacts) -> ReportTable:
    """A row a label and size class."""
    rows = [
        (
            *(label, size, above, most, each.lesions, each.found, each.missed, each.false_alarms),
            *(each.sensitivity, each.precision, each.f1, *empty),
        )
        for label, summary in facts.detection.items()
        for size, above, most, each, empty in _detections(summary)
    ]
    columns = (
        *(Column(name="label", title="Label"), Column(name="size", title="Lesions")),
        *(Column(name="area_above_px"), Column(name="area_at_most_px")),
        *(Column(name="n_lesions", title="n"), Column(name="n_found", title="Found")),
        *(Column(name="n_missed"), Column(name="n_false_alarms", title="False alarms")),
        *(Column(name=title.lower(), title=title, pattern="{:.3f}") for title in ("Sensitivity", "Precision", "F1")),
        *(Column(name="n_cases"), Column(name="n_empty_cases"), Column(name="n_empty_cases_with_alarms")),
    )
    caption = (
        f"Detection of lesions in the masks of {facts.shown.name} as they come; small, medium and large are thirds of "
        "the true lesions by area"
    )
    return ReportTable(name="detection", caption=caption, columns=columns, rows=tuple(rows))


def _detections(
    summary: DetectionSummary,
) -> Iterator[tuple[str, float | None, float | None, Detection, tuple[Cell, ...]]]:
    empty = summary.n_cases, summary.n_empty, summary.n_empty_with_alarms
    yield "all", None, None, summary.overall, empty
    for size in summary.sizes:
        yield size.name, size.above, size.most, size.detection, (None, None, None)


def _calibration(facts: ReportFacts) -> ReportTable:
    """A row before and one after tempering."""
    rows = [(when, each.ece, each.brier, each.log_loss) for when, each in _reliabilities(facts)]
    columns = (
        Column(name="probabilities", title="Probabilities"),
        Column(name="ece", title="ECE", pattern="{:.4f}"),
        Column(name="brier", title="Brier score", pattern="{:.4f}"),
        Column(name="log_loss", title="Log loss", pattern="{:.4f}"),
    )
    caption = "Calibration on pixels of held-out cases, each fold tempered as the other folds ask"
    return ReportTable(name="calibration", caption=caption, columns=columns, rows=tuple(rows))


def _reliability(facts: ReportFacts) -> ReportTable:
    """A row a bin of probabilities, before and after tempering."""
    rows = [
        (when, i / len(each.pixels), (i + 1) / len(each.pixels), *of_bin)
        for when, each in _reliabilities(facts)
        for i, of_bin in enumerate(zip(each.pixels, each.probability, each.frequency, strict=True))
    ]
    columns = (
        Column(name="probabilities", title="Probabilities"),
        Column(name="bin_low", title="From", pattern="{:.2f}"),
        Column(name="bin_high", title="To", pattern="{:.2f}"),
        Column(name="pixels", title="Pixels"),
        Column(name="mean_probability", title="Said", pattern="{:.3f}"),
        Column(name="frequency", title="Was so", pattern="{:.3f}"),
    )
    caption = "Reliability: how often what was said with a probability was so"
    return ReportTable(name="reliability", caption=caption, columns=columns, rows=tuple(rows))


def _reliabilities(facts: ReportFacts) -> Sequence[tuple[str, Reliability]]:
    if facts.calibration is None:
        return []
    return [("as they come", facts.calibration.before), ("tempered", facts.calibration.after)]


def _temperatures(facts: ReportFacts) -> ReportTable:
    """A row a network."""
    by_run = facts.calibration.temperatures if facts.calibration else {}
    rows = [(run, fold, value) for run, folds in by_run.items() for fold, value in folds.items()]
    columns = (
        *(Column(name="run", title="Run"), Column(name="fold", title="Fold")),
        Column(name="temperature", title="Temperature", pattern="{:.3f}"),
    )
    caption = "What the logits of each network are divided by"
    return ReportTable(name="temperatures", caption=caption, columns=columns, rows=tuple(rows))


def _suspects(facts: ReportFacts) -> ReportTable:
    """A row a case whose mask should be looked at."""
    rows = [
        (each.name, each.fold, each.kind, each.score, each.not_marked, each.without_sign, each.marked)
        for each in facts.suspects
    ]
    columns = (
        *(Column(name="case", title="Case"), Column(name="fold", title="Fold"), Column(name="kind", title="Kind")),
        Column(name="score", title="Score", pattern="{:.2f}"),
        *(Column(name="not_marked_px", title="Not marked"), Column(name="without_sign_px", title="Without sign")),
        Column(name="marked_px", title="Marked"),
    )
    caption = "Cases whose masks confident predictions contradict most; pixels of the network's input"
    return ReportTable(name="suspects", caption=caption, columns=columns, rows=tuple(rows))
