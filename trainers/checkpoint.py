"""Checkpoints: everything that training needs to go on as if it had never stopped."""

import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import torch

from iaunet.errors import TrainingError
from iaunet.storage import replacing

_FAULTS = (
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    EOFError,
    BadZipFile,
    pickle.UnpicklingError,
)
"""What torch is known to raise on damaged files."""


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
        if path.exists() and not is_zipfile(path):  # torch would go on to its older formats
            raise BadZipFile("no zip file")
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except _FAULTS as fault:
        reason = str(fault).split("\n")[0]
        raise TrainingError(
            f"{path} is no checkpoint of this version or damaged ({reason}): start the fold anew with --restart"
        ) from fault
