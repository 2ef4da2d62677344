import numpy as np
import pytest

from iaunet.annotations.shapes import draw
from iaunet.annotations.yolo import is_yolo_text, read_class_names, read_yolo
from iaunet.errors import FileError

SQUARE = "0.2 0.125 0.6 0.125 0.6 0.5 0.2 0.5"


@pytest.fixture
def read(tmp_path):
    """Reads rows of one file."""

    def read(text, names=("polyp", "b")):
        (tmp_path / "a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_yolo([tmp_path / "a.txt"], names, tmp_path)

    return read


def test_rows_are_polygons_in_shares_of_the_image(read):
    annotations = read(f"1 {SQUARE}\n\n0 {SQUARE}\n")

    (image,) = annotations.images
    assert [shape.label for shape in image.shapes] == ["b", "polyp"]
    assert (image.names, image.size, annotations.labels) == (("a",), None, ("polyp", "b"))
    expected = np.zeros((8, 10), np.uint8)
    expected[1:4, 2:6] = 2
    np.testing.assert_array_equal(draw(image.shapes[:1], (8, 10), {"b": 2}).pixels, expected)


def test_an_empty_file_says_that_there_is_nothing(read):
    annotations = read("")

    assert [image.shapes for image in annotations.images] == [()]
    assert not annotations.problems


def test_classes_without_names_are_numbered(read):
    assert read(f"4 {SQUARE}", names=()).labels == ("class 4",)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("0 0.5 0.5 0.2 0.2", "is a box, and boxes are no masks"),
        ("0 0.5 0.5 0.2 0.2 0.1", "has 5 numbers after the class"),
        ("0 0.5 0.5", "polygon has 1 points"),
        ("2 " + SQUARE, "class 2 has no name, there are 2"),
        ("0 10 20 30 40 50 60", "coordinates are no shares of the image"),
        ("0 nan 0 1 0 1 1", "points hold nan, infinite or absurdly large coordinates"),
        ("x " + SQUARE, "is no class number followed by numbers"),
        ("0 " + SQUARE + " x", "is no class number followed by numbers"),
        ("9999999999 " + SQUARE, "is no class number followed by numbers"),
        ("-1 " + SQUARE, "is no class number followed by numbers"),
    ],
)
def test_each_faulty_row_is_named_by_its_line(read, row, what):
    annotations = read(f"0 {SQUARE}\n{row}\n\n{row}\n")

    assert [problem.what for problem in annotations.problems] == [f"line 2: {what}", f"line 4: {what}"]
    assert {(problem.level, problem.file) for problem in annotations.problems} == {("fault", "a.txt")}
    assert annotations.images[0].is_faulty


def test_a_file_that_is_no_text_is_named(read):
    annotations = read(b"\xff\xfe0")

    assert [problem.what for problem in annotations.problems] == ["is not UTF-8 text (byte 0)"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"0 {SQUARE}", True),
        ("\n3 0.5 0.5 0.1 0.1", True),
        ("", False),
        ("0 1 2", False),
        ("polyp 1 2 3 4 5 6", False),
        ("1 the quick brown fox jumps", False),
    ],
)
def test_rows_are_recognised_by_their_numbers(text, expected):
    assert is_yolo_text(text) == expected


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "polyp\nlarge tool\n\n"),
        ("obj.names", "polyp\r\nlarge tool"),
        ("data.yaml", "train: ../train\nnc: 2\nnames: ['polyp', \"large tool\"]\n"),
        ("data.yaml", "names: [polyp, large tool]  # two\n"),
        ("data.yaml", "names: [\n  polyp,\n  'large tool'\n]\nnc: 2"),
        ("data.yaml", "names:\n- polyp\n- 'large tool'\nnc: 2\n"),
        ("data.yaml", "names:\n  - polyp\n  # a comment\n\n  - large tool\nnc: 2\n"),
        ("data.yaml", "path: x\nnames:\n  0: polyp\n  1: large tool\n\ndownload: no\n"),
        ("data.yml", "names:\n  1: large tool\n  0: 'polyp'\n"),
        ("data.yaml", "names: {0: polyp, 1: 'large tool'}"),
    ],
)
def test_class_names_are_read_as_tools_write_them(tmp_path, file, text):
    (tmp_path / file).write_bytes(text.encode())

    assert read_class_names(tmp_path / file) == ("polyp", "large tool")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("classes.txt", "", "holds no class names: give one name a class"),
        ("classes.txt", "a\n\nb", "holds no class names"),
        ("data.yaml", "nc: 2", "holds no class names"),
        ("data.yaml", "names:\n", "holds no class names"),
        ("data.yaml", "names: []", "holds no class names"),
        ("data.yaml", "names:\n  1: a\n  2: b", "class numbers do not count from 0: number the names"),
        ("data.yaml", "names:\n  0: a\n  0: b", "class numbers do not count from 0"),
    ],
)
def test_faulty_class_names_are_named(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)

    with pytest.raises(FileError, match=message):
        read_class_names(tmp_path / file)


def test_a_quote_and_a_comma_within_quotes_belong_to_the_name(tmp_path):
    (tmp_path / "data.yaml").write_text("names: ['a, b', \"c\", 'd''s']")

    assert read_class_names(tmp_path / "data.yaml") == ("a, b", "c", "d's")
