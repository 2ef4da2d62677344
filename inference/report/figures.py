"""The figures of a report for a paper: one column wide (85 mm), 300 dpi, in colours that everybody can tell apart."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from iaunet.inference.crossval import Summary
from iaunet.inference.report.facts import ReportFacts
from iaunet.inference.report.runs import Curve
from iaunet.storage import make_folder, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from iaunet.detection import Detection
    from iaunet.inference.calibration import Reliability

Value = TypeVar("Value")

MM = 1 / 25.4
WIDTH_MM, DPI = 85, 300

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"
"""Of the palette of Okabe and Ito, which people with any colour vision tell apart."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.0,
    "lines.markersize": 4,
    "legend.frameon": False,
    "text.parse_math": False,
}

LONGEST_NAME = 24
"""In characters; longer names are cut."""

MOST_POINTS = 2000
"""So many cases are drawn as points at most: more are a blot."""


def draw_figures(folder: Path, facts: ReportFacts) -> tuple[Path, ...]:
    """Draw the figures of a report that there are facts for, as PNG.

    Args:
        folder: Of the figures; made if it is missing.
        facts: Of the report.

    Returns:
        The files that were written.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    import matplotlib

    make_folder(folder)
    written = []
    for name, draw in FIGURES.items():
        with matplotlib.rc_context(STYLE):
            figure = draw(facts)
            if figure is not None:
                written.append(folder / f"{name}.png")
                with replacing(written[-1]) as temporary:
                    figure.savefig(temporary, format="png", dpi=DPI)
    return tuple(written)


def draw_dice_by_fold(facts: ReportFacts) -> "Figure | None":
    """The Dice of each held-out case, a column a fold, with quartiles."""
    folds = sorted({case.fold for case in facts.cases})
    if not folds:
        return None
    figure = _new_figure(55)
    axes = figure.subplots()
    by_fold = [[case.dice for case in facts.cases if case.fold == fold] for fold in folds]
    for position, values in enumerate(by_fold):
        shown = _thinned(values, MOST_POINTS)
        axes.plot(position + _spread(len(shown)), shown, "o", color=BLUE, markersize=2, alpha=0.35, markeredgewidth=0)
    axes.boxplot(
        by_fold,
        positions=range(len(folds)),
        widths=0.5,
        showfliers=False,
        medianprops={"color": ORANGE, "linewidth": 1.5},
    )
    axes.set_xticks(range(len(folds)), [f"{fold}\nn = {len(of)}" for fold, of in zip(folds, by_fold, strict=True)])
    axes.set_xlabel("fold")
    axes.set_ylabel("Dice of a held-out case")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(visible=False, axis="x")
    return figure


def draw_reliability(facts: ReportFacts) -> "Figure | None":
    """How often what was said with a probability was so, before and after tempering; below, how often it was said."""
    if facts.calibration is None:
        return None
    from matplotlib.ticker import NullFormatter

    figure = _new_figure(85)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], "--", color=GREY, linewidth=0.8)
    sides = (
        ("as they come", facts.calibration.before, ORANGE, "s"),
        ("tempered", facts.calibration.after, BLUE, "o"),
    )
    for title, reliability, colour, marker in sides:
        said, was_so = _known_bins(reliability)
        above.plot(said, was_so, marker=marker, color=colour, label=f"{title}, ECE {reliability.ece:.4f}")
        edges = np.linspace(0, 1, len(reliability.pixels) + 1)
        below.stairs(np.array(reliability.pixels) / max(sum(reliability.pixels), 1), edges, color=colour, alpha=0.8)
    above.set_ylabel("share that was so")
    above.set_ylim(-0.02, 1.02)
    figure.legend(loc="outside upper center")
    below.set_yscale("log")
    below.yaxis.set_major_formatter("{x:g}")  # the usual one writes powers as mathematics
    below.yaxis.set_minor_formatter(NullFormatter())
    below.set_ylabel("share of pixels")
    below.set_xlabel("probability that was said")
    below.set_xlim(-0.02, 1.02)
    return figure


def draw_expected_dice(facts: ReportFacts) -> "Figure | None":
    """The Dice of each held-out case against the Dice that was expected of it."""
    known = [(case.expected_dice, case.dice, case.flagged) for case in facts.cases if case.expected_dice is not None]
    if not known:
        return None
    figure = _new_figure(75)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=0.8)
    kinds = (("not flagged", False, BLUE, "o"), ("flagged", True, ORANGE, "^"))
    for title, flagged, colour, marker in kinds:
        points = _thinned([(expected, dice) for expected, dice, is_so in known if is_so == flagged], MOST_POINTS)
        expected, dice = [point[0] for point in points], [point[1] for point in points]
        axes.plot(expected, dice, marker, color=colour, markersize=3, alpha=0.5, markeredgewidth=0, label=title)
    if facts.expected_dice is not None and facts.expected_dice.flag_below is not None:
        axes.axvline(facts.expected_dice.flag_below, color=ORANGE, linewidth=0.8, linestyle=":")
    axes.set_xlabel("expected Dice")
    axes.set_ylabel("Dice")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(_correlation(facts))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_random_against_grouped(facts: ReportFacts) -> "Figure | None":
    """The mean Dice of networks with random and with grouped folds, with 95 % intervals."""
    if not facts.leakage:
        return None
    figure = _new_figure(22 + 12 * len(facts.leakage))
    axes = figure.subplots()
    for row, pair in enumerate(facts.leakage):
        for side, summary, colour, marker, title in (
            (-0.14, pair.random, ORANGE, "s", "random folds"),
            (0.14, pair.grouped, BLUE, "o", "grouped folds"),
        ):
            _draw_interval(axes, summary, row + side, colour)
            axes.plot(summary.mean, row + side, marker, color=colour, label=title if row == 0 else None)
    titles = [f"{_short(pair.network)}\n{_difference(pair.difference)}" for pair in facts.leakage]
    axes.set_yticks(range(len(titles)), titles, parse_math=False)
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.set_xlabel("mean Dice of held-out cases, with 95 % interval")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def draw_learning_curves(facts: ReportFacts) -> "Figure | None":
    """The loss and the validation Dice of the shown run, epoch by epoch: each fold, and their mean."""
    curves = [curve for curve in facts.shown.curves if curve.epoch]
    if not curves:
        return None
    from matplotlib.ticker import MaxNLocator

    figure = _new_figure(85)
    above, below = figure.subplots(2, 1, sharex=True)
    _draw_curves(above, curves, lambda curve: curve.loss, BLUE, "training")
    _draw_curves(above, curves, lambda curve: curve.validation_loss, ORANGE, "held-out cases", dashes="--")
    _draw_curves(below, curves, lambda curve: curve.validation_dice, ORANGE, "held-out cases", dashes="--")
    above.set_ylabel("loss")
    above.legend(loc="upper right")
    below.set_ylabel("Dice at the network's size")
    below.set_xlabel("epoch")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def draw_detection(facts: ReportFacts) -> "Figure | None":
    """Sensitivity and precision of detection by the size of lesions, a group of rows a label."""
    rows = [*_detection_rows(facts)]
    if not rows:
        return None
    figure = _new_figure(20 + 7 * len(rows))
    axes = figure.subplots()
    for values, colour, marker, title in (
        ([each.sensitivity for _, each in rows], BLUE, "o", "sensitivity"),
        ([each.precision for _, each in rows], ORANGE, "s", "precision"),
    ):
        axes.plot(values, range(len(rows)), marker, color=colour, label=title)
    names = [f"{name}: {each.found} of {each.lesions} found\n{_alarms(each)}" for name, each in rows]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _new_figure(height_mm: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_MM * MM, height_mm * MM), dpi=DPI, layout="constrained")


def _spread(n: int) -> NDArray[np.float64]:
    """Where points beside each other stand: always the same, evenly over 0.4."""
    golden = (math.sqrt(5) - 1) / 2
    return np.asarray((np.arange(n) * golden % 1 - 0.5) * 0.4)


def _thinned(values: Sequence[Value], most: int) -> Sequence[Value]:
    """Each nth value, so that there are no more than asked for."""
    return values[:: max(1, math.ceil(len(values) / most))]


def _difference(summary: Summary) -> str:
    interval = "" if math.isnan(summary.low) else f"\n({summary.low:+.3f} to {summary.high:+.3f})"
    return f"difference {summary.mean:+.3f}{interval}"


def _alarms(detection: "Detection") -> str:
    return f"{detection.false_alarms} false alarm{'s' if detection.false_alarms != 1 else ''}"


def _short(name: str) -> str:
    """A name that leaves room for the figure."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def _known_bins(reliability: "Reliability") -> tuple[list[float], list[float]]:
    """What was said and what was so, of the bins that are not empty."""
    pairs = zip(reliability.probability, reliability.frequency, strict=True)
    known = [(said, was_so) for said, was_so in pairs if said is not None and was_so is not None]
    return [said for said, _ in known], [was_so for _, was_so in known]


def _correlation(facts: ReportFacts) -> str:
    expected = facts.expected_dice
    if expected is None or expected.rank_correlation is None:
        return ""
    interval = ""
    if expected.low is not None and expected.high is not None:
        interval = f" ({expected.low:.2f} to {expected.high:.2f})"
    return f"rank correlation {expected.rank_correlation:.2f}{interval}"


def _draw_interval(axes: "Axes", summary: Summary, row: float, colour: str) -> None:
    axes.plot([summary.low, summary.high], [row, row], color=colour, linewidth=1.5, alpha=0.6)


def _draw_curves(
    axes: "Axes",
    curves: Sequence[Curve],
    values: Callable[[Curve], tuple[float, ...]],
    colour: str,
    title: str,
    dashes: str = "-",
) -> None:
    """Each fold thin, the mean of those that got as far thick; an only epoch as points."""
    longest = max(len(curve.epoch) for curve in curves)
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve.epoch)] = values(curve)
    measured = ~np.isnan(table).all(axis=0)
    if not measured.any():
        return
    epochs = np.array(max((curve.epoch for curve in curves), key=len))
    for row in table:
        axes.plot(epochs, row, dashes, color=colour, linewidth=0.5, alpha=0.4)
    mean = np.nanmean(table[:, measured], axis=0)
    axes.plot(epochs[measured], mean, dashes, color=colour, label=title, marker="o" if len(mean) == 1 else "")


def _detection_rows(facts: ReportFacts) -> Iterator[tuple[str, "Detection"]]:
    """A row for all lesions of a label, and one for each size."""
    for label, summary in facts.detection.items():
        prefix = f"{_short(label)}, " if len(facts.detection) > 1 else ""
        yield f"{prefix}all", summary.overall
        for size in summary.sizes:
            yield f"{prefix}{size.name}", size.detection


FIGURES: Mapping[str, Callable[[ReportFacts], "Figure | None"]] = {
    "dice_by_fold": draw_dice_by_fold,
    "learning_curves": draw_learning_curves,
    "random_against_grouped": draw_random_against_grouped,
    "reliability": draw_reliability,
    "expected_dice": draw_expected_dice,
    "detection": draw_detection,
}
"""Each gives None where there are no facts for it."""
