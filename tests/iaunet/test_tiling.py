from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.tiling import TILE_OVERLAP, tile_origins

LENGTHS = st.integers(1, 5000)
ROOMS = st.integers(1, 600)


@given(LENGTHS, ROOMS)
def test_tiles_cover_the_axis_from_end_to_end(length, side):
    origins = tile_origins(length, side)

    assert origins[0] == 0
    assert origins[-1] + side == max(length, side)
    assert origins == sorted(set(origins))


@given(LENGTHS, ROOMS)
def test_neighbours_overlap_by_a_half_at_least_and_lie_evenly(length, side):
    steps = [right - left for left, right in pairwise(tile_origins(length, side))]

    assert all(step <= max(1, side * (1 - TILE_OVERLAP)) for step in steps)
    assert not steps or max(steps) - min(steps) <= 1


@given(LENGTHS, ROOMS)
def test_there_are_no_more_tiles_than_the_overlap_asks_for(length, side):
    n_steps = len(tile_origins(length, side)) - 1

    assert (n_steps - 1) * max(1, side // 2) < max(1, length - side)


@pytest.mark.parametrize(
    ("length", "origins"),
    [
        (1, [0]),
        (256, [0]),
        (257, [0, 1]),
        (384, [0, 128]),
        (385, [0, 64, 129]),
        (565, [0, 103, 206, 309]),
        (584, [0, 109, 218, 328]),
    ],
)
def test_where_tiles_of_256_pixels_begin(length, origins):
    assert tile_origins(length, 256) == origins
