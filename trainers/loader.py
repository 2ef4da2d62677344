"""Brings batches of augmented rows from the preprocessed arrays to the training loop."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from iaunet.dataset import IGNORED, MaskCoding
from iaunet.errors import TrainingError
from iaunet.preprocessing.arrays import Arrays, open_arrays
from iaunet.trainers.augmentation import Augmenter
from iaunet.trainers.sampling import EpochSampler, Sample
from iaunet.workers import serve_parent


@dataclass(frozen=True)
class Batch:
    """Images [B, C, H, W] float32, targets [B, L, H, W] float32 of 0 and 1, and the rows they come from.

    ``valid`` [B, 1, H, W] is 0 where a pixel is ignored, None where the dataset ignores none.
    """

    images: torch.Tensor
    targets: torch.Tensor
    rows: tuple[int, ...]
    valid: torch.Tensor | None = None

    def split(self, n: int) -> "Iterator[Batch]":
        """The batch in parts of at most ``n`` rows."""
        for start in range(0, len(self.rows), n):
            part = slice(start, start + n)
            valid = None if self.valid is None else self.valid[part]
            yield Batch(self.images[part], self.targets[part], self.rows[part], valid)

    def pin_memory(self) -> "Batch":
        """The batch in memory that a GPU reads without a copy."""
        valid = None if self.valid is None else self.valid.pin_memory()
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.rows, valid)


class RowDataset(Dataset[tuple[NDArray[np.float32], NDArray[np.uint8], int]]):
    """Rows of the arrays, augmented. Workers map the arrays themselves: it holds paths, no data.

    Args:
        folder: The ``preprocessed`` folder.
        made_from: What the arrays must have been made from.
        augmenter: Changes each row; None leaves rows as they are.
    """

    def __init__(self, folder: Path, made_from: str, augmenter: Augmenter | None) -> None:
        self._folder = folder
        self._made_from = made_from
        self._augmenter = augmenter

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "arrays"}

    @cached_property
    def arrays(self) -> Arrays:
        """The mapped arrays."""
        return open_arrays(self._folder, self._made_from)

    def __getitem__(self, sample: Sample) -> tuple[NDArray[np.float32], NDArray[np.uint8], int]:
        image = self.arrays.images[sample.row].astype(np.float32)
        mask = np.array(self.arrays.masks[sample.row])
        if self._augmenter is not None:
            image, mask = self._augmenter(image, mask, sample.seed)
        return image, mask, sample.row


class Collator:
    """Puts rows together to a batch, with one binary target map an output."""

    def __init__(self, coding: MaskCoding) -> None:
        self._coding = coding

    def __call__(self, rows: list[tuple[NDArray[np.float32], NDArray[np.uint8], int]]) -> Batch:
        """Rows of (image, mask, row number) to a batch."""
        images, masks, numbers = zip(*rows, strict=True)
        labels = np.stack(masks)
        valid = None
        if self._coding.ignore is not None:
            valid = torch.from_numpy((labels != IGNORED)[:, None].astype(np.float32))
        targets = torch.from_numpy(self._coding.targets(labels))
        return Batch(torch.from_numpy(np.stack(images)), targets, numbers, valid)


def make_loader(
    dataset: RowDataset, sampler: EpochSampler, coding: MaskCoding, workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """A loader that gives the sampler's batches in its order. Use it within `ending_workers`.

    Args:
        dataset: The rows.
        sampler: Which rows, in which order.
        coding: Makes target maps of masks.
        workers: Processes that load; 0 loads in this one.
        pin_memory: For training on a GPU.
    """
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # it knows rows, the collator makes batches of them
        batch_sampler=sampler,
        collate_fn=Collator(coding),
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_start_worker if workers else None,
        generator=torch.Generator(),  # its own, or each epoch would draw from the one that the network draws from
    )


def start_batches(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Begin an epoch; worker processes start with the first.

    Signals that stop the command are held back meanwhile, and for good in the workers: they serve until this process
    has done its step, and a signal sent to the whole group does not end them while they start.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    from multiprocessing.resource_tracker import ensure_running  # not on every system

    ensure_running()  # starting it later would let the signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def ending_workers(loader: DataLoader[Batch]) -> Iterator[None]:
    """End the loader's processes with the block: Python at its end would wait for them, as SIGTERM does not reach them.

    Raises:
        TrainingError: One of them was killed.
    """
    try:
        yield
    except RuntimeError as fault:
        if not str(fault).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            "a loading process was killed, most likely because memory ran out: run the same command again to go on, "
            "with fewer --workers"
        ) from fault
    finally:
        if loader._iterator is not None:
            # torch 2.13 has no public call for it
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]


def _start_worker(worker: int) -> None:
    """One thread each, and an end with the parent."""
    torch.set_num_threads(1)
    serve_parent()
