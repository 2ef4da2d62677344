"""How many rows fit through a network at once."""

import copy
import logging

import torch
from torch import nn

logger = logging.getLogger(__name__)

FEWEST_ROWS = 4
"""Batch normalisation needs at least this many rows for its statistics."""

ALLOWANCE = 1.3
"""Memory a step takes beyond what its backward pass keeps: gradients of activations, workspaces, fragmentation."""

STATE_COPIES = 5
"""Weights, gradients, Adam's two moments and the average."""


def find_micro_batch(
    network: nn.Module, channels: int, input_size: tuple[int, int], batch_size: int, memory: int | None
) -> int:
    """The largest equal part of a batch whose training step fits into memory.

    Args:
        network: The network, on any device.
        channels: Channels of its input.
        input_size: (height, width) of its input.
        batch_size: Rows of a whole batch.
        memory: Bytes that may be used; None for no limit.

    Returns:
        Rows, from `FEWEST_ROWS` (or ``batch_size`` if that is less) to ``batch_size``. The smallest is returned even
        if it does not fit either, with a warning.
    """
    if memory is None:
        return batch_size
    a_row = row_bytes(network, channels, input_size)
    fixed = STATE_COPIES * sum(p.numel() * p.element_size() for p in network.parameters())
    for parts in range(1, batch_size + 1):
        rows = -(-batch_size // parts)
        if rows < FEWEST_ROWS:
            break
        if fixed + rows * a_row <= memory:
            return rows
    fewest = min(FEWEST_ROWS, batch_size)
    need = (fixed + fewest * a_row) / 2**30
    logger.warning(
        "a training step needs about %.1f GB, %.1f GB are free: a smaller --width would fit", need, memory / 2**30
    )
    return fewest


def row_bytes(network: nn.Module, channels: int, input_size: tuple[int, int]) -> int:
    """About the bytes that one row adds to a training step, counted on the meta device: nothing is computed."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        storages.append(tensor.untyped_storage())  # else ids would be used again
        return tensor

    storages: list[torch.UntypedStorage] = []
    meta = copy.deepcopy(network).to("meta").train()
    weights = sum(p.numel() * p.element_size() for p in meta.parameters())
    rows = 2
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        meta(torch.zeros(rows, channels, *input_size, device="meta"))
    return int(ALLOWANCE * max(0, sum(kept.values()) - weights) / rows)
