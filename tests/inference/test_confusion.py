import itertools

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from iaunet.inference.confusion import (
    FALSE_NEGATIVE_COLOUR,
    FALSE_POSITIVE_COLOUR,
    OUTCOME_COLOURS,
    TINT,
    TRUE_POSITIVE_COLOUR,
    draw_confusion,
    find_outcomes,
)

# Linear RGB as seen with severity 1: Machado, Oliveira and Fernandes 2009.
SIGHT = {
    "full": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def grey(height, width, value=100):
    return np.full((1, height, width), value, np.uint8)


def tinted(colour, value=100):
    return tuple(round((1 - TINT) * value + TINT * channel) for channel in colour)


def square(side, start, stop, label=1):
    mask = np.zeros((side, side), np.uint8)
    mask[start:stop, start:stop] = label
    return mask


def test_every_pixel_of_a_small_example():
    prediction, truth = np.zeros((2, 8, 12), np.uint8)
    prediction[1:7, 0:8] = 1
    truth[1:7, 4:12] = 1

    picture = draw_confusion(grey(8, 12), prediction, truth)

    areas = {
        FALSE_POSITIVE_COLOUR: (0, 4),
        TRUE_POSITIVE_COLOUR: (4, 8),
        FALSE_NEGATIVE_COLOUR: (8, 12),
    }
    expected = np.full((8, 12, 3), 100, np.uint8)
    for colour, (left, right) in areas.items():
        expected[1:7, left:right] = colour  # the contour, one pixel wide
        expected[2:6, left + 1 : right - 1] = tinted(colour)
    np.testing.assert_array_equal(picture, expected)


def test_true_negatives_are_the_image_itself_which_is_not_changed():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 40, 50), np.uint8)
    prediction, truth = rng.integers(0, 3, (2, 40, 50), np.uint8)
    before = image.copy()

    picture = draw_confusion(image, prediction, truth)

    negative = (prediction == 0) & (truth == 0)
    np.testing.assert_array_equal(picture[negative], np.moveaxis(image, 0, 2)[negative])
    np.testing.assert_array_equal(image, before)


def test_an_image_of_another_type_is_stretched():
    image = np.linspace(1000, 3000, 400).reshape(1, 20, 20).astype(np.float32)

    picture = draw_confusion(image, square(20, 0, 5), square(20, 0, 5))

    assert picture.dtype == np.uint8
    assert (picture[-1, -1] == 255).all()
    assert tuple(picture[0, 0]) == TRUE_POSITIVE_COLOUR


LABELS = [0, 0, 1, 1, 1, 2, 2, 0]
PREDICTED = [0, 1, 0, 1, 2, 1, 2, 2]


@pytest.mark.parametrize(
    ("label", "outcomes"),
    [
        (None, ["", "fp", "fn", "tp", "fp", "fp", "tp", "fp"]),
        (1, ["", "fp", "fn", "tp", "fn", "fp", "", ""]),
        (2, ["", "", "", "", "fp", "fn", "tp", "fp"]),
    ],
)
def test_a_wrong_label_is_a_false_positive_of_all_and_of_its_own_label_and_a_miss_of_the_true_one(label, outcomes):
    found = find_outcomes(np.array([PREDICTED], np.uint8), np.array([LABELS], np.uint8), label)

    names = {"tp": "true positive", "fp": "false positive", "fn": "false negative"}
    assert list(found) == list(OUTCOME_COLOURS)
    for short, name in names.items():
        assert found[name].tolist() == [[outcome == short for outcome in outcomes]], name


def test_the_picture_shows_the_label_that_was_asked_for():
    prediction, truth = square(30, 5, 15, label=2), square(30, 5, 15, label=1)

    colours = {label: tuple(draw_confusion(grey(30, 30), prediction, truth, label)[5, 5]) for label in (None, 1, 2, 3)}

    assert colours == {
        None: FALSE_POSITIVE_COLOUR,
        1: FALSE_NEGATIVE_COLOUR,
        2: FALSE_POSITIVE_COLOUR,
        3: (100, 100, 100),
    }


def test_ignored_pixels_are_left_as_they_are():
    truth = square(20, 5, 15)
    truth[:, 10:] = 255

    picture = draw_confusion(grey(20, 20), np.ones((20, 20), np.uint8), truth)

    assert (picture[:, 10:] == 100).all()
    assert tuple(picture[7, 7]) == tinted(TRUE_POSITIVE_COLOUR)


@pytest.mark.parametrize(("side", "thickness"), [(30, 1), (200, 1), (512, 2), (2048, 8)])
def test_contours_grow_with_the_image_and_stay_within_their_area(side, thickness):
    mask = square(side, side // 4, side // 2)

    picture = draw_confusion(grey(side, side), mask, mask)

    line = (picture == TRUE_POSITIVE_COLOUR).all(axis=2)
    assert line[3 * side // 8].sum() == line[:, 3 * side // 8].sum() == 2 * thickness
    assert line[side // 4, side // 4 : side // 2].all()
    assert not line[mask == 0].any()


@pytest.mark.parametrize("sight", SIGHT)
def test_the_colours_are_told_apart_with_any_colour_blindness(sight):
    def seen(colour):
        share = np.array(colour) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        linear = np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
        shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        return rgb2lab(shown)

    for one, other in itertools.combinations(OUTCOME_COLOURS.values(), 2):
        assert deltaE_ciede2000(seen(one), seen(other)) > 28


@pytest.mark.parametrize("wrong", ["prediction", "truth"])
def test_a_mask_of_another_size_is_refused(wrong):
    masks = {"prediction": square(8, 2, 4), "truth": square(8, 2, 4)} | {wrong: square(9, 2, 4)}

    with pytest.raises(ValueError, match=r"\(9, 9\) px cannot be drawn on an image of \(8, 8\)"):
        draw_confusion(grey(8, 8), **masks)
