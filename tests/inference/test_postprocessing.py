import itertools
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from iaunet.inference import postprocessing
from iaunet.inference.postprocessing import NO_CLEANING, LabelCleaning, Postprocessing, clean_labels
from iaunet.records import FieldError, from_json, to_json

SHAPES = st.one_of(
    st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(2, 5), st.integers(1, 6), st.integers(1, 6)),
)
CLEANINGS = st.builds(LabelCleaning, smallest=st.integers(0, 6), largest_only=st.booleans(), fill_holes=st.booleans())


def pieces(pixels, touch):
    """The sets of pixels [n, 3] that hang together, walked pixel by pixel, in the order of their first pixels."""
    left, found = {*map(tuple, pixels.tolist())}, []
    for start in sorted(left):
        if start not in left:
            continue
        left.remove(start)
        piece, front = {start}, [start]
        while front:
            here = front.pop()
            for step in touch:
                there = tuple(a + b for a, b in zip(here, step, strict=True))
                if there in left:
                    left.remove(there)
                    piece.add(there)
                    front.append(there)
        found.append(piece)
    return found


def clean_by_walking(labels, cleaning):
    """What `clean_labels` promises, from sets of pixels."""
    labels = labels.copy()
    flat = len(labels) == 1
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step) and not (flat and step[0])]
    sides = [step for step in steps if sum(map(abs, step)) == 1]
    around = np.pad(labels, ((0, 0) if flat else (1, 1), (1, 1), (1, 1)))
    shift = (0 if flat else 1, 1, 1)
    for label, asked in enumerate(cleaning, start=1):
        components = pieces(np.argwhere(around == label), steps)
        kept = [component for component in components if len(component) >= asked.smallest]
        if asked.largest_only and kept:
            kept = [max(kept, key=len)]
        for pixel in set().union(*components) - set().union(*kept):
            around[pixel] = 0
        if asked.fill_holes:
            for gap in pieces(np.argwhere(around != label), sides):
                if (0, 0, 0) not in gap:
                    for pixel in gap:
                        around[pixel] = around[pixel] or label
    inner = tuple(slice(start, start + side) for start, side in zip(shift, labels.shape, strict=True))
    return around[inner]


def picture(*rows):
    return np.array([[[int(pixel) for pixel in row.replace(".", "0")] for row in rows]], np.uint8)


@settings(max_examples=300)
@given(st.data(), SHAPES, st.lists(CLEANINGS, min_size=1, max_size=3))
def test_masks_are_cleaned_as_walking_from_pixel_to_pixel_cleans_them(data, shape, cleaning):
    labels = data.draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 1, 2, 3])))
    before = labels.copy()

    cleaned = clean_labels(labels, cleaning)

    np.testing.assert_array_equal(cleaned, clean_by_walking(labels, cleaning))
    np.testing.assert_array_equal(labels, before)
    assert cleaned.dtype == np.uint8


@given(st.data(), SHAPES, CLEANINGS)
def test_cleaning_a_label_twice_is_cleaning_it_once(data, shape, cleaning):
    labels = data.draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 1])))

    once = clean_labels(labels, [cleaning])

    np.testing.assert_array_equal(clean_labels(once, [cleaning]), once)


def test_small_components_go_and_those_of_the_very_size_stay():
    labels = picture("11...", "..1..", ".....", "11..1", "11...")

    cleaned = clean_labels(labels, [LabelCleaning(smallest=3)])

    np.testing.assert_array_equal(cleaned, picture("11...", "..1..", ".....", "11...", "11..."))


def test_of_equal_components_the_first_is_the_largest():
    labels = picture("..1", "...", "1..")

    cleaned = clean_labels(labels, [LabelCleaning(largest_only=True)])

    np.testing.assert_array_equal(cleaned, picture("..1", "...", "..."))


def test_largest_only_leaves_nothing_where_all_components_are_too_small():
    labels = picture("11.1", "....")

    assert not clean_labels(labels, [LabelCleaning(smallest=3, largest_only=True)]).any()


def test_holes_are_filled_around_other_labels_and_not_at_the_border_or_through_corners():
    labels = picture(
        "11111.111",
        "1.2.1.1.1",
        "1...1.111",
        "11111....",
        ".......1.",
        "11....1.1",
        ".1.....1.",
        "11.......",
    )

    cleaned = clean_labels(labels, [LabelCleaning(fill_holes=True)])

    np.testing.assert_array_equal(
        cleaned,
        picture(
            "11111.111",
            "11211.111",
            "11111.111",
            "11111....",
            ".......1.",
            "11....111",
            ".1.....1.",
            "11.......",
        ),
    )


def test_a_removed_component_in_a_hole_is_filled_with_it():
    labels = picture("11111", "1...1", "1.1.1", "1...1", "11111")

    cleaned = clean_labels(labels, [LabelCleaning(smallest=2, fill_holes=True)])

    assert (cleaned == 1).all()


def test_a_hole_of_a_volume_is_closed_on_all_sides():
    shell = np.ones((5, 5, 5), np.uint8)
    shell[1:4, 1:4, 1:4] = 0
    tube = shell.copy()
    tube[0, 2, 2] = 0

    assert (clean_labels(shell, [LabelCleaning(fill_holes=True)]) == 1).all()
    np.testing.assert_array_equal(clean_labels(tube, [LabelCleaning(fill_holes=True)]), tube)


def test_components_of_a_volume_hang_together_over_corners_of_slices():
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 2, 2] = 1
    labels[2, 0, 3] = 1

    cleaned = clean_labels(labels, [LabelCleaning(largest_only=True)])

    assert np.argwhere(cleaned).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


def test_labels_are_cleaned_in_order_and_without_touching_each_other():
    labels = picture("222.1", "2.2..", "222.3")

    cleaned = clean_labels(labels, [LabelCleaning(smallest=2), LabelCleaning(fill_holes=True)])

    np.testing.assert_array_equal(cleaned, picture("222..", "222..", "222.3"))


def test_without_anything_to_do_the_mask_itself_comes_back():
    labels = picture("1.2")

    assert clean_labels(labels, [NO_CLEANING, NO_CLEANING]) is labels
    assert clean_labels(labels, []) is labels


def test_bands_do_not_change_what_is_cleaned(monkeypatch):
    rng = np.random.default_rng(0)
    cleaning = [LabelCleaning(smallest=5, fill_holes=True), LabelCleaning(largest_only=True)]
    volume = rng.choice(np.array([0, 1, 2], np.uint8), (4, 40, 30), p=[0.5, 0.3, 0.2])
    masks = [volume, volume[:1]]
    whole = [clean_labels(mask, cleaning) for mask in masks]

    monkeypatch.setattr(postprocessing, "PIXELS_AT_ONCE", 70)

    for mask, cleaned in zip(masks, whole, strict=True):
        np.testing.assert_array_equal(clean_labels(mask, cleaning), cleaned)


def test_a_large_mask_takes_a_few_times_its_size():
    field = ndimage.zoom(np.random.default_rng(0).random((40, 40)), 100, order=1, grid_mode=True, mode="nearest")
    labels = (field > 0.5).astype(np.uint8)[None]
    labels[0, ::50, ::50] = 1

    tracemalloc.start()
    clean_labels(labels, [LabelCleaning(smallest=100, fill_holes=True)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 10 * labels.size


def test_a_mask_without_slices_is_refused():
    with pytest.raises(ValueError, match=r"shape \(4, 4\) cannot be cleaned: give \[slices, H, W\]"):
        clean_labels(np.ones((4, 4), np.uint8), [LabelCleaning(smallest=3)])


def test_postprocessing_survives_json():
    value = Postprocessing(
        thresholds=(0.35, 0.5), cleaning=(LabelCleaning(smallest=12, fill_holes=True), LabelCleaning(largest_only=True))
    )

    assert from_json(Postprocessing, json.loads(json.dumps(to_json(value)))) == value


def test_postprocessing_is_nothing_at_the_plans_thresholds_without_cleaning():
    idle, busy = (NO_CLEANING, NO_CLEANING), (NO_CLEANING, LabelCleaning(fill_holes=True))

    assert Postprocessing(thresholds=(0.5, 0.4), cleaning=idle).is_nothing([0.5, 0.4])
    assert not Postprocessing(thresholds=(0.5, 0.45), cleaning=idle).is_nothing([0.5, 0.4])
    assert not Postprocessing(thresholds=(0.5, 0.4), cleaning=busy).is_nothing([0.5, 0.4])


@pytest.mark.parametrize(
    ("kind", "fields", "mend"),
    [
        (LabelCleaning, {"smallest": -1}, "smallest is -1: give a whole number of 0 or more"),
        (Postprocessing, {"thresholds": (), "cleaning": (NO_CLEANING,)}, "thresholds is .*: give probabilities"),
        (Postprocessing, {"thresholds": (1.0,), "cleaning": (NO_CLEANING,)}, "thresholds is .*: give probabilities"),
        (Postprocessing, {"thresholds": (float("nan"),), "cleaning": (NO_CLEANING,)}, "thresholds is .*: give prob"),
        (Postprocessing, {"thresholds": (0.5,), "cleaning": ()}, "cleaning is .*: give one entry for each label"),
    ],
)
def test_values_that_cannot_be_are_refused(kind, fields, mend):
    with pytest.raises(FieldError, match=mend):
        kind(**fields)
