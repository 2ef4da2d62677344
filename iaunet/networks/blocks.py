"""The parts that U-shaped networks are made of, and the U that holds them together."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iaunet.errors import NetworkError
from iaunet.networks import DEPTHS


def check_sizes(channels: int, labels: int, width: int, depth: int) -> None:
    """Refuse numbers that no U-shaped network can have.

    Raises:
        NetworkError: One of the first three is below 1, or the depth is not among `DEPTHS`.
    """
    for word, number in {"channels": channels, "labels": labels, "width": width}.items():
        if number < 1:
            raise NetworkError(f"{word} is {number}: give 1 or more")
    if depth not in DEPTHS:
        raise NetworkError(f"depth is {depth}: plan {DEPTHS[0]} to {DEPTHS[-1]} stages")


def conv_norm_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution without bias that keeps the size, batch normalisation, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class DoubleConv(nn.Sequential):
    """Twice a 3x3 convolution, batch normalisation and ReLU, at the size of the input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(conv_norm_relu(inputs, outputs, 3), conv_norm_relu(outputs, outputs, 3))


def upsample(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Transposed 2x2 convolution that doubles height and width."""
    convolution = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


class Up(nn.Module):
    """One step of the decoder: enlarge to the skip's size and width, join the two, convolve twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.upsample = upsample(inputs, outputs)
        self.convolve = DoubleConv(2 * outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join ``x`` [B, inputs, H/2, W/2] with ``skip`` [B, outputs, H, W] to the shape of the skip."""
        joined: Tensor = self.convolve(torch.cat([skip, self.upsample(x)], dim=1))
        return joined


def head(inputs: int, labels: int) -> nn.Conv2d:
    """1x1 convolution to one logit a label.

    Kaiming by fan_in, unlike the rest: by the fan_out of one label, logits would start near +-10.
    """
    convolution = nn.Conv2d(inputs, labels, 1)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="linear")
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution


def layer_norm(features: int) -> nn.Module:
    """LayerNorm over the last axis; nothing for one or two features, of which it would leave nothing or only signs."""
    return nn.LayerNorm(features) if features > 2 else nn.Identity()


def widths(width: int, depth: int) -> list[int]:
    """Feature maps of each stage: twice as many as in the stage before."""
    return [width * 2**stage for stage in range(depth)]


def pooled_stages(channels: int, widths: Sequence[int]) -> list[nn.Module]:
    """Encoder of the classic U-Net: a stage's output is taken before it is halved for the next."""
    halved = (nn.Sequential(nn.MaxPool2d(2), DoubleConv(*pair)) for pair in pairwise(widths))
    return [DoubleConv(channels, widths[0]), *halved]


class UShape(nn.Module):
    """Encoder, decoder, and what the encoder's features pass on their way across.

    Args:
        channels: Planes of the input.
        stages: The encoder from shallow to deep, each fed with the one before.
        skips: One module for each stage but the deepest, from shallow to deep.
        ups: One `Up` or its like for each skip, from shallow to deep.
        last: From the shallowest up to logits at the size of the input.
        multiple: What height and width must divide by. Other inputs are padded at the bottom and the
            right, the logits cropped back.
    """

    def __init__(
        self,
        *,
        channels: int,
        stages: Iterable[nn.Module],
        skips: Iterable[nn.Module],
        ups: Iterable[nn.Module],
        last: nn.Module,
        multiple: int,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.multiple = multiple
        self.stages = nn.ModuleList(stages)
        self.skips = nn.ModuleList(skips)
        self.ups = nn.ModuleList(ups)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, channels, H, W] to logits [B, labels, H, W].

        Raises:
            ValueError: The input has other axes or another number of channels.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"input of shape {list(x.shape)}: give [batch, {self.channels}, height, width]")
        height, width = x.shape[-2:]
        logits = self._decode(self._encode(pad_to_multiple(x, self.multiple)))
        return logits[..., :height, :width]

    def _encode(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def _decode(self, features: list[Tensor]) -> Tensor:
        x = features.pop()
        for feature, skip, up in zip(reversed(features), reversed(self.skips), reversed(self.ups), strict=True):
            x = up(x, skip(feature))
        logits: Tensor = self.last(x)
        return logits


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Lengthen height and width at the bottom and the right until ``multiple`` divides them.

    Args:
        x: Images [B, C, H, W], returned as they are where nothing is missing.
        multiple: In pixels.

    Returns:
        The images, continued by reflection, or by repeating the edge where a side is too short to reflect.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if bottom:
        x = F.pad(x, (0, 0, 0, bottom), mode="reflect" if bottom < height else "replicate")
    if right:
        x = F.pad(x, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    return x
