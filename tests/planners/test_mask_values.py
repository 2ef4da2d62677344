import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.errors import FileError
from iaunet.planners.mask_values import MOST_UNNAMED_LABELS, judge_masks
from iaunet.planners.measures import Measurement

MILLION = 1_000_000


def masks(*counts, instances=()):
    """Measurements with these counts of mask values."""
    numbers = (*instances, *[0] * (len(counts) - len(instances)))
    return [
        Measurement(case=str(i), mask_values=values, instances=number)
        for i, (values, number) in enumerate(zip(counts, numbers, strict=True))
    ]


@pytest.mark.parametrize(
    ("counts", "values"),
    [
        ({0: 900, 255: 100}, (255,)),
        ({0: 900, 1: 100}, (1,)),
        ({0: 900, 1: 50, 2: 50}, (1, 2)),
        ({0: 900, 128: 50, 255: 50}, (128, 255)),
        ({0: MILLION, 1: 5}, (1,)),
        ({0: MILLION - 600, 1: 500, 2: 100}, (1, 2)),
        ({0: 1, 1: 1} | {1000 + value: 1 for value in range(7)}, (1, *range(1000, 1007))),
    ],
)
def test_few_values_none_rare_are_labels_in_their_order(counts, values):
    coding, notes = judge_masks(masks(counts))

    assert (coding.kind, coding.values, coding.written) == ("values", values, values)
    assert notes == []


@given(st.sets(st.integers(1, 65535), min_size=1, max_size=MOST_UNNAMED_LABELS), st.data())
def test_values_may_be_spread_over_the_masks(values, data):
    parts = [{0: 10}] + [{0: data.draw(st.integers(1, 50)), value: 10} for value in sorted(values)]

    assert judge_masks(masks(*parts))[0].values == tuple(sorted(values))


def test_black_and_white_with_noise_is_one_label_cut_at_127_and_said_so():
    jpeg = {0: 880_000, 3: 10_000, 250: 10_000, 255: 90_000} | dict.fromkeys(range(20, 120), 100)

    coding, (note,) = judge_masks(masks(jpeg))

    assert (coding.kind, coding.written) == ("binary", (255,))
    assert note.level == "note"
    assert note.what == "masks are binary with noise (99.0% of pixels within 16 of 0 or 255): cut at 127"


def test_a_rare_value_beside_others_is_noise():
    assert judge_masks(masks({0: MILLION, 255: 1000, 254: 5}))[0].kind == "binary"


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({0: 100}, "all masks are empty: check that the masks are those of these images"),
        ({1: 50, 2: 50}, r"no mask has background, the values are 1: 50.00%, 2: 50.00%: set background to 0"),
        ({0: 50, -1: 50, 1: 1}, "masks hold values from -1 to 1: bring them to 0 to 65535"),
        ({0: 50, 70_000: 50}, "masks hold values from 0 to 70000"),
        (dict.fromkeys(range(10), 10), r"masks hold 9 labels without names .* unite them to 8 at most, or save 0 and"),
        (
            dict.fromkeys(range(0, 256, 3), 10),
            r"mask values are neither labels \(at most 32, none under 0.01% of the pixels\) nor black and white",
        ),
        ({0: MILLION, 100: 1000, 7: 5}, r"\(0: 99.90%, 7: 0.00%, 100: 0.10%\): save masks as PNG"),
    ],
)
def test_values_that_fit_no_reading_are_shown_with_their_shares(counts, message):
    with pytest.raises(FileError, match=message):
        judge_masks(masks(counts))


@pytest.mark.parametrize(("n_values", "kind"), [(32, "labels without names"), (33, "neither labels")])
def test_thirty_two_values_are_a_map_of_labels_and_more_are_not(n_values, kind):
    with pytest.raises(FileError, match=kind):
        judge_masks(masks(dict.fromkeys(range(n_values), 10)))


def test_values_that_number_components_are_one_label_and_said_so():
    counts = [dict.fromkeys(range(n + 1), 10) for n in (2, 5, 40)]

    coding, (note,) = judge_masks(masks(*counts, {0: 10}, instances=(2, 5, 40)))

    assert (coding.kind, coding.written) == ("nonzero", (255,))
    assert note.what == "values up to 40 number connected components: read as one label"


@pytest.mark.parametrize("instances", [(2, 2, 2), (1, 2, 2), (1, 0, 3), (1, 2, 0)])
def test_the_same_labels_in_every_mask_are_no_instances(instances):
    counts = [{0: 10, 1: 5, 2: 5, 3: 5} for _ in instances]

    assert judge_masks(masks(*counts, instances=instances))[0].kind == "values"


def test_the_coding_reads_the_values_it_was_judged_by():
    coding, _ = judge_masks(masks({0: 90, 128: 5, 255: 5}))

    np.testing.assert_array_equal(coding.encode(np.array([[0, 128, 255]])), [[0, 1, 2]])
