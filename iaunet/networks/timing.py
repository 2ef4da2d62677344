"""How long a training step takes on a device, from small ones that are really run."""

import time
from collections.abc import Callable

import torch
from torch import nn

from iaunet.device import casting, training_precision
from iaunet.loss import bce_dice_loss

SHRINK = 4
WARMING, FEW, MANY = 2, 8, 32
"""Rows of the steps."""

LONG_ENOUGH = 0.4
"""Seconds of a step beyond which the cost of starting its kernels no longer shows."""


def prepare_timing(
    network: nn.Module, channels: int, labels: int, size: tuple[int, int], device: torch.device
) -> Callable[[], float]:
    """Run the first step of a network, which takes longer than any other.

    Args:
        network: Moved to ``device`` and put into training mode; its gradients and statistics are spoilt.
        channels: Channels of its input.
        labels: Labels of its output.
        size: (height, width) of its input in pixels.
        device: Where to run.

    Returns:
        Estimates the seconds that training takes a row, forward and backward, from one or two steps on random images
        with sides `SHRINK` times smaller, as far as the network takes such; the last is scaled by its pixels.
    """
    network = network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    # no smaller than what the network would pad its input to
    multiple = getattr(network, "multiple", 32)
    height, width = (-(-max(32, side // SHRINK) // multiple) * multiple for side in size)

    def step(rows: int) -> float:
        return _time_step(network, torch.randn(rows, channels, height, width, device=device), labels)

    def time_row() -> float:
        rows, seconds = FEW, step(FEW)
        if seconds < LONG_ENOUGH:
            rows, seconds = MANY, step(MANY)
        return seconds / rows * (size[0] * size[1]) / (height * width)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other where other processes work
    try:
        step(WARMING)
    finally:
        torch.set_num_threads(threads)
    return time_row


def _time_step(network: nn.Module, images: torch.Tensor, labels: int) -> float:
    images = images.contiguous(memory_format=torch.channels_last)
    start = time.perf_counter()
    with casting(images.device, training_precision(images.device)):
        logits = network(images)
    loss = bce_dice_loss(logits, torch.zeros(len(images), labels, *images.shape[2:], device=images.device)).loss
    loss.backward()  # type: ignore[no-untyped-call]
    loss.item()  # waits for a GPU
    return time.perf_counter() - start
