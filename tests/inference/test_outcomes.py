import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from iaunet.inference import outcomes
from iaunet.inference.outcomes import MaskMeasures, Outcome, count_components, measure_mask, write_outcomes


def test_pixels_and_components_of_each_output_are_counted():
    labels = np.zeros((1, 6, 9), np.uint8)
    labels[0, 0:2, 0:2] = 1
    labels[0, 2, 2] = 1  # touches at the corner
    labels[0, 5, 8] = 1
    labels[0, 3:5, 3:6] = 2  # touches label 1 at a corner

    found = measure_mask(labels, [(1,), (2,), (1, 2), (3,)], None)

    assert found == MaskMeasures(pixels=(6, 6, 12, 0), components=(2, 1, 2, 0))


def test_areas_are_in_mm_where_the_spacing_is_known():
    labels = np.ones((1, 2, 3), np.uint8)

    assert measure_mask(labels, [(1,)], (9.0, 0.5, 0.25)).areas_mm2 == (6 * 0.125,)
    volume = measure_mask(np.repeat(labels, 4, axis=0), [(1,)], (2.0, 0.5, 0.25))
    assert (volume.volumes_mm3, volume.areas_mm2) == ((24 * 0.25,), ())


@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)
    ),
    st.sampled_from([1, 8, 20, 1000]),
)
def test_components_are_counted_as_if_in_one_piece(labels, pixels_at_once):
    before = outcomes.PIXELS_AT_ONCE
    outcomes.PIXELS_AT_ONCE = pixels_at_once
    try:
        found = count_components(labels, (1, 2)), count_components(labels, (1,))
    finally:
        outcomes.PIXELS_AT_ONCE = before

    shape = labels if len(labels) > 1 else labels[0]
    structure = ndimage.generate_binary_structure(shape.ndim, shape.ndim)
    assert found == (ndimage.label(shape > 0, structure)[1], ndimage.label(shape == 1, structure)[1])


def test_the_table_has_columns_in_mm_where_an_image_tells_its_spacing(tmp_path):
    done = Outcome(
        image="a.nii.gz",
        mask="a.nii.gz",
        status="done",
        measures=MaskMeasures(pixels=(4, 0), components=(1, 0), volumes_mm3=(2.5, 0.0)),
        expected_dice=0.71234,
        flag="unlike the training images: size 9 x 9, trained on 4 x 4",
    )
    failed = Outcome(image="b.png", mask="", status="failed", problem="broken")

    write_outcomes(tmp_path / "table.csv", [done, failed], ["head", "tail"])

    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "image": "a.nii.gz",
        "mask": "a.nii.gz",
        "status": "done",
        "problem": "",
        "head_pixels": "4",
        "tail_pixels": "0",
        "head_components": "1",
        "tail_components": "0",
        "head_mm3": "2.5",
        "tail_mm3": "0",
        "expected_dice": "0.7123",
        "flag": "unlike the training images: size 9 x 9, trained on 4 x 4",
    }
    assert (second["problem"], second["head_pixels"], second["head_mm3"], second["flag"]) == ("broken", "", "", "")


@pytest.mark.parametrize("n", [0, 1])
def test_an_empty_mask_has_no_component(n):
    assert count_components(np.full((1, 5, 5), n, np.uint8), (1,)) == n
