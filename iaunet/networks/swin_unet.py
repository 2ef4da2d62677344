"""Swin-UNet (Cao et al. 2021, arXiv 2105.05537): a U-shape of shifted-window transformer blocks (Liu et al. 2021).

Differences from the authors' code, none of which changes the number of parameters or multiply-adds: a skip leaves its
stage after the blocks, as figure 1 of the paper draws it, where the code takes it before them; the shift is decided for
each axis by itself, where the code shifts neither if one is as short as a window; positions that are no neighbours have
exactly no weight, where the code lowers their scores by 100; the size of the input is free.

Between the first and the last layer features are [B, H, W, C], so that every linear layer acts on the last axis.
"""

import math
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from iaunet.errors import NetworkError
from iaunet.networks.blocks import UShape, check_sizes, layer_norm, widths

PATCH = 4
BLOCKS = 2  # of a stage: one with plain windows, one with shifted ones
FEWEST_FEATURES = 32  # of a head
KEPT_TABLES = 16  # two a stage and size of images


def build_swin_unet(
    *, channels: int, labels: int, width: int = 96, depth: int = 4, window: int = 8, drop_path: float = 0.2
) -> nn.Module:
    """Build a Swin-UNet.

    Inputs are padded to multiples of ``4 * 2 ** (depth - 1) * window`` pixels: 256 as published.

    Args:
        channels: Planes of the input.
        labels: Foreground labels, each one logit map of the output.
        width: Features of the first stage; each further one has twice as many. See `count_heads`.
        depth: Number of stages, 3 to 6. The first works on patches of 4x4 pixels, each further one at half the
            resolution of the one before.
        window: Side of the windows of attention, in patches, 2 or more.
        drop_path: Rate of `DropPath` in the encoder's last block, 0 or more and less than 1. It rises linearly from 0
            in the first; a stage of the decoder has the rates of its counterpart.

    Raises:
        NetworkError: A number is out of its range.
    """
    check_sizes(channels, labels, width, depth)
    if window < 2:
        raise NetworkError(f"window is {window}: give 2 or more")
    if not 0 <= drop_path < 1:
        raise NetworkError(f"drop_path is {drop_path}: give 0 or more, and less than 1")
    maps = widths(width, depth)
    heads = widths(count_heads(width), depth)
    last_block = BLOCKS * depth - 1
    rates = [[drop_path * (BLOCKS * stage + block) / last_block for block in range(BLOCKS)] for stage in range(depth)]
    entries = [PatchEmbedding(channels, width), *(PatchMerging(features) for features in maps[:-1])]
    stages = [
        nn.Sequential(entry, _swin_blocks(features, n_heads, window, drops))
        for entry, features, n_heads, drops in zip(entries, maps, heads, rates, strict=True)
    ]
    stages[-1].append(layer_norm(maps[-1]))
    return UShape(
        channels=channels,
        stages=stages,
        skips=[nn.Identity() for _ in maps[1:]],
        ups=[
            SwinUp(deep, shallow, _swin_blocks(shallow, n_heads, window, drops))
            for (shallow, deep), n_heads, drops in zip(pairwise(maps), heads, rates, strict=False)
        ],
        last=nn.Sequential(
            layer_norm(width),
            PatchExpanding(width, width, PATCH),
            ChannelsFirst(),
            nn.Conv2d(width, labels, 1, bias=False),
        ),
        multiple=PATCH * 2 ** (depth - 1) * window,
    )


def count_heads(width: int) -> int:
    """Most heads that divide ``width`` features into 32 each or more; one where they are fewer.

    A stage with twice the features has twice the heads.
    """
    return max(heads for heads in range(1, max(1, width // FEWEST_FEATURES) + 1) if width % heads == 0)


class PatchEmbedding(nn.Module):
    """Describe each patch of 4x4 pixels by ``width`` features."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, PATCH, stride=PATCH)
        self.norm = layer_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, 4 H, 4 W] to [B, H, W, width]."""
        features: Tensor = self.norm(self.project(x).permute(0, 2, 3, 1))
        return features


class PatchMerging(nn.Module):
    """Join each 2x2 patches to one of twice the features."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = layer_norm(4 * inputs)
        self.reduce = _linear(4 * inputs, 2 * inputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 2 H, 2 W, inputs] to [B, H, W, 2 inputs]."""
        _, height, width, features = x.shape
        squares = x.reshape(-1, height // 2, 2, width // 2, 2, features).transpose(2, 3)
        merged: Tensor = self.reduce(self.norm(squares.reshape(-1, height // 2, width // 2, 4 * features)))
        return merged


class PatchExpanding(nn.Module):
    """Turn each patch into ``scale`` x ``scale`` ones."""

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.outputs = outputs
        self.expand = _linear(inputs, scale**2 * outputs, bias=False)
        self.norm = layer_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, inputs] to [B, scale H, scale W, outputs]."""
        _, height, width, _ = x.shape
        scale, outputs = self.scale, self.outputs
        squares = self.expand(x).reshape(-1, height, width, scale, scale, outputs).transpose(2, 3)
        expanded: Tensor = self.norm(squares.reshape(-1, height * scale, width * scale, outputs))
        return expanded


class ChannelsFirst(nn.Module):
    """Map [B, H, W, C] to [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class SwinUp(nn.Module):
    """One step of the decoder: expand to the skip's size and features, join the two, and attend."""

    def __init__(self, inputs: int, outputs: int, blocks: nn.Module) -> None:
        super().__init__()
        self.expand = PatchExpanding(inputs, outputs, 2)
        self.join = _linear(2 * outputs, outputs)
        self.blocks = blocks

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join ``x`` [B, H/2, W/2, inputs] with ``skip`` [B, H, W, outputs] to the shape of the skip."""
        joined: Tensor = self.blocks(self.join(torch.cat([self.expand(x), skip], dim=-1)))
        return joined


class SwinBlock(nn.Module):
    """Window attention, then an MLP of four times the features; each after a LayerNorm and added to its input."""

    def __init__(self, features: int, heads: int, window: int, *, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.attend = nn.Sequential(
            layer_norm(features), WindowAttention(features, heads, window, shifted=shifted), DropPath(drop_path)
        )
        self.mlp = nn.Sequential(
            layer_norm(features),
            _linear(features, 4 * features),
            nn.GELU(),
            _linear(4 * features, features),
            DropPath(drop_path),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, features] to the same shape."""
        x = x + self.attend(x)
        out: Tensor = x + self.mlp(x)
        return out


def _swin_blocks(features: int, heads: int, window: int, drop_paths: list[float]) -> nn.Sequential:
    blocks = (
        SwinBlock(features, heads, window, shifted=number % 2 == 1, drop_path=rate)
        for number, rate in enumerate(drop_paths)
    )
    return nn.Sequential(*blocks)


class WindowAttention(nn.Module):
    """Attention among the patches of a window, ``softmax(q k^T / sqrt(d) + bias) v`` in each head of d features.

    The bias is learned for each head and each offset of a query from its key.

    Args:
        features: Features C of the input.
        heads: Number of heads, a divisor of ``features``.
        window: Side of a window, a divisor of the input's sides.
        shifted: Move the windows by half their side along each axis that holds more than one. At the border the image
            is continued by its other end, see `neighbours`.
    """

    def __init__(self, features: int, heads: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.shifted = shifted
        self.query_key_value = _linear(features, 3 * features)
        self.offset_bias = nn.Parameter(torch.empty(heads, 2 * window - 1, 2 * window - 1))
        self.project = _linear(features, features)
        nn.init.trunc_normal_(self.offset_bias, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, features] to the same shape."""
        height, width = x.shape[1:3]
        down, right = (self.window // 2 if self.shifted and side > self.window else 0 for side in (height, width))
        moved = x.roll((-down, -right), (1, 2)) if down or right else x
        query, key, value = self._split(self.query_key_value(moved))
        tables = window_tables if _is_traced(x) else _kept_tables
        rows, columns, strangers = tables((height, width), self.window, (down, right), x.device)
        scores = query / math.sqrt(query.shape[-1]) @ key.mT + self.offset_bias[:, rows, columns]
        if strangers is not None:
            scores = scores.masked_fill(strangers, -math.inf)
        attended = self._join(scores.softmax(-1) @ value, height, width)
        out: Tensor = self.project(attended)
        return out.roll((down, right), (1, 2)) if down or right else out

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Cut [B, H, W, 3 C] into three [B, windows, heads, positions, C / heads]."""
        _, height, width, features = x.shape
        rows, columns, side = height // self.window, width // self.window, self.window
        parts = x.reshape(-1, rows, side, columns, side, 3, self.heads, features // 3 // self.heads)
        return parts.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(2, 3).unbind()

    def _join(self, x: Tensor, height: int, width: int) -> Tensor:
        """Put [B, windows, heads, positions, C / heads] together to [B, H, W, C]."""
        rows, columns, side = height // self.window, width // self.window, self.window
        parts = x.reshape(-1, rows, columns, self.heads, side, side, x.shape[-1])
        return parts.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, height, width, self.heads * x.shape[-1])


def window_offsets(window: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How far each position of a window lies below and right of each other one, plus ``window - 1``.

    Returns:
        Two integer tensors [positions, positions], query by key, in 0 to ``2 * window - 2``.
    """
    side = torch.arange(window, device=device)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(side, side, indexing="ij"))
    return rows[:, None] - rows + window - 1, columns[:, None] - columns + window - 1


def neighbours(size: tuple[int, int], window: int, shift: tuple[int, int], device: torch.device) -> Tensor:
    """Which positions of a window lie in one piece of the image, after it was rolled up and left by ``shift``.

    The last windows of an axis then hold the image's end and, behind it, its beginning.

    Returns:
        A boolean tensor [windows, positions, positions].
    """
    (height, width), (down, right) = size, shift
    wrapped_rows = torch.arange(height, device=device) >= height - down
    wrapped_columns = torch.arange(width, device=device) >= width - right
    piece = 2 * wrapped_rows[:, None] + wrapped_columns.int()
    windows = piece.reshape(height // window, window, width // window, window).transpose(1, 2).reshape(-1, window**2)
    return windows[:, :, None] == windows[:, None, :]


def window_tables(
    size: tuple[int, int], window: int, shift: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `WindowAttention` needs to know of positions.

    Returns:
        The two tensors of `window_offsets`, and where `neighbours` are none, [windows, 1, positions, positions]; None
        where nothing was shifted, so that all are.
    """
    strangers = ~neighbours(size, window, shift, device)[:, None] if any(shift) else None
    return *window_offsets(window, device), strangers


# not in inference mode, whose tensors no training could use
_kept_tables = lru_cache(KEPT_TABLES)(torch.inference_mode(mode=False)(window_tables))


def _is_traced(x: Tensor) -> bool:
    """Whether operations are only noted down, on what stands for a tensor there and must not be kept."""
    return type(x) is not Tensor or torch.compiler.is_compiling()


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training an image's branch becomes 0 at this rate.

    What is kept is divided by the chance to be kept. Draws come from torch's global generator; in evaluation
    nothing is dropped.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, ...] to the same shape."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * (kept / keep)


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
