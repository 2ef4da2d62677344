"""How long a training step takes on a device, from small ones that are really run."""

import math
import time
from collections.abc import Callable

import torch
from torch import nn

from iaunet.device import casting, training_precision
from iaunet.loss import bce_dice_loss

SMALLEST = 8
"""By what the sides of the input are divided for the first step."""

STEPS = ((2, 2**14, 0.5), (2, 2**14, 0.2), (4, 2**17, 0.0))
"""The steps that are timed, until one is long enough: by what the sides are divided, about how many pixels they have in
all, and the seconds beyond which neither what is done once nor the start of kernels matters much."""

MOST_ROWS = 32

ROWS_ON_A_GPU = 8
"""Rows of the steps on an NVIDIA GPU: enough to keep it busy, few enough for the memory of a small one."""


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
        Estimates the seconds that training takes a row, forward and backward: on an NVIDIA GPU from one step on random
        images of the real size, elsewhere from one to three `STEPS` on smaller ones, as far as the network takes such,
        scaled by the pixels.
    """
    network = network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if device.type == "cuda":
        return _prepare_timing_on_gpu(network, torch.randn(ROWS_ON_A_GPU, channels, *size, device=device), labels)
    multiple = getattr(network, "multiple", 32)  # what the network pads its input to
    padded = math.prod(-(-side // multiple) * multiple for side in size)

    def step(shrink: int, pixels: int = 0) -> tuple[float, float]:
        """Seconds of a step on about so many pixels, and as many of a row of the real size."""
        height, width = (-(-max(32, side // shrink) // multiple) * multiple for side in size)
        least = 1 if height * width > multiple**2 else 2  # values that batch normalisation takes a mean of
        rows = max(least, min(MOST_ROWS, pixels // (height * width)))
        seconds = _time_step(network, torch.randn(rows, channels, height, width, device=device), labels)
        return seconds, seconds / (rows * height * width) * padded

    def time_row() -> float:
        for shrink, pixels, long_enough in STEPS:
            seconds, a_row = step(shrink, pixels)
            if seconds > long_enough:
                break
        return a_row

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other where other processes work
    try:
        step(SMALLEST)
    finally:
        torch.set_num_threads(threads)
    return time_row


def _prepare_timing_on_gpu(network: nn.Module, images: torch.Tensor, labels: int) -> Callable[[], float]:
    """Time the same step again: kernels are loaded and chosen in the first with images of its shape."""
    _time_step(network, images, labels)
    return lambda: _time_step(network, images, labels) / len(images)


def _time_step(network: nn.Module, images: torch.Tensor, labels: int) -> float:
    images = images.contiguous(memory_format=torch.channels_last)
    _wait(images.device)
    start = time.perf_counter()
    with casting(images.device, training_precision(images.device)):
        logits = network(images)
    loss = bce_dice_loss(logits, torch.zeros(len(images), labels, *images.shape[2:], device=images.device)).loss
    loss.backward()  # type: ignore[no-untyped-call]
    loss.item()  # waits for other GPUs than NVIDIA's
    _wait(images.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Until an NVIDIA GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
