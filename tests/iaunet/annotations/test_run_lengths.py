import csv

import numpy as np
import pytest

from iaunet.annotations.run_lengths import find_table, read_run_lengths
from iaunet.annotations.shapes import draw
from iaunet.errors import FileError

IMAGES = {"a", "b", "v1.2"}


@pytest.fixture
def read(tmp_path):
    """Reads the text of one file."""

    def read(text):
        (tmp_path / "train.csv").write_text(text, encoding="utf-8")
        return read_run_lengths(tmp_path / "train.csv", IMAGES, tmp_path)

    return read


def by_name(annotations):
    return {image.names[0]: image for image in annotations.images}


def drawn(image, values, size=(3, 4)):
    return draw(image.shapes, size, values).pixels.tolist()


def test_runs_count_from_one_down_the_columns_and_rows_of_an_image_are_united(read):
    annotations = read("ImageId,EncodedPixels\na,2 1 4 2\nb,\na,12 1\n")

    images = by_name(annotations)
    assert drawn(images["a"], {"foreground": 1}) == [[0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]]
    assert images["b"].shapes == ()
    assert not annotations.problems


@pytest.mark.parametrize("empty", ["", "-1", " -1", "nan", "NaN", '""'])
def test_an_image_without_runs_has_no_foreground(read, empty):
    assert by_name(read(f"id,rle_mask\na,1 2\nb,{empty}\n"))["b"].shapes == ()


@pytest.mark.parametrize(
    "text",
    [
        "id,class,segmentation\na,x,1 2\na,y,4 1\nb,x,\nb,y,\n",
        "segmentation;label;fold;id\n1 2;x;0;a.png\n4 1;y;1;a.png\n;x;0;b.png\n",
        "id\tClassId\tEncodedPixels\na\tx\t1 2\na\ty\t4 1\n",
        "ImageId_ClassId,EncodedPixels\na.jpg_x,1 2\na.jpg_y,4 1\nb.jpg_x,\n",
    ],
)
def test_columns_are_known_by_what_they_hold_and_classes_are_labels(read, text):
    annotations = read(text)

    assert annotations.labels == ("x", "y")
    assert drawn(by_name(annotations)["a"], {"x": 1, "y": 2}) == [[1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_runs_may_be_longer_than_fields_usually_are(read):
    limit = csv.field_size_limit()
    runs = " ".join(f"{start} 1" for start in range(1, 60_001, 2))

    annotations = read(f"id,rle\nv1.2,{runs}\n")

    assert len(runs) > limit
    assert csv.field_size_limit() == limit
    assert sum(map(sum, drawn(annotations.images[0], {"foreground": 1}, (200, 300)))) == 30_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id,rle\n",
        "id,patient\na,1\nb,2\n",
        "id,age,sex\na,61,f\nb,44,m\n",
        "id,rle\nx,1 2\ny,3 4\n",
        "id,comment\na,not a run\nb,nor this\n",
    ],
)
def test_other_tables_are_not_taken_for_run_lengths(read, text):
    assert find_table(text, IMAGES) is None
    with pytest.raises(FileError, match="holds no run lengths of these images: give a column of image names"):
        read(text)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("a,1 2 3", "has 3 numbers"),
        ("a,1 x", "run lengths are not whole numbers"),
        ("a,1.5 2", "run lengths are not whole numbers"),
        ("a,0 2", "a run starts before pixel 1, has no length or is absurdly long"),
        ("a,1 0", "a run starts before pixel 1, has no length or is absurdly long"),
        ("a,1 99999999999", "a run starts before pixel 1, has no length or is absurdly long"),
        ("a,1 99999999999999999999999", "run lengths are not whole numbers"),
        (",1 2", "has no image or no class"),
    ],
)
def test_each_faulty_row_is_named_by_its_line(read, row, what):
    annotations = read(f"id,rle\na,1 2\n{row}\nb,1 2\nb,1 2\n{row}\n")

    assert [problem.what for problem in annotations.problems] == [f"line 3: {what}", f"line 6: {what}"]
    assert [image.is_faulty for image in annotations.images].count(True) == 1
    assert not by_name(annotations)["b"].is_faulty


def test_a_row_that_is_too_short_stops_the_file(read):
    with pytest.raises(FileError, match="line 3: has 1 fields, the header has 2: correct the line"):
        read("id,rle\na,1 2\nb\n")
    with pytest.raises(FileError, match="line 3: has 1 fields, the header has 2"):
        read('id,rle\ra,1 2\r\x00\rb"\r')


def test_the_place_of_a_run_is_its_line(read):
    annotations = read("id,rle\na,1 2\na,12 2\n")

    with pytest.raises(FileError, match="line 3: a run ends at pixel 13, the image has 12"):
        draw(annotations.images[0].shapes, (3, 4), {"foreground": 1})
    np.testing.assert_array_equal(draw(annotations.images[0].shapes[:1], (3, 4), {"foreground": 1}).pixels[:, 1:], 0)
