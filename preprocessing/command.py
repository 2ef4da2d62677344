"""The command ``iaunet_plan_and_preprocess``."""

import argparse
import contextlib
import importlib
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from iaunet.console import ALL_DONE, CANNOT_BE_DONE, SOME_FAILED, command_parser, run_command

if TYPE_CHECKING:
    from iaunet.planners.plan import Plan

logger = logging.getLogger(__name__)

LONG = 24 * 3600.0
NARROW = 8

MEASURING = "iaunet.planners.measures"
"""What the processes need first."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    from iaunet.workers import default_workers

    parser = command_parser(
        "iaunet_plan_and_preprocess",
        "Read and check folders of images and masks, decide how to train on them, and preprocess them. The raw "
        "folders are only read. What is said here is remembered when the same data set is planned again.",
    )
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help="a folder with raw data, or a known name")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the images, if not found by themselves")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="the masks, if not found by themselves")
    parser.add_argument(
        "--mask_suffix",
        action="append",
        metavar="TEXT",
        help="what ends a mask's name beyond its image's (besides _mask, _masks, _seg, _segmentation)",
    )
    parser.add_argument(
        "--missing_mask",
        choices=("error", "empty", "skip"),
        help="what an image without mask is: a fault (default), an image without foreground, or left out",
    )
    parser.add_argument(
        "--groups",
        metavar="CSV|REGEX|folder|none",
        help="which cases share a patient or video: a table of case and group, a regular expression whose first "
        "group in the case's name it is, the folders, or none (default: proposed from folders and names)",
    )
    parser.add_argument(
        "--skip_faulty", action="store_true", default=None, help="leave out cases whose files have faults"
    )
    parser.add_argument("--no_skip_faulty", dest="skip_faulty", action="store_false", help="stop at faults again")
    parser.add_argument(
        "--slice_axis",
        choices=("axial", "coronal", "sagittal"),
        help="the planes volumes are cut into (default: across the coarsest spacing)",
    )
    parser.add_argument(
        "--axes", metavar="LETTERS", help="axes of multi-page TIFF files that do not say them: ZYX slices, CYX channels"
    )
    parser.add_argument(
        "--test", type=Path, metavar="DIR", help="a held-out test set of images and masks, checked but never planned on"
    )
    parser.add_argument("--no_test", action="store_true", help="go on without the test set named before")
    parser.add_argument("--planner", metavar="auto|paper", help="who decides (default: auto)")
    parser.add_argument("--width", type=int, metavar="N", help="channels of the network's first stage")
    parser.add_argument("--folds", type=int, metavar="N", help="folds of each split (default: 5)")
    parser.add_argument("--dataset_name", metavar="NAME", help="its name in the workspace (default: the folder's)")
    parser.add_argument("--workers", type=int, default=default_workers(), metavar="N", help="processes")
    parser.add_argument("--replan", action="store_true", help="make a new plan even if plan.json was edited")
    parser.add_argument("--verify_only", action="store_true", help="read and check, then stop")
    parser.add_argument("--dry_run", action="store_true", help="also plan, but write no plan and no arrays")
    parser.add_argument(
        "--no_timing",
        action="store_true",
        help="do not try how long training takes here, which takes a while",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from iaunet.workers import IMAGES_WORTH_A_PROCESS, keeping_processes, prepare_processes

    with contextlib.ExitStack() as processes:
        processes.enter_context(keeping_processes())
        workers = max(1, arguments.workers)
        few = 2 * IMAGES_WORTH_A_PROCESS  # an image and a mask a case
        if sum(_count_files(Path(dataset), few + 1) for dataset in arguments.datasets) > few:
            prepare_processes(workers, MEASURING)  # which takes as long as the imports below take this process
        return _prepare(arguments, workers, processes)


def _prepare(arguments: argparse.Namespace, workers: int, processes: contextlib.ExitStack) -> int:
    """Prepare all data sets; the processes that are there end with the first, before the network is timed."""
    from iaunet.errors import DatasetError
    from iaunet.planners.planner import find_planner
    from iaunet.preprocessing.preparation import Preparation, locate_dataset, prepare_dataset
    from iaunet.preprocessing.summary import describe
    from iaunet.workspace import open_workspace

    if len(arguments.datasets) > 1 and (arguments.dataset_name or arguments.images or arguments.test):
        raise DatasetError("--dataset_name, --images and --test are for one data set at a time")
    workspace = open_workspace(arguments.workspace, os.environ)
    given = {
        "images": _absolute(arguments.images),
        "masks": _absolute(arguments.masks),
        "mask_suffixes": tuple(arguments.mask_suffix) if arguments.mask_suffix else None,
        "missing_mask": arguments.missing_mask,
        "groups": _absolute_table(arguments.groups),
        "skip_faulty": arguments.skip_faulty,
        "slice_axis": arguments.slice_axis,
        "axes": arguments.axes,
        "test": _absolute(arguments.test),
        "planner": arguments.planner and find_planner(arguments.planner).name,
        "width": arguments.width,
        "n_folds": arguments.folds,
    }
    said = {name: value for name, value in given.items() if value is not None}
    if arguments.no_test:
        said["test"] = None
    wish = Preparation(
        workers=workers,
        replan=arguments.replan,
        verify_only=arguments.verify_only,
        dry_run=arguments.dry_run,
    )
    with ThreadPoolExecutor(1) as thread:
        timing = None if arguments.no_timing or wish.verify_only else _Timing(thread)
        during = (timing.begin, timing.try_network) if timing else ()

        def prepare_one(dataset: str) -> None:
            folder, found = locate_dataset(workspace, dataset, said, arguments.dataset_name)
            try:
                prepared = prepare_dataset(folder, found, wish, *during)
            finally:
                processes.close()  # the next data set must not meet processes that broke down
            for line in describe(prepared):
                logger.info("%s", line)
            if timing and prepared.plan is not None:
                logger.info("%s", timing.tell(prepared.plan, len(prepared.dataset.cases), found.n_folds))

        if len(arguments.datasets) == 1:
            prepare_one(*arguments.datasets)
            return ALL_DONE
        return _each(arguments.datasets, prepare_one)


def _each(datasets: Sequence[str], prepare_one: Callable[[str], None]) -> int:
    """Prepare several data sets; the faults of one do not keep the others from it."""
    from iaunet.errors import IaunetError

    n_failed = 0
    for dataset in datasets:
        try:
            prepare_one(dataset)
        except IaunetError as fault:
            logger.warning("failed: %s: %s", dataset, fault)
            n_failed += 1
    if not n_failed:
        return ALL_DONE
    logger.warning("%d of %d data sets failed, see above", n_failed, len(datasets))
    return SOME_FAILED if n_failed < len(datasets) else CANNOT_BE_DONE


class _Timing:
    """Finds out how long training will take on this machine: a few small steps are really run.

    torch is imported while others read files, and the network tried while they make arrays; what counts runs alone.

    Args:
        thread: Where that is done.
    """

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._time_row: Future[Callable[[], float]] | None = None

    def begin(self) -> None:
        """Import what times networks, torch above all; a fault shows when it is used."""
        self._thread.submit(importlib.import_module, "iaunet.networks.timing")

    def try_network(self, plan: "Plan") -> None:
        """Have a plan's network make its first step, which takes longer than any other; none of a stranger's."""
        self._time_row = None if ":" in plan.network.name else self._thread.submit(_try_network, plan)

    def tell(self, plan: "Plan", n_cases: int, n_folds: int) -> str:
        """The line about the time of all folds."""
        if self._time_row is None:
            return f"time       not estimated: {plan.network.name} is not run without --network"
        try:
            seconds = self._time_row.result()()
        except (RuntimeError, MemoryError) as fault:  # what torch raises where a GPU is full or another program's alone
            reason = str(fault).split("\n")[0] or type(fault).__name__
            return f"time       not estimated: {reason}"

        from iaunet.device import choose_device, describe_device
        from iaunet.durations import duration

        device = choose_device("auto")
        recipe = plan.recipe
        drawn = n_cases * recipe.draws_a_case * (n_folds - 1) / n_folds
        rows = min(drawn, recipe.most_steps_an_epoch * recipe.batch_size)
        total = n_folds * recipe.epochs * rows * seconds
        is_slow = device.type == "cpu" and total > LONG and plan.network.width > NARROW
        narrower = f"; --width {NARROW} is much faster" if is_slow else ""
        return f"time       about {duration(total)} for {n_folds} folds on {describe_device(device)}{narrower}"


def _try_network(plan: "Plan") -> Callable[[], float]:
    from iaunet.device import choose_device
    from iaunet.networks.timing import prepare_timing
    from iaunet.planners.plan import build_planned_network

    network = build_planned_network(plan)
    return prepare_timing(network, plan.channels, len(plan.labels), plan.input_size, choose_device("auto"))


def _count_files(folder: Path, most: int) -> int:
    """How many files a folder holds, no further than ``most``."""
    files = (name for _, _, names in os.walk(folder) for name in names)
    return sum(1 for _ in itertools.islice(files, most))


def _absolute(path: Path | None) -> str | None:
    return str(path.resolve()) if path else None


def _absolute_table(groups: str | None) -> str | None:
    """A table's path must hold when the dataset is planned again from elsewhere."""
    from iaunet.grouping import TABLES

    if groups and Path(groups).suffix.lower() in TABLES:
        return str(Path(groups).resolve())
    return groups
