import time

import torch

from iaunet.networks import build_network
from iaunet.networks.timing import prepare_timing


class Sleeper(torch.nn.Module):
    """Takes a fixed time a row of 32x32 pixels and learns one number."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.weight = torch.nn.Parameter(torch.zeros(1, 1, 1, 1))
        self.sides = set()

    def forward(self, x):
        self.sides |= {*x.shape[2:]}
        time.sleep(self.seconds * len(x))
        return x[:, :1] * self.weight


def test_the_time_of_a_row_is_scaled_by_its_pixels():
    seconds = prepare_timing(Sleeper(0.05), 3, 1, (128, 128), torch.device("cpu"))()

    assert seconds >= 0.05 * 16
    assert seconds < 0.05 * 16 * 10


def test_a_network_that_pads_is_timed_at_a_size_that_it_takes_as_it_is():
    network = Sleeper(0.02)
    network.multiple = 256

    seconds = prepare_timing(network, 3, 1, (256, 256), torch.device("cpu"))()

    assert network.sides == {256}
    assert seconds >= 0.02


def test_a_wider_network_takes_longer_a_row():
    networks = (build_network("unet", channels=1, labels=1, width=width, depth=3) for width in (4, 64))
    narrow, wide = (prepare_timing(network, 1, 1, (128, 128), torch.device("cpu"))() for network in networks)

    assert wide > narrow
