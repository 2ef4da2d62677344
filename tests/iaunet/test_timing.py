import time

import pytest
import torch

from iaunet.networks import build_network
from iaunet.networks.timing import prepare_timing


class Sleeper(torch.nn.Module):
    """Takes a fixed time for 32x32 pixels and learns one number."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.weight = torch.nn.Parameter(torch.zeros(1, 1, 1, 1))
        self.shapes = []

    def forward(self, x):
        self.shapes.append((len(x), *x.shape[2:]))
        time.sleep(self.seconds * x[:, 0].numel() / 32**2)
        return x[:, :1] * self.weight


def timed(network, size):
    return prepare_timing(network, 3, 1, size, torch.device("cpu"))()


def test_the_time_of_a_row_is_scaled_by_its_pixels():
    seconds = timed(Sleeper(0.05), (128, 128))

    assert 0.05 * 16 <= seconds < 0.05 * 16 * 10


def test_a_wide_network_makes_two_steps_a_narrow_one_a_long_one_at_last():
    wide, narrow = Sleeper(0.6 / 16), Sleeper(0.001)

    timed(wide, (256, 256))
    timed(narrow, (256, 256))

    assert wide.shapes == [(2, 32, 32), (1, 128, 128)]
    assert narrow.shapes == [(2, 32, 32), (1, 128, 128), (1, 128, 128), (32, 64, 64)]


def test_a_network_that_pads_is_timed_at_a_size_that_it_takes_as_it_is():
    network = Sleeper(0.0004)
    network.multiple = 256

    seconds = timed(network, (256, 256))

    assert {shape[1:] for shape in network.shapes} == {(256, 256)}
    assert sum(shape[0] for shape in network.shapes) <= 8
    assert seconds >= 0.0004 * 64


@pytest.mark.parametrize("side", [32, 48, 64, 224, 640])
def test_inputs_of_any_size_can_be_timed(side):
    """Batch normalisation needs two values, which one small row does not leave at the lowest level."""
    network = build_network("unet", channels=3, labels=1, width=1, depth=6)

    assert 0 < timed(network, (side, side)) < 60


def test_a_wider_network_takes_longer_a_row():
    networks = (build_network("unet", channels=1, labels=1, width=width, depth=3) for width in (4, 64))
    narrow, wide = (prepare_timing(network, 1, 1, (128, 128), torch.device("cpu"))() for network in networks)

    assert wide > narrow
