"""From raw folders to arrays: volumes slice by slice, thin structures in tiles, and data that change."""

import json
import logging
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from iaunet.dataset import IGNORED
from iaunet.planners.folds import load_splits
from iaunet.planners.plan import load_plan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.preprocessing.cases import prepare_case
from iaunet.preprocessing.command import main
from iaunet.resample import resize_image, resize_mask
from iaunet.stacks import read_stack

AFFINE = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [-5.0, 0, 0, 0], [0, 0, 0, 1]])
"""Of voxels [inferior, posterior, left] with thick axial slices."""


@pytest.fixture
def workspace(tmp_path):
    return tmp_path / "workspace"


@pytest.fixture
def prepare(workspace):
    """Runs the command; gives the plan and the arrays it made."""

    def prepare(folder, *options):
        arguments = [str(folder), "--workspace", str(workspace), "--workers", "1", "--width", "1", *options]
        assert main(arguments) == 0
        plan = load_plan(workspace / folder.name / "plan.json")
        return plan, open_arrays(workspace / folder.name / "preprocessed", plan.arrays_digest)

    return prepare


def save_volume(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def volume(number):
    """A volume [4, 20, 30] in Hounsfield units, air around a body, and its mask: nothing in the last slice."""
    rng = np.random.default_rng(number)
    body = np.full((4, 20, 30), -1000, np.int16)
    body[:, 2:18, 3:27] = rng.integers(20, 60, (4, 16, 24))
    mask = np.zeros((4, 20, 30), np.uint8)
    mask[:3, 6:12, 5 + number : 15 + number] = 1
    body[mask > 0] += 150
    return body, mask


@pytest.fixture
def volumes(tmp_path):
    for number in range(6):
        body, mask = volume(number)
        save_volume(tmp_path / "ct" / "images" / f"v{number}.nii.gz", body)
        save_volume(tmp_path / "ct" / "masks" / f"v{number}.nii.gz", mask)
    return tmp_path / "ct"


def test_volumes_become_rows_slice_by_slice_in_the_window_of_their_foreground(volumes, prepare):
    plan, arrays = prepare(volumes)

    assert (plan.slicing.slice_axis, plan.depth, plan.input_mode) == ("axial", "float32", "resize")
    foreground = np.concatenate([body[mask > 0] for body, mask in map(volume, range(6))])
    ((low, high),) = plan.normalisation.windows
    assert (low, high) == pytest.approx(tuple(np.percentile(foreground, (0.5, 99.5))), abs=1)
    assert plan.normalisation.mean == pytest.approx((foreground.mean(),), rel=1e-4)
    assert plan.normalisation.sd == pytest.approx((foreground.std(),), rel=1e-3)
    assert [(row.case, row.slice) for row in arrays.index.rows] == [(f"v{i}", k) for i in range(6) for k in range(4)]
    np.testing.assert_array_equal(arrays.foreground, [True, True, True, False] * 6)
    for number in range(6):
        body, mask = volume(number)
        case = arrays.cases[f"v{number}"]
        assert (case.shape, case.n_rows, case.spacing_mm) == ((4, 20, 30), 4, (5, 1, 1))
        np.testing.assert_array_equal(arrays.truth(f"v{number}"), mask)
        for k, row in enumerate(case.rows):
            resized = resize_image(body[None, k], (256, 256)).clip(low, high)
            expected = (resized - plan.normalisation.mean[0]) / plan.normalisation.sd[0]
            np.testing.assert_allclose(arrays.images[row], expected, atol=5e-3)
            np.testing.assert_array_equal(arrays.masks[row], resize_mask(mask[k], (256, 256)))


def test_volumes_are_cut_as_the_user_says_and_so_the_arrays(volumes, prepare):
    plan, arrays = prepare(volumes, "--slice_axis", "coronal")

    assert plan.slicing.slice_axis == "coronal"
    assert arrays.cases["v2"].shape == (20, 4, 30)
    assert arrays.cases["v2"].spacing_mm == (1, 5, 1)
    assert plan.equal_spacing
    np.testing.assert_array_equal(arrays.truth("v2"), np.moveaxis(volume(2)[1], 1, 0))
    geometry = arrays.index.rows[0].geometry
    assert geometry.scaled_size == (171, 256)  # 20 mm by 30 mm
    assert arrays.index.rows[19].slice == 19


def lines(number):
    """A picture [400, 300] and its mask: lines of three pixels, thinner than 256 x 256 can hold."""
    rng = np.random.default_rng(number)
    mask = np.zeros((400, 300), np.uint8)
    for top in range(8 + number, 400, 16):
        mask[top : top + 3, 20:150] = 255
    image = rng.integers(60, 90, (400, 300)).astype(np.uint8) + (mask > 0) * np.uint8(60)
    return image, mask


@pytest.fixture
def vessels(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / "vessels" / part).mkdir(parents=True)
    for number in range(6):
        for part, pixels in zip(("images", "masks"), lines(number), strict=True):
            Image.fromarray(pixels).save(tmp_path / "vessels" / part / f"p{number}.png")
    return tmp_path / "vessels"


def test_thin_structures_become_half_overlapping_tiles_at_native_size(vessels, prepare):
    plan, arrays = prepare(vessels)

    assert (plan.input_mode, plan.tile_scale) == ("tiles", 1.0)
    origins = [(top, left) for top in (0, 72, 144) for left in (0, 44)]
    assert [(row.case, row.geometry.origin) for row in arrays.index.rows] == [
        (f"p{number}", origin) for number in range(6) for origin in origins
    ]
    mean, sd = plan.normalisation.mean[0], plan.normalisation.sd[0]
    for number in range(6):
        image, mask = lines(number)
        np.testing.assert_array_equal(arrays.truth(f"p{number}"), [mask > 0])
        for row, (top, left) in zip(arrays.cases[f"p{number}"].rows, origins, strict=True):
            window = (slice(top, top + 256), slice(left, left + 256))
            np.testing.assert_array_equal(arrays.masks[row], mask[window] > 0)
            np.testing.assert_allclose(arrays.images[row][0], (image[window] - mean) / sd, atol=2e-3)


def test_which_tiles_have_foreground_is_known(vessels, prepare):
    for number in range(6):
        mask = lines(number)[1]
        mask[:, 40:] = 0
        Image.fromarray(mask).save(vessels / "masks" / f"p{number}.png")

    _, arrays = prepare(vessels)

    assert [row.geometry.origin[1] == 0 for row in arrays.index.rows] == arrays.foreground.tolist()
    assert not arrays.masks[~arrays.foreground].any()


@pytest.fixture
def nnunet(tmp_path):
    """A raw data set of nnU-Net: five pictures, the first without its one label, with a part to be ignored."""
    folder = tmp_path / "Dataset001_toy"
    for number in range(5):
        mask = np.zeros((64, 64), np.uint8)
        if number:
            mask[10:30, 10 : 20 + number] = 1
        mask[40:60] = 2
        image = np.random.default_rng(number).integers(0, 255, (64, 64), dtype=np.uint8)
        for part, name, pixels in (("imagesTr", f"c{number}_0000.png", image), ("labelsTr", f"c{number}.png", mask)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / part / name)
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "zscore"},
                "labels": {"background": 0, "lesion": 1, "ignore": 2},
                "numTraining": 5,
                "file_ending": ".png",
            }
        )
    )
    return folder


def test_ignored_pixels_are_no_foreground(nnunet, prepare):
    plan, arrays = prepare(nnunet)

    assert (plan.labels, plan.coding.ignore, plan.channel_files) == (("lesion",), 2, 1)
    np.testing.assert_array_equal(arrays.foreground, [False, True, True, True, True])
    assert set(np.unique(arrays.masks)) == {0, 1, IGNORED}
    assert (arrays.truth("c0")[0, 40:60] == IGNORED).all()


def test_an_edited_plan_is_not_kept_for_masks_that_mean_something_else_now(nnunet, prepare, workspace, capsys):
    prepare(nnunet)
    plan_json = workspace / nnunet.name / "plan.json"
    plan = json.loads(plan_json.read_text())
    plan["recipe"]["epochs"] = 7
    plan_json.write_text(json.dumps(plan))
    assert prepare(nnunet)[0].recipe.epochs == 7
    description = json.loads((nnunet / "dataset.json").read_text())
    description["labels"] = {"background": 0, "oedema": 1, "ignore": 2}
    (nnunet / "dataset.json").write_text(json.dumps(description))

    assert main([str(nnunet), "--workspace", str(workspace), "--workers", "1"]) == 2

    assert "plan.json was edited by hand for data that have changed since: use --replan" in capsys.readouterr().err
    assert prepare(nnunet, "--replan")[0].labels == ("oedema",)


def test_pictures_that_measuring_kept_make_the_rows_that_files_make(tmp_path, write_toy, prepare, monkeypatch):
    folder = write_toy(tmp_path / "toy", 6)
    shutil.copytree(folder, tmp_path / "again")
    _, arrays = prepare(folder)
    monkeypatch.setattr("iaunet.planners.pictures.MOST_KEPT", 0)
    _, again = prepare(tmp_path / "again")

    np.testing.assert_array_equal(arrays.images, again.images)
    np.testing.assert_array_equal(arrays.masks, again.masks)
    for name in arrays.cases:
        np.testing.assert_array_equal(arrays.truth(name), again.truth(name))
    assert not (arrays.folder.parent / "pictures.partial").exists()


@pytest.fixture
def grown(tmp_path, write_toy, prepare):
    """A data set of 20 cases that was planned, before two were added and a mask was corrected.

    Gives its folder, and its plan, rows, truth and folds as they were.
    """
    whole = write_toy(tmp_path / "whole", 22)
    folder = shutil.copytree(whole, tmp_path / "grown")
    for part in ("images", "masks"):
        for name in ("case_03.png", "case_21.png"):
            (folder / part / name).unlink()
    plan, arrays = prepare(folder)
    before = {
        row.case: (np.array(arrays.images[i]), np.array(arrays.masks[i]), bool(arrays.foreground[i]))
        for i, row in enumerate(arrays.index.rows)
    }
    truth = {name: arrays.truth(name) for name in arrays.cases}
    splits = load_splits(tmp_path / "workspace" / "grown" / "splits.json").splits
    for part in ("images", "masks"):
        for name in ("case_03.png", "case_21.png"):
            shutil.copy(whole / part / name, folder / part / name)
    corrected = np.array(Image.open(folder / "masks" / "case_10.png"))
    corrected[:, 32:] = 0
    Image.fromarray(corrected).save(folder / "masks" / "case_10.png")
    return folder, plan, before, truth, splits


def test_only_what_is_new_or_corrected_is_prepared_again(grown, prepare, workspace, caplog):
    folder, plan_before, before, truth, splits = grown

    with caplog.at_level(logging.INFO):
        plan, arrays = prepare(folder)

    (told,) = [record.getMessage() for record in caplog.records if record.name == "iaunet.preprocessing.preprocess"]
    assert told.startswith("preprocessed 3 cases (3 rows) in ")
    assert told.endswith("; 19 cases are as before and were kept")
    assert plan.normalisation == plan_before.normalisation
    assert "kept from the plan before, which differs by less than 0.05 sd" in plan.why["normalisation"]
    assert plan.arrays_digest != plan_before.arrays_digest
    assert [row.case for row in arrays.index.rows] == [f"case_{i:02d}" for i in range(22)]
    for i, row in enumerate(arrays.index.rows):
        if row.case in before and row.case != "case_10":
            image, mask, foreground = before[row.case]
            np.testing.assert_array_equal(arrays.images[i], image)
            np.testing.assert_array_equal(arrays.masks[i], mask)
            assert arrays.foreground[i] == foreground
            np.testing.assert_array_equal(arrays.truth(row.case), truth[row.case])
    for name in ("case_03", "case_10", "case_21"):
        (row,) = arrays.cases[name].rows
        (expected,) = prepare_case(read_stack([folder / "images" / f"{name}.png"], plan.slicing), plan).rows()
        np.testing.assert_array_equal(arrays.images[row], expected.astype(np.float16))
        labels = (np.asarray(Image.open(folder / "masks" / f"{name}.png")) > 0).astype(np.uint8)
        np.testing.assert_array_equal(arrays.masks[row], resize_mask(labels, (256, 256)))
        np.testing.assert_array_equal(arrays.truth(name), labels[None])
    after = load_splits(workspace / "grown" / "splits.json").splits
    for old, new in zip(splits["random"].folds, after["random"].folds, strict=True):
        assert {*old.validation} <= {*new.validation}
    assert {name for fold in after["random"].folds for name in fold.validation} == {*arrays.cases}


def test_the_arrays_of_data_that_grew_are_those_of_data_that_were_so_at_once(grown, prepare, tmp_path):
    folder = grown[0]
    plan, arrays = prepare(folder)
    grown_files = {
        path.name: path.read_bytes() for path in (tmp_path / "workspace" / "grown" / "preprocessed").glob("*.npy")
    }
    del arrays
    shutil.rmtree(tmp_path / "workspace" / "grown" / "preprocessed")

    again, _ = prepare(folder)

    assert again == plan
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "workspace" / "grown" / "preprocessed").glob("*.npy")
    } == grown_files


def test_everything_is_prepared_again_when_the_statistics_moved_much(grown, prepare, caplog):
    folder = grown[0]
    for path in sorted((folder / "images").iterdir())[:6]:
        Image.fromarray(np.asarray(Image.open(path)) // 4).save(path)

    with caplog.at_level(logging.INFO):
        plan, _ = prepare(folder)

    assert plan.normalisation != grown[1].normalisation
    assert "kept from the plan before" not in plan.why["normalisation"]
    assert any(record.getMessage().startswith("preprocessed 22 cases (22 rows)") for record in caplog.records)
