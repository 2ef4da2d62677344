"""Att-UNet (Oktay et al. 2018, arXiv 1804.03999): a U-Net whose decoder gates the skips by additive attention.

Built in the form that 2D comparisons use: every skip is gated, by the decoder's map after it was enlarged, and there is
one output. The authors' network is 3D and deeply supervised, leaves the first skip ungated, takes the gate from the
coarser map (the weights are resampled to the skip's size), and has no batch normalisation in the gates.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from iaunet.networks.blocks import DoubleConv, UShape, check_sizes, conv_norm_relu, head, pooled_stages, widths


def build_attention_unet(
    *, channels: int, labels: int, width: int = 64, depth: int = 5, biases: bool = False
) -> nn.Module:
    """Build an Att-UNet.

    Args:
        channels: Planes of the input.
        labels: Foreground labels, each one logit map of the output.
        width: Feature maps of the first stage; each further one has twice as many.
        depth: Number of stages, 3 to 6: the input is halved ``depth - 1`` times, and as many skips are gated.
        biases: Whether convolutions have a bias even where batch normalisation subtracts it again. The
            published count of 34.88 M parameters includes these, 34.87 M are without them; the network can learn
            nothing with them that it cannot without.

    Raises:
        NetworkError: A number is out of its range.
    """
    check_sizes(channels, labels, width, depth)
    maps = widths(width, depth)
    network = UShape(
        channels=channels,
        stages=pooled_stages(channels, maps),
        skips=[nn.Identity() for _ in maps[1:]],
        ups=[GatedUp(deep, shallow) for shallow, deep in pairwise(maps)],
        last=head(width, labels),
        multiple=2 ** (depth - 1),
    )
    if biases:
        _add_biases(network)
    return network


class AttentionGate(nn.Module):
    """``alpha skip`` with one ``alpha`` in (0, 1) for each pixel, from the skip and the decoder's map.

    ``alpha = sigmoid(psi(relu(W_g gate + W_x skip)))``; psi, W_g and W_x are 1x1 convolutions without bias, then
    normalised, and psi has one output.

    Args:
        width: Feature maps of the skip and of the gate. Half as many lie between W and psi.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(width // 2, 1)
        self.from_gate = _conv_norm(width, inner)
        self.from_skip = _conv_norm(width, inner)
        self.psi = _conv_norm(inner, 1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """Weigh ``skip`` [B, width, H, W] by what it and ``gate``, of the same shape, have in common."""
        joined = torch.relu(self.from_gate(gate) + self.from_skip(skip))
        return skip * torch.sigmoid(self.psi(joined))


class GatedUp(nn.Module):
    """One step of the decoder: enlarge by repeating pixels, convolve, gate the skip, join the two, convolve twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.enlarge = nn.Sequential(nn.Upsample(scale_factor=2), conv_norm_relu(inputs, outputs, 3))
        self.gate = AttentionGate(outputs)
        self.convolve = DoubleConv(2 * outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join ``x`` [B, inputs, H/2, W/2] with ``skip`` [B, outputs, H, W] to the shape of the skip."""
        enlarged = self.enlarge(x)
        joined: Tensor = self.convolve(torch.cat([self.gate(skip, enlarged), enlarged], dim=1))
        return joined


def _conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    convolution, norm, _ = conv_norm_relu(inputs, outputs, 1)
    return nn.Sequential(convolution, norm)


def _add_biases(network: nn.Module) -> None:
    """Give every convolution without a bias one that starts at 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
