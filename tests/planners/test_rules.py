import pytest

from iaunet.planners import rules
from iaunet.planners.fingerprint import Intensity


@pytest.mark.parametrize(
    ("sizes", "mode", "figures"),
    [
        ([(288, 384)] * 20, "resize", "sizes 288 x 384 to 288 x 384 (height x width), sides differ 1.33 times"),
        ([(100, 200)] * 20, "resize", "sides differ 2.00 times (95 %: 2.00): stretched to 256 x 256 as in the paper"),
        ([(100, 201)] * 20, "letterbox", "stretching would distort 5 % of the images more than 2.01 times"),
        ([(300, 100)] * 20, "letterbox", "3.00 times, so aspect is kept"),
        ([(100, 100)] * 99 + [(100, 900)], "resize", "sizes 100 x 100 to 100 x 900"),
    ],
)
def test_images_are_stretched_unless_that_distorts_more_than_a_twentieth_of_them(
    case, fingerprint, sizes, mode, figures
):
    measured = fingerprint([case(str(i), size=size) for i, size in enumerate(sizes)])

    choice = rules.choose_input_mode(measured, (256, 256))

    assert choice.value == mode
    assert figures in choice.why


@pytest.mark.parametrize(
    ("ceiling", "width", "warns"), [(0.97, 20.0, False), (0.96, 20.0, True), (0.99, 1.0, True), (0.99, None, False)]
)
def test_structures_too_thin_for_the_input_are_warned_of(case, fingerprint, ceiling, width, warns):
    measured = fingerprint([case(str(i), size=(256, 256), ceiling=ceiling, width=width) for i in range(5)])

    warning = rules.find_lost_detail(measured)

    assert (warning is not None) is warns
    if warns:
        assert f"their median width there is {width:.1f} px" in warning
        assert f"a median Dice above {ceiling:.2f}" in warning


def test_nothing_is_lost_where_there_is_nothing(case, fingerprint):
    assert rules.find_lost_detail(fingerprint([case("a", share=0)])) is None


def test_photographs_are_normalised_by_the_datasets_mean_and_sd(case, fingerprint):
    measured = fingerprint([case("a")], intensity=(Intensity(mean=101.5, sd=20.25, percentiles=(0.0,) * 7),))

    choice = rules.choose_normalisation(measured)

    assert (choice.value.kind, choice.value.mean, choice.value.sd) == ("dataset", (101.5,), (20.25,))
    assert "(101.5 +- 20.2)" in choice.why


@pytest.mark.parametrize("depth", ["uint16", "int32", "float32"])
def test_other_intensities_are_normalised_image_by_image(case, fingerprint, depth):
    choice = rules.choose_normalisation(fingerprint([case("a", mean=500.0), case("b", mean=20000.0)], depth=depth))

    assert (choice.value.kind, choice.value.percentiles) == ("case", (0.5, 99.5))
    assert f"{depth} intensities with case means from 500 to 2e+04" in choice.why


@pytest.mark.parametrize(
    ("n_cases", "epochs", "figures"),
    [
        (3, 500, "2 training cases are 1 steps of 16: 500 epochs make 500 steps"),
        (612, 500, "489 training cases are 31 steps of 16: 500 epochs make 15,500 steps"),
        (2594, 154, "2075 training cases are 130 steps of 16: 154 epochs make 20,020 steps (goal 20,000"),
        (100_000, 100, "5000 steps of 16: 100 epochs make 500,000 steps"),
    ],
)
def test_epochs_make_about_twenty_thousand_steps_within_bounds(case, fingerprint, n_cases, epochs, figures):
    choice = rules.choose_epochs(fingerprint([case("a")] * n_cases), batch_size=16)

    assert choice.value == epochs
    assert figures in choice.why


@pytest.mark.parametrize(
    ("n_groups", "near", "split", "figures"),
    [
        (0, (), "random", "no groups and no near duplicates are known"),
        (29, (), "grouped", "29 groups among 612 cases, 0 cases nearly equal to another: kept in one fold"),
        (0, (("a", "b"), ("c", "d", "e")), "grouped", "0 groups among 612 cases, 5 cases nearly equal"),
    ],
)
def test_folds_keep_groups_and_near_duplicates_together_when_there_are_any(
    case, fingerprint, n_groups, near, split, figures
):
    choice = rules.choose_split(fingerprint([case("a")], near_duplicates=near), n_groups, 612)

    assert choice.value == split
    assert figures in choice.why


def test_folds_are_random_where_grouped_ones_cannot_be_made(case, fingerprint):
    measured = fingerprint([case("a")], near_duplicates=(("a", "b"),))

    choice = rules.choose_split(measured, 0, 6, missing="4 parts are left for 5 folds")

    assert choice.value == "random"
    assert choice.why.endswith("2 cases nearly equal to another, but 4 parts are left for 5 folds")
