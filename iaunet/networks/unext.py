"""UNeXt (Valanarasu and Patel 2022, MICCAI, arXiv 2203.04967): early convolutions, then MLPs on shifted tokens.

It is the network of the authors' program, whose first two stages have 16 and 32 feature maps where the article says 32
and 64. Three things differ from the program: convolutions before a batch normalisation have no bias, which would be
subtracted again (512 parameters fewer at the published size); every convolution starts Kaiming-normal, where the
program leaves some to torch's default; and LayerNorm over one or two features is left out, see `layer_norm`.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iaunet.networks.blocks import UShape, check_sizes, conv_norm_relu, head, layer_norm, widths

FACTORS = (1, 2, 8, 10, 16, 32)  # feature maps of a stage in units of the width; the sixth continues the published five
TOKENISED = 2  # so many stages, the deepest, work on tokens
GROUPS = 5


def build_unext(*, channels: int, labels: int, width: int = 16, depth: int = 5, doubling: bool = False) -> nn.Module:
    """Build a UNeXt: ``depth - 2`` stages of one convolution each, then two of tokenised MLPs.

    Every stage halves its input, the first one, too. A shallower network is the published one without its deepest
    stages, and its last two are the tokenised ones: with depth 4, stages of 1, 2, 8 and 10 times ``width``.

    Args:
        channels: Planes of the input.
        labels: Foreground labels, each one logit map of the output.
        width: Feature maps of the first stage; the further ones have 2, 8, 10, 16 and 32 times as many.
        depth: Number of stages, 3 to 6.
        doubling: Let each stage have twice as many feature maps as the one before instead, as the authors'
            smaller network UNeXt-S has (with width 8).

    Raises:
        NetworkError: A number is out of its range.
    """
    check_sizes(channels, labels, width, depth)
    maps = widths(width, depth) if doubling else [width * factor for factor in FACTORS[:depth]]
    first_tokenised = depth - TOKENISED
    pairs = list(pairwise([channels, *maps]))
    return UShape(
        channels=channels,
        stages=[
            *(nn.Sequential(conv_norm_relu(*pair, 3), nn.MaxPool2d(2)) for pair in pairs[:first_tokenised]),
            *(nn.Sequential(PatchEmbedding(*pair), TokenMLP(pair[1])) for pair in pairs[first_tokenised:]),
        ],
        skips=[nn.Identity() for _ in maps[1:]],
        ups=[
            AddingUp(deep, shallow, tokenised=stage + 1 >= first_tokenised)
            for stage, (shallow, deep) in enumerate(pairwise(maps))
        ],
        last=nn.Sequential(_convolution(width, width), *_enlargement(), head(width, labels)),
        multiple=2**depth,
    )


class PatchEmbedding(nn.Module):
    """Overlapping patches as tokens: a 3x3 convolution that halves the map, then LayerNorm over the features."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = _convolution(inputs, outputs, stride=2)
        self.norm = layer_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H/2, W/2]."""
        tokens: Tensor = self.norm(self.convolution(x).movedim(1, -1))
        return tokens.movedim(-1, 1)


class TokenMLP(nn.Module):
    """The tokenised block: an MLP on tokens that were shifted along the height, then along the width.

    ``out = norm(x + along_width(shift_W(gelu(depthwise(along_height(shift_H(norm(x))))))))``, see `shift_groups`.
    The 3x3 depthwise convolution stands for a positional encoding.

    Args:
        width: Feature maps of the input; the MLP's hidden layer has as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_in = layer_norm(width)
        self.along_height = _linear(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        nn.init.kaiming_normal_(self.depthwise.weight, mode="fan_in")  # 9; the fan_out counts all groups
        nn.init.zeros_(self.depthwise.bias)  # type: ignore[arg-type]
        self.along_width = _linear(width)
        self.norm_out = layer_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, width, H, W] to the same shape."""
        tokens = x.movedim(1, -1)
        hidden = self.along_height(shift_groups(self.norm_in(tokens), axis=1))
        hidden = F.gelu(self.depthwise(hidden.movedim(-1, 1))).movedim(1, -1)
        out: Tensor = self.norm_out(tokens + self.along_width(shift_groups(hidden, axis=2)))
        return out.movedim(-1, 1)


def shift_groups(tokens: Tensor, axis: int) -> Tensor:
    """Shift five groups of features by -2, -1, 0, 1 and 2 positions, so that a token sees its neighbours.

    Groups are what `torch.chunk` makes: of few features less than five, whose shifts begin at -2 as long as there are
    four, and a single one stays in place. What is shifted beyond the border is lost, zeros follow from the other side.

    Args:
        tokens: [B, H, W, C].
        axis: 1 for the height, 2 for the width.

    Returns:
        The tokens in the same shape; the argument is left as it is.
    """
    reach, size = GROUPS // 2, tokens.shape[axis]
    padded = F.pad(tokens, (0, 0) * (3 - axis) + (reach, reach))
    groups = padded.chunk(GROUPS, dim=-1)
    shifted = [group.narrow(axis, reach - shift, size) for shift, group in enumerate(groups, -(len(groups) // 2))]
    return torch.cat(shifted, dim=-1)


class AddingUp(nn.Module):
    """One step of the decoder: convolve to the skip's width, enlarge to its size, add the two.

    Args:
        inputs: Feature maps that come from below.
        outputs: Feature maps of the skip.
        tokenised: Whether the sum passes a `TokenMLP`.
    """

    def __init__(self, inputs: int, outputs: int, *, tokenised: bool) -> None:
        super().__init__()
        convolution, norm, _ = conv_norm_relu(inputs, outputs, 3)
        self.enlarge = nn.Sequential(convolution, norm, *_enlargement())
        self.tokens = TokenMLP(outputs) if tokenised else nn.Identity()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join ``x`` [B, inputs, H/2, W/2] with ``skip`` [B, outputs, H, W] to the shape of the skip."""
        joined: Tensor = self.tokens(self.enlarge(x) + skip)
        return joined


def _enlargement() -> tuple[nn.Module, nn.Module]:
    return nn.Upsample(scale_factor=2, mode="bilinear"), nn.ReLU()


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution with a bias, for where no batch normalisation follows."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution


def _linear(width: int) -> nn.Linear:
    linear = nn.Linear(width, width)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
