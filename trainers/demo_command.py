"""The command ``iaunet_demo``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from iaunet.console import ALL_DONE, command_parser, run_command

LEAST_IMAGES = 10


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    from iaunet.workers import default_workers

    parser = command_parser(
        "iaunet_demo",
        "The whole way on a small generated data set: plan, preprocess, train two folds, predict and score unseen "
        "images. Takes minutes on a laptop's CPU.",
        workspace=False,
    )
    parser.add_argument("--output", type=Path, default=Path("iaunet_demo"), metavar="DIR", help="gets everything")
    parser.add_argument("--images", type=int, default=80, metavar="N", help="images to learn from")
    parser.add_argument("--epochs", type=int, default=32, metavar="N", help="epochs of each of the two folds")
    parser.add_argument("--workers", type=int, default=default_workers(), metavar="N", help="processes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from iaunet.errors import DatasetError
    from iaunet.trainers.demo import DemoOptions, run_demo

    if arguments.images < LEAST_IMAGES:
        raise DatasetError(f"--images {arguments.images} is too few: give {LEAST_IMAGES} or more")
    options = DemoOptions(
        output=arguments.output, images=arguments.images, epochs=arguments.epochs, workers=arguments.workers
    )
    run_demo(options)
    return ALL_DONE
