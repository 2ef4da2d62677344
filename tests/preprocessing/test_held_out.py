"""A held-out test set whose labels are those of the training data, or is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from iaunet.preprocessing.command import main

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture
def check(tmp_path, capsys):
    """Reads a training and a test set; gives the exit code and what was said."""

    def check(training, test, *options):
        arguments = [str(training), "--workspace", str(tmp_path / "workspace"), "--workers", "1", "--verify_only"]
        code = main([*arguments, "--test", str(test), *options])
        return code, "".join(capsys.readouterr())

    return check


def picture(number):
    """Noise [64, 80, 3] uint8, unlike that of another number."""
    return np.random.default_rng(number).integers(0, 255, (64, 80, 3), dtype=np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_coco(root, first, *drawn):
    """Six images from number ``first`` on, a square of each of the labels in turn; cat and dog are the classes."""
    images, annotations = [], []
    for number in range(first, first + 6):
        save(root / f"i{number}.png", picture(number))
        images.append({"id": number, "file_name": f"i{number}.png", "height": 64, "width": 80})
        left, label = 10 + number % 6, drawn[number % len(drawn)]
        square = [left, 10, left + 30, 10, left + 30, 40, left, 40]
        category = ("cat", "dog").index(label) + 1
        annotations.append({"id": number, "image_id": number, "category_id": category, "segmentation": [square]})
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "labels.json").write_text(json.dumps(content))
    return root


def write_colours(root, first, *colours):
    """Six images from number ``first`` on, a part of each mask in each colour, the first the largest."""
    for number in range(first, first + 6):
        mask = np.zeros((64, 80, 3), np.uint8)
        for i, colour in enumerate(colours):
            mask[5 + 25 * i : 25 + 20 * i, 10 : 30 + number % 6] = colour
        save(root / "images" / f"i{number}.png", picture(number))
        save(root / "masks" / f"i{number}.png", mask)
    return root


def test_a_test_set_with_the_labels_of_the_training_data_is_taken(tmp_path, check):
    training = write_coco(tmp_path / "training", 0, "cat", "dog")

    code, said = check(training, write_coco(tmp_path / "test", 10, "cat", "dog"))

    assert (code, "fault" in said) == (0, False)


def test_a_test_set_whose_values_stand_for_other_labels_is_refused(tmp_path, check):
    training = write_coco(tmp_path / "training", 0, "cat", "dog")
    test = write_coco(tmp_path / "test", 10, "dog")

    code, said = check(training, test)

    assert code == 2
    assert "test set: masks: labels are dog, those of the training data cat, dog: save its masks with the" in said
    code, said = check(training, test, "--skip_faulty")
    assert (code, "labels are dog" in said, "test set   " in said) == (0, True, False)


def test_labels_that_begin_as_those_of_the_training_data_have_their_values(tmp_path, check):
    training = write_coco(tmp_path / "training", 0, "cat", "dog")

    assert check(training, write_coco(tmp_path / "test", 10, "cat"))[0] == 0


def test_colours_without_names_do_not_tell_which_label_they_are(tmp_path, check):
    training = write_colours(tmp_path / "training", 0, RED, GREEN)
    test = write_colours(tmp_path / "test", 10, GREEN, RED)

    code, said = check(training, test)

    assert code == 2
    assert "test set: masks: colours are numbered by frequency here: name them in a labelmap.txt" in said
    for root in (training, test):
        (root / "labelmap.txt").write_text("cell:255,0,0::\nwall:0,255,0::\n")
    assert check(training, test)[0] == 0


def test_a_sole_colour_needs_no_name(tmp_path, check):
    training = write_colours(tmp_path / "training", 0, RED)

    assert check(training, write_colours(tmp_path / "test", 10, GREEN))[0] == 0
