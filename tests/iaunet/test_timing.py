import time

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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


def test_on_a_gpu_the_second_of_two_steps_at_the_real_size_is_what_counts(monkeypatch):
    seconds, shapes = [90.0, 0.4], []

    def time_step(network, images, labels):
        shapes.append((images.device.type, *images.shape))
        return seconds[len(shapes) - 1]

    monkeypatch.setattr(timing, "_time_step", time_step)
    with FakeTensorMode():  # gives images on a GPU where there is none
        time_row = timing.prepare_timing(torch.nn.Identity(), 3, 1, (224, 320), torch.device("cuda"))
        prepared = len(shapes)
        a_row = time_row()

    assert prepared == 1
    assert shapes == [("cuda", timing.ROWS_ON_A_GPU, 3, 224, 320)] * 2
    assert a_row == 0.4 / timing.ROWS_ON_A_GPU


def test_a_step_begins_when_the_gpu_is_idle_and_ends_when_it_is_done(monkeypatch):
    """The GPU is a clock here that goes on while it is waited for: its earlier work takes 100 s, the step 7 s."""
    clock, given = [0.0], [100.0]

    class OnGpu(torch.nn.Conv2d):
        def forward(self, images):
            given.append(7.0)
            return super().forward(images)

    def wait(device):
        clock[0] += sum(given)
        given.clear()

    monkeypatch.setattr(timing, "_wait", wait)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    assert timing._time_step(OnGpu(3, 1, 1), torch.randn(2, 3, 32, 32), 1) == 7
