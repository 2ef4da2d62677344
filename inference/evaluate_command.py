"""The command ``iaunet_evaluate``."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iaunet.console import ALL_DONE, SOME_FAILED, command_parser, run_command, terminating_like_interrupt

if TYPE_CHECKING:
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
        "HD95 and surface Dice, with 95 % intervals. Masks belong together by name.",
        workspace=False,
    )
    parser.add_argument("--pred", type=Path, required=True, metavar="DIR", help="the predicted masks")
    parser.add_argument("--truth", type=Path, required=True, metavar="DIR", help="the true masks")
    parser.add_argument(
        "--groups",
        metavar="CSV|REGEX|folder|none",
        help="which cases share a patient or video: a table of case and group, a regular expression whose first "
        "group in the case's name it is, the folders, or none (default: proposed from folders and names)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=2.0, metavar="PX", help="distance that surface Dice forgives"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write scores.csv and summary.json, if anywhere"
    )
    parser.add_argument("--workers", type=int, default=default_workers(), metavar="N", help="processes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from iaunet.inference.evaluation import evaluate_folders, save_evaluation

    with terminating_like_interrupt():
        evaluation = evaluate_folders(
            arguments.pred,
            arguments.truth,
            arguments.groups,
            tolerance=arguments.tolerance,
            workers=max(1, arguments.workers),
        )
    for line in _describe(evaluation):
        logger.info("%s", line)
    if arguments.output:
        save_evaluation(arguments.output, evaluation)
        logger.info("written    %s", arguments.output)
    return SOME_FAILED if evaluation.failures else ALL_DONE


def _describe(evaluation: "Evaluation") -> list[str]:
    from iaunet.inference.scores import format_table

    notes = [problem for problem in evaluation.problems if problem.level == "note"]
    lines = [f"masks      {evaluation.understood}", f"groups     {evaluation.groups_from}"]
    lines += [f"note       {note.file}: {note.what}: {note.mend}" for note in notes[:MOST_NOTES]]
    if len(notes) > MOST_NOTES:
        lines.append(f"note       and {len(notes) - MOST_NOTES} more of this kind")
    lines += ["", *format_table(evaluation.summary), ""]
    lines += [f"failed     {fault.file}: {fault.what}: {fault.mend}" for fault in evaluation.failures]
    n_failed, n_scored = len(evaluation.failures), len(evaluation.scores)
    return [*lines, f"scored     {n_scored} of {n_scored + n_failed} cases, {n_failed} failed"]
