"""Fills the preprocessed arrays of a dataset in parallel processes."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from iaunet.dataset import IGNORED, Dataset
from iaunet.errors import FileError, PreprocessingError
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.pictures import KeptPlace
from iaunet.planners.plan import Plan
from iaunet.preprocessing.arrays import (
    INDEX,
    ArrayCase,
    Index,
    PartialArrays,
    Row,
    RowWriter,
    has_truth,
    open_arrays,
    remove_old_arrays,
    write_truth,
)
from iaunet.preprocessing.cases import place_rows, prepare_case, prepare_resized
from iaunet.stacks import Stack, read_mask_stack, read_stack
from iaunet.storage import naming_disk_faults, writing_beside
from iaunet.workers import map_in_processes

logger = logging.getLogger(__name__)

ROWS_A_BATCH = 16
"""Rows that a worker writes, and that are synced together, about."""

_Filling = tuple[NDArray[np.floating], NDArray[np.uint8]]
"""The input and the mask of a row."""


@dataclass(frozen=True, kw_only=True)
class _CaseTask:
    """A case whose rows to fill, with the files it is made of and the hashes they had when they were measured, and
    where measuring kept its picture, if that is what would be made."""

    case: ArrayCase
    images: tuple[Path, ...]
    mask: Path | None
    kept: KeptPlace | None


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Cases that one worker fills at a time."""

    folder: Path
    index_shape: tuple[int, int, int, int]
    plan: Plan
    cases: tuple[_CaseTask, ...]


def make_index(fingerprint: Fingerprint, plan: Plan) -> Index:
    """What the arrays of a plan hold: rows a case, those of a volume slice by slice."""
    cases: list[ArrayCase] = []
    rows: list[Row] = []
    for case in fingerprint.cases:
        places = place_rows(case.shape, case.spacing_mm, plan)
        cases.append(
            ArrayCase(
                name=case.name,
                shape=case.shape,
                spacing_mm=case.spacing_mm,
                image_sha256=case.image_sha256,
                mask_sha256=case.mask_sha256,
                first_row=len(rows),
                n_rows=len(places),
            )
        )
        rows += (Row(case=case.name, slice=place.slice, geometry=place.geometry) for place in places)
    return Index(
        made_from=plan.arrays_digest,
        prepared=plan.preparation_digest,
        channels=plan.channels,
        input_size=plan.input_size,
        cases=tuple(cases),
        rows=tuple(rows),
    )


def preprocess(
    dataset: Dataset,
    fingerprint: Fingerprint,
    plan: Plan,
    folder: Path,
    workers: int,
    kept: Mapping[str, KeptPlace] | None = None,
) -> Index:
    """Make the arrays of a plan; a rerun fills what is missing.

    Args:
        dataset: Where the raw files lie.
        fingerprint: What they were when they were measured.
        plan: How to preprocess them.
        folder: The ``preprocessed`` folder.
        workers: Processes to use.
        kept: Where measuring kept pictures of these cases, by name.

    Raises:
        PreprocessingError: A file has changed since it was measured, or cannot be read any more.
        WorkspaceError: The disk is full or cannot be written.
    """
    index = make_index(fingerprint, plan)
    if _is_done(folder, index):
        remove_old_arrays(folder)
        logger.info("preprocessed arrays are up to date: %s", folder)
        return index
    start = time.perf_counter()
    arrays = PartialArrays(folder, index)
    missing = set(arrays.missing_rows())
    waiting = [case for case in index.cases if not missing.isdisjoint(case.rows)]
    n_as_before = len(index.cases) - len(waiting)
    batches = _batches(arrays, _case_tasks(dataset, waiting, plan, kept or {}), plan)
    with tqdm(total=len(waiting), desc="preprocess", unit=" cases", disable=None, leave=False) as bar:
        for batch, rows in zip(
            batches, map_in_processes(_fill_cases, batches, workers, items_worth_a_process=2), strict=True
        ):
            arrays.mark_done(rows)
            bar.update(len(batch.cases))
    with naming_disk_faults(folder):
        arrays.finish()
    seconds = time.perf_counter() - start
    logger.info(
        "preprocessed %d cases (%d rows) in %.1f s (%.0f rows/s)%s",
        len(waiting),
        sum(case.n_rows for case in waiting),
        seconds,
        sum(case.n_rows for case in waiting) / seconds,
        f"; {n_as_before} cases are as before and were kept" if n_as_before else "",
    )
    return index


def _is_done(folder: Path, index: Index) -> bool:
    try:
        is_same = open_arrays(folder, index.made_from).index == index
    except PreprocessingError:
        return False
    return is_same and all(has_truth(folder, case) for case in index.cases)


def _case_tasks(
    dataset: Dataset, cases: Sequence[ArrayCase], plan: Plan, kept: Mapping[str, KeptPlace]
) -> list[_CaseTask]:
    files = {case.name: case for case in dataset.cases}
    made = (plan.channels, *plan.input_size)
    usable = {name: place for name, place in kept.items() if _takes_kept(plan) and place.shapes[0] == made}
    return [
        _CaseTask(
            case=case,
            images=tuple(map(dataset.path, files[case.name].images)),
            mask=dataset.path(mask) if (mask := files[case.name].mask) else None,
            kept=usable.get(case.name),
        )
        for case in cases
    ]


def _batches(arrays: PartialArrays, tasks: Sequence[_CaseTask], plan: Plan) -> list[_Batch]:
    """The cases in lots of `ROWS_A_BATCH` rows about."""
    lots: list[list[_CaseTask]] = []
    room = 0
    for task in tasks:
        if room <= 0:
            lots.append([])
            room = ROWS_A_BATCH
        lots[-1].append(task)
        room -= task.case.n_rows
    shape = arrays.index.image_shape
    return [_Batch(folder=arrays.folder, index_shape=shape, plan=plan, cases=tuple(lot)) for lot in lots]


def _fill_cases(batch: _Batch) -> dict[int, bool]:
    """Write the rows of a batch; gives for each whether it has foreground."""
    rows: dict[int, bool] = {}
    with (
        writing_beside(batch.folder / INDEX),
        naming_disk_faults(batch.folder),
        RowWriter(batch.folder, batch.index_shape) as writer,
    ):
        for task in batch.cases:
            rows |= _fill_case(task, batch, writer)
    return rows


def _fill_case(task: _CaseTask, batch: _Batch, writer: RowWriter) -> dict[int, bool]:
    plan, case = batch.plan, task.case
    kept = task.kept.read() if task.kept else None
    if kept is None:
        labels, rows = _prepare(task, plan)
    else:
        whole = kept.whole_mask
        labels = _read_labels(task, plan, None) if whole is None else plan.coding.encode(whole[None])
        rows = iter([(prepare_resized(kept.picture, plan), plan.coding.encode(kept.mask))])
    filled = {}
    for row, (image, mask) in zip(case.rows, rows, strict=True):
        writer.write(row, image, mask)
        filled[row] = bool(((mask > 0) & (mask != IGNORED)).any())
    write_truth(batch.folder, case.name, labels)
    return filled


def _takes_kept(plan: Plan) -> bool:
    """Whether a plan's rows are whole pictures of 8 bits, resized, whose masks' values rise as their labels do."""
    coding = plan.coding
    is_resized = plan.input_mode == "resize" and plan.normalisation.kind == "dataset" and plan.depth == "uint8"
    return (
        is_resized and coding.kind == "values" and coding.ignore is None and coding.values == (*sorted(coding.values),)
    )


def _prepare(task: _CaseTask, plan: Plan) -> tuple[NDArray[np.uint8], Iterator[_Filling]]:
    """The labels of a case at native size and its rows."""
    with _naming(task.images[0]):
        stack = read_stack(task.images, plan.slicing)
        _require_unchanged(stack.sha256, task.case.image_sha256)
        prepared = prepare_case(stack, plan)
    labels = _read_labels(task, plan, stack)
    masks = (place.geometry.mask_to_input(labels[place.slice]) for place in prepared.places)
    return labels, zip(prepared.rows(), masks, strict=True)


def _read_labels(task: _CaseTask, plan: Plan, stack: Stack | None) -> NDArray[np.uint8]:
    """The labels of a case [slices, H, W]; ``stack`` is its image, which pictures do not need."""
    if task.mask is None or task.case.mask_sha256 is None:
        return np.zeros(task.case.shape, np.uint8)
    with _naming(task.mask):
        mask = read_mask_stack(task.mask, plan.slicing, stack)
        _require_unchanged(mask.sha256, task.case.mask_sha256)
        return plan.coding.encode(mask.values)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except FileError as fault:
        raise PreprocessingError(f"{path}: {fault}") from fault


def _require_unchanged(sha256: str, measured: str) -> None:
    """Refuse a file that is no longer what it was when it was measured."""
    if sha256 != measured:
        raise FileError("changed since it was measured", "run the same command again")
