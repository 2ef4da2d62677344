import pytest

from iaunet.dataset import Dataset, MaskCoding, Slicing, Source
from iaunet.errors import PlanError
from iaunet.planners.histogram import Intensity
from iaunet.planners.plan import load_plan, save_plan
from iaunet.planners.planner import NO_GROUPS, PLANNERS, AutoPlanner, find_planner
from iaunet.records import FieldError


def make_dataset(**fields):
    usual = {
        "name": "toy",
        "source": Source(root="/raw"),
        "understood": "",
        "labels": ("foreground",),
        "coding": MaskCoding(kind="values", values=(255,), written=(255,)),
        "cases": (),
    }
    return Dataset(**(usual | fields))


@pytest.fixture
def measured(case, fingerprint):
    return fingerprint([case(f"c{i}") for i in range(100)])


@pytest.mark.parametrize("name", PLANNERS)
def test_a_plan_explains_each_choice_and_is_as_planned_when_read_back(name, measured, tmp_path):
    plan = find_planner(name).plan(make_dataset(), measured)
    save_plan(plan, tmp_path / "plan.json")

    assert load_plan(tmp_path / "plan.json") == plan
    assert not load_plan(tmp_path / "plan.json").is_edited
    assert plan.planner == name
    assert plan.fingerprint == measured.digest
    assert set(plan.why) == {"input_mode", "normalisation", "network", "recipe", "inference", "split"}
    assert all(plan.why.values())


def test_the_papers_planner_gives_the_papers_recipe_and_no_mirroring(measured):
    plan = find_planner("paper").plan(make_dataset(), measured)

    assert (plan.recipe.name, plan.recipe.epochs, plan.inference.mirroring) == ("paper", 500, False)
    assert plan.input_mode == "resize"


def test_the_default_planner_gives_the_best_recipe_for_as_long_as_the_data_ask(measured):
    plan = find_planner("auto").plan(make_dataset(), measured)

    assert (plan.recipe.name, plan.recipe.epochs, plan.inference.mirroring) == ("best", 500, True)
    assert "80 training cases are 5 steps of 16" in plan.why["recipe"]


def test_a_width_as_asked_is_planned_and_said_so(measured):
    usual = find_planner("auto").plan(make_dataset(), measured)
    narrow = find_planner("auto").plan(make_dataset(), measured, width=8)

    assert (usual.network.width, usual.network.options["max_keys"]) == (64, 1024)
    assert (narrow.network.width, narrow.network.options["max_keys"]) == (8, 256)
    assert "; width 8 as asked instead of 64, and so narrow a network" in narrow.why["network"]
    assert "as asked" not in usual.why["network"]
    with pytest.raises(FieldError, match="width is 0: give a whole number from 1 to 1024"):
        find_planner("auto").plan(make_dataset(), measured, width=0)


def test_there_is_a_threshold_and_a_written_value_a_label(case, fingerprint):
    labels = ("disc", "cup")
    coding = MaskCoding(kind="values", values=(1, 2), written=(1, 2))

    plan = find_planner("auto").plan(
        make_dataset(labels=labels, coding=coding), fingerprint([case("a")], labels=labels)
    )

    assert plan.inference.thresholds == (0.5, 0.5)
    assert plan.labels == labels


def test_what_weakens_the_scores_is_warned_of(case, fingerprint):
    thin = fingerprint([case("a", size=(256, 256), ceiling=0.84, width=1.3)], shared_look=7)

    assert find_planner("auto").plan(make_dataset(groups={"a": "p"}), fingerprint([case("a")])).warnings == ()
    lost, no_groups, shared = find_planner("auto").plan(make_dataset(), thin).warnings
    assert lost == "no network working at 256 x 256 can score a median Dice above 0.84 on these masks"
    assert no_groups == NO_GROUPS
    assert shared == "7 cases look alike in large groups: taken for a shared look, not for duplicates"


def test_what_the_data_set_says_of_its_files_is_planned(case, fingerprint):
    coding = MaskCoding(
        kind="values", values=(1, 2), written=(1, 2), regions=((1, 2), (2,)), regions_class_order=(1, 2), ignore=3
    )
    dataset = make_dataset(
        labels=("whole", "part"),
        coding=coding,
        slicing=Slicing(slice_axis="coronal"),
        channel_kinds=("zscore",),
        channel_files=1,
    )

    plan = find_planner("auto").plan(dataset, fingerprint([case("a", slices=20)], labels=("label_1", "label_2")))

    assert (plan.labels, plan.coding, plan.inference.thresholds) == (("whole", "part"), coding, (0.5, 0.5))
    assert (plan.slicing.slice_axis, plan.channel_files, plan.recipe.draws_a_case) == ("coronal", 1, 5)


def test_tiles_are_planned_with_their_scale_and_as_many_draws_as_they_ask_for(case, fingerprint):
    thin = case("a", size=(1024, 1024), ceiling=0.8, width=8.0, tile_ceilings=(0.9, 0.98))

    plan = find_planner("auto").plan(make_dataset(), fingerprint([thin] * 10))

    assert (plan.input_mode, plan.tile_scale, plan.equal_spacing) == ("tiles", 0.5, False)
    assert plan.recipe.draws_a_case == 2  # nine tiles
    assert plan.warnings == (NO_GROUPS,)


def test_the_normalisation_of_the_plan_before_is_kept_where_the_data_moved_little(case, fingerprint):
    intensity = Intensity(mean=100.5, sd=20.0, percentiles=(0.0,) * 7)
    before = find_planner("auto").plan(make_dataset(), fingerprint([case("a")]))
    data = fingerprint([case("a"), case("b")], intensity=(intensity,))

    plan = find_planner("auto").plan(make_dataset(), data, before=before)

    assert plan.normalisation == before.normalisation != find_planner("auto").plan(make_dataset(), data).normalisation
    assert plan.preparation_digest == before.preparation_digest
    assert plan.arrays_digest != before.arrays_digest


def test_a_planner_of_ones_own_decides_one_thing_otherwise(measured):
    class SmallPlanner(AutoPlanner):
        name = "small"

        def choose_input_size(self):
            return (128, 128)

    usual, small = AutoPlanner().plan(make_dataset(), measured), SmallPlanner().plan(make_dataset(), measured)

    assert small.input_size == (128, 128)
    assert "stretched to 128 x 128" in small.why["input_mode"]
    assert small.recipe == usual.recipe


def test_an_unknown_planner_is_answered_with_the_known_ones():
    with pytest.raises(PlanError, match="planner 'best' is not known: choose one of auto, paper"):
        find_planner("best")
