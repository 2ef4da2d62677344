"""What each case's own held-out network said of its rows: kept as logits, so that decisions can be made anew."""

import contextlib
import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from iaunet.errors import PredictionError
from iaunet.storage import naming_disk_faults, read_text, replacing, write_text

LARGEST_LOGIT = 16.0
"""Probabilities nearer to 0 or 1 than 1e-7 are cut; float16 holds smaller logits to one part in 2000."""

LOWEST_PROBABILITY = 1 / (1 + math.exp(LARGEST_LOGIT))


def logit(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(p / (1 - p)) of probabilities of any shape, within +-`LARGEST_LOGIT`."""
    p = np.clip(probabilities.astype(np.float64), LOWEST_PROBABILITY, 1 - LOWEST_PROBABILITY)
    return np.log(p / (1 - p)).astype(np.float32)


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """The probabilities of logits of any shape, float32."""
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float32))), np.float32)


class LogitWriter:
    """Writes the logits of a case's rows, one row after the other, as an array file float16 [rows, outputs, h, w].

    The file appears with its last row. A writer that goes before takes what it has written along.

    Args:
        path: Of the file; replaces one that is there.
        shape: Of the whole array.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be made.
    """

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        self._path = path
        self._rows_to_come = shape[0]
        self._replacing = contextlib.ExitStack()
        self._temporary = self._replacing.enter_context(replacing(path))
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
        with naming_disk_faults(path), self._temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {**header, "shape": tuple(shape)})

    def add(self, probabilities: NDArray[np.float32]) -> None:
        """Add the next row's probabilities [outputs, h, w].

        Raises:
            WorkspaceError: The disk is full.
        """
        with naming_disk_faults(self._path), self._temporary.open("ab") as file:
            file.write(np.ascontiguousarray(logit(probabilities), np.float16).data)
        self._rows_to_come -= 1
        if self._rows_to_come == 0:
            self._replacing.close()


def logits_path(folder: Path, case: str) -> Path:
    """Where the logits of a case lie in a folder of logits."""
    return folder / f"{case}.npy"


def read_logits(folder: Path, case: str) -> NDArray[np.float16]:
    """The logits [rows, outputs, h, w] of a case, mapped.

    Raises:
        PredictionError: They are missing or damaged.
    """
    path = logits_path(folder, case)
    try:
        logits: NDArray[np.float16] = open_memmap(path, "r")
    except (OSError, ValueError, EOFError) as fault:
        raise PredictionError(
            f"{path} cannot be read ({fault}): run iaunet_train with --val_only for this fold"
        ) from fault
    return logits


def write_disagreement(path: Path, disagreement: Mapping[str, NDArray[np.float64]], labels: Sequence[str]) -> None:
    """Write by case how far the flips of each output were from their mean, added up over pixels: [outputs].

    Raises:
        WorkspaceError: The disk is full.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *labels])
    writer.writerows([name, *(f"{value:.6g}" for value in values)] for name, values in disagreement.items())
    write_text(path, text.getvalue())


def read_disagreement(path: Path) -> dict[str, NDArray[np.float64]]:
    """What `write_disagreement` wrote.

    Raises:
        PredictionError: The file is missing or holds something else.
    """
    mend = "run iaunet_train with --val_only for this fold"
    rows = csv.reader(io.StringIO(read_text(path, PredictionError, mend), newline=""))
    try:
        _, *labels = next(rows)
        return {name: np.array(list(map(float, values)), np.float64).reshape(len(labels)) for name, *values in rows}
    except (ValueError, StopIteration, csv.Error) as fault:
        raise PredictionError(f"{path} holds no numbers of cases in line {rows.line_num}: {mend}") from fault
