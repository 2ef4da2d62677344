import json

import pytest

from iaunet.annotations.recognition import find_annotations
from iaunet.errors import DatasetError

SHAPE = {"label": "polyp", "points": [[1, 1], [4, 1], [4, 4]], "shape_type": "polygon"}
LABELME = json.dumps({"shapes": [SHAPE], "imagePath": "a.png", "imageHeight": 8, "imageWidth": 10})
COCO = json.dumps(
    {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 4, 1, 4, 4]]}],
        "categories": [{"id": 1, "name": "polyp"}],
    }
)
YOLO = "0 0.1 0.1 0.4 0.1 0.4 0.5\n"
RUNS = "ImageId,EncodedPixels\na,3 4\n"


@pytest.fixture
def find(tmp_path, add_image):
    """Writes files beside the images a and b and looks for annotations."""

    def find(**files):
        images = [add_image("images/a.png"), add_image("images/b.png")]
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return find_annotations(tmp_path, images)

    return find


def told(found):
    """For each annotated image its first name and its labels."""
    return {image.names[0]: [shape.label for shape in image.shapes] for image in found.annotations.images}


@pytest.mark.parametrize(
    ("files", "expected_format", "expected"),
    [
        ({"images/a.json": LABELME}, "Labelme", {"images/a": ["polyp"]}),
        ({"json/a.json": LABELME, "json/b.JSON": LABELME}, "Labelme", {"json/a": ["polyp"]}),
        ({"coco.json": COCO, "val/x.json": COCO}, "COCO", {"a": ["polyp"]}),
        (
            {"labels/a.txt": YOLO, "labels/b.txt": "", "classes.txt": "tool"},
            "YOLO",
            {"labels/a": ["tool"], "labels/b": []},
        ),
        ({"labels/a.txt": YOLO, "data.yaml": "names: [tool]"}, "YOLO", {"labels/a": ["tool"]}),
        ({"images/a.txt": YOLO, "images/obj.names": "tool"}, "YOLO", {"images/a": ["tool"]}),
        ({"train.csv": RUNS}, "run lengths", {"a": ["foreground"]}),
        ({"train.csv": RUNS, "sample_submission.csv": RUNS.replace("a,", "b,")}, "run lengths", {"a": ["foreground"]}),
    ],
)
def test_each_format_is_recognised_by_what_its_files_hold(find, files, expected_format, expected):
    found = find(**files, **{"notes.txt": "0 1 2 3 4 5", "package.json": "{", "groups.csv": "name,patient\na,1\n"})

    assert found.format == expected_format
    assert told(found) == expected
    assert not found.annotations.problems


def test_without_annotations_nothing_is_found(find):
    assert (
        find(**{"dataset.json": '{"labels": {}}', "other.json": '{"annotations": [], "x": 1}', "images/a.txt": "a b"})
        is None
    )


def test_files_of_others_that_are_no_text_are_passed_over(find):
    latin = "\xe4".encode("latin-1")

    assert find(**{"table.csv": latin, "images/a.txt": latin, "other.json": latin}) is None
    assert find(**{"images/b.txt": YOLO, "other.yaml": latin, "classes.txt": "tool"}).format == "YOLO"


def test_hidden_folders_and_workspaces_are_not_searched(find):
    assert find(**{".cache/a.json": LABELME, "iaunet_workspace/a.json": LABELME, "images/.a.json": LABELME}) is None


def test_the_files_that_were_read_are_told(find, tmp_path):
    found = find(**{"labels/a.txt": YOLO, "labels/b.txt": "", "classes.txt": "tool", "readme.txt": "x"})

    assert found.files == tuple(tmp_path / name for name in ("classes.txt", "labels/a.txt", "labels/b.txt"))


def test_annotations_of_several_formats_are_refused(find):
    with pytest.raises(
        DatasetError, match=r"of several formats, COCO \(c.json\), Labelme \(a.json\): keep those of one"
    ):
        find(**{"c.json": COCO, "images/a.json": LABELME})


@pytest.mark.parametrize(
    ("file", "data", "expected_format", "what", "faulty"),
    [
        ("images/b.json", LABELME[:-9], "Labelme", "is no JSON (", [(("images/b",), True)]),
        ("coco.json", COCO[:-9], "COCO", "is no JSON (", []),
        ("coco.json", b'{"annotations": "\xff', "COCO", "is not UTF-8 text (byte 17)", []),
        ("train.csv", RUNS + "b\n", "run lengths", "line 3: has 1 fields, the header has 2", []),
    ],
)
def test_a_damaged_annotation_file_is_a_fault(find, file, data, expected_format, what, faulty):
    found = find(**{file: data})

    (problem,) = found.annotations.problems
    assert found.format == expected_format
    assert (problem.level, problem.file) == ("fault", file)
    assert problem.what.startswith(what)
    assert [(image.names, image.is_faulty) for image in found.annotations.images] == faulty


def test_class_names_that_are_missing_differ_or_are_broken_are_told(find):
    row = {"labels/a.txt": YOLO}

    (missing,) = find(**row).annotations.problems
    (differing,) = find(**row, **{"classes.txt": "tool", "data.yaml": "names: [polyp]"}).annotations.problems
    (broken,) = find(**row, **{"classes.txt": "tool", "data.yaml": "names: []"}).annotations.problems

    assert (missing.level, missing.file) == ("note", "labels/a.txt")
    assert missing.what == "class names are not told, labels are called by number"
    assert (differing.level, differing.file) == ("fault", "data.yaml")
    assert differing.what == "class names differ from those of classes.txt"
    assert (broken.level, broken.file, broken.what) == ("fault", "data.yaml", "holds no class names")


def test_boxes_are_recognised_and_refused(find):
    found = find(**{"labels/a.txt": "0 0.5 0.5 0.2 0.2\n", "classes.txt": "tool"})

    assert [problem.what for problem in found.annotations.problems] == ["line 1: is a box, and boxes are no masks"]
