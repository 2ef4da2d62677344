import numpy as np
import pytest

from iaunet.inference.overlay import LABEL_COLOURS, TRUTH_COLOUR, contact_sheet, draw_overlay


def square(side, start, stop, label=1):
    mask = np.zeros((side, side), np.uint8)
    mask[start:stop, start:stop] = label
    return mask


def pixels_of(picture, colour):
    return (picture == colour).all(axis=2)


def grey(side, value=50):
    return np.full((1, side, side), value, np.uint8)


def test_an_image_without_labels_is_shown_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8)
    before = image.copy()

    picture = draw_overlay(image, np.zeros((20, 30), np.uint8))

    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, np.moveaxis(image, 0, 2))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_than_three_channels_are_shown_by_their_first_in_grey(channels):
    image = np.random.default_rng(0).integers(0, 256, (channels, 8, 8), np.uint8)

    picture = draw_overlay(image, np.zeros((8, 8), np.uint8))

    assert (picture == image[0][..., None]).all()


@pytest.mark.parametrize("scale", [1, 0.01, 200])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_other_types_are_stretched_to_the_whole_range_without_outliers(dtype, scale):
    image = np.linspace(1000, 3000, 10_000).reshape(1, 100, 100) * (scale if dtype == np.float32 else 1)
    image[0, 0, 0], image[0, -1, -1] = 0, 60_000

    picture = draw_overlay(image.astype(dtype), np.zeros((100, 100), np.uint8))

    assert (picture.min(), picture.max()) == (0, 255)
    assert 120 <= np.median(picture) <= 135
    assert (np.diff(picture[..., 0].ravel()[1:-1].astype(int)) >= 0).all()


def test_a_flat_image_is_black_and_not_a_fault():
    assert not draw_overlay(np.full((1, 5, 5), 3.5, np.float32), np.zeros((5, 5), np.uint8)).any()


def test_a_contour_runs_along_the_border_and_leaves_the_inside_free():
    picture = draw_overlay(grey(200), square(200, 50, 150))

    line = pixels_of(picture, LABEL_COLOURS[0])
    assert line[50, 60:140].all()
    assert not line[60:140, 60:140].any()
    assert not line[:45].any()
    assert (picture[~line] == 50).all()


def test_each_label_has_its_colour_and_the_colours_begin_again():
    n = len(LABEL_COLOURS)
    mask = np.repeat(np.arange(n + 2, dtype=np.uint8), 10)[None].repeat(40, axis=0)

    picture = draw_overlay(np.zeros((1, *mask.shape), np.uint8), mask)

    for label in range(1, n + 2):
        inside = pixels_of(picture, LABEL_COLOURS[(label - 1) % n]) & (mask == label)
        assert inside.any(), label


def test_a_mask_that_fills_the_image_is_drawn_along_its_edge():
    line = pixels_of(draw_overlay(grey(64), np.ones((64, 64), np.uint8)), LABEL_COLOURS[0])

    assert line[0].all()
    assert line[:, 0].all()
    assert not line[5:-5, 5:-5].any()


@pytest.mark.parametrize(("side", "thickness"), [(30, 1), (200, 1), (512, 2), (3000, 12)])
def test_contours_grow_with_the_image(side, thickness):
    line = pixels_of(draw_overlay(grey(side), square(side, side // 4, side // 2)), LABEL_COLOURS[0])

    assert line[:, 3 * side // 8].sum() == 2 * thickness


def test_truth_shows_in_white_only_where_the_prediction_differs():
    mask = square(100, 30, 60)

    agreeing = draw_overlay(grey(100), mask, truth=mask)
    differing = draw_overlay(grey(100), mask, truth=np.roll(mask, 10, axis=0))

    assert not pixels_of(agreeing, TRUTH_COLOUR).any()
    assert pixels_of(differing, TRUTH_COLOUR)[70, 31:59].all()
    np.testing.assert_array_equal(pixels_of(differing, LABEL_COLOURS[0]), pixels_of(agreeing, LABEL_COLOURS[0]))


@pytest.mark.parametrize("wrong", ["mask", "truth"])
def test_a_mask_of_another_size_is_refused(wrong):
    masks = {"mask": square(8, 2, 4), "truth": square(8, 2, 4)} | {wrong: square(9, 2, 4)}

    with pytest.raises(ValueError, match=r"\(9, 9\) px cannot be drawn on an image of \(8, 8\)"):
        draw_overlay(grey(8), **masks)


def test_a_sheet_holds_pictures_row_by_row_at_one_height():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    shapes = [(10, 10), (40, 80), (20, 10), (33, 33), (64, 64)]
    pictures = [np.full((*shape, 3), colour, np.uint8) for shape, colour in zip(shapes, colours, strict=True)]

    sheet = contact_sheet(pictures, columns=2, height=32, gap=4)

    assert sheet.shape == (3 * 32 + 2 * 4, 2 * 64 + 4, 3)
    for i, colour in enumerate(colours):
        top, left = i // 2 * 36, i % 2 * 68
        width = round(shapes[i][1] * 32 / shapes[i][0])
        assert (sheet[top : top + 32, left : left + width] == colour).all()
        assert not sheet[top : top + 32, left + width : left + 64].any()


def test_a_sheet_is_no_wider_than_its_pictures():
    assert contact_sheet([np.ones((8, 8, 3), np.uint8)], columns=6, height=16).shape == (16, 16, 3)


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no picture"):
        contact_sheet([], columns=2)
