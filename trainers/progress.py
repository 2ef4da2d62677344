"""What training tells while it runs: a line and a CSV row an epoch, curves, and how long it will take."""

import csv
import io
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from iaunet.durations import duration
from iaunet.errors import TrainingError
from iaunet.storage import read_text, replacing, write_text

logger = logging.getLogger(__name__)

COLUMNS = ("epoch", "loss", "bce", "dice_loss", "validation_loss", "validation_dice", "lr", "seconds")
SECONDS_BETWEEN_PICTURES = 60.0
MEASURED_STEPS = 10
STEPS_TO_WARM_UP = 2
LONG_ON_A_CPU = 24 * 3600.0


class Metrics:
    """The rows of metrics.csv, one an epoch.

    Args:
        path: The file; rows it holds already are kept up to epoch ``epochs``, later ones are cut off.
        epochs: Epochs that a resumed training has behind it.

    Raises:
        TrainingError: The file holds something else.
    """

    def __init__(self, path: Path, epochs: int) -> None:
        self._path = path
        self.rows: list[dict[str, float]] = []
        if epochs and path.exists():
            self.rows = [row for row in _read(path) if row["epoch"] <= epochs]
        self._write()

    def add(self, row: Mapping[str, float]) -> None:
        """Append an epoch's numbers, named by `COLUMNS`."""
        self.rows.append(dict(row))
        self._write()

    def close(self) -> None:
        """Nothing is open between two epochs."""

    def column(self, name: str) -> list[float]:
        """One number of every epoch."""
        return [row[name] for row in self.rows]

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([_printable(row) for row in self.rows])
        write_text(self._path, text.getvalue())


def _read(path: Path) -> list[dict[str, float]]:
    mend = "remove it to go on without the rows of earlier epochs"
    table = csv.DictReader(io.StringIO(read_text(path, TrainingError, mend), newline=""))
    try:
        return [{name: float(row[name]) for name in COLUMNS} for row in table]
    except (KeyError, TypeError, ValueError, csv.Error) as fault:
        raise TrainingError(f"{path} holds no metrics in line {table.line_num}: {mend}") from fault


def _printable(row: Mapping[str, float]) -> dict[str, str]:
    return {name: str(int(value)) if name == "epoch" else f"{value:.9g}" for name, value in row.items()}


class Picture:
    """Draws the curves to progress.png, at most once a minute.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = float("-inf")

    def update(self, metrics: Metrics, now: bool = False) -> None:
        """Draw, if the last picture is old enough or ``now`` is true."""
        if not now and time.monotonic() - self._last < SECONDS_BETWEEN_PICTURES:
            return
        draw_progress(metrics, self._path)
        self._last = time.monotonic()


def draw_progress(metrics: Metrics, path: Path) -> None:
    """Draw losses, validation Dice and learning rate over the epochs as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = metrics.column("epoch")
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    dice = top.twinx()
    top.plot(epochs, metrics.column("loss"), color="tab:blue", label="training loss")
    if any(value == value for value in metrics.column("validation_loss")):
        top.plot(epochs, metrics.column("validation_loss"), color="tab:red", label="validation loss")
        dice.plot(
            epochs,
            metrics.column("validation_dice"),
            color="tab:green",
            label="validation Dice (at the network's size)",
        )
    top.set_ylabel("loss (BCE + Dice)")
    top.set_ylim(bottom=0)
    dice.set_ylabel("Dice")
    dice.set_ylim(0, 1)
    lines = [*top.get_lines(), *dice.get_lines()]
    figure.legend(lines, [str(line.get_label()) for line in lines], loc="outside upper center", ncols=len(lines))
    bottom.plot(epochs, metrics.column("lr"), color="tab:gray")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("epoch")
    bottom.set_ylim(bottom=0)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


class Pace:
    """Keeps what is done again and again, in a ``with`` block, to a share of the time.

    Args:
        share: Above 0, below 1.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._began = self._ended = self._seconds = 0.0

    def is_due(self) -> bool:
        """Whether it may be done now: so much time has passed since the last that this one is its share of it."""
        return time.perf_counter() - self._ended >= self._seconds * (1 / self._share - 1)

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._ended = time.perf_counter()
        self._seconds = self._ended - self._began


class Estimate:
    """Tells after the first steps how long the whole command will take.

    Args:
        steps: Steps the command has before it, over all its folds.
        on_cpu: Whether to warn of days.
    """

    def __init__(self, steps: int, on_cpu: bool) -> None:
        self.steps = steps
        self._on_cpu = on_cpu
        self._seconds: list[float] = []

    def add(self, seconds: float) -> bool:
        """Take in the seconds of a step; True at the moment the estimate is ready, once."""
        self._seconds.append(seconds)
        return len(self._seconds) == MEASURED_STEPS

    @property
    def seconds_a_step(self) -> float:
        """The mean of the measured steps, the first ones left out."""
        counted: Sequence[float] = self._seconds[STEPS_TO_WARM_UP:MEASURED_STEPS]
        return sum(counted) / len(counted)

    def tell(self) -> None:
        """Log the estimate, and a plain warning when it is long on a CPU."""
        total = self.seconds_a_step * self.steps
        logger.info("estimate   %.2g s a step, about %s for the whole command", self.seconds_a_step, duration(total))
        if self._on_cpu and total > LONG_ON_A_CPU:
            logger.warning(
                "warning    that is %.1f days on this CPU: use a GPU, or a smaller --width, fewer --epochs, or --hours",
                total / 86400,
            )
