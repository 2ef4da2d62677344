import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from iaunet.annotations.coco import decode_counts, read_coco
from iaunet.annotations.shapes import draw
from iaunet.errors import FileError

ABSURD = "points hold nan, infinite or absurdly large coordinates"
SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]
IMAGE = {"id": 7, "file_name": "train/a.jpg", "height": 8, "width": 10}
POLYP = {"id": 3, "name": "polyp"}


def annotation(segmentation, **more):
    return {"id": 1, "image_id": 7, "category_id": 3, "segmentation": segmentation, "iscrowd": 0, **more}


@pytest.fixture
def read(tmp_path):
    """Reads annotations written as COCO."""

    def read(*annotations, images=(IMAGE,), categories=(POLYP,)):
        data = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "coco.json").write_text(json.dumps(data), encoding="utf-8")
        return read_coco(tmp_path / "coco.json", tmp_path)

    return read


def drawn(annotations, size=(8, 10)):
    (image,) = annotations.images
    return draw(image.shapes, size, {"polyp": 1, "b": 2}).pixels


def whats(annotations):
    return [problem.what for problem in annotations.problems]


def counts(mask):
    """Lengths of the runs of a mask down its columns, background first."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    borders = np.flatnonzero(flat[1:] != flat[:-1])
    total = mask.size
    return np.diff(np.concatenate([[0], borders, [total]] if total not in borders else [[0], borders])).tolist()


def encode(lengths):
    """COCO's string code, number by number as the format is defined."""
    code = ""
    for i, length in enumerate(lengths):
        number = length - lengths[i - 2] if i > 2 else length
        more = True
        while more:
            digit = number & 31
            number >>= 5
            more = number != -1 if digit & 16 else number != 0
            code += chr((digit | (32 if more else 0)) + 48)
    return code


SQUARE_MASK = np.zeros((8, 10), bool)
SQUARE_MASK[1:4, 2:6] = True


@pytest.mark.parametrize(
    "segmentation",
    [
        [SQUARE],
        [[2, 1, 4, 1, 4, 4, 2, 4], [4, 1, 6, 1, 6, 4, 4, 4]],
        {"size": [8, 10], "counts": counts(SQUARE_MASK)},
        {"size": [8, 10], "counts": encode(counts(SQUARE_MASK))},
    ],
    ids=["polygon", "polygons", "runs", "code"],
)
@pytest.mark.parametrize("crowd", [0, 1])
def test_each_kind_of_segmentation_covers_its_pixels(read, segmentation, crowd):
    annotations = read(annotation(segmentation, iscrowd=crowd))

    np.testing.assert_array_equal(drawn(annotations), SQUARE_MASK)
    assert annotations.images[0].names == ("train/a",)
    assert annotations.images[0].size == (8, 10)
    assert annotations.labels == ("polyp",)
    assert not annotations.problems


def test_polygons_of_one_object_that_overlap_are_united(read):
    np.testing.assert_array_equal(drawn(read(annotation([SQUARE, SQUARE]))), SQUARE_MASK)


def test_a_known_code_of_the_format_is_read():
    assert decode_counts("0").tolist() == [0]
    assert decode_counts("o0P1").tolist() == [31, 32]
    assert decode_counts("5321").tolist() == [5, 3, 2, 4]


@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_the_code_of_any_mask_gives_its_runs(mask):
    assert decode_counts(encode(counts(mask))).tolist() == counts(mask)


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=30))
def test_the_code_of_any_lengths_gives_them_back(lengths):
    assert decode_counts(encode(lengths)).tolist() == lengths


def test_images_without_shapes_are_listed_and_annotations_go_by_id(read):
    images = [IMAGE, {"id": "x", "file_name": "b.png"}]

    annotations = read(annotation([SQUARE], image_id="x"), images=images)

    assert [(image.names, len(image.shapes), image.size) for image in annotations.images] == [
        (("train/a",), 0, (8, 10)),
        (("b",), 1, None),
    ]


def test_categories_are_labels_in_the_order_of_their_list(read):
    annotations = read(
        annotation([SQUARE], category_id=1), categories=[{"id": 9, "name": "b"}, POLYP, {"id": 1, "name": "b"}]
    )

    assert annotations.labels == ("b", "polyp")
    np.testing.assert_array_equal(drawn(annotations), 2 * SQUARE_MASK)


@pytest.mark.parametrize(
    ("item", "what"),
    [
        (annotation([SQUARE], image_id=8), "annotation 1: image_id 8 is not among the images"),
        (annotation([SQUARE], image_id=None), "annotation 1: image_id None is not among the images"),
        (annotation([SQUARE], category_id=[]), "annotation 1: category_id [] is not among the categories"),
        (annotation([SQUARE[:-1]]), "annotation 1: polygon is no flat list of x and y"),
        (annotation([[[1, 2], [3, 4]]]), "annotation 1: polygon is no flat list of x and y"),
        (annotation([SQUARE[:4]]), "annotation 1: polygon has 2 points"),
        (annotation([[1, 2, 3, float("inf"), 4, 5]]), "annotation 1: " + ABSURD),
        (annotation("abc"), "annotation 1: segmentation is neither polygons nor run lengths"),
        (annotation({"size": [8], "counts": [80]}), "annotation 1: size of the run lengths is [8]"),
        (annotation({"size": [8, 10], "counts": [3, 78]}), "annotation 1: run lengths do not fill 8 x 10 pixels"),
        (annotation({"size": [8, 10], "counts": [90, -10]}), "annotation 1: run lengths do not fill 8 x 10 pixels"),
        (annotation({"size": [8, 10], "counts": [80.0]}), "annotation 1: run lengths are no list of whole numbers"),
        (annotation({"size": [8, 10], "counts": []}), "annotation 1: run lengths are no list of whole numbers"),
        (annotation({"size": [8, 10], "counts": [2**70]}), "annotation 1: run lengths are no list of whole numbers"),
        (annotation({"size": [8, 10], "counts": None}), "annotation 1: run lengths are no list of whole numbers"),
        (annotation({"size": [8, 10], "counts": "\x01"}), "annotation 1: compressed run lengths are damaged"),
        (annotation({"size": [8, 10], "counts": "0P"}), "annotation 1: compressed run lengths are damaged"),
        (annotation({"size": [8, 10], "counts": "ä"}), "annotation 1: compressed run lengths are damaged"),
        (annotation({"size": [8, 10], "counts": "o" * 30 + "0"}), "annotation 1: compressed run lengths are damaged"),
        (annotation([], bbox=[1, 2, 3, 4]), "1 annotations have no outline, only a box (first annotation 1)"),
        (["list"], "annotation 1: is no object in braces"),
    ],
)  # fmt: skip
def test_each_faulty_annotation_is_named(read, item, what):
    annotations = read(item)

    assert whats(annotations) == [what]
    assert not annotations.images[0].shapes
    assert annotations.images[0].is_faulty == (isinstance(item, dict) and item["image_id"] == 7)


def test_faulty_lists_are_named_together(read):
    annotations = read(
        images=[
            IMAGE,
            {"id": 7, "file_name": "b.jpg"},
            {"id": 1},
            {"id": 8, "file_name": "c.png", "height": "a", "width": 1},
        ],
        categories=[POLYP, {"id": 3, "name": "b"}, {"name": "c"}, {"id": 5, "name": ""}],
    )

    assert whats(annotations) == [
        "category id 3 stands for polyp and for b",
        "entry 3 of the category list has no id or no name",
        "entry 4 of the category list has no id or no name",
        "image id 7 stands for train/a.jpg and for b.jpg",
        "entry 3 of the image list has no id or no file_name",
        "image 8: height and width are 'a' and 1",
    ]


def test_another_json_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"annotations": []}')

    with pytest.raises(FileError, match='is no COCO file: give "images"'):
        read_coco(tmp_path / "a.json", tmp_path)
