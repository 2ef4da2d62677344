"""The command ``iaunet_evaluate``."""

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iaunet.console import ALL_DONE, SOME_FAILED, command_parser, run_command
from iaunet.errors import PredictionError

if TYPE_CHECKING:
    from iaunet.dataset import Problem
    from iaunet.inference.evaluation import Evaluation

logger = logging.getLogger(__name__)

MOST_NOTES = 10
"""Notes shown on the screen; the rest are counted. Faults are shown all."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    from iaunet.workers import default_workers

    parser = command_parser(
        "iaunet_evaluate",
        "Score the masks of a folder on the true masks of another: Dice, IoU, precision, sensitivity, specificity, "
        "HD95 and surface Dice, with 95 % intervals. Masks belong together by name. Several folders are compared by "
        "paired tests; the masks of several people with each other, and of models with them.",
        workspace=False,
    )
    parser.add_argument(
        "--pred",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]DIR",
        help="the predicted masks; several folders are tested against each other",
    )
    against = parser.add_mutually_exclusive_group(required=True)
    against.add_argument("--truth", type=Path, metavar="DIR", help="the true masks")
    against.add_argument(
        "--raters",
        nargs="+",
        action="extend",
        metavar="[NAME=]DIR",
        help="masks of two or more people, in the place of a truth",
    )
    parser.add_argument(
        "--groups",
        metavar="CSV|REGEX|folder|none",
        help="which cases share a patient or video: a table of case and group, a regular expression whose first "
        "group in the case's name it is, the folders, or none (default: proposed from folders and names)",
    )
    parser.add_argument(
        "--tolerance", type=_distance, default=2.0, metavar="PX", help="distance that surface Dice forgives"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write scores and what they say, if anywhere"
    )
    parser.add_argument("--workers", type=int, default=default_workers(), metavar="N", help="processes")
    return parser


def _distance(text: str) -> float:
    """A number of pixels.

    Raises:
        ArgumentTypeError: It is none, negative or not finite.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no distance: give a number of pixels, 0 or more")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if not (arguments.pred or arguments.raters):
        raise PredictionError("there is nothing to score on the truth: give the predicted masks with --pred")
    return _compare(arguments) if arguments.raters or len(arguments.pred) > 1 else _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> int:
    """Score one folder of masks on the truth."""
    from iaunet.inference.evaluation import evaluate_folders, save_evaluation
    from iaunet.inference.mask_sets import parse_set

    [(_, predictions)] = map(parse_set, arguments.pred)
    workers = max(1, arguments.workers)
    evaluation = evaluate_folders(predictions, arguments.truth, arguments.groups, arguments.tolerance, workers)
    for line in _describe(evaluation):
        logger.info("%s", line)
    if arguments.output:
        save_evaluation(arguments.output, evaluation)
        logger.info("written    %s", arguments.output)
    return SOME_FAILED if evaluation.failures else ALL_DONE


def _compare(arguments: argparse.Namespace) -> int:
    """Compare several folders of masks, on one truth or with those of people."""
    from iaunet.inference.mask_sets import parse_sets
    from iaunet.inference.set_comparison import compare_predictions, compare_raters
    from iaunet.inference.set_tables import describe_comparison, require_own_scores, save_comparison

    predictions = parse_sets(arguments.pred)
    raters = parse_sets(arguments.raters or ())
    if arguments.output:
        require_own_scores(arguments.output, {*predictions, *raters})
    settings = arguments.groups, arguments.tolerance, max(1, arguments.workers)
    if arguments.raters:
        comparison = compare_raters(raters, predictions, *settings)
    else:
        comparison = compare_predictions(predictions, arguments.truth, *settings)
    found = comparison.problems
    lines = [*_preamble(comparison.understood, comparison.groups_from, found), "", *describe_comparison(comparison)]
    lines += ["", *_failed(comparison.failures)]
    for line in lines:
        logger.info("%s", line)
    if arguments.output:
        save_comparison(arguments.output, comparison)
        logger.info("written    %s", arguments.output)
    return SOME_FAILED if comparison.failures else ALL_DONE


def _describe(evaluation: "Evaluation") -> list[str]:
    from iaunet.inference.scores import format_table

    lines = _preamble(evaluation.understood, evaluation.groups_from, evaluation.problems)
    lines += ["", *format_table(evaluation.summary), "", *_failed(evaluation.failures)]
    n_failed, n_scored = len(evaluation.failures), len(evaluation.scores)
    return [*lines, f"scored     {n_scored} of {n_scored + n_failed} cases, {n_failed} failed"]


def _preamble(understood: str, groups_from: str, problems: "Sequence[Problem]") -> list[str]:
    notes = [problem for problem in problems if problem.level == "note"]
    lines = [f"masks      {understood}", f"groups     {groups_from}"]
    lines += [f"note       {note.file}: {note.what}: {note.mend}" for note in notes[:MOST_NOTES]]
    return [*lines, *([f"note       and {len(notes) - MOST_NOTES} more of this kind"] if notes[MOST_NOTES:] else [])]


def _failed(failures: "Sequence[Problem]") -> list[str]:
    return [f"failed     {fault.file}: {fault.what}: {fault.mend}" for fault in failures]
