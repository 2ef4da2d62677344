"""The command ``iaunet_import_model``."""

import argparse
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from iaunet.console import ALL_DONE, command_parser, run_command

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser(
        "iaunet_import_model",
        "Make a data set of a model's file, to predict with by its name. Everything is checked before it is written, "
        "and no code is run.",
    )
    parser.add_argument("model", type=Path, metavar="FILE.zip", help="what iaunet_export_model wrote")
    parser.add_argument(
        "--dataset_name", metavar="NAME", help="its name in the workspace (default: that of the data it was trained on)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from iaunet.inference.model_import import import_model
    from iaunet.workspace import open_workspace

    workspace = open_workspace(arguments.workspace, os.environ)
    folder = import_model(arguments.model, workspace, arguments.dataset_name)
    logger.info("written    %s", folder.root)
    logger.info("next       iaunet_predict -i FOLDER -o FOLDER -d %s", shlex.quote(folder.name))
    return ALL_DONE
