"""Comparisons as a picture: each network's means with their intervals, beside what the paper gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iaunet.inference.comparison import Contest, Table
from iaunet.inference.comparison_tables import SIZES, name_folds
from iaunet.inference.published import PAPER_METRICS, PUBLISHED
from iaunet.metrics import METRICS
from iaunet.storage import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_INCHES, HEAD_INCHES = 0.35, 1.6
PANEL_INCHES = 3.2
DPI = 150


def save_chart(path: Path, contest: Contest, table: Table, published: str | None) -> None:
    """Write what `draw_chart` draws as PNG.

    Raises:
        WorkspaceError: It cannot be written.
    """
    figure = draw_chart(contest, table, published)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_chart(contest: Contest, table: Table, published: str | None) -> "Figure":
    """Draw one table: a panel a metric, a row a network, its mean as a dot with the 95 % interval.

    Args:
        contest: Whose table it is.
        table: One with a standing at least.
        published: The data set of the paper whose figures are drawn as hollow diamonds, if any; only in a table at
            the network's size, which is what they are of.
    """
    from matplotlib.figure import Figure

    height = HEAD_INCHES + ROW_INCHES * len(table.standings)
    figure = Figure(figsize=(PANEL_INCHES * len(PAPER_METRICS), height), dpi=DPI, layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(PAPER_METRICS), sharey=True)
    for panel, metric in zip(panels, PAPER_METRICS, strict=True):
        _draw_panel(panel, table, metric, published)
    titles = [
        standing.contestant.title + ("" if standing.is_complete else "\n(incomplete)") for standing in table.standings
    ]
    panels[0].set_yticks(range(len(titles)), titles, parse_math=False)  # a name may hold dollar signs
    panels[0].invert_yaxis()
    figure.suptitle(
        f"recipe {contest.recipe}, split {contest.split}{' (inflated)' if contest.inflated else ''}, {table.label}: "
        f"means over cases, {name_folds(table.folds, contest.n_folds)}, {SIZES[table.size]}",
        fontsize=10,
        parse_math=False,
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def _draw_panel(panel: "Axes", table: Table, metric: str, published: str | None) -> None:
    means = [100 * standing.means[metric].mean for standing in table.standings]
    rows = range(len(means))
    for row, standing in zip(rows, table.standings, strict=True):
        mean = standing.means[metric]
        panel.plot([100 * mean.low, 100 * mean.high], [row, row], color="tab:blue", linewidth=2, alpha=0.5)
    panel.plot(means, rows, "o", color="tab:blue", label="here, with 95 % interval")
    if published is not None and table.size == "input":
        figures = [
            PUBLISHED[published].get(standing.contestant.record.plan.network.name) for standing in table.standings
        ]
        i = PAPER_METRICS.index(metric)
        given = [(figure[i], row) for row, figure in zip(rows, figures, strict=True) if figure]
        if given:
            values, where = zip(*given, strict=True)
            panel.plot(values, where, "D", color="tab:red", fillstyle="none", label=f"the paper, {published}")
    panel.set_title(METRICS[metric].title, fontsize=10)
    panel.set_xlabel("%")
    panel.grid(axis="x", alpha=0.3)
    panel.set_ylim(-0.5, len(means) - 0.5)
