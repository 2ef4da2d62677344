import pytest

from iaunet.planners import rules
from iaunet.planners.histogram import Intensity
from iaunet.planners.plan import Normalisation
from iaunet.planners.rules import InputMode


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

    assert choice.value == InputMode(mode)
    assert figures in choice.why


@pytest.mark.parametrize(
    ("ceiling", "mode", "warns"),
    [(0.97, "resize", False), (0.96, "resize", True), (0.96, "letterbox", True), (0.84, "tiles", False)],
)
def test_detail_that_is_lost_whatever_is_done_is_warned_of(case, fingerprint, ceiling, mode, warns):
    measured = fingerprint([case(str(i), size=(200, 200), ceiling=ceiling) for i in range(5)])

    warning = rules.find_lost_detail(measured, InputMode(mode))

    assert warning == (
        f"no network working at 256 x 256 can score a median Dice above {ceiling:.2f} on these masks" if warns else None
    )


def test_nothing_is_lost_where_there_is_nothing(case, fingerprint):
    measured = fingerprint([case("a", share=0, size=(600, 600))])

    assert rules.choose_input_mode(measured, (256, 256)).value == InputMode("resize")
    assert rules.find_lost_detail(measured, InputMode("resize")) is None


@pytest.mark.parametrize(
    ("ceiling", "width", "tile_ceilings", "scale"),
    [
        (0.97, 6.0, (), None),
        (0.84, 24.0, (0.98, 0.99), 0.25),
        (0.84, 11.9, (0.98, 0.99), 0.5),
        (0.84, 24.0, (0.96, 0.97), 0.5),
        (0.84, 24.0, (0.5, 0.96), 1.0),
        (0.84, 5.9, (0.98, 0.99), 1.0),
        (0.84, None, (0.9, 0.97), 0.5),
        (0.99, 5.9, (), 1.0),
        (0.99, 24.0, (), None),
    ],
)
def test_thin_structures_are_cut_into_tiles_at_the_smallest_scale_that_keeps_them(
    case, fingerprint, ceiling, width, tile_ceilings, scale
):
    measured = fingerprint(
        [case(str(i), size=(512, 512), ceiling=ceiling, width=width, tile_ceilings=tile_ceilings) for i in range(5)]
    )

    choice = rules.choose_input_mode(measured, (256, 256))

    assert choice.value == (InputMode("resize") if scale is None else InputMode("tiles", tile_scale=scale))
    assert ("cut into half-overlapping tiles" in choice.why) is (scale is not None)


def test_why_pictures_are_cut_into_tiles_is_told_with_its_figures(case, fingerprint):
    measured = fingerprint([case("a", size=(512, 1024), ceiling=0.84, width=8.0, tile_ceilings=(0.9, 0.98))])

    assert rules.choose_input_mode(measured, (256, 256)).why == (
        "structures are too thin for 256 x 256 (median width there 2.0 px, least 3; median ceiling 0.84, least 0.97): "
        "cut into half-overlapping tiles at 0.5 of the native size, where the median width is 4.0 px"
    )


@pytest.mark.parametrize(("sizes", "is_cut"), [([(256, 256), (200, 100)], False), ([(256, 257), (200, 100)], True)])
def test_pictures_that_the_input_holds_are_not_cut(case, fingerprint, sizes, is_cut):
    measured = fingerprint([case(str(i), size=size, ceiling=0.8, width=1.0) for i, size in enumerate(sizes)])

    assert (rules.choose_input_mode(measured, (256, 256)).value.mode == "tiles") is is_cut


@pytest.mark.parametrize(
    ("spacing_mm", "value"),
    [
        ((5.0, 1.0, 1.5), InputMode("resize")),
        ((0.5, 1.0, 1.6), InputMode("letterbox", equal_spacing=True)),
        ((1.0, 3.0, 1.0), InputMode("letterbox", equal_spacing=True)),
        (None, InputMode("resize")),
    ],
)
def test_pixels_that_are_far_from_square_are_made_square_and_the_aspect_is_kept(case, fingerprint, spacing_mm, value):
    measured = fingerprint([case("a"), case("b", spacing_mm=spacing_mm)])

    choice = rules.choose_input_mode(measured, (256, 256))

    assert choice.value == value
    assert ("times as long as wide: scaled to equal mm, aspect kept" in choice.why) is value.equal_spacing


def test_tiles_of_uneven_pixels_are_cut_from_square_ones(case, fingerprint):
    thin = case("a", size=(512, 512), ceiling=0.8, width=4.0, spacing_mm=(1.0, 2.0, 1.0))

    choice = rules.choose_input_mode(fingerprint([thin]), (256, 256))

    assert choice.value == InputMode("tiles", tile_scale=1.0, equal_spacing=True)


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


CT = (-1000.0, -1000.0, -900.0, 40.0, 200.0, 800.0, 1500.0)
ORGAN = (-100.0, -90.0, -60.0, 40.0, 180.0, 230.0, 240.0)


@pytest.fixture
def ct(case, fingerprint):
    """A fingerprint of volumes in Hounsfield units; the fields of its cases can be changed."""

    def ct(**fields):
        usual = {"slices": 30, "percentiles": CT} | fields
        organ = Intensity(mean=50.0, sd=40.0, percentiles=ORGAN)
        return fingerprint([case(name, **usual) for name in "abc"], depth="float32", foreground=(organ,))

    return ct


def test_ct_is_clipped_to_the_window_of_its_foreground_and_z_scored(ct):
    choice = rules.choose_normalisation(ct())

    assert choice.value == Normalisation(kind="dataset", mean=(50.0,), sd=(40.0,), windows=((-100.0, 240.0),))
    assert choice.why == (
        "CT (air below -500 in every case): clipped to the foreground's (0.5, 99.5) % percentiles (-100 to 240), "
        "then z-scored"
    )


@pytest.mark.parametrize(
    "fields", [{"slices": 1}, {"percentiles": (0.0, 0.0, *CT[2:])}, {"percentiles": (-3000.0, -2000.0, *CT[2:])}]
)
def test_what_has_no_air_or_is_no_volume_is_no_ct(ct, fields):
    assert rules.choose_normalisation(ct(**fields)).value.kind == "case"


def test_a_dataset_that_names_its_channels_is_believed(ct):
    named = rules.choose_normalisation(ct(slices=1), ["ct"])

    assert named.value.windows == ((-100.0, 240.0),)
    assert "CT (named CT)" in named.why
    assert rules.choose_normalisation(ct(), ["zscore"]).value.kind == "case"


@pytest.mark.parametrize(("kinds", "sd"), [(["none"], (1.0,)), (["rgb_to_0_1"], (255.0,))])
def test_channels_that_ask_for_no_statistics_get_none(case, fingerprint, kinds, sd):
    choice = rules.choose_normalisation(fingerprint([case("a")]), kinds)

    assert choice.value == Normalisation(kind="dataset", mean=(0.0,), sd=sd)
    assert choice.why == f"the data set asks for {kinds[0]}"


def test_one_wish_for_channels_that_lie_in_one_file_is_meant_for_each(case, fingerprint):
    choice = rules.choose_normalisation(fingerprint([case("a")], channels=3), ["rgb_to_0_1"])

    assert choice.value == Normalisation(kind="dataset", mean=(0.0,) * 3, sd=(255.0,) * 3)


@pytest.mark.parametrize(("moved", "is_kept"), [(0.0, False), (1.0, True), (-1.0, True), (1.1, False)])
def test_statistics_that_moved_little_leave_the_normalisation_as_it_was(case, fingerprint, moved, is_kept):
    before = Normalisation(kind="dataset", mean=(100.0 + moved,), sd=(20.0 - moved,))

    choice = rules.choose_normalisation(fingerprint([case("a")]), before=before)

    assert (choice.value == before) is (is_kept or moved == 0)
    assert ("kept from the plan before, which differs by less than 0.05 sd" in choice.why) is is_kept


@pytest.mark.parametrize(
    "before",
    [
        Normalisation(kind="case"),
        Normalisation(kind="dataset", mean=(100.0, 100.0), sd=(20.0, 20.0)),
        Normalisation(kind="dataset", mean=(100.0,), sd=(20.0,), windows=((0.0, 255.0),)),
    ],
)
def test_a_normalisation_of_another_kind_is_not_kept(case, fingerprint, before):
    choice = rules.choose_normalisation(fingerprint([case("a")]), before=before)

    assert choice.value == Normalisation(kind="dataset", mean=(100.0,), sd=(20.0,))


def test_a_window_that_moved_is_not_kept(ct):
    before = Normalisation(kind="dataset", mean=(50.0,), sd=(40.0,), windows=((-100.0, 243.0),))
    near = Normalisation(kind="dataset", mean=(50.0,), sd=(40.0,), windows=((-100.0, 241.0),))

    assert rules.choose_normalisation(ct(), before=before).value.windows == ((-100.0, 240.0),)
    assert rules.choose_normalisation(ct(), before=near).value == near


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
    choice = rules.choose_epochs(fingerprint([case("a")] * n_cases), InputMode("resize"), batch_size=16)

    assert choice.value == (1, epochs)
    assert figures in choice.why


@pytest.mark.parametrize(
    ("n_cases", "slices", "size", "mode", "draws", "epochs", "figures"),
    [
        (20, 1, (584, 565), InputMode("tiles"), 4, 500, "16 training cases drawn 4 times (16 rows a case) are 4 steps"),
        (20, 1, (2336, 2260), InputMode("tiles", tile_scale=0.25), 4, 500, "drawn 4 times (16 rows a case)"),
        (20, 1, (584, 565), InputMode("resize"), 1, 500, "16 training cases are 1 steps"),
        (
            131,
            40,
            (512, 512),
            InputMode("resize"),
            10,
            308,
            "104 training cases drawn 10 times (40 rows a case) are 65",
        ),
        (10_000, 40, (512, 512), InputMode("resize"), 1, 100, "8000 training cases are 500 steps"),
        (
            1000,
            90,
            (512, 512),
            InputMode("resize"),
            5,
            100,
            "800 training cases drawn 5 times (90 rows a case) are 250",
        ),
    ],
)
def test_a_case_of_many_rows_is_drawn_more_often_as_far_as_the_steps_of_an_epoch_allow(
    case, fingerprint, n_cases, slices, size, mode, draws, epochs, figures
):
    measured = fingerprint([case("a", size=size, slices=slices)] * n_cases)

    choice = rules.choose_epochs(measured, mode, batch_size=16)

    assert choice.value == (draws, epochs)
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
