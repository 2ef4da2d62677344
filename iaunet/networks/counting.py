"""How large a network is and how much it computes."""

from copy import deepcopy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(network: nn.Module) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_multiply_adds(network: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Multiply-adds of convolutions and matrix products in one forward pass of one image.

    Nothing is computed: a copy of the network runs on torch's meta device.

    Args:
        network: Left as it is.
        channels: Planes of the input.
        size: Height and width in pixels.
    """
    shapes = deepcopy(network).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        shapes(torch.empty(1, channels, *size, device="meta"))
    return int(counter.get_total_flops()) // 2
