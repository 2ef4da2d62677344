"""The command ``iaunet_report``."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iaunet.console import ALL_DONE, command_parser, run_command

if TYPE_CHECKING:
    from iaunet.inference.report.writing import Report

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser(
        "iaunet_report",
        "Write one HTML page that shows how good the model of a data set is and where it fails, with the words, tables "
        "and figures for a paper beside it. The page needs no other file and no network.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a name the workspace knows, or the raw data's folder")
    parser.add_argument(
        "--anonymous",
        action="store_true",
        help="replace the names of cases and groups by numbers, and show no pixels and no paths",
    )
    parser.add_argument("--test", action="store_true", help="predict and score the held-out test set, if not done yet")
    trusted = "with --test: trust the stranger's network the runs were trained with"
    parser.add_argument("--network", metavar="NAME", help=trusted)
    where = "where to write (default: report/ or report_anonymous/ in the workspace)"
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help=where)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from iaunet.workspace import find_dataset

    folder = find_dataset(arguments.dataset, arguments.workspace)

    from iaunet.inference.report.writing import write_report  # imports scipy and torch: after what fails quickly

    if arguments.test:
        from iaunet.inference.held_out_scores import score_test_once

        score_test_once(folder, trusted_network=arguments.network)
    report = write_report(folder, arguments.anonymous, arguments.output)
    for line in describe_report(report):
        logger.info("%s", line)
    return ALL_DONE


def describe_report(report: "Report") -> list[str]:
    """What the report could not show, and where it was written."""
    lines = []
    for missing in report.facts.missing:
        lines.append(f"not shown  {missing.what}: {missing.why}")
        lines += [f"             run {missing.command}"] if missing.command else []
    if report.facts.anonymous:
        lines.append(f"anonymous  the name of the data set, {report.facts.dataset}, and those of runs and labels stay")
    folder = report.page.parent
    return [*lines, f"written    {len(report.files)} files to {folder}", f"look at    {report.page}"]
