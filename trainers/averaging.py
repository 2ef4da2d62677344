"""The exponential moving average of a network's weights."""

import copy

import torch
from torch import nn

from iaunet.trainers.memory import copy_tensors


class WeightAverage:
    """Keeps an average of parameters and buffers.

    At update t the decay is min(``decay``, (1 + t) / (10 + t)), so that early weights are soon forgotten.

    Args:
        network: The network whose weights are averaged; it is not changed.
        decay: The highest decay.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's present weights and buffers; whole numbers are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        own, new = _tensors(self.network), _tensors(network)
        floats = [name for name, tensor in own.items() if tensor.is_floating_point()]
        others = [name for name in own if name not in {*floats}]
        torch._foreach_lerp_([own[name] for name in floats], [new[name] for name in floats], 1 - decay)
        copy_tensors([own[name] for name in others], [new[name] for name in others])


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers; what two layers share comes once."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
