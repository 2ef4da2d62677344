from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from iaunet.dataset import Slicing
from iaunet.masks import image_stem, mask_ending, path_ending, read_made_from, write_mask, write_pages
from iaunet.stacks import read_mask_stack, read_stack

AXIAL = Slicing()
AFFINE = np.array([[0.0, 0.7, 0.02, -5], [-0.5, 0, 0, 20], [0, 0.02, 2.5, 30], [0, 0, 0, 1]])


def labels_of(shape, dtype=np.uint8):
    top = 4 if dtype == np.uint8 else 60_000
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


def save_volume(path):
    """A volume of 5 x 4 x 3 voxels along its file's axes, none of which is a canonical one's direction."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, (5, 4, 3)).astype(np.int16)
    nifti = nib.Nifti1Image(voxels, AFFINE)
    if ".nii" in path.name:
        nib.save(nifti, path)
        return path
    image = sitk.GetImageFromArray(voxels.T)
    image.SetSpacing((0.5, 0.7, 2.5))
    image.SetOrigin((5.0, -20.0, 30.0))
    image.SetDirection((0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(image, path)
    return path


@pytest.mark.parametrize(
    ("name", "stem", "ending"),
    [
        ("a.png", "a", ".png"),
        ("A.B.JPG", "A.B", ".jpg"),
        ("v1.2.nii.gz", "v1.2", ".nii.gz"),
        ("a.NII", "a", ".nii"),
        ("a.mha", "a", ".mha"),
        ("a.ome.tif", "a.ome", ".tif"),
        ("1.2.840.10", "1.2.840.10", ""),
        ("IM", "IM", ""),
        ("1.2.dcm", "1.2", ".dcm"),
    ],
)
def test_a_name_is_divided_into_stem_and_whole_ending(name, stem, ending):
    assert image_stem(Path("x") / name) == stem
    assert path_ending(Path("x") / name) == ending


def test_a_folder_has_no_ending(tmp_path):
    (tmp_path / "series 1.2").mkdir()

    assert image_stem(tmp_path / "series 1.2") == "series 1.2"
    assert path_ending(tmp_path / "series 1.2") == ""
    assert mask_ending(tmp_path / "series 1.2", AXIAL) == ".nii.gz"


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.png", ".png"),
        ("a.jpeg", ".png"),
        ("a.nii", ".nii.gz"),
        ("a.NII.GZ", ".nii.gz"),
        ("a.mha", ".mha"),
        ("a.mhd", ".mha"),
        ("a.nrrd", ".nrrd"),
        ("a.dcm", ".nii.gz"),
        ("no such.tif", ".png"),
    ],
)
def test_the_mask_of_an_image_has_the_format_that_can_hold_it(name, ending):
    assert mask_ending(Path(name), AXIAL) == ending


def test_the_mask_of_a_tiff_file_has_pages_where_the_image_has(tmp_path):
    pages = labels_of((3, 8, 9))
    write_pages(tmp_path / "pages.tif", pages)
    Image.fromarray(pages[0]).save(tmp_path / "page.tif")
    tifffile.imwrite(tmp_path / "bare.tif", pages, photometric="minisblack")
    (tmp_path / "broken.tif").write_text("text")

    assert mask_ending(tmp_path / "pages.tif", AXIAL) == ".tif"
    assert mask_ending(tmp_path / "page.tif", AXIAL) == ".png"
    assert mask_ending(tmp_path / "bare.tif", Slicing(axes="ZYX")) == ".tif"
    assert mask_ending(tmp_path / "broken.tif", AXIAL) == ".png"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("n", "name"), [(1, "mask.png"), (3, "mask.tif")])
def test_the_mask_of_pictures_is_read_back_with_what_it_was_made_from(tmp_path, n, name, dtype):
    labels = labels_of((n, 8, 9), dtype)

    write_mask(tmp_path / name, labels, AXIAL, None, [tmp_path / "image.png"], "abc:1")

    mask = read_mask_stack(tmp_path / name, AXIAL)
    np.testing.assert_array_equal(mask.values, labels)
    assert mask.values.dtype == dtype
    assert read_made_from(tmp_path / name) == "abc:1"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("slice_axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha", "a.nrrd"])
def test_the_mask_of_a_volume_lies_where_the_volume_lies(tmp_path, name, slice_axis):
    slicing = Slicing(slice_axis=slice_axis)
    image = save_volume(tmp_path / name)
    stack = read_stack([image], slicing)
    labels = labels_of(stack.shape)
    path = tmp_path / f"mask{mask_ending(image, slicing)}"

    write_mask(path, labels, slicing, stack.header, [image], "abc:1")

    mask = read_mask_stack(path, slicing, stack)
    np.testing.assert_array_equal(mask.values, labels)
    assert mask.spacing_mm == pytest.approx(stack.spacing_mm)
    np.testing.assert_allclose(mask.header.affine, stack.header.affine, atol=1e-6)
    assert read_made_from(path) == "abc:1"
    if ".nii" in name:
        assert nib.load(path).affine.tobytes() == nib.load(image).affine.tobytes()


def test_the_mask_of_a_series_has_the_place_of_its_header(tmp_path):
    stack = read_stack([save_volume(tmp_path / "a.nii")], AXIAL)
    labels = labels_of(stack.shape, np.uint16)

    write_mask(tmp_path / "mask.nii.gz", labels, AXIAL, stack.header, [tmp_path / "series"])

    np.testing.assert_array_equal(read_mask_stack(tmp_path / "mask.nii.gz", AXIAL, stack).values, labels)
    assert read_made_from(tmp_path / "mask.nii.gz") == ""


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nii.gz"])
def test_what_is_missing_or_damaged_or_says_nothing_was_made_from_nothing_known(tmp_path, name):
    assert read_made_from(tmp_path / name) == ""
    (tmp_path / name).write_text("text")
    assert read_made_from(tmp_path / name) == ""


def test_pages_of_other_programs_say_nothing_of_what_they_were_made_from(tmp_path):
    for options in ({"imagej": True}, {"photometric": "minisblack"}, {"ome": True}):
        tifffile.imwrite(tmp_path / "a.tif", labels_of((2, 8, 9)), **options)
        assert read_made_from(tmp_path / "a.tif") == ""


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A path to write damaged files to, and the bytes of a whole one of pages."""
    path = tmp_path_factory.mktemp("damaged") / "a.tif"
    write_pages(path, labels_of((2, 8, 9)), "abc:1")
    return path, path.read_bytes()


@settings(max_examples=300)
@given(st.data())
def test_pages_damaged_anywhere_say_what_they_were_made_from_or_nothing(damaged, data):
    path, whole = damaged
    spoiled = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        if place < len(spoiled):
            spoiled[place] = data.draw(st.integers(0, 255))
    path.write_bytes(spoiled)

    assert isinstance(read_made_from(path), str)
