import os
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.dataset import Source
from iaunet.discovery import find_files, list_images, natural_order, pair_files
from iaunet.errors import DatasetError


@pytest.fixture
def discover(tmp_path):
    """Makes empty files at the given paths and pairs them."""

    def discover(*files, **source):
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
        where = Source(root=str(tmp_path), **source)
        return pair_files(find_files(where), where)

    return discover


def pairs(discovery):
    return {case.name: (*case.images, case.mask) for case in discovery.cases}


def faults(discovery):
    return [(problem.level, problem.file, problem.what) for problem in discovery.problems]


@pytest.mark.parametrize(
    ("files", "expected", "understood"),
    [
        (
            ["images/a.png", "masks/a.png", "images/b.JPG", "masks/b.PNG"],
            {"a": ("images/a.png", "masks/a.png"), "b": ("images/b.JPG", "masks/b.PNG")},
            "2 cases: images in images/, masks in masks/",
        ),
        (["Original/1.tif", "Ground Truth/1.tif"], {"1": ("Original/1.tif", "Ground Truth/1.tif")}, "Ground Truth/"),
        (["imagesTr/a.bmp", "labelsTr/a.bmp"], {"a": ("imagesTr/a.bmp", "labelsTr/a.bmp")}, "1 cases"),
        (["images/a.jpg", "labels/a_segmentation.png"], {"a": ("images/a.jpg", "labels/a_segmentation.png")}, ""),
        (["images/x_seg.png", "masks/x_seg.png"], {"x_seg": ("images/x_seg.png", "masks/x_seg.png")}, ""),
        (
            ["a.png", "a_mask.png", "b.png", "b_Masks.png"],
            {"a": ("a.png", "a_mask.png"), "b": ("b.png", "b_Masks.png")},
            "2 cases: images and masks side by side in ./",
        ),
        (["a.jpg", "a.png", "b.jpeg", "b.png"], {"a": ("a.jpg", "a.png"), "b": ("b.jpeg", "b.png")}, "side by side"),
        (
            ["P 1/images/ä.png", "P 1/masks/ä.png", "P2/images/ä.png", "P2/masks/ä.png"],
            {"P 1/ä": ("P 1/images/ä.png", "P 1/masks/ä.png"), "P2/ä": ("P2/images/ä.png", "P2/masks/ä.png")},
            "images in P 1/images/ and P2/images/, masks in P 1/masks/ and P2/masks/",
        ),
        (
            ["images/p1/a.png", "masks/p1/a.png", "images/p2/a.png", "masks/p2/a.png"],
            {"p1/a": ("images/p1/a.png", "masks/p1/a.png"), "p2/a": ("images/p2/a.png", "masks/p2/a.png")},
            "",
        ),
        (
            [f"{patient}/{name}.png" for patient in "123" for name in ("a", "a_mask")],
            {f"{patient}/a": (f"{patient}/a.png", f"{patient}/a_mask.png") for patient in "123"},
            "side by side in 1/ and 2 more folders",
        ),
        (["a.png", "masks/a.png"], {"a": ("a.png", "masks/a.png")}, ""),
        (["images/v1.2.png", "masks/v1.2.png"], {"v1.2": ("images/v1.2.png", "masks/v1.2.png")}, ""),
        (
            ["images/v1.2.nii.gz", "masks/v1.2.nii.gz", "images/b.mha", "masks/b.NRRD", "images/c.tif", "masks/c.nii"],
            {
                "b": ("images/b.mha", "masks/b.NRRD"),
                "c": ("images/c.tif", "masks/c.nii"),
                "v1.2": ("images/v1.2.nii.gz", "masks/v1.2.nii.gz"),
            },
            "3 cases",
        ),
        (["a.nii.gz", "a_seg.nii.gz"], {"a": ("a.nii.gz", "a_seg.nii.gz")}, "side by side in ./"),
    ],
)
def test_folders_as_they_are_give_their_pairs(discover, files, expected, understood):
    discovery = discover(*files)

    assert pairs(discovery) == expected
    assert understood in discovery.understood
    assert not discovery.problems


def test_hidden_files_test_images_and_other_files_are_left_out(discover):
    discovery = discover(
        "images/a.png",
        "masks/a.png",
        "images/._a.png",
        "masks/.DS_Store",
        ".cache/images/b.png",
        "iaunet_workspace/toy/images/d.png",
        "imagesTs/c.png",
        "images/readme.txt",
        "images/Thumbs.db",
    )

    assert pairs(discovery) == {"a": ("images/a.png", "masks/a.png")}
    assert not discovery.problems


def test_a_suffix_of_the_users_own_marks_masks(discover):
    discovery = discover("a.png", "a-GT.png", mask_suffixes=("-gt",))

    assert pairs(discovery) == {"a": ("a.png", "a-GT.png")}


def test_folders_the_user_names_may_lie_anywhere_and_within_each_other(discover, tmp_path):
    discovery = discover(
        "raw/x/a.png",
        "raw/truth/x/a_seg.png",
        images=str(tmp_path / "raw"),
        masks=str(tmp_path / "raw" / "truth"),
    )

    assert pairs(discovery) == {"x/a": ("raw/x/a.png", "raw/truth/x/a_seg.png")}


def test_files_outside_the_root_keep_their_whole_path(tmp_path, discover):
    outside = tmp_path / "b"
    discover("b/images/1.png", "b/masks/1.png", "a/readme.txt")

    source = Source(root=str(tmp_path / "a"), images=str(outside / "images"), masks=str(outside / "masks"))
    (case,) = pair_files(find_files(source), source).cases

    assert (case.name, case.images, case.mask) == ("1", (f"{outside}/images/1.png",), f"{outside}/masks/1.png")


def test_cases_are_in_natural_order(discover):
    files = [f"{part}/{number}.png" for number in (10, 9, 100, 1) for part in ("images", "masks")]

    assert [case.name for case in discover(*files).cases] == ["1", "9", "10", "100"]


@given(st.lists(st.text(min_size=1)))
def test_the_natural_order_is_one_order(names):
    assert sorted(names, key=natural_order) == sorted(sorted(names), key=natural_order)


@pytest.mark.parametrize(
    ("files", "problem", "kept"),
    [
        (
            ["images/b.png", "images/b.jpg", "masks/b.png"],
            ("fault", "images/b.png", "has the name of images/b.jpg"),
            {"a"},
        ),
        (
            ["images/b.png", "masks/b.png", "masks/b_mask.png"],
            ("fault", "masks/b_mask.png", "is a second mask of its image"),
            {"a"},
        ),
        (["images/b.png"], ("fault", "images/b.png", "has no mask"), {"a"}),
        (["masks/b.png"], ("note", "masks/b.png", "mask has no image and is left out"), {"a"}),
    ],
)
def test_files_that_do_not_pair_are_told_and_never_guessed(discover, files, problem, kept):
    discovery = discover("images/a.png", "masks/a.png", *files)

    assert faults(discovery) == [problem]
    assert pairs(discovery).keys() == kept


def test_two_endings_beside_suffixed_masks_are_two_images_of_one_name(discover):
    assert faults(discover("a.png", "a.jpg", "a_mask.png")) == [("fault", "a.png", "has the name of a.jpg")]


@pytest.mark.parametrize(
    ("mode", "expected"), [("empty", {"a": "masks/a.png", "b": None}), ("skip", {"a": "masks/a.png"})]
)
def test_an_image_without_mask_is_what_the_user_says(discover, mode, expected):
    discovery = discover("images/a.png", "masks/a.png", "images/b.png", missing_mask=mode)

    assert {case.name: case.mask for case in discovery.cases} == expected
    assert not discovery.problems


def test_a_folder_of_images_alone_can_be_declared_empty(discover):
    assert pairs(discover("a.png", missing_mask="empty")) == {"a": ("a.png", None)}


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        (["readme.txt"], {}, r"holds no images \(\.png, .*\): give the folder that holds images and masks"),
        (["masks/a.png"], {}, "holds no images"),
        (["a.png", "b.png"], {}, r"holds 2 images and no masks: put the masks in a folder 'masks' beside 'images'"),
        (["a.png"], {"missing_mask": "skip"}, "holds 1 images and no masks"),
        (["images/a.png", "truth/a.png"], {}, "holds 1 images and no masks: .* or give --images DIR --masks DIR"),
        (
            ["photos/a.png", "photos/b.png", "masks/a.png"],
            {},
            r"holds 2 images and 1 masks, no two of one name \(the first are photos/a and a\): name each mask as its",
        ),
        (["a.nii.gz", "b.mha"], {}, r"holds 2 images and no masks: put the masks in a folder 'masks' beside 'images'"),
        (["a.png"], {"images": "x"}, "--images and --masks belong together: give both or neither"),
        (["a.png"], {"images": "x", "masks": "x"}, "--images and --masks are one folder: leave both away"),
    ],
)
def test_a_folder_that_is_no_dataset_is_answered_with_what_to_do(discover, files, source, message):
    with pytest.raises(DatasetError, match=message):
        discover(*files, **source)


def test_a_folder_that_is_none_is_named(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(DatasetError, match="nowhere does not exist: check the path"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="file is a file: give the folder that holds it"):
        list_images(tmp_path / "file")


def test_images_are_listed_sorted_through_all_folders(tmp_path):
    for name in ("b.png", "a/z.PNG", "a/.hidden.png", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == ["a/z.PNG", "b.png"]


def save_dicom(path, series, position=0.0):
    pydicom = pytest.importorskip("pydicom")
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "1.2", series, "CT"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, position], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = [1, 1], 2, 2, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelData = bytes(8)
    dataset.save_as(path, enforce_file_format=True)


def listed(folder):
    return [path.relative_to(folder).as_posix() for path in list_images(folder)]


def test_a_folder_with_a_series_is_one_image_and_files_that_are_a_series_each_are_images(tmp_path):
    for number in range(3):
        save_dicom(tmp_path / "images" / "patient 1" / f"{number}.dcm", "1.2.3", number)
        save_dicom(tmp_path / "photos" / f"{number}.dcm", f"1.2.{number}")
    (tmp_path / "images" / "patient 1" / "readme.txt").touch()
    (tmp_path / "images" / "b.nii.gz").touch()

    assert listed(tmp_path) == [
        "images/b.nii.gz",
        "images/patient 1",
        "photos/0.dcm",
        "photos/1.dcm",
        "photos/2.dcm",
    ]


def test_a_series_has_the_mask_of_its_folders_name(tmp_path, discover):
    for number in range(2):
        save_dicom(tmp_path / "images" / "p1.5" / f"{number}.dcm", "1.2.3", number)

    assert pairs(discover("masks/p1.5.nii.gz")) == {"p1.5": ("images/p1.5", "masks/p1.5.nii.gz")}


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions work otherwise on this system")
def test_a_folder_that_may_not_be_read_is_named_and_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "p1").mkdir(mode=0o000)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read everything
    try:
        with pytest.raises(DatasetError, match=r"p1 cannot be read \(Permission denied\): mend its permissions"):
            list_images(Path())
    finally:
        os.seteuid(user)


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names are always text on this system")
def test_an_image_whose_name_is_not_utf8_is_named_printably(tmp_path, discover):
    discover("images/ä.png", "masks/ä.png")
    (tmp_path / "images" / os.fsdecode(b"caf\xe9.txt")).touch()
    assert list_images(tmp_path / "images") == [tmp_path / "images" / "ä.png"]
    (tmp_path / "images" / os.fsdecode(b"caf\xe9.png")).touch()

    for find in (discover, lambda: list_images(tmp_path)):
        with pytest.raises(DatasetError, match=r"caf\\udce9\.png has a name that is not UTF-8: rename it") as fault:
            find()
        assert str(fault.value).isprintable()


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_an_accent_may_be_written_in_two_ways(discover, forms):
    image, mask = (
        unicodedata.normalize(form, file)
        for form, file in zip(forms, ("images/P é/ä.png", "masks/P é/ä_größe.png"), strict=True)
    )

    discovery = discover(image, mask, mask_suffixes=[unicodedata.normalize("NFD", "_größe")])

    assert pairs(discovery) == {unicodedata.normalize("NFC", "P é/ä"): (image, mask)}
    assert not discovery.problems


def test_a_dicom_file_alone_in_its_folder_is_a_series_where_other_folders_hold_series(tmp_path):
    for number in range(3):
        save_dicom(tmp_path / "long" / f"{number}.dcm", "1.2.3", number)
    save_dicom(tmp_path / "short" / "0.dcm", "1.2.4")

    assert list_images(tmp_path) == [tmp_path / "long", tmp_path / "short"]
    assert list_images(tmp_path / "short") == [tmp_path / "short" / "0.dcm"]


def test_a_test_set_within_the_folder_is_left_out_and_one_that_nobody_named_is_told(discover, tmp_path):
    files = [f"{case}.png" for kind in ("images", "masks") for case in (f"train/{kind}/a", f"Test/{kind}/b")]

    together = discover(*files)
    apart = discover(*files, test=str(tmp_path / "Test"))
    alone = discover(*files, images=str(tmp_path / "Test/images"), masks=str(tmp_path / "Test/masks"))

    assert [*pairs(together)] == ["Test/b", "train/a"]
    assert faults(together) == [("note", "Test", "1 cases of this folder are trained on like all others")]
    assert together.problems[0].mend == f"give --test {tmp_path / 'Test'} to keep them apart"
    assert ([*pairs(apart)], apart.problems) == (["train/a"], ())
    assert ([*pairs(alone)], alone.problems) == (["b"], ())
    for around in (tmp_path, tmp_path.parent):
        with pytest.raises(DatasetError, match=f"test set {around} holds the data set {tmp_path}: give another folder"):
            discover(*files, test=str(around))
