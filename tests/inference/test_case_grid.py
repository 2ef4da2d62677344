import math
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from iaunet.contours import LABEL_COLOURS
from iaunet.errors import PredictionError
from iaunet.inference.case_grid import (
    CELL_HEIGHT,
    DPI,
    EMPTY_COLOUR,
    GAP,
    IGNORED_COLOUR,
    NARROWEST_CELL,
    WIDEST_CELL,
    GridColumn,
    choose_cases,
    draw_grid,
    save_grid,
)
from iaunet.inference.confusion import (
    FALSE_NEGATIVE_COLOUR,
    FALSE_POSITIVE_COLOUR,
    OUTCOME_COLOURS,
    TRUE_POSITIVE_COLOUR,
    draw_confusion,
)

SCORES = {f"case_{number:02d}": number / 20 for number in range(20)}


def column(title="case", height=CELL_HEIGHT, width=CELL_HEIGHT, **changes):
    """A grey square on random colours, found by ``good`` and missed by half its width by ``shifted``."""
    image = np.random.default_rng(0).integers(0, 90, (3, height, width), np.uint8)
    truth = np.zeros((height, width), np.uint8)
    truth[height // 4 : height // 2, width // 4 : width // 2] = 1
    predictions = {"good": truth, "shifted": np.roll(truth, width // 8, axis=1)}
    values = {"image": image, "truth": truth, "predictions": predictions, "scores": {"good": 1.0, "shifted": 0.5}}
    return GridColumn(title=title, **(values | changes))


def sheet_of(figure):
    """The picture of all cells, without text."""
    (axes,) = figure.axes
    (shown,) = axes.get_images()
    return np.asarray(shown.get_array())


def texts_of(figure):
    (axes,) = figure.axes
    return [text.get_text() for text in axes.texts]


def boxes_of_texts(figure):
    """Each text's extent in pixels from the lower left."""
    figure.canvas.draw()
    (axes,) = figure.axes
    return {text: text.get_window_extent() for text in axes.texts}


def cell(sheet, row, left):
    """The cell of a row that begins at this pixel of a figure with one line of case titles."""
    top = first_row(sheet) + row * (CELL_HEIGHT + GAP)
    return sheet[top : top + CELL_HEIGHT, left:]


def first_row(sheet):
    return int(np.flatnonzero((sheet != 255).any(axis=(1, 2)))[0])


def first_column(sheet):
    return int(np.flatnonzero((sheet != 255).any(axis=(0, 2)))[0])


def test_a_column_shows_image_label_and_each_network_in_the_order_asked_for():
    case = column()

    sheet = sheet_of(draw_grid([case], ["shifted", "good"]))

    left = first_column(sheet)
    shown = [cell(sheet, row, left)[:, :CELL_HEIGHT] for row in range(4)]
    np.testing.assert_array_equal(shown[0], np.moveaxis(case.image, 0, 2))
    np.testing.assert_array_equal(shown[1], np.repeat(case.truth[..., None] * 255, 3, axis=2))
    np.testing.assert_array_equal(shown[2], draw_confusion(case.image, case.predictions["shifted"], case.truth))
    np.testing.assert_array_equal(shown[3], draw_confusion(case.image, case.predictions["good"], case.truth))


def test_titles_and_scores_are_written_as_they_are():
    figure = draw_grid([column("a_1\nworst"), column("cost $5$ $\\frac$")], ["good", "shifted"])

    assert texts_of(figure) == [
        *("image", "label", "good", "shifted"),
        *("a_1\nworst", "cost $5$ $\\frac$"),
        *("1.000", "0.500") * 2,
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*OUTCOME_COLOURS, "Dice"]


def test_an_undefined_score_is_a_dash_and_a_missing_one_is_not_written():
    figure = draw_grid([column(scores={"good": math.nan})], ["good", "shifted"])

    assert texts_of(figure)[-2:] == ["case", "-"]


@pytest.mark.parametrize("predictions", [{}, {"good": None}])
def test_a_network_without_prediction_is_not_trained_and_not_filled_in(predictions):
    figure = draw_grid([column(predictions=predictions, scores={"good": 0.9})], ["good"])

    sheet = sheet_of(figure)
    assert (cell(sheet, 2, first_column(sheet))[:, :CELL_HEIGHT] == EMPTY_COLOUR).all()
    assert texts_of(figure)[-1] == "not trained"


def test_several_labels_have_their_colours_in_every_column_and_ignored_pixels_are_grey():
    labels = np.zeros((CELL_HEIGHT, CELL_HEIGHT), np.uint8)
    labels[:100], labels[100:200] = 2, 255

    sheet = sheet_of(draw_grid([column(), column(truth=labels, predictions={})], []))

    left = first_column(sheet)
    one = cell(sheet, 1, left)
    other = cell(sheet, 1, left + CELL_HEIGHT + GAP)
    assert tuple(one[CELL_HEIGHT // 3, CELL_HEIGHT // 3]) == LABEL_COLOURS[0]
    assert [tuple(other[row, 0]) for row in (0, 150, 250)] == [LABEL_COLOURS[1], IGNORED_COLOUR, (0, 0, 0)]


def test_ignored_pixels_are_no_label():
    truth = np.full((CELL_HEIGHT, CELL_HEIGHT), 255, np.uint8)
    truth[:100] = 1

    sheet = sheet_of(draw_grid([column(truth=truth)], []))

    assert (cell(sheet, 1, first_column(sheet))[:100, :CELL_HEIGHT] == 255).all()


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 64), (CELL_HEIGHT, CELL_HEIGHT)),
        ((1600, 2000), (CELL_HEIGHT, CELL_HEIGHT * 5 // 4)),
        ((40, 400), (WIDEST_CELL // 10, WIDEST_CELL)),
        ((800, 100), (CELL_HEIGHT, CELL_HEIGHT // 8)),
        ((1, 3000), (1, WIDEST_CELL)),
    ],
)
def test_images_are_scaled_to_one_height_and_stand_in_the_middle_of_their_cell(size, shown):
    case = column(height=size[0], width=size[1], truth=np.zeros(size, np.uint8), predictions={})

    sheet = sheet_of(draw_grid([case, column()], ["good"]))

    box = max(NARROWEST_CELL, shown[1])
    not_trained = (sheet == EMPTY_COLOUR).all(axis=2)
    left = int(np.flatnonzero(not_trained.any(axis=0))[0])
    black = (cell(sheet, 1, left)[:, :box] == 0).all(axis=2)
    top, before = (CELL_HEIGHT - shown[0]) // 2, (box - shown[1]) // 2
    assert black[top : top + shown[0], before : before + shown[1]].all()
    assert black.sum() == shown[0] * shown[1]


@pytest.mark.parametrize("size", [(1600, 1280), (80, 64)])
def test_masks_keep_their_place_when_large_images_shrink_and_small_ones_grow(size):
    sheet = sheet_of(draw_grid([column(height=size[0], width=size[1])], ["shifted"]))

    width = CELL_HEIGHT * 4 // 5
    line = cell(sheet, 2, first_column(sheet))[CELL_HEIGHT * 3 // 8, :width]
    for eighths, colour in ((2, FALSE_NEGATIVE_COLOUR), (3, TRUE_POSITIVE_COLOUR), (4, FALSE_POSITIVE_COLOUR)):
        start = width * eighths // 8
        assert tuple(line[start]) == colour
        assert tuple(line[start - 1]) != colour


def test_the_png_has_each_cell_to_the_pixel_at_200_dpi(tmp_path):
    case = column(scores={})

    save_grid(tmp_path / "new" / "cases.png", [case, case, case], ["good"])

    with Image.open(tmp_path / "new" / "cases.png") as file:
        assert file.info["dpi"] == pytest.approx((DPI, DPI), abs=0.1)
        drawn = np.asarray(file.convert("RGB"))
    sheet = sheet_of(draw_grid([case, case, case], ["good"]))
    assert drawn.shape == sheet.shape
    cells = (sheet != 255).any(axis=2)
    assert cells.sum() > 7 * CELL_HEIGHT**2
    np.testing.assert_array_equal(drawn[cells], sheet[cells])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cases.png"]


@pytest.mark.parametrize("name", ["cases.pdf", "CASES.PNG"])
def test_the_same_grid_is_the_same_file(tmp_path, name):
    files = [tmp_path / "a" / name, tmp_path / "b" / name]
    for file in files:
        save_grid(file, [column()], ["good"])

    one, other = (file.read_bytes() for file in files)

    assert one == other
    assert one.startswith(b"%PDF" if name.endswith("pdf") else b"\x89PNG")


@pytest.mark.parametrize("name", ["cases.jpg", "cases"])
def test_another_ending_is_refused(tmp_path, name):
    with pytest.raises(PredictionError, match=rf"{name} is no name for a picture: let it end in \.png or \.pdf"):
        save_grid(tmp_path / name, [column()], ["good"])

    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "title",
    [
        "x" * 250,
        "patient 12/sequence_003/session-2021-04-05/frame_000123_left_breast_oblique_repeat_2",
        "a\nb",
        "",
        " ",
    ],
)
@pytest.mark.parametrize("width", [20, 200, 900])
def test_no_text_covers_another_or_leaves_the_figure(title, width):
    networks = ["good", "package.of_networks.deep:build_a_network_with_an_exceedingly_long_name", "missing"]
    columns = [column(f"{title}\nrandom", CELL_HEIGHT, width) for _ in range(3)]

    figure = draw_grid(columns, networks)

    boxes = boxes_of_texts(figure)
    assert len(boxes) == len(networks) + 2 + len(columns) * 4
    height, wide = sheet_of(figure).shape[:2]
    for box in boxes.values():
        assert 0 <= box.x0 <= box.x1 <= wide
        assert 0 <= box.y0 <= box.y1 <= height
    ordered = [*boxes.values()]
    for i, box in enumerate(ordered):
        assert not any(box.overlaps(other) for other in ordered[i + 1 :] if box.width and other.width)
    (legend,) = figure.legends
    bounds = legend.get_window_extent()
    assert 0 <= bounds.x0 <= bounds.x1 <= wide
    assert not any(bounds.overlaps(box) for box in ordered if box.width)


def test_a_long_title_keeps_its_ends_and_a_break_falls_behind_a_separator():
    name = "patient 12/sequence_003/" + "detail_" * 20 + "frame_77"

    figure = draw_grid([column(f"{name}\nworst")], [])

    lines = texts_of(figure)[-1].split("\n")
    assert lines[-1] == "worst"
    assert len(lines) == 4
    assert "".join(lines[:-1]).startswith("patient 12/")
    assert "".join(lines[:-1]).endswith("frame_77")
    assert "…" in "".join(lines[:-1])
    assert all(line[-1] in " /_" for line in lines[:-2])


def test_letters_that_the_font_lacks_are_question_marks():
    figure = draw_grid([column("病人 12 é\t")], [])

    assert texts_of(figure)[-1] == "?? 12 é?"


def test_titles_stand_above_their_column_and_beside_their_row():
    figure = draw_grid([column("first"), column("second")], ["good"])

    boxes = {text.get_text(): box for text, box in boxes_of_texts(figure).items()}
    sheet = sheet_of(figure)
    left, top = first_column(sheet), first_row(sheet)
    for number, title in enumerate(["first", "second"]):
        middle = left + number * (CELL_HEIGHT + GAP) + CELL_HEIGHT / 2
        assert (boxes[title].x0 + boxes[title].x1) / 2 == pytest.approx(middle, abs=2)
        assert boxes[title].y0 >= len(sheet) - top
    rows = [boxes[title] for title in ("image", "label", "good")]
    assert all(box.x1 <= left for box in rows)
    assert all(one.y0 - other.y0 == pytest.approx(CELL_HEIGHT + GAP, abs=8) for one, other in pairwise(rows))


@pytest.mark.parametrize("n", [0, 13])
def test_no_cases_or_too_many_are_refused(n):
    message = {0: "no case to draw: choose one or more", 13: "13 cases are too many for one grid: choose at most 12"}

    with pytest.raises(PredictionError, match=message[n]):
        draw_grid([column()] * n, ["good"])


@pytest.mark.parametrize("wrong", [{"truth": np.zeros((9, 8), np.uint8)}, {"predictions": {"a": np.zeros((8, 9))}}])
def test_masks_have_the_size_of_their_image(wrong):
    with pytest.raises(ValueError, match=r"case: a mask of \((9, 8|8, 9)\) px does not fit an image of \(8, 8\) px"):
        column(height=8, width=8, **wrong)


def test_cases_are_chosen_random_best_and_worst():
    cases = choose_cases(SCORES, chosen=["case_07"])

    reasons = [why for _, why in cases]
    assert reasons == ["chosen"] + ["random"] * 3 + ["best"] * 2 + ["worst"] * 3
    names = [name for name, _ in cases]
    assert len({*names}) == len(names)
    assert names[0] == "case_07"
    assert names[4:] == ["case_19", "case_18", "case_00", "case_01", "case_02"]


def test_a_chosen_case_is_not_shown_again_as_worst_or_twice():
    cases = choose_cases(SCORES, chosen=["case_00", "case_19", "case_00"], n_random=0)

    assert cases == [
        ("case_00", "chosen"),
        ("case_19", "chosen"),
        ("case_18", "best"),
        ("case_17", "best"),
        ("case_01", "worst"),
        ("case_02", "worst"),
        ("case_03", "worst"),
    ]


@pytest.mark.parametrize("n", range(9))
def test_few_cases_are_shown_once_the_worst_first_of_all(n):
    scores = dict([*SCORES.items()][:n])

    cases = choose_cases(scores)

    assert len(cases) == len(dict(cases)) == n
    assert [name for name, why in cases if why == "worst"] == sorted(scores)[:3]


def test_undefined_scores_are_shown_only_if_chosen():
    scores = {"a": math.nan, "b": 0.5, "c": math.nan}

    assert choose_cases(scores) == [("b", "worst")]
    assert choose_cases(scores, chosen=["c"]) == [("c", "chosen"), ("b", "worst")]


def test_the_seed_decides_the_random_cases_whatever_their_order():
    backwards = dict(reversed(SCORES.items()))

    assert choose_cases(SCORES) == choose_cases(backwards)
    assert choose_cases(SCORES, seed=1) != choose_cases(SCORES, seed=2)
    drawn = {name for seed in range(100) for name, why in choose_cases(SCORES, seed=seed) if why == "random"}
    assert drawn == {f"case_{number:02d}" for number in range(3, 18)}


def test_equal_scores_are_taken_by_name():
    cases = choose_cases(dict.fromkeys("dbcaef", 0.5), n_random=0)

    assert cases == [("d", "best"), ("e", "best"), ("a", "worst"), ("b", "worst"), ("c", "worst")]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(PredictionError, match=re.escape("case 'cas_12' has no score: the nearest name is 'case_12'")):
        choose_cases(SCORES, chosen=["case_01", "cas_12"])
    with pytest.raises(PredictionError, match="case 'a' has no score: score cases first"):
        choose_cases({}, chosen=["a"])


def test_importing_does_not_load_matplotlib():
    code = "import sys, iaunet.inference.case_grid; print('matplotlib' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
