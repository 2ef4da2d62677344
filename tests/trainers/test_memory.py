import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from iaunet.device import CPU, casting
from iaunet.loss import bce_dice_loss
from iaunet.networks import build_network
from iaunet.trainers.memory import FEWEST_ROWS, find_micro_batch, micro_batches, row_bytes, state_bytes

SIZE = (64, 64)


def make_network(width=8):
    return build_network("unet", channels=3, labels=1, width=width, depth=3)


def find(memory, batch_size=16, network=None):
    return find_micro_batch(network or make_network(), 3, SIZE, batch_size, memory)


@given(st.integers(1, 200))
def test_micro_batches_are_equal_parts_never_below_the_fewest_rows(batch_size):
    sizes = micro_batches(batch_size)

    assert sizes[0] == batch_size
    assert sizes == sorted(set(sizes), reverse=True)
    assert all(batch_size % rows == 0 for rows in sizes)
    assert all(rows >= FEWEST_ROWS for rows in sizes[1:])
    assert {batch_size // parts for parts in range(1, batch_size // 4 + 1) if batch_size % parts == 0} <= {*sizes}


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(16, [16, 8, 4]), (10, [10, 5]), (12, [12, 6, 4]), (7, [7]), (2, [2])]
)
def test_a_batch_is_cut_where_it_can_be(batch_size, sizes):
    assert micro_batches(batch_size) == sizes


def test_the_largest_part_that_fits_is_taken(caplog):
    a_row = row_bytes(make_network(), 3, SIZE)
    fixed = state_bytes(make_network())

    assert fixed == 5 * sum(parameter.numel() * 4 for parameter in make_network().parameters())
    assert find(None) == 16
    assert find(fixed + 16 * a_row) == 16
    assert find(fixed + 16 * a_row - 1) == 8
    assert find(fixed + 8 * a_row - 1) == 4
    assert find(fixed + 4 * a_row) == 4
    assert not caplog.records


def test_the_smallest_part_is_tried_with_a_warning_where_nothing_fits(caplog):
    assert find(1000) == 4

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "a training step needs about" in record.message
    assert "a smaller --width would fit" in record.message


def test_the_estimate_grows_with_width_and_area_and_changes_nothing():
    network = make_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()

    narrow, wide = row_bytes(network, 3, SIZE), row_bytes(make_network(16), 3, SIZE)
    large = row_bytes(network, 3, (128, 128))

    assert wide / narrow == pytest.approx(2, rel=0.1)
    assert large / narrow == pytest.approx(4, rel=0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.training
    make_network()
    torch.set_rng_state(state)


class Squares(nn.Module):
    """Keeps its input's multiple and that one's square for the backward pass."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, rows):
        rows = rows * self.scale
        return rows * rows * rows


def profiled_peak(network, rows, precision):
    """Bytes at the peak of a real step, above what is there before it, as torch's profiler counts them."""
    images = torch.randn(rows, 3, *SIZE).contiguous(memory_format=torch.channels_last)
    network = network.to(memory_format=torch.channels_last)
    with torch.profiler.profile(profile_memory=True) as profile:
        with casting(CPU, precision):
            logits = network(images)
        bce_dice_loss(logits, torch.zeros_like(logits)).loss.backward()
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = np.cumsum([change for _, change in changes])
    return live.max() + images.nbytes


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["unet", "resunet"])
def test_the_estimate_is_the_peak_of_a_real_step(name, precision):
    network = build_network(name, channels=3, labels=1, width=8, depth=3)

    estimate = 4 * row_bytes(network, 3, SIZE, CPU, precision)

    assert estimate == pytest.approx(profiled_peak(network, 4, precision), rel=0.15)


def test_products_of_fewer_bits_need_less():
    full, half = (row_bytes(make_network(), 3, SIZE, CPU, precision) for precision in (None, torch.bfloat16))

    assert half / full == pytest.approx(0.55, abs=0.08)


def test_a_tensor_kept_twice_is_counted_once_and_none_after_its_end():
    maps = row_bytes(Squares(), 3, SIZE) / (3 * 64 * 64 * 4)

    assert 4 < maps < 12  # the backward pass alone makes and drops more than 12


def test_numbers_that_a_network_keeps_besides_its_parameters_are_taken_as_they_are():
    class Shifted(Squares):
        def __init__(self):
            super().__init__()
            self.shift = torch.ones(3, 1, 1)

        def forward(self, rows):
            return super().forward(rows) + self.shift

    assert row_bytes(Shifted(), 3, SIZE) >= row_bytes(Squares(), 3, SIZE)


def test_a_network_that_looks_at_numbers_begins_with_whole_batches(caplog):
    class Choosy(nn.Module):
        def forward(self, rows):
            return rows if rows.mean() > 0 else -rows

    caplog.set_level(logging.INFO)

    assert find(10**9, network=Choosy()) == 16
    assert "memory of a step is not known beforehand" in caplog.text
