"""Layouts of folders whose masks are made of something else, all of which may be faulty or missing."""

import json

import nibabel as nib
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


@pytest.mark.parametrize(
    ("shape", "options", "axis", "reason"),
    [
        ((20, 30, 1), {}, "axial", "one voxel thick"),
        ((20, 1, 30), {}, "coronal", "one voxel thick"),
        ((1, 20, 30), {}, "sagittal", "one voxel thick"),
        ((20, 30, 1), {"slice_axis": "coronal"}, "coronal", "as asked"),
        ((20, 30, 2), {}, "sagittal", "where spacing is coarsest"),
    ],
)
def test_volumes_one_voxel_thick_are_pictures_whatever_their_spacing(tmp_path, shape, options, axis, reason):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        voxels = np.zeros(shape, np.uint8)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.2, 1.0, 1.0])), tmp_path / part / "a.nii.gz")

    layout = understand(Source(root=str(tmp_path), **options), tmp_path / "workspace")

    assert layout.slicing.slice_axis == axis
    assert f", volumes cut into {axis} slices ({reason}; median spacing 1 x 1.2 x 1.5 mm)" in layout.understood


def test_an_image_among_images_of_longer_names_keeps_the_mask_of_its_own_name(tmp_path):
    masks = ("scan", "scan_2", "scan_4", "t_1", "t_2")
    for part, names in (("images", ("scan", "scan_2", "scan_3", "t")), ("masks", masks)):
        (tmp_path / part).mkdir()
        for i, name in enumerate(names):
            pixels = np.zeros((64, 80), np.uint8)
            pixels[10 * i : 10 * i + 9] = 255
            Image.fromarray(pixels).save(tmp_path / part / f"{name}.png")

    layout = understand(Source(root=str(tmp_path), missing_mask="skip"), tmp_path / "workspace")

    rows = {
        case.name: np.flatnonzero(np.asarray(Image.open(tmp_path / case.mask)).any(axis=1)) for case in layout.cases
    }
    assert {name: (where.min(), len(where)) for name, where in rows.items()} == {
        "scan": (0, 9),
        "scan_2": (10, 9),
        "t": (30, 18),
    }


def test_what_is_said_of_missing_masks_is_told_to_be_of_no_effect_on_a_dataset_of_nnunet(tmp_path):
    root = tmp_path / "Dataset001_Toy"
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(root / "imagesTr" / "a_0000.png")
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(root / "labelsTr" / "a.png")
    described = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "x": 1}, "file_ending": ".png"}
    (root / "dataset.json").write_text(json.dumps({**described, "numTraining": 1}))

    silent = understand(Source(root=str(root)), tmp_path / "masks")
    told = understand(Source(root=str(root), missing_mask="skip"), tmp_path / "masks")

    assert silent.problems == ()
    assert [(problem.level, problem.what) for problem in told.problems] == [
        ("note", "--missing_mask skip has no effect on a dataset of nnU-Net")
    ]
