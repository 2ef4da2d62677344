import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from iaunet.dataset import Source
from iaunet.discovery import find_files, pair_files
from iaunet.planners.fingerprint import Fingerprint, fingerprint_dataset, label_names
from iaunet.planners.mask_values import judge_masks
from iaunet.planners.rules import InputMode, choose_input_mode, find_lost_detail
from iaunet.records import from_json, to_json


def read(folder, workers=1, skip_faulty=False):
    source = Source(root=str(folder), missing_mask="empty")
    cases = pair_files(find_files(source), source).cases
    return fingerprint_dataset(folder, cases, workers, skip_faulty)


def change(path, function):
    """Rewrite an image file."""
    Image.fromarray(function(np.asarray(Image.open(path)))).save(path)


def told(reading):
    return [(problem.level, problem.file, problem.what) for problem in reading.problems]


def test_a_fingerprint_holds_what_was_measured_over_all_pixels(toy):
    fingerprint = read(toy).fingerprint
    images = np.stack([np.asarray(Image.open(path)) for path in sorted((toy / "images").iterdir())])
    masks = np.stack([np.asarray(Image.open(path)) for path in sorted((toy / "masks").iterdir())]) > 0

    assert [case.name for case in fingerprint.cases] == [f"case_{i:02d}" for i in range(12)]
    assert (fingerprint.channels, fingerprint.depth, fingerprint.labels) == (3, "uint8", ("foreground",))
    np.testing.assert_allclose([i.mean for i in fingerprint.intensity], images.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose([i.sd for i in fingerprint.intensity], images.std((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose([i.mean for i in fingerprint.foreground], images[masks].mean(0), rtol=1e-5)
    np.testing.assert_allclose([c.foreground_share for c in fingerprint.cases], masks.mean((1, 2)), atol=1e-6)
    np.testing.assert_array_equal(fingerprint.sizes, [(64, 64)] * 12)
    assert fingerprint.empty_masks == 0
    assert fingerprint.ceilings.min() > 0.95
    assert len(fingerprint.input_widths) == 12
    assert fingerprint.exact_duplicates == fingerprint.near_duplicates == ()


def test_it_survives_its_json_with_its_digest_and_holds_no_path_or_host(toy):
    fingerprint = read(toy).fingerprint
    text = json.dumps(to_json(fingerprint))

    restored = from_json(Fingerprint, json.loads(text))

    assert restored == fingerprint
    assert restored.digest == fingerprint.digest
    assert str(toy) not in text
    assert re.search(r"\d\d:\d\d", text) is None


@pytest.mark.parametrize("workers", [2, 3])
def test_it_is_the_same_whatever_the_number_of_workers_and_wherever_the_data_lie(tmp_path, write_toy, workers):
    here = write_toy(tmp_path / "a", 49)
    there = shutil.copytree(here, tmp_path / "b c ü")

    assert read(there, workers).fingerprint == read(here).fingerprint


def test_another_pixel_makes_another_digest(toy):
    before = read(toy).fingerprint.digest
    change(toy / "masks" / "case_05.png", lambda mask: mask[::-1])

    assert read(toy).fingerprint.digest != before


def test_exact_copies_and_near_copies_are_found(toy):
    shutil.copy(toy / "images" / "case_01.png", toy / "images" / "case_02.png")
    for name in ("case_07", "case_08"):
        change(toy / "images" / "case_06.png", lambda image: image)
        brighter = np.asarray(Image.open(toy / "images" / "case_06.png")).clip(0, 240) + 10
        Image.fromarray(brighter).save(toy / "images" / f"{name}.png")

    fingerprint = read(toy).fingerprint

    assert fingerprint.exact_duplicates == (("case_01", "case_02"), ("case_07", "case_08"))
    assert fingerprint.near_duplicates == (("case_01", "case_02"),)
    assert fingerprint.shared_look == 3


def test_grey_among_colour_is_promoted_and_said_so(toy):
    change(toy / "images" / "case_03.png", lambda image: image[..., 0])

    reading = read(toy)

    assert told(reading) == [("note", "case_03", "is grey among 3-channel images and was promoted")]
    assert reading.fingerprint.channels == 3
    assert reading.fingerprint.cases[3].channels == 1


def test_transparency_and_empty_masks_are_noted(toy):
    change(toy / "images" / "case_01.png", lambda image: np.dstack([image, np.full((64, 64), 9, np.uint8)]))
    (toy / "masks" / "case_02.png").unlink()
    change(toy / "masks" / "case_03.png", np.zeros_like)

    reading = read(toy)

    assert told(reading) == [
        ("note", "case_01", "transparency is left out"),
        ("note", "case_02 and 1 more", "mask is empty: kept as an image without foreground"),
    ]
    assert reading.fingerprint.empty_masks == 2
    assert reading.fingerprint.cases[2].ceiling is None
    assert reading.fingerprint.cases[2].labels == (None,)


def test_all_faults_are_told_together_and_stop_the_fingerprint(toy):
    (toy / "images" / "case_01.png").write_text("text")
    (toy / "masks" / "case_02.png").write_bytes((toy / "masks" / "case_02.png").read_bytes()[:-30])
    change(toy / "masks" / "case_03.png", lambda mask: mask[:50])
    change(toy / "images" / "case_04.png", lambda image: image[..., 0].astype(np.uint16) * 257)

    reading = read(toy)

    assert [(level, file) for level, file, _ in told(reading)] == [
        ("fault", "images/case_01.png"),
        ("fault", "masks/case_02.png"),
        ("fault", "masks/case_03.png"),
        ("fault", "images/case_04.png"),
    ]
    assert told(reading)[2][2] == "mask is 50 x 64, its image 64 x 64 (height x width)"
    assert told(reading)[3][2] == "pixels are uint16, most of the data set has uint8"
    assert reading.faulty == {"case_01", "case_02", "case_03", "case_04"}
    assert (reading.fingerprint, reading.coding) == (None, None)


def test_faulty_cases_can_be_skipped_and_the_others_are_as_without_them(toy, tmp_path, write_toy):
    (toy / "images" / "case_01.png").write_text("text")
    without = write_toy(tmp_path / "without")
    for part in ("images", "masks"):
        (without / part / "case_01.png").unlink()

    reading = read(toy, skip_faulty=True)

    assert reading.faulty == {"case_01"}
    assert reading.fingerprint == read(without).fingerprint


@pytest.mark.parametrize("skip_faulty", [False, True])
def test_masks_that_make_no_sense_together_are_a_fault_of_all_of_them(toy, skip_faulty):
    for path in (toy / "masks").iterdir():
        change(path, np.zeros_like)

    reading = read(toy, skip_faulty=skip_faulty)

    assert ("fault", "masks", "all masks are empty") in told(reading)
    assert reading.fingerprint is None


def test_a_dataset_whose_files_are_all_faulty_has_no_fingerprint(toy):
    for path in (toy / "images").iterdir():
        path.write_text("text")

    reading = read(toy, skip_faulty=True)

    assert len(reading.problems) == len(reading.faulty) == 12
    assert reading.fingerprint is None


def save_masks(folder, function, ending=".png", **options):
    """Replace the masks by what a function makes of their foreground and their number."""
    for number, path in enumerate(sorted((folder / "masks").iterdir())):
        mask = function(np.asarray(Image.open(path)) > 0, number)
        path.unlink()
        Image.fromarray(mask).save(path.with_suffix(ending), **options)


@pytest.mark.parametrize("quality", [75, 95])
def test_noisy_masks_as_jpeg_measure_as_the_exact_ones(toy, quality):
    exact = read(toy).fingerprint
    save_masks(toy, lambda mask, _: np.where(mask, np.uint8(255), np.uint8(0)), ".jpg", quality=quality)

    reading = read(toy)

    assert reading.coding.kind == "binary"
    assert reading.problems[-1].what.startswith("masks are binary with noise")
    assert reading.fingerprint.labels == ("foreground",)
    shares = [case.foreground_share for case in reading.fingerprint.cases]
    np.testing.assert_allclose(shares, [case.foreground_share for case in exact.cases], atol=0.003)
    assert reading.fingerprint.ceilings.min() > 0.95


def numbered(mask, number):
    """An instance map: the foreground, and up to four bars, each with a number of its own."""
    labels = mask.astype(np.uint8)
    for i in range(number % 5):
        labels[1 + 2 * i, :4] = i + 2
    return labels


@pytest.mark.parametrize("skip_faulty", [False, True])
def test_a_mask_that_is_lost_before_its_second_reading_is_a_fault(toy, tmp_path, monkeypatch, skip_faulty):
    def judge_and_lose(measurements):
        lost.unlink(missing_ok=True)
        return judge_masks(measurements)

    save_masks(toy, numbered)
    without = shutil.copytree(toy, tmp_path / "without")
    for part in ("images/case_05.png", "masks/case_05.png"):
        (without / part).unlink()
    lost = toy / "masks" / "case_05.png"
    monkeypatch.setattr("iaunet.planners.fingerprint.judge_masks", judge_and_lose)

    reading = read(toy, skip_faulty=skip_faulty)

    assert told(reading)[0] == ("fault", "masks/case_05.png", "file is missing")
    assert reading.faulty == {"case_05"}
    assert reading.fingerprint == (read(without).fingerprint if skip_faulty else None)


def test_instance_maps_measure_as_one_label(toy):
    save_masks(toy, numbered)

    reading = read(toy)

    assert reading.coding.kind == "nonzero"
    assert reading.fingerprint.labels == ("foreground",)
    assert [case.labels[0].components for case in reading.fingerprint.cases] == [1 + i % 5 for i in range(12)]


def test_labels_are_measured_each(toy):
    def two_labels(mask, number):
        labels = mask.astype(np.uint8)
        labels[:4, :16] = 2 if number % 2 else 0
        return labels

    save_masks(toy, two_labels)

    reading = read(toy)

    assert (reading.coding.kind, reading.coding.values) == ("values", (1, 2))
    assert reading.fingerprint.labels == ("label_1", "label_2")
    assert [case.labels[1] is not None for case in reading.fingerprint.cases] == [i % 2 == 1 for i in range(12)]
    assert reading.fingerprint.cases[1].labels[1].share == pytest.approx(64 / 64**2)


def test_widths_are_scaled_by_the_shorter_way_to_the_input(fingerprint, case):
    widths = fingerprint([case("a", size=(512, 128), width=10.0), case("b", share=0)]).input_widths

    np.testing.assert_allclose(widths, [5.0])


def test_labels_without_names_are_numbered_and_one_alone_is_the_foreground():
    assert label_names(1) == ("foreground",)
    assert label_names(3) == ("label_1", "label_2", "label_3")


@pytest.mark.real_data
def test_clinicdb_has_the_facts_it_is_known_for(real_data):
    folder = real_data / "CVC-ClinicDB"
    with (folder / "sequences.csv").open(newline="") as file:
        sequences = {row["sample_id"]: row["sequence_id"] for row in csv.DictReader(file)}

    source = Source(root=str(folder))
    cases = pair_files(find_files(source), source).cases
    fingerprint = fingerprint_dataset(folder, cases[::2], workers=2).fingerprint

    assert len(cases) == 612
    assert len({sequences[case.name] for case in cases}) == 29
    assert {case.size for case in fingerprint.cases} == {(288, 384)}
    assert (fingerprint.channels, fingerprint.depth, fingerprint.labels) == (3, "uint8", ("foreground",))
    assert np.median(fingerprint.ceilings) == pytest.approx(0.995, abs=0.003)
    assert choose_input_mode(fingerprint, (256, 256)).value == InputMode("resize")
    assert find_lost_detail(fingerprint, InputMode("resize")) is None
    assert fingerprint.empty_masks == 0
    assert all(len({sequences[name] for name in group}) == 1 for group in fingerprint.near_duplicates)


@pytest.mark.real_data
def test_the_vessels_of_drive_are_too_thin_for_the_input(real_data):
    reading = read(real_data / "DRIVE")

    assert len(reading.fingerprint.cases) == 20
    assert np.median(reading.fingerprint.ceilings) == pytest.approx(0.84, abs=0.02)
    assert np.median(reading.fingerprint.input_widths) < 3
    assert find_lost_detail(reading.fingerprint, InputMode("resize")) is not None
    assert choose_input_mode(reading.fingerprint, (256, 256)).value == InputMode("tiles")
