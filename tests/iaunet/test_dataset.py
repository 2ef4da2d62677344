import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from iaunet.dataset import Case, Dataset, MaskCoding, Problem, Source
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
    )

    assert from_json(Dataset, to_json(dataset)) == dataset
    assert dataset.path("masks/b.png") == tmp_path / "masks" / "b.png"
    assert dataset.path(dataset.cases[1].images[0]) == tmp_path / "elsewhere.png"


def test_the_fault_of_a_file_tells_what_and_what_to_do():
    problem = Problem.of("a.png", FileError("is empty", "remove it"))

    assert problem == Problem(level="fault", file="a.png", what="is empty", mend="remove it")
