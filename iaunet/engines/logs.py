"""Logs of calls that run elsewhere: written there, told here."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from iaunet.storage import make_folder, naming_disk_faults

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def logging_to_file(path: Path) -> Iterator[None]:
    """Add what iaunet logs within a block to a UTF-8 text file, made with its folder if need be.

    Raises:
        WorkspaceError: The file cannot be written.
    """
    make_folder(path.parent)
    with naming_disk_faults(path):
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("iaunet")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


class LogFollower:
    """Tells the lines that are added to log files, each behind its name.

    Args:
        logs: Text files by name, whether or not they exist yet. What they hold already is not told.
    """

    def __init__(self, logs: Mapping[str, Path]) -> None:
        self.logs = logs
        self._told = {name: _size_of(path) for name, path in logs.items()}

    def tell_news(self) -> None:
        """Log the whole lines that were added since the last call."""
        for name, path in self.logs.items():
            for line in self._new_lines(name, path):
                logger.info("%s: %s", name, line)

    def _new_lines(self, name: str, path: Path) -> list[str]:
        try:
            with path.open("rb") as file:
                file.seek(self._told[name])
                added = file.read()
        except OSError:  # there is none yet; or a disk that fails for a moment, which is no reason to end calls
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self._told[name] += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
