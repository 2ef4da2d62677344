import dataclasses
import re
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iaunet.contours import find_contour
from iaunet.dataset import Dataset, MaskCoding, Problem, Source
from iaunet.discovery import find_files, pair_files
from iaunet.planners.fingerprint import fingerprint_dataset
from iaunet.preprocessing.arrays import open_arrays
from iaunet.preprocessing.check import write_check
from iaunet.preprocessing.check_cases import N_SPREAD
from iaunet.preprocessing.check_problems import PROBLEM_BYTES
from iaunet.preprocessing.preparation import Preparation, prepare_dataset
from iaunet.workspace import DatasetFolder

HOSTILE = "<script>alert(1)<｜script>&\"'{{ 7*7 }}"
"""A file's name cannot hold the slash of a closing tag."""

VOID = {"meta", "img", "input", "line"}


class Page(HTMLParser):
    """A page's figures and text by section, its pictures and every other reference to a file."""

    def __init__(self, html):
        super().__init__()
        self.html = html
        self.open, self.scripts, self.text = [], [], {}
        self.section, self.figures, self.references = "header", [], []
        self.feed(html)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = values["id"]
        if tag == "script":
            self.scripts.append(values)
        if tag == "figure":
            figure = {"section": self.section, "class": values["class"], "images": [], "text": "", "blanks": 0}
            self.figures.append(figure)
        if tag == "img":
            self.figures[-1]["images"].append(values)
        if tag == "div" and values.get("class") == "blank":
            self.figures[-1]["blanks"] += 1
        self.references += [values[name] for name in ("src", "href", "action", "data") if name in values]

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = "after"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text[self.section] = self.text.get(self.section, "") + data
            if "figure" in self.open:
                self.figures[-1]["text"] += data

    def of(self, section):
        return [figure for figure in self.figures if figure["section"] == section]

    def names(self, section):
        return [figure["text"].strip().split("foreground")[0].strip() for figure in self.of(section)]


def change(path, function):
    Image.fromarray(function(np.asarray(Image.open(path)))).save(path)


def cut(path, n_bytes=1000):
    path.write_bytes(path.read_bytes()[:n_bytes])


def read(raw, skip_faulty=False):
    source = Source(root=str(raw), skip_faulty=skip_faulty)
    discovery = pair_files(find_files(source), source)
    reading = fingerprint_dataset(raw, discovery.cases, 1, skip_faulty)
    return source, discovery, [*discovery.problems, *reading.problems]


@pytest.fixture
def check_planned(tmp_path):
    """Plans a folder and writes its page; gives the parsed page and what was prepared."""

    def check_planned(raw, workers=1, **wish):
        skip_faulty = wish.pop("skip_faulty", False)
        folder = DatasetFolder(tmp_path / "workspace" / raw.name)
        source, discovery, problems = read(raw, skip_faulty)
        prepared = prepare_dataset(folder, source, Preparation(**wish))
        arrays = open_arrays(folder.preprocessed, prepared.plan.arrays_digest) if prepared.index else None
        path = write_check(
            folder,
            dataset=prepared.dataset,
            found=discovery.cases,
            problems=problems,
            fingerprint=prepared.fingerprint,
            plan=prepared.plan,
            splits=prepared.splits,
            arrays=arrays,
            workers=workers,
        )
        return Page(path.read_text(encoding="utf-8")), prepared, arrays

    return check_planned


@pytest.fixture
def check_stopped(tmp_path):
    """Writes the page of a folder whose faults stop planning."""

    def check_stopped(raw, problems=None, workers=1):
        source, discovery, found = read(raw)
        dataset = Dataset(
            name=raw.name,
            source=source,
            understood=discovery.understood,
            labels=(),
            coding=MaskCoding(kind="binary", values=(), written=(255,)),
            cases=discovery.cases,
        )
        folder = DatasetFolder(tmp_path / "workspace" / raw.name)
        chosen = found if problems is None else problems
        path = write_check(folder, dataset=dataset, found=discovery.cases, problems=chosen, workers=workers)
        assert path == folder.root / "check.html"
        return Page(path.read_text(encoding="utf-8"))

    return check_stopped


def test_the_page_shows_data_plan_reasons_folds_and_needs_no_other_file(toy, check_planned):
    page, prepared, _ = check_planned(toy)

    assert "Ready to train" in page.text["header"]
    assert "12 cases: images in images/, masks in masks/" in page.text["header"]
    assert "64 x 64 px" in page.text["data"]
    assert "3 channels, uint8" in page.text["data"]
    assert f"median {np.median(prepared.fingerprint.ceilings):.3f}" in page.text["data"]
    assert [prepared.plan.why[field] in page.text["plan"] for field in prepared.plan.why] == [True] * 6
    assert "iaunet, width 64, depth 5" in page.text["plan"]
    assert prepared.plan.warnings[0] in page.text["plan"]
    assert page.text["plan"].count("held out") == 2
    assert all(reference.startswith(("data:image/", "#")) for reference in page.references)
    assert not re.search(r"https?:|@import|url\(", page.html)
    assert page.html.count("<script") == 1


def test_the_same_data_give_the_same_page(toy, check_planned):
    first, _, _ = check_planned(toy)
    second, _, _ = check_planned(toy, workers=2)

    assert first.html == second.html


def test_a_spread_of_cases_is_shown_as_the_network_gets_them_with_contours(
    toy, write_toy, tmp_path, check_planned, decode
):
    page, prepared, arrays = check_planned(write_toy(tmp_path / "more", 30))

    share = {case.name: case.foreground_share for case in prepared.fingerprint.cases}
    names = page.names("cases")
    assert len(set(names)) == len(names) == N_SPREAD
    shown = [share[name] for name in names]
    assert shown == sorted(shown)
    assert shown[0] <= np.quantile([*share.values()], 0.1)
    assert shown[-1] >= np.quantile([*share.values()], 0.9)
    order = [row.case for row in arrays.index.rows]
    for figure, name in zip(page.of("cases"), names, strict=True):
        picture, contours = (decode(image["src"]) for image in figure["images"])
        row = order.index(name)
        assert picture.size == (256, 256)
        similarity = np.corrcoef(np.asarray(picture).ravel(), np.moveaxis(arrays.images[row], 0, 2).ravel())
        assert similarity[0, 1] > 0.95
        alpha = np.asarray(contours.convert("RGBA"))[::2, ::2, 3] > 0
        near = find_contour(arrays.masks[row] == 1, 3)
        assert alpha.sum() > 100
        assert near[alpha].all()
        assert name in figure["images"][0]["alt"]


def test_of_a_case_cut_into_tiles_the_one_with_most_foreground_is_shown(tmp_path, check_planned, decode):
    raw = tmp_path / "thin"
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (raw / part).mkdir(parents=True)
    for i in range(6):
        mask = np.zeros((768, 768), np.uint8)
        mask[::6, 16 * i : 16 * i + 40] = 255
        mask[520:760:6, 400 + 16 * i :] = 255
        Image.fromarray(mask).save(raw / "masks" / f"{i}.png")
        image = mask // 2 + rng.integers(0, 100, mask.shape, np.uint8)
        Image.fromarray(image).save(raw / "images" / f"{i}.png", compress_level=1)

    page, prepared, arrays = check_planned(raw)

    assert prepared.plan.input_mode == "tiles"
    rows = [number for number, row in enumerate(arrays.index.rows) if row.case == "3"]
    best = max(rows, key=lambda row: np.count_nonzero(arrays.masks[row]))
    figure = next(figure for figure in page.of("cases") if figure["text"].strip().startswith("3"))
    assert f"1 of {len(rows)} rows" in figure["text"]
    shown = np.asarray(decode(figure["images"][0]["src"]), float)
    assert np.corrcoef(shown.ravel(), arrays.images[best].astype(float).ravel())[0, 1] > 0.9


def test_the_strangest_case_in_each_respect_is_the_one_that_was_made_strange(write_toy, tmp_path, check_planned):
    raw = write_toy(tmp_path / "strange", 24)
    change(raw / "images" / "case_03.png", lambda image: image.repeat(16, 0).repeat(16, 1))
    change(raw / "masks" / "case_03.png", lambda mask: mask.repeat(16, 0).repeat(16, 1))
    change(raw / "images" / "case_05.png", lambda image: image[20:44])
    change(raw / "masks" / "case_05.png", lambda mask: mask[20:44])
    change(raw / "images" / "case_07.png", lambda image: image // 8)
    change(raw / "masks" / "case_09.png", lambda mask: np.where(np.arange(64) < 60, mask | 255, 0).astype(np.uint8))
    change(raw / "masks" / "case_11.png", lambda mask: np.diag(np.full(64, 255, np.uint8)))
    change(raw / "images" / "case_13.png", lambda image: image.repeat(8, 0).repeat(8, 1))
    change(
        raw / "masks" / "case_13.png",
        lambda mask: mask.repeat(8, 0).repeat(8, 1) * np.tile(np.array([0, 1], np.uint8), 256),
    )

    page, prepared, _ = check_planned(raw)

    said = page.text["strangest"]
    first = {
        title: re.search(rf"{title}\n.*?(case_\d\d)(.*?)(?=case_|\n\n)", said, re.DOTALL).groups()
        for title in ("Size", "Aspect", "Colour or intensity", "Most foreground", "Least foreground above none")
    }
    cases = {case.name: case for case in prepared.fingerprint.cases}
    assert {title: name for title, (name, _) in first.items()} == {
        "Size": "case_03",
        "Aspect": "case_05",
        "Colour or intensity": "case_07",
        "Most foreground": "case_09",
        "Least foreground above none": "case_11",
    }
    assert "1024 x 1024 px" in first["Size"][1]
    assert f"foreground {cases['case_09'].foreground_share:.2%}" in first["Most foreground"][1]
    assert re.search(r"robust z \+\d+\.\d", first["Colour or intensity"][1])
    assert re.search(r"Number of components\n.*?(case_\d\d)(\d+) components", said, re.DOTALL).groups() == (
        max(cases, key=lambda name: cases[name].labels[0].components),
        str(max(case.labels[0].components for case in cases.values())),
    )
    lowest = min(cases.values(), key=lambda case: case.ceiling)
    assert re.search(r"Lowest ceiling\n.*?(case_\d\d)ceiling (\S+?)robust", said, re.DOTALL).groups() == (
        lowest.name,
        f"{lowest.ceiling:.3f}",
    )
    assert " marked" in next(f["class"] for f in page.of("strangest") if "1024 x 1024 px" in f["text"])


def test_cases_that_are_all_alike_in_one_respect_are_not_called_strange(toy, check_planned):
    page, _, _ = check_planned(toy)

    assert not re.search(r"^(Size|Aspect|Number of components)$", page.text["strangest"], re.MULTILINE)


def test_every_fault_is_shown_with_its_files_when_planning_stops(toy, check_stopped, decode):
    cut(toy / "images" / "case_00.png")
    change(toy / "masks" / "case_01.png", lambda mask: mask[:60] // 255)
    (toy / "masks" / "case_02.png").unlink()
    (toy / "images" / "case_03.png").write_bytes(b"")
    change(toy / "images" / "case_04.png", lambda image: image[..., 0].astype(np.uint16) * 200)
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(toy / "masks" / "stranger.png")

    page = check_stopped(toy)

    assert "Planning stopped: 5 faults" in page.text["header"]
    assert list(page.text) == ["header", "faults", "after", "notes"]
    faults = {re.search(r"\w+/\w+\.png", figure["text"])[0]: figure for figure in page.of("faults")}
    assert {name: (len(figure["images"]), figure["blanks"]) for name, figure in faults.items()} == {
        "images/case_00.png": (1, 1),
        "masks/case_01.png": (2, 0),
        "images/case_02.png": (1, 1),
        "images/case_03.png": (1, 1),
        "images/case_04.png": (2, 0),
    }
    assert "is truncated or damaged" in faults["images/case_00.png"]["text"]
    assert "mask is 60 x 64, its image 64 x 64" in faults["masks/case_01.png"]["text"]
    assert "mask 60 x 64 px, values 0, 1" in faults["masks/case_01.png"]["text"]
    assert "bring the mask to the image's size" in faults["masks/case_01.png"]["text"]
    assert "no mask" in faults["images/case_02.png"]["text"]
    assert "file is empty" in faults["images/case_03.png"]["text"]
    image, mask = (decode(image["src"]) for image in faults["masks/case_01.png"]["images"])
    truth = np.asarray(Image.open(toy / "images" / "case_01.png"), float)
    np.testing.assert_allclose(np.asarray(image, float).mean((0, 1)), truth.mean((0, 1)), atol=3)
    np.testing.assert_array_equal(np.asarray(mask), np.asarray(Image.open(toy / "masks" / "case_01.png")) * 255)
    [note] = page.of("notes")
    assert "mask has no image and is left out" in note["text"]
    assert np.asarray(decode(note["images"][0]["src"])).sum() == 64 * 255


def test_left_out_cases_are_shown_too_and_their_masks_beside_them(toy, check_planned):
    cut(toy / "images" / "case_00.png")

    page, _, _ = check_planned(toy, skip_faulty=True)

    assert "Cases with faults are left out (1 fault)." in page.text["header"]
    [figure] = page.of("faults")
    assert (len(figure["images"]), figure["blanks"]) == (1, 1)
    assert len(page.of("cases")) == 11


def test_masks_that_cannot_be_understood_together_are_shown_by_some_of_them(toy, check_stopped):
    for path in (toy / "masks").iterdir():
        change(path, lambda mask: mask * 0)

    page = check_stopped(toy)

    [figure] = page.of("faults")
    assert "all masks are empty" in figure["text"]
    assert figure["text"].count("mask 64 x 64 px, values 0") == len(figure["images"]) == 4


def test_a_note_on_several_cases_shows_the_first(toy, check_planned):
    for number in (2, 5, 6):
        change(toy / "masks" / f"case_{number:02d}.png", lambda mask: mask * 0)

    page, _, _ = check_planned(toy)

    [note] = page.of("notes")
    assert "case_02 and 2 more" in note["text"]
    assert [image["alt"] for image in note["images"]] == ["image of case_02", "mask of case_02"]
    assert re.findall(r"case_\d\d", page.text["empty"]) == ["case_02", "case_05", "case_06"]


def test_sixty_faults_of_a_kind_have_pictures_and_all_are_named(write_toy, tmp_path, check_stopped):
    raw = write_toy(tmp_path / "many", 64)
    problems = [
        Problem(level="fault", file=f"images/case_{i:02d}.png", what=f"has {i} spots", mend="wipe") for i in range(64)
    ]
    other = Problem(level="fault", file="images/case_00.png", what="is upside down", mend="turn it")

    page = check_stopped(raw, [*problems, other])

    assert len(page.of("faults")) == 61
    assert "and 63 more like it" in page.text["faults"]
    assert "4 more without picture" in page.text["faults"]
    assert all(f"has {i} spots" in page.text["faults"] for i in range(64))


def test_pictures_of_faults_stay_within_their_share_of_the_page(tmp_path, check_stopped):
    raw = tmp_path / "noise"
    (raw / "images").mkdir(parents=True)
    (raw / "masks").mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (320, 320, 3), np.uint8)).save(
            raw / "images" / f"{i}.png", compress_level=0
        )
        Image.fromarray(rng.integers(0, 256, (320, 320), np.uint8)).save(raw / "masks" / f"{i}.png", compress_level=0)
    problems = [Problem(level="fault", file=f"images/{i}.png", what="is noisy", mend="none") for i in range(60)]

    page = check_stopped(raw, problems)

    shown = len(page.of("faults"))
    assert 10 < shown < 60
    assert f"{60 - shown} more without picture" in page.text["faults"]
    assert 0.9 * PROBLEM_BYTES < len(page.html) < PROBLEM_BYTES + 100_000


def test_equal_and_nearly_equal_images_stand_side_by_side(write_toy, tmp_path, check_planned):
    raw = write_toy(tmp_path / "twins", 24)
    (raw / "images" / "case_04.png").write_bytes((raw / "images" / "case_03.png").read_bytes())
    change(raw / "images" / "case_08.png", lambda _: np.asarray(Image.open(raw / "images" / "case_09.png")) // 2)

    page, _, _ = check_planned(raw)

    assert [figure["text"].strip() for figure in page.of("duplicates")] == ["case_03", "case_04", "case_08", "case_09"]
    assert "2 cases equal to the byte, but their mask files differ" in page.text["duplicates"]
    assert "2 cases nearly equal" in page.text["duplicates"]
    assert "Duplicates 2 groups" in page.text["duplicates"]
    assert all(len(figure["images"]) == 2 for figure in page.of("duplicates"))


def test_at_most_thirty_groups_of_duplicates_are_shown(write_toy, tmp_path, check_planned):
    raw = write_toy(tmp_path / "copies", 33)
    for path in [*(raw / "images").iterdir(), *(raw / "masks").iterdir()]:
        path.with_name(f"b{path.name}").write_bytes(path.read_bytes())

    page, _, _ = check_planned(raw)

    assert len(page.of("duplicates")) == 60
    assert "and 3 more groups" in page.text["duplicates"]


def test_raw_files_stand_in_for_arrays_that_were_not_written(toy, check_planned):
    page, _, _ = check_planned(toy, dry_run=True)

    assert "No arrays were written yet" in page.text["header"]
    assert page.of("cases") == []
    assert all(len(figure["images"]) == 2 for figure in page.of("strangest"))
    assert 'id="contours"' not in page.html


def test_raw_files_alone_need_no_plan(toy, check_planned, tmp_path):
    source, discovery, problems = read(toy)
    folder = DatasetFolder(tmp_path / "workspace" / "toy")
    prepared = prepare_dataset(folder, source, Preparation(verify_only=True))

    path = write_check(
        folder, dataset=prepared.dataset, found=discovery.cases, problems=problems, fingerprint=prepared.fingerprint
    )

    page = Page(path.read_text(encoding="utf-8"))
    assert "Read and checked" in page.text["header"]
    assert "plan" not in page.text
    assert len(page.of("strangest")) > 0


def test_groups_are_named_with_their_sizes(toy, tmp_path, check_planned):
    for part in ("images", "masks"):
        for path in sorted((toy / part).iterdir()):
            patient = f"Jürgen {int(path.stem[-2:]) % 11}"
            (toy / part / patient).mkdir(exist_ok=True)
            path.rename(toy / part / patient / path.name)
    source, discovery, problems = read(toy)
    folder = DatasetFolder(tmp_path / "workspace" / "toy")
    source = dataclasses.replace(source, groups="folder")
    prepared = prepare_dataset(folder, source, Preparation())

    path = write_check(
        folder,
        dataset=prepared.dataset,
        found=discovery.cases,
        problems=problems,
        fingerprint=prepared.fingerprint,
        plan=prepared.plan,
        splits=prepared.splits,
    )

    text = Page(path.read_text(encoding="utf-8")).text
    assert "11, 1 to 2 cases each (folders)" in text["data"]
    assert "Jürgen 0 2 cases" in text["plan"]
    assert "inflated: 1 of 11 groups are spread" in text["plan"]
    assert re.search(r"grouped\s+used unless you say otherwise", text["plan"])


@pytest.mark.parametrize("stops", [False, True])
def test_names_are_shown_as_they_are_and_run_nothing(toy, check_planned, check_stopped, stops):
    for part in ("images", "masks"):
        (toy / part / "case_06.png").rename(toy / part / f"{HOSTILE}.png")
    if stops:
        cut(toy / "images" / f"{HOSTILE}.png")
        page = check_stopped(toy)
        assert any(HOSTILE in figure["text"] for figure in page.of("faults"))
    else:
        page, _, _ = check_planned(toy)
        assert HOSTILE in page.names("cases")
    assert page.scripts == [{}]


def test_a_slash_in_a_name_cannot_end_the_page_either(toy, check_stopped):
    name = '</figure></main><script>alert(1)</script>&"'
    problem = Problem(level="fault", file=name, what=name, mend=name)

    page = check_stopped(toy, [problem])

    assert page.of("faults")[0]["text"].count(name) == 3
    assert page.scripts == [{}]


def test_in_a_browser_contours_can_be_hidden_and_pictures_enlarged(toy, check_planned, browser, tmp_path):
    (toy / "images" / "case_06.png").rename(toy / "images" / f"{HOSTILE}.png")
    (toy / "masks" / "case_06.png").rename(toy / "masks" / f"{HOSTILE}.png")
    page, _, _ = check_planned(toy)
    script = """
    <script>
    addEventListener("load", () => {
      const results = [[...document.images].every((image) => image.naturalWidth > 0)];
      const lines = document.querySelector("figure .contours");
      results.push(getComputedStyle(lines).visibility);
      for (let i = 0; i < 2; i++) {
        document.querySelector("label.switch").click();
        results.push(getComputedStyle(lines).visibility);
      }
      const small = document.querySelector("figure img");
      small.closest(".enlarge").click();
      const large = dialog.querySelector("img");
      results.push(dialog.open, large.src === small.src, large.clientWidth > 2 * small.clientWidth);
      dialog.querySelector("form button").click();
      results.push(dialog.open);
      document.title = results.join(" ");
      small.closest(".enlarge").click();
    });
    </script></body>"""
    clicking = tmp_path / "clicking.html"
    clicking.write_text(page.html.replace("</body>", script), encoding="utf-8")

    dom, console = browser.dump(clicking)
    browser.shoot(clicking, tmp_path / "page.png", 1000, 800)

    assert re.search("<title>(.*?)</title>", dom)[1] == "true visible hidden visible true true true false"
    assert console == []
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (1000, 800)


def test_in_a_browser_the_page_of_a_stopped_planning_has_no_errors(toy, check_stopped, browser, tmp_path):
    cut(toy / "images" / "case_00.png")
    check_stopped(toy)

    dom, console = browser.dump(tmp_path / "workspace" / "toy" / "check.html")

    assert "Planning stopped: 1 fault" in dom
    assert console == []


def test_without_a_browser_its_tests_are_skipped(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(pytest.skip.Exception, match="no Chromium found"):
        import_module("browser").find_browser(tmp_path)
