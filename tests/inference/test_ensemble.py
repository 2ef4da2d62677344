import numpy as np
import pytest
import torch
from torch import nn

from iaunet.inference.ensemble import FLIPS, Ensemble, temper
from iaunet.inference.out_of_fold import logit, sigmoid


class Sloped(nn.Module):
    """Logits that grow from left to right, whatever the image, by a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, inputs):
        return inputs[:, :1] * 0 + self.factor * torch.linspace(-1, 1, inputs.shape[-1])


INPUTS = torch.zeros(2, 1, 4, 5)
SLOPE = np.broadcast_to(np.linspace(-1, 1, 5, dtype=np.float32), (2, 1, 4, 5))


def test_probabilities_are_averaged_over_networks_after_each_was_tempered():
    found = Ensemble([Sloped(4.0), Sloped(-2.0)], temperatures=(2.0, 0.5))(INPUTS).numpy()

    np.testing.assert_allclose(found, (sigmoid(2 * SLOPE) + sigmoid(-4 * SLOPE)) / 2, atol=1e-6)


def test_a_temperature_applies_to_the_mean_over_flips():
    found = Ensemble([Sloped(4.0)], FLIPS, (3.0,))(INPUTS).numpy()

    mean = (sigmoid(4 * SLOPE) + sigmoid(-4 * SLOPE)) / 2  # 0.5 everywhere
    np.testing.assert_allclose(found, sigmoid(logit(mean) / 3), atol=1e-6)
    np.testing.assert_allclose(found, 0.5, atol=1e-6)


def test_flips_disagree_by_their_mean_distance_from_their_mean():
    [member] = Ensemble([Sloped(4.0)], FLIPS).members(INPUTS)

    np.testing.assert_allclose(member.disagreement.numpy(), abs(sigmoid(4 * SLOPE) - 0.5), atol=1e-6)
    [alone] = Ensemble([Sloped(4.0)]).members(INPUTS)
    assert not alone.disagreement.any()


def test_a_temperature_of_one_changes_no_bit_and_others_keep_order_and_half():
    probabilities = torch.rand(1000, generator=torch.Generator().manual_seed(0))

    assert temper(probabilities, 1.0) is probabilities
    tempered = temper(probabilities, 2.5)
    assert (tempered.argsort() == probabilities.argsort()).all()
    assert ((tempered >= 0.5) == (probabilities >= 0.5)).all()
    assert ((tempered - 0.5).abs() <= (probabilities - 0.5).abs() + 1e-6).all()
    assert temper(torch.tensor([0.0, 1.0]), 0.5).isfinite().all()


def test_networks_and_temperatures_belong_together():
    with pytest.raises(ValueError, match="2 temperatures for 1 networks"):
        Ensemble([Sloped(1.0)], temperatures=(1.0, 2.0))
    with pytest.raises(ValueError, match="needs at least one network"):
        Ensemble([])
