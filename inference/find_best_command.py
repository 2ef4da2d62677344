"""The command ``iaunet_find_best``."""

import argparse
import logging
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from iaunet.console import ALL_DONE, command_parser, run_command

if TYPE_CHECKING:
    from iaunet.inference.find_best import Finding
    from iaunet.inference.tuning import Tuning

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser(
        "iaunet_find_best",
        "Compare all runs that have every fold, and ensembles of them, on the cases that each fold held out; choose "
        "thresholds and cleaning of the masks there; iaunet_predict then uses what was chosen.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a name the workspace knows, or the raw data's folder")
    parser.add_argument("--split", metavar="NAME|FILE", help="the split whose runs are compared (default: the plan's)")
    parser.add_argument(
        "--incomplete",
        action="store_true",
        help="also compare runs that lack folds, all on the cases of the folds that every run has",
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="decides the bootstrap")
    return parser


def _seed(text: str) -> int:
    """A seed of numpy's.

    Raises:
        ArgumentTypeError: It is none.
    """
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: give a whole number of 0 or more")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from iaunet.workspace import find_dataset

    folder = find_dataset(arguments.dataset, arguments.workspace)

    from iaunet.inference.find_best import find_best  # imports scipy and torch: after what fails quickly

    finding = find_best(folder, arguments.split, arguments.seed, arguments.incomplete)
    for line in describe_finding(finding):
        logger.info("%s", line)
    logger.info("next       iaunet_report %s (how good it is)", shlex.quote(folder.name))
    logger.info("next       iaunet_predict -i FOLDER -o FOLDER -d %s", shlex.quote(folder.name))
    return ALL_DONE


def describe_finding(finding: "Finding") -> list[str]:
    """A table of the candidates, what was chosen and why, and where it is written."""
    model = finding.model
    width = max(len(candidate.title) for candidate in model.candidates)
    lines = [f"left out   {name}: {reason}" for name, reason in finding.left_out.items()]
    if finding.missing:
        lines.append(f"incomplete nothing is known of the cases of fold {', '.join(map(str, finding.missing))}")
    lines += ["", f"{'runs':{width}}  Dice    95 % interval (out of fold, split {model.split})"]
    for candidate in model.candidates:
        interval = "" if candidate.low is None else f"{candidate.low:.4f} to {candidate.high:.4f}"
        lines.append(f"{candidate.title:{width}}  {candidate.dice:.4f}  {interval}".rstrip())
    return [
        *lines,
        "",
        f"model      {' + '.join(member.run for member in model.members)}",
        f"             because: {model.why}",
        f"masks      {finding.masks}",
        f"             because: {model.postprocessing_why}",
        *_describe_tuning(finding.tuning),
        f"written    {finding.folder.root}",
    ]


def _describe_tuning(tuning: "Tuning") -> list[str]:
    """How far probabilities mean what they say, and whether bad masks can be told."""
    lines = []
    if tuning.calibration is not None:
        before, after = tuning.calibration.before, tuning.calibration.after
        values = [value for folds in tuning.calibration.temperatures.values() for value in folds.values()]
        errors = f"ECE {before.ece:.4f} to {after.ece:.4f}, Brier {before.brier:.4f} to {after.brier:.4f}"
        lines += [
            f"calibrated temperatures {min(values):.2f} to {max(values):.2f}: {errors}",
            "             of single networks: the ensemble's own calibration cannot be measured by cross-validation",
        ]
    learnt = tuning.expected_dice
    if learnt is not None and learnt.skipped:
        lines += [f"flags      none: {learnt.skipped}"]
    elif learnt is not None:
        flagged = "none" if learnt.dice_flagged is None else f"{learnt.dice_flagged:.4f}"
        both = f"Dice {flagged} of the {learnt.n_flagged} cases flagged, {learnt.dice_unflagged:.4f} of the others"
        correlation = f"{learnt.rank_correlation:.2f} ({learnt.low:.2f} to {learnt.high:.2f})"
        lines += [
            f"flags      below an expected Dice of {learnt.flag_below:.3f}: {both}",
            f"             rank correlation of expected and true Dice: {correlation}",
        ]
    return lines
