"""Starts a network at the data's own share of foreground, so that it need not learn first how rare that is."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from iaunet.dataset import IGNORED, MaskCoding
from iaunet.preprocessing.arrays import Arrays

MOST_ROWS = 256
"""Rows whose masks are looked at, evenly spread over those of training."""

RAREST, MOST_COMMON = 1e-4, 0.5


def output_shares(arrays: Arrays, coding: MaskCoding, rows: Sequence[int]) -> tuple[float, ...]:
    """The share of the pixels of each output of the network in the masks of rows; ignored pixels are left out.

    Args:
        arrays: The preprocessed arrays.
        coding: Which labels an output unites.
        rows: One row at least.
    """
    chosen = [*rows][:: -(-len(rows) // MOST_ROWS)]
    counts = sum(np.bincount(arrays.masks[row].ravel(), minlength=256) for row in chosen)
    counted = np.asarray(counts)
    total = int(counted.sum() - counted[IGNORED])
    return tuple(float(counted[list(output)].sum() / max(total, 1)) for output in coding.outputs)


@torch.no_grad()
def start_at_prior(network: nn.Module, shares: Sequence[float]) -> bool:
    """Set the bias of the last convolution so that a network knowing nothing else predicts these shares.

    It is log(p / (1 - p)), eq. in section 4.1 of Lin et al. 2017 (Focal Loss). A network whose last convolution has
    no bias or another number of outputs stays as it is.

    Args:
        network: Changed in place.
        shares: The share of each output, taken as `RAREST` at least and `MOST_COMMON` at most.

    Returns:
        Whether there was such a bias.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions or convolutions[-1].bias is None or convolutions[-1].out_channels != len(shares):
        return False
    logits = [math.log(p / (1 - p)) for p in (min(max(share, RAREST), MOST_COMMON) for share in shares)]
    convolutions[-1].bias.copy_(torch.tensor(logits))
    return True
