"""The charts of a report as plain numbers in SVG units, for a template to draw."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from iaunet.inference.calibration import Reliability
from iaunet.inference.report.facts import CaseFacts
from iaunet.inference.report.runs import Curve

MOST_CURVE_POINTS = 200
MOST_DOTS = 2000
N_BARS = 20


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps values from ``low`` to ``high`` to SVG units from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        share = (value - self.low) / ((self.high - self.low) or 1)
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A line (``points``), a bar (``box``: x, y, width, height) or a dot (``dot``: x, y); ``kind`` is its class."""

    kind: str
    points: str = ""
    box: tuple[float, float, float, float] | None = None
    dot: tuple[float, float] | None = None
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with its axes; ``alt`` says in words what it shows. Ticks are (position, text)."""

    alt: str
    title: str
    width: float
    height: float
    shapes: tuple[Shape, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_title: str = ""
    y_title: str = ""
    legend: tuple[tuple[str, str], ...] = ()


WIDTH, HEIGHT = 420.0, 220.0
SQUARE = 260.0


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that divide a range into at most ``most`` parts."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * number, 10) for number in range(first, last + 1)]


def draw_loss(curves: Sequence[Curve]) -> Chart | None:
    """Training and validation loss over the epochs, a line a fold; None below two epochs."""
    series = {"": [curve.loss for curve in curves], "dashed": [curve.validation_loss for curve in curves]}
    return _draw_curves(curves, series, "Loss", "loss (BCE + Dice)", "the loss in training and validation")


def draw_validation_dice(curves: Sequence[Curve]) -> Chart | None:
    """The Dice of held-out rows over the epochs, a line a fold; None below two, or where it was not measured."""
    series = {"": [curve.validation_dice for curve in curves]}
    alt = "the Dice of held-out rows at the network's size"
    return _draw_curves(curves, series, "Validation Dice", "Dice at the network's size", alt, (0, 1))


def draw_reliability(before: Reliability, after: Reliability) -> Chart:
    """How often what was said with a probability was so, before and after temperatures."""
    across, up = _scales((0, 1), (0, 1), SQUARE, SQUARE)
    shapes = [Shape(kind="diagonal", points=_points(across, up, [(0, 0), (1, 1)]))]
    for kind, table in (("before", before), ("after", after)):
        known = [
            (said, was, pixels)
            for said, was, pixels in zip(table.probability, table.frequency, table.pixels, strict=True)
            if said is not None and was is not None
        ]
        shapes.append(Shape(kind=kind, points=_points(across, up, [(said, was) for said, was, _ in known])))
        shapes += [
            Shape(kind=kind, dot=(across(said), up(was)), title=f"said {said:.3f}, was {was:.3f}, {pixels:,} pixels")
            for said, was, pixels in known
        ]
    return Chart(
        alt=f"Reliability: expected calibration error {before.ece:.4f} before and {after.ece:.4f} after temperatures",
        title="Reliability",
        width=SQUARE,
        height=SQUARE,
        shapes=tuple(shapes),
        x_ticks=_ticks(across),
        y_ticks=_ticks(up),
        x_title="probability said",
        y_title="share that was so",
        legend=(("before", "before"), ("after", "after"), ("diagonal", "perfect")),
    )


def draw_expected(cases: Sequence[CaseFacts], flag_below: float | None) -> Chart | None:
    """The expected Dice of cases against the true one; None where there is none."""
    known = [(case.expected_dice, case) for case in cases if case.expected_dice is not None]
    if not known:
        return None
    across, up = _scales((0, 1), (0, 1), SQUARE, SQUARE)
    step = -(-len(known) // MOST_DOTS)
    dots = [
        Shape(
            kind="flagged" if case.flagged else "plain",
            dot=(across(expected), up(case.dice)),
            title=f"{case.name}: expected {expected:.3f}, true {case.dice:.3f}",
        )
        for expected, case in known[::step]
    ]
    lines = [Shape(kind="diagonal", points=_points(across, up, [(0, 0), (1, 1)]))]
    if flag_below is not None:
        lines.append(Shape(kind="limit", points=_points(across, up, [(flag_below, 0), (flag_below, 1)])))
    return Chart(
        alt=f"Expected against true Dice of {len(dots)} cases",
        title="Expected against true Dice",
        width=SQUARE,
        height=SQUARE,
        shapes=(*lines, *dots),
        x_ticks=_ticks(across),
        y_ticks=_ticks(up),
        x_title="expected Dice",
        y_title="true Dice",
        legend=(("flagged", "flagged"), ("plain", "not flagged")),
    )


def draw_histogram(dice: Sequence[float]) -> Chart:
    """How the Dice of cases is spread."""
    counts, edges = np.histogram(dice, N_BARS, (0, 1))
    across, up = _scales((0, 1), (0, float(counts.max())), WIDTH, HEIGHT)
    bars = []
    for count, left, right in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        x, width, y = across(left) + 1, WIDTH / N_BARS - 2, up(count)
        bars.append(
            Shape(
                kind="bar", box=(x, y, width, round(HEIGHT - y, 1)), title=f"{left:.2f} to {right:.2f}: {count} cases"
            )
        )
    median = float(np.median(dice))
    line = Shape(kind="limit", points=_points(across, up, [(median, 0), (median, up.high)]))
    return Chart(
        alt=f"Histogram of the Dice of {len(dice)} cases: median {median:.3f}",
        title="Dice of the cases",
        width=WIDTH,
        height=HEIGHT,
        shapes=(*bars, line),
        x_ticks=_ticks(across),
        y_ticks=_ticks(up, whole=True),
        x_title="Dice",
        y_title="cases",
        legend=(("limit", f"median {median:.3f}"),),
    )


def _draw_curves(
    curves: Sequence[Curve],
    series: Mapping[str, Sequence[Sequence[float]]],
    title: str,
    y_title: str,
    alt: str,
    limits: tuple[float, float] | None = None,
) -> Chart | None:
    values = [value for lines in series.values() for line in lines for value in line if math.isfinite(value)]
    last = max((max(curve.epoch, default=1) for curve in curves), default=1)
    if not values or last < 2:
        return None
    across, up = _scales((1, last), limits or (0, max(values)), WIDTH, HEIGHT)
    shapes = [
        Shape(
            kind=f"fold fold-{_colour(curve.fold)} {dash}".strip(),
            points=_points(across, up, _thinned(zip(curve.epoch, line, strict=True))),
            title=f"fold {curve.fold}",
        )
        for dash, lines in series.items()
        for curve, line in zip(curves, lines, strict=True)
    ]
    return Chart(
        alt=f"{title}: {alt} over {last:.0f} epochs, a line for each of {len(curves)} folds",
        title=title,
        width=WIDTH,
        height=HEIGHT,
        shapes=tuple(shape for shape in shapes if shape.points),
        x_ticks=_ticks(across, whole=True),
        y_ticks=_ticks(up),
        x_title="epoch",
        y_title=y_title,
        legend=tuple((f"fold fold-{_colour(curve.fold)}", f"fold {curve.fold}") for curve in curves),
    )


def _colour(fold: str) -> str:
    """Which of the colours for folds a fold has."""
    return str(int(fold) % 6) if fold.isdecimal() else "all"


def _scales(x: tuple[float, float], y: tuple[float, float], width: float, height: float) -> tuple[Scale, Scale]:
    return Scale(low=x[0], high=x[1], start=0, end=width), Scale(low=y[0], high=y[1], start=height, end=0)


def _ticks(scale: Scale, whole: bool = False) -> tuple[tuple[float, str], ...]:
    values = ticks(scale.low, scale.high)
    return tuple((scale(value), f"{value:g}") for value in values if not whole or value == round(value))


def _thinned(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The finite points, so few that a page stays small; the last one is among them."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    step = -(-len(finite) // MOST_CURVE_POINTS) or 1
    return [*finite[::-1][::step]][::-1]


def _points(across: Scale, up: Scale, values: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{across(x):g},{up(y):g}" for x, y in values)
