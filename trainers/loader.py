"""Brings batches of augmented rows from the preprocessed arrays to the training loop."""

import contextlib
import functools
import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from iaunet.dataset import IGNORED, MaskCoding
from iaunet.errors import TrainingError
from iaunet.exhaustion import MEMORY_FAULTS, is_out_of_memory
from iaunet.preprocessing.arrays import Arrays, open_arrays
from iaunet.trainers.augmentation import Augmenter
from iaunet.trainers.device_augmentation import DeviceAugmenter
from iaunet.trainers.sampling import EpochSampler, Sample
from iaunet.workers import serve_parent

logger = logging.getLogger(__name__)

T = TypeVar("T")

NO_SHARED_MEMORY = "unable to allocate shared memory"
"""What torch says when /dev/shm is full."""


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
        """The batch in ``n`` parts, as many rows each or one more."""
        rows = len(self.rows)
        for i in range(n):
            part = slice(i * rows // n, (i + 1) * rows // n)
            valid = None if self.valid is None else self.valid[part]
            yield Batch(self.images[part], self.targets[part], self.rows[part], valid)

    def pin_memory(self) -> "Batch":
        """The batch in memory that a GPU reads without a copy."""
        valid = None if self.valid is None else self.valid.pin_memory()
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.rows, valid)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, copied to an NVIDIA GPU without waiting where its memory is pinned."""
        is_cuda = device.type == "cuda"  # on others memory may be given away while it is copied
        valid = None if self.valid is None else self.valid.to(device, non_blocking=is_cuda)
        images, targets = (each.to(device, non_blocking=is_cuda) for each in (self.images, self.targets))
        return Batch(images, targets, self.rows, valid)


@dataclass(frozen=True)
class StoredBatch:
    """Rows as they are stored, images [B, C, H, W] float16 and masks [B, H, W] uint8, to be augmented on a device."""

    images: torch.Tensor
    masks: torch.Tensor
    samples: tuple[Sample, ...]

    def pin_memory(self) -> "StoredBatch":
        """The batch in memory that a GPU reads without a copy."""
        return StoredBatch(self.images.pin_memory(), self.masks.pin_memory(), self.samples)


Row = tuple[NDArray[np.floating], NDArray[np.uint8], Sample]
"""Image [C, H, W] and mask [H, W], and which row they are."""


class RowDataset(Dataset[Row]):
    """Rows of the arrays, augmented. Workers map the arrays themselves: it holds paths, no data.

    Args:
        folder: The ``preprocessed`` folder.
        made_from: What the arrays must have been made from.
        augmenter: Changes each row; None leaves rows as they are stored, in float16.
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

    def __getitem__(self, sample: Sample) -> Row:
        image, mask = np.array(self.arrays.images[sample.row]), np.array(self.arrays.masks[sample.row])
        if self._augmenter is not None:
            image, mask = self._augmenter(image.astype(np.float32), mask, sample.seed)
        return image, mask, sample


class Collator:
    """Puts rows together to a batch, with one binary target map an output."""

    def __init__(self, coding: MaskCoding) -> None:
        self._coding = coding

    def __call__(self, rows: list[Row]) -> Batch:
        """Rows to a batch."""
        images, masks, samples = zip(*rows, strict=True)
        labels = np.stack(masks)
        valid = None
        if self._coding.ignore is not None:
            valid = torch.from_numpy((labels != IGNORED)[:, None].astype(np.float32))
        targets = torch.from_numpy(self._coding.targets(labels))
        return Batch(torch.from_numpy(np.stack(images)).float(), targets, tuple(one.row for one in samples), valid)


def collate_stored(rows: list[Row]) -> StoredBatch:
    """Rows to a batch, as they are."""
    images, masks, samples = zip(*rows, strict=True)
    return StoredBatch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks)), samples)


class SharingCollator(Generic[T]):
    """Makes batches of rows in a worker, where the process that asked for them can read them: in shared memory.

    torch would put them there by itself, in a thread of the worker: when the shared memory is full that thread tells
    it to nobody, and the other process waits for ever.

    Args:
        collate: Makes the batches.
    """

    def __init__(self, collate: Callable[[list[Row]], T]) -> None:
        self._collate = collate

    def __call__(self, rows: list[Row]) -> T:
        """Rows to a batch."""
        batch = self._collate(rows)
        for value in vars(batch).values():
            if isinstance(value, torch.Tensor):
                value.share_memory_()  # type: ignore[no-untyped-call]
        return batch


class DeviceCollator:
    """Makes batches of stored ones on a device: augmented there, with target maps.

    Args:
        augmenter: Changes the rows.
        coding: Makes target maps of masks.
        device: Where the batches are to be.
    """

    def __init__(self, augmenter: DeviceAugmenter, coding: MaskCoding, device: torch.device) -> None:
        self._augmenter = augmenter
        self._ignores = coding.ignore is not None
        self._device = device
        every_value = np.arange(256, dtype=np.uint8)[None]
        self._targets = torch.from_numpy(coding.targets(every_value)[:, 0]).to(device)  # [outputs, 256]

    def __call__(self, stored: StoredBatch) -> Batch:
        """A stored batch to an augmented one."""
        images, masks = (part.to(self._device, non_blocking=True) for part in (stored.images, stored.masks))
        images, masks = self._augmenter(images, masks, [sample.seed for sample in stored.samples])
        targets = self._targets[:, masks.int()].transpose(0, 1).contiguous()
        valid = (masks != IGNORED)[:, None].float() if self._ignores else None
        return Batch(images, targets, tuple(sample.row for sample in stored.samples), valid)


def make_loader(
    dataset: RowDataset,
    sampler: EpochSampler,
    collate: Callable[[list[Row]], T],
    workers: int,
    pin_memory: bool,
) -> DataLoader[T]:
    """A loader that gives the sampler's batches in its order. Use it within `ending_workers`.

    Args:
        dataset: The rows.
        sampler: Which rows, in which order.
        collate: Makes a batch of rows: a `Collator`, or `collate_stored`.
        workers: Processes that load; 0 loads in this one.
        pin_memory: For training on a GPU.
    """
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # it knows rows, the collator makes batches of them
        batch_sampler=sampler,
        collate_fn=SharingCollator(collate) if workers else collate,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_start_worker if workers else None,
        generator=torch.Generator(),  # its own, or each epoch would draw from the one that the network draws from
    )


def start_batches(loader: DataLoader[T]) -> Iterator[T]:
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


def prepared_ahead(batches: Iterable[T], prepare: Callable[[T], Batch], device: torch.device) -> Iterator[Batch]:
    """Batches brought to a device by ``prepare``, on a GPU each while the step of the one before it runs there.

    There a thread of its own prepares them, which goes on while this one waits for the step's losses. A batch for which
    memory does not suffice beside a step is prepared after it.
    """
    if device.type != "cuda":
        yield from map(prepare, batches)
        return

    def prepare_beside(batch: T) -> tuple[Batch, torch.cuda.Event]:
        stream = _stream_beside(device)
        with torch.cuda.stream(stream):
            return prepare(batch), stream.record_event()

    def prepared(batch: T, beside: Future[tuple[Batch, torch.cuda.Event]]) -> Batch:
        try:
            return _handed_over(*beside.result())
        except MEMORY_FAULTS as fault:
            if not is_out_of_memory(fault):
                raise
            logger.warning("memory ran out while a batch was prepared beside a step: it is prepared after it")
        torch.cuda.empty_cache()  # of what the step took
        return prepare(batch)

    with ThreadPoolExecutor(1, "prepare") as thread:
        waiting: tuple[T, Future[tuple[Batch, torch.cuda.Event]]] | None = None
        for batch in batches:
            following = batch, thread.submit(prepare_beside, batch)
            if waiting is not None:
                yield prepared(*waiting)
            waiting = following
        if waiting is not None:
            yield prepared(*waiting)


@functools.cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    """The stream on which batches are prepared: always the same, since memory that was freed belongs to a stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _handed_over(batch: Batch, ready: torch.cuda.Event) -> Batch:
    """A batch of another stream for the use of this one: its memory is not given away before this one is done."""
    here = torch.cuda.current_stream(batch.images.device)
    here.wait_event(ready)
    for tensor in (batch.images, batch.targets, batch.valid):
        if tensor is not None:
            tensor.record_stream(here)
    return batch


@contextlib.contextmanager
def ending_workers(loader: DataLoader[T]) -> Iterator[None]:
    """End the loader's processes with the block: Python at its end would wait for them, as SIGTERM does not reach them.

    Raises:
        TrainingError: One of them was killed, or could not hand its batch over.
    """
    try:
        yield
    except RuntimeError as fault:
        if NO_SHARED_MEMORY in str(fault):
            raise TrainingError(
                "no space left for /dev/shm, through which loading processes hand batches over: enlarge it (of a "
                "container: docker run --shm-size 4g), or use fewer --workers, 0 needs none; then run the same "
                "command again to go on"
            ) from fault
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
