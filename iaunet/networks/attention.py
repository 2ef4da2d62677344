"""The three attention modules of the paper: scale feature (SFA), spatial (SA) and channel attention (CA)."""

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from iaunet.errors import NetworkError
from iaunet.networks.blocks import conv_norm_relu

SpatialMode = Literal["mean", "scaled", "literal", "channel", "softmax"]
LITERAL_POSITIONS = 4096
CPU_SCORES = 2**20  # scores held at once: 4 MiB in float32, about what stays in the cache
ACCELERATOR_SCORES = 2**27  # 512 MiB in float32


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
    - ``scaled``: q and k through LayerNorm, ``alpha = sigmoid(tau q k^T / sqrt(C) + b0 - log M)``,
      ``out = x + gamma (alpha v)`` with learned tau, b0 and gamma (Ramapuram et al. 2024, arXiv 2409.04431);
    - ``literal``: ``alpha = sigmoid(x x^T)``, ``out = x + alpha x``, as printed, without pooling;
    - ``channel``: the same between feature maps of N positions, ``alpha = sigmoid(x^T x / N) / C``,
      ``out = x + x alpha``, without pooling;
    - ``softmax``: ``alpha = softmax(q k^T / sqrt(C))``, ``out = x + alpha v``.

    Args:
        width: Feature maps C of the input.
        mode: One of `SpatialMode`.
        max_keys: Most keys M that are kept, see `pool_keys`; None keeps all positions.
        gamma_init: What gamma of ``scaled`` starts from.

    Raises:
        NetworkError: An unknown mode, or ``max_keys`` below 1.
    """

    def __init__(
        self, width: int, mode: SpatialMode = "mean", *, max_keys: int | None = 1024, gamma_init: float = 1.0
    ) -> None:
        super().__init__()
        if mode not in get_args(SpatialMode):
            raise NetworkError(f"spatial attention {mode!r}: choose one of {', '.join(get_args(SpatialMode))}")
        if max_keys is not None and max_keys < 1:
            raise NetworkError(f"max_keys is {max_keys}: give 1 or more, or None to keep every position")
        self.mode = mode
        self.max_keys = max_keys
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
        queries, keys = x.flatten(2), pool_keys(x, self.max_keys)
        return sigmoid_attention(queries, _widen(keys) / math.sqrt(x.shape[1]), keys / keys.shape[2])

    def _scaled(self, x: Tensor) -> Tensor:
        keys = pool_keys(x, self.max_keys)
        scale = torch.exp(_widen(self.log_tau)) / math.sqrt(x.shape[1])
        bias = _widen(self.bias) - math.log(keys.shape[2])
        term = sigmoid_attention(_normalise(x.flatten(2)) * scale, _normalise(keys), keys, bias)
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
        scaled = _widen(maps) / math.sqrt(maps.shape[1])
        return sigmoid_attention(scaled, scaled, maps / maps.shape[2]).mT

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


def sigmoid_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """``sum_m sigmoid(q_n k_m + bias) v_m`` for every query n.

    The products run in the autocast type if there is one, else in that of ``values``; bias and sigmoid run in
    float32. Autograd holds the inputs only: scores are made block by block, and again in the backward pass.

    Args:
        queries: [B, C, N].
        keys: [B, C, M].
        values: [B, C, M].
        bias: One number, added to every score.

    Returns:
        [B, C, N], in the type of the products.
    """
    dtype = _product_dtype(values)
    queries, keys, values = queries.to(dtype), keys.to(dtype), values.to(dtype)
    if torch.compiler.is_compiling():  # loops over blocks would be unrolled in an exported graph
        return torch.bmm(values, _weights(queries, keys, bias).to(dtype))
    out: Tensor = _SigmoidAttention.apply(queries, keys, values, bias)  # type: ignore[no-untyped-call]
    return out


class _SigmoidAttention(torch.autograd.Function):
    """`sigmoid_attention` in blocks, so that no score outlives its block."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(queries, keys, values, bias)
        out = torch.empty_like(queries)
        for images, block in _blocks(queries, keys):
            weights = _weights(queries[images, :, block], keys[images], bias)
            out[images, :, block] = torch.bmm(values[images], weights.to(values.dtype))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        queries, keys, values, bias = ctx.saved_tensors
        grad_queries = torch.empty_like(queries)
        grad_keys, grad_values = torch.zeros_like(_widen(keys)), torch.zeros_like(_widen(values))
        grad_bias = None if bias is None else torch.zeros_like(bias)
        for images, block in _blocks(queries, keys):
            query, grad = queries[images, :, block], grad_out[images, :, block]
            weights = _weights(query, keys[images], bias)
            grad_values[images] += torch.bmm(grad, weights.to(grad.dtype).mT)
            grad_scores = _widen(torch.bmm(values[images].mT, grad))
            torch.ops.aten.sigmoid_backward.grad_input(grad_scores, weights, grad_input=grad_scores)
            if grad_bias is not None:
                grad_bias += grad_scores.sum()
            grad_scores = grad_scores.to(query.dtype)
            grad_queries[images, :, block] = torch.bmm(keys[images], grad_scores)
            grad_keys[images] += torch.bmm(query, grad_scores.mT)
        return grad_queries, grad_keys.to(keys.dtype), grad_values.to(values.dtype), grad_bias


def _weights(queries: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """Sigmoid of the scores [B, M, N], in float32 or wider."""
    scores = _widen(torch.bmm(keys.mT, queries))
    if bias is not None:
        scores = scores.add_(bias)
    return scores.sigmoid_()


def _blocks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of queries that hold few scores at once: several images, or parts of one."""
    n_images, _, n_queries = queries.shape
    n_keys = keys.shape[2]
    scores = CPU_SCORES if queries.device.type == "cpu" else ACCELERATOR_SCORES
    images_step = max(1, scores // (n_queries * n_keys))
    queries_step = max(1, scores // n_keys)
    for image in range(0, n_images, images_step):
        for query in range(0, n_queries, queries_step):
            yield slice(image, image + images_step), slice(query, query + queries_step)


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
