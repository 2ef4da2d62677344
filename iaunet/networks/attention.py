"""The three attention modules of the paper: scale feature (SFA), spatial (SA) and channel attention (CA)."""

import math
from collections.abc import Iterator
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from iaunet.errors import NetworkError
from iaunet.networks.blocks import conv_norm_relu
from iaunet.networks.options import SigmoidScale, SpatialMode

LITERAL_POSITIONS = 4096
# Keys and queries whose scores are held at once: what stays in a core's cache, and what fills an accelerator.
CPU_BLOCK = (1024, 1024)  # 4 MiB in float32
ACCELERATOR_BLOCK = (4096, 2048)  # 32 MiB in float32


class ScaleFeatureAttention(nn.Module):
    """SFA, equations 1-4: the sum of three branches that see 5x5, 3x3 and 1x1 pixels.

    Each branch has its own 1x1 convolution. Every convolution is without bias, then normalised, then ReLU.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(conv_norm_relu(width, width, 1), *(conv_norm_relu(width, width, 3) for _ in range(n_conv3)))
            for n_conv3 in (2, 1, 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, width, H, W] to the same shape."""
        large, middle, small = (branch(x) for branch in self.branches)
        out: Tensor = large + middle + small
        return out


class ChannelAttention(nn.Module):
    """CA, equations 7-8: ``x (1 + beta)`` with one ``beta`` in (0, 1) for each feature map.

    Args:
        width: Feature maps of the input.
        separate_mlps: Give the average-pooled vector an MLP of its own, as figure 4 draws two boxes.
    """

    def __init__(self, width: int, *, separate_mlps: bool = False) -> None:
        super().__init__()
        self.mlp = _mlp(width)
        self.average_mlp = _mlp(width) if separate_mlps else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, width, H, W] to the same shape."""
        average_mlp = self.mlp if self.average_mlp is None else self.average_mlp
        score = self.mlp(x.amax((2, 3))) + average_mlp(x.mean((2, 3)))
        beta = torch.sigmoid(_widen(score)).to(x.dtype)
        return x * (1 + beta[:, :, None, None])


def _mlp(width: int) -> nn.Sequential:
    hidden = max(width // 16, 8)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width))


class SpatialAttention(nn.Module):
    """SA, equations 5-6: every position is given a weighted sum of the positions (keys) of the whole map.

    With ``q = x`` and ``k = v = pool_keys(x)``, tokens of C features, N queries and M keys, the modes are

    - ``mean``: ``alpha = sigmoid(q k^T / sqrt(C)) / M``, ``out = x + alpha v``;
    - ``scaled``: q and k through LayerNorm, ``s = tau q k^T / sqrt(C) + b0``, ``out = x + gamma (alpha v)`` with
      learned tau, b0 and gamma (Ramapuram et al. 2024, arXiv 2409.04431); ``sigmoid_scale`` says what keeps the sum
      of a row of alpha apart from M: ``alpha = sigmoid(s - log M)`` (bias) or ``alpha = sigmoid(s) / M`` (count);
    - ``literal``: ``alpha = sigmoid(x x^T)``, ``out = x + alpha x``, as printed, without pooling;
    - ``channel``: the same between feature maps of N positions, ``alpha = sigmoid(x^T x / N) / C``,
      ``out = x + x alpha``, without pooling;
    - ``softmax``: ``alpha = softmax(q k^T / sqrt(C))``, ``out = x + alpha v``.

    Args:
        width: Feature maps C of the input.
        mode: One of `SpatialMode`.
        max_keys: Most keys M that are kept, see `pool_keys`; None keeps all positions.
        gamma_init: What gamma of ``scaled`` starts from.
        sigmoid_scale: ``bias`` or ``count``, for ``scaled`` only.

    Raises:
        NetworkError: An unknown mode or sigmoid scale, or ``max_keys`` below 1.
    """

    def __init__(
        self,
        width: int,
        mode: SpatialMode = "mean",
        *,
        max_keys: int | None = 1024,
        gamma_init: float = 1.0,
        sigmoid_scale: SigmoidScale = "bias",
    ) -> None:
        super().__init__()
        if mode not in get_args(SpatialMode):
            raise NetworkError(f"spatial attention {mode!r}: choose one of {', '.join(get_args(SpatialMode))}")
        if sigmoid_scale not in get_args(SigmoidScale):
            raise NetworkError(f"sigmoid_scale {sigmoid_scale!r}: choose one of {', '.join(get_args(SigmoidScale))}")
        if max_keys is not None and max_keys < 1:
            raise NetworkError(f"max_keys is {max_keys}: give 1 or more, or null to keep every position")
        self.mode = mode
        self.max_keys = max_keys
        self.sigmoid_scale = sigmoid_scale
        if mode == "scaled":
            self.log_tau = nn.Parameter(torch.zeros(()))
            self.bias = nn.Parameter(torch.zeros(()))
            self.gamma = nn.Parameter(torch.full((width,), float(gamma_init)))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, width, H, W] to the same shape.

        Raises:
            NetworkError: Mode ``literal`` and more than 4096 positions.
        """
        added: Tensor = getattr(self, f"_{self.mode}")(x)
        return x + added.view_as(x)

    def _mean(self, x: Tensor) -> Tensor:
        keys = pool_keys(x, self.max_keys)
        return sigmoid_attention(
            x.flatten(2), keys, keys, score_factor=x.shape[1] ** -0.5, sum_factor=1 / keys.shape[2]
        )

    def _scaled(self, x: Tensor) -> Tensor:
        keys = pool_keys(x, self.max_keys)
        scale = torch.exp(_widen(self.log_tau)) / math.sqrt(x.shape[1])
        queries, bias = _normalise(x.flatten(2)) * scale, _widen(self.bias)
        if self.sigmoid_scale == "bias":
            term = sigmoid_attention(queries, _normalise(keys), keys, bias - math.log(keys.shape[2]))
        else:
            term = sigmoid_attention(queries, _normalise(keys), keys, bias, sum_factor=1 / keys.shape[2])
        return self.gamma[:, None] * term

    def _literal(self, x: Tensor) -> Tensor:
        positions = x.flatten(2)
        if positions.shape[2] > LITERAL_POSITIONS:
            raise NetworkError(
                f"spatial attention 'literal' on {x.shape[2]}x{x.shape[3]} positions, "
                f"more than {LITERAL_POSITIONS}: use 'mean', or smaller images"
            )
        return sigmoid_attention(positions, positions, positions)

    def _channel(self, x: Tensor) -> Tensor:
        maps = x.flatten(2).mT
        return sigmoid_attention(maps, maps, maps, score_factor=1 / maps.shape[1], sum_factor=1 / maps.shape[2]).mT

    def _softmax(self, x: Tensor) -> Tensor:
        keys = pool_keys(x, self.max_keys).mT[:, None]
        return F.scaled_dot_product_attention(x.flatten(2).mT[:, None], keys, keys)[:, 0].mT


def key_kernel(height: int, width: int, max_keys: int | None) -> int:
    """Smallest pooling kernel s for which ceil(height / s) ceil(width / s) is at most ``max_keys``."""
    kernel = 1
    while max_keys is not None and -(-height // kernel) * -(-width // kernel) > max_keys:
        kernel += 1
    return kernel


def pool_keys(x: Tensor, max_keys: int | None) -> Tensor:
    """Average a map over squares of `key_kernel` pixels; squares cut by the border average what they hold.

    Returns:
        The keys [B, C, M], M at most ``max_keys``, from the map [B, C, H, W].
    """
    kernel = key_kernel(x.shape[2], x.shape[3], max_keys)
    if kernel > 1:
        x = F.avg_pool2d(x, kernel, ceil_mode=True, count_include_pad=False)
    return x.flatten(2)


def sigmoid_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    *,
    score_factor: float = 1.0,
    sum_factor: float = 1.0,
) -> Tensor:
    """``sum_factor sum_m sigmoid(score_factor q_n k_m + bias) v_m`` for every query n.

    The products run in the autocast type if there is one, else in that of ``values``; bias, sigmoid and sums over
    blocks are in float32. Autograd holds the inputs only: scores are made block by block, and again in the backward
    pass. Blocks are of queries and of keys, so that what a block reads and adds to stays in the cache as well.

    Args:
        queries: [B, C, N].
        keys: [B, C, M].
        values: [B, C, M].
        bias: One number, added to every score.
        score_factor: What products of query and key are multiplied by.
        sum_factor: What the weighted sums of values are multiplied by.

    Returns:
        [B, C, N], in the type of the products.
    """
    dtype = _product_dtype(values)
    queries, keys, values = queries.to(dtype), keys.to(dtype), values.to(dtype)
    if torch.compiler.is_compiling():  # loops over blocks would be unrolled in an exported graph
        scores = _widen(torch.bmm(keys.mT, queries * score_factor))
        weights = torch.sigmoid(scores if bias is None else scores + bias)
        return torch.bmm(values * sum_factor, weights.to(dtype))
    out: Tensor = _SigmoidAttention.apply(  # type: ignore[no-untyped-call]
        queries, keys, values, bias, score_factor, sum_factor
    )
    return out


class _SigmoidAttention(torch.autograd.Function):
    """`sigmoid_attention` in blocks, so that no score outlives its block."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor | None,
        score_factor: float,
        sum_factor: float,
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, values, bias)
        ctx.factors = score_factor, sum_factor
        out = _zeros(queries)
        for images, of_keys, of_queries in _blocks(queries, keys):
            query, key = queries[images, :, of_queries], keys[images, :, of_keys]
            if bias is None:  # torch takes the sigmoid of 16 bits in float32: the same bits, without copies that wide
                weights = _product(key.mT, query, score_factor).sigmoid_()
            else:
                weights = _weights(query, key, bias, score_factor)
            _add_product(out[images, :, of_queries], values[images, :, of_keys], weights, sum_factor)
        return out.to(queries.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, bias = ctx.saved_tensors
        score_factor, sum_factor = ctx.factors
        grad_queries, grad_keys, grad_values = _zeros(queries), _zeros(keys), _zeros(values)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        for images, of_keys, of_queries in _blocks(queries, keys):
            query, grad = queries[images, :, of_queries], grad_out[images, :, of_queries]
            key, value = keys[images, :, of_keys], values[images, :, of_keys]
            weights = _weights(query, key, bias, score_factor)
            _add_product(grad_values[images, :, of_keys], grad, weights.mT, sum_factor)
            grad_scores = _widen(_product(value.mT, grad, sum_factor))
            torch.ops.aten.sigmoid_backward.grad_input(grad_scores, weights, grad_input=grad_scores)
            if grad_bias is not None:
                grad_bias += grad_scores.sum()
            _add_product(grad_queries[images, :, of_queries], key, grad_scores, score_factor)
            _add_product(grad_keys[images, :, of_keys], query, grad_scores.mT, score_factor)
        grads = grad_queries.to(queries.dtype), grad_keys.to(keys.dtype), grad_values.to(values.dtype)
        return *grads, grad_bias, None, None


def _weights(queries: Tensor, keys: Tensor, bias: Tensor | None, factor: float) -> Tensor:
    """Sigmoid of the scores [B, M, N], in float32 or wider."""
    scores = _widen(_product(keys.mT, queries, factor))
    if bias is not None:
        scores = scores.add_(bias)
    return scores.sigmoid_()


def _product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """``factor left @ right``, multiplied before it is rounded to the type of ``left``."""
    return torch.baddbmm(left.new_empty(1), left, right, beta=0, alpha=factor)


def _add_product(total: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
    """Add ``factor left @ right`` to ``total`` in place; the product is in the type of ``left``."""
    if total.dtype == left.dtype:
        torch.baddbmm(total, left, right, alpha=factor, out=total)
    else:
        total.add_(_product(left, right.to(left.dtype), factor))


def _zeros(like: Tensor) -> Tensor:
    """What sums of blocks are collected in: the same shape in float32 or wider."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))


def _blocks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of images, of keys and of queries that hold few scores at once: several images, or parts of one."""
    n_images, n_queries, n_keys = queries.shape[0], queries.shape[2], keys.shape[2]
    block = CPU_BLOCK if queries.device.type == "cpu" else ACCELERATOR_BLOCK
    keys_step = min(n_keys, block[0])
    queries_step = min(n_queries, math.prod(block) // keys_step)
    images_step = math.prod(block) // (keys_step * queries_step)
    for image in range(0, n_images, images_step):
        for key in range(0, n_keys, keys_step):
            for query in range(0, n_queries, queries_step):
                yield (
                    slice(image, image + images_step),
                    slice(key, key + keys_step),
                    slice(query, query + queries_step),
                )


def _product_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _normalise(tokens: Tensor) -> Tensor:
    """LayerNorm without weights over the features of [B, C, N], in float32 or wider."""
    return F.layer_norm(_widen(tokens).mT, tokens.shape[1:2]).mT


def _widen(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
