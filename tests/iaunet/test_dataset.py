import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from iaunet.dataset import (
    IGNORED,
    Case,
    Dataset,
    MaskCoding,
    Problem,
    Slicing,
    Source,
    require_case_name,
    where_any,
)
from iaunet.decision import decide_regions
from iaunet.errors import FileError
from iaunet.records import FieldError, from_json, to_json

VALUES = st.lists(st.integers(1, 65535), min_size=1, max_size=8, unique=True)


@given(VALUES, st.data())
def test_labels_survive_being_written_and_read(values, data):
    coding = MaskCoding(kind="values", values=tuple(values), written=tuple(values))
    labels = data.draw(arrays(np.uint8, (4, 6), elements=st.integers(0, len(values))))

    written = coding.decode(labels)

    np.testing.assert_array_equal(coding.encode(written), labels)
    assert written.dtype == (np.uint8 if max(values) <= 255 else np.uint16)
    assert {*written.ravel().tolist()} <= {0, *values}


def test_a_noisy_binary_mask_is_cut_at_127_and_an_instance_map_at_0():
    raw = np.array([[0, 3, 127, 128, 255]])

    binary = MaskCoding(kind="binary", values=(), written=(255,))
    instances = MaskCoding(kind="nonzero", values=(), written=(255,))

    np.testing.assert_array_equal(binary.encode(raw), [[0, 0, 0, 1, 1]])
    np.testing.assert_array_equal(instances.encode(raw), [[0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(instances.decode(np.array([[0, 1]], np.uint8)), [[0, 255]])


def test_a_value_that_stands_for_no_label_is_named():
    coding = MaskCoding(kind="values", values=(1, 2), written=(1, 2))

    with pytest.raises(FileError, match=r"mask holds the value 7, the data set has \(0, 1, 2\): correct the mask"):
        coding.encode(np.array([[0, 1, 7]]))


@pytest.mark.parametrize(
    ("kind", "values", "written", "message"),
    [
        ("values", (1,), (), r"written is \(\): give a different value from 1 to 65535 for each label"),
        ("values", (1, 2), (1, 1), r"written is \(1, 1\): give a different value"),
        ("values", (1,), (0,), r"written is \(0,\)"),
        ("values", (1,), (65536,), r"written is \(65536,\)"),
        (
            "values",
            (1, 1),
            (1, 2),
            r"values is \(1, 1\): give 2 different values other than 0 and the ignored one, a label each",
        ),
        ("values", (0, 1), (1, 2), r"values is \(0, 1\)"),
        ("values", (), (255,), r"values is \(\): give 1 different values"),
        ("binary", (255,), (255,), r"values is \(255,\): give none, as binary masks have one label"),
        ("nonzero", (), (1, 2), r"written is \(1, 2\): give one value, as nonzero masks have one label"),
    ],
)
def test_a_coding_that_cannot_be_is_refused(kind, values, written, message):
    with pytest.raises(FieldError, match=message):
        MaskCoding(kind=kind, values=values, written=written)


PARTS = {"kind": "values", "values": (1, 2, 3), "written": (1, 2, 3)}


def test_ignored_pixels_are_neither_label_nor_background():
    coding = MaskCoding(kind="values", values=(2, 7), written=(2, 7), ignore=9)

    labels = coding.encode(np.array([[0, 2, 7, 9]], np.uint16))

    np.testing.assert_array_equal(labels, [[0, 1, 2, IGNORED]])
    np.testing.assert_array_equal(coding.targets(labels), [[[0, 1, 0, 0]], [[0, 0, 1, 0]]])
    with pytest.raises(FileError, match=r"mask holds the value 255, the data set has \(0, 2, 7, 9\): correct the mask"):
        coding.encode(np.array([[255]]))


def test_without_regions_each_label_is_an_output():
    coding = MaskCoding(kind="values", values=(4, 9), written=(4, 9))
    labels = np.array([[[0, 1], [2, 1]]], np.uint8)

    targets = coding.targets(labels)

    assert coding.outputs == ((1,), (2,))
    assert coding.painted == ()
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(targets, [[[[0, 1], [0, 1]], [[0, 0], [1, 0]]]])


def test_regions_unite_labels_and_paint_one_of_them():
    coding = MaskCoding(
        kind="values",
        values=(1, 2, 4),
        written=(1, 2, 4),
        regions=((1, 2, 4), (2, 4), (4,)),
        regions_class_order=(1, 2, 4),
        ignore=5,
    )
    labels = coding.encode(np.array([[0, 1, 2, 4, 5]]))

    targets = coding.targets(labels)

    assert coding.outputs == ((1, 2, 3), (2, 3), (3,))
    assert coding.painted == (1, 2, 3)
    np.testing.assert_array_equal(labels, [[0, 1, 2, 3, IGNORED]])
    np.testing.assert_array_equal(targets[:, 0], [[0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]])
    decided = decide_regions(targets, [0.5] * 3, coding.painted)
    np.testing.assert_array_equal(coding.decode(decided), [[0, 1, 2, 4, 0]])


@given(arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 3)))
def test_a_stack_of_labels_has_the_targets_of_its_slices(labels):
    coding = MaskCoding(**PARTS, regions=((1, 3), (2, 3)), regions_class_order=(1, 2))

    targets = coding.targets(labels)

    assert targets.shape == (3, 2, 4, 5)
    np.testing.assert_array_equal(targets, np.stack([coding.targets(one) for one in labels]))
    np.testing.assert_array_equal(targets[:, 0], (labels == 1) | (labels == 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"ignore": 3},
            r"values is \(1, 2, 3\): give 3 different values other than 0 and the ignored one, a label each",
        ),
        ({"regions": ((1, 4),), "regions_class_order": (1,)}, r"regions is .*: give lists of the values \(1, 2, 3\)"),
        ({"regions": ((),), "regions_class_order": (1,)}, r"regions is \(\(\),\): give lists of the values"),
        ({"regions": ((1,), (2,)), "regions_class_order": (1,)}, r"regions_class_order is \(1,\): give one of the val"),
        ({"regions": ((1,),), "regions_class_order": (9,)}, r"regions_class_order is \(9,\): give one of the values"),
        ({"regions_class_order": (1,)}, r"regions_class_order is \(1,\): .* for each region"),
    ],
)
def test_regions_and_ignored_values_that_cannot_be_are_refused(fields, message):
    with pytest.raises(FieldError, match=message):
        MaskCoding(**PARTS, **fields)


@given(arrays(np.uint16, (3, 4), elements=st.integers(0, 65535)))
def test_values_far_apart_are_told_apart(raw):
    values = tuple(sorted({*raw.ravel().tolist()} - {0}))[:250]
    raw = np.where(np.isin(raw, (0, *values)), raw, 0)
    coding = MaskCoding(kind="values", values=values or (1,), written=values or (1,))

    np.testing.assert_array_equal(coding.decode(coding.encode(raw)), raw)


def test_a_dataset_survives_its_json_and_finds_its_files(tmp_path):
    dataset = Dataset(
        name="toy",
        source=Source(root=str(tmp_path), groups="folder", mask_suffixes=("_gt",)),
        understood="2 cases",
        labels=("polyp",),
        coding=MaskCoding(kind="binary", values=(), written=(255,)),
        cases=(
            Case(name="p 1/ä", images=("images/p 1/ä.png",), mask=None),
            Case(name="b", images=(str(tmp_path / "elsewhere.png"),), mask="masks/b.png"),
        ),
        groups={"p 1/ä": "p 1", "b": "."},
        slicing=Slicing(slice_axis="coronal", axes="ZYX"),
        channel_kinds=("ct", "zscore"),
        channel_files=2,
    )

    assert from_json(Dataset, to_json(dataset)) == dataset
    assert dataset.path("masks/b.png") == tmp_path / "masks" / "b.png"
    assert dataset.path(dataset.cases[1].images[0]) == tmp_path / "elsewhere.png"


def test_the_fault_of_a_file_tells_what_and_what_to_do():
    problem = Problem.of("a.png", FileError("is empty", "remove it"))

    assert problem == Problem(level="fault", file="a.png", what="is empty", mend="remove it")


@pytest.mark.parametrize("name", ["x" * 256, "folder/" + "ü" * 128, "../outside", "/anywhere", "", "a\0b"])
def test_a_name_that_leads_outside_or_cannot_be_a_file_s_is_refused(name):
    with pytest.raises(FieldError, match="a path below a folder"):
        require_case_name(name)


def test_a_long_name_that_can_be_a_file_s_is_taken():
    require_case_name("folder/" + "ü" * 127)


@given(arrays(np.uint8, (3, 4), elements=st.integers(0, 6)), st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_labels_are_any_of_some_values_where_numpy_says_so(labels, values):
    found = where_any(labels, values)

    assert found.dtype == bool
    np.testing.assert_array_equal(found, np.isin(labels, values))
