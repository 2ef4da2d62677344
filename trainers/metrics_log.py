"""Where the numbers of each epoch go besides the screen."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from iaunet.errors import TrainingError

LOGS = {
    "csv": "iaunet.trainers.progress:Metrics",
    "tensorboard": "iaunet.trainers.tensorboard_log:TensorBoardLog",
}
"""What makes each log of where it is kept and the number of epochs that a resumed training has behind it.

The first is written whatever is asked for: curves and reports are made from it.
"""


class MetricsLog(Protocol):
    """Keeps a row of numbers an epoch; what it holds of later epochs than it is opened with no longer counts."""

    def add(self, row: Mapping[str, float]) -> None:
        """Take in an epoch's numbers, named by `iaunet.trainers.progress.COLUMNS`, NaN where undefined."""

    def close(self) -> None:
        """Release what is open."""


def find_log(name: str) -> Callable[[Path, int], MetricsLog]:
    """What makes a log, by its name in `LOGS`.

    Raises:
        TrainingError: The name is not known, or its log needs a package that is not installed.
    """
    if name not in LOGS:
        raise TrainingError(f"there is no log {name!r}: choose among {', '.join(LOGS)}")
    module, _, builder = LOGS[name].partition(":")
    try:
        made: Callable[[Path, int], MetricsLog] = getattr(import_module(module), builder)
    except ImportError as fault:
        raise TrainingError(
            f"the log {name} needs a package that is not installed ({fault}): pip install 'iaunet[{name}]'"
        ) from fault
    return made


@contextlib.contextmanager
def closing_logs(logs: Sequence[MetricsLog]) -> Iterator[None]:
    """Close the logs at the end of a block, however it ends."""
    with contextlib.ExitStack() as stack:
        for log in logs:
            stack.callback(log.close)
        yield
