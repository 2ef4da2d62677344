import numpy as np
import pytest
import torch
from torch import nn

from iaunet.dataset import MaskCoding
from iaunet.networks import build_network
from iaunet.planners.plan import load_plan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.trainers.prior import output_shares, start_at_prior
from iaunet.workspace import DatasetFolder


@pytest.mark.parametrize("name", ["unet", "iaunet"])
def test_a_network_starts_with_the_shares_it_is_given(name):
    torch.manual_seed(0)
    network = build_network(name, channels=1, labels=2, width=4, depth=3)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    nn.init.zeros_(convolutions[-1].weight)  # so that nothing but the bias speaks

    assert start_at_prior(network, (0.02, 0.3))

    probabilities = network(torch.randn(1, 1, 32, 32)).sigmoid()
    np.testing.assert_allclose(probabilities.detach().mean((0, 2, 3)), (0.02, 0.3), rtol=1e-5)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1e-4), (1e-9, 1e-4), (0.9, 0.5)])
def test_shares_are_kept_from_the_extremes(share, expected):
    network = nn.Conv2d(1, 1, 1)

    start_at_prior(network, (share,))

    assert torch.sigmoid(network.bias).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("network", [nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 3, 1), nn.Linear(2, 2)])
def test_a_network_without_such_a_bias_stays_as_it_is(network):
    before = [parameter.clone() for parameter in network.parameters()]

    assert not start_at_prior(network, (0.1, 0.2))

    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_shares_are_those_of_the_training_masks(toy_workspace):
    folder = DatasetFolder(toy_workspace / "toy")
    plan = load_plan(folder.plan_json)
    arrays = open_arrays(folder.preprocessed, plan.arrays_digest)

    (share,) = output_shares(arrays, plan.coding, [0, 3, 5])

    assert share == pytest.approx(np.mean(np.asarray(arrays.masks)[[0, 3, 5]] == 1))


def test_regions_share_labels_and_ignored_pixels_do_not_count(toy_workspace):
    class Masks:
        masks = np.array([[[0, 1, 2, 255]], [[2, 2, 0, 255]]], np.uint8)

    coding = MaskCoding(
        kind="values",
        values=(1, 2),
        written=(1, 2),
        regions=((1, 2), (2,)),
        regions_class_order=(1, 2),
        ignore=9,
    )

    assert output_shares(Masks(), coding, [0, 1]) == (4 / 6, 3 / 6)
