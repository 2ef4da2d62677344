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


def micro_batches(batch_size: int) -> list[int]:
    """The sizes that cut a batch into equal parts of at least `FEWEST_ROWS`, from the whole batch down."""
    smaller = range(batch_size // 2, FEWEST_ROWS - 1, -1)
    return [batch_size, *(rows for rows in smaller if batch_size % rows == 0)]


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
        One of `micro_batches`. The smallest is returned even if it does not fit either, with a warning.
    """
    if memory is None:
        return batch_size
    try:
        a_row = row_bytes(network, channels, input_size)
    except RuntimeError as fault:  # a stranger's network may look at numbers, which the meta device does not have
        logger.info("memory of a step is not known beforehand (%s)", str(fault).split("\n")[0])
        return batch_size
    fixed = STATE_COPIES * sum(p.numel() * p.element_size() for p in network.parameters())
    sizes = micro_batches(batch_size)
    fitting = [rows for rows in sizes if fixed + rows * a_row <= memory]
    if fitting:
        return fitting[0]
    need = (fixed + sizes[-1] * a_row) / 2**30
    logger.warning(
        "a training step needs about %.1f GB, %.1f GB are free: a smaller --width would fit", need, memory / 2**30
    )
    return sizes[-1]


def row_bytes(network: nn.Module, channels: int, input_size: tuple[int, int]) -> int:
    """About the bytes that one row adds to a training step, counted on the meta device: nothing is computed."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage
        return tensor

    meta = copy.deepcopy(network).to("meta").train()
    weights = sum(p.numel() * p.element_size() for p in meta.parameters())
    rows = 2
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        meta(torch.zeros(rows, channels, *input_size, device="meta"))
    return int(ALLOWANCE * max(0, sum(storage.nbytes() for storage in kept.values()) - weights) / rows)
