"""The networks of a model as one: each averaged over flips and calibrated, then averaged with the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iaunet.device import PRECISIONS, Precision, casting, mixed_precision
from iaunet.inference.out_of_fold import LOWEST_PROBABILITY

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""The axes flipped by mirroring: not at all, left-right, up-down, both."""


@dataclass(frozen=True, eq=False)
class MemberOutput:
    """What one network says: ``passes``, its probabilities [B, L, h, w] in each flip, turned back, and the
    ``probabilities`` that follow from them, calibrated."""

    passes: Sequence[Tensor]
    probabilities: Tensor

    @property
    def disagreement(self) -> Tensor:
        """How far the flips are from their mean, on average, in each pixel: [B, L, h, w] in [0, 0.5]."""
        passes = torch.stack([*self.passes])
        return (passes - passes.mean(0)).abs().mean(0)


class Ensemble(nn.Module):
    """Networks whose probabilities are averaged; maps images [B, C, h, w] to probabilities [B, L, h, w], float32.

    A network's logit of the mean over flips is divided by its temperature before networks are averaged: Guo et al.,
    On Calibration of Modern Neural Networks, 2017.

    Args:
        networks: Each maps images to logits of their size; one at least.
        flips: The axes of each pass, see `FLIPS`.
        temperatures: One a network, above 0; None for 1 each, which changes nothing.
        precision: The type that products are taken in; None for what is usual on the device.

    Raises:
        ValueError: There is no network, or the temperatures are not one a network.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        flips: Sequence[tuple[int, ...]] = FLIPS[:1],
        temperatures: Sequence[float] | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError("a predictor needs at least one network")
        if temperatures is not None and len(temperatures) != len(networks):
            raise ValueError(f"{len(temperatures)} temperatures for {len(networks)} networks")
        self.networks = nn.ModuleList(networks)
        self.flips = tuple(flips)
        self.temperatures = tuple(temperatures or (1.0,) * len(networks))
        self.precision = precision

    def forward(self, inputs: Tensor) -> Tensor:
        """The mean of what the networks say."""
        return mean_probabilities([member.probabilities for member in self.members(inputs)])

    def members(self, inputs: Tensor) -> Iterator[MemberOutput]:
        """What each network says, one after the other."""
        for network, temperature in zip(self.networks, self.temperatures, strict=True):
            passes = [self._pass(network, inputs, axes) for axes in self.flips]
            yield MemberOutput(passes, temper(mean_probabilities(passes), temperature))

    def _pass(self, network: nn.Module, inputs: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The probabilities of one flip, turned back."""
        precision = PRECISIONS[self.precision] if self.precision else mixed_precision(inputs.device)
        with casting(inputs.device, precision):
            logits = network(inputs.flip(axes) if axes else inputs)
        probabilities: Tensor = logits.float().sigmoid()
        return probabilities.flip(axes) if axes else probabilities


def mean_probabilities(maps: Sequence[Tensor]) -> Tensor:
    """The mean of maps of one shape, added up in their order."""
    total = maps[0]
    for each in maps[1:]:
        total = total + each
    return total / len(maps) if len(maps) > 1 else total


def temper(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities whose logits are divided by a temperature: above 1 less sure, below 1 surer."""
    if temperature == 1:
        return probabilities
    p = probabilities.clamp(LOWEST_PROBABILITY, 1 - LOWEST_PROBABILITY)
    return torch.sigmoid((torch.log(p) - torch.log1p(-p)) / temperature)
