"""The command ``iaunet_predict``."""

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from iaunet.console import (
    ALL_DONE,
    CANNOT_BE_DONE,
    SOME_FAILED,
    command_parser,
    run_command,
)
from iaunet.engines.options import add_engine_options, read_engine_options
from iaunet.errors import PredictionError

if TYPE_CHECKING:
    from iaunet.inference.jobs import ModelChoice
    from iaunet.inference.outcomes import Outcome
    from iaunet.inference.predictor import Predictor
    from iaunet.preprocessing.held_out import HeldOut
    from iaunet.workspace import DatasetFolder

logger = logging.getLogger(__name__)

PARTS = 8
"""Of a folder that an engine predicts, if the user does not say how many."""


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
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="the type that products are taken in (default: float32 on CPUs, 16 bits on GPUs); on CPUs with units for "
        "bfloat16 (AMX) that takes down to a third of the time, and changes masks a little",
    )
    add_engine_options(parser, part_of="images")
    parser.add_argument(
        "--parts", type=int, metavar="N", help=f"shares of the images that an engine works on (default: {PARTS})"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.model and (arguments.run or arguments.folds or arguments.test):
        raise PredictionError("--run, --folds and --test are for -d DATASET: leave them out with --model")
    if arguments.test and (arguments.engine or arguments.part):
        raise PredictionError("--engine and --part are for -i: predict the test set without them")
    if arguments.parts is not None and (arguments.engine is None or arguments.parts < 1):
        raise PredictionError("--parts is a number of 1 or more for --engine: give both, or --part K/N without")

    from iaunet.allocation import keep_freed_memory
    from iaunet.workspace import find_dataset

    keep_freed_memory()
    folder = None if arguments.model else find_dataset(arguments.dataset, arguments.workspace)
    given = arguments.engine, arguments.engine_option, arguments.part

    from iaunet.inference.output import ENGINE

    engine, part = read_engine_options(*given, arguments.output.resolve() / ENGINE, arguments.device)

    from iaunet.device import is_faster_in_bfloat16
    from iaunet.inference.folder import predict_cases, predict_folder
    from iaunet.inference.held_out import input_cases, load_held_out, require_usable
    from iaunet.inference.inputs import list_inputs
    from iaunet.inference.jobs import predict_on_engine
    from iaunet.inference.output import FolderOptions

    held_out = load_held_out(folder) if folder and arguments.test else None
    if held_out is None:
        list_inputs(arguments.input, arguments.output)  # so that a wrong path is told before the networks are loaded
    choice = _choice(arguments, folder)
    predictor = choice.load() if engine is None else replace(choice, device="cpu").load()  # there to be described
    if held_out is not None and folder is not None:
        require_usable(held_out, predictor.plan, folder)
    for line in _describe(predictor):
        logger.info("%s", line)
    if engine is None and arguments.precision is None and is_faster_in_bfloat16(predictor.device):
        faster = "wide networks predict faster on this CPU with --precision bfloat16, which changes masks a little"
        logger.info("note       %s", faster)
    options = FolderOptions(
        overlay=arguments.overlay,
        probabilities=arguments.probabilities,
        uncertainty=arguments.uncertainty,
        dicom_seg=arguments.dicom_seg,
        overwrite=arguments.overwrite,
    )
    start = time.perf_counter()
    if engine is not None:
        n_parts = arguments.parts or PARTS
        outcomes = predict_on_engine(engine, choice, arguments.input, arguments.output, options, n_parts)
    elif held_out is None:
        outcomes = predict_folder(predictor, arguments.input, arguments.output, options, part)
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
        _score(held_out, predictor, folder, arguments.output, outcomes)
    if count["failed"]:
        return SOME_FAILED if count["failed"] < len(outcomes) else CANNOT_BE_DONE
    return ALL_DONE


def _choice(arguments: argparse.Namespace, folder: "DatasetFolder | None") -> "ModelChoice":
    """The networks of a data set's runs, or of a model's file, and how they predict."""
    from iaunet.inference.jobs import ModelChoice
    from iaunet.workspace import DatasetFolder

    return ModelChoice(
        dataset=folder and DatasetFolder(folder.root.resolve()),
        model=arguments.model and arguments.model.resolve(),
        runs=arguments.run,
        folds=arguments.folds,
        device=arguments.device,
        mirroring=False if arguments.no_mirroring or arguments.fast else None,
        trusted_network=arguments.network,
        postprocessing=not arguments.no_postprocessing,
        fast=arguments.fast,
        precision=arguments.precision,
    )


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
    if predictor.familiar is None:
        why = "what these were like is not known any more, the data have changed: train again"
        lines.append(f"note       no flags of images unlike the training images: {why}")
    return lines


def _score(
    held_out: "HeldOut", predictor: "Predictor", folder: "DatasetFolder", output: Path, outcomes: "Sequence[Outcome]"
) -> None:
    """Score a predicted test set, count that, and tell why the scores are too good if something speaks for it."""
    from iaunet.inference.evaluation import save_evaluation
    from iaunet.inference.held_out import score_held_out
    from iaunet.inference.held_out_scores import count_look
    from iaunet.inference.scores import format_table
    from iaunet.workers import default_workers

    evaluation = score_held_out(held_out, predictor.plan, folder, output, outcomes, default_workers())
    save_evaluation(output, evaluation)
    remark = count_look(folder, held_out, predictor, evaluation).remark
    for line in format_table(evaluation.summary):
        logger.info("%s", line)
    if held_out.leakage:
        logger.warning("warning    %s", held_out.leakage)
    if remark:
        logger.warning("warning    the test set was %s", remark)
    logger.info("scores     %s", output)
