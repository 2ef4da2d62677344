"""Layouts of folders whose masks are made of something else, all of which may be faulty or missing."""

import json

import numpy as np
import pytest
from PIL import Image

from iaunet.dataset import Source
from iaunet.errors import DatasetError
from iaunet.preprocessing.layout import understand


@pytest.fixture
def understand_coco(tmp_path):
    """Understands a folder of two images of 64x80 px with this COCO file."""

    def understand_coco(images, annotations):
        root = tmp_path / "raw"
        root.mkdir()
        for name in ("a.png", "b.png"):
            Image.fromarray(np.full((64, 80, 3), 90, np.uint8)).save(root / name)
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
        (root / "labels.json").write_text(json.dumps(content))
        return understand(Source(root=str(root)), tmp_path / "masks")

    return understand_coco


def test_where_every_annotated_image_has_a_fault_each_fault_is_told(understand_coco):
    images = [{"id": i, "file_name": name, "height": 640, "width": 800} for i, name in enumerate(("a.png", "b.png"))]
    square = [[10, 10, 40, 10, 40, 40, 10, 40]]
    shapes = [{"id": i, "image_id": i, "category_id": 1, "segmentation": square} for i in range(2)]

    layout = understand_coco(images, shapes)

    assert layout.cases == ()
    assert [(problem.level, problem.what) for problem in layout.problems] == [
        ("fault", f"image {name}: annotated at 640 x 800 pixels, it has 64 x 80") for name in ("a", "b")
    ]


def test_annotations_of_nothing_are_no_masks(understand_coco):
    with pytest.raises(DatasetError, match="holds 2 images and no masks: put the masks in a folder 'masks'"):
        understand_coco([], [])
