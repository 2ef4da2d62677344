"""Binary cross entropy plus soft Dice, equations 9-11 of the paper."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTHING = 1.0


class LossParts(NamedTuple):
    """The loss to minimise and the two parts it is the sum of, each one number in float32."""

    loss: Tensor
    bce: Tensor
    dice: Tensor


def bce_dice_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> LossParts:
    """Average binary cross entropy and 1 - soft Dice over images and labels, in float32 throughout.

    The smoothing (lambda in equation 9) is 1 and, unlike in print, stands in the numerator too: an empty mask
    then has a gradient, and an empty prediction of it costs nothing. Every image weighs the same, so that the
    losses of micro-batches of one size average to that of the whole batch.

    Args:
        logits: [B, labels, H, W].
        targets: Truth in [0, 1], shaped as the logits; where ``valid`` is 0 any finite number.
        valid: [B, 1, H, W], 0 for ignored pixels, which leave both sums, else 1. An image without
            valid pixels costs nothing.

    Raises:
        ValueError: The shapes do not match.
    """
    if targets.shape != logits.shape or logits.ndim != 4:
        raise ValueError(
            f"logits {list(logits.shape)} and targets {list(targets.shape)}: "
            f"give both as [batch, labels, height, width]"
        )
    logits, targets = logits.float(), targets.float()
    weights = torch.ones_like(logits[:, :1]) if valid is None else valid.float()
    if weights.shape != logits[:, :1].shape:
        raise ValueError(f"valid {list(weights.shape)}: give one plane an image, {list(logits[:, :1].shape)}")
    bce = _binary_cross_entropy(logits, targets, weights)
    dice = _soft_dice_loss(logits.sigmoid() * weights, targets * weights)
    return LossParts(bce + dice, bce, dice)


def _binary_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    costs = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * weights
    n_pixels = weights.sum((2, 3)).clamp(min=1)
    return (costs.sum((2, 3)) / n_pixels).mean()


def _soft_dice_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    overlap = (probabilities * targets).sum((2, 3))
    total = (probabilities + targets).sum((2, 3))
    return (1 - (2 * overlap + SMOOTHING) / (total + SMOOTHING)).mean()
