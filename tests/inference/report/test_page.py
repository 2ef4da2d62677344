import base64
import dataclasses
import html
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from iaunet.contours import LABEL_COLOURS
from iaunet.dataset import IGNORED
from iaunet.inference.report.charts import draw_histogram, draw_loss, ticks
from iaunet.inference.report.facts import Missing
from iaunet.inference.report.page import N_WORST, choose_cases, render_page, shown_cases, tabulate_cases
from iaunet.inference.report.pictures import LONGEST_SIDE, draw_layers, find_slice
from iaunet.inference.report.runs import Curve
from iaunet.metrics import Counts
from iaunet.planners.plan import content_digest

HOSTILE = "</script><img src=x onerror=alert(1)>&\"'{{ 7*7 }}"
VOID = {"meta", "img", "input", "br"}
MOST_BYTES = 15_000_000


class Page(HTMLParser):
    """A page's text by section, its tags, and every reference to a file."""

    def __init__(self, content):
        super().__init__()
        self.content, self.open, self.section = content, [], "header"
        self.text, self.tags, self.references = {}, [], []
        self.feed(content)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = values["id"]
        self.tags.append((tag, values))
        self.references += [values[name] for name in ("src", "href", "action", "data") if name in values]

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = "after"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text[self.section] = self.text.get(self.section, "") + data

    def said(self, section):
        """The text of a section, spaces made one."""
        return " ".join(self.text[section].split())

    @property
    def rows(self):
        """The rows of the table of cases."""
        [held] = re.findall(r'<script type="application/json" id="table">(.*?)</script>', self.content)
        return json.loads(held)["rows"]


@pytest.fixture
def facts(samples, make_plan):
    """The facts of four cases, unless ``fields`` say otherwise."""

    def facts(**fields):
        return samples.make_facts(make_plan, **fields)

    return facts


@pytest.fixture
def picture():
    """The layers of a small image, half of it marked and another half predicted."""
    image = np.arange(3 * 40 * 60, dtype=np.uint8).reshape(3, 40, 60)
    truth, prediction = np.zeros((2, 40, 60), np.uint8)
    truth[:20], prediction[:, :30] = 1, 1
    return draw_layers(image, truth, prediction)


def many(cases, n, **fields):
    """Cases like the first with different names and Dice."""
    names = [f"case {number:05}" for number in range(n)]
    made = []
    for number, name in enumerate(names):
        [(label, score)] = cases[0].labels.items()
        metrics = {**score.metrics, "dice": (number * 7919 % n) / n}
        labels = {label: dataclasses.replace(score, metrics=metrics)}
        made.append(dataclasses.replace(cases[0], name=name, fold=number % 5, labels=labels, **fields))
    return tuple(made)


def with_dice(case, name, dice, counts=None):
    labels = {
        label: dataclasses.replace(
            score, metrics={**score.metrics, "dice": dice}, counts=score.counts if counts is None else counts
        )
        for label, score in case.labels.items()
    }
    return dataclasses.replace(case, name=name, labels=labels)


def test_the_page_says_the_facts_in_words_and_numbers(facts):
    page = Page(render_page(facts(), {}))

    assert "Dice 0.597 (0.500 to 0.694)" in page.said("header")
    assert "the chosen model, unet-best-grouped, split grouped" in page.said("header")
    assert "3 of 4" in page.said("header")
    assert "64 x 64 px most often (3 cases), 60 x 60 to 64 x 80" in page.said("data")
    assert "Groups2, 2 to 2 cases each (names)" in page.said("data")
    assert "unet-best-grouped U-Net, 2 epochs, seed 3, cpu (2 threads)" in page.said("training")
    assert "Dice 0.5, the best of 3 runs" in page.said("scores")
    assert "Difference +0.250 (95 % +0.100 to +0.300): so much of the random split's score was" in page.said("leakage")
    assert "1 of 1 images without a lesion have a false alarm" in page.said("detection")
    assert "0.0833" in page.said("calibration")
    assert "0.0094" in page.said("calibration")
    assert "calibration of the ensemble itself cannot be measured by cross-validation" in page.said("calibration")
    assert "0.710 (0.600 to 0.800)" in page.said("expected")
    assert "0.100 flagged, 0.700 not flagged" in page.said("expected")
    assert "Scored once, with unet-best-grouped" in page.said("test")


def test_the_page_needs_no_other_file_and_no_network(facts, picture):
    page = Page(render_page(facts(), {"a": picture, "d": picture}))

    inside = [reference for reference in page.references if reference.startswith(("data:image/", "#"))]
    assert inside == page.references
    assert sum(tag == "noscript" for tag, _ in page.tags) == 1
    policy = next(values["content"] for _, values in page.tags if values.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_what_is_missing_is_named_with_the_command_that_mends_it(facts, samples):
    missing = (
        Missing(what="calibration", why="iaunet_find_best was not run", command="iaunet_find_best toy"),
        Missing(what="random against grouped", why="no groups are known"),
    )

    page = Page(render_page(facts(**samples.BARE, missing=missing), {}))

    assert "calibration: iaunet_find_best was not run. To have it: iaunet_find_best toy" in page.said("missing")
    assert "Not known: no groups are known." in page.said("leakage")
    assert not {"detection", "calibration", "expected", "suspects", "test"} & page.text.keys()


def test_scores_that_mislead_are_said_to(facts):
    plain = facts()
    scored = dataclasses.replace(
        plain.scored, inflated="inflated: 2 groups are spread", folds=(0,), n_folds=5, of="run"
    )
    shown = dataclasses.replace(
        plain.shown, stale="the weights of fold 1 are not those that were scored", is_current=False
    )
    held_out = dataclasses.replace(
        plain.held_out,
        n_times=2,
        stale="it was scored with other weights than there are now",
        n_unscored=3,
        leakage="leak",
    )

    page = Page(render_page(facts(scored=scored, shown=shown, held_out=held_out), {}))

    said = page.said("header")
    assert "run unet-best-grouped" in said
    assert "These scores are inflated: 2 groups are spread." in said
    assert "Only fold 0 of 5 was scored" in said
    assert "Stale: the weights of fold 1 are not those that were scored" in said
    assert "older state of the data, the plan or the folds" in said
    assert "Stale: it was scored with other weights than there are now" in page.said("test")
    assert "2 times: with each look the score becomes more optimistic, last with" in page.said("test")
    assert "3 cases could not be scored" in page.said("test")


@pytest.mark.parametrize(
    ("mean", "low", "high", "says"),
    [
        (0.25, 0.1, 0.3, "+0.250 (95 % +0.100 to +0.300): so much of the random split's score was leakage."),
        (0.1, -0.1, 0.3, "+0.100 (95 % -0.100 to +0.300): it can be chance."),
        (-0.2, -0.3, -0.1, "-0.200 (95 % -0.300 to -0.100): the grouped split's score is the higher one, by more than"),
        (0.1, math.nan, math.nan, "Difference +0.100"),
    ],
)
def test_what_a_difference_of_splits_means_depends_on_its_interval(facts, mean, low, high, says):
    [pair] = facts().leakage
    pair = dataclasses.replace(pair, difference=dataclasses.replace(pair.difference, mean=mean, low=low, high=high))

    said = Page(render_page(facts(leakage=(pair,)), {})).said("leakage")

    assert says in said
    assert ("so much" in said, "chance" in said) == (low > 0, low <= 0)


def test_commands_that_need_a_file_of_the_user_say_so(facts):
    edited = dataclasses.replace(facts().plan, planned="")
    plain = dataclasses.replace(edited, planned=content_digest(edited))

    of_edited = Page(render_page(facts(plan=edited, commands=("cp PLAN.json x", "next")), {})).said("again")
    of_plain = Page(render_page(facts(plan=plain, commands=("iaunet_find_best toy",)), {})).said("again")
    of_split = Page(render_page(facts(plan=plain, commands=("iaunet_train toy cv --split SPLIT.json",)), {}))

    assert "plan.json was edited by hand: planning makes another one, so keep a copy of it" in of_edited
    assert "for the words in capitals): cp PLAN.json x next" in of_edited
    assert "These commands make all of it again: iaunet_find_best toy" in of_plain
    assert "edited by hand" not in of_plain
    assert "words in capitals" in of_split.said("again")


def test_the_name_of_the_dataset_is_quoted_where_it_is_part_of_a_command(facts):
    unscored = dataclasses.replace(facts().held_out, summary=None)

    page = Page(render_page(facts(dataset="my polyps", held_out=unscored), {}))

    assert "iaunet_report 'my polyps' --test" in page.said("test")


def test_names_are_shown_as_they_are_and_never_run(facts, picture):
    plain = facts()
    cases = (dataclasses.replace(plain.cases[0], name=HOSTILE, group=HOSTILE), *plain.cases[1:])
    data = dataclasses.replace(plain.data, group_sizes=((HOSTILE, 4),))

    page = Page(render_page(facts(cases=cases, data=data), {HOSTILE: picture}))

    assert [row[0] for row in page.rows].count(HOSTILE) == 1
    assert HOSTILE in page.said("folds")
    assert HOSTILE in page.said("pictures")
    assert not any("onerror" in values for _, values in page.tags)
    assert sum(tag == "script" for tag, _ in page.tags) == 2


def test_a_page_of_very_many_cases_stays_small_and_holds_the_worst(facts, picture):
    plain = facts()
    cases = many(plain.cases, 60_000, expected_dice=0.5, suspect="not marked")
    large = dataclasses.replace(picture, image="data:image/jpeg;base64," + "A" * 500_000)
    shown = dict.fromkeys(shown_cases(facts(cases=cases))[:15], large)

    content = render_page(facts(cases=cases), shown)

    assert len(content.encode()) < MOST_BYTES
    page = Page(content)
    assert 30_000 < len(page.rows) < 60_000
    assert page.rows[0][3] == 0
    assert f"{60_000 - len(page.rows)} cases with a higher Dice are left out" in page.said("cases")


def test_names_in_other_scripts_do_not_make_the_page_larger_than_promised(facts, picture):
    cases = tuple(
        dataclasses.replace(case, name=f"ポリープ画像検査<&>{case.name}", group="患者グループ" * 5)
        for case in many(facts().cases, 40_000, expected_dice=0.5, suspect="not marked")
    )
    large = dataclasses.replace(picture, image="data:image/jpeg;base64," + "A" * 500_000)

    content = render_page(facts(cases=cases), dict.fromkeys(shown_cases(facts(cases=cases))[:15], large))

    assert len(content.encode()) < MOST_BYTES
    assert 10_000 < len(Page(content).rows) < 40_000


def test_ten_thousand_cases_are_all_in_the_table(facts):
    cases = many(facts().cases, 10_000)

    page = Page(render_page(facts(cases=cases), {}))

    assert len(page.rows) == 10_000
    dice = [row[3] for row in page.rows]
    assert dice == sorted(dice)


def test_the_table_has_a_column_for_each_label_of_several_and_what_is_undefined_is_none(facts):
    plain = facts()
    scores = plain.cases[0].labels["polyp"]
    undefined = dataclasses.replace(scores, metrics={**scores.metrics, "hd95": math.nan})
    one = dataclasses.replace(plain.cases[0], labels={"polyp": undefined}, expected_dice=None, group="", suspect="")
    two = dataclasses.replace(one, labels={"left": scores, "right": scores})

    of_one, of_two = tabulate_cases([one]), tabulate_cases([two])

    titles = ["Case", "Fold", "Dice", "IoU", "Precision", "Sensitivity", "HD95"]
    assert [column.title for column in of_one.columns] == titles
    assert of_one.rows == (("a", 0, 0.8889, 0.8, 1.0, 0.8, None),)
    assert [column.title for column in of_two.columns] == ["Case", "Fold", "Dice", "Dice left", "Dice right"]
    assert of_two.rows == (("a", 0, 0.8889, 0.8889, 0.8889),)


def test_the_worst_the_median_and_the_best_are_each_shown_once(facts):
    case = facts().cases[0]
    cases = [with_dice(case, f"{number}", number / 20) for number in range(20)]

    worst, median, best = choose_cases(cases[::-1])

    assert [case.name for case in worst] == ["0", "1", "2", "3", "4", "5"]
    assert [case.name for case in median] == ["9", "10", "11"]
    assert [case.name for case in best] == ["19", "18", "17"]
    few = choose_cases(cases[:7])
    assert [len(group) for group in few] == [N_WORST, 0, 1]


def test_of_equally_bad_cases_those_with_more_wrong_pixels_come_first(facts):
    case = facts().cases[0]
    cases = [with_dice(case, f"{n}", 0.0, Counts(fp=n, fn=1)) for n in (1, 50, 7)]

    assert [each.name for each in choose_cases(cases)[0]] == ["50", "7", "1"]


def test_the_worst_and_the_best_are_of_different_groups_as_far_as_there_are_enough(facts):
    case = facts().cases[0]
    cases = [
        dataclasses.replace(with_dice(case, f"{number}", number / 40), group=f"{min(number // 5, 4)}")
        for number in range(40)
    ]

    worst, _, best = choose_cases(cases)

    assert [case.name for case in worst] == ["0", "1", "5", "10", "15", "20"]
    assert [case.name for case in best] == ["39", "19", "14"]


def test_cases_without_a_lesion_are_never_the_best(facts):
    case = facts().cases[0]
    cases = [with_dice(case, f"{n}", 0.5) for n in range(9)] + [with_dice(case, "empty", 1.0, Counts(tn=100))]

    worst, median, best = choose_cases(cases)

    assert "empty" not in [each.name for each in (*worst, *median, *best)]


def test_an_anonymous_page_has_no_picture_and_lists_its_suspects(facts):
    page = Page(render_page(facts(anonymous=True), {}))

    assert not any(tag == "img" for tag, _ in page.tags)
    assert "pictures" not in page.text
    assert "not marked" in page.said("suspects")
    assert "75 %" in page.said("suspects")
    assert "anonymous: cases and groups are numbered" in page.said("header")


def test_a_case_that_cannot_be_shown_says_why(facts):
    page = Page(render_page(facts(), {"a": "the image is gone"}))

    assert "the image is gone" in page.said("pictures")


def test_a_card_tells_the_dice_of_the_mask_that_it_shows_where_that_is_another(facts):
    found = facts()
    (first, second, *others) = found.cases
    cases = (
        dataclasses.replace(first, of_runs={found.shown.name: 0.125}),
        dataclasses.replace(second, of_runs={found.shown.name: second.dice}),
        *others,
    )

    page = Page(render_page(facts(cases=cases), dict.fromkeys((first.name, second.name), "gone")))

    assert page.said("pictures").count("of the mask shown") == 1
    assert "of the mask shown 0.125" in page.said("pictures")


def test_a_volume_is_shown_where_label_and_prediction_disagree_most():
    truth, prediction = np.zeros((2, 5, 8, 8), np.uint8)
    truth[1, :4] = truth[4] = prediction[1, :4] = prediction[4] = 1
    assert find_slice(truth, prediction) == 4

    prediction[3, 0, :3] = 1
    assert find_slice(truth, prediction) == 3

    truth[3, 0, :3] = IGNORED
    assert find_slice(truth, prediction) == 4


def test_pictures_have_three_layers_of_one_shape_in_the_colours_of_the_labels():
    truth, prediction = np.zeros((2, 900, 1200), np.uint8)
    truth[100:300, 100:300] = 2
    prediction[0, 0] = 1

    drawn = draw_layers(np.full((1, 900, 1200), 7, np.uint16), truth, prediction, "slice 3 of 9")

    assert drawn.size == (336, LONGEST_SIDE)
    area = _decode(drawn.prediction)
    assert area.shape == (336, LONGEST_SIDE, 4)
    assert area[0, 0].tolist() == [*LABEL_COLOURS[0], 110], "a single pixel is not lost"
    assert np.count_nonzero(area[..., 3]) == 1
    outline = _decode(drawn.label)
    assert {tuple(pixel[:3]) for pixel in outline[outline[..., 3] > 0]} == {LABEL_COLOURS[1]}
    assert outline[2 * 75, 2 * 75, 3] == 0, "within the outline nothing is painted"
    assert drawn.place == "slice 3 of 9"


def test_where_nothing_is_marked_there_is_no_layer():
    empty = np.zeros((16, 16), np.uint8)

    drawn = draw_layers(np.zeros((3, 16, 16), np.uint8), empty, empty)

    assert (drawn.label, drawn.prediction, drawn.size) == ("", "", (16, 16))


def test_curves_are_thinned_to_stay_small_and_keep_their_ends():
    epochs = tuple(map(float, range(1, 5001)))
    flat = (math.nan,) * 5000
    curve = Curve(
        fold="7", epoch=epochs, loss=epochs[::-1], validation_loss=flat, validation_dice=flat, lr=flat, seconds=flat
    )

    chart = draw_loss([curve])

    [line] = chart.shapes
    points = line.points.split()
    assert 150 < len(points) <= 201
    assert points[-1].startswith(f"{chart.width:g},")
    assert line.kind == "fold fold-1"
    assert draw_loss([dataclasses.replace(curve, epoch=(1.0,), loss=(1.0,), validation_loss=(1.0,))]) is None
    assert draw_loss([]) is None


def test_the_histogram_counts_every_case():
    chart = draw_histogram([0.0, 0.01, 0.5, 1.0])

    bars = {shape.title: shape.box[3] for shape in chart.shapes if shape.box}
    assert bars["0.00 to 0.05: 2 cases"] == chart.height
    assert bars["0.95 to 1.00: 1 cases"] == chart.height / 2
    assert chart.legend == (("limit", "median 0.255"),)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 12, [5, 10]),
        (0, 1.3, [0, 0.5, 1]),
        (3, 3, [3]),
        (0.91, 0.99, [0.92, 0.94, 0.96, 0.98]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def _decode(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


# In a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture
def drive(browser, tmp_path):
    """Open a page with a script that ends by giving its results: these, and what was written to the console."""

    def drive(content, script):
        page = tmp_path / "driven.html"
        ending = f"{script}; document.title = JSON.stringify(results);"
        ending = f"<script>addEventListener('load', async () => {{ const results = []; {ending} }});</script></body>"
        page.write_text(content.replace("</body>", ending), encoding="utf-8")
        dom, console = browser.dump(page)
        return json.loads(html.unescape(re.findall(r"<title>(.*?)</title>", dom, re.S)[0])), console

    return drive


def test_in_a_browser_the_table_sorts_filters_and_goes_on_when_scrolled(facts, drive):
    cases = many(facts().cases, 10_000)
    script = """
    const first = () => body.rows[0].cells[0].textContent;
    const sort = (title) => heads.find((head) => head.textContent === title).querySelector("button").click();
    const type = (text) => { filter.value = text; filter.dispatchEvent(new Event("input")); };
    results.push(body.rows.length, matches.textContent, first());
    const start = performance.now();
    sort("Dice"); results.push(heads[3].getAttribute("aria-sort"), first());
    sort("Dice"); sort("Case"); sort("Case"); results.push(first(), heads[3].getAttribute("aria-sort"));
    sort("Case"); sort("Fold"); results.push(first());
    type("CASE 04321"); results.push(body.rows.length, matches.textContent);
    type("0432"); results.push(body.rows.length);
    type("nothing like it"); results.push(body.rows.length);
    type(""); results.push(performance.now() - start < 4000);
    box.scrollTop = box.scrollHeight; box.dispatchEvent(new Event("scroll")); results.push(body.rows.length);
    """

    results, console = drive(render_page(facts(cases=cases), {}), script)

    assert console == []
    assert results[:3] == [200, "10000 of 10000 cases", "case 00000"]
    highest = max(cases, key=lambda case: case.dice).name
    assert results[3:5] == ["descending", highest]
    assert results[5:7] == ["case 09999", None]
    assert results[7] == "case 00000"
    assert results[8:10] == [1, "1 of 10000 cases"]
    assert results[10:] == [0, 0, True, 400]


def test_in_a_browser_the_filter_takes_words_of_names_groups_and_flags_and_no_digits_of_scores(facts, drive):
    plain = facts()
    [a, b, c, d] = plain.cases
    cases = (
        dataclasses.replace(a, name="152", group="8"),
        dataclasses.replace(b, name="1152", group="18", expected_dice=0.1528),
        dataclasses.replace(c, name="polyp_8", group="Zürich Nord", flagged=True, suspect=""),
        dataclasses.replace(d, name="polyp_80", group="Zürich Süd", suspect="not marked"),
    )
    script = """
    const type = (text) => { filter.value = text; filter.dispatchEvent(new Event("input")); };
    const names = () => [...body.rows].map((row) => row.cells[0].textContent).sort().join();
    const flags = ["152", "8", "group 8", "flagged", "suspect", "Flag"];
    const asked = [...flags, "ZÜR", "zürich-nord", "poly", "0.8", "olyp", ""];
    for (const text of asked) { type(text); results.push(names()); }
    """

    results, console = drive(render_page(facts(cases=cases), {}), script)

    assert console == []
    everything = "1152,152,polyp_8,polyp_80"
    assert results == [
        *("152", "152,polyp_8", "152,polyp_8", "polyp_8", "polyp_80", "polyp_8"),
        *("polyp_8,polyp_80", "polyp_8", "polyp_8,polyp_80", "", "", everything),
    ]


def test_in_a_browser_numbers_sort_as_numbers_and_what_is_undefined_comes_last(facts, drive):
    plain = facts()
    [score] = plain.cases[0].labels.values()
    cases = tuple(
        dataclasses.replace(
            plain.cases[0],
            name=name,
            labels={"polyp": dataclasses.replace(score, metrics={**score.metrics, "precision": precision})},
        )
        for name, precision in (("case 10", 0.5), ("case 9", math.nan), ("case 2", 0.25))
    )
    script = """
    const sort = (title) => heads.find((head) => head.textContent === title).querySelector("button").click();
    const names = () => [...body.rows].map((row) => row.cells[0].textContent).join();
    for (const title of ["Case", "Precision", "Precision"]) { sort(title); results.push(names()); }
    results.push(body.rows[2].cells[5].textContent);
    """

    results, console = drive(render_page(facts(cases=cases), {}), script)

    assert console == []
    assert results == ["case 2,case 9,case 10", "case 2,case 10,case 9", "case 10,case 2,case 9", "-"]


def test_in_a_browser_sliders_show_image_label_and_prediction_and_pictures_can_be_enlarged(facts, picture, drive):
    plain = facts()
    cases = (dataclasses.replace(plain.cases[0], name=HOSTILE), *plain.cases[1:])
    script = """
    results.push([...document.images].every((image) => image.naturalWidth > 0), document.images.length);
    const [input, other] = document.querySelectorAll("input[type=range]");
    const stack = input.closest("figure").querySelector(".stack");
    const opacity = (part) => getComputedStyle(stack.querySelector("." + part)).opacity;
    const shown = () => ["label", "prediction"].map(opacity);
    results.push(shown());
    const slide = (value) => { input.value = value; input.dispatchEvent(new Event("input", { bubbles: true })); };
    for (const value of [0, 0.5, 1, 3]) { slide(value); results.push(shown()); }
    results.push(input.getAttribute("aria-valuetext"), other.value);
    input.closest("figure").querySelectorAll(".stops span")[1].click(); results.push(input.value, shown());
    document.querySelector("[data-stop='0']").click(); results.push(other.value, shown());
    input.focus(); results.push(document.activeElement === input);
    input.closest("figure").querySelector(".enlarge").click();
    const inside = dialog.querySelector("input");
    inside.value = 3; inside.dispatchEvent(new Event("input", { bubbles: true }));
    results.push(dialog.open, dialog.querySelector("strong").textContent);
    results.push(dialog.querySelector(".stack").style.getPropertyValue("--prediction"), shown()[1]);
    results.push(dialog.querySelector(".stack").clientWidth > stack.clientWidth);
    dialog.querySelector("button").click(); results.push(dialog.open);
    """

    results, console = drive(render_page(facts(cases=cases), {HOSTILE: picture, "d": picture}), script)

    assert console == []
    assert results[:2] == [True, 9], "one case is among the worst, the other is suspect as well"
    assert results[2:7] == [["1", "1"], ["0", "0"], ["0.5", "0"], ["1", "0"], ["0", "1"]]
    assert results[7:9] == ["prediction", "2"]
    assert results[9:11] == ["1", ["1", "0"]]
    assert results[11:13] == ["0", ["0", "0"]]
    assert results[13:] == [True, True, HOSTILE, "1", "0", True, False]


def test_in_a_browser_the_page_fits_a_phone(facts, picture, drive):
    script = """
    const frame = document.createElement("iframe");
    frame.style.width = "390px";
    document.body.append(frame);
    frame.contentDocument.write(document.documentElement.outerHTML.replace(/<script>.*$/s, ""));
    const root = frame.contentDocument.documentElement;
    results.push(root.scrollWidth <= 390, frame.contentDocument.querySelector("h1").clientWidth > 300);
    """

    results, _ = drive(render_page(facts(), {"a": picture}), script)

    assert results == [True, True]
