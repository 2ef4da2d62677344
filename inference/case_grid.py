"""Grids of cases as in the paper's Figures 5 and 6: a column a case, below image and label a row a network."""

import dataclasses
import difflib
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iaunet.contours import LABEL_COLOURS, Colour
from iaunet.dataset import IGNORED
from iaunet.errors import PredictionError
from iaunet.inference.confusion import OUTCOME_COLOURS, draw_confusion
from iaunet.inference.overlay import Picture, to_picture
from iaunet.metrics import METRICS
from iaunet.storage import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 12
"""Cases in one grid: more would be too small to see on a page."""

NOT_TRAINED = "not trained"

DPI = 200

CELL_HEIGHT, WIDEST_CELL, NARROWEST_CELL = 320, 640, 160
"""Pixels. An image is as high as a cell, unless it would then be wider than the widest."""

GAP, LEGEND_HEIGHT = 8, 80
"""Pixels between two cells, and below them all."""

WIDEST_ROW_TITLE = 400
LEAST_WIDTH = 1150
"""Pixels that the legend needs."""

SIDE_STEP = 25
"""Sides of a figure are multiples of so many pixels: an eighth of an inch, which no rounding makes a pixel shorter."""

TEXT_POINTS, SCORE_POINTS = 9, 8
LINE_SPACING = 1.2
MOST_LINES = 3
"""A line of a title is broken into so many at most; a longer one loses its middle."""

BREAKS = " /_-.:"
"""A title is broken after one of these, if there is one in the second half of the line."""

ONLY_LABEL_COLOUR: Colour = (255, 255, 255)
IGNORED_COLOUR: Colour = (128, 128, 128)
EMPTY_COLOUR: Colour = (232, 232, 232)


@dataclass(frozen=True, kw_only=True, eq=False)
class GridColumn:
    """A case of a grid.

    Args:
        title: Stands above; may have several lines.
        image: (C, H, W), shown as `iaunet.inference.overlay.to_picture` does.
        truth: The true labels (H, W); `IGNORED` where they count nowhere.
        predictions: The predicted labels (H, W) by network; None, or no entry, where it is not trained.
        scores: The Dice of each prediction by network, in [0, 1], NaN where undefined.

    Raises:
        ValueError: A mask has another size than the image.
    """

    title: str
    image: NDArray[np.generic]
    truth: NDArray[np.uint8]
    predictions: Mapping[str, NDArray[np.uint8] | None]
    scores: Mapping[str, float]

    def __post_init__(self) -> None:
        size = self.image.shape[1:]
        for mask in (self.truth, *self.predictions.values()):
            if mask is not None and mask.shape != size:
                raise ValueError(f"{self.title}: a mask of {mask.shape} px does not fit an image of {size} px")


def choose_cases(
    scores: Mapping[str, float],
    *,
    chosen: Sequence[str] = (),
    n_random: int = 3,
    n_best: int = 2,
    n_worst: int = 3,
    seed: int = 0,
) -> list[tuple[str, str]]:
    """Choose cases to show, so that failures are seen beside what went well.

    Args:
        scores: The score of each case by its name, the higher the better. NaN keeps a case from all but ``chosen``.
        chosen: Names of cases to show in any case.
        n_random: Number of the others drawn regardless of their score, where the best and worst leave so many.
        n_best: Number with the highest scores of those not chosen.
        n_worst: Number with the lowest, taken before the best.
        seed: Seed of the drawing: equal arguments give equal cases, whatever the order of ``scores``.

    Returns:
        Name and why it was taken (``chosen``, ``random``, ``best``, ``worst``), in the order of these words; no name
        twice.

    Raises:
        PredictionError: A chosen name is not among the scores.
    """
    for name in chosen:
        if name not in scores:
            raise PredictionError(f"case {name!r} has no score: {_nearest(name, scores)}")
    kept = {*chosen}
    rising = sorted((score, name) for name, score in scores.items() if name not in kept and not math.isnan(score))
    worst = [name for _, name in rising[:n_worst]]
    falling = sorted(rising[len(worst) :], key=lambda scored: (-scored[0], scored[1]))
    best = [name for _, name in falling[:n_best]]
    # all are shuffled, not only what best and worst leave: so a changed score exchanges few of the random cases
    shuffled = np.random.default_rng(seed).permutation(sorted(name for _, name in rising)).tolist()
    random = [name for name in shuffled if name not in {*best, *worst}][:n_random]
    reasons = {"chosen": [*dict.fromkeys(chosen)], "random": random, "best": best, "worst": worst}
    return [(name, why) for why, names in reasons.items() for name in names]


def save_grid(path: Path, columns: Sequence[GridColumn], networks: Sequence[str]) -> None:
    """Write what `draw_grid` draws as PNG or PDF, as the ending of ``path`` says.

    Raises:
        PredictionError: The file has another ending, or the columns are none or too many.
        WorkspaceError: It cannot be written.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in ("png", "pdf"):
        raise PredictionError(f"{path} is no name for a picture: let it end in .png or .pdf")
    # a file without its time is the same for the same grid
    metadata = {"CreationDate": None} if form == "pdf" else None
    figure = draw_grid(columns, networks)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=form, dpi=DPI, metadata=metadata)


def draw_grid(columns: Sequence[GridColumn], networks: Sequence[str]) -> "Figure":
    """Draw a grid of cases: image, label, and the outcome of each network with its Dice.

    Images are scaled to one height. Outcomes have the colours of `iaunet.inference.confusion`; a network without a
    prediction says that it is not trained. Nothing of pyplot is used: the figure is the caller's alone.

    Args:
        columns: The cases from left to right, at most `MOST_COLUMNS`.
        networks: Names as in `GridColumn.predictions`, from top to bottom.

    Raises:
        PredictionError: There are no columns or too many.
    """
    if not columns:
        raise PredictionError("there is no case to draw: choose one or more")
    if len(columns) > MOST_COLUMNS:
        raise PredictionError(f"{len(columns)} cases are too many for one grid: choose at most {MOST_COLUMNS}")
    scaled = [_scaled(column) for column in columns]
    layout = _Layout.of(scaled, networks)
    figure, axes = _blank_figure(layout.size)
    _write_titles(axes, layout)
    has_labels = any(((column.truth > 1) & (column.truth != IGNORED)).any() for column in scaled)
    sheet = np.full((*layout.size, 3), 255, np.uint8)
    for column, box in zip(scaled, layout.boxes, strict=True):
        _place(sheet, to_picture(column.image), box)
        _place(sheet, _draw_labels(column.truth, LABEL_COLOURS if has_labels else (ONLY_LABEL_COLOUR,)), box.below(1))
        for row, network in enumerate(networks, start=2):
            _draw_cell(sheet, axes, box.below(row), column, network)
    axes.imshow(sheet, extent=(0, layout.size[1], layout.size[0], 0), interpolation="none", aspect="auto")
    return figure


@dataclass(frozen=True)
class _Box:
    """Where a cell stands on the sheet, in pixels from the top left."""

    left: int
    top: int
    width: int

    @property
    def middle(self) -> tuple[float, float]:
        """(x, y)."""
        return self.left + self.width / 2, self.top + CELL_HEIGHT / 2

    def below(self, rows: int) -> "_Box":
        return dataclasses.replace(self, top=self.top + rows * (CELL_HEIGHT + GAP))


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where the parts of a grid stand: ``boxes`` are the cells of the top row, ``size`` is (height, width)."""

    row_titles: Sequence[Sequence[str]]
    titles: Sequence[Sequence[str]]
    boxes: Sequence[_Box]
    size: tuple[int, int]

    @classmethod
    def of(cls, columns: Sequence[GridColumn], networks: Sequence[str]) -> "_Layout":
        """Of columns that are scaled."""
        row_titles = [_break_lines(title, WIDEST_ROW_TITLE) for title in ("image", "label", *networks)]
        widths = [max(NARROWEST_CELL, column.truth.shape[1]) for column in columns]
        titles = [_break_lines(column.title, width - GAP) for column, width in zip(columns, widths, strict=True)]
        top = 2 * GAP + math.ceil(max(map(len, titles)) * LINE_SPACING * TEXT_POINTS * DPI / 72)
        margin = 2 * GAP + max(_text_width(line) for lines in row_titles for line in lines)
        content = margin + sum(widths) + len(widths) * GAP
        width = _round_up(max(content, LEAST_WIDTH))
        lefts = accumulate(widths[:-1], lambda left, width: left + width + GAP, initial=margin + (width - content) // 2)
        boxes = [_Box(left, top, width) for left, width in zip(lefts, widths, strict=True)]
        height = _round_up(boxes[0].below(len(row_titles)).top + LEGEND_HEIGHT)
        return cls(row_titles=row_titles, titles=titles, boxes=boxes, size=(height, width))


def _round_up(length: int) -> int:
    return -(-length // SIDE_STEP) * SIDE_STEP


def _nearest(name: str, names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)
    return f"the nearest name is {nearest[0]!r}" if nearest else "score cases first"


def _scaled(column: GridColumn) -> GridColumn:
    """The column as it is shown: its image in colour and as high as a cell, its masks likewise."""
    height, width = column.truth.shape
    scale = min(CELL_HEIGHT / height, WIDEST_CELL / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))

    def resize(picture: NDArray[np.uint8], resample: Image.Resampling) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(picture).resize(size, resample))

    return dataclasses.replace(
        column,
        image=np.moveaxis(resize(to_picture(column.image), Image.Resampling.BILINEAR), 2, 0),
        truth=resize(column.truth, Image.Resampling.NEAREST),
        predictions={
            network: None if mask is None else resize(mask, Image.Resampling.NEAREST)
            for network, mask in column.predictions.items()
        },
    )


def _draw_labels(truth: NDArray[np.uint8], colours: Sequence[Colour]) -> Picture:
    """Labels in their colours on black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[1:] = [colours[label % len(colours)] for label in range(255)]
    palette[IGNORED] = IGNORED_COLOUR
    return palette[truth]


def _place(sheet: Picture, picture: Picture, box: _Box) -> None:
    """Put a picture in the middle of a cell."""
    height, width = picture.shape[:2]
    top, left = box.top + (CELL_HEIGHT - height) // 2, box.left + (box.width - width) // 2
    sheet[top : top + height, left : left + width] = picture


def _draw_cell(sheet: Picture, axes: "Axes", box: _Box, column: GridColumn, network: str) -> None:
    prediction = column.predictions.get(network)
    if prediction is None:
        _place(sheet, np.full((CELL_HEIGHT, box.width, 3), EMPTY_COLOUR, np.uint8), box)
        _write(axes, box.middle, [NOT_TRAINED], "center", "center")
        return
    _place(sheet, draw_confusion(column.image, prediction, column.truth), box)
    if network in column.scores:
        _write_score(axes, box, column.scores[network])


def _blank_figure(size: tuple[int, int]) -> "tuple[Figure, Axes]":
    """A figure of so many pixels (height, width), its legend, and axes over all of it that count in pixels."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    height, width = size
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    outcomes = [
        Patch(facecolor=f"#{bytes(colour).hex()}", label=outcome) for outcome, colour in OUTCOME_COLOURS.items()
    ]
    dice = Line2D(
        [], [], color="none", marker="$0.9$", markerfacecolor="black", markeredgewidth=0, markersize=14, label="Dice"
    )
    figure.legend(handles=[*outcomes, dice], loc="lower center", ncols=4, frameon=False, fontsize=TEXT_POINTS)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes


def _write_titles(axes: "Axes", layout: _Layout) -> None:
    first = layout.boxes[0]
    for row, lines in enumerate(layout.row_titles):
        _write(axes, (first.left - GAP, first.below(row).middle[1]), lines, "right", "center")
    for box, lines in zip(layout.boxes, layout.titles, strict=True):
        _write(axes, (box.middle[0], box.top - GAP), lines, "center", "bottom")


def _write(
    axes: "Axes",
    place: tuple[float, float],
    lines: Sequence[str],
    horizontal: Literal["center", "right"],
    vertical: Literal["center", "bottom"],
) -> None:
    axes.text(
        *place,
        "\n".join(lines),
        fontsize=TEXT_POINTS,
        linespacing=LINE_SPACING,
        horizontalalignment=horizontal,
        verticalalignment=vertical,
        parse_math=False,  # a name may hold dollar signs
    )


def _write_score(axes: "Axes", box: _Box, score: float) -> None:
    axes.text(
        box.left + box.width - GAP,
        box.top + CELL_HEIGHT - GAP,
        METRICS["dice"].text(score),
        color="white",
        fontsize=SCORE_POINTS,
        horizontalalignment="right",
        verticalalignment="bottom",
        bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5},
    )


def _break_lines(title: str, width: int) -> list[str]:
    """A title as lines of at most so many pixels."""
    return [part for line in _printable(title).split("\n") for part in _fit(line, width)]


def _fit(line: str, width: int) -> list[str]:
    lines = _wrap(line, width)
    if len(lines) <= MOST_LINES:
        return lines
    most = bisect_right(range(len(line)), MOST_LINES, key=lambda kept: len(_wrap(_shorten(line, kept), width))) - 1
    return _wrap(_shorten(line, most), width)


def _shorten(line: str, kept: int) -> str:
    """Leave so many letters, at both ends: the middle of a path or a long name says least."""
    return f"{line[: kept - kept // 2]}…{line[len(line) - kept // 2 :]}"


def _wrap(line: str, width: int) -> list[str]:
    lines = []
    while _text_width(line) > width and len(line) > 1:
        fitting = _fitting_letters(line, width)
        good = max(line.rfind(letter, 0, fitting) for letter in BREAKS) + 1
        cut = good if good > fitting // 2 else fitting
        lines.append(line[:cut])
        line = line[cut:]
    return [*lines, line]


def _fitting_letters(line: str, width: int) -> int:
    """How many letters of a line fit, but at least one."""
    return max(1, bisect_right(range(1, len(line)), width, key=lambda n: _text_width(line[:n])))


@lru_cache(maxsize=4096)
def _text_width(text: str) -> int:
    """Pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    points, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=TEXT_POINTS), ismath=False)
    return math.ceil(points * DPI / 72)


def _printable(text: str) -> str:
    """The text with a question mark for each letter that the font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return "".join(letter if letter == "\n" or font.get_char_index(ord(letter)) else "?" for letter in text)
