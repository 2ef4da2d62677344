"""The command ``iaunet_predict``."""

import argparse
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from iaunet.inference.familiar import Familiar
    from iaunet.inference.outcomes import Outcome
    from iaunet.inference.predictor import Predictor
    from iaunet.inference.tuning import Tuning
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
    folder = None if arguments.model else _find_dataset(arguments)

    from iaunet.inference.folder import FolderOptions, list_inputs, predict_cases, predict_folder
    from iaunet.inference.held_out import input_cases, load_held_out, require_usable

    held_out = load_held_out(folder) if folder and arguments.test else None
    if held_out is None:
        list_inputs(arguments.input, arguments.output)  # so that a wrong path is told before the networks are loaded
    mirroring = False if arguments.no_mirroring or arguments.fast else None
    loaded = _from_file(arguments, mirroring) if folder is None else _from_runs(arguments, folder, mirroring)
    predictor, model = loaded.predictor, loaded.description
    if held_out is not None and folder is not None:
        require_usable(held_out, predictor.plan, folder)
    for line in _describe(loaded):
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
            outcomes = predict_folder(predictor, model, arguments.input, arguments.output, options, loaded.familiar)
        else:
            cases = input_cases(held_out)
            outcomes = predict_cases(predictor, model, cases, arguments.output, options, loaded.familiar)
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


@dataclass(frozen=True)
class _Loaded:
    """A predictor, the digestible description of it, what was learnt of it, and what its training images are like."""

    predictor: "Predictor"
    description: dict[str, Any]
    tuning: "Tuning"
    familiar: "Familiar | None"


def _describe(loaded: _Loaded) -> list[str]:
    """The networks, and what is done with what they say."""
    from iaunet.inference.postprocessing import describe_postprocessing

    predictor, tuning = loaded.predictor, loaded.tuning
    lines = [f"model      run {member['run']}, fold {member['fold']}" for member in loaded.description["members"]]
    if tuning.postprocessing is not None:
        masks = describe_postprocessing(tuning.postprocessing, predictor.plan)
        lines.append(f"masks      {masks}, as iaunet_find_best chose")
    learnt = tuning.expected_dice
    if learnt is not None and predictor.judge is None:
        why = learnt.skipped or "it was learnt of other networks or with other mirroring than predict now"
        lines.append(f"note       no expected Dice: {why}")
    return lines


def _find_dataset(arguments: argparse.Namespace) -> "DatasetFolder":
    from iaunet.workspace import open_workspace

    workspace = open_workspace(getattr(arguments, "workspace", None), os.environ)
    return workspace.find(arguments.dataset)


def _from_runs(arguments: argparse.Namespace, folder: "DatasetFolder", mirroring: bool | None) -> _Loaded:
    """The predictor of a data set's runs."""
    from iaunet.inference.best import find_chosen
    from iaunet.inference.familiar import find_familiar
    from iaunet.inference.folder import describe_runs
    from iaunet.inference.predictor import Predictor
    from iaunet.inference.runs import choose_folds, choose_runs
    from iaunet.inference.tuning import Tuning

    chosen = find_chosen(folder)
    runs = choose_runs(folder, arguments.run or (chosen.runs if chosen else None))
    tuning = chosen.tuning if chosen is not None and [run.name for run in runs] == chosen.runs else Tuning()
    if arguments.no_postprocessing:
        tuning = replace(tuning, postprocessing=None)
    folds = arguments.folds
    if arguments.fast:
        runs = runs[:1]
        folds = folds or [choose_folds(runs[0], None)[0].fold]
    predictor = Predictor.from_runs(runs, folds, arguments.device, mirroring, arguments.network, tuning)
    familiar = find_familiar(folder, predictor.plan)
    return _Loaded(predictor, describe_runs(runs, folds, predictor), tuning, familiar)


def _from_file(arguments: argparse.Namespace, mirroring: bool | None) -> _Loaded:
    """The predictor of a model's file."""
    from iaunet.device import choose_device
    from iaunet.inference.folder import describe_model
    from iaunet.inference.model_file import open_model
    from iaunet.inference.predictor import Predictor
    from iaunet.records import to_json

    model = open_model(arguments.model, arguments.network)
    if arguments.fast:
        model = model.first_only()
    tuning = replace(model.tuning, postprocessing=None) if arguments.no_postprocessing else model.tuning
    device = choose_device(arguments.device)
    predictor = Predictor(model.plan, model.networks, device, mirroring, tuning, model.member_names)
    description = describe_model(to_json(model.members), predictor)
    return _Loaded(predictor, description, tuning, model.facts.familiar)


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
