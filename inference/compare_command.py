"""The command ``iaunet_compare``."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iaunet.console import ALL_DONE, command_parser, run_command
from iaunet.inference.published import PUBLISHED

if TYPE_CHECKING:
    from iaunet.inference.compare import Comparison

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser(
        "iaunet_compare",
        "Compare the runs of a data set on the cases they held out: the paper's tables with intervals and paired "
        "tests, and its figures with right and wrong pixels in colours. What has not been trained is marked, never "
        "filled in.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a name the workspace knows, or the raw data's folder")
    parser.add_argument("--run", nargs="+", default=[], metavar="NAME", help="runs to compare (default: all)")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="a folder of runs to take instead of the data set's own; their weights are not needed",
    )
    parser.add_argument(
        "--reference", default="iaunet", metavar="NAME", help="the run or network that the others are tested against"
    )
    parser.add_argument(
        "--published",
        metavar="NAME",
        help=f"the paper's figures to set beside: {', '.join(PUBLISHED)}, or none (default: by the data set's name)",
    )
    parser.add_argument("--cases", nargs="+", default=[], metavar="CASE", help="cases to show in the grid")
    parser.add_argument("--random", type=int, default=3, metavar="N", help="cases to show that are drawn at random")
    parser.add_argument("--best", type=int, default=2, metavar="N", help="cases to show that did best")
    parser.add_argument("--worst", type=int, default=3, metavar="N", help="cases to show that did worst")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides which cases are drawn")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="where networks are timed: auto, cpu, cuda")
    parser.add_argument("--no_timing", action="store_true", help="do not time the networks")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="where to write (default: comparison/ in the workspace)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from iaunet.workspace import find_dataset

    folder = find_dataset(arguments.dataset, arguments.workspace)

    from iaunet.inference.compare import CompareOptions, compare_runs  # imports torch: after what fails quickly

    options = CompareOptions(
        runs=tuple(arguments.run),
        results=arguments.results,
        reference=arguments.reference,
        published=arguments.published,
        cases=tuple(arguments.cases),
        n_random=arguments.random,
        n_best=arguments.best,
        n_worst=arguments.worst,
        seed=arguments.seed,
        device=None if arguments.no_timing else arguments.device,
        output=arguments.output,
    )
    comparison = compare_runs(folder, options)
    for line in describe_comparison(comparison, options.reference):
        logger.info("%s", line)
    return ALL_DONE


def describe_comparison(comparison: "Comparison", reference: str) -> list[str]:
    """What was compared, a line a run, and the files that were written; ``reference`` is what was asked for."""
    from iaunet.metrics import METRICS

    lines = []
    for contest in comparison.contests:
        table = contest.tables[0]
        of_label = f", {table.label}" if len(contest.labels) > 1 else ""
        lines += ["", f"recipe {contest.recipe}, split {contest.split}{of_label}"]
        if contest.inflated:
            lines.append(f"these scores are {contest.inflated}")
        if contest.reference is None:
            lines.append(f"no tests: the reference {reference} has not been trained so (--reference NAME for another)")
        for standing in table.standings:
            dice = METRICS["dice"].text(standing.means["dice"].mean)
            lines.append(f"{standing.contestant.title:28} Dice {dice}  folds {', '.join(map(str, standing.folds))}")
    return [*lines, "", *(f"written    {path}" for path in comparison.files)]
