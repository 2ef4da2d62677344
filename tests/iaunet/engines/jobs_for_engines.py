"""What the tests let engines call in other processes: these import it by this name, which no test module has."""

import logging
import os
import signal
import threading
import time
from pathlib import Path

from iaunet.console import Stopped
from iaunet.engines.tasks import allotted_processors
from iaunet.errors import FileError

logger = logging.getLogger("iaunet.jobs")

RAISING, BREAKING, STOPPING = -1, -2, -3


def square(number: int) -> tuple[int, int, int | None, str]:
    """The square, the process that made it, and what it was given."""
    logger.info("squaring %d", number)
    if number == RAISING:
        raise FileError("is damaged", "copy it again")
    if number == BREAKING:
        raise ZeroDivisionError("a bug")
    if number == STOPPING:
        raise Stopped("saved")
    return number**2, os.getpid(), allotted_processors(), os.environ["OMP_NUM_THREADS"]


def square_or_be_killed(item: int | Path) -> object:
    """The square of a number; on a folder be killed the first time, then how often it was begun."""
    if isinstance(item, int):
        return square(item)
    begun = note_beginning(item)
    if begun == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return begun


def die(folder: Path) -> None:
    """Be killed each time."""
    note_beginning(folder)
    os.kill(os.getpid(), signal.SIGKILL)


def note_beginning(folder: Path) -> int:
    """How often something was begun on a folder, this time included."""
    begun = len(list(folder.glob("begun_*"))) + 1
    (folder / f"begun_{begun}").touch()
    return begun


def wait_to_be_stopped(folder: Path) -> None:
    """Save something when interrupted, as a training does."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    (folder / "begun").touch()
    while not stop.is_set():
        time.sleep(0.01)
    (folder / "saved").touch()
    raise Stopped("saved")
