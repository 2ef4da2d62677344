"""The command ``iaunet_export_model``."""

import argparse
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iaunet.console import ALL_DONE, command_parser, run_command
from iaunet.errors import PredictionError

if TYPE_CHECKING:
    from iaunet.inference.model_manifest import ModelFacts, ScoreNote
    from iaunet.workspace import DatasetFolder

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser(
        "iaunet_export_model",
        "Write a trained model into one file: plans, weights, postprocessing, scores and a model card; no images, no "
        "names of cases, no paths. With --onnx as a folder that predicts without torch.",
    )
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="a name the workspace knows, or the raw data's folder; with --onnx also a model's file",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.zip", help="the file to write; with --onnx a folder"
    )
    parser.add_argument(
        "--run", nargs="+", metavar="NAME", help="runs to export (default: those of iaunet_find_best, or the only one)"
    )
    parser.add_argument("-f", "--folds", nargs="+", metavar="FOLD", help="their folds (default: all finished ones)")
    parser.add_argument(
        "--notes", type=Path, metavar="FILE", help="a text for the model card: licence, origin of the data, citation"
    )
    parser.add_argument(
        "--onnx",
        action="store_true",
        help="write a folder with an ONNX model, a program that needs no torch, and a Dockerfile (iaunet[onnx])",
    )
    parser.add_argument("--network", metavar="NAME", help="with --onnx: trust the stranger's network of the model")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.onnx and _is_model_file(arguments.dataset):
        if arguments.run or arguments.folds or arguments.notes:
            raise PredictionError("--run, --folds and --notes are for a data set: leave them out with a model's file")
        return _export_onnx(Path(arguments.dataset), arguments.output, arguments.network)

    from iaunet.workspace import find_dataset

    folder = find_dataset(arguments.dataset, arguments.workspace)
    notes = _read_notes(arguments.notes)
    if not arguments.onnx:
        return _export_file(folder, arguments.output, arguments.run, arguments.folds, notes)

    from iaunet.inference.model_export import export_model
    from iaunet.storage import TEMPORARY_SUFFIX

    # beside the output: what a killed export leaves of it, the next one replaces
    model = arguments.output.with_name(f".{arguments.output.name}{TEMPORARY_SUFFIX}.zip")
    try:
        export_model(folder, model, arguments.run, arguments.folds, notes)
        return _export_onnx(model, arguments.output, arguments.network)
    finally:
        model.unlink(missing_ok=True)


def _is_model_file(dataset: str) -> bool:
    """Whether what the user gives as a data set is a model's file."""
    return dataset.lower().endswith(".zip") and Path(dataset).is_file()


def _read_notes(path: Path | None) -> str:
    from iaunet.storage import read_text

    return read_text(path, PredictionError, "give a text file in UTF-8") if path else ""


def _export_file(
    folder: "DatasetFolder", output: Path, runs: list[str] | None, folds: list[str] | None, notes: str
) -> int:
    from iaunet.inference.model_export import export_model  # imports scipy and torch: after what fails quickly

    manifest = export_model(folder, output, runs, folds, notes)
    for line in describe_facts(manifest.model):
        logger.info("%s", line)
    logger.info("written    %s (%.1f MB, %d files)", output, output.stat().st_size / 1e6, len(manifest.files) + 1)
    if not notes:
        logger.info(
            "note       licence, citation and the data's origin are yours to say: --notes FILE puts them in the card"
        )
    logger.info("next       iaunet_predict --model %s -i FOLDER -o FOLDER", shlex.quote(str(output)))
    return ALL_DONE


def _export_onnx(path: Path, output: Path, trusted_network: str | None) -> int:
    from iaunet.inference.model_file import open_model
    from iaunet.inference.onnx_export import LARGEST_DIFFERENCE, export_model_as_onnx

    model = open_model(path, trusted_network)
    for line in describe_facts(model.facts):
        logger.info("%s", line)
    facts = export_model_as_onnx(model, output)
    logger.info(
        "checked    probabilities of onnxruntime differ by %.1e from torch's at most, on %d inputs (allowed: %.0e)",
        facts.max_difference,
        facts.n_checked,
        LARGEST_DIFFERENCE,
    )
    if model.facts.data is not None and model.facts.data.n_volumes:
        logger.warning("warning    trained on volumes, which the folder's program does not read: use iaunet_predict")
    size = sum(file.stat().st_size for file in output.iterdir())
    logger.info("written    %s (%.1f MB): README.md there says how to run it", output, size / 1e6)
    logger.info("next       python %s -i FOLDER -o FOLDER", shlex.quote(str(output / "iaunet_runtime.py")))
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
