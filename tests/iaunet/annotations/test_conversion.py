import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from iaunet.annotations.conversion import convert
from iaunet.annotations.recognition import Found, find_annotations
from iaunet.annotations.shapes import AnnotatedImage, Annotations, Circle, Polygons, Shape
from iaunet.errors import DatasetError, WorkspaceError
from iaunet.files import read_made_from, read_mask

ORIENTATION = 0x0112


def box(left, top, right, bottom):
    return Polygons((np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64),))


def annotated(name, *shapes, size=None, file="labels.json", is_faulty=False):
    """An image with (label, outline) pairs."""
    numbered = tuple(Shape(label, outline, f"shape {i}") for i, (label, outline) in enumerate(shapes, start=1))
    return AnnotatedImage((name,) if isinstance(name, str) else name, numbered, size, file, is_faulty)


@pytest.fixture
def converting(tmp_path, add_image):
    """Converts annotations for images of 8 x 10 pixels, by default one for each case named."""

    def converting(*images, cases=("a",), labels=(), problems=(), paths=None):
        paths = paths or {case: add_image(f"images/{case}.png") for case in cases}
        found = Found("COCO", tmp_path, Annotations(images, labels, problems), (tmp_path / "labels.json",))
        return convert(found, paths, tmp_path / "workspace")

    return converting


def whats(converted, level=None):
    return [problem.what for problem in converted.problems if level in (None, problem.level)]


def test_each_listed_image_gets_a_mask_in_its_size_and_others_none(converting, tmp_path):
    converted = converting(annotated("a", ("polyp", box(2, 1, 6, 4))), annotated("p/b"), cases=("a", "p/b", "c"))

    expected = np.zeros((8, 10), np.uint8)
    expected[1:4, 2:6] = 1
    assert converted.masks == {"a": tmp_path / "workspace/a.png", "p/b": tmp_path / "workspace/p/b.png"}
    np.testing.assert_array_equal(read_mask(converted.masks["a"]), expected)
    np.testing.assert_array_equal(read_mask(converted.masks["p/b"]), np.zeros((8, 10)))
    assert converted.labels == ("polyp",)
    assert converted.understood == "2 masks drawn from COCO (labels.json): 1 shapes of polyp"
    assert not converted.problems
    assert not converted.faulty


def test_labels_follow_the_formats_table_then_the_alphabet(converting):
    shapes = [(label, box(i, 0, i + 1, 1)) for i, label in enumerate(["z", "B", "a", "m"])]

    converted = converting(annotated("a", *shapes), labels=("m", "unused", "z"))

    assert converted.labels == ("m", "z", "a", "B")
    assert read_mask(converted.masks["a"])[0, :4].tolist() == [2, 4, 3, 1]
    assert whats(converted) == ["labels without a shape are left out: unused"]


def test_labels_that_differ_in_case_or_spaces_are_one_and_told(converting):
    shapes = [(label, box(i, 0, i + 1, 1)) for i, label in enumerate(["polyp", "Polyp ", "polyp", "large  Tool"])]

    converted = converting(annotated("a", *shapes), labels=("POLYP",))

    assert converted.labels == ("polyp", "large Tool")
    assert read_mask(converted.masks["a"])[0, :4].tolist() == [1, 1, 1, 2]
    assert whats(converted, "note") == [
        "labels 'Polyp ' are read as 'polyp'",
        "labels 'large  Tool' are read as 'large Tool'",
    ]


def test_many_labels_need_two_bytes_and_too_many_are_refused(converting):
    shapes = [(f"label {i:05}", box(i % 10, 0, i % 10 + 1, 1)) for i in range(65_536)]

    mask = read_mask(converting(annotated("a", *shapes[:300])).masks["a"])

    assert mask.dtype == np.uint16
    assert mask[0].tolist() == list(range(291, 301))
    with pytest.raises(DatasetError, match="annotations have 65536 labels: unite them to at most 65535"):
        converting(annotated("a", *shapes))


def test_several_files_about_one_image_are_united(converting):
    converted = converting(
        annotated("a", ("polyp", box(0, 0, 1, 1))), annotated("a", ("polyp", box(2, 0, 3, 1)), file="val.json")
    )

    assert read_mask(converted.masks["a"])[0, :4].tolist() == [1, 0, 1, 0]


def test_images_are_joined_by_name_and_by_folders_where_names_repeat(converting, add_image):
    paths = {
        "P1/a": add_image("data/P1/images/a.png"),
        "P2/a": add_image("data/P2/images/a.png"),
        "b": add_image("data/b.png"),
        "x/c": add_image("data/x/c.png"),
        "y/c": add_image("data/y/c.png"),
    }
    names = ["P2/labels/a", "P1/labels/a", "elsewhere/b", "x/c", ("gone/z", "y/c")]

    converted = converting(
        *[annotated(name, ("polyp", box(i, 0, i + 1, 1))) for i, name in enumerate(names)], paths=paths
    )

    columns = {case: int(read_mask(path)[0].argmax()) for case, path in converted.masks.items()}
    assert columns == {"P1/a": 1, "P2/a": 0, "b": 2, "x/c": 3, "y/c": 4}
    assert not converted.problems


def test_a_name_that_fits_several_images_is_a_fault_and_no_image_counts_as_empty(converting, add_image):
    paths = {"P1/a": add_image("P1/a.png"), "P2/a": add_image("P2/a.png"), "b": add_image("b.png")}

    converted = converting(annotated("a", ("polyp", box(0, 0, 1, 1))), annotated("b"), paths=paths)

    assert whats(converted, "fault") == ["1 names fit several images (a)"]
    assert [*converted.masks] == ["b"]
    assert converted.faulty == ("P1/a", "P2/a")


def test_an_image_of_another_folder_takes_no_others_annotations(converting, add_image):
    paths = {"P2/a": add_image("data/P2/a.png")}
    parts = [annotated(f"P{i}/a", ("polyp", box(i, 0, i + 1, 1))) for i in (1, 2, 3)]

    converted = converting(*parts, paths=paths)

    assert read_mask(converted.masks["P2/a"])[0, :4].tolist() == [0, 0, 1, 0]
    assert whats(converted) == ["2 annotated images are not in the data set and are left out (P1/a)"]


def test_annotations_of_none_of_the_images_are_a_fault(converting):
    converted = converting(annotated("x"), annotated("y"), cases=("a", "b"))

    assert whats(converted, "fault") == ["none of 2 annotated images (x) is among the images"]
    assert converted.problems[0].mend == "give the images the names the annotations tell; the first image is a"
    assert not converted.masks


def test_all_faults_are_named_together_and_faulty_images_have_no_mask(converting, add_image, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"PNG")
    paths = {name: add_image(f"{name}.png") for name in "abcd"} | {"e": tmp_path / "broken.png"}
    converted = converting(
        annotated("a", size=(10, 8)),
        annotated("b", size=(9, 9)),
        annotated("c", ("polyp", box(0, 0, 1, 1)), is_faulty=True),
        annotated("d", ("polyp", box(0, 0, 1, 1)), size=(8, 10)),
        annotated("broken"),
        paths=paths,
    )

    assert whats(converted, "fault") == [
        "image a: annotated at 10 x 8 pixels, it has 8 x 10, turned",
        "image b: annotated at 9 x 9 pixels, it has 8 x 10",
        "image e: is not a readable PNG, JPEG, BMP or TIFF image",
    ]
    assert [*converted.masks] == ["d"]
    assert converted.faulty == ("a", "b", "c", "e")


def test_a_turned_photograph_gets_a_mask_as_it_is_displayed(converting, add_image):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    paths = {"a": add_image("a.jpg", (8, 10), exif=exif)}

    converted = converting(annotated("a", size=(10, 8)), paths=paths)

    assert read_mask(converted.masks["a"]).shape == (10, 8)


def test_what_drawing_tells_is_told_again_when_the_mask_is_kept(converting):
    parts = [
        annotated("a", ("x", box(0, 0, 4, 4)), ("y", box(2, 2, 6, 6)), ("x", Circle(3.0, 3.0, 0.1))),
        annotated("b", ("x", box(0, 0, 20, 3)), ("y", box(0, 0, 10.5, 1)), size=(8, 10), file="b.json"),
    ]

    first = converting(*parts, cases=("a", "b"))
    times = [path.stat().st_mtime_ns for path in first.masks.values()]
    second = converting(*parts, cases=("a", "b"))

    assert whats(first, "note") == [
        "14 pixels lie in shapes of different labels (in 2 images, first a)",
        "1 shapes cover no pixel (in 1 images, first a)",
        "1 shapes reach far outside the image and are cut (in 1 images, first b)",
    ]
    assert [problem.file for problem in first.problems if problem.level == "note"] == ["labels.json"] * 2 + ["b.json"]
    assert second == first
    assert [path.stat().st_mtime_ns for path in second.masks.values()] == times


def test_masks_are_drawn_anew_when_shapes_labels_or_size_change_and_go_with_their_case(converting, add_image, tmp_path):
    stale = annotated("p/b", ("polyp", box(0, 0, 1, 1)))
    converting(annotated("a", ("polyp", box(0, 0, 1, 1))), stale, cases=("a", "p/b"))
    (tmp_path / "workspace" / "foreign.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())

    moved = read_mask(converting(annotated("a", ("polyp", box(1, 0, 2, 1)))).masks["a"])[0, :2].tolist()
    renamed = converting(annotated("a", ("tool", box(1, 0, 2, 1))), labels=("polyp", "tool"))
    made_from = read_made_from(renamed.masks["a"])
    paths = {"a": add_image("images/a.png", (3, 5))}
    resized = converting(annotated("a", ("tool", box(1, 0, 2, 1))), paths=paths)

    assert moved == [0, 1]
    assert read_made_from(resized.masks["a"]) != made_from
    assert read_mask(resized.masks["a"]).shape == (3, 5)
    left = sorted(path.relative_to(tmp_path / "workspace").as_posix() for path in (tmp_path / "workspace").rglob("*"))
    assert left == ["a.png", "foreign.png"]


def test_a_folder_that_cannot_be_written_is_named(converting, tmp_path):
    (tmp_path / "workspace").write_text("in the way")

    with pytest.raises(WorkspaceError, match="cannot be written"):
        converting(annotated("a"))


# --- real masks, exported to each format and back


def as_labelme(root, masks, polygon):
    for name, mask in masks.items():
        shapes = [{"label": "polyp", "points": polygon(mask), "shape_type": "polygon", "group_id": None}]
        write_labelme(root, name, mask, shapes)


def as_labelme_masks(root, masks, polygon):
    for name, mask in masks.items():
        (top, left), (bottom, right) = np.argwhere(mask).min(axis=0), np.argwhere(mask).max(axis=0) + 1
        buffer = io.BytesIO()
        Image.fromarray(mask[top:bottom, left:right]).save(buffer, "PNG")
        points = [[float(left), float(top)], [float(right - 1), float(bottom - 1)]]
        encoded = base64.b64encode(buffer.getvalue()).decode()
        write_labelme(root, name, mask, [{"label": "polyp", "points": points, "shape_type": "mask", "mask": encoded}])


def write_labelme(root, name, mask, shapes):
    height, width = mask.shape
    data = {"shapes": shapes, "imagePath": f"../images/{name}.jpg", "imageHeight": height, "imageWidth": width}
    (root / "labels" / f"{name}.json").write_text(json.dumps(data))


def as_coco(root, masks, polygon, segmentation=None):
    """Two files whose ids contradict each other: only names can join them."""
    segmentation = segmentation or (lambda mask: [np.array(polygon(mask), float).ravel().tolist()])
    names = list(masks)
    for part, chosen, category in (("train", names[::2], 1), ("val", names[1::2], 2)):
        images = [
            {"id": i, "file_name": f"{part}/{name}.jpg", "height": masks[name].shape[0], "width": masks[name].shape[1]}
            for i, name in enumerate(reversed(chosen))
        ]
        annotations = [
            {"id": i, "image_id": i, "category_id": category, "segmentation": segmentation(masks[name]), "iscrowd": 0}
            for i, name in enumerate(reversed(chosen))
        ]
        categories = [{"id": category, "name": "polyp"}, {"id": 3 - category, "name": f"other {part}"}]
        data = {"images": images, "annotations": annotations, "categories": categories}
        (root / "labels" / f"{part}.json").write_text(json.dumps(data))


def column_runs(mask):
    """Starts, from 0, and ends of the runs down the columns."""
    steps = np.diff(np.concatenate([[0], mask.T.ravel().astype(int), [0]]))
    return np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)


def as_coco_runs(root, masks, polygon):
    def segmentation(mask):
        borders = np.stack(column_runs(mask), axis=1).ravel()
        return {"size": list(mask.shape), "counts": np.diff([0, *borders, mask.size]).tolist()}

    as_coco(root, masks, polygon, segmentation)


def as_yolo(root, masks, polygon):
    (root / "data.yaml").write_text("nc: 1\nnames: ['polyp']\n")
    for name, mask in masks.items():
        shares = np.array(polygon(mask)) / mask.shape[::-1]
        (root / "labels" / f"{name}.txt").write_text("0 " + " ".join(f"{share:.6f}" for share in shares.ravel()) + "\n")


def as_run_lengths(root, masks, polygon):
    lines = ["ImageId,EncodedPixels"]
    for name, mask in masks.items():
        starts, ends = column_runs(mask)
        half = len(starts) // 2
        for part in (slice(half), slice(half, None)):
            lines.append(
                f"{name}.jpg," + " ".join(f"{s + 1} {e - s}" for s, e in zip(starts[part], ends[part], strict=True))
            )
    (root / "train.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def polyps(real_data, tmp_path_factory):
    """A folder with 20 images and an empty folder for labels, and the masks by name."""
    root = tmp_path_factory.mktemp("polyps")
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    masks = {}
    for name in map(str, range(1, 601, 30)):
        (root / "images" / f"{name}.jpg").write_bytes(
            (real_data / "CVC-ClinicDB" / "images" / f"{name}.jpg").read_bytes()
        )
        masks[name] = read_mask(real_data / "CVC-ClinicDB" / "masks" / f"{name}.png") > 0
    return root, masks


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("export", "expected_format"),
    [
        (as_labelme, "Labelme"),
        (as_labelme_masks, "Labelme"),
        (as_coco, "COCO"),
        (as_coco_runs, "COCO"),
        (as_yolo, "YOLO"),
        (as_run_lengths, "run lengths"),
    ],
)
def test_real_masks_come_back_to_the_bit_from_each_format(polyps, polygon, tmp_path, export, expected_format):
    root, masks = polyps
    images = {name: root / "images" / f"{name}.jpg" for name in masks}
    written = tmp_path / "raw"
    (written / "labels").mkdir(parents=True)
    export(written, masks, polygon)

    found = find_annotations(written, list(images.values()))
    converted = convert(found, images, tmp_path / "workspace")

    assert found.format == expected_format
    assert len(converted.masks) == len(masks) == 20
    assert not [problem for problem in converted.problems if problem.level == "fault"]
    assert len(converted.labels) == 1
    for name, mask in masks.items():
        np.testing.assert_array_equal(read_mask(converted.masks[name]), mask)
