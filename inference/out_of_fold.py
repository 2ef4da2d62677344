"""What each case's own held-out network said of its rows: kept as logits, so that decisions can be made anew."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import PredictionError
from iaunet.storage import make_folder, naming_disk_faults

LARGEST_LOGIT = 16.0
"""Probabilities nearer to 0 or 1 than 1e-7 are cut; float16 holds smaller logits to one part in 2000."""


def logit(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(p / (1 - p)) of probabilities of any shape, within +-`LARGEST_LOGIT`."""
    lowest = 1 / (1 + np.exp(LARGEST_LOGIT))
    p = np.clip(probabilities.astype(np.float64), lowest, 1 - lowest)
    return np.log(p / (1 - p)).astype(np.float32)


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """The probabilities of logits of any shape, float32."""
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float32))), np.float32)


class LogitWriter:
    """Writes the logits of a case's rows, one row after the other, as an array file float16 [rows, outputs, h, w].

    Args:
        path: Of the file; made anew.
        shape: Of the whole array.
    """

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        self._path = path
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
        make_folder(path.parent)
        with naming_disk_faults(path), path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {**header, "shape": tuple(shape)})

    def add(self, probabilities: NDArray[np.float32]) -> None:
        """Add the next row's probabilities [outputs, h, w].

        Raises:
            WorkspaceError: The disk is full.
        """
        with naming_disk_faults(self._path), self._path.open("ab") as file:
            file.write(np.ascontiguousarray(logit(probabilities), np.float16).data)


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
        logits: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as fault:
        raise PredictionError(
            f"{path} cannot be read ({fault}): run iaunet_train with --val_only for this fold"
        ) from fault
    return logits
