import json

import numpy as np
import pytest
from PIL import Image

from iaunet.annotations.colours import convert_colours, find_label_map, read_colour_mask, read_label_map
from iaunet.errors import DatasetError, FileError
from iaunet.files import read_mask

BLACK, RED, GREEN, BLUE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def add_mask(tmp_path):
    """Writes a mask whose columns have these colours, 200 rows high."""

    def add_mask(name, *colours):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.tile(np.array([colours], np.uint8), (200, 1, 1))).save(path)
        return path

    return add_mask


@pytest.fixture
def add_palette_mask(tmp_path):
    """Writes a mask of these indices, a column each, with a palette."""

    def add_palette_mask(name, indices, palette):
        image = Image.fromarray(np.tile(np.array([indices], np.uint8), (200, 1))).convert("P")
        image.putpalette([part for colour in palette for part in colour])
        image.save(tmp_path / name)
        return tmp_path / name

    return add_palette_mask


def whats(converted):
    return [(problem.level, problem.file, problem.what) for problem in converted.problems]


def test_colours_are_read_as_they_are_shown(add_mask, add_palette_mask, tmp_path):
    Image.fromarray(np.array([[0, 7]], np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.array([[0, 700]], np.uint16)).save(tmp_path / "deep.png")

    np.testing.assert_array_equal(read_colour_mask(add_mask("rgb.png", RED, BLACK))[0], [RED, BLACK])
    np.testing.assert_array_equal(read_colour_mask(add_palette_mask("p.png", [1, 0], [BLACK, BLUE]))[0], [BLUE, BLACK])
    np.testing.assert_array_equal(read_colour_mask(tmp_path / "grey.png"), [[BLACK, (7, 7, 7)]])
    assert read_colour_mask(tmp_path / "grey.png").dtype == np.uint8
    with pytest.raises(FileError, match="mask has colours or greys of uint16: save it with 8 bits a channel"):
        read_colour_mask(tmp_path / "deep.png")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\npolyp:255,0,0::\ntool:0,255,0::\n"),
        ("class_dict.csv", "name,r,g,b\npolyp,255,0,0\ntool,0,255,0\nbackground,0,0,0\n"),
        ("classes.csv", "Class, Red, Green, Blue\n\npolyp, 255, 0, 0\n'tool', 0, 255, 0\n"),
        ("sub/colours.json", json.dumps({"polyp": RED, "tool": GREEN})),
    ],
)
def test_colours_are_named_by_a_file_beside_the_data(tmp_path, add_mask, file, text):
    (tmp_path / "sub").mkdir()
    (tmp_path / file).write_text(text)
    masks = {"a": add_mask("masks/a.png", BLACK, RED, GREEN), "b": add_mask("masks/b.png", GREEN, GREEN)}

    label_map = find_label_map(tmp_path)
    converted = convert_colours(masks, tmp_path / "workspace", tmp_path, label_map)

    assert label_map.labels == {"polyp": RED, "tool": GREEN}
    assert label_map.background == (BLACK,)
    assert converted.labels == ("polyp", "tool")
    assert [read_mask(converted.masks[case])[0].tolist() for case in "ab"] == [[0, 1, 2], [2, 2]]
    assert converted.understood == f"colours of 2 masks are labels, named by {file}: polyp red, tool green"
    assert not converted.problems


def test_a_background_that_is_not_black_is_background_and_black_too(tmp_path, add_mask):
    (tmp_path / "labelmap.txt").write_text("Background:9,9,9::\npolyp:255,0,0::\n")
    mask = add_mask("a.png", (9, 9, 9), BLACK, RED)

    converted = convert_colours({"a": mask}, tmp_path / "workspace", tmp_path, find_label_map(tmp_path))

    assert read_mask(converted.masks["a"])[0].tolist() == [0, 0, 1]


def test_a_label_may_be_black(tmp_path):
    (tmp_path / "labelmap.txt").write_text("background:255,255,255::\nhole:0,0,0::\n")

    label_map = find_label_map(tmp_path)

    assert (label_map.labels, label_map.background) == ({"hole": BLACK}, ((255, 255, 255),))


def test_other_files_name_no_colours(tmp_path):
    for name, text in {
        "labelmap.md": "a:1,2,3",
        "groups.csv": "name,patient\na,1\n",
        "empty.csv": "",
        "dataset.json": '{"labels": {"background": 0}}',
        "empty.json": "{}",
        "broken.json": "{",
        "list.json": "[1]",
        "notes.txt": "a:1,2,3",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.csv").write_bytes(b"\xe4")

    assert find_label_map(tmp_path) is None


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("labelmap.txt", "polyp 255,0,0", "labelmap.txt: line 1: '' is no colour: give red, green and blue"),
        ("labelmap.txt", "\npolyp:255,0::", "labelmap.txt: line 2: '255,0' is no colour"),
        ("labelmap.txt", "polyp:255,0,-1::", "line 1: '255,0,-1' is no colour"),
        ("labelmap.txt", "polyp:256,0,0::", r"line 1: colour \(256, 0, 0\) is not within 0 to 255: correct it"),
        ("labelmap.txt", "a:1,2,3::\nb:1,2,3::", r"line 2: b or its colour \(1, 2, 3\) is named twice: keep one"),
        ("labelmap.txt", "a:1,2,3::\na:255,0,0::", "line 2: a or its colour red is named twice"),
        ("c.csv", "name,r,g,b\na,1,2\n", "c.csv: line 2: has 3 fields, the header 4: correct the line"),
        ("c.csv", "name,r,g,b\na,1,2,x\n", "line 2: '1,2,x' is no colour"),
        ("c.json", '{"a": [0, 0, 300]}', r"c.json: entry 'a': colour \(0, 0, 300\) is not within"),
    ],
)
def test_a_faulty_label_map_is_named_by_file_and_line(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)

    with pytest.raises(FileError, match=message):
        read_label_map(tmp_path / file)


def test_two_label_maps_must_agree(tmp_path):
    (tmp_path / "a.json").write_text('{"polyp": [255, 0, 0]}')
    (tmp_path / "b.json").write_text('{"polyp": [255, 0, 0]}')
    assert find_label_map(tmp_path).labels == {"polyp": RED}

    (tmp_path / "b.json").write_text('{"polyp": [255, 0, 1]}')
    with pytest.raises(DatasetError, match=r"a.json and .*b.json name different colours: keep the true one"):
        find_label_map(tmp_path)


def test_colours_without_names_are_numbered_from_the_most_frequent_over_all_masks(tmp_path, add_mask):
    masks = {"a": add_mask("a.png", BLACK, RED, RED, GREEN), "b": add_mask("b.png", GREEN, GREEN, BLUE, BLACK)}

    converted = convert_colours(masks, tmp_path / "workspace", tmp_path, None)

    assert converted.labels == ("label_1", "label_2", "label_3")
    assert [read_mask(converted.masks[case])[0].tolist() for case in "ab"] == [[0, 2, 2, 1], [1, 1, 3, 0]]
    assert converted.understood.endswith("numbered by frequency: label_1 green, label_2 red, label_3 blue")


def test_grey_masks_are_no_colour_masks(tmp_path, add_mask):
    masks = {"a": add_mask("a.png", BLACK, (255, 255, 255)), "b": add_mask("b.png", (3, 3, 3))}

    assert convert_colours(masks, tmp_path / "workspace", tmp_path, None) is None


def test_blended_edges_are_named_in_each_mask_that_has_them(tmp_path, add_mask):
    masks = {"a": add_mask("a.png", BLACK, *[RED] * 99), "b": add_mask("b.png", BLACK, *[RED] * 99)}
    with Image.open(masks["b"]) as image:
        image.putpixel((0, 0), (128, 0, 1))
        image.putpixel((0, 1), (64, 0, 1))
        image.save(masks["b"])

    converted = convert_colours(masks, tmp_path / "workspace", tmp_path, None)

    assert whats(converted) == [
        ("fault", "b.png", "mask has 4 colours, of which 2 are no label's (first (64, 0, 1); 2 pixels)")
    ]
    assert ([*converted.masks], converted.faulty) == (["a"], ("b",))


def test_a_colour_the_label_map_does_not_name_is_a_fault(tmp_path, add_mask):
    (tmp_path / "labelmap.txt").write_text("polyp:255,0,0::\n")
    mask = add_mask("a.png", BLACK, RED, BLUE)

    converted = convert_colours({"a": mask}, tmp_path / "workspace", tmp_path, find_label_map(tmp_path))

    assert whats(converted) == [
        ("fault", "a.png", "mask has 3 colours, of which 1 are no label's (first blue; 200 pixels)")
    ]
    assert not converted.masks


def test_more_colours_than_labels_may_be_without_names_are_a_fault(tmp_path, add_mask):
    mask = add_mask("a.png", BLACK, *[(10 * i, 0, 1) for i in range(9)])

    converted = convert_colours({"a": mask}, tmp_path / "workspace", tmp_path, None)

    ((level, file, what),) = whats(converted)
    assert (level, file) == ("fault", "masks")
    assert what.startswith("masks have 9 colours ((0, 0, 1), (10, 0, 1)")
    assert (converted.masks, converted.labels, converted.faulty) == ({}, (), ("a",))


def test_without_black_and_without_names_nothing_is_known_for_background(tmp_path, add_mask):
    converted = convert_colours({"a": add_mask("a.png", RED, BLUE)}, tmp_path / "workspace", tmp_path, None)

    assert whats(converted) == [("fault", "masks", "no mask has black, which stands for background")]


def test_a_photograph_and_a_broken_file_are_no_masks(tmp_path, add_mask):
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"PNG")
    masks = {"a": add_mask("a.png", BLACK, RED), "b": tmp_path / "photo.png", "c": tmp_path / "broken.png"}

    converted = convert_colours(masks, tmp_path / "workspace", tmp_path, None)

    assert [(problem.file, problem.what) for problem in converted.problems] == [
        ("photo.png", "mask has more than 4096 colours"),
        ("broken.png", "is not a readable PNG, JPEG, BMP or TIFF image, whatever its name says"),
    ]
    assert ([*converted.masks], converted.faulty) == (["a"], ("b", "c"))


def test_palettes_that_differ_are_named_and_colours_count(tmp_path, add_palette_mask):
    masks = {
        "a": add_palette_mask("a.png", [0, 1], [BLACK, RED, GREEN]),
        "b": add_palette_mask("b.png", [0, 1, 2], [BLACK, GREEN, RED]),
    }
    (tmp_path / "labelmap.txt").write_text("polyp:255,0,0::\ntool:0,255,0::\n")

    unnamed = convert_colours(masks, tmp_path / "workspace", tmp_path, None)
    named = convert_colours(masks, tmp_path / "workspace", tmp_path, find_label_map(tmp_path))

    assert whats(unnamed) == [("fault", "b.png", "value 1 is red in a.png and green in b.png")]
    assert whats(named) == [("note", "b.png", "value 1 is red in a.png and green in b.png")]
    assert [read_mask(named.masks[case])[0].tolist() for case in "ab"] == [[0, 1], [0, 2, 1]]


def test_masks_in_colour_are_written_again_only_when_they_or_the_names_change(tmp_path, add_mask):
    masks = {"a": add_mask("a.png", BLACK, RED), "b": add_mask("b.png", BLACK, RED)}
    folder = tmp_path / "workspace"
    first = convert_colours(masks, folder, tmp_path, None)
    times = {case: path.stat().st_mtime_ns for case, path in first.masks.items()}

    add_mask("b.png", RED, BLACK)
    second = convert_colours(masks, folder, tmp_path, None)

    assert second.masks["a"].stat().st_mtime_ns == times["a"]
    assert read_mask(second.masks["b"])[0].tolist() == [1, 0]
    assert [*convert_colours({"a": masks["a"]}, folder, tmp_path, None).masks] == ["a"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.png"]
