import hashlib

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from iaunet.dataset import Slicing
from iaunet.errors import FileError
from iaunet.stacks import (
    SLICE_AXES,
    hash_files,
    is_volume,
    read_mask_stack,
    read_stack,
    read_volume_header,
    series_files,
    stack_files,
    volume_labels,
    whole_values,
)

AXIAL = Slicing()
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (3, 4, 5)).astype(np.int16)
LABELS = np.random.default_rng(1).integers(0, 3, (3, 4, 5)).astype(np.uint8)
AFFINE = np.array([[0, 0, -0.75, 10], [0, -0.5, 0, 20], [-2.5, 0, 0, 30], [0, 0, 0, 1]])
"""Of voxels [I, P, L]."""


def save_nifti(path, voxels, order=(0, 1, 2), flipped=(), affine=AFFINE):
    """Write voxels [I, P, L] with their axes in another order, some of them turned around."""
    array, affine = voxels.transpose(order), affine[:, [*order, 3]].copy()
    for axis in flipped:
        affine[:, 3] += affine[:, axis] * (array.shape[axis] - 1)
        affine[:, axis] *= -1
    nib.save(nib.Nifti1Image(np.flip(array, flipped), affine), path)
    return path


def save_dicom(folder, voxels, series="1.2.3", description="", prefix=""):
    """Write a series [I, P, L] with a file a slice, in an order of names that says nothing."""
    pydicom = pytest.importorskip("pydicom")
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(voxels):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"{series}.{number + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "1.2", series, "CT"
        dataset.SeriesDescription, dataset.FrameOfReferenceUID = description, "1.2.9"
        x, y, z, _ = AFFINE @ (number, 0, 0, 1)
        dataset.ImagePositionPatient = [-x, -y, z]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [0.5, 0.75]
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *pixels.shape, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation = 1
        dataset.PixelData = pixels.astype("<i2").tobytes()
        dataset.save_as(folder / f"{prefix}{(number * 7) % 10}.dcm", enforce_file_format=True)
    return folder


def save_pages(path, pages, axes="ZYX"):
    tifffile.imwrite(path, pages, imagej=True, metadata={"axes": axes})
    return path


def sha256(*paths):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


@pytest.mark.parametrize(("name", "dtype"), [("a.png", np.uint8), ("a.png", np.uint16), ("a.tif", np.uint16)])
def test_a_picture_is_a_stack_of_one(tmp_path, name, dtype):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (6, 9)).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / name)

    stack = read_stack([tmp_path / name], AXIAL)

    np.testing.assert_array_equal(stack.pixels, pixels[None, None])
    assert stack.pixels.dtype == dtype
    assert (stack.shape, stack.spacing_mm, stack.header) == ((1, 6, 9), None, None)
    assert [stack.sha256] == sha256(tmp_path / name)


def test_a_colour_picture_has_three_channels_and_says_whether_it_is_transparent(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (6, 9, 4), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")

    stack = read_stack([tmp_path / "a.png"], AXIAL)

    np.testing.assert_array_equal(stack.pixels, colours[None, ..., :3].transpose(3, 0, 1, 2))
    assert stack.has_transparency


def test_pages_are_slices(tmp_path):
    pages = np.random.default_rng(0).integers(0, 65535, (3, 4, 5)).astype(np.uint16)

    named = read_stack([save_pages(tmp_path / "named.tif", pages)], AXIAL)
    tifffile.imwrite(tmp_path / "bare.tif", pages, photometric="minisblack")
    told = read_stack([tmp_path / "bare.tif"], Slicing(axes="ZYX"))

    np.testing.assert_array_equal(named.pixels, pages[None])
    np.testing.assert_array_equal(told.pixels, pages[None])
    assert named.shape == (3, 4, 5)
    with pytest.raises(FileError, match="--axes"):
        read_stack([tmp_path / "bare.tif"], AXIAL)


@pytest.mark.parametrize(("order", "flipped"), [((0, 1, 2), ()), ((2, 1, 0), (0, 2)), ((1, 2, 0), (1,))])
def test_a_volume_is_one_stack_in_whatever_orientation_and_format(tmp_path, order, flipped):
    nifti = read_stack([save_nifti(tmp_path / "a.nii.gz", VOXELS, order, flipped)], AXIAL)
    series = read_stack([save_dicom(tmp_path / "series", VOXELS)], AXIAL)

    for stack in (nifti, series):
        np.testing.assert_array_equal(stack.pixels, VOXELS[None].astype(np.float32))
        assert stack.pixels.dtype == np.float32
        assert stack.spacing_mm == pytest.approx((2.5, 0.5, 0.75))
        assert stack.header.shape == (3, 4, 5)
        np.testing.assert_allclose(stack.header.canonical_affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize(
    ("slice_axis", "axis", "spacing_mm"),
    [("axial", 0, (2.5, 0.5, 0.75)), ("coronal", 1, (0.5, 2.5, 0.75)), ("sagittal", 2, (0.75, 2.5, 0.5))],
)
def test_a_volume_is_cut_into_the_planes_that_are_asked_for(tmp_path, slice_axis, axis, spacing_mm):
    path, slicing = save_nifti(tmp_path / "a.nii", VOXELS), Slicing(slice_axis=slice_axis)
    labels = save_nifti(tmp_path / "mask.nii", LABELS)

    stack = read_stack([path], slicing)
    mask = read_mask_stack(labels, slicing, stack)

    assert SLICE_AXES[slice_axis] == axis
    np.testing.assert_array_equal(stack.pixels[0], np.moveaxis(VOXELS, axis, 0))
    assert stack.spacing_mm == mask.spacing_mm == pytest.approx(spacing_mm)
    np.testing.assert_array_equal(mask.values, np.moveaxis(LABELS, axis, 0))
    np.testing.assert_array_equal(volume_labels(mask.values, slicing), LABELS)


def test_files_of_channels_are_one_case(tmp_path):
    first = save_nifti(tmp_path / "a_0000.nii", VOXELS)
    second = save_nifti(tmp_path / "a_0001.nii", VOXELS * 2, (2, 0, 1), (1,))

    stack = read_stack([first, second], AXIAL)

    np.testing.assert_array_equal(stack.pixels, np.stack([VOXELS, VOXELS * 2]))
    assert stack.spacing_mm == pytest.approx((2.5, 0.5, 0.75))
    assert stack.sha256 == hashlib.sha256("".join(sha256(first, second)).encode()).hexdigest()
    assert stack.sha256 == hash_files([first, second]) != hash_files([second, first])


def test_pictures_of_channels_are_one_case(tmp_path):
    planes = np.random.default_rng(0).integers(0, 255, (2, 6, 9), dtype=np.uint8)
    for number, plane in enumerate(planes):
        Image.fromarray(plane).save(tmp_path / f"a_000{number}.png")

    stack = read_stack([tmp_path / "a_0000.png", tmp_path / "a_0001.png"], AXIAL)

    np.testing.assert_array_equal(stack.pixels, planes[:, None])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (np.zeros((6, 8), np.uint8), "channel b.png is 6 x 8 uint8, a.png 6 x 9 uint8: bring all channels of a case"),
        (np.zeros((6, 9), np.uint16), "channel b.png is 6 x 9 uint16, a.png 6 x 9 uint8: bring all channels of a case"),
    ],
)
def test_channels_that_do_not_fit_each_other_are_refused(tmp_path, second, message):
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(second).save(tmp_path / "b.png")

    with pytest.raises(FileError, match=message):
        read_stack([tmp_path / "a.png", tmp_path / "b.png"], AXIAL)


def test_what_lies_elsewhere_is_no_channel_and_no_mask(tmp_path):
    here = save_nifti(tmp_path / "a.nii", VOXELS)
    moved = AFFINE.copy()
    moved[0, 3] += 3
    there = save_nifti(tmp_path / "b.nii", LABELS, affine=moved)
    larger = save_nifti(tmp_path / "c.nii", LABELS[:2])
    image = read_stack([here], AXIAL)

    with pytest.raises(FileError, match="mask lies up to 3 mm away from its image: resample it to the image"):
        read_mask_stack(there, AXIAL, image)
    with pytest.raises(FileError, match="lies up to 3 mm away"):
        read_stack([here, there], AXIAL)
    with pytest.raises(FileError, match="mask has 2 x 4 x 5 voxels, its image 3 x 4 x 5"):
        read_mask_stack(larger, AXIAL, image)
    np.testing.assert_array_equal(read_mask_stack(there, AXIAL).values, LABELS)


def test_a_mask_is_read_from_whatever_format_its_image_has(tmp_path):
    Image.fromarray(LABELS[0]).save(tmp_path / "a.png")
    pages = save_pages(tmp_path / "a.tif", LABELS)
    series = save_dicom(tmp_path / "series", LABELS)
    image = read_stack([save_nifti(tmp_path / "image.nii", VOXELS)], AXIAL)

    np.testing.assert_array_equal(read_mask_stack(tmp_path / "a.png", AXIAL).values, LABELS[:1])
    np.testing.assert_array_equal(read_mask_stack(pages, AXIAL, image).values, LABELS)
    np.testing.assert_array_equal(read_mask_stack(series, AXIAL, image).values, LABELS)
    for path in (tmp_path / "a.png", pages, series):
        mask = read_mask_stack(path, AXIAL)
        assert np.issubdtype(mask.values.dtype, np.integer)
        assert mask.sha256 == hash_files([path])


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path):
    Image.fromarray(LABELS[0]).save(tmp_path / "mask.png")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "image.png")
    volume = read_stack([save_nifti(tmp_path / "volume.nii", VOXELS)], AXIAL)

    with pytest.raises(FileError, match=r"mask is 4 x 5, its image 4 x 6 \(height x width\): bring the mask"):
        read_mask_stack(tmp_path / "mask.png", AXIAL, read_stack([tmp_path / "image.png"], AXIAL))
    with pytest.raises(FileError, match="mask is 4 x 5, its image 3 x 4 x 5"):
        read_mask_stack(tmp_path / "mask.png", AXIAL, volume)


def test_a_mask_of_colours_is_refused_and_one_of_equal_channels_is_read(tmp_path):
    grey = np.repeat(LABELS[0][..., None], 3, axis=-1)
    coloured = grey.copy()
    coloured[0, 0, 2] = 9
    tifffile.imwrite(tmp_path / "grey.tif", grey, photometric="rgb")
    tifffile.imwrite(tmp_path / "coloured.tif", coloured, photometric="rgb")

    np.testing.assert_array_equal(read_mask_stack(tmp_path / "grey.tif", AXIAL).values, LABELS[:1])
    with pytest.raises(FileError, match="mask holds colours: save it with one channel, 0 for background"):
        read_mask_stack(tmp_path / "coloured.tif", AXIAL)


def test_values_are_whole_or_refused():
    np.testing.assert_array_equal(whole_values(np.array([0.0, 2.0, 70000.0])), [0, 2, 70000])
    assert whole_values(LABELS) is LABELS
    for values in ([0.5], [np.nan], [np.inf], [1e12]):
        with pytest.raises(FileError, match="mask holds values that are not whole numbers: save it with whole values"):
            whole_values(np.array(values, np.float32))


def test_a_folder_with_several_series_is_refused_with_their_names(tmp_path):
    folder = save_dicom(tmp_path / "study", VOXELS, "1.2.3", "T1 axial")
    save_dicom(folder, VOXELS[:2], "1.2.4", prefix="x")

    for read in (lambda: read_stack([folder], AXIAL), lambda: read_volume_header(folder), lambda: hash_files([folder])):
        with pytest.raises(FileError, match=r"holds 2 series: ") as fault:
            read()
        assert "T1 axial (3 files)" in fault.value.what
        assert "unnamed (2 files)" in fault.value.what
        assert fault.value.mend == "put each series in a folder of its own"


def test_a_folder_without_series_and_files_that_are_gone_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("text")

    with pytest.raises(FileError, match="holds no DICOM files: give the folder of a series"):
        read_stack([tmp_path / "empty"], AXIAL)
    for name in ("gone.png", "gone.tif", "gone.nii.gz"):
        with pytest.raises(FileError, match=r"missing|cannot be read"):
            read_stack([tmp_path / name], AXIAL)
        with pytest.raises(FileError, match="file is missing: restore it, or plan again without it"):
            hash_files([tmp_path / name])


def test_what_is_a_volume_and_which_files_it_has(tmp_path):
    folder = save_dicom(tmp_path / "series", VOXELS)
    (folder / "readme.txt").write_text("text")
    nifti = save_nifti(tmp_path / "a.nii.gz", VOXELS)
    Image.fromarray(LABELS[0]).save(tmp_path / "a.png")

    slices = sorted(folder.glob("*.dcm"))
    assert is_volume(folder)
    assert is_volume(nifti)
    assert is_volume(slices[0])
    assert not is_volume(tmp_path / "a.png")
    assert not is_volume(tmp_path / "a.tif")
    assert sorted(stack_files(folder)) == sorted(series_files(folder)) == slices
    assert stack_files(nifti) == [nifti]
    assert series_files(slices[0]) == stack_files(slices[0]) == [slices[0]]
    assert read_volume_header(folder).shape == read_volume_header(nifti).shape == (3, 4, 5)


def test_a_hash_names_the_bytes_and_nothing_else(tmp_path):
    one, two = (save_dicom(tmp_path / name, VOXELS) for name in ("one", "two"))
    Image.fromarray(LABELS[0]).save(tmp_path / "a.png")

    assert hash_files([one]) == hash_files([two]) == read_stack([one], AXIAL).sha256
    assert [hash_files([tmp_path / "a.png"])] == sha256(tmp_path / "a.png")
    file = next(two.iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    assert hash_files([one]) != hash_files([two])


def test_a_dicom_segmentation_is_the_mask_of_its_series(tmp_path):
    pytest.importorskip("highdicom")
    from iaunet.inference.dicom_seg import write_segmentation

    series = save_dicom(tmp_path / "series", VOXELS)
    image = read_stack([series], AXIAL)
    labels = np.zeros(image.shape, np.uint8)  # axial slices lie along the first canonical axis, as in the volume
    labels[1, 1:3, 2] = 1
    labels[2, 0] = 2
    write_segmentation(tmp_path / "mask.dcm", labels, ["organ", "tumour"], sorted(series.iterdir()), "test")

    np.testing.assert_array_equal(read_mask_stack(tmp_path / "mask.dcm", AXIAL, image).values, labels)
    with pytest.raises(FileError, match="is a DICOM segmentation without its series: give the series as the image"):
        read_mask_stack(tmp_path / "mask.dcm", AXIAL)
