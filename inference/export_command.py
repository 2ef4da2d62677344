"""The command ``iaunet_export_model``."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iaunet.console import ALL_DONE, command_parser, run_command, terminating_like_interrupt

if TYPE_CHECKING:
    from iaunet.inference.model_manifest import ModelFacts, ScoreNote

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser(
        "iaunet_export_model",
        "Write a trained model into one file: plans, weights, postprocessing, scores and a model card; no images, no "
        "names of cases, no paths.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a name the workspace knows, or the raw data's folder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.zip", help="the file to write")
    parser.add_argument(
        "--run", nargs="+", metavar="NAME", help="runs to export (default: those of iaunet_find_best, or the only one)"
    )
    parser.add_argument("-f", "--folds", nargs="+", metavar="FOLD", help="their folds (default: all finished ones)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from iaunet.workspace import open_workspace

    workspace = open_workspace(getattr(arguments, "workspace", None), os.environ)
    folder = workspace.find(arguments.dataset)

    from iaunet.inference.model_file import export_model  # imports scipy and torch: after what fails quickly

    with terminating_like_interrupt():
        manifest = export_model(folder, arguments.output, arguments.run, arguments.folds)
    for line in describe_facts(manifest.model):
        logger.info("%s", line)
    size = arguments.output.stat().st_size
    logger.info("written    %s (%.1f MB, %d files)", arguments.output, size / 1e6, len(manifest.files) + 1)
    logger.info("note       licence, citation and the data's origin are yours to say: its README.md leaves them open")
    logger.info("next       iaunet_predict --model %s -i FOLDER -o FOLDER", arguments.output)
    return ALL_DONE


def describe_facts(facts: "ModelFacts") -> list[str]:
    """The networks of a model, and its scores."""
    return [
        *(f"model      run {member.run}, fold {member.fold}" for member in facts.members),
        *map(_describe_scores, facts.scores),
    ]


def _describe_scores(note: "ScoreNote") -> str:
    of = {"model": "the model", "run": f"run {note.run}", "fold": f"run {note.run}, fold {note.fold}"}[note.of]
    dice = ", ".join(f"{label} {mean:.4f}" for label, mean in note.dice.items())
    return f"scores     {of}: Dice {dice} over {note.n_cases} cases" + (f" ({note.inflated})" if note.inflated else "")
