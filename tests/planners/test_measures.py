import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from iaunet.dataset import MaskCoding
from iaunet.planners.measures import MeasureTask, count_values, local_width, measure_case

ROWS, COLUMNS = np.mgrid[:64, :96]
DISC = (ROWS - 32) ** 2 + (COLUMNS - 40) ** 2 <= 15**2
BAR = (ROWS >= 10) & (ROWS < 14) & (COLUMNS >= 70) & (COLUMNS < 90)
GREY = ((ROWS * 2 + COLUMNS) % 200).astype(np.uint8)


@pytest.fixture
def measure(tmp_path):
    """Writes an image and a mask and measures them."""

    def measure(image, mask=None, coding=None, with_width=True):
        files = {"image": tmp_path / "image.png", "mask": tmp_path / "mask.png"}
        for name, pixels in (("image", image), ("mask", mask)):
            if isinstance(pixels, bytes):
                files[name].write_bytes(pixels)
            elif pixels is not None:
                Image.fromarray(pixels).save(files[name])
        task = MeasureTask(
            case="a",
            images=(files["image"],),
            image_file="images/a.png",
            mask=None if mask is None else files["mask"],
            mask_file=None if mask is None else "masks/a.png",
            input_size=(256, 256),
            with_width=with_width,
            coding=coding,
        )
        return measure_case(task)

    return measure


def test_image_and_mask_are_measured_in_native_pixels(measure, tmp_path):
    mask = np.where(DISC, np.uint8(255), np.uint8(0))
    measured = measure(GREY, mask)

    assert (measured.shape, measured.channels, measured.depth) == ((1, 64, 96), 1, "uint8")
    assert measured.spacing_mm is None
    assert measured.image_sha256 == hashlib.sha256(Path(tmp_path / "image.png").read_bytes()).hexdigest()
    assert measured.mask_sha256 == hashlib.sha256(Path(tmp_path / "mask.png").read_bytes()).hexdigest()
    assert measured.histograms[0].mean == pytest.approx(GREY.mean())
    assert measured.foreground[0].mean == pytest.approx(GREY[DISC].mean())
    assert measured.mask_values == {0: int((~DISC).sum()), 255: int(DISC.sum())}
    label = measured.labels[255]
    assert label.share == pytest.approx(DISC.mean())
    assert label.diameters == (pytest.approx(30, abs=1),)
    assert 0.98 < label.ceiling <= 1
    assert measured.local_width == pytest.approx(30, abs=2)
    assert measured.thumbnail.shape == (32, 32)


def test_each_label_has_its_components_and_diameters(measure):
    measured = measure(GREY, np.where(DISC | BAR, np.uint8(1), np.uint8(0)) + np.where(BAR, np.uint8(1), np.uint8(0)))

    assert sorted(measured.labels) == [1, 2]
    assert [len(label.diameters) for label in measured.labels.values()] == [1, 1]
    assert measured.labels[2].diameters[0] == pytest.approx(np.sqrt(80 * 4 / np.pi), abs=0.01)


def test_a_case_without_mask_is_one_without_foreground(measure):
    measured = measure(GREY)

    assert measured.mask_sha256 is None
    assert (measured.labels, measured.local_width, measured.instances) == ({}, None, 0)
    assert measured.mask_values == {0: 64 * 96}


def test_the_width_is_measured_only_when_asked(measure):
    assert measure(GREY, DISC, with_width=False).local_width is None


def test_a_coding_says_what_the_values_mean(measure):
    noisy = np.where(DISC, np.uint8(250), np.uint8(3))

    measured = measure(GREY, noisy, MaskCoding(kind="binary", values=(), written=(255,)))

    assert measured.read_as == "binary"
    assert measured.labels[1].share == pytest.approx(DISC.mean())


@pytest.mark.parametrize(("n_values", "read_as"), [(32, "values"), (33, "binary")])
def test_masks_of_more_than_32_values_are_read_as_black_and_white_at_first(measure, n_values, read_as):
    values = np.arange(64 * 96).reshape(64, 96) % n_values * 7

    assert measure(GREY, values.astype(np.uint8)).read_as == read_as


@pytest.mark.parametrize(
    ("mask", "instances"),
    [
        (np.where(DISC, 1, 0) + np.where(BAR, 2, 0), 2),
        (np.where(DISC, 1, 0) + np.where(BAR, 3, 0), 0),
        (np.where(DISC | BAR, 1, 0), 0),
        (np.where(DISC, 255, 0), 0),
        (np.where(DISC, 1, 0), 1),
        (np.kron(np.arange(8 * 12).reshape(8, 12), np.ones((8, 8), int)), 95),
    ],
)
def test_values_that_number_connected_components_are_counted(measure, mask, instances):
    assert measure(GREY, mask.astype(np.uint8)).instances == instances


@pytest.mark.parametrize(
    ("image", "mask", "faults"),
    [
        (b"text", DISC, [("images/a.png", "is not a readable PNG, JPEG, BMP or TIFF image, whatever its name says")]),
        (GREY, b"text", [("masks/a.png", "is not a readable PNG, JPEG, BMP or TIFF image, whatever its name says")]),
        (GREY, DISC[:50], [("masks/a.png", "mask is 50 x 96, its image 64 x 96 (height x width)")]),
        (GREY, np.dstack([GREY, GREY, DISC * GREY]), [("masks/a.png", "mask holds colours")]),
    ],
)
def test_a_file_that_cannot_be_used_is_the_result_and_no_exception(measure, image, mask, faults):
    measured = measure(image, mask)

    assert [(problem.file, problem.what) for problem in measured.problems] == faults
    assert measured.shape == (0, 0, 0)


def test_the_faults_of_image_and_mask_are_told_together(measure):
    assert [problem.file for problem in measure(b"a", b"b").problems] == ["images/a.png", "masks/a.png"]


def test_a_mask_turned_as_the_image_is_displayed_fits(tmp_path, measure):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "turned.jpg", exif=exif)
    data = (tmp_path / "turned.jpg").read_bytes()

    measured = measure(data, np.rot90(DISC, -1))

    assert not measured.problems
    assert measured.shape == (1, 96, 64)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_values_are_counted(dtype):
    assert count_values(np.array([[0, 3, 3], [7, 0, 3]], dtype)) == {0: 2, 3: 3, 7: 1}


@pytest.mark.parametrize(("thickness", "width"), [(1, 2), (3, 4), (9, 10)])
def test_the_width_of_a_bar_is_its_thickness_wherever_it_lies(thickness, width):
    for top in (0, 20, 64 - thickness):
        bar = np.zeros((64, 96), bool)
        bar[top : top + thickness, :] = True
        assert local_width(bar) == pytest.approx(width, abs=1)


def save_volume(path, voxels):
    """Write voxels [inferior, posterior, left] with slices of 3 mm and pixels of 1 mm."""
    affine = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def measure_volume(folder, voxels, mask, **fields):
    usual = {
        "case": "v",
        "images": (save_volume(folder / "image.nii", voxels),),
        "image_file": "image.nii",
        "mask": save_volume(folder / "mask.nii", mask),
        "mask_file": "mask.nii",
        "input_size": (256, 256),
        "with_width": True,
    }
    return measure_case(MeasureTask(**(usual | fields)))


BALL = sum((axis - centre) ** 2 for axis, centre in zip(np.mgrid[:21, :64, :48], (10, 30, 24), strict=True)) <= 8**2
VOXELS = np.random.default_rng(0).integers(-500, 500, BALL.shape).astype(np.int16)


def test_a_volume_is_measured_as_a_whole(tmp_path):
    measured = measure_volume(tmp_path, VOXELS, BALL.astype(np.uint8))

    assert (measured.shape, measured.spacing_mm, measured.depth) == ((21, 64, 48), (3, 1, 1), "float32")
    assert measured.histograms[0].mean == pytest.approx(VOXELS.mean(), abs=0.1)
    assert measured.foreground[0].mean == pytest.approx(VOXELS[BALL].mean(), abs=0.1)
    label = measured.labels[1]
    assert label.share == pytest.approx(BALL.mean())
    assert label.diameters == (pytest.approx(16, abs=0.5),)
    assert label.ceiling > 0.97
    assert measured.local_width == pytest.approx(16, abs=2)
    assert measured.instances == 1


def test_parts_that_touch_only_across_slices_are_one_component(tmp_path):
    mask = np.zeros(BALL.shape, np.uint8)
    mask[3, 10:14, 10:14] = mask[4, 13:17, 13:17] = mask[9, 10:14, 10:14] = 1

    label = measure_volume(tmp_path, VOXELS, mask).labels[1]

    assert sorted(label.diameters) == pytest.approx([np.cbrt(16 * 6 / np.pi), np.cbrt(32 * 6 / np.pi)], abs=0.01)


def test_channels_of_several_files_are_measured_each(tmp_path):
    files = (save_volume(tmp_path / "a.nii", VOXELS), save_volume(tmp_path / "b.nii", VOXELS * 2))

    measured = measure_volume(tmp_path, VOXELS, BALL.astype(np.uint8), images=files)

    means = [histogram.mean for histogram in measured.histograms]
    assert measured.channels == 2
    assert means == pytest.approx([VOXELS.mean(), 2 * VOXELS.mean()], abs=0.3)


def test_ignored_pixels_are_measured_as_nothing(measure):
    mask = np.where(DISC, np.uint8(1), np.uint8(0)) + np.where(BAR, np.uint8(9), np.uint8(0))

    measured = measure(GREY, mask, MaskCoding(kind="values", values=(1,), written=(1,), ignore=9))

    assert [*measured.labels] == [1]
    assert measured.labels[1].share == pytest.approx(DISC.mean())
    assert measured.foreground[0].mean == pytest.approx(GREY[DISC].mean())
    assert measured.local_width == pytest.approx(30, abs=2)


def test_a_value_that_a_given_coding_does_not_know_is_a_fault_of_the_mask(measure):
    measured = measure(GREY, DISC * np.uint8(3), MaskCoding(kind="values", values=(1,), written=(1,)))

    assert [(problem.file, problem.what) for problem in measured.problems] == [
        ("masks/a.png", "mask holds the value 3, the data set has (0, 1)")
    ]


def test_the_ceilings_of_tiles_are_measured_where_the_inputs_size_loses_much(measure):
    lines = np.zeros((800, 800), np.uint8)
    for top in range(0, 800, 20):
        lines[top : top + 6] = 255  # three rows at half the size, one and a half at a quarter
    image = np.zeros((800, 800), np.uint8)

    thin, thick = measure(image, lines).labels[255], measure(GREY, DISC).labels[255]

    assert thick.tile_ceilings == ()
    assert thin.ceiling < 0.97
    quarter, half = thin.tile_ceilings
    assert quarter < 0.9
    assert half == 1


def test_a_volume_without_foreground_has_no_labels_and_no_width(tmp_path):
    measured = measure_volume(tmp_path, VOXELS, np.zeros(BALL.shape, np.uint8))

    assert (measured.labels, measured.local_width, measured.shapes) == ({}, None, ())
    assert measured.mask_values == {0: BALL.size}
