import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from iaunet.contours import LABEL_COLOURS, label_colour
from iaunet.dataset import IGNORED
from iaunet.preprocessing.check_pictures import (
    IGNORED_COLOUR,
    ROW_SIDE,
    FileTask,
    RowTask,
    Window,
    draw_files,
    draw_rows,
)


def draw(image, mask, alt):
    (picture,) = draw_rows([RowTask(image, mask, Window.of([image]), alt)], 1)
    assert picture.alt == alt
    return picture


def test_a_contour_at_the_edge_is_closed_by_it(decode):
    mask = np.zeros((256, 256), np.uint8)
    mask[200:, :30] = 1

    lines = np.asarray(decode(draw(np.zeros((1, 256, 256)), mask, "edge").contours).convert("RGBA"))[..., 3] > 0

    assert lines.shape == (512, 512)
    assert lines[400, :60].all()
    assert lines[-1, :60].all()
    assert lines[400:, 0].all()
    assert not lines[410:500, 10:50].any()
    assert not lines[:395].any()
    assert not lines[:, 70:].any()


def test_ignored_pixels_are_hatched_and_each_label_has_its_colour(decode):
    mask = np.zeros((64, 64), np.uint8)
    mask[8:24, 8:24], mask[40:56, 8:24], mask[8:56, 40:56] = 1, 2, IGNORED
    image = np.linspace(-2, 2, 64 * 64, dtype=np.float16).reshape(1, 64, 64)

    picture = draw(image, mask, "a row")

    drawn = np.asarray(decode(picture.contours).convert("RGBA"))
    assert drawn.shape == (512, 512, 4)
    colours = {tuple(int(v) for v in colour) for colour in drawn[drawn[..., 3] > 0][:, :3]}
    assert colours == {LABEL_COLOURS[0], LABEL_COLOURS[1], IGNORED_COLOUR}
    hatched = drawn[80:430, 330:440, 3] > 0
    assert 0.2 < hatched.mean() < 0.4
    assert not drawn[80:170, 80:170, 3].any()
    shades = np.asarray(decode(picture.source), int)
    assert shades.shape == (64, 64)
    assert shades[0, 0] < 5
    assert shades[-1, -1] > 250


def test_channels_that_are_no_colours_stand_side_by_side_each_on_its_own_scale(decode):
    image = np.stack([np.linspace(low, low + 1, 32 * 32).reshape(32, 32) for low in (-9, 50)])
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 8:20] = 1

    picture = draw(image, mask, "two")

    shades = np.asarray(decode(picture.source), int)
    assert shades.shape == (32, 64)
    np.testing.assert_allclose(shades[:, :32], shades[:, 32:], atol=12)
    lines = np.asarray(decode(picture.contours).convert("RGBA"))[..., 3] > 0
    np.testing.assert_array_equal(lines[:, : lines.shape[1] // 2], lines[:, lines.shape[1] // 2 :])


def test_one_scale_for_all_keeps_a_dark_image_dark():
    images = [np.full((3, 8, 8), value, np.float16) for value in (-1, 0, 1)]
    window = Window.of(images)

    assert [int(window.apply(image).mean()) for image in images] == [0, 128, 255]


def test_a_flat_image_and_a_wide_one_are_shown(tmp_path, decode):
    image = np.zeros((1, 16, 900), np.float16)

    picture = draw(image, np.zeros((16, 900), np.uint8), "flat")

    assert decode(picture.source).size == picture.size[::-1] == (ROW_SIDE, 5)
    assert picture.contours == ""


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"MZ nonsense"), lambda path: None, Path.mkdir])
def test_a_file_that_cannot_be_read_is_a_grey_card(tmp_path, make):
    task = FileTask(tmp_path / "a.png", "image", "a")
    make(task.path)

    picture = draw_files([task, task], 1)[task]

    assert picture.source == ""
    assert re.search("is not a readable PNG|file is missing|holds no DICOM files", picture.says)


@pytest.mark.parametrize("factor", [1, 3])
def test_large_files_become_small_pictures_and_thin_structures_stay_visible(tmp_path, factor, decode):
    mask = np.zeros((1200 * factor, 2000 * factor), np.uint8)
    mask[601 * factor + 1] = 3
    Image.fromarray(mask).save(tmp_path / "mask.png")
    task = FileTask(tmp_path / "mask.png", "mask", "thin")

    picture = draw_files([task], 1)[task]

    shades = np.asarray(decode(picture.source))
    assert shades.shape == (192, 320)
    assert (shades.max(0) > 20).all()
    assert picture.says == f"mask {1200 * factor} x {2000 * factor} px, values 0, 3"


def test_a_very_large_image_with_deep_pixels_is_shown_in_its_whole_range(tmp_path, decode):
    pixels = np.linspace(1000, 5000, 3000 * 4000).reshape(3000, 4000).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png", compress_level=0)
    task = FileTask(tmp_path / "deep.png", "image", "deep")

    picture = draw_files([task], 1)[task]

    shades = np.asarray(decode(picture.source), float)
    assert shades.shape == (240, 320)
    assert (shades.min(), shades.max()) == (0, 255)
    assert abs(shades.mean() - 127.5) < 2
    assert picture.says == "image 3000 x 4000 px, uint16"


def test_colours_of_labels_begin_again_after_the_last():
    n = len(LABEL_COLOURS)

    assert [label_colour(1), label_colour(n), label_colour(n + 1)] == [*LABEL_COLOURS[:: n - 1], LABEL_COLOURS[0]]


def test_a_volume_is_shown_by_its_middle_slice_and_its_mask_by_the_fullest(tmp_path, decode):
    image = np.zeros((4, 6, 5), np.float32)  # x, y, z of a file along the axes left, posterior, superior
    image[:, :, 2] = np.arange(24).reshape(4, 6)
    mask = np.zeros((4, 6, 5), np.uint8)
    mask[1:3, 2:5, 1] = 7
    affine = np.diag([-1.0, -1, 1, 1])
    for name, voxels in (("image", image), ("mask", mask)):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii.gz")
    tasks = [FileTask(tmp_path / "image.nii.gz", "image", "i"), FileTask(tmp_path / "mask.nii.gz", "mask", "m")]

    shown = draw_files(tasks, 1)

    assert shown[tasks[0]].says == "image 6 x 4 px, float32, slice 2 of 5"
    assert shown[tasks[1]].says == "mask 6 x 4 px, values 0, 7, slice 3 of 5"  # counted from above
    assert np.count_nonzero(np.asarray(decode(shown[tasks[1]].source))) == 6
