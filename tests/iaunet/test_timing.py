import pytest
import torch

from iaunet.networks import build_network, timing


@pytest.fixture
def steps(monkeypatch):
    """Steps that take a fixed time for 32x32 pixels instead of being run; gives the estimate and their shapes."""

    def steps(seconds, size, multiple=32):
        shapes = []

        def time_step(network, images, labels):
            shapes.append((len(images), *images.shape[2:]))
            return seconds * images[:, 0].numel() / 32**2

        monkeypatch.setattr(timing, "_time_step", time_step)
        network = torch.nn.Identity()
        network.multiple = multiple
        return timed(network, size), shapes

    return steps


def timed(network, size):
    return timing.prepare_timing(network, 3, 1, size, torch.device("cpu"))()


def test_the_time_of_a_row_is_scaled_by_its_pixels(steps):
    for seconds in (0.0001, 0.01, 0.1):
        assert steps(seconds, (128, 256))[0] == pytest.approx(seconds * 32)


def test_a_wide_network_makes_two_steps_a_narrow_one_a_long_one_at_last(steps):
    assert steps(0.6 / 16, (256, 256))[1] == [(2, 32, 32), (1, 128, 128)]
    assert steps(0.3 / 16, (256, 256))[1] == [(2, 32, 32), (1, 128, 128), (1, 128, 128)]
    assert steps(0.1 / 16, (256, 256))[1] == [(2, 32, 32), (1, 128, 128), (1, 128, 128), (32, 64, 64)]


def test_a_network_that_pads_is_timed_at_a_size_that_it_takes_as_it_is(steps):
    seconds, shapes = steps(0.0001, (256, 256), multiple=256)

    assert shapes == [(2, 256, 256)] * 4
    assert seconds == pytest.approx(0.0001 * 64)


@pytest.mark.parametrize("side", [32, 48, 64, 224, 640])
def test_inputs_of_any_size_can_be_timed(side):
    """Batch normalisation needs two values, which one small row does not leave at the lowest level."""
    network = build_network("unet", channels=3, labels=1, width=1, depth=6)

    assert timed(network, (side, side)) > 0


def test_a_wider_network_takes_longer_a_row():
    networks = (build_network("unet", channels=1, labels=1, width=width, depth=3) for width in (4, 64))
    narrow, wide = (timing.prepare_timing(network, 1, 1, (128, 128), torch.device("cpu"))() for network in networks)

    assert wide > narrow
