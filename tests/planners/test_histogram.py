import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from iaunet.planners.histogram import Histogram

DTYPES = st.sampled_from([np.uint8, np.uint16, np.int32])
PIXELS = DTYPES.flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=1, max_dims=2, max_side=9)))


@given(PIXELS)
def test_statistics_of_counted_pixels_are_those_of_the_pixels(pixels):
    histogram = Histogram.of(pixels)

    assert histogram.total == pixels.size
    assert histogram.mean == pytest.approx(pixels.astype(float).mean(), rel=1e-9, abs=1e-6)
    assert histogram.sd == pytest.approx(pixels.astype(float).std(), rel=1e-6, abs=1e-3)


@given(PIXELS, st.floats(0, 100))
def test_a_percentile_is_a_value_that_that_share_does_not_exceed(pixels, percent):
    value = Histogram.of(pixels).percentiles([percent])[0]

    assert value in pixels
    assert (pixels <= value).mean() >= percent / 100 - 1e-9
    assert (pixels < value).mean() <= percent / 100 + 1e-9


@given(st.lists(PIXELS, min_size=1, max_size=4))
def test_the_union_counts_the_pixels_of_all_parts(parts):
    union = Histogram.union([Histogram.of(part) for part in parts])
    whole = Histogram.of(np.concatenate([part.ravel().astype(np.int64) for part in parts]))

    np.testing.assert_array_equal(union.values, whole.values)
    np.testing.assert_array_equal(union.counts, whole.counts)


@given(arrays(np.float32, 50, elements=st.floats(-1e6, 1e6, width=32)))
def test_floats_are_counted_to_three_digits(pixels):
    histogram = Histogram.of(pixels)

    digits = 1e-3 * float(np.abs(pixels).max()) + float(np.finfo(np.float32).tiny)  # subnormal numbers have fewer
    assert histogram.total == 50
    assert histogram.mean == pytest.approx(pixels.astype(float).mean(), abs=digits)


def test_many_different_floats_need_few_counts():
    noise = np.random.default_rng(0).normal(1000, 1, 100_000).astype(np.float32)

    assert len(Histogram.of(noise).values) < 100


def test_nothing_has_no_statistics():
    nothing = Histogram.of(np.empty(0, np.uint8))

    assert nothing.total == 0
    assert all(map(math.isnan, (nothing.mean, nothing.sd, nothing.percentiles([50])[0])))
