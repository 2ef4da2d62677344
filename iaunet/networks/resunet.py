"""ResUNet (Zhang, Liu and Wang 2018, "Road extraction by deep residual U-Net"): a U of residual units.

Each unit normalises and rectifies before it convolves; in the encoder the stride of its first convolution halves the
map. The authors enlarge without weights; here, as in the build whose size is published, a transposed convolution
enlarges, and every shortcut is a 3x3 convolution.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from iaunet.networks.blocks import UShape, check_sizes, conv_norm_relu, head, upsample, widths


def build_resunet(*, channels: int, labels: int, width: int = 64, depth: int = 4) -> nn.Module:
    """Build a ResUNet.

    Args:
        channels: Planes of the input.
        labels: Foreground labels, each one logit map of the output.
        width: Feature maps of the first stage; each further one has twice as many.
        depth: Number of stages, 3 to 6, the bridge between encoder and decoder included: the input is halved
            ``depth - 1`` times.

    Raises:
        NetworkError: A number is out of its range.
    """
    check_sizes(channels, labels, width, depth)
    maps = widths(width, depth)
    return UShape(
        channels=channels,
        stages=[_stem(channels, width), *(_unit(*pair, stride=2) for pair in pairwise(maps))],
        skips=[nn.Identity() for _ in maps[1:]],
        ups=[ResidualUp(deep, shallow) for shallow, deep in pairwise(maps)],
        last=head(width, labels),
        multiple=2 ** (depth - 1),
    )


class Residual(nn.Module):
    """The sum of what two branches make of the same input.

    Args:
        body: The branch that does the work.
        shortcut: The branch that brings the input to the body's shape.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to the shape the branches have in common."""
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


class ResidualUp(nn.Module):
    """One step of the decoder: enlarge at the same width, join with the skip, pass a residual unit."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.upsample = upsample(inputs, inputs)
        self.unit = _unit(inputs + outputs, outputs, stride=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join ``x`` [B, inputs, H/2, W/2] with ``skip`` [B, outputs, H, W] to the shape of the skip."""
        joined: Tensor = self.unit(torch.cat([self.upsample(x), skip], dim=1))
        return joined


def _stem(channels: int, width: int) -> Residual:
    """The first unit: an image is not normalised before its first convolution, nor its shortcut after."""
    body = nn.Sequential(*conv_norm_relu(channels, width, 3), _convolution(width, width))
    return Residual(body, shortcut=_convolution(channels, width))


def _unit(inputs: int, outputs: int, *, stride: int) -> Residual:
    body = nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        _convolution(inputs, outputs, stride),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        _convolution(outputs, outputs),
    )
    return Residual(body, shortcut=nn.Sequential(_convolution(inputs, outputs, stride), nn.BatchNorm2d(outputs)))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
