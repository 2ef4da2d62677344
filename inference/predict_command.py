"""The command ``iaunet_predict``."""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iaunet.console import (
    ALL_DONE,
    CANNOT_BE_DONE,
    SOME_FAILED,
    command_parser,
    run_command,
    terminating_like_interrupt,
)
from iaunet.errors import PredictionError

if TYPE_CHECKING:
    from iaunet.inference.outcomes import Outcome
    from iaunet.inference.predictor import Predictor
    from iaunet.planners.plan import Plan
    from iaunet.preprocessing.held_out import HeldOut
    from iaunet.workspace import DatasetFolder

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser("iaunet_predict", "Make a mask for each image with the ensemble of a trained run's folds.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-i", "--input", type=Path, metavar="IN", help="a folder of images, or one image")
    what.add_argument(
        "--test", action="store_true", help="the data set's held-out test set; its masks are scored as well"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the folder for the masks")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-d", "--dataset", metavar="DATASET", help="the data set it was trained on")
    which.add_argument("--model", type=Path, metavar="FILE.zip", help="a model's file, of iaunet_export_model")
    parser.add_argument("-f", "--folds", nargs="+", metavar="FOLD", help="folds to use (default: all finished ones)")
    parser.add_argument(
        "--run", nargs="+", metavar="NAME", help="runs to use (default: those of iaunet_find_best, or the only one)"
    )
    parser.add_argument("--network", metavar="NAME", help="trust the stranger's network the run was trained with")
    parser.add_argument("--overlay", action="store_true", help="also draw the contours on the images")
    parser.add_argument(
        "--probabilities", action="store_true", help="also write probabilities: 16-bit PNG, float32 for volumes"
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="also write where folds and flips disagree: the standard deviation of their probabilities, 0 to 0.5 as "
        "16-bit PNG, float32 for volumes",
    )
    parser.add_argument(
        "--dicom_seg", action="store_true", help="also write DICOM segmentations of DICOM images (iaunet[dicom])"
    )
    parser.add_argument(
        "--no_postprocessing",
        action="store_true",
        help="thresholds of the plan and masks as they come, whatever iaunet_find_best chose",
    )
    parser.add_argument("--no_mirroring", action="store_true", help="one pass an image instead of four flips")
    parser.add_argument("--fast", action="store_true", help="one fold and one pass an image")
    parser.add_argument("--overwrite", action="store_true", help="replace masks of another model")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.model and (arguments.run or arguments.folds or arguments.test):
        raise PredictionError("--run, --folds and --test are for -d DATASET: leave them out with --model")

    from iaunet.workspace import find_dataset

    folder = None if arguments.model else find_dataset(arguments.dataset, arguments.workspace)

    from iaunet.inference.folder import FolderOptions, list_inputs, predict_cases
    from iaunet.inference.held_out import input_cases, load_held_out, require_usable

    held_out = load_held_out(folder) if folder and arguments.test else None
    if held_out is None:
        list_inputs(arguments.input, arguments.output)  # so that a wrong path is told before the networks are loaded
    predictor = _load(arguments, folder)
    if held_out is not None and folder is not None:
        require_usable(held_out, predictor.plan, folder)
    for line in _describe(predictor):
        logger.info("%s", line)
    options = FolderOptions(
        overlay=arguments.overlay,
        probabilities=arguments.probabilities,
        uncertainty=arguments.uncertainty,
        dicom_seg=arguments.dicom_seg,
        overwrite=arguments.overwrite,
    )
    start = time.perf_counter()
    with terminating_like_interrupt():
        if held_out is None:
            outcomes = predictor.predict_folder(arguments.input, arguments.output, options)
        else:
            outcomes = predict_cases(predictor, input_cases(held_out), arguments.output, options)
    seconds = time.perf_counter() - start
    count = {status: sum(outcome.status == status for outcome in outcomes) for status in ("done", "kept", "failed")}
    logger.info(
        "masks      %d done in %.1f s (%.1f images/s), %d kept from before, %d failed: %s",
        count["done"],
        seconds,
        count["done"] / seconds,
        count["kept"],
        count["failed"],
        arguments.output,
    )
    flagged = sum(bool(outcome.flag) for outcome in outcomes)
    if flagged:
        logger.info("flags      %d images to look at, see the column flag of predictions.csv", flagged)
    if held_out is not None and folder is not None:
        _score(held_out, predictor.plan, folder, arguments.output, outcomes)
    if count["failed"]:
        return SOME_FAILED if count["failed"] < len(outcomes) else CANNOT_BE_DONE
    return ALL_DONE


def _load(arguments: argparse.Namespace, folder: "DatasetFolder | None") -> "Predictor":
    """The predictor of a data set's runs, or of a model's file."""
    from iaunet.inference.predictor import Predictor

    settings = {
        "device": arguments.device,
        "mirroring": False if arguments.no_mirroring or arguments.fast else None,
        "trusted_network": arguments.network,
        "postprocessing": not arguments.no_postprocessing,
        "fast": arguments.fast,
    }
    if folder is None:
        return Predictor.from_model(arguments.model, **settings)
    return Predictor.from_dataset(folder, arguments.run, arguments.folds, **settings)


def _describe(predictor: "Predictor") -> list[str]:
    """The networks, and what is done with what they say."""
    from iaunet.inference.postprocessing import describe_postprocessing

    tuning = predictor.tuning
    lines = [f"model      run {member.run}, fold {member.fold}" for member in predictor.members]
    if tuning.postprocessing is not None:
        masks = describe_postprocessing(tuning.postprocessing, predictor.plan)
        lines.append(f"masks      {masks}, as iaunet_find_best chose")
    learnt = tuning.expected_dice
    if predictor.judge is None:
        unlike = "nothing was learnt of these networks and settings, see iaunet_find_best"
        lines.append(f"note       no expected Dice: {(learnt and learnt.skipped) or unlike}")
    return lines


def _score(
    held_out: "HeldOut", plan: "Plan", folder: "DatasetFolder", output: Path, outcomes: "Sequence[Outcome]"
) -> None:
    """Score a predicted test set, and tell why that is too good if something speaks for it."""
    from iaunet.inference.evaluation import save_evaluation
    from iaunet.inference.held_out import score_held_out
    from iaunet.inference.scores import format_table
    from iaunet.workers import default_workers

    evaluation = score_held_out(held_out, plan, folder, output, outcomes, default_workers())
    save_evaluation(output, evaluation)
    for line in format_table(evaluation.summary):
        logger.info("%s", line)
    if held_out.leakage:
        logger.warning("warning    %s", held_out.leakage)
    logger.info("scores     %s", output)
