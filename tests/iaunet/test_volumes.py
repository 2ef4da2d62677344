import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from iaunet.errors import FileError
from iaunet.volumes import (
    MAX_VOXELS,
    Orientation,
    Volume,
    files_of,
    is_volume_file,
    read_header,
    read_label_volume,
    read_made_from,
    read_volume,
    require_same_space,
    volume_from_sitk,
    volume_stem,
    write_label_volume,
    write_probabilities,
)

CANONICAL = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
CANONICAL_AFFINE = np.array([[0, 0, -0.75, 10], [0, -0.5, 0, 20], [-2.5, 0, 0, 30], [0, 0, 0, 1]])
ORIENTATIONS = [*itertools.product(itertools.permutations(range(3)), itertools.product([False, True], repeat=3))]
FORMATS = [".nii", ".nii.gz", ".mha", ".nrrd"]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def stored(order, flipped) -> tuple[np.ndarray, np.ndarray]:
    """`CANONICAL` and its affine, with axes in another order and direction."""
    array, affine = CANONICAL.transpose(order), CANONICAL_AFFINE[:, [*order, 3]].copy()
    for axis in np.flatnonzero(flipped):
        affine[:, 3] += affine[:, axis] * (array.shape[axis] - 1)
        affine[:, axis] *= -1
    return np.flip(array, np.flatnonzero(flipped)), affine


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write an array [i, j, k] with other programs' writers."""
    if ".nii" in path.name:
        nib.save(nib.Nifti1Image(array, affine), path)
        return path
    image = sitk.GetImageFromArray(array.T)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, path)
    return path


def place_of(path: Path) -> tuple[object, ...]:
    """All that another program says of a file's place in space."""
    if ".nii" not in path.name:
        image = sitk.ReadImage(path)
        return image.GetOrigin(), image.GetSpacing(), image.GetDirection()
    header = nib.load(path).header
    fields = (
        "pixdim",
        "xyzt_units",
        "qform_code",
        "sform_code",
        "quatern_b",
        "qoffset_x",
        "srow_x",
        "srow_y",
        "srow_z",
    )
    return header.get_best_affine().tobytes(), *(header[field].tobytes() for field in fields)


def oblique(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.3, 4, 3)
    affine[:3, 3] = rng.normal(0, 100, 3)
    return affine


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    return save(tmp_path / "case.nii", *stored((2, 1, 0), (True, True, False)))


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    return save(tmp_path / "case.mha", *stored((2, 1, 0), (True, True, False)))


@pytest.fixture
def nrrd(tmp_path: Path) -> Path:
    return save(tmp_path / "case.nrrd", *stored((2, 1, 0), (True, True, False)))


def change_nifti(path: Path, **fields: object) -> Path:
    """Overwrite fields of a NIfTI-1 header, whatever sense they make."""
    data = path.read_bytes()
    header = nib.Nifti1Header(data[:348], check=False)
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(header.binaryblock + data[348:])
    return path


def change_text(path: Path, old: str, new: str) -> Path:
    data = path.read_bytes()
    assert old.encode() in data
    path.write_bytes(data.replace(old.encode(), new.encode(), 1))
    return path


@pytest.mark.parametrize(
    ("name", "stem"), [("a.nii.gz", "a"), ("a.b.NII", "a.b"), ("a.MHA", "a"), ("a.nrrd", "a"), ("a.mhd", "a")]
)
def test_volumes_are_known_by_their_whole_ending(name, stem):
    assert is_volume_file(Path(name))
    assert volume_stem(Path("folder") / name) == stem


@pytest.mark.parametrize("name", ["a.png", "a.gz", "nii", "a.nii.txt"])
def test_other_endings_are_no_volumes(name):
    assert not is_volume_file(Path(name))


@pytest.mark.parametrize(("order", "flipped"), ORIENTATIONS)
def test_the_same_place_gives_the_same_array_however_nifti_stores_it(tmp_path, order, flipped):
    volume = read_volume(save(tmp_path / "a.nii", *stored(order, flipped)))

    np.testing.assert_array_equal(volume.voxels[0], CANONICAL)
    np.testing.assert_allclose(volume.header.canonical_affine, CANONICAL_AFFINE, atol=1e-5)
    assert volume.spacing_mm == pytest.approx((2.5, 0.5, 0.75))


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".nii.gz"])
@pytest.mark.parametrize(("order", "flipped"), ORIENTATIONS[::7])
def test_the_same_place_gives_the_same_array_in_every_format(tmp_path, order, flipped, ending):
    volume = read_volume(save(tmp_path / f"a{ending}", *stored(order, flipped)))

    np.testing.assert_array_equal(volume.voxels[0], CANONICAL)
    np.testing.assert_allclose(volume.header.canonical_affine, CANONICAL_AFFINE, atol=1e-5)


@given(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_an_orientation_is_undone_exactly(order, flipped):
    orientation = Orientation(tuple(order), flipped)
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)

    np.testing.assert_array_equal(orientation.to_file(orientation.to_canonical(array)), array)
    assert np.shares_memory(orientation.to_canonical(array), array)


@pytest.mark.parametrize("seed", range(20))
def test_an_oblique_volume_takes_the_axes_closest_to_inferior_posterior_left(seed):
    affine = oblique(seed)
    canonical = Orientation.closest(affine[:3, :3]).to_canonical_affine(affine, (3, 4, 5))
    cosines = -np.flipud(canonical[:3, :3]) / np.linalg.norm(canonical[:3, :3], axis=0)

    assert (np.diag(cosines) > 0).all()
    assert np.trace(cosines) == pytest.approx(
        max(np.abs(cosines[[0, 1, 2], p]).sum() for p in itertools.permutations(range(3)))
    )


def test_two_axes_at_45_degrees_keep_their_choice_under_rounding():
    directions = np.array([[1, 1, 0], [1, -1, 0], [0, 0, 1]])
    noise = np.random.default_rng(0).normal(0, 1e-9, (50, 3, 3))

    assert len({Orientation.closest(directions + part) for part in noise}) == 1


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("seed", range(5))
def test_labels_come_back_with_the_place_of_their_image_to_the_bit(tmp_path, ending, seed):
    image = save(tmp_path / f"image{ending}", CANONICAL, oblique(seed))
    labels = np.random.default_rng(seed).integers(0, 5, read_header(image).shape).astype(np.uint8)

    write_label_volume(tmp_path / f"mask{ending}", labels, image, "image 1234")

    mask = read_label_volume(tmp_path / f"mask{ending}")
    np.testing.assert_array_equal(mask.voxels[0], labels)
    assert place_of(tmp_path / f"mask{ending}") == place_of(image)
    assert mask.affine.tobytes() == read_header(image).affine.tobytes()
    assert read_made_from(tmp_path / f"mask{ending}") == "image 1234"
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted([f"image{ending}", f"mask{ending}"])


@pytest.mark.parametrize(("source", "target"), [*itertools.permutations(FORMATS, 2)])
def test_labels_can_be_written_in_another_format(tmp_path, source, target):
    image = save(tmp_path / f"image{source}", CANONICAL, oblique(7))
    labels = (np.arange(60).reshape(read_header(image).shape) * 1000).astype(np.uint16)

    write_label_volume(tmp_path / f"mask{target}", labels, image)

    mask = read_label_volume(tmp_path / f"mask{target}")
    np.testing.assert_array_equal(mask.voxels[0], labels)
    assert mask.voxels.dtype == np.uint16
    require_same_space(read_header(image), mask, tolerance=1e-4)
    assert read_made_from(tmp_path / f"mask{target}") == ""


@pytest.mark.parametrize("ending", FORMATS)
def test_written_bytes_depend_on_nothing_but_the_labels(tmp_path, nifti, ending):
    for name in ("first", "second"):
        write_label_volume(tmp_path / f"{name}{ending}", CANONICAL.astype(np.uint8), nifti, "x")

    assert (tmp_path / f"first{ending}").read_bytes() == (tmp_path / f"second{ending}").read_bytes()


@pytest.mark.parametrize("ending", FORMATS)
def test_probabilities_are_written_as_they_are(tmp_path, nifti, ending):
    probabilities = np.random.default_rng(0).random((3, 4, 5), np.float32)

    write_probabilities(tmp_path / f"p{ending}", probabilities, nifti)

    np.testing.assert_array_equal(read_volume(tmp_path / f"p{ending}").voxels[0], probabilities)


def test_labels_take_the_place_of_a_header_without_file(tmp_path, meta):
    write_label_volume(tmp_path / "mask.nii.gz", CANONICAL.astype(np.uint8), read_header(meta))

    require_same_space(read_volume(meta), read_label_volume(tmp_path / "mask.nii.gz"), tolerance=1e-5)


def test_nothing_but_the_place_is_copied_from_the_image(tmp_path):
    image = nib.Nifti1Image(CANONICAL, np.eye(4))
    image.header["descrip"] = b"a patient's name"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a patient's name"))
    nib.save(image, tmp_path / "image.nii")

    write_label_volume(
        tmp_path / "mask.nii", np.zeros(read_header(tmp_path / "image.nii").shape, np.uint8), tmp_path / "image.nii"
    )

    assert b"patient" not in (tmp_path / "mask.nii").read_bytes()


def test_a_nifti_2_image_with_only_a_qform_keeps_it(tmp_path):
    affine = oblique(3)
    image = nib.Nifti2Image(CANONICAL, None)
    image.set_qform(affine, code=1)
    nib.save(image, tmp_path / "image.nii.gz")

    header = read_header(tmp_path / "image.nii.gz")
    write_label_volume(tmp_path / "mask.nii.gz", np.ones(header.shape, np.uint8), tmp_path / "image.nii.gz", "x")

    assert place_of(tmp_path / "mask.nii.gz") == place_of(tmp_path / "image.nii.gz")
    np.testing.assert_allclose(header.affine, affine, atol=1e-6)
    assert isinstance(nib.load(tmp_path / "mask.nii.gz"), nib.Nifti2Image)
    assert read_made_from(tmp_path / "mask.nii.gz") == "x"


def test_a_header_is_that_of_the_volume(nifti, meta, nrrd):
    for path in (nifti, meta, nrrd):
        header, volume = read_header(path), read_volume(path)
        assert header.shape == (3, 4, 5) == volume.voxels.shape[1:]
        assert header.channels == 1
        assert header.spacing_mm == volume.spacing_mm == pytest.approx((2.5, 0.5, 0.75))
        assert header.affine.tobytes() == volume.affine.tobytes()


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", "i4", "f4", "f8"])
def test_voxels_keep_their_dtype_in_native_byte_order(tmp_path, ending, dtype):
    array = CANONICAL.astype(dtype if ".nii" in ending else np.dtype(dtype).newbyteorder("="))

    volume = read_volume(save(tmp_path / f"a{ending}", array, np.diag([-1.0, -1, -1, 1])))

    assert volume.voxels.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(volume.voxels[0], CANONICAL.T)


def test_slope_and_intercept_are_applied_as_float32(nifti):
    volume = read_volume(change_nifti(nifti, scl_slope=0.5, scl_inter=-3))

    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels[0], CANONICAL * 0.5 - 3)


def test_labels_scaled_by_a_fraction_that_float32_rounds_are_whole(nifti):
    change_nifti(nifti, scl_slope=np.float32(1 / 3), scl_inter=0)
    data = nifti.read_bytes()
    nifti.write_bytes(data[:352] + (np.frombuffer(data[352:], "<i2") * 3).astype("<i2").tobytes())

    labels = read_label_volume(nifti)

    assert labels.voxels.dtype == np.uint8
    np.testing.assert_array_equal(labels.voxels[0], CANONICAL)


@pytest.mark.parametrize(
    ("values", "dtype"), [([0, 255], "u1"), ([0, 256], "u2"), ([-1, 3], "i4"), ([0, 70000], "i4"), ([0, 65535], "u2")]
)
def test_labels_take_the_smallest_dtype_that_holds_them(tmp_path, values, dtype):
    array = np.resize(values, (2, 3, 4)).astype(np.float32)

    labels = read_label_volume(save(tmp_path / "a.nii", array, np.diag([-1.0, -1, -1, 1])))

    assert labels.voxels.dtype == dtype
    np.testing.assert_array_equal(labels.voxels[0], array.T)


def test_colours_and_vectors_are_channels(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 3), dtype=np.uint8)
    rgb = colours.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nib.save(nib.Nifti1Image(rgb, np.diag([-1.0, -1, -1, 1])), tmp_path / "rgb.nii.gz")
    nib.save(nib.Nifti1Image(colours[:, :, :, None], np.diag([-1.0, -1, -1, 1])), tmp_path / "vector.nii.gz")
    image = sitk.GetImageFromArray(colours.transpose(2, 1, 0, 3), isVector=True)
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    for name in ("a.mha", "a.nrrd"):
        sitk.WriteImage(image, tmp_path / name)

    for name in ("rgb.nii.gz", "vector.nii.gz", "a.mha", "a.nrrd"):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.voxels, colours.transpose(3, 2, 1, 0), err_msg=name)
        assert read_header(tmp_path / name).channels == 3
        with pytest.raises(FileError, match="mask has 3 channels: save it with one"):
            read_label_volume(tmp_path / name)


def test_one_slice_is_a_volume(tmp_path):
    nib.save(nib.Nifti1Image(CANONICAL[0], np.diag([-0.5, -2, 1, 1])), tmp_path / "a.nii")
    change_nifti(tmp_path / "a.nii", pixdim=[1, 0.5, 2, 0, 0, 0, 0, 0], sform_code=0, qform_code=0)
    for name in ("a.mha", "a.nrrd"):
        image = sitk.GetImageFromArray(CANONICAL[0].T)
        image.SetSpacing((0.5, 2))
        sitk.WriteImage(image, tmp_path / name)

    for name in ("a.nii", "a.mha", "a.nrrd"):
        volume = read_volume(tmp_path / name)
        assert volume.voxels.shape == (1, 1, 5, 4)
        assert volume.spacing_mm == (1, 2, 0.5)
        target = tmp_path / f"mask_{name}"
        write_label_volume(target, volume.voxels[0].astype(np.uint8), tmp_path / name)
        assert place_of(target) == place_of(tmp_path / name)
        np.testing.assert_array_equal(read_label_volume(target).voxels, volume.voxels)


def test_units_other_than_mm_are_converted(nifti):
    change_nifti(nifti, xyzt_units=3)

    assert read_header(nifti).spacing_mm == pytest.approx((0.0025, 0.0005, 0.00075))


def test_a_file_without_orientation_has_its_spacing(nifti):
    change_nifti(nifti, sform_code=0, qform_code=0, pixdim=[0, 3, 2, 1, 0, 0, 0, 0])

    volume = read_volume(nifti)

    assert volume.spacing_mm == (1, 2, 3)
    assert volume.affine.tobytes() == nib.load(nifti).affine.tobytes()


def test_a_compressed_file_is_read_whatever_its_name(tmp_path, nifti):
    nifti.write_bytes(gzip.compress(nifti.read_bytes()))

    np.testing.assert_array_equal(read_volume(nifti).voxels[0], CANONICAL)


def test_a_detached_header_finds_its_voxels_and_names_them_when_missing(tmp_path):
    path = save(tmp_path / "a b ü.mhd", *stored((2, 1, 0), (True, True, False)))
    data = tmp_path / "a b ü.raw"

    assert files_of(path) == [path, data]
    np.testing.assert_array_equal(read_volume(path).voxels[0], CANONICAL)
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(FileError, match="promises 120 bytes of voxels, it holds 119"):
        read_volume(path)
    data.unlink()
    with pytest.raises(FileError, match=r"voxels lie in 'a b ü.raw', which is missing: copy that file beside it"):
        files_of(path)
    with pytest.raises(FileError, match="which is missing"):
        read_header(path)


def test_the_files_of_other_volumes_are_themselves(nifti, meta, nrrd):
    assert [files_of(path) for path in (nifti, meta, nrrd)] == [[nifti], [meta], [nrrd]]


def test_voxels_in_several_files_are_refused(meta):
    change_text(meta, "ElementDataFile = LOCAL", "ElementDataFile = slice%03d.raw 1 3 1")

    with pytest.raises(FileError, match=r"voxels lie in several files: save it as .mha"):
        read_volume(meta)


def test_a_mask_in_another_orientation_shares_its_images_space(tmp_path, nifti):
    mask = save(tmp_path / "mask.nrrd", *stored((1, 0, 2), (False, True, True)))

    require_same_space(read_volume(nifti), read_header(mask))


def test_a_mask_elsewhere_is_refused(tmp_path, nifti):
    array, affine = stored((2, 1, 0), (True, True, False))
    affine[0, 3] += 0.04
    require_same_space(read_header(nifti), read_header(save(tmp_path / "near.nii", array, affine)))
    affine[0, 3] += 4
    with pytest.raises(FileError, match=r"mask lies up to 4.04 mm away from its image: resample it"):
        require_same_space(read_header(nifti), read_header(save(tmp_path / "far.nii", array, affine)))
    with pytest.raises(FileError, match=r"mask has 2 x 4 x 5 voxels, its image 3 x 4 x 5 .*: give the mask of"):
        require_same_space(read_header(nifti), read_header(save(tmp_path / "small.nii", array[:, :, 1:], affine)))


def test_an_image_of_simpleitk_is_read_as_its_file(tmp_path, meta):
    volume = volume_from_sitk(sitk.ReadImage(meta))

    np.testing.assert_array_equal(volume.voxels[0], CANONICAL)
    assert volume.affine.tobytes() == read_volume(meta).affine.tobytes()


@pytest.mark.parametrize("name", ["a.nii", "a.mha", "a.nrrd"])
def test_a_missing_empty_or_foreign_file_is_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileError, match="file is missing: restore it"):
        read_header(path)
    assert read_made_from(path) == ""
    path.write_bytes(b"")
    with pytest.raises(FileError, match="file is empty: copy it again"):
        read_volume(path)
    path.write_bytes(b"GIF89a" * 200)
    with pytest.raises(FileError, match=r"is no .* file, whatever its name says: remove it or save it again as"):
        read_volume(path)
    assert read_made_from(path) == ""
    path.unlink()
    path.mkdir()
    with pytest.raises(FileError, match=r"cannot be read .*: mend its permissions"):
        read_header(path)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_truncated_file_is_damaged_wherever_it_ends(tmp_path, nifti, ending):
    whole = tmp_path / f"whole{ending}"
    write_label_volume(whole, CANONICAL.astype(np.uint8), nifti)
    data = whole.read_bytes()
    cut = tmp_path / f"cut{ending}"

    for end in (1, 10, 40, 100, 200, len(data) // 2, len(data) - 9, len(data) - 1):
        cut.write_bytes(data[: min(end, len(data) - 1)])
        with pytest.raises(FileError, match=r"is truncated or damaged|is no .* file"):
            read_volume(cut)
        read_made_from(cut)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_one_wrong_byte_among_compressed_voxels_is_found(tmp_path, nifti, ending):
    path = tmp_path / f"a{ending}"
    write_label_volume(path, CANONICAL.astype(np.uint8), nifti)
    data = path.read_bytes()

    for place in range(len(data) - 8, len(data) - 40, -4):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(FileError, match=r"is truncated or damaged .*: copy it again from its source"):
            read_volume(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": [0, 1, 1, 1, 1, 1, 1, 1]}, "its header says 0 dimensions"),
        ({"dim": [3, 5, 0, 3, 1, 1, 1, 1]}, "its header says 5 x 0 x 3 voxels"),
        ({"dim": [3, 5, -4, 3, 1, 1, 1, 1]}, "its header says 5 x -4 x 3 voxels"),
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, f"more than the {MAX_VOXELS:,} allowed: cut or shrink it"),
        ({"dim": [3, 1000, 1000, 1000, 1, 1, 1, 1]}, "its header promises 2,000,000,352 bytes, it can hold 472"),
        ({"dim": [4, 5, 4, 1, 3, 1, 1, 1]}, "holds 3 volumes: save each as a file of its own, one a channel"),
        ({"datatype": 167}, "its header says a data type of 167"),
        ({"datatype": 32, "dim": [3, 1, 1, 1, 1, 1, 1, 1]}, "holds voxels of type complex64: save it with whole"),
        ({"vox_offset": np.nan}, "its header says the voxels start at byte nan"),
        ({"vox_offset": 0}, "its header says the voxels start at byte 0"),
        ({"srow_x": [0, 0, 0, 0]}, "gives voxels no place in space .*: convert it again"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "gives voxels no place in space"),
        ({"srow_y": [0, 0, 0, 1e38], "srow_x": [0, 0, 1, 0]}, "gives voxels no place in space"),
        (
            {"sform_code": 0, "qform_code": 0, "pixdim": [1, -1, 1, 1, 0, 0, 0, 0]},
            "says a spacing of -1.0 x 1",
        ),
        (
            {"sform_code": 0, "qform_code": 0, "pixdim": [1, 0, 1, 1, 0, 0, 0, 0]},
            "says a spacing of 0.0 x 1",
        ),
        ({"sform_code": 0, "qform_code": 1, "pixdim": [1, -1, 1, 1, 0, 0, 0, 0]}, "pixdims.* should be positive"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 9}, "w2 should be positive"),
        ({"scl_slope": 1, "scl_inter": np.inf}, "is truncated or damaged .*inter"),
        ({"scl_slope": 3e38, "scl_inter": 0}, "holds nan or infinite values: replace them"),
    ],
)
def test_a_nifti_header_that_cannot_be_true_is_refused(nifti, fields, message):
    with pytest.raises(FileError, match=message) as fault:
        read_volume(change_nifti(nifti, **fields))
    assert "\n" not in str(fault.value)


def test_a_compressed_file_that_ends_before_its_last_voxel_is_damaged(nifti):
    change_nifti(nifti, dim=[3, 5, 4, 6, 1, 1, 1, 1])
    nifti.write_bytes(gzip.compress(nifti.read_bytes()))

    with pytest.raises(FileError, match=r"damaged .it ends before its last voxel"):
        read_volume(nifti)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("DimSize = 5 4 3", "DimSize = 5 4", "its header says a size of '5 4'"),
        ("DimSize = 5 4 3", "DimSize = 5 4 -3", "its header says a size of '5 4 -3'"),
        ("DimSize = 5 4 3", "DimSize = 5 0 3", "5 x 0 x 3 voxels|SimpleITK says"),
        ("DimSize = 5 4 3", "DimSize = 5000 4000 3000", "more than the 2,147,483,648 allowed"),
        ("DimSize = 5 4 3", "DimSize = 5 4 300", "promises 12,000 bytes of voxels, it holds 120"),
        ("NDims = 3", "NDims = 30", "its header says a size of"),
        ("ElementSpacing = 0.75 0.5 2.5", "ElementSpacing = 0.75 -0.5 2.5", "a spacing of '0.75 x -0.5 x 2.5'"),
        ("ElementSpacing = 0.75 0.5 2.5", "ElementSpacing = 0.75 0 2.5", "a spacing of '0.75 x 0 x 2.5'"),
        ("ElementSpacing = 0.75 0.5 2.5", "ElementSpacing = 0.75 nan 2.5", "a spacing of '0.75 x nan x 2.5'"),
        ("ElementSpacing = 0.75 0.5 2.5", "ElementSpacing = 0.75 a 2.5", "a spacing of '0.75 x a x 2.5'"),
        ("TransformMatrix = -1", "TransformMatrix = 0", "SimpleITK says: Bad direction, determinant is 0"),
        ("ElementType = MET_SHORT", "ElementTipe = MET_SHORT", "its header lacks ElementType"),
        ("CompressedData = False", "CompressedData = True", "its header lacks CompressedDataSize"),
    ],
)
def test_a_metaimage_header_that_cannot_be_true_is_refused(meta, old, new, message):
    with pytest.raises(FileError, match=message) as fault:
        read_volume(change_text(meta, old, new))
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sizes: 5 4 3", "sizes: 5 4 0", "SimpleITK says: "),
        ("sizes: 5 4 3", "sizes: 5000 4000 3000", "more than the 2,147,483,648 allowed"),
        ("sizes: 5 4 3", "sizes: 5 4 300", "promises 12,000 bytes of voxels, it holds 120"),
        ("(-0.75,0,0)", "(0,0,0)", "SimpleITK says|no place in space"),
        ("encoding: raw", "encoding: gzip", "is truncated or damaged"),
        ("encoding: raw", "encoding: new", "SimpleITK says: "),
        ("encoding: raw", "data file: LIST\nencoding: raw", "voxels lie in several files: save it as .nrrd"),
    ],
)
def test_a_nrrd_header_that_cannot_be_true_is_refused(nrrd, old, new, message):
    with pytest.raises(FileError, match=message) as fault:
        read_volume(change_text(nrrd, old, new))
    assert "\n" not in str(fault.value)


def test_several_volumes_and_complex_voxels_are_refused_in_metaimage(tmp_path):
    sitk.WriteImage(sitk.Image([5, 4, 3, 2], sitk.sitkInt16), tmp_path / "series.mha")
    with pytest.raises(FileError, match="holds 2 volumes"):
        read_header(tmp_path / "series.mha")
    with pytest.raises(FileError, match="holds 2 volumes"):
        volume_from_sitk(sitk.Image([5, 4, 3, 2], sitk.sitkInt16))
    sitk.WriteImage(sitk.Image([5, 4, 3, 1], sitk.sitkInt16), tmp_path / "one.mha")
    assert read_volume(tmp_path / "one.mha").voxels.shape == (1, 3, 4, 5)
    sitk.WriteImage(sitk.Image([5, 4, 3], sitk.sitkComplexFloat32), tmp_path / "complex.nrrd")
    with pytest.raises(FileError, match=r"holds (voxels of type complex|2 channels)|SimpleITK"):
        read_label_volume(tmp_path / "complex.nrrd")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "not whole numbers: save it"),
        (np.nan, "not whole"),
        (np.inf, "not whole"),
        (3e9, "mask holds values from"),
    ],
)
def test_a_mask_with_values_that_are_no_labels_is_refused(tmp_path, value, message):
    array = np.zeros((2, 3, 4), np.float32)
    array[1, 1, 1] = value

    with pytest.raises(FileError, match=message):
        read_label_volume(save(tmp_path / "a.nii", array, np.eye(4)))


def test_an_image_with_nan_is_refused(tmp_path):
    array = np.full((2, 3, 4), np.nan, np.float32)

    for ending in FORMATS:
        with pytest.raises(FileError, match="holds nan or infinite values: replace them, with 0 for instance"):
            read_volume(save(tmp_path / f"a{ending}", array, np.eye(4)))


def test_writing_what_does_not_fit_is_a_programmers_error(tmp_path, nifti):
    labels = np.zeros((3, 4, 5), np.uint8)
    with pytest.raises(ValueError, match="labels are uint8 or uint16, not float64"):
        write_label_volume(tmp_path / "a.nii", labels.astype(float), nifti)
    with pytest.raises(ValueError, match="probabilities are float32, not uint8"):
        write_probabilities(tmp_path / "a.nii", labels, nifti)
    with pytest.raises(ValueError, match=r"a.mhd does not end in one of"):
        write_label_volume(tmp_path / "a.mhd", labels, nifti)
    with pytest.raises(ValueError, match="made_from is one line of ASCII"):
        write_label_volume(tmp_path / "a.nii", labels, nifti, "two\nlines")
    with pytest.raises(ValueError, match=r"the array has shape \(5, 4, 3\), the volume \(3, 4, 5\)"):
        write_label_volume(tmp_path / "a.nii", labels.T, nifti)
    assert [path.name for path in tmp_path.iterdir()] == ["case.nii"]


def test_what_a_file_was_made_from_is_found_without_reading_its_voxels(tmp_path):
    path = tmp_path / "mask.nii.gz"
    image = save(tmp_path / "image.nii", np.zeros((20, 30, 40), np.int16), np.diag([-1.0, -1, -1, 1]))
    write_label_volume(path, np.zeros((40, 30, 20), np.uint8), image, "image 1234")
    path.write_bytes(path.read_bytes()[:-10])

    assert read_made_from(path) == "image 1234"


def test_a_volume_is_made_of_voxels_and_their_affine():
    with pytest.raises(FileError, match="gives voxels no place in space"):
        Volume.of(CANONICAL[None], np.zeros((4, 4)))


@pytest.mark.real_data
def test_real_volumes_are_read_and_their_masks_restored_to_the_bit(real_data, tmp_path):
    images = sorted((real_data / "Hippocampus" / "images").iterdir())
    masks = sorted((real_data / "Hippocampus" / "masks").iterdir())
    assert len(images) == len(masks) == 24
    for image, mask in zip(images, masks, strict=True):
        volume, labels = read_volume(image), read_label_volume(mask)
        require_same_space(volume, labels)
        assert set(np.unique(labels.voxels)) == {0, 1, 2}
        axis = labels.orientation.order[0]
        first = np.asarray(nib.load(mask).dataobj).swapaxes(0, axis)[-1 if labels.orientation.flipped[0] else 0]
        assert np.count_nonzero(labels.voxels[0, 0]) == np.count_nonzero(first)
        written = tmp_path / mask.name
        write_label_volume(written, labels.voxels[0], image, "x")
        assert place_of(written) == place_of(image)
        np.testing.assert_array_equal(np.asarray(nib.load(written).dataobj), np.asarray(nib.load(mask).dataobj))


def test_voxels_as_text_or_behind_skipped_bytes_are_read(meta, nrrd):
    text = meta.read_bytes().split(b"ElementDataFile = LOCAL\n")[0].replace(b"BinaryData = True", b"BinaryData = False")
    numbers = " ".join(map(str, CANONICAL[:, ::-1, ::-1].ravel())) + "\n"
    meta.write_bytes(text + b"ElementDataFile = LOCAL\n" + numbers.encode())
    head, _, voxels = nrrd.read_bytes().partition(b"\n\n")
    nrrd.write_bytes(head + b"\nbyte skip: 7\n\n" + b"skipped" + voxels)

    for path in (meta, nrrd):
        np.testing.assert_array_equal(read_volume(path).voxels[0], CANONICAL)


def test_a_slice_placed_without_thickness_is_1_mm_thick(tmp_path):
    nib.save(nib.Nifti1Image(CANONICAL[0], np.diag([-0.5, -2, 1, 1])), tmp_path / "a.nii")
    change_nifti(tmp_path / "a.nii", srow_z=[0, 0, 0, 7])

    assert read_header(tmp_path / "a.nii").spacing_mm == (1, 2, 0.5)


def test_bytes_behind_the_last_voxel_do_no_harm(nifti):
    nifti.write_bytes(nifti.read_bytes() + b"more")

    np.testing.assert_array_equal(read_volume(nifti).voxels[0], CANONICAL)


def test_a_file_whose_comments_end_nowhere_says_nothing(nifti):
    assert read_made_from(change_nifti(nifti, vox_offset=np.nan)) == ""
