"""The command ``iaunet_predict``."""

import argparse
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from iaunet.console import (
    ALL_DONE,
    CANNOT_BE_DONE,
    SOME_FAILED,
    command_parser,
    run_command,
    terminating_like_interrupt,
)

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser("iaunet_predict", "Make a mask for each image with the ensemble of a trained run's folds.")
    parser.add_argument(
        "-i", "--input", type=Path, required=True, metavar="IN", help="a folder of images, or one image"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the folder for the masks")
    parser.add_argument("-d", "--dataset", required=True, metavar="DATASET", help="the data set it was trained on")
    parser.add_argument("-f", "--folds", nargs="+", metavar="FOLD", help="folds to use (default: all finished ones)")
    parser.add_argument("--run", nargs="+", metavar="NAME", help="runs to use (default: the only one)")
    parser.add_argument("--network", metavar="NAME", help="trust the stranger's network the run was trained with")
    parser.add_argument("--overlay", action="store_true", help="also draw the contours on the images")
    parser.add_argument("--probabilities", action="store_true", help="also write probabilities as 16-bit PNG")
    parser.add_argument(
        "--dicom_seg", action="store_true", help="also write DICOM segmentations of DICOM images (iaunet[dicom])"
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
    from iaunet.workspace import open_workspace

    workspace = open_workspace(getattr(arguments, "workspace", None), os.environ)
    folder = workspace.find(arguments.dataset)

    from iaunet.inference.folder import FolderOptions, describe_model, list_inputs, predict_folder
    from iaunet.inference.predictor import Predictor
    from iaunet.inference.runs import choose_folds, choose_runs

    runs = choose_runs(folder, arguments.run)
    folds = arguments.folds
    if arguments.fast:
        runs = runs[:1]
        folds = folds or [choose_folds(runs[0], None)[0].fold]
    list_inputs(arguments.input, arguments.output)  # so that a wrong path is told before the networks are loaded
    mirroring = False if arguments.no_mirroring or arguments.fast else None
    predictor = Predictor.from_runs(runs, folds, arguments.device, mirroring, arguments.network)
    model = describe_model(runs, folds, predictor)
    for member in model["members"]:
        logger.info("model      run %s, fold %s", member["run"], member["fold"])
    options = FolderOptions(
        overlay=arguments.overlay,
        probabilities=arguments.probabilities,
        dicom_seg=arguments.dicom_seg,
        overwrite=arguments.overwrite,
    )
    start = time.perf_counter()
    with terminating_like_interrupt():
        outcomes = predict_folder(predictor, model, arguments.input, arguments.output, options)
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
    if count["failed"]:
        return SOME_FAILED if count["failed"] < len(outcomes) else CANNOT_BE_DONE
    return ALL_DONE
