import csv
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from iaunet.dataset import Dataset
from iaunet.errors import PreprocessingError
from iaunet.networks import timing
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.folds import load_splits
from iaunet.planners.plan import load_plan
from iaunet.preprocessing import preparation
from iaunet.preprocessing.arrays import open_arrays
from iaunet.preprocessing.cases import prepare_case
from iaunet.preprocessing.command import main
from iaunet.preprocessing.preprocess import preprocess
from iaunet.records import from_json, to_json
from iaunet.resample import resize_mask
from iaunet.stacks import Stack
from iaunet.storage import digest
from iaunet.workers import map_in_processes
from iaunet.workspace import DatasetFolder

NARROW = ("--width", "1")  # the time of training is estimated sooner


@pytest.fixture
def workspace(tmp_path):
    return tmp_path / "workspace"


@pytest.fixture
def prepare(workspace, capsys):
    """Runs the command in this process; gives its exit code and what it printed."""

    def prepare(*arguments):
        capsys.readouterr()
        code = main([*NARROW, "--workspace", str(workspace), "--workers", "1", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return prepare


def files_of(folder):
    """All files below a folder with their bytes; locks are none of ours to compare."""
    if not folder.exists():
        return {}
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.endswith(".lock")}


LOOKED_AT = {"toy/problems.csv", "toy/check.html"}
"""What reading a data set writes, whatever comes of it."""


def prepared_files(files):
    """Files but those that tell what was read."""
    return {name: content for name, content in files.items() if name not in LOOKED_AT}


def without_truth(files):
    return sorted(name for name in files if "/truth/" not in name)


def prepared_picture(image, plan):
    """The only row of a picture [C, H, W]."""
    (row,) = prepare_case(Stack(image[:, None]), plan).rows()
    return row


def change(path, function):
    Image.fromarray(function(np.asarray(Image.open(path)))).save(path)


def splits_of(folder):
    return load_splits(folder / "splits.json").splits


def groups_of(folder):
    return json.loads((folder / "dataset.json").read_text())["groups"]


def edit_plan(folder, **fields):
    path = folder / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_folder_becomes_a_plan_with_reasons_folds_and_arrays(toy, workspace, prepare):
    code, out, err = prepare(toy)

    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"workspace {workspace}"
    assert "toy: 12 cases: images in images/, masks in masks/" in out
    assert out.count("because: ") == 6
    assert "warning    no groups: optimistic if images share patients" in out
    assert re.search(r"folds      random: (\d, ){4}\d cases held out", out)
    assert "next       iaunet_train toy 0 (one fold) or iaunet_train toy cv (all)\n" in out
    assert re.search(r"time       about \S+ \S+ for 5 folds on ", out)
    assert without_truth(files_of(workspace)) == sorted(
        f"toy/{name}"
        for name in (
            "check.html",
            "dataset.json",
            "familiar.json",
            "fingerprint.json",
            "plan.json",
            "preprocessed/done.npy",
            "preprocessed/images.npy",
            "preprocessed/index.json",
            "preprocessed/masks.npy",
            "problems.csv",
            "splits.json",
        )
    )


def test_the_rows_are_the_normalised_images_and_masks_at_256_by_256(toy, workspace, prepare):
    change(toy / "images" / "case_04.png", lambda image: image[:, :40])
    change(toy / "masks" / "case_04.png", lambda mask: mask[:, :40])

    prepare(toy)

    plan = load_plan(workspace / "toy" / "plan.json")
    arrays = open_arrays(workspace / "toy" / "preprocessed", plan.arrays_digest)
    assert [row.case for row in arrays.index.rows] == [f"case_{i:02d}" for i in range(12)]
    assert arrays.index.rows[4].geometry.native_size == (64, 40)
    for row, case in enumerate(sorted(path.name for path in (toy / "images").iterdir())):
        image = np.asarray(Image.open(toy / "images" / case)).transpose(2, 0, 1)
        mask = (np.asarray(Image.open(toy / "masks" / case)) > 0).astype(np.uint8)
        np.testing.assert_array_equal(arrays.images[row], prepared_picture(image, plan).astype(np.float16))
        np.testing.assert_array_equal(arrays.masks[row], resize_mask(mask, (256, 256)))
        np.testing.assert_array_equal(arrays.truth(arrays.index.rows[row].case), mask[None])
        assert arrays.foreground[row]
    np.testing.assert_allclose(arrays.images.astype(float).mean((0, 2, 3)), 0, atol=0.05)
    np.testing.assert_allclose(arrays.images.astype(float).std((0, 2, 3)), 1, atol=0.1)


def test_the_same_command_again_changes_nothing_and_says_so(toy, workspace, prepare):
    prepare(toy)
    before = files_of(workspace)

    code, out, _ = prepare(toy)

    assert code == 0
    assert "preprocessed arrays are up to date" in out
    assert files_of(workspace) == before


def test_everything_is_the_same_whatever_the_number_of_workers(tmp_path, write_toy):
    toy = write_toy(tmp_path / "toy", 50)
    for workers in ("1", "3"):
        assert main([*NARROW, str(toy), "--workspace", str(tmp_path / workers), "--workers", workers]) == 0

    assert files_of(tmp_path / "1") == files_of(tmp_path / "3")


def test_only_the_datasets_own_file_knows_where_the_raw_data_lay(toy, workspace, prepare, tmp_path):
    prepare(toy)
    copied = shutil.copytree(toy, tmp_path / "elsewhere" / "toy")
    before = files_of(workspace)
    shutil.rmtree(workspace)
    prepare(copied)

    after = files_of(workspace)
    assert {name for name in after if after[name] != before[name]} == {"toy/dataset.json"}
    for name, content in after.items():
        assert (str(tmp_path).encode() in content) == (name == "toy/dataset.json")


def test_paths_with_spaces_and_other_scripts_are_names_like_any(tmp_path, write_toy, workspace, prepare):
    toy = write_toy(tmp_path / "Größe 1 图像")
    (toy / "images" / "case_00.png").rename(toy / "images" / "ä б 1.png")
    (toy / "masks" / "case_00.png").rename(toy / "masks" / "ä б 1.png")

    code, out, _ = prepare(toy)

    assert code == 0
    assert "iaunet_train Größe 1 图像 0" in out
    assert "ä б 1" in (workspace / "Größe 1 图像" / "splits.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", ["--verify_only", "--dry_run"])
def test_looking_writes_nothing_but_what_was_seen(toy, workspace, prepare, option):
    code, out, _ = prepare(toy, option)

    assert code == 0
    assert f"({option})" in out
    assert ("because: " in out) == (option == "--dry_run")
    assert {*files_of(workspace)} == LOOKED_AT


@pytest.mark.parametrize("option", ["--verify_only", "--dry_run"])
def test_looking_at_a_prepared_dataset_leaves_it_as_it_is(toy, workspace, prepare, option):
    prepare(toy)
    before = files_of(workspace)
    change(toy / "images" / "case_00.png", lambda image: image[::-1])

    assert prepare(toy, option)[0] == 0

    assert prepared_files(files_of(workspace)) == prepared_files(before)


def shrink(path):
    change(path, lambda pixels: pixels[:32])


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def bomb(path):
    """Let the header of a PNG tell of 30000x30000 pixels."""
    data = path.read_bytes()
    header = data[12:16] + struct.pack(">II", 30_000, 30_000) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


def empty_masks(toy):
    for path in (toy / "masks").iterdir():
        change(path, np.zeros_like)


def leave(toy, n):
    for part in ("images", "masks"):
        for path in sorted((toy / part).iterdir())[n:]:
            path.unlink()


BAD_INPUT = {
    "empty folder": (
        lambda toy: (shutil.rmtree(toy), toy.mkdir()),
        r".*toy holds no images \(.+\): give the folder that holds images and masks",
    ),
    "no folder": (shutil.rmtree, r".*toy does not exist: check the path"),
    "no masks": (
        lambda toy: shutil.rmtree(toy / "masks"),
        r".*toy holds 12 images and no masks: put the masks in a folder 'masks' beside 'images', .*",
    ),
    "mask of another size": (
        lambda toy: shrink(toy / "masks" / "case_01.png"),
        r"masks/case_01\.png: mask is 32 x 64, its image 64 x 64 \(height x width\): bring the mask .*--skip_faulty\)",
    ),
    "truncated": (
        lambda toy: cut(toy / "images" / "case_01.png"),
        r"images/case_01\.png: is truncated or damaged \(.*\): copy it again from its source or remove it .*",
    ),
    "text": (
        lambda toy: (toy / "images" / "case_01.png").write_text("hello"),
        r"images/case_01\.png: is not a readable PNG, JPEG, BMP or TIFF image, whatever its name says: remove it .*",
    ),
    "bomb": (
        lambda toy: bomb(toy / "images" / "case_01.png"),
        r"images/case_01\.png: has 30000 x 30000 pixels, more than the [0-9,]+ allowed: cut or shrink it .*",
    ),
    "empty file": (
        lambda toy: (toy / "masks" / "case_01.png").write_bytes(b""),
        r"masks/case_01\.png: file is empty: copy it again or remove it .*",
    ),
    "empty masks": (
        empty_masks,
        r"masks: all masks are empty: check that the masks are those of these images .* above 0",
    ),
    "three images": (lambda toy: leave(toy, 3), r"3 cases are too few for 5 folds: use --folds 3, or add 2 more"),
    "image without mask": (
        lambda toy: (toy / "masks" / "case_01.png").unlink(),
        r"images/case_01\.png: has no mask: add the mask, or use --missing_mask empty\|skip .*",
    ),
    "two images of a name": (
        lambda toy: shutil.copy(toy / "images" / "case_01.png", toy / "images" / "case_01.jpg"),
        r"images/case_01\.png: has the name of images/case_01\.jpg: rename one of them .*",
    ),
    "several faults": (
        lambda toy: (cut(toy / "images" / "case_01.png"), shrink(toy / "masks" / "case_02.png")),
        r"2 faults, all in .*problems\.csv and shown in .*check\.html: mend them, or leave such .* with --skip_faulty",
    ),
    "mixed depth": (
        lambda toy: change(toy / "images" / "case_01.png", lambda image: image[..., 0].astype(np.uint16)),
        r"images/case_01\.png: pixels are uint16, most of the data set has uint8: convert the images .*",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing_half_written(toy, workspace, prepare, spoil, message):
    spoil(toy)

    code, _, err = prepare(toy)

    assert code == 2
    assert re.fullmatch(rf"error: {message}\n", err)
    assert {*files_of(workspace)} <= LOOKED_AT


@pytest.mark.parametrize("fault", ["empty folder", "truncated", "empty masks", "three images"])
def test_data_that_went_bad_leave_what_was_prepared_before(toy, workspace, prepare, fault):
    prepare(toy)
    before = files_of(workspace)
    spoil, _ = BAD_INPUT[fault]
    spoil(toy)

    assert prepare(toy)[0] == 2

    assert prepared_files(files_of(workspace)) == prepared_files(before)


def test_every_fault_and_note_is_a_row_of_the_problems(toy, workspace, prepare):
    cut(toy / "images" / "case_01.png")
    (toy / "masks" / "case_02.png").unlink()
    Image.new("L", (64, 64)).save(toy / "masks" / "stray, one.png")

    prepare(toy)

    with (workspace / "toy" / "problems.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["level", "file", "what is wrong", "what to do"]
    assert [row[:2] for row in rows] == [
        ["fault", "images/case_02.png"],
        ["note", "masks/stray, one.png"],
        ["fault", "images/case_01.png"],
    ]
    assert all(row[2] and row[3] for row in rows)


def test_many_problems_are_shown_in_part(tmp_path, write_toy, prepare):
    toy = write_toy(tmp_path / "toy", 25)
    for path in (toy / "masks").iterdir():
        shrink(path)

    _, out, _ = prepare(toy)

    assert out.count("fault: masks/") == 20
    assert re.search(r"\.\.\. 5 more in .*problems\.csv", out)


def test_raw_data_that_were_moved_are_asked_for_and_found_again(toy, tmp_path, prepare):
    prepare(toy)
    elsewhere = toy.rename(tmp_path / "elsewhere")

    code, _, err = prepare("toy")

    assert code == 2
    assert err == (
        f"error: {toy}, where the raw data of toy lay, is gone: bring it back, or give the folder where they are now "
        "and --dataset_name toy\n"
    )
    code, out, err = prepare(elsewhere, "--dataset_name", "toy")
    assert (code, err) == (0, "")
    assert "preprocessed arrays are up to date" in out


def test_problems_of_an_earlier_run_are_gone_when_they_are_mended(toy, workspace, prepare):
    image = (toy / "images" / "case_01.png").read_bytes()
    cut(toy / "images" / "case_01.png")
    prepare(toy)
    (toy / "images" / "case_01.png").write_bytes(image)

    assert prepare(toy)[0] == 0

    assert (workspace / "toy" / "problems.csv").read_text().splitlines() == ["level,file,what is wrong,what to do"]


def test_faulty_cases_are_left_out_when_asked_and_said_so(toy, workspace, prepare):
    cut(toy / "images" / "case_01.png")
    shutil.copy(toy / "images" / "case_02.png", toy / "images" / "case_02.bmp")

    code, out, err = prepare(toy, "--skip_faulty")

    assert (code, err) == (0, "")
    assert "10 cases are used, those with faults are left out" in out
    names = {case for fold in splits_of(workspace / "toy")["random"].folds for case in fold.validation}
    assert names == {f"case_{i:02d}" for i in range(12)} - {"case_01", "case_02"}


def test_skipping_faulty_cases_does_not_skip_what_is_wrong_with_all(toy, prepare):
    cut(toy / "images" / "case_01.png")
    for path in sorted((toy / "masks").iterdir()):
        change(path, np.zeros_like)

    code, _, err = prepare(toy, "--skip_faulty")

    assert code == 2
    assert re.fullmatch(r"error: 2 faults, all in .*problems\.csv and shown in .*check\.html: mend them\n", err)


@pytest.mark.parametrize(("mode", "n_cases"), [("empty", 12), ("skip", 11)])
def test_an_image_without_mask_is_what_the_user_says(toy, workspace, prepare, mode, n_cases):
    (toy / "masks" / "case_03.png").unlink()

    assert prepare(toy, "--missing-mask", mode)[0] == 0

    arrays = open_arrays(workspace / "toy" / "preprocessed", load_plan(workspace / "toy" / "plan.json").arrays_digest)
    assert len(arrays.index.rows) == n_cases
    if mode == "empty":
        assert not arrays.foreground[3]
        assert not arrays.truth("case_03").any()
        assert not arrays.masks[3].any()


def test_grey_among_colour_is_promoted_and_said_so(toy, prepare):
    change(toy / "images" / "case_01.png", lambda image: image[..., 0])

    code, out, _ = prepare(toy)

    assert code == 0
    assert "note: case_01: is grey among 3-channel images and was promoted: check that it belongs to them" in out


def test_folders_a_patient_are_groups_that_folds_keep_together(tmp_path, write_toy, workspace, prepare):
    toy = write_toy(tmp_path / "toy", 30)
    for part in ("images", "masks"):
        for number, path in enumerate(sorted((toy / part).iterdir())):
            folder = toy / f"patient {number % 10}" / part
            folder.mkdir(parents=True, exist_ok=True)
            path.rename(folder / path.name)

    code, out, _ = prepare(toy)

    assert code == 0
    assert "groups     10 (proposed from folders)" in out
    splits = splits_of(workspace / "toy")
    for fold in splits["grouped"].folds:
        assert not {name.split("/")[0] for name in fold.train} & {name.split("/")[0] for name in fold.validation}
    assert splits["random"].inflated == "inflated: 10 of 10 groups are spread over training and validation"
    assert load_plan(workspace / "toy" / "plan.json").split == "grouped"


def test_groups_come_from_a_table_or_an_expression_and_are_remembered_by_name(
    toy, workspace, prepare, tmp_path, monkeypatch
):
    (tmp_path / "groups.csv").write_text("".join(f"case_{i:02d}.png,{i // 2}\n" for i in range(12)))
    monkeypatch.chdir(tmp_path)
    prepare("./toy", "--groups", "groups.csv")
    by_table = groups_of(workspace / "toy")
    monkeypatch.chdir("/")

    code, out, _ = prepare("toy")

    assert code == 0
    assert groups_of(workspace / "toy") == by_table == {f"case_{i:02d}": str(i // 2) for i in range(12)}
    _, out, _ = prepare("toy", "--groups", r"\d$")
    assert groups_of(workspace / "toy")["case_11"] == "1"
    assert "the groups have changed: the folds of the split grouped are made anew" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--groups", "x(\\d)"], r"--groups x\(\\d\) finds no group in the case case_00: widen it, or give a CSV"),
        (["--groups", "nowhere.csv"], r".*nowhere\.csv is missing: give a CSV with a case and its group a line"),
        (["--groups", "folder"], "1 groups are too few for 5 folds: add 4 more"),
        (["--planner", "mine"], "planner 'mine' is not known: choose one of auto, paper"),
        (["--width", "0"], "width is 0: give a whole number from 1 to 1024"),
        (["--folds", "1"], "--folds 1 is too few: give 2 or more"),
        (["--folds", "13"], "12 cases are too few for 13 folds: use --folds 12, or add 1 more"),
        (["--dataset_name", "a/b"], "'a/b' cannot be a data set's name: give --dataset_name with letters, .*"),
        (["--images", "toy"], "--images and --masks belong together: give both or neither"),
    ],
)
def test_options_that_cannot_be_are_one_line(toy, workspace, prepare, options, message):
    code, _, err = prepare(toy, *options)

    assert code == 2
    assert re.fullmatch(f"error: {message}\n", err)
    assert {*files_of(workspace)} <= LOOKED_AT


def test_an_unknown_dataset_is_answered_with_the_known_ones(toy, prepare):
    prepare(toy)

    code, _, err = prepare("toi")

    assert code == 2
    assert re.fullmatch(r"error: the workspace .* has no data set 'toi', it knows: toy; run iaunet_plan.*\n", err)


def test_a_table_that_names_groups_is_pointed_at_until_something_is_said(tmp_path, write_toy, workspace, prepare):
    toy = write_toy(tmp_path / "toy", 20)
    table = toy / "patients.csv"
    table.write_text("".join(f"case_{number:02d},{number // 2}\n" for number in range(20)), encoding="utf-8")
    note = (
        f"note: patients.csv: names a group for each case, and is not used: give --groups {table} if cases of a group"
    )

    assert note in prepare(toy)[1]
    assert note not in prepare(toy, "--groups", "none")[1]
    code, out, _ = prepare(toy, "--groups", str(table))
    assert (code, note in out) == (0, False)
    assert "groups     10 (table patients.csv)" in out


def test_several_datasets_are_prepared_one_after_the_other(tmp_path, write_toy, workspace, prepare):
    folders = [write_toy(tmp_path / name, 5) for name in ("a", "b")]

    assert prepare(*folders)[0] == 0

    assert {name.split("/")[0] for name in files_of(workspace)} == {"a", "b"}
    code, _, err = prepare(*folders, "--dataset_name", "c")
    assert (code, err) == (2, "error: --dataset_name, --images and --test are for one data set at a time\n")


def test_a_worker_that_is_killed_for_one_dataset_is_not_missed_by_the_next(
    tmp_path, write_toy, workspace, prepare, monkeypatch
):
    really_prepare, calls = preparation.prepare_dataset, []

    def prepare_dataset(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            list(map_in_processes(os._exit, [1] * 100, 2))
        assert list(map_in_processes(abs, range(-100, 0), 2)) == [*range(100, 0, -1)]
        return really_prepare(*arguments)

    monkeypatch.setattr(preparation, "prepare_dataset", prepare_dataset)

    code, out, _ = prepare(*(write_toy(tmp_path / name, 5) for name in "ab"))

    assert code == 1
    assert re.search(r"failed: .*a: a worker process was killed", out)
    assert "1 of 2 data sets failed, see above" in out
    assert {name.split("/")[0] for name in files_of(workspace)} == {"b"}


@pytest.mark.parametrize(("sound", "code"), [((0, 2), 1), ((), 2)])
def test_the_faults_of_a_dataset_do_not_keep_others_from_being_prepared(
    tmp_path, write_toy, workspace, prepare, sound, code
):
    folders = [write_toy(tmp_path / name, 5) if i in sound else tmp_path / name for i, name in enumerate("abc")]

    found, out, err = prepare(*folders)

    assert (found, err) == (code, "")
    assert f"failed: {tmp_path / 'b'}: {tmp_path / 'b'} does not exist: check the path\n" in out
    assert out.endswith(f"{3 - len(sound)} of 3 data sets failed, see above\n")
    assert {name.split("/")[0] for name in files_of(workspace)} == {"abc"[i] for i in sound}


def test_a_name_is_one_folders_and_another_folder_takes_another_name(tmp_path, write_toy, workspace, prepare):
    here, there = write_toy(tmp_path / "here" / "toy", 5), write_toy(tmp_path / "there" / "toy", 5)
    prepare(here)

    code, _, err = prepare(there)

    assert code == 2
    assert err == (
        f"error: the workspace already has a data set toy from {here}: give this one another name with --dataset_name\n"
    )
    assert prepare(there, "--dataset_name", "toy 2")[0] == 0
    assert {name.split("/")[0] for name in files_of(workspace)} == {"toy", "toy 2"}


def test_an_edited_plan_is_kept_and_said_so_until_a_new_one_is_asked_for(toy, workspace, prepare):
    prepare(toy)
    planned = files_of(workspace)
    edit_plan(workspace / "toy", input_mode="letterbox", input_size=[128, 128])

    code, out, _ = prepare(toy)

    assert code == 0
    assert "plan.json was edited by hand and is kept (--replan makes a new one)" in out
    assert "plan       by planner auto, edited by hand" in out
    before = json.loads(planned["toy/plan.json"])["why"]
    plan = load_plan(workspace / "toy" / "plan.json")
    assert plan.why == before | {"input_mode": "edited by hand"}
    assert "input_mode    letterbox to 128 x 128\n                  because: edited by hand\n" in out
    assert (plan.input_mode, plan.input_size) == ("letterbox", (128, 128))
    assert open_arrays(workspace / "toy" / "preprocessed", plan.arrays_digest).images.shape == (12, 3, 128, 128)

    stored = (workspace / "toy" / "dataset.json").read_bytes()
    for option in (("--width", "4"), ("--planner", "paper")):
        refused, _, err = prepare(toy, *option)
        assert (refused, err.count("\n")) == (2, 1)
        assert "plan.json was edited by hand, and --width and --planner are for a new plan: edit it again, or" in err
    assert (workspace / "toy" / "dataset.json").read_bytes() == stored
    edit_plan(workspace / "toy", why=before | {"input_mode": "our scanner's"})
    prepare(toy)
    assert load_plan(workspace / "toy" / "plan.json").why["input_mode"] == "our scanner's"
    edit_plan(workspace / "toy", input_mode="resize", input_size=[256, 256])
    prepare(toy)
    assert load_plan(workspace / "toy" / "plan.json").why == before

    assert prepare(toy, "--replan")[0] == 0
    assert files_of(workspace) == planned


def test_a_strangers_network_in_an_edited_plan_is_not_run(toy, workspace, prepare):
    prepare(toy)
    edit_plan(workspace / "toy", network={"name": "no_such_package:build", "width": 4, "depth": 3})

    code, out, _ = prepare(toy)

    assert code == 0
    assert "time       not estimated: no_such_package:build is not run without --network" in out


def fail_to_time(monkeypatch, fault, *, first_step):
    """A network whose first step fails, or the one that counts."""

    def fail(*_):
        raise fault

    monkeypatch.setattr(timing, "prepare_timing", fail if first_step else lambda *_: fail)


@pytest.mark.parametrize("first_step", [True, False])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "CUDA out of memory. Tried 2 GiB"),
        (RuntimeError("CUDA error: all devices are busy\nCompile with"), "CUDA error: all devices are busy"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_gpu_that_cannot_be_used_keeps_no_dataset_from_being_prepared(
    tmp_path, write_toy, workspace, prepare, monkeypatch, fault, said, first_step
):
    fail_to_time(monkeypatch, fault, first_step=first_step)

    code, out, err = prepare(*(write_toy(tmp_path / name, 5) for name in "ab"))

    assert (code, err) == (0, "")
    times = [line for line in out.splitlines() if line.startswith("time ")]
    assert times == [f"time       not estimated: {said}"] * 2
    assert all((workspace / name / "preprocessed").is_dir() for name in "ab")


@pytest.mark.parametrize("first_step", [True, False])
def test_another_fault_of_the_timing_reaches_the_caller(toy, prepare, monkeypatch, first_step):
    fail_to_time(monkeypatch, ZeroDivisionError(), first_step=first_step)

    with pytest.raises(ZeroDivisionError):
        prepare(toy)


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_text("text")])
def test_a_true_mask_that_is_spoiled_is_named_with_the_command_that_makes_it(toy, workspace, prepare, spoil):
    prepare(toy)
    plan = load_plan(workspace / "toy" / "plan.json")
    arrays = open_arrays(workspace / "toy" / "preprocessed", plan.arrays_digest)
    before = files_of(workspace)
    spoil(workspace / "toy" / "preprocessed" / "truth" / "case_03.png")

    with pytest.raises(PreprocessingError, match=r"case_03\.png: .*: run iaunet_plan_and_preprocess toy again"):
        arrays.truth("case_03")

    _, out, _ = prepare(toy)

    assert re.search(r"preprocessed 1 cases \(1 rows\) in .*; 11 cases are as before and were kept", out)
    assert files_of(workspace) == before


def test_a_plan_edited_to_nonsense_names_the_field_and_nothing_is_changed(toy, workspace, prepare):
    prepare(toy)
    edit_plan(workspace / "toy", input_mode="crop")
    before = files_of(workspace)

    code, _, err = prepare(toy)

    assert code == 2
    assert re.fullmatch(
        r"error: .*plan\.json: input_mode is 'crop': give one of 'resize', 'letterbox', 'tiles'; correct it, .*\n",
        err,
    )
    assert files_of(workspace) == before
    assert prepare(toy, "--replan")[0] == 0


def test_an_edited_plan_for_data_that_changed_is_refused(toy, workspace, prepare):
    prepare(toy)
    edit_plan(workspace / "toy", input_mode="letterbox")
    before = files_of(workspace)
    change(toy / "images" / "case_01.png", lambda image: image[::-1])

    code, _, err = prepare(toy)

    assert code == 2
    assert re.fullmatch(
        r"error: .*plan\.json was edited by hand for data that have changed since: use --replan .*\n", err
    )
    assert files_of(workspace) == before


def test_known_cases_keep_their_fold_when_cases_are_added(tmp_path, write_toy, workspace, prepare):
    large = write_toy(tmp_path / "large" / "toy", 20)
    small = shutil.copytree(large, tmp_path / "toy")
    leave(small, 13)
    prepare(small)
    before = splits_of(workspace / "toy")["random"]
    shutil.rmtree(small)
    shutil.copytree(large, small)

    prepare("toy")

    for old, new in zip(before.folds, splits_of(workspace / "toy")["random"].folds, strict=True):
        assert {*old.validation} <= {*new.validation}
        assert 3 <= len(new.validation) <= 5


def test_runs_that_were_begun_with_other_folds_are_named(toy, workspace, prepare):
    prepare(toy)
    folds = digest(to_json(splits_of(workspace / "toy")["random"].folds))
    records = {
        "five": {"split": "random", "split_digest": folds},
        "own": {"split": "mine.json"},
        "list": [],
        "strange": {"split": {}},
    }
    for name, record in records.items():
        run = workspace / "toy" / "runs" / name
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps(record))
    told = "folds      runs of other folds, to be begun anew with iaunet_train --restart: {}\n"

    assert "runs of other folds" not in prepare(toy)[1]
    assert told.format("five") in prepare(toy, "--folds", "3")[1]
    assert told.format("five") not in prepare(toy, "--folds", "5")[1]


def test_folds_that_cannot_be_read_are_made_anew_and_said_so(toy, workspace, prepare):
    prepare(toy)
    before = files_of(workspace)
    (workspace / "toy" / "splits.json").write_text("{")

    code, out, _ = prepare(toy)

    assert code == 0
    assert re.search(r"the folds are made anew: .*splits\.json is no JSON", out)
    assert files_of(workspace) == before


def test_a_dataset_file_that_cannot_be_read_is_made_anew_and_said_so(toy, workspace, prepare):
    prepare(toy)
    before = files_of(workspace)
    (workspace / "toy" / "dataset.json").write_text("{}")

    code, out, _ = prepare(toy)

    assert code == 0
    assert re.search(r"planned anew: .*dataset\.json: name is missing", out)
    assert files_of(workspace) == before


@pytest.mark.parametrize("place", ["workspace", "workspace/toy", "workspace/toy/plan.json/file"])
def test_an_output_that_cannot_be_written_is_named(toy, workspace, prepare, place, tmp_path):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).touch()

    code, _, err = prepare(toy)

    assert code == 2
    assert re.fullmatch(r"error: .*(is a file: give a folder|cannot be written|cannot be read) .*\n", err)
    assert "/preprocessed/" not in "".join(files_of(tmp_path))


def run_limited(toy, workspace, limit):
    """The real command in a process that may write no file longer than this."""
    resource = pytest.importorskip("resource", reason="no limits on file sizes on this system")
    return subprocess.run(
        [sys.executable, "-m", "iaunet", "plan_and_preprocess", toy, "--workspace", workspace, "--workers", "1"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("limit", "file"), [(10, "problems.csv"), (5_000, "fingerprint.json"), (100_000, ".partial")])
def test_no_space_left_is_named_and_leaves_nothing_half_written(toy, workspace, prepare, limit, file):
    done = run_limited(toy, workspace, limit)

    assert done.returncode == 2
    assert re.fullmatch(rf"error: no space left for .*{re.escape(file)}.*: free some space and run .*\n", done.stderr)
    assert not [name for name in files_of(workspace) if "preprocessed" in name or "tmp" in name]
    assert prepare(toy)[0] == 0
    assert len(without_truth(files_of(workspace))) == 11


def test_a_full_disk_is_named_and_leaves_nothing_half_written(toy, tmp_path, prepare, workspace):
    workspace.mkdir()
    if shutil.which("mount") is None or os.system(f"mount -t tmpfs -o size=2m tmpfs '{workspace}' 2>/dev/null"):
        pytest.skip("a small disk cannot be mounted here")
    try:
        code, _, err = prepare(toy)
        left = files_of(workspace)
    finally:
        os.system(f"umount '{workspace}'")

    assert code == 2
    assert re.fullmatch(
        r"error: no space left for .*preprocessed\.partial: 6 MB are needed and [12] MB free, .*\n", err
    )
    assert not [name for name in left if "preprocessed" in name]


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_raw_file_that_changes_between_planning_and_preprocessing_is_named(toy, workspace, prepare, part):
    prepare(toy)
    folder = DatasetFolder(workspace / "toy")
    dataset = folder.load_dataset()
    fingerprint = from_json(Fingerprint, json.loads(folder.fingerprint_json.read_text()))
    plan = load_plan(folder.plan_json)
    shutil.rmtree(folder.preprocessed)
    change(toy / part / "case_07.png", lambda pixels: pixels[::-1])

    with pytest.raises(PreprocessingError, match=rf"{part}/case_07\.png: changed since it was measured: run the same"):
        preprocess(dataset, fingerprint, plan, folder.preprocessed, workers=1)
    assert not folder.preprocessed.exists()
    assert prepare(toy)[0] == 0
    assert not folder.preprocessed.with_name("preprocessed.partial").exists()


def test_leftovers_of_killed_processes_are_removed(toy, workspace, prepare):
    prepare(toy)
    before = files_of(workspace)
    folder = workspace / "toy"
    shutil.copytree(folder / "preprocessed", folder / "preprocessed.old")
    shutil.copytree(folder / "preprocessed", folder / "preprocessed.partial")
    (folder / "preprocessed" / "done.npy").write_bytes(b"")
    (folder / ".plan.json.1-2.iaunet-tmp").write_text("half")

    prepare(toy)

    assert files_of(workspace) == before


def test_sixteen_bit_images_and_turned_photographs_are_prepared_as_displayed(tmp_path, write_toy, workspace, prepare):
    deep, photos = write_toy(tmp_path / "deep", 6), write_toy(tmp_path / "photos", 6)
    turned = Image.Exif()
    turned[0x0112] = 6
    for path in sorted((deep / "images").iterdir()):
        grey = np.asarray(Image.open(path))[..., 0].astype(np.uint16) * 200
        Image.fromarray(grey).save(path.with_suffix(".tif"))
        path.unlink()
    for path in sorted((photos / "images").iterdir()):
        Image.open(path).crop((0, 0, 64, 40)).save(path.with_suffix(".jpg"), exif=turned, quality=95)
        path.unlink()
    for path in (photos / "masks").iterdir():
        change(path, lambda mask: np.rot90(mask[:40], -1))

    assert prepare(deep, photos)[0] == 0

    plan = load_plan(workspace / "deep" / "plan.json")
    rows = open_arrays(workspace / "deep" / "preprocessed", plan.arrays_digest)
    assert plan.normalisation.kind == "case"
    assert float(rows.images.astype(float).mean()) == pytest.approx(0, abs=0.05)
    plan = load_plan(workspace / "photos" / "plan.json")
    rows = open_arrays(workspace / "photos" / "preprocessed", plan.arrays_digest)
    assert rows.index.rows[0].geometry.native_size == (64, 40)
    inside = rows.masks > 0
    brightness = rows.images.astype(float).mean(1)
    assert brightness[inside].mean() > brightness[~inside].mean() + 1


def test_the_file_of_the_dataset_is_read_back(toy, workspace, prepare):
    prepare(toy)

    dataset = DatasetFolder(workspace / "toy").load_dataset()

    assert isinstance(dataset, Dataset)
    assert dataset.source.root == str(toy)
    assert dataset.path(dataset.cases[0].images[0]) == toy / "images" / "case_00.png"
