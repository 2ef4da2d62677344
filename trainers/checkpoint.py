"""Checkpoints: everything that training needs to go on as if it had never stopped."""

import pickle
import struct
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch

from iaunet.errors import TrainingError
from iaunet.exhaustion import is_out_of_memory
from iaunet.silence import ignoring_warnings
from iaunet.storage import replacing

_FAULTS = (
    OSError,
    RuntimeError,
    MemoryError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    EOFError,
    BadZipFile,
    struct.error,
    pickle.UnpicklingError,
)
"""What torch and `zipfile` are known to raise on damaged files."""

_COUNTS = ("epochs", "epoch", "step", "average_updates", "threads", "micro_batch", "ranks")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a training between two steps.

    ``epoch`` and ``step`` (within the epoch) are the next to be done; ``losses`` are the sums over the steps done
    in the running epoch. ``network`` holds the raw weights and buffers, ``average`` those of the moving average.
    ``run`` is the digest of the run's record, ``epochs`` the number it will train for, ``hours_to_fix`` the hours
    that are still to decide it, if any. ``random_state`` is that of torch's generators, see
    `iaunet.device`, ``threads`` how many threads computed, ``ranks`` how many processes together.
    """

    run: str
    epochs: int
    hours_to_fix: float | None
    epoch: int
    step: int
    losses: dict[str, float]
    seconds: float
    network: dict[str, torch.Tensor]
    optimiser: dict[str, Any]
    average: dict[str, torch.Tensor] | None
    average_updates: int
    scaler: dict[str, Any]
    random_state: list[torch.Tensor]
    threads: int
    micro_batch: int
    ranks: int = 1

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise TypeError(f"{name} is {getattr(self, name)!r}")


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    state = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as fault:
            if isinstance(fault.__context__, OSError):  # torch hides what the disk said
                raise fault.__context__ from None
            raise


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; it can hold tensors and plain values only, nothing in it is run.

    Raises:
        TrainingError: It is damaged or not ours.
    """
    try:
        _require_whole(path)
        with ignoring_warnings():  # of odd pickles, which are refused or read all the same
            return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except _FAULTS as fault:
        reason = str(fault).split("\n")[0]
        if is_out_of_memory(fault):
            raise TrainingError(
                f"memory does not suffice to read {path} ({reason}): close other programs and run the same command "
                "again to go on"
            ) from fault
        raise TrainingError(
            f"{path} is no checkpoint of this version or damaged ({reason}): start the fold anew with --restart"
        ) from fault


def _require_whole(path: Path) -> None:
    """Compare the checksums of a checkpoint's parts, which torch does not; it would also go on to older formats."""
    with ZipFile(path) as archive:
        if any(info.compress_type != ZIP_STORED for info in archive.infolist()):
            raise BadZipFile("it was packed by another program")
        damaged = archive.testzip()
        if damaged is not None:
            raise BadZipFile(f"{damaged} differs from its checksum")
