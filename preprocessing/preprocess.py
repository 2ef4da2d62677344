"""Fills the preprocessed arrays of a dataset in parallel processes."""

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from iaunet.dataset import Dataset
from iaunet.errors import FileError, PreprocessingError
from iaunet.files import decode_image, decode_mask, read_bytes, write_png
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.plan import Plan
from iaunet.preprocessing.arrays import Index, PartialArrays, Row, RowWriter, open_arrays, remove_old_arrays, truth_path
from iaunet.preprocessing.cases import prepare_image
from iaunet.preprocessing.geometry import Geometry
from iaunet.storage import naming_disk_faults
from iaunet.workers import map_in_processes

logger = logging.getLogger(__name__)

ROWS_A_TASK = 16
"""Rows that a worker writes and syncs together."""


@dataclass(frozen=True, kw_only=True)
class _RowTask:
    """A row to fill, with the files it is made of and the hashes they had when they were measured."""

    row: int
    case: str
    image: Path
    image_sha256: str
    mask: Path | None
    mask_sha256: str | None


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Rows that one worker fills at a time."""

    folder: Path
    index_shape: tuple[int, int, int, int]
    plan: Plan
    rows: tuple[_RowTask, ...]


def make_index(fingerprint: Fingerprint, plan: Plan) -> Index:
    """What the arrays of a plan hold: one row a case."""
    rows = tuple(
        Row(
            case=case.name,
            geometry=Geometry.of(plan.input_mode, case.size, plan.input_size),
            foreground=any(case.labels),
        )
        for case in fingerprint.cases
    )
    return Index(made_from=plan.arrays_digest, channels=plan.channels, input_size=plan.input_size, rows=rows)


def preprocess(dataset: Dataset, fingerprint: Fingerprint, plan: Plan, folder: Path, workers: int) -> Index:
    """Make the arrays of a plan; a rerun fills what is missing.

    Args:
        dataset: Where the raw files lie.
        fingerprint: What they were when they were measured.
        plan: How to preprocess them.
        folder: The ``preprocessed`` folder.
        workers: Processes to use.

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
    missing = arrays.missing_rows()
    tasks = _row_tasks(dataset, fingerprint, missing)
    batches = [
        _Batch(
            folder=arrays.folder,
            index_shape=index.image_shape,
            plan=plan,
            rows=tuple(tasks[i : i + ROWS_A_TASK]),
        )
        for i in range(0, len(tasks), ROWS_A_TASK)
    ]
    bar = tqdm(
        total=len(index.rows),
        initial=len(index.rows) - len(missing),
        desc="preprocess",
        unit=" rows",
        disable=None,
        leave=False,
    )
    with bar:
        for rows in map_in_processes(_fill_rows, batches, workers, items_worth_a_process=2):
            arrays.mark_done(rows)
            bar.update(len(rows))
    with naming_disk_faults(folder):
        arrays.finish()
    seconds = time.perf_counter() - start
    logger.info("preprocessed %d rows in %.1f s (%.0f images/s)", len(missing), seconds, len(missing) / seconds)
    return index


def _is_done(folder: Path, index: Index) -> bool:
    try:
        return open_arrays(folder, index.made_from).index == index
    except PreprocessingError:
        return False


def _row_tasks(dataset: Dataset, fingerprint: Fingerprint, rows: Sequence[int]) -> list[_RowTask]:
    files = {case.name: case for case in dataset.cases}
    tasks = []
    for row in rows:
        measured = fingerprint.cases[row]
        case = files[measured.name]
        tasks.append(
            _RowTask(
                row=row,
                case=measured.name,
                image=dataset.path(case.images[0]),
                image_sha256=measured.image_sha256,
                mask=dataset.path(case.mask) if case.mask else None,
                mask_sha256=measured.mask_sha256,
            )
        )
    return tasks


def _fill_rows(batch: _Batch) -> list[int]:
    with naming_disk_faults(batch.folder), RowWriter(batch.folder, batch.index_shape) as writer:
        for task in batch.rows:
            _fill_row(task, batch, writer)
        writer.sync()
    return [task.row for task in batch.rows]


def _fill_row(task: _RowTask, batch: _Batch, writer: RowWriter) -> None:
    plan = batch.plan
    with _naming(task.image):
        pixels = decode_image(_unchanged(task.image, task.image_sha256)).pixels
        image, geometry = prepare_image(pixels, plan)
    labels = np.zeros(geometry.native_size, np.uint8)
    if task.mask is not None and task.mask_sha256 is not None:
        with _naming(task.mask):
            labels = plan.coding.encode(decode_mask(_unchanged(task.mask, task.mask_sha256)))
    writer.write(task.row, image, geometry.mask_to_input(labels))
    write_png(truth_path(batch.folder, task.case), labels)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except FileError as fault:
        raise PreprocessingError(f"{path}: {fault}") from fault


def _unchanged(path: Path, sha256: str) -> bytes:
    """The bytes of a file that is still what it was when it was measured."""
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise FileError("changed since it was measured", "run the same command again")
    return data
