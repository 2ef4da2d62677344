import dataclasses
import json

import numpy as np
import pytest

from iaunet.dataset import Dataset, MaskCoding, Slicing, Source
from iaunet.errors import PlanError
from iaunet.planners.plan import InferencePlan, NetworkPlan, Normalisation, Plan, content_digest, load_plan, save_plan
from iaunet.planners.planner import find_planner
from iaunet.planners.recipes import Augmentation, Recipe
from iaunet.records import FieldError, to_json


@pytest.fixture(scope="session")
def plan(case, fingerprint):
    dataset = Dataset(
        name="toy",
        source=Source(root="/raw"),
        understood="",
        labels=("polyp",),
        coding=MaskCoding(kind="values", values=(255,), written=(255,)),
        cases=(),
    )
    return find_planner("auto").plan(dataset, fingerprint([case("a"), case("b")]))


@pytest.fixture
def load_edited(plan, tmp_path):
    """Reads the plan back after its file was changed at a path of keys."""

    def load_edited(path, value):
        content = to_json(plan)
        *outer, last = path
        place = content
        for key in outer:
            place = place[key]
        place[last] = value
        (tmp_path / "plan.json").write_text(json.dumps(content))
        return load_plan(tmp_path / "plan.json")

    return load_edited


def fields_of(kind, path=()):
    """The path of every field of a record and of those in it."""
    hints = {
        "coding": MaskCoding,
        "slicing": Slicing,
        "normalisation": Normalisation,
        "network": NetworkPlan,
        "recipe": Recipe,
        "augmentation": Augmentation,
        "inference": InferencePlan,
    }
    for field in dataclasses.fields(kind):
        yield (*path, field.name)
        if field.name in hints:
            yield from fields_of(hints[field.name], (*path, field.name))


@pytest.mark.parametrize("path", [*fields_of(Plan)], ids=".".join)
def test_nonsense_in_any_field_is_answered_with_the_field_and_what_is_allowed(load_edited, path):
    with pytest.raises(PlanError) as caught:
        load_edited(path, {"x": [None]} if path[-1] not in ("why", "options") else 3)

    message = str(caught.value)
    assert f"plan.json: {'.'.join(path)}" in message
    assert ": give " in message or "is missing" in message or "is not known here: the fields are" in message
    assert message.endswith("; correct it, or run iaunet_plan_and_preprocess with --replan for a new plan")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["version"], 1, "version is 1: give 2, or plan again"),
        (["channels"], 0, "channels is 0: give a whole number from 1 to 64"),
        (["channels"], 3, r"normalisation.mean is \(100.0,\): give 3 numbers, one a channel"),
        (["labels"], [], r"labels is \(\): give 1 to 255 different names"),
        (["labels"], ["a", "a"], r"labels is \('a', 'a'\): give 1 to 255 different names"),
        (["labels"], ["a", "b"], r"coding is \(\(1,\),\): give 2 labels or regions, as in labels"),
        (["coding", "written"], [], r"coding.written is \(\): give a different value from 1 to 65535 for each label"),
        (["coding", "values"], [], r"coding.values is \(\): give 1 different values other than 0 and the ign"),
        (["coding", "kind"], "binary", r"coding.values is \(255,\): give none, as binary masks have one label"),
        (["channels"], 65, "channels is 65: give a whole number from 1 to 64"),
        (["coding", "ignore"], 255, r"coding.values is \(255,\): give 1 different values other than 0 and the ign"),
        (["coding", "regions"], [[1]], r"coding.regions is \(\(1,\),\): give lists of the values \(255,\)"),
        (["coding", "regions_class_order"], [255], r"coding.regions_class_order is \(255,\): give one of the values"),
        (["slicing", "slice_axis"], "oblique", "slicing.slice_axis is 'oblique': give one of 'axial', 'coronal', 'sag"),
        (["tile_scale"], 0, "tile_scale is 0.0: give a number above 0, 1 at most"),
        (["tile_scale"], 1.5, "tile_scale is 1.5: give a number above 0, 1 at most"),
        (
            ["normalisation", "windows"],
            [[0, 1], [0, 1]],
            "normalisation.windows is .*: give a lowest and a highest value",
        ),
        (["normalisation", "windows"], [[1, 1]], r"normalisation.windows is \(\(1.0, 1.0\),\): give rising pairs"),
        (["input_mode"], "crop", "input_mode is 'crop': give one of 'resize', 'letterbox', 'tiles'"),
        (
            ["input_size"],
            [100, 256],
            r"input_size is \(100, 256\): give two sides from 32 to 2048 that are multiples of",
        ),
        (["input_size"], [256], r"input_size is \[256\]: give a list of 2"),
        (["input_size"], [0, 256], r"input_size is \(0, 256\): give two sides"),
        (["normalisation", "mean"], [], r"normalisation.mean is \(\): give a number for each channel"),
        (["normalisation", "mean"], [None], r"normalisation.mean is \(nan,\): give a number for each channel"),
        (["normalisation", "sd"], [1, 2], r"normalisation.sd is \(1.0, 2.0\): give 1 numbers, as in mean"),
        (["normalisation", "sd"], [-1], r"normalisation.sd is \(-1.0,\): give numbers of 0 or more"),
        (
            ["normalisation", "percentiles"],
            [99, 1],
            r"normalisation.percentiles is \(99.0, 1.0\): give two rising numbers",
        ),
        (
            ["network", "name"],
            "resnet",
            "network.name and options do not fit: unknown network 'resnet': choose one of iau",
        ),
        (
            ["network", "options", "max_keys"],
            "many",
            "network.name and options do not fit: option 'max_keys' .*: give int",
        ),
        (
            ["network", "options", "max_keys"],
            [1],
            r"network.options.max_keys is \[1\]: give a text in quotes or a whole",
        ),
        (["network", "options", "heads"], 3, "network.name and options do not fit: .* has no option 'heads'"),
        (["network", "width"], 0, "network.width is 0: give a whole number from 1 to 1024"),
        (["network", "depth"], 9, "network.depth is 9: give a whole number from 3 to 6"),
        (["recipe", "lr"], 0, "recipe.lr is 0.0: give a number above 0, 1 at most"),
        (["recipe", "lr"], None, "recipe.lr is nan: give a number above 0"),
        (["recipe", "epochs"], 1e400, "recipe.epochs is inf: give a whole number"),
        (["recipe", "optimiser"], "sgd", "recipe.optimiser is 'sgd': give one of 'adam', 'adamw'"),
        (
            ["recipe", "augmentation", "gamma"],
            [2, 1],
            r"recipe.augmentation.gamma is \(2.0, 1.0\): give a lower and an upp",
        ),
        (["inference", "thresholds"], [0.5, 0.5], r"inference.thresholds is \(0.5, 0.5\): give 1 numbers, one a label"),
        (["inference", "thresholds"], [1], r"inference.thresholds is \(1.0,\): give probabilities between 0 and 1"),
        (["split"], "mine", "split is 'mine': give one of 'random', 'grouped'"),
        (["colour"], "red", "colour is not known here: the fields are version, planner, dataset"),
    ],
)
def test_a_plan_edited_to_nonsense_is_answered_with_the_field_and_the_allowed_values(load_edited, path, value, message):
    with pytest.raises(PlanError, match=rf"plan\.json: {message}"):
        load_edited(path, value)


def test_a_missing_field_and_a_missing_file_are_named(plan, tmp_path):
    content = to_json(plan)
    del content["recipe"]["name"]
    (tmp_path / "plan.json").write_text(json.dumps(content))

    with pytest.raises(PlanError, match=r"plan\.json: recipe\.name is missing; correct it"):
        load_plan(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="is missing: run iaunet_plan_and_preprocess first"):
        load_plan(tmp_path / "nowhere.json")


def test_a_strangers_network_is_not_run_to_check_a_file(load_edited):
    assert load_edited(["network", "name"], "no_such_package:build").network.name == "no_such_package:build"


def test_normalisation_image_by_image_needs_no_numbers_a_channel(load_edited):
    by_case = {"kind": "case", "percentiles": [0.5, 99.5]}

    assert load_edited(["normalisation"], by_case).normalisation.percentiles == (0.5, 99.5)


@pytest.mark.parametrize(
    ("path", "value", "is_edited", "changes_arrays"),
    [
        (["recipe", "lr"], 0.01, True, False),
        (["network", "width"], 8, True, False),
        (["input_mode"], "letterbox", True, True),
        (["input_size"], [128, 128], True, True),
        (["normalisation", "mean"], [99.0], True, True),
        (["normalisation", "windows"], [[0, 200]], True, True),
        (["input_mode"], "tiles", True, True),
        (["tile_scale"], 0.5, True, True),
        (["equal_spacing"], True, True, True),
        (["slicing", "slice_axis"], "sagittal", True, True),
        (["channel_files"], 1, True, False),
        (["coding", "ignore"], 9, True, True),
        (["labels"], ["lesion"], True, False),
        (["why", "recipe"], "because", False, False),
        (["warnings"], [], False, False),
    ],
)
def test_an_edit_is_noticed_and_makes_new_arrays_only_if_they_depend_on_it(
    load_edited, plan, path, value, is_edited, changes_arrays
):
    edited = load_edited(path, value)

    assert edited.is_edited is is_edited
    assert (edited.arrays_digest != plan.arrays_digest) is changes_arrays
    assert (edited.preparation_digest != plan.preparation_digest) is changes_arrays


def test_other_data_prepared_alike_have_other_arrays_of_like_rows(plan):
    other = dataclasses.replace(plan, fingerprint="other")

    assert other.arrays_digest != plan.arrays_digest
    assert other.preparation_digest == plan.preparation_digest


def test_a_plan_decides_labels_by_the_most_probable_and_regions_by_their_order(plan):
    probabilities = np.array([[0.9, 0.9, 0.2, 0.6], [0.4, 0.6, 0.9, 0.7]], np.float32)
    inference = InferencePlan(mirroring=False, thresholds=(0.5, 0.5))
    labels = MaskCoding(kind="values", values=(4, 9), written=(4, 9))
    regions = dataclasses.replace(labels, regions=((4, 9), (9,)), regions_class_order=(4, 9))
    exclusive = dataclasses.replace(plan, labels=("a", "b"), coding=labels, inference=inference)
    nested = dataclasses.replace(plan, labels=("a", "b"), coding=regions, inference=inference)

    np.testing.assert_array_equal(exclusive.decide(probabilities), [1, 1, 2, 2])
    np.testing.assert_array_equal(nested.decide(probabilities), [1, 2, 2, 2])
    np.testing.assert_array_equal(regions.decode(nested.decide(probabilities)), [4, 9, 9, 9])


def test_regions_need_a_name_each(plan):
    regions = MaskCoding(
        kind="values", values=(1, 2), written=(1, 2), regions=((1, 2), (2,), (1,)), regions_class_order=(1, 2, 1)
    )

    with pytest.raises(FieldError, match=r"coding is .*: give 1 labels or regions, as in labels"):
        dataclasses.replace(plan, coding=regions)


def test_a_saved_plan_is_readable_and_read_back_equal(plan, tmp_path):
    save_plan(plan, tmp_path / "plan.json")

    assert '\n "input_mode": "resize",\n' in (tmp_path / "plan.json").read_text()
    assert load_plan(tmp_path / "plan.json") == plan
    assert plan.planned == content_digest(plan)
