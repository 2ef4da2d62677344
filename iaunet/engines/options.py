"""How commands are told of engines and parts."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from iaunet.console import parse_option
from iaunet.engines import ENGINES, Engine, find_engine
from iaunet.engines.parts import Part
from iaunet.engines.tasks import EngineError


def add_engine_options(parser: argparse.ArgumentParser, part_of: str) -> None:
    """Add ``--engine``, ``--engine_option`` and ``--part``.

    Args:
        parser: A command's.
        part_of: What is shared out by ``--part``, for its help.
    """
    parser.add_argument(
        "--engine", choices=ENGINES, help="where to run it: on a cluster of Ray, or as jobs of SLURM (default: here)"
    )
    parser.add_argument(
        "--engine_option",
        action="append",
        default=[],
        type=parse_option,
        metavar="KEY=VALUE",
        help="an option of the engine, such as gpus=1, see docs/scaling.md; may be given several times",
    )
    parser.add_argument("--part", metavar="K/N", help=f"do the K-th of N shares of the {part_of}, for other launchers")


def read_engine_options(
    engine: str | None, given: Sequence[tuple[str, object]], part: str | None, folder: Path, device: str = "auto"
) -> tuple[Engine | None, Part | None]:
    """The engine and the part that the options of `add_engine_options` ask for, each None without.

    Args:
        engine: Of ``--engine``.
        given: Of ``--engine_option``.
        part: Of ``--part``.
        folder: See `find_engine`.
        device: The device asked for: an engine's calls see only the GPUs that are theirs.

    Raises:
        EngineError: They contradict each other, or one cannot be.
    """
    if engine is not None and part is not None:
        raise EngineError("--engine shares the work out by itself, --part leaves that to another launcher: give one")
    if given and engine is None:
        raise EngineError(f"--engine_option {given[0][0]} is for an engine: give --engine as well")
    if engine is not None and ":" in device:
        raise EngineError(f"--device {device} is one device, and the engine gives each call its own: give auto or cuda")
    chosen = None if engine is None else find_engine(engine, dict(given), folder)
    return chosen, None if part is None else Part.parse(part)
