"""Predicting volumes, stacks of pages, DICOM series and cases of several files."""

import csv
import tracemalloc
from importlib import import_module
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from PIL import Image

from iaunet.dataset import MaskCoding, Slicing
from iaunet.errors import PredictionError
from iaunet.inference.folder import predict_folder
from iaunet.inference.inputs import group_channels, list_inputs, mask_names
from iaunet.inference.mosaic import PIXELS_AT_ONCE
from iaunet.inference.output import FolderOptions
from iaunet.inference.overlay import draw_stack_overlay
from iaunet.inference.predictor import Predictor
from iaunet.stacks import read_stack

AFFINE = np.array([[0.3, 0.1, -0.02, 10.123456789], [-0.1, 0.3, 0.0, 20.7], [0.01, 0.0, 2.5, -30.1], [0, 0, 0, 1]])


class Brighter(torch.nn.Module):
    """Foreground wherever the mean of the normalised channels is above 0."""

    def forward(self, rows):
        return rows.mean(1, keepdim=True) * 20


@pytest.fixture
def predict(make_plan, tmp_path):
    """Predict ``in`` into ``out`` with a network that finds what is brighter than 100: outcomes by image."""

    def predict(model="a", options=(), **fields):
        plan = make_plan(**fields)
        predictor = Predictor(plan, [Brighter()], torch.device("cpu"))
        wishes = FolderOptions(**dict.fromkeys(options, True))
        return {o.image: o for o in predict_folder(predictor, folder, tmp_path / "out", wishes)}

    folder = tmp_path / "in"
    folder.mkdir()
    return predict


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "in"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


def voxels(shape=(90, 70, 3), seed=0):
    """Noise around 100 without 100 itself."""
    values = np.random.default_rng(seed).integers(0, 200, shape).astype(np.int16)
    return values + (values >= 100)


def statuses(outcomes):
    return {image: outcome.status for image, outcome in outcomes.items()}


# Volumes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slice_axis", ["axial", "coronal", "sagittal"])
def test_a_volume_gets_its_mask_with_its_affine_to_the_bit(predict, folder, output, slice_axis):
    array = voxels()
    nib.save(nib.Nifti1Image(array, AFFINE), folder / "head.nii.gz")

    outcomes = predict(depth="float32", slicing=Slicing(slice_axis=slice_axis))

    assert statuses(outcomes) == {"head.nii.gz": "done"}
    assert outcomes["head.nii.gz"].mask == "head.nii.gz"
    assert outcomes["head.nii.gz"].measures.pixels == ((array > 100).sum(),)
    image, mask = nib.load(folder / "head.nii.gz"), nib.load(output / "head.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.where(array > 100, 255, 0))
    assert mask.get_data_dtype() == np.uint8
    assert mask.affine.tobytes() == image.affine.tobytes()


@pytest.mark.parametrize(("order", "flips"), [*product(permutations(range(3)), [(0, 0, 0), (1, 0, 1)])][1:])
def test_a_volume_stored_in_another_orientation_is_predicted_alike(predict, folder, output, order, flips):
    array = voxels()
    nib.save(nib.Nifti1Image(array, AFFINE), folder / "a.nii")
    flipped = np.flip(array.transpose(order), np.flatnonzero(flips))
    affine = AFFINE[:, [*order, 3]].copy()
    for axis in np.flatnonzero(flips):
        affine[:, 3] += affine[:, axis] * (flipped.shape[axis] - 1)
        affine[:, axis] *= -1
    nib.save(nib.Nifti1Image(flipped, affine), folder / "b.nii")

    predict(depth="float32", tile_scale=0.5)

    a, b = (np.asarray(nib.load(output / f"{name}.nii.gz").dataobj) for name in "ab")
    np.testing.assert_array_equal(b, np.flip(a.transpose(order), np.flatnonzero(flips)))
    assert 0 < (a > 0).mean() < 1


@pytest.mark.parametrize(("ending", "mask_ending"), [(".mha", ".mha"), (".nrrd", ".nrrd"), (".mhd", ".mha")])
def test_other_volumes_keep_their_format(predict, folder, output, ending, mask_ending):
    image = sitk.GetImageFromArray(voxels((3, 70, 90)))
    image.SetSpacing((0.4, 0.5, 3.0))
    image.SetOrigin((1.5, -2.5, 7.25))
    sitk.WriteImage(image, folder / f"a{ending}")

    predict(depth="float32")

    mask = sitk.ReadImage(output / f"a{mask_ending}")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask) == 255, sitk.GetArrayFromImage(image) > 100)
    assert (mask.GetSpacing(), mask.GetOrigin()) == (image.GetSpacing(), image.GetOrigin())


def test_masks_of_volumes_are_kept_by_the_next_run_and_made_again_once_the_volume_changed(predict, folder, output):
    for name in ("a.nii.gz", "b.nii.gz"):
        nib.save(nib.Nifti1Image(voxels(), AFFINE), folder / name)
    sitk.WriteImage(sitk.GetImageFromArray(voxels((3, 70, 90))), folder / "c.mha")
    first = predict(depth="float32")
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.name[0] in "abc"}
    nib.save(nib.Nifti1Image(voxels(seed=1), AFFINE), folder / "b.nii.gz")

    again = predict(depth="float32")

    assert statuses(again) == {"a.nii.gz": "kept", "b.nii.gz": "done", "c.mha": "kept"}
    assert again["a.nii.gz"].measures.pixels == first["a.nii.gz"].measures.pixels
    assert (output / "a.nii.gz").read_bytes() == before["a.nii.gz"]
    assert (output / "b.nii.gz").read_bytes() != before["b.nii.gz"]
    assert set(statuses(predict(depth="float32")).values()) == {"kept"}


@pytest.mark.parametrize("slice_axis", ["axial", "sagittal"])
def test_probabilities_of_volumes_are_written_as_volumes(predict, folder, output, make_plan, slice_axis):
    array = voxels()
    nib.save(nib.Nifti1Image(array, AFFINE), folder / "a.nii.gz")
    wishes = {"options": ["probabilities"], "depth": "float32", "slicing": Slicing(slice_axis=slice_axis)}

    predict(**wishes)

    written = nib.load(output / "probabilities" / "a.nii.gz")
    assert written.affine.tobytes() == nib.load(folder / "a.nii.gz").affine.tobytes()
    expected = 1 / (1 + np.exp(-20 * (array.astype(float) - 100) / 50))
    np.testing.assert_allclose(np.asarray(written.dataobj), expected, atol=1e-5)
    assert set(statuses(predict(**wishes)).values()) == {"kept"}
    assert set(statuses(predict(**{**wishes, "options": []})).values()) == {"kept"}


def test_a_volume_gets_one_overlay_with_its_fullest_slices(predict, folder, output, make_plan):
    array = voxels((60, 50, 20))
    array[..., 3] = 0  # nothing is found there
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1])), folder / "a.nii.gz")

    predict(options=["overlay"], depth="float32")

    stack = read_stack([folder / "a.nii.gz"], Slicing())
    expected = draw_stack_overlay(stack.pixels, (stack.pixels[0] > 100).astype(np.uint8))
    picture = np.asarray(Image.open(output / "overlays" / "a.png"))
    np.testing.assert_array_equal(picture, expected)
    assert picture.shape[0] == 4 * 256 + 3 * 4  # 16 of 20 slices, four in a row


def test_a_broken_volume_fails_alone(predict, folder, output):
    nib.save(nib.Nifti1Image(voxels(), AFFINE), folder / "a.nii.gz")
    (folder / "b.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:3000])
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), AFFINE), folder / "c.nii.gz")
    (folder / "d.nii.gz").write_bytes(b"")

    outcomes = predict(depth="float32")

    assert statuses(outcomes) == {"a.nii.gz": "done", **dict.fromkeys(["b.nii.gz", "c.nii.gz", "d.nii.gz"], "failed")}
    with (output / "predictions.csv").open(encoding="utf-8", newline="") as file:
        problems = {row["image"]: row["problem"] for row in csv.DictReader(file)}
    assert problems["d.nii.gz"] == "file is empty: copy it again or remove it"
    assert problems["b.nii.gz"]


def test_a_picture_among_volumes_fails_and_says_that_its_type_is_another(predict, folder):
    nib.save(nib.Nifti1Image(voxels(), AFFINE), folder / "a.nii.gz")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "b.png")

    outcomes = predict(depth="float32")

    assert statuses(outcomes) == {"a.nii.gz": "done", "b.png": "failed"}
    assert outcomes["b.png"].problem == "pixels are uint8, those of the data set float32: convert it to float32"


# DICOM --------------------------------------------------------------------------------------------------------------


def write_series(folder, array, spacing=(0.5, 0.75), step=2.0):
    """Write [slices, rows, columns] as one DICOM series, files in a shuffled order of names."""
    pydicom = pytest.importorskip("pydicom")
    uid = import_module("pydicom.uid")
    folder.mkdir(parents=True, exist_ok=True)
    for number, plane in enumerate(array):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = uid.CTImageStorage
        dataset.SOPInstanceUID = f"1.2.9.{number}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2", "1.2.3", "1.2.5"
        dataset.Modality = "CT"
        dataset.ImagePositionPatient = [10.0, -20.0, number * step]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [*spacing]
        dataset.Rows, dataset.Columns = plane.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.PixelData = plane.astype("<i2").tobytes()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / f"{(7 * number) % 10}.dcm", enforce_file_format=True)


def test_a_folder_of_dicom_files_becomes_one_nifti_mask(predict, folder, output):
    array = voxels((4, 70, 90))
    write_series(folder / "patient 1", array)

    outcomes = predict(depth="float32", options=["probabilities", "overlay"])

    assert statuses(outcomes) == {"patient 1": "done"}
    mask = nib.load(output / "patient 1.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj).T == 255, array > 100)
    affine = np.array([[-0.75, 0, 0, -10], [0, -0.5, 0, 20], [0, 0, 2, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(mask.affine, affine, atol=1e-6)
    assert (output / "overlays" / "patient 1.png").exists()
    assert (output / "probabilities" / "patient 1.nii.gz").exists()
    assert statuses(predict(depth="float32", options=["probabilities", "overlay"])) == {"patient 1": "kept"}


def test_a_folder_of_slices_is_one_image_whatever_lies_beside_and_below_them(predict, folder, output):
    write_series(folder, voxels((3, 70, 90)))
    write_series(folder / "more", voxels((4, 70, 90)))
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    Image.fromarray(np.full((70, 90), 200, np.uint8)).save(folder / "preview.png")

    outcomes = predict(depth="float32")

    assert {name: outcomes[name].status for name in ("in", "in/more")} == {"in": "done", "in/more": "done"}
    assert {*outcomes} == {"in", "in/more", "in/preview.png"}
    assert nib.load(output / "in.nii.gz").shape[2] == 3
    assert nib.load(output / "in" / "more.nii.gz").shape[2] == 4
    with pytest.raises(PredictionError, match="holds the images themselves: give another folder for the masks"):
        list_inputs(folder, folder)


def test_the_list_of_a_cd_is_no_image(predict, folder):
    write_series(folder / "a" / "1", voxels((3, 70, 90)))
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")

    assert statuses(predict(depth="float32")) == {"a/1": "done"}


# Stacks of pages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [None, "ZYX"])
def test_a_tiff_stack_of_pages_gets_a_stack_of_pages(predict, folder, output, axes):
    pages = voxels((5, 70, 90)).clip(0, 255).astype(np.uint8)
    if axes is None:
        tifffile.imwrite(folder / "stack.tif", pages, imagej=True, metadata={"axes": "ZYX"})
    else:
        tifffile.imwrite(folder / "stack.tif", pages, photometric="minisblack")
    wishes = {"slicing": Slicing(axes=axes), "options": ["probabilities", "overlay"]}

    outcomes = predict(**wishes)

    assert statuses(outcomes) == {"stack.tif": "done"}
    with tifffile.TiffFile(output / "stack.tif") as file:
        np.testing.assert_array_equal(file.asarray() == 255, pages > 100)
        assert file.series[0].axes == "ZYX"
    with tifffile.TiffFile(output / "probabilities" / "stack.tif") as file:
        np.testing.assert_array_equal(file.asarray() >= 32768, pages > 100)
    assert statuses(predict(**wishes)) == {"stack.tif": "kept"}


def test_a_stack_whose_pages_are_named_by_the_plan_in_another_order_is_kept(predict, folder):
    pages = voxels((70, 90, 2, 5)).clip(0, 255).astype(np.uint8)
    tifffile.imwrite(folder / "stack.tif", np.moveaxis(pages, (2, 3), (0, 1)), photometric="minisblack")
    wishes = {"slicing": Slicing(axes="CZYX"), "channels": 2}
    first = predict(**wishes)
    assert statuses(first) == {"stack.tif": "done"}

    again = predict(**wishes)

    assert statuses(again) == {"stack.tif": "kept"}
    assert again["stack.tif"].measures.pixels == first["stack.tif"].measures.pixels


def test_a_tiff_of_one_page_gets_a_png(predict, folder, output):
    pixels = voxels((70, 90)).clip(0, 255).astype(np.uint8)
    tifffile.imwrite(folder / "page.tiff", pixels)

    predict()

    np.testing.assert_array_equal(np.asarray(Image.open(output / "page.png")) == 255, pixels > 100)


# Channels in files of their own -------------------------------------------------------------------------------------


def write_channels(folder, name, *channels):
    (folder / name).parent.mkdir(exist_ok=True)
    planes = [voxels((70, 90), seed=i).clip(0, 255).astype(np.uint8) for i in channels]
    for channel, plane in zip(channels, planes, strict=True):
        Image.fromarray(plane).save(folder / f"{name}_{channel:04d}.png")
    return np.stack(planes)


def test_the_channel_files_of_a_case_are_one_image_and_its_mask_bears_no_number(predict, folder, output):
    planes = write_channels(folder, "a", 0, 1)
    write_channels(folder, "deep/b", 0, 1)

    outcomes = predict(channels=2, channel_files=2)

    assert statuses(outcomes) == {"a.png": "done", "deep/b.png": "done"}
    expected = planes.astype(int).sum(0) > 200
    clear = planes.astype(int).sum(0) != 200
    np.testing.assert_array_equal((np.asarray(Image.open(output / "a.png")) == 255)[clear], expected[clear])
    assert (output / "deep" / "b.png").exists()
    assert set(statuses(predict(channels=2, channel_files=2)).values()) == {"kept"}
    write_channels(folder, "a", 1)
    Image.fromarray(np.zeros((70, 90), np.uint8)).save(folder / "a_0001.png")
    assert statuses(predict(channels=2, channel_files=2)) == {"a.png": "done", "deep/b.png": "kept"}


def test_a_case_that_lacks_channels_fails_and_names_them(predict, folder):
    write_channels(folder, "a", 1)
    write_channels(folder, "b", 0, 1, 2, 3)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "plain.png")

    outcomes = predict(channels=4, channel_files=4)

    assert statuses(outcomes) == {"a.png": "failed", "b.png": "done", "plain.png": "failed"}
    told = "add those whose names end in"
    assert outcomes["a.png"].problem == f"has 1 of 4 channel files: {told} _0000, _0002, _0003"
    assert outcomes["plain.png"].problem == f"has 1 of 4 channel files: {told} _0000, _0001, _0002, _0003"


def test_channels_of_different_sizes_fail_and_say_so(predict, folder):
    write_channels(folder, "a", 0)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "a_0001.png")

    outcomes = predict(channels=2, channel_files=2)

    told = "channel a_0001.png is 9 x 9 uint8, a_0000.png 70 x 90 uint8: bring all channels of a case to one size"
    assert outcomes["a.png"].problem.startswith(told)


def test_channels_in_volumes_keep_the_affine_of_the_first(predict, folder, output):
    arrays = [voxels(seed=i) for i in range(2)]
    for i, array in enumerate(arrays):
        nib.save(nib.Nifti1Image(array, AFFINE), folder / f"brain_{i:04d}.nii.gz")

    outcomes = predict(channels=2, channel_files=2, depth="float32")

    assert statuses(outcomes) == {"brain.nii.gz": "done"}
    mask = nib.load(output / "brain.nii.gz")
    total = sum(array.astype(int) for array in arrays)
    clear = total != 200
    np.testing.assert_array_equal((np.asarray(mask.dataobj) == 255)[clear], (total > 200)[clear])
    assert mask.affine.tobytes() == nib.load(folder / "brain_0000.nii.gz").affine.tobytes()


@pytest.mark.parametrize(
    ("channel_files", "names"),
    [
        (0, ["a_0000.png", "a_0001.png", "b_0000.png"]),
        (1, ["a.png", "a_0001.png", "b.png"]),
        (2, ["a.png", "b.png"]),
    ],
)
def test_names_that_end_in_numbers_are_channels_only_where_the_plan_says_so(folder, predict, channel_files, names):
    paths = [folder / name for name in ("a_0000.png", "a_0001.png", "b_0000.png")]

    cases = group_channels(folder, paths, channel_files)

    assert mask_names(cases, [".png"] * len(cases)) == names
    assert sorted(path for case in cases for path in case.files) == paths


def test_regions_have_probabilities_each_and_the_mask_has_the_values_they_paint(predict, folder, output):
    coding = MaskCoding(kind="values", values=(1, 4), written=(1, 4), regions=((1, 4),), regions_class_order=(4,))
    pixels = voxels((70, 90)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")

    outcomes = predict(labels=("whole",), coding=coding, options=["probabilities"])

    np.testing.assert_array_equal(np.asarray(Image.open(output / "a.png")), np.where(pixels > 100, 4, 0))
    assert outcomes["a.png"].measures.pixels == ((pixels > 100).sum(),)
    again = predict(labels=("whole",), coding=coding, options=["probabilities"])
    assert (again["a.png"].status, again["a.png"].measures.pixels) == ("kept", outcomes["a.png"].measures.pixels)


def test_a_large_image_takes_the_memory_of_its_mask_once_and_that_of_a_few_bands(predict, folder, output):
    pixels = np.tile(voxels((500, 1000)).clip(0, 255).astype(np.uint8), (24, 1))
    tifffile.imwrite(folder / "large.tif", pixels, photometric="minisblack")
    predict("warm")
    (output / "large.png").unlink()
    (output / "predictions.json").unlink()

    tracemalloc.start()
    predict(tile_scale=0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    pieces = 4 * PIXELS_AT_ONCE * 4  # float32, a few at a time
    assert peak < pixels.size + pieces
    assert peak < 2.5 * pixels.size
    assert predict(tile_scale=0.5)["large.tif"].status == "kept"


@pytest.mark.parametrize("value", [1, 200, 255, 256, 40_000])
def test_masks_have_the_values_of_the_training_masks(predict, folder, output, value):
    pixels = voxels((70, 90)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    coding = MaskCoding(kind="values", values=(value,), written=(value,))

    predict(coding=coding)

    np.testing.assert_array_equal(np.asarray(Image.open(output / "a.png")), np.where(pixels > 100, value, 0))
    assert statuses(predict(coding=coding)) == {"a.png": "kept"}
