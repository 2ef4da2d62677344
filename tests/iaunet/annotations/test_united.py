import numpy as np
import pytest
from PIL import Image

from iaunet.annotations.united import convert_united, group_masks, unite
from iaunet.errors import FileError
from iaunet.files import read_mask


@pytest.fixture
def add_mask(tmp_path):
    """Writes a mask of 4 x 5 pixels, or another size, with one pixel set."""

    def add_mask(name, pixel, value=255, size=(4, 5)):
        mask = np.zeros(size, np.uint8)
        mask[pixel] = value
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
        return path

    return add_mask


@pytest.mark.parametrize(
    ("images", "masks", "groups"),
    [
        (
            ["img"],
            ["img_mask2.png", "img_mask10.png", "img_mask1.png"],
            {"img": ["img_mask1.png", "img_mask2.png", "img_mask10.png"]},
        ),
        (
            ["img"],
            ["img_mask_1.png", "img-lesionA.png", "img (2).png", "img.3.png"],
            {"img": ["img (2).png", "img-lesionA.png", "img.3.png", "img_mask_1.png"]},
        ),
        (
            ["a", "b"],
            ["masks/a/0.png", "masks/a/1.png", "masks/b/0.png"],
            {"a": ["masks/a/0.png", "masks/a/1.png"], "b": ["masks/b/0.png"]},
        ),
        (["a", "b"], ["masks/b.png", "masks/a.png"], {"a": ["masks/a.png"], "b": ["masks/b.png"]}),
        (
            ["x1/x1", "x2/x2"],
            ["x1/masks/7f.png", "x1/masks/e0.png", "x2/masks/03.png"],
            {"x1/x1": ["x1/masks/7f.png", "x1/masks/e0.png"], "x2/x2": ["x2/masks/03.png"]},
        ),
        (["x1/images/x1"], ["x1/masks/7f.png"], {"x1/images/x1": ["x1/masks/7f.png"]}),
        (
            ["P1/a", "P2/a"],
            ["masks/P1/a_1.png", "P2/masks/a_1.png"],
            {"P1/a": ["masks/P1/a_1.png"], "P2/a": ["P2/masks/a_1.png"]},
        ),
        (
            ["img", "img_1"],
            ["img_1_a.png", "img_2.png", "img_10.png"],
            {"img": ["img_2.png", "img_10.png"], "img_1": ["img_1_a.png"]},
        ),
        (["v1.2", "ä"], ["v1.2_1.png", "a\u0308_1.png"], {"v1.2": ["v1.2_1.png"], "ä": ["a\u0308_1.png"]}),
        (["img1"], ["img10.png", "other.png", "masks/7.png", "_1.png"], {}),
        ([], ["a.png"], {}),
    ],
)
def test_masks_go_to_the_image_whose_name_they_begin_with_or_whose_folder_they_lie_in(images, masks, groups):
    assert group_masks(images, masks) == groups


def test_many_names_are_grouped_at_once():
    images = [f"P{i % 60}/images/img_{i}" for i in range(3000)]
    masks = [f"P{i % 60}/images/img_{i}_mask{k}.png" for i in range(3000) for k in range(10)]

    groups = group_masks(images, masks)

    assert [len(groups[image]) for image in images] == [10] * 3000


def test_masks_are_united_where_any_is_above_zero(add_mask):
    paths = [add_mask("a.png", (0, 0)), add_mask("b.png", (1, 1), value=3), add_mask("c.png", (0, 0))]

    united = unite(paths)

    assert united.dtype == np.uint8
    np.testing.assert_array_equal(np.argwhere(united == 1), [[0, 0], [1, 1]])
    assert united.sum() == 2


def test_masks_of_unlike_size_and_broken_ones_are_named(add_mask, tmp_path):
    good, small = add_mask("a.png", (0, 0)), add_mask("b.png", (0, 0), size=(3, 5))
    (tmp_path / "c.png").write_bytes(good.read_bytes()[:-30])

    with pytest.raises(FileError, match=r"b.png has 3 x 5 pixels, a.png has 4 x 5: give all masks"):
        unite([good, small])
    with pytest.raises(FileError, match=r"c.png: is not a readable PNG"):
        unite([good, tmp_path / "c.png"])
    with pytest.raises(ValueError, match="no masks to unite"):
        unite([])


def test_united_masks_are_written_once_and_again_when_a_part_changes(add_mask, tmp_path):
    groups = {
        "a": [add_mask("m/a_1.png", (0, 0)), add_mask("m/a_2.png", (1, 1))],
        "P/b": [add_mask("m/b_1.png", (2, 2))],
    }
    folder = tmp_path / "workspace"

    first = convert_united(groups, folder, tmp_path)
    times = {case: path.stat().st_mtime_ns for case, path in first.masks.items()}
    add_mask("m/a_2.png", (3, 3))
    second = convert_united(groups, folder, tmp_path)

    assert first.labels == ("foreground",)
    assert first.masks == {"a": folder / "a.png", "P/b": folder / "P" / "b.png"}
    assert first.understood == "3 mask files united to 2 masks, an image each, of one label"
    assert not first.problems
    np.testing.assert_array_equal(np.argwhere(read_mask(second.masks["a"])), [[0, 0], [3, 3]])
    assert {case for case, path in second.masks.items() if path.stat().st_mtime_ns != times[case]} == {"a"}


def test_faulty_groups_are_named_together_and_have_no_mask(add_mask, tmp_path):
    groups = {
        "a": [add_mask("m/a_1.png", (0, 0)), add_mask("m/a_2.png", (0, 0), size=(2, 2))],
        "b": [add_mask("m/b_1.png", (0, 0)), tmp_path / "m" / "gone.png"],
        "c": [add_mask("m/c_1.png", (0, 0))],
    }

    converted = convert_united(groups, tmp_path / "workspace", tmp_path)

    assert [*converted.masks] == ["c"]
    assert converted.faulty == ("a", "b")
    assert [(problem.file, problem.what) for problem in converted.problems] == [
        ("m", "a_2.png has 2 x 2 pixels, a_1.png has 4 x 5"),
        ("m", "gone.png cannot be read (No such file or directory)"),
    ]
