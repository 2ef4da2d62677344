import csv
import json
from functools import partial
from importlib import import_module
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from iaunet.inference.evaluate_command import main as evaluate
from iaunet.inference.predict_command import main as predict
from iaunet.planners.plan import load_plan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.preprocessing.command import main
from iaunet.trainers.command import main as train

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parent))
    forms = import_module("forms")

NARROW = ("--width", 1)  # the time of training is estimated sooner

PICTURES = {
    "folders": (forms.write_pictures, ("foreground",)),
    "one folder": (forms.write_side_by_side, ("foreground",)),
    "nnU-Net in colour": (forms.write_nnunet, ("polyp",)),
    "nnU-Net with a file a channel": (partial(forms.write_nnunet, a_file_a_channel=True), ("polyp",)),
    "Labelme polygons": (forms.write_labelme, ("polyp",)),
    "Labelme masks": (partial(forms.write_labelme, as_masks=True), ("polyp",)),
    "COCO polygons": (forms.write_coco, ("polyp",)),
    "COCO run lengths": (partial(forms.write_coco, code="plain"), ("polyp",)),
    "COCO compressed": (partial(forms.write_coco, code="compressed"), ("polyp",)),
    "YOLO": (forms.write_yolo, ("polyp",)),
    "run lengths in a table": (forms.write_table, ("foreground",)),
    "named colours": (forms.write_coloured, ("polyp",)),
    "palettes": (forms.write_palettes, ("label_1",)),
    "several masks": (forms.write_several, ("foreground",)),
    "NIfTI slices": (forms.write_nifti, ("foreground",)),
}
"""Forms in which each picture is a case, and the names their labels get."""

MAIN = ("folders", "nnU-Net in colour", "Labelme polygons", "COCO compressed", "YOLO", "named colours", "several masks")
"""Those of `PICTURES` that are tried without real data as well."""

STACKS = {
    "NIfTI": (forms.write_volumes, True),
    "NIfTI, other axes": (partial(forms.write_volumes, orientation="RAS"), True),
    "TIFF": (forms.write_tiffs, False),
    "DICOM": (forms.write_series, True),
}
"""Forms in which several pictures are a case, and whether their slices are kept from head to feet."""


@pytest.fixture
def prepared(tmp_path, capsys):
    """Plans and preprocesses a folder; gives its arrays, labels and what was printed."""

    def prepared(root, *options):
        workspace = tmp_path / "workspace"
        given = ["--workspace", workspace, *NARROW, "--workers", 1, "--folds", 2, *options]
        code = main([*map(str, (root, *given))])
        printed = capsys.readouterr()
        assert (code, printed.err) == (0, "")
        folder = workspace / root.name
        plan = load_plan(folder / "plan.json")
        return open_arrays(folder / "preprocessed", plan.arrays_digest), plan.labels, printed.out

    return prepared


@pytest.fixture(scope="session")
def drawn(polygon):
    """A case of `forms` from a picture and its mask."""
    return lambda name, picture, mask: forms.Drawn(name, picture, mask, polygon(mask) if mask.any() else [])


@pytest.fixture(scope="session")
def ellipses(write_toy, drawn, tmp_path_factory):
    """Ten generated cases."""
    toy = write_toy(tmp_path_factory.mktemp("ellipses") / "toy", 10)
    paths = sorted((toy / "images").iterdir())
    return [drawn(path.stem, pixels(path), pixels(toy / "masks" / path.name) > 0) for path in paths]


@pytest.fixture(scope="session")
def frames(real_data, drawn):
    """Every 30th frame of CVC-ClinicDB, 20 of them, with its mask."""
    cases = []
    for number in range(1, 600, 30):
        picture = pixels(real_data / "CVC-ClinicDB" / "images" / f"{number}.jpg")
        cases.append(drawn(f"f{number}", picture, pixels(real_data / "CVC-ClinicDB" / "masks" / f"{number}.png") > 0))
    return cases


def pixels(path):
    return np.asarray(Image.open(path))


def assert_each_mask_is_kept(arrays, cases):
    assert {*arrays.cases} == {case.name for case in cases}
    for case in cases:
        np.testing.assert_array_equal(arrays.truth(case.name), case.mask[None].astype(np.uint8), case.name)


def assert_each_stack_is_kept(arrays, cases, from_head):
    stacks = forms.stacked(cases)
    assert {*arrays.cases} == {*stacks}
    for name, stack in stacks.items():
        truth = forms.truth_of(stack)
        np.testing.assert_array_equal(arrays.truth(name), truth[::-1] if from_head else truth, name)


def grouped(cases):
    """Pictures of one, two and three cases side by side, so that they hold different numbers of components."""
    pictures, start = [], 0
    for i in range(len(cases)):
        n = 1 + i % 3
        if start + n > len(cases):
            return pictures
        pictures.append(forms.side_by_side(cases[start : start + n]))
        start += n
    return pictures


@pytest.mark.parametrize("form", MAIN)
def test_a_mask_is_the_same_in_every_form(form, ellipses, tmp_path, prepared):
    write, labels = PICTURES[form]
    write(tmp_path / "toy", ellipses)

    arrays, found, _ = prepared(tmp_path / "toy")

    assert found == labels
    assert_each_mask_is_kept(arrays, ellipses)


@pytest.mark.parametrize("form", STACKS)
def test_slices_keep_their_masks_and_pictures_in_every_form(form, ellipses, tmp_path, prepared):
    write, from_head = STACKS[form]
    write(tmp_path / "toy", ellipses)

    arrays, found, _ = prepared(tmp_path / "toy")

    assert found == ("foreground",)
    assert_each_stack_is_kept(arrays, ellipses, from_head)
    for name, stack in forms.stacked(ellipses).items():
        rows = [i for i, row in enumerate(arrays.index.rows) if row.case == name]
        for row, case in zip(rows, stack[::-1] if from_head else stack, strict=True):
            shown = np.asarray(Image.fromarray(case.grey).resize((256, 256), Image.Resampling.BILINEAR))
            assert np.corrcoef(arrays.images[row, 0].ravel(), shown.ravel())[0, 1] > 0.99


def test_numbered_components_are_one_label(ellipses, tmp_path, prepared):
    cases = grouped(ellipses)
    forms.write_instances(tmp_path / "toy", cases)

    arrays, found, printed = prepared(tmp_path / "toy")

    assert found == ("foreground",)
    assert "note: masks: values up to 3 number connected components: read as one label" in printed
    assert_each_mask_is_kept(arrays, cases)


@pytest.mark.real_data
@pytest.mark.parametrize("form", PICTURES)
def test_real_masks_are_the_same_in_every_form(form, frames, tmp_path, prepared):
    write, labels = PICTURES[form]
    write(tmp_path / "frames", frames)

    arrays, found, _ = prepared(tmp_path / "frames", "--groups", "none")

    assert found == labels
    assert_each_mask_is_kept(arrays, frames)


@pytest.mark.real_data
@pytest.mark.parametrize("form", STACKS)
def test_real_slices_keep_their_masks_in_every_form(form, frames, tmp_path, prepared):
    write, from_head = STACKS[form]
    write(tmp_path / "frames", frames)

    arrays, found, _ = prepared(tmp_path / "frames", "--slice_axis", "axial")

    assert found == ("foreground",)
    assert_each_stack_is_kept(arrays, frames, from_head)


@pytest.mark.real_data
def test_real_numbered_components_are_one_label(frames, tmp_path, prepared):
    cases = grouped(frames)
    forms.write_instances(tmp_path / "frames", cases)

    arrays, found, _ = prepared(tmp_path / "frames")

    assert found == ("foreground",)
    assert_each_mask_is_kept(arrays, cases)


def two_labels(stack):
    """Labels [slices, height, width]: 1, and 2 right of the first third of the picture."""
    labels = forms.truth_of(stack)
    labels[..., labels.shape[-1] // 3 :] *= 2
    return labels


def make_small(plan):
    """Plan for a narrow network, a small input and two epochs."""
    plan["input_size"] = [64, 64]
    plan["network"] = {"name": "unet", "width": 4, "depth": 3}
    plan["recipe"] |= {"epochs": 2, "batch_size": 4, "lr": 0.02}


def test_volumes_of_two_orientations_and_two_labels_go_all_the_way(tmp_path, prepared):
    raw, new, out, truth = (tmp_path / name for name in ("heads", "new", "out", "truth"))
    stacks = forms.stacked(forms.boxes(6 * forms.SLICES, (40, 48)))
    for number, (name, stack) in enumerate(stacks.items()):
        orientation = ("LPS", "RAS")[number % 2]
        volume = np.stack([case.grey for case in stack])
        forms.save_nifti(raw / "images" / f"{name}.nii.gz", volume, orientation)
        forms.save_nifti(raw / "masks" / f"{name}.nii.gz", two_labels(stack), orientation)
        forms.save_nifti(new / f"{name}.nii.gz", volume, orientation)
    arrays, labels, _ = prepared(raw)
    assert labels == ("label_1", "label_2")
    for name, stack in stacks.items():
        np.testing.assert_array_equal(arrays.truth(name), two_labels(stack)[::-1])
    plan = tmp_path / "workspace" / "heads" / "plan.json"
    network, recipe = {"name": "unet", "width": 4, "depth": 3}, {"epochs": 2, "batch_size": 4, "lr": 0.02}
    forms.edit_json(
        plan, lambda plan: plan.update(input_size=[64, 64], network=network, recipe=plan["recipe"] | recipe)
    )
    prepared(raw)
    given = ["--workspace", str(tmp_path / "workspace")]

    assert train(["heads", "0", *given]) == 0
    assert predict(["-i", str(new), "-o", str(out), "-d", "heads", "-f", "0", *given]) == 0
    forms.save_nifti(truth / "s0.nii.gz", two_labels(stacks["s0"]), "RAS")  # lies as its image, written otherwise
    forms.save_nifti(truth / "s1.nii.gz", two_labels(stacks["s1"]), "LPS")
    for name in ("s2", "s3", "s4", "s5"):
        (truth / f"{name}.nii.gz").write_bytes((raw / "masks" / f"{name}.nii.gz").read_bytes())
    assert evaluate(["--pred", str(out), "--truth", str(truth), "--output", str(tmp_path / "scores")]) == 0
    assert evaluate(["--pred", str(raw / "masks"), "--truth", str(truth), "--output", str(tmp_path / "best")]) == 0

    for path in sorted(new.iterdir()):
        image, mask = nibabel.load(path), nibabel.load(out / path.name)
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert mask.shape == image.shape
        assert {*np.unique(mask.dataobj)} <= {0, 1, 2}
        found, true = (np.asarray(volume.dataobj) > 0 for volume in (mask, nibabel.load(raw / "masks" / path.name)))
        assert found.any()
        assert (found & true).sum() > 0.8 * found.sum()  # where it is elsewhere they share a twelfth
    with (tmp_path / "scores" / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert [(row["case"], row["label"]) for row in rows] == [(name, label) for name in stacks for label in labels]
    best = json.loads((tmp_path / "best" / "summary.json").read_text(encoding="utf-8"))["summary"]["labels"]
    assert [label["all_cases"]["dice"]["mean"] for label in best.values()] == [1, 1]
