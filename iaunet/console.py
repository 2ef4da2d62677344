"""What every command shares: its options' spelling, its log, its exit codes."""

import argparse
import atexit
import contextlib
import gc
import io
import json
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from iaunet.allocation import collect_less
from iaunet.errors import IaunetError, in_one_line
from iaunet.exhaustion import is_out_of_memory

ALL_DONE, SOME_FAILED, CANNOT_BE_DONE, STOPPED = 0, 1, 2, 130

MEMORY_RAN_OUT = (
    "memory ran out, and what was written before is kept: close other programs, or use less with fewer --workers, in "
    "training also with a smaller --width or --batch_size; then run the same command again"
)
"""Told where no place of its own knows better."""

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""By which torchrun tells a process which rank it is; other launchers set some of them for processes on their own."""


class Stopped(Exception):
    """The user stopped the command; the message says how to go on."""


class _Parser(argparse.ArgumentParser):
    """Takes ``--long-option`` and ``--long_option`` alike."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        tokens = sys.argv[1:] if args is None else args
        return super().parse_args([_underscored(token) for token in tokens], namespace)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where there are any that the help does not tell itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if not action.default or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def _underscored(token: str) -> str:
    if not token.startswith("--"):
        return token
    name, equals, value = token[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def command_parser(name: str, description: str, workspace: bool = True) -> argparse.ArgumentParser:
    """A parser with the option every command has that uses the ``workspace``."""
    parser = _Parser(
        prog=name,
        description=description,
        allow_abbrev=False,
        formatter_class=_Formatter,
    )
    if workspace:
        parser.add_argument(
            "--workspace",
            type=Path,
            metavar="DIR",
            help="where datasets, plans and runs are kept (default: $IAUNET_WORKSPACE, "
            "or the nearest iaunet_workspace from here upwards, or a new one here)",
        )
    return parser


def parse_option(text: str) -> tuple[str, str | int | float | bool | None]:
    """A name with its value, which is read as JSON (``256``, ``true``, ``null``), as a word if it is none.

    Raises:
        ArgumentTypeError: There is no ``=``.
    """
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no option: give KEY=VALUE")
    with contextlib.suppress(json.JSONDecodeError):
        read: str | int | float | bool | list[object] | dict[str, object] | None = json.loads(value, parse_constant=str)
        if not isinstance(read, list | dict):
            return key, read
    return key, value


def run_command(body: Callable[[], int], joins_ranks: bool = False) -> int:
    """Run a command's body as a command: log on the screen, faults in one line, exit codes; SIGTERM stops it as Ctrl-C.

    Args:
        body: Does the work and returns the exit code.
        joins_ranks: Whether processes that are ranks work together: then only the first tells what is done.

    Returns:
        0 all done, 1 some inputs failed, 2 the request cannot be done, 130 stopped.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # numpy multiplies little here; where memory is short, OpenBLAS waits for threads of its own for ever
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    collect_less()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # a last look through torch would cost 0.2 s
    tells = not (joins_ranks and is_rank(os.environ)) or os.environ["RANK"] == "0"
    with _logging_to_screen(sys.stdout, logging.INFO if tells else logging.ERROR), terminating_like_interrupt():
        try:
            return body()
        except IaunetError as fault:
            print(f"error: {fault}", file=sys.stderr)
            return CANNOT_BE_DONE
        except Stopped as stop:
            print(f"stopped: {stop}", file=sys.stderr)
            return STOPPED
        except PermissionError as fault:
            if fault.filename is None:
                raise
            print(f"error: {fault.filename} cannot be opened ({fault.strerror}): mend its permissions", file=sys.stderr)
            return CANNOT_BE_DONE
        except Exception as fault:
            if not is_out_of_memory(fault):
                raise
            print(f"error: {MEMORY_RAN_OUT}", file=sys.stderr)
            return CANNOT_BE_DONE
        except KeyboardInterrupt:
            if tells:  # what stops several stops each of them
                print("stopped: run the same command again to go on", file=sys.stderr)
            return STOPPED


def is_rank(environment: Mapping[str, str]) -> bool:
    """Whether the variables of an environment tell a process which rank it is: all of `RANK_VARIABLES` are there."""
    return all(environment.get(name, "").isdecimal() for name in RANK_VARIABLES)


class _Screen(logging.StreamHandler[IO[str]]):
    """Goes silent when nobody reads any more (``| head``) and leaves out what a full disk does not take: a training
    goes on."""

    _is_complete = True

    def handleError(self, record: logging.LogRecord) -> None:
        fault = sys.exc_info()[1]
        if not isinstance(fault, OSError):
            return super().handleError(record)
        if not isinstance(fault, BrokenPipeError):
            if self._is_complete:
                print(f"warning: lines are left out that cannot be written ({fault.strerror})", file=sys.stderr)
            self._is_complete = False
            return None
        return self._let_go()

    def finish(self) -> None:
        """Leave out what a full disk still does not take, or Python's own last try would change the exit code."""
        try:
            self.stream.flush()
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        with open(os.devnull, "w", encoding="utf-8") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), self.stream.fileno())


class _Lines(logging.Formatter):
    """Shows what a terminal would obey as text: names that files have or hold are part of what is logged."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(in_one_line, super().format(record).split("\n")))


@contextlib.contextmanager
def _logging_to_screen(stream: IO[str], least: int) -> Iterator[None]:
    logger = logging.getLogger("iaunet")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a name the terminal cannot show stops nothing
    handler = _Screen(stream)
    handler.setFormatter(_Lines("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(least)
    try:
        yield
    finally:
        handler.finish()
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def terminating_like_interrupt() -> Iterator[None]:
    """Let SIGTERM stop a command as Ctrl-C does, so that files and workers are cleaned up."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handling_signals((signal.SIGTERM,), interrupt):
        yield


@contextlib.contextmanager
def telling_from_handlers(logger: logging.Logger) -> Iterator[Callable[[str], None]]:
    """Give what logs a line for a handler of signals, in a thread: the handler may have come amid another line."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # may be put to by handlers

    def tell() -> None:
        for line in iter(lines.get, None):
            logger.info("%s", line)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield lines.put
    finally:
        lines.put(None)
        thread.join()


@contextlib.contextmanager
def handling_signals(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Handle signals within a block; outside the main thread, where Python allows no handlers, do nothing."""
    previous = []
    with contextlib.suppress(ValueError):
        previous = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield
    finally:
        for number, old in previous:
            signal.signal(number, old)
