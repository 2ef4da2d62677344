"""What the tests let spawned processes do: these import it by this name, which no test module has."""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from iaunet.errors import FileError
from iaunet.storage import replacing
from iaunet.workers import serve_parent
from iaunet.workspace import locked

RAISING, DYING = -1, -2


def square(number: int) -> tuple[int, int]:
    """The square, and the process that made it."""
    if number == RAISING:
        raise FileError("is damaged", "copy it again")
    if number == DYING:
        os._exit(1)
    return number**2, os.getpid()


def write_half_and_die(path: Path) -> None:
    """Be killed while a file is being replaced."""
    with replacing(path) as temporary:
        temporary.write_text("half")
        os._exit(9)


def serve_for_ever(pipe: Connection) -> None:
    """Be a worker that tells its process id and does not end by itself."""
    serve_parent()
    pipe.send(os.getpid())
    time.sleep(3600)


def start_worker_and_be_killed(pipe: Connection) -> None:
    """Start `serve_for_ever` and be killed once told so."""
    multiprocessing.get_context("spawn").Process(target=serve_for_ever, args=(pipe,)).start()
    pipe.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def hold_lock_and_be_killed(folder: Path, pipe: Connection) -> None:
    """Lock a folder, say so, and be killed once told so."""
    with locked(folder, "training"):
        pipe.send("locked")
        pipe.recv()
        os.kill(os.getpid(), signal.SIGKILL)
