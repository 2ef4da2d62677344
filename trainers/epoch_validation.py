"""How well a network does on held-out rows after an epoch, to be watched: the fold's score is of whole cases."""

import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from iaunet.device import casting
from iaunet.errors import TrainingError
from iaunet.exhaustion import MEMORY_FAULTS, is_out_of_memory
from iaunet.loss import bce_dice_loss
from iaunet.preprocessing.arrays import Arrays
from iaunet.trainers.fold_setup import FoldSetup
from iaunet.trainers.loader import Batch, Collator, RowDataset
from iaunet.trainers.sampling import Sample

logger = logging.getLogger(__name__)

VALIDATION_ROWS_A_CASE = 4
"""Rows of a held-out volume or tiled image that are looked at."""

MOST_ROWS_AT_ONCE = 8


class EpochValidation:
    """Measures networks on a few rows of each held-out case; of several ranks each takes its part.

    Args:
        setup: The fold's settings.
        arrays: Its rows.
    """

    def __init__(self, setup: FoldSetup, arrays: Arrays) -> None:
        self.setup = setup
        self.rows = [row for name in setup.validation for row in _typical_rows(arrays, name)]
        self._dataset = RowDataset(setup.preprocessed, setup.plan.arrays_digest, None)
        self._most_rows = MOST_ROWS_AT_ONCE

    def measure(self, network: nn.Module, micro_batch: int) -> dict[str, float]:
        """Loss and mean Dice per image of the rows at the input's size; nan when none is held out.

        Args:
            network: A network in evaluation mode, on the device.
            micro_batch: The most rows that are taken at once; with less memory than they need it is fewer.

        Raises:
            TrainingError: Memory does not suffice for a single row.
        """
        if not self.rows:
            return {"validation_loss": math.nan, "validation_dice": math.nan}
        losses, dices = self._measure_what_fits(network, micro_batch)
        return {"validation_loss": self._mean_over_ranks(losses), "validation_dice": self._mean_over_ranks(dices)}

    def _measure_what_fits(self, network: nn.Module, micro_batch: int) -> tuple[list[float], list[float]]:
        """The losses and Dice of this rank's rows, as many at once as memory suffices for, now and later."""
        while True:
            rows = min(micro_batch, self._most_rows)
            try:
                return self._measure(network, rows)
            except MEMORY_FAULTS as fault:
                if not is_out_of_memory(fault):
                    raise
                self._halve(rows, fault)

    @torch.inference_mode()
    def _measure(self, network: nn.Module, rows_at_once: int) -> tuple[list[float], list[float]]:
        device = self.setup.device
        losses: list[float] = []
        dices: list[float] = []
        for batch in self._batches(rows_at_once):
            with casting(device, self.setup.precision):
                logits = network(batch.images.to(device).contiguous(memory_format=torch.channels_last))
            targets = batch.targets.to(device)
            valid = None if batch.valid is None else batch.valid.to(device)
            losses += [float(bce_dice_loss(logits, targets, valid).loss)] * len(batch.rows)
            counted = True if batch.valid is None else batch.valid > 0
            dices += dice_per_image(self._decided(logits) & counted, (batch.targets > 0) & counted).flatten().tolist()
        return losses, dices

    def _halve(self, rows: int, fault: BaseException) -> None:
        if rows == 1:
            raise TrainingError(
                f"memory does not suffice to validate one row on {self.setup.device}: close other programs and run the "
                "same command again to go on from the last checkpoint"
            ) from fault
        self._most_rows = rows // 2
        logger.warning("memory ran out in validation: going on with %d rows at a time", self._most_rows)

    def _decided(self, logits: torch.Tensor) -> torch.Tensor:
        """The maps [B, L, H, W] of the labels that the decision rule gives, boolean, on the CPU."""
        plan = self.setup.plan
        masks = [plan.decide(maps) for maps in logits.float().sigmoid().cpu().numpy()]
        return torch.from_numpy(plan.coding.targets(np.stack(masks)) > 0)

    def _batches(self, size: int) -> Iterator[Batch]:
        collate = Collator(self.setup.plan.coding)
        rows = self.rows[self.setup.ranks.share(len(self.rows))]
        for start in range(0, len(rows), size):
            yield collate([self._dataset[Sample(row, (0, 0, 0))] for row in rows[start : start + size]])

    def _mean_over_ranks(self, values: Sequence[float]) -> float:
        ranks = self.setup.ranks
        if ranks.size == 1:
            return float(np.mean(values))
        total, count = ranks.sum([sum(values), len(values)])
        return total / count


def _typical_rows(arrays: Arrays, name: str) -> list[int]:
    """A few rows of a held-out case, spread evenly, with foreground if it has such."""
    rows = arrays.cases[name].rows
    telling = [row for row in rows if arrays.foreground[row]] or list(rows)
    return telling[:: -(-len(telling) // VALIDATION_ROWS_A_CASE)]


def dice_per_image(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Dice, eq. (12), of boolean maps [B, L, H, W]: [B, L]; 1 where both are empty."""
    overlap = (predicted & truth).sum((2, 3))
    total = predicted.sum((2, 3)) + truth.sum((2, 3))
    return torch.where(total > 0, 2 * overlap / total.clamp(min=1), 1.0)
