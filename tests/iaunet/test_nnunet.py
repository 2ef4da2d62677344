import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from iaunet.dataset import Case
from iaunet.errors import DatasetError, PlanError
from iaunet.files import read_image, read_mask
from iaunet.nnunet import find_splits_file, is_nnunet_dataset, normalisation_of, read_nnunet
from iaunet.planners.folds import Splits, find_split

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
DESCRIPTION = {
    "channel_names": {"0": "T2", "1": "ADC"},
    "labels": {"background": 0, "gland": 1, "tumour": 2},
    "numTraining": 2,
    "file_ending": ".png",
}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def save(path, pixels=GREY):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def describe(root, **changes):
    """Write dataset.json; a change to None takes the entry out."""
    root.mkdir(parents=True, exist_ok=True)
    data = {key: value for key, value in {**DESCRIPTION, **changes}.items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    """A dataset of two cases of two channels."""
    root = tmp_path / "nnUNet_raw" / "Dataset007_Prostate"
    describe(root)
    for name in ("p2", "p10"):
        save(root / "imagesTr" / f"{name}_0000.png")
        save(root / "imagesTr" / f"{name}_0001.png")
        save(root / "labelsTr" / f"{name}.png", GREY % 3)
    return root


def lines(dataset, level="fault"):
    return [f"{p.file} {p.what}: {p.mend}" for p in dataset.problems if p.level == level]


def test_a_dataset_is_read_with_its_channels_labels_and_cases_in_order(root):
    dataset = read_nnunet(root)

    assert dataset.channel_names == ("T2", "ADC")
    assert dataset.labels == {"gland": (1,), "tumour": (2,)}
    assert (dataset.ignore, dataset.regions_class_order, dataset.file_ending) == (None, None, ".png")
    assert dataset.cases == (
        Case(name="p2", images=("imagesTr/p2_0000.png", "imagesTr/p2_0001.png"), mask="labelsTr/p2.png"),
        Case(name="p10", images=("imagesTr/p10_0000.png", "imagesTr/p10_0001.png"), mask="labelsTr/p10.png"),
    )
    assert dataset.test_cases == ()
    assert dataset.problems == ()
    assert dataset.understood == "2 cases: nnU-Net dataset, 2 channels (T2, ADC), labels gland, tumour, files .png"


def test_test_cases_have_a_mask_where_there_is_one(root):
    for name in ("a", "b"):
        save(root / "imagesTs" / f"{name}_0000.png")
        save(root / "imagesTs" / f"{name}_0001.png")
    save(root / "labelsTs" / "b.png")

    dataset = read_nnunet(root)

    assert [(case.name, case.mask) for case in dataset.test_cases] == [("a", None), ("b", "labelsTs/b.png")]
    assert dataset.understood.endswith(", 2 test cases")
    assert dataset.problems == ()


def test_regions_and_the_ignored_value_are_read(root):
    describe(root, labels={**REGIONS, "ignore": 4}, regions_class_order=[1, 2, 3])

    dataset = read_nnunet(root)

    assert dataset.labels == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert (dataset.regions_class_order, dataset.ignore) == ((1, 2, 3), 4)
    assert dataset.problems == ()
    assert "regions whole, core, enhancing, files .png, value 4 ignored" in dataset.understood


def test_the_order_of_regions_is_that_of_the_file_and_not_of_the_alphabet(root):
    describe(root, labels={"background": 0, "z": [1, 2], "a": 2}, regions_class_order=[1, 2])

    assert list(read_nnunet(root).labels) == ["z", "a"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"labels": {"background": 0, "a": 1, "b": 4, "ignore": 2}},
            (
                "dataset.json: labels have the values 0, 1, 4: number them 0, 1, 2, ... without gaps; "
                "dataset.json: label 'ignore' is 2, other labels go up to 4: make it 5, the highest of all"
            ),
        ),
        (
            {"labels": {"background": 0, "a": 1, "b": 3}},
            "dataset.json: labels have the values 0, 1, 3: number them 0, 1, 2, ... without gaps",
        ),
        (
            {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 2}},
            "dataset.json: label 'ignore' is 2, other labels go up to 2: make it 3, the highest of all",
        ),
        ({"labels": REGIONS}, "dataset.json: has regions but no regions_class_order: add it: a value for each region"),
        (
            {"labels": REGIONS, "regions_class_order": [1, 2]},
            "dataset.json: regions_class_order is [1, 2] for 3 regions: give one value of the labels for each region",
        ),
        (
            {"labels": REGIONS, "regions_class_order": [1, 2, 7]},
            (
                "dataset.json: regions_class_order is [1, 2, 7] for 3 regions: "
                "give one value of the labels for each region"
            ),
        ),
        (
            {"labels": {"background": 0, "all": [0, 1]}, "regions_class_order": [1]},
            "dataset.json: region all holds the background 0: take 0 out of it",
        ),
    ],
)
def test_labels_that_make_no_sense_are_refused_with_a_mend(root, changes, line):
    describe(root, **changes)

    with pytest.raises(DatasetError) as caught:
        read_nnunet(root)

    assert str(caught.value) == line


def test_all_faults_of_the_files_are_told_together(root):
    (root / "imagesTr" / "p2_0001.png").unlink()
    (root / "labelsTr" / "p10.png").unlink()
    save(root / "labelsTr" / "lost.png")
    save(root / "imagesTr" / "p10_0007.png")
    save(root / "imagesTr" / "photo.jpg")
    (root / "imagesTr" / "Thumbs.db").write_bytes(b"x")

    dataset = read_nnunet(root)

    assert dataset.cases == ()
    other, *faults = lines(dataset)
    assert other.startswith("imagesTr holds 1 images that do not end in .png (photo.jpg): correct file_ending in")
    assert faults == [
        "imagesTr/p2_0001.png file of channel ADC is missing: restore it, or remove the case",
        "imagesTr/p10_0007.png is channel 7, dataset.json names 2: remove it, or name the channel",
        "imagesTr/p10_0000.png has no mask: add labelsTr/p10.png, or remove the image",
        "labelsTr/lost.png mask has no image: add imagesTr/lost_0000.png, or remove the mask",
    ]


def test_a_wrong_number_of_cases_and_a_reader_of_nnunet_are_notes(root):
    describe(root, numTraining=7, overwrite_image_reader_writer="SimpleITKIO")

    dataset = read_nnunet(root)

    assert lines(dataset) == []
    assert lines(dataset, "note") == [
        "dataset.json overwrite_image_reader_writer SimpleITKIO is not used: nothing: files are read by their ending",
        "dataset.json numTraining is 7, 2 cases were found: correct dataset.json",
    ]


def test_cases_listed_in_dataset_json_may_lie_anywhere(root, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    save(elsewhere / "scan ä.png")
    save(elsewhere / "scan.mask.png")
    save(root.parent / "Dataset001_Other" / "labelsTr" / "x.png")
    files = {
        "b": {"images": [str(elsewhere / "scan ä.png")] * 2, "label": "../Dataset001_Other/labelsTr/x.png"},
        "a": {"images": ["imagesTr/p2_0000.png", "imagesTr/p2_0001.png"], "label": str(elsewhere / "scan.mask.png")},
        "c": {"images": ["imagesTr/p2_0000.png", "gone.png"], "label": "labelsTr/p2.png"},
        "d": {"images": ["imagesTr/p2_0000.png", "x" * 5000], "label": "labelsTr/p2.png"},
        "e": {"images": ["imagesTr/p2_0000.png", "nul\0"], "label": "labelsTr/p2.png"},
    }
    describe(root, dataset=files)

    dataset = read_nnunet(root)

    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert all((root / file).is_file() for case in dataset.cases for file in (*case.images, case.mask))
    gone, *others = lines(dataset)
    assert gone == "gone.png file of case c is missing: restore it, or take it off"
    assert len(others) == 2


def test_files_of_version_1_are_read(tmp_path):
    root = tmp_path / "Task004_Hippocampus"
    listed = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ("h_001", "h_2")]
    describe(
        root,
        channel_names=None,
        modality={"0": "MRI"},
        labels={"0": "background", "1": "Anterior", "2": "Posterior"},
        file_ending=None,
        training=[*listed, {"image": "./imagesTr/h_9.nii.gz", "label": "./labelsTr/h_9.nii.gz"}],
    )
    for part, name in [("imagesTr", "h_001_0000"), ("labelsTr", "h_001"), ("imagesTr", "h_2"), ("labelsTr", "h_2")]:
        (root / part).mkdir(exist_ok=True)
        (root / part / f"{name}.nii.gz").write_bytes(b"x")

    dataset = read_nnunet(root)

    assert is_nnunet_dataset(root)
    assert dataset.channel_names == ("MRI",)
    assert dataset.labels == {"Anterior": (1,), "Posterior": (2,)}
    assert [(case.name, case.images) for case in dataset.cases] == [
        ("h_001", ("imagesTr/h_001_0000.nii.gz",)),
        ("h_2", ("imagesTr/h_2.nii.gz",)),  # as the Decathlon has them
    ]
    assert lines(dataset) == [
        "dataset.json lists the case h_9, whose files are not there: restore them, or take it off"
    ]


def test_a_case_whose_name_ends_like_a_channel_keeps_its_name(root):
    save(root / "imagesTr" / "la_0003_0000.png")
    save(root / "imagesTr" / "la_0003_0001.png")
    save(root / "labelsTr" / "la_0003.png")

    assert "la_0003" in {case.name for case in read_nnunet(root).cases}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_names": {"1": "T2"}}, r'channel_names is not \{"0": name.*: correct dataset.json'),
        ({"channel_names": {"0": 7}}, r'channel_names is not \{"0": name'),
        ({"channel_names": None}, r'channel_names is not \{"0": name'),
        ({"labels": []}, "labels is not"),
        ({"labels": {"background": 0}}, "labels has nothing but background"),
        ({"labels": {"background": 1, "a": 2}}, "label 'background' is not 0"),
        ({"labels": {"a": 1}}, "label 'background' is not 0"),
        ({"labels": {"background": 0, "a": 1.5}}, "label 'a' is 1.5, not a whole number"),
        ({"labels": {"background": 0, "a": True}}, "label 'a' is True, not a whole number"),
        ({"labels": {"background": 0, "a": []}}, r"label 'a' is \[\], not a whole number"),
        ({"labels": {"background": 0, "a": 10**12}}, "label 'a' is 1000000000000, not a whole number from 0 to 65535"),
        ({"labels": {"background": 0, "a": 1, "ignore": [2, 3]}}, "label 'ignore' has 2 values, not one"),
        ({"file_ending": "png"}, "file_ending is 'png', not an ending like .png"),
        ({"file_ending": "/../.png"}, "file_ending is '/../.png', not an ending"),
        ({"regions_class_order": "1,2"}, "regions_class_order is '1,2', not a list"),
        ({"dataset": ["a"]}, r"dataset has no list of images for case '\?'"),
        ({"dataset": {"../../a": {"images": ["x"], "label": "y"}}}, r"case name '../../a', which cannot name a file"),
        ({"dataset": {"/a": {"images": ["x"], "label": "y"}}}, "case name '/a', which cannot name a file"),
        ({"dataset": {"": {"images": ["x"], "label": "y"}}}, "case name '', which cannot name a file"),
        ({"channel_names": {"0": "\ud800"}}, "holds characters that are no text: correct"),
        ({"dataset": {"a": {"images": [], "label": "x"}}}, "dataset has no list of images for case 'a'"),
        ({"dataset": {"a": {"images": ["x"]}}}, "dataset has no label for case 'a'"),
    ],
)
def test_a_description_of_another_form_is_refused(root, changes, message):
    describe(root, **changes)

    with pytest.raises(DatasetError, match=message):
        read_nnunet(root)


def test_all_that_is_wrong_with_a_description_is_told_in_one_message(root):
    describe(root, labels={"background": 0, "a": -1}, file_ending=3)

    with pytest.raises(DatasetError, match=r"label 'a' is -1.*; .*; file_ending is 3, not an .*: correct dataset"):
        read_nnunet(root)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_a_description_holds_it_is_read_or_refused(root, data):
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner))
    keys = [*DESCRIPTION, "regions_class_order", "dataset", "training", "overwrite_image_reader_writer", "modality"]
    describe(root, **{key: data.draw(values) for key in data.draw(st.lists(st.sampled_from(keys), max_size=3))})

    with suppress(DatasetError):
        dataset = read_nnunet(root)
        assert dataset.cases or dataset.problems


def test_a_folder_that_is_no_dataset_is_refused(tmp_path, root):
    with pytest.raises(DatasetError, match=r"dataset.json is missing: restore or correct it"):
        read_nnunet(tmp_path)
    (tmp_path / "dataset.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(DatasetError, match="holds no object: correct"):
        read_nnunet(tmp_path)
    describe(root, file_ending=".bmp")
    for path in root.glob("*/*.png"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"imagesTr holds no images that end in .bmp: correct dataset.json"):
        read_nnunet(root)


def test_a_name_that_is_no_text_is_refused(root):
    try:
        (root / "imagesTr" / "a\udcff_0000.png").write_bytes(b"x")
    except OSError:
        pytest.skip("this disk has names in UTF-8 only")

    with pytest.raises(DatasetError, match=r"imagesTr/a.*_0000.png has a name that is not UTF-8: rename it"):
        read_nnunet(root)


def test_a_dataset_is_known_by_its_description(root, tmp_path):
    assert is_nnunet_dataset(root)
    assert not is_nnunet_dataset(tmp_path)
    (root / "dataset.json").write_text('{"labels": {}', encoding="utf-8")
    assert is_nnunet_dataset(root)  # broken, which reading it says
    describe(tmp_path, channel_names=None)
    assert not is_nnunet_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("[]", encoding="utf-8")
    assert not is_nnunet_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "normalisation"),
    [
        ("CT", "ct"),
        ("ct", "ct"),
        ("noNorm", "none"),
        ("rescale_to_0_1", "rescale_to_0_1"),
        ("rescale_0_1", "rescale_to_0_1"),
        ("rgb_to_0_1", "rgb_to_0_1"),
        ("zscore", "zscore"),
        ("R", "zscore"),
        ("CTA", "zscore"),
    ],
)
def test_the_name_of_a_channel_says_how_it_is_normalised(name, normalisation):
    assert normalisation_of(name) == normalisation


def test_splits_are_found_in_the_dataset_or_in_the_preprocessed_folder(root):
    assert find_splits_file(root) is None
    preprocessed = root.parents[1] / "nnUNet_preprocessed" / root.name / "splits_final.json"
    preprocessed.parent.mkdir(parents=True)
    folds = [{"train": ["p2"], "val": ["p10"]}, {"train": ["p10"], "val": ["p2"]}]
    preprocessed.write_text(json.dumps(folds), encoding="utf-8")
    assert find_splits_file(root) == preprocessed
    own = root / "splits_final.json"
    own.write_text(json.dumps(folds), encoding="utf-8")
    assert find_splits_file(root) == own

    names = [case.name for case in read_nnunet(root).cases]
    split = find_split(Splits(splits={}), str(own), names, {})

    assert [(fold.train, fold.validation) for fold in split.folds] == [(("p2",), ("p10",)), (("p10",), ("p2",))]
    with pytest.raises(PlanError, match="names p10, which is no case of the data set: correct it"):
        find_split(Splits(splits={}), str(own), names[:1], {})


@pytest.mark.real_data
@pytest.mark.parametrize("n_files", [1, 3])
def test_real_frames_are_read_from_one_colour_file_or_one_file_a_channel(real_data, tmp_path, n_files):
    frames = sorted((real_data / "CVC-ClinicDB" / "images").iterdir())[:20]
    root = tmp_path / "Dataset001_Polyp"
    describe(
        root,
        channel_names={"0": "R", "1": "G", "2": "B"},
        labels={"background": 0, "polyp": 1},
        numTraining=20,
        file_ending=".png",
    )
    colours = {}
    for frame in frames:
        pixels = colours[frame.stem] = np.asarray(Image.open(frame).convert("RGB"))
        for i, part in enumerate([pixels] if n_files == 1 else pixels.transpose(2, 0, 1)):
            save(root / "imagesTr" / f"{frame.stem}_{i:04d}.png", part)
        mask = np.asarray(Image.open(next(frame.parents[1].glob(f"masks/{frame.stem}.*"))).convert("L"))
        save(root / "labelsTr" / f"{frame.stem}.png", (mask > 127).astype(np.uint8))

    dataset = read_nnunet(root)

    assert dataset.problems == ()
    assert dataset.understood.startswith("20 cases: nnU-Net dataset, 3 channels (R, G, B), labels polyp")
    assert {case.name for case in dataset.cases} == colours.keys()
    for case in dataset.cases:
        assert len(case.images) == n_files
        channels = np.concatenate([read_image(root / file).pixels for file in case.images])
        np.testing.assert_array_equal(channels, colours[case.name].transpose(2, 0, 1))
        assert {*np.unique(read_mask(root / case.mask))} == {0, 1}
