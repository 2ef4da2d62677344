import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from iaunet.annotations.labelme import is_labelme, read_labelme
from iaunet.annotations.shapes import draw
from iaunet.errors import FileError

SQUARE = [[2, 1], [6, 1], [6, 4], [2, 4]]


def in_base64(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def shape(points, kind="polygon", label="polyp", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


@pytest.fixture
def read(tmp_path):
    """Reads shapes written as Labelme writes them, for an image of 8 x 10 pixels."""

    def read(*shapes, file="images/a.json", **more):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        data = {"version": "5.4", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None}
        path.write_text(json.dumps(data | {"imageHeight": 8, "imageWidth": 10} | more), encoding="utf-8")
        return read_labelme(path, tmp_path)

    return read


def drawn(annotations):
    (image,) = annotations.images
    return draw(image.shapes, (8, 10), {"polyp": 1, "b": 2}).pixels


def faults(annotations):
    return [(problem.file, problem.what) for problem in annotations.problems if problem.level == "fault"]


def rows_and_columns(top, bottom, left, right):
    mask = np.zeros((8, 10), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize(
    "item",
    [
        shape(SQUARE),
        {"label": "polyp", "points": SQUARE},
        shape([[2, 1], [6, 4]], "rectangle"),
        shape([[6, 4], [2, 1]], "rectangle"),
        shape([[6, 1], [2, 4]], "rectangle"),
        shape(SQUARE, "rectangle"),
        shape(SQUARE, "rotation"),
        shape([[2.0, 1.0], [5.0, 3.0]], "mask", mask=in_base64(np.ones((3, 4), bool))),
        shape([[2.0, 1.0], [5.0, 3.0]], "mask", mask=in_base64(np.full((3, 4), 255, np.uint8))),
    ],
)
def test_shapes_with_corners_cover_the_pixels_between_them(read, item):
    annotations = read(item)

    np.testing.assert_array_equal(drawn(annotations), rows_and_columns(1, 4, 2, 6))
    assert not annotations.problems
    assert annotations.images[0].names == ("images/a",)
    assert annotations.images[0].size == (8, 10)


def test_a_circle_is_its_centre_and_a_point_on_it(read):
    rows, columns = np.mgrid[:8, :10] + 0.5

    mask = drawn(read(shape([[5, 4], [5, 1.2]], "circle")))

    np.testing.assert_array_equal(mask, (rows - 4) ** 2 + (columns - 5) ** 2 <= 2.8**2)


def test_parts_of_a_group_are_drawn_each(read):
    mask = drawn(read(shape(SQUARE, group_id=1), shape([[7, 5], [9, 7]], "rectangle", group_id=1)))

    np.testing.assert_array_equal(mask, rows_and_columns(1, 4, 2, 6) + rows_and_columns(5, 7, 7, 9))


def test_shapes_without_area_are_left_out_with_a_note(read):
    annotations = read(shape([[1, 1]], "point"), shape([[1, 1], [2, 2]], "line"), shape(SQUARE), shape([], "point", ""))

    (note,) = annotations.problems
    assert (note.level, note.file) == ("note", "images/a.json")
    assert note.what == "3 shapes without area are left out (line, point)"
    np.testing.assert_array_equal(drawn(annotations), rows_and_columns(1, 4, 2, 6))
    assert not annotations.images[0].is_faulty


def test_an_image_that_was_renamed_with_its_file_goes_by_the_files_name(read):
    assert read(imagePath="..\\photos\\old.jpg").images[0].names == ("images/old", "images/a")
    assert read(imagePath=None).images[0].names == ("images/a",)
    assert read(file="a.json").images[0].names == ("a",)


def test_a_size_that_is_not_told_is_unknown(read):
    assert read(imageHeight=None).images[0].size is None


@pytest.mark.parametrize(
    ("item", "what"),
    [
        (shape([[0, 0], [1, 1]]), "polygon has 2 points"),
        (shape("abc"), "points are not pairs of numbers"),
        (shape([[0, 0], [1, float("nan")], [3, 3]]), "points hold nan, infinite or absurdly large coordinates"),
        (shape(SQUARE, label=" "), "has no label"),
        (shape(SQUARE, label=None), "has no label"),
        (shape(SQUARE, "cuboid"), "is of the kind 'cuboid', which is not known"),
        (shape([[0, 0]], "rectangle"), "rectangle has 1 points"),
        (shape(SQUARE, "circle"), "circle has 4 points"),
        (shape([[0, 0]], "mask", mask="?"), "mask is not in base64"),
        (shape([[0, 0]], "mask", mask=7), "mask is not in base64"),
        (shape([[0, 0]], "mask"), "mask is not in base64"),
        (shape([[0, 0]], "mask", mask="AAAA"), "mask is no PNG image"),
        ("text", "is no object in braces"),
    ],
)
def test_each_faulty_shape_is_named_and_the_image_marked(read, item, what):
    annotations = read(shape(SQUARE), item, item)

    assert faults(annotations) == [("images/a.json", f"shape {number}: {what}") for number in (2, 3)]
    assert annotations.images[0].is_faulty
    assert len(annotations.images[0].shapes) == 1


@pytest.mark.parametrize("height", [0, -3, "8", 8.5])
def test_an_absurd_size_is_named(read, height):
    (fault,) = faults(read(imageHeight=height))

    assert fault == ("images/a.json", f"imageHeight and imageWidth are {height!r} and 10")


def test_another_json_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"shapes": 3}')

    assert not is_labelme([])
    with pytest.raises(FileError, match="is no Labelme file: remove it"):
        read_labelme(tmp_path / "a.json", tmp_path)
