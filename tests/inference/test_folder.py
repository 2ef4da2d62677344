import csv
import dataclasses
import itertools
import json
import os
import shutil
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from iaunet.dataset import MaskCoding
from iaunet.discovery import natural_order
from iaunet.errors import DatasetError, PredictionError, WorkspaceError
from iaunet.files import read_image, read_mask
from iaunet.inference import mask_files, settling
from iaunet.inference.audit import AuditLog, read_audit
from iaunet.inference.expected_dice import DiceModel, ExpectedDice
from iaunet.inference.folder import predict_folder
from iaunet.inference.inputs import group_channels, list_inputs, mask_names
from iaunet.inference.output import FolderOptions
from iaunet.inference.overlay import draw_overlay
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run
from iaunet.inference.tuning import NetworkName, Tuning
from iaunet.planners.familiar import Familiar
from iaunet.planners.plan import InferencePlan
from iaunet.preprocessing.cases import prepare_case
from iaunet.stacks import Stack, read_stack
from iaunet.storage import FileGroup, file_digest
from iaunet.workspace import DatasetFolder, locked


@pytest.fixture(scope="module")
def run(trained_toy):
    return Run(trained_toy / "toy" / "runs" / "unet-best-random")


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor.from_runs([run], ["0"], "cpu", mirroring=False)


@pytest.fixture
def images(trained_toy, tmp_path):
    """Five images of the toy dataset, in a folder of their own whose name needs care."""
    raw = Path(DatasetFolder(trained_toy / "toy").load_dataset().source.root) / "images"
    folder = tmp_path / "new images ü"
    folder.mkdir()
    for i in range(5):
        shutil.copyfile(raw / f"case_{i:02d}.png", folder / f"case_{i:02d}.png")
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "masks"


@pytest.fixture
def predict(predictor, images, output):
    """Predict the images into the output folder; returns status and problem by image."""

    def run_folder(inputs=images, to=output, by=predictor, **options):
        return {o.image: o for o in predict_folder(by, inputs, to, FolderOptions(**options))}

    return run_folder


def statuses(outcomes):
    return {image: outcome.status for image, outcome in outcomes.items()}


def table_of(output):
    with (output / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def masks_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


# Masks and what stands beside them ----------------------------------------------------------------------------------


def test_every_image_gets_the_mask_that_the_predictor_gives_of_it(predict, predictor, images, output):
    outcomes = predict()

    assert statuses(outcomes) == {f"case_{i:02d}.png": "done" for i in range(5)}
    for path in images.iterdir():
        mask = np.asarray(Image.open(output / path.name))
        np.testing.assert_array_equal(mask, predictor.predict(np.asarray(Image.open(path))))
        assert {*np.unique(mask)} == {0, 255}


def test_the_table_counts_the_pixels_of_each_mask(predict, output):
    outcomes = predict()

    rows = table_of(output)
    assert [*rows[0]] == [
        "image",
        "mask",
        "status",
        "problem",
        "foreground_pixels",
        "foreground_components",
        "expected_dice",
        "flag",
    ]
    assert [row["image"] for row in rows] == sorted(outcomes, key=natural_order)
    for row in rows:
        foreground = int((np.asarray(Image.open(output / row["mask"])) == 255).sum())
        assert int(row["foreground_pixels"]) == foreground == outcomes[row["image"]].measures.pixels[0] > 0
        assert (row["status"], row["problem"]) == ("done", "")


def test_the_record_names_model_and_settings(predict, output, run):
    predict()

    record = json.loads((output / "predictions.json").read_text())
    weights = file_digest(run.fold("0").weights)
    assert record["members"] == [{"run": "unet-best-random", "fold": "0", "weights_sha256": weights}]
    assert (record["dataset"], record["mirroring"], record["thresholds"]) == ("toy", False, [0.5])
    assert record["labels"] == {"foreground": 255}


def test_overlays_are_the_images_with_the_contours_of_their_masks(predict, images, output):
    predict(overlay=True)

    for path in images.iterdir():
        labels = (np.asarray(Image.open(output / path.name)) == 255).astype(np.uint8)
        expected = draw_overlay(read_image(path).pixels, labels)
        np.testing.assert_array_equal(np.asarray(Image.open(output / "overlays" / path.name)), expected)
        assert (expected != np.moveaxis(read_image(path).pixels, 0, 2)).any()


def test_probabilities_are_written_in_16_bits(predict, predictor, images, output):
    predict(probabilities=True)

    for path in images.iterdir():
        written = np.asarray(Image.open(output / "probabilities" / path.name))
        stack = Stack(read_image(path).pixels[:, None])
        [[expected]] = predictor.predict_case(stack, keep_probabilities=True).probabilities
        assert written.dtype == np.uint16
        np.testing.assert_allclose(written / 65535, expected, atol=1e-4)
        np.testing.assert_array_equal(written >= 32768, np.asarray(Image.open(output / path.name)) == 255)


def test_several_labels_have_a_map_of_probabilities_each_and_a_column_each(predict, predictor, output):
    plan = dataclasses.replace(
        predictor.plan,
        labels=("polyp", "tool"),
        coding=MaskCoding(kind="values", values=(1, 2), written=(1, 2)),
        inference=InferencePlan(mirroring=False, thresholds=(0.5, 0.5)),
    )

    class Halves(torch.nn.Module):
        def forward(self, rows):
            left = torch.where(torch.arange(64) < 32, 9.0, -9.0).expand(len(rows), 1, 64, 64)
            return torch.cat([left, -left], dim=1)

    predict(by=Predictor(plan, [Halves()], torch.device("cpu")), probabilities=True)

    mask = np.asarray(Image.open(output / "case_00.png"))
    assert (mask[:, :32] == 1).all()
    assert (mask[:, 32:] == 2).all()
    polyp = np.asarray(Image.open(output / "probabilities" / "case_00_polyp.png"))
    assert (polyp[:, :31] > 65000).all()
    assert np.asarray(Image.open(output / "probabilities" / "case_00_tool.png"))[:, :31].max() < 500
    [row, *_] = table_of(output)
    assert (row["polyp_pixels"], row["tool_pixels"]) == ("2048", "2048")


def test_a_single_image_is_predicted_alone(predict, images, output):
    assert statuses(predict(images / "case_03.png")) == {"case_03.png": "done"}
    assert [*masks_in(output)] == ["case_03.png"]


def test_images_of_every_kind_are_predicted_at_their_own_size(predict, images, output):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (40, 90, 3), dtype=np.uint8)
    Image.fromarray(colour).save(images / "photo.JPG")
    Image.fromarray(colour[..., 0]).save(images / "grey.bmp")
    Image.fromarray(np.dstack([colour, colour[..., :1]])).save(images / "transparent.png")
    rotated = Image.fromarray(colour)
    exif = rotated.getexif()
    exif[0x0112] = 6  # shown turned by a quarter
    rotated.save(images / "turned.jpg", exif=exif)

    outcomes = predict()

    assert set(statuses(outcomes).values()) == {"done"}
    assert "photo.JPG" in outcomes  # as the file is called, so that tables can be joined
    for name in ("photo", "grey", "transparent"):
        assert read_mask(output / f"{name}.png").shape == (40, 90)
    assert read_mask(output / "turned.png").shape == (90, 40)


def test_images_of_another_bit_depth_fail_and_say_so(predict, images):
    Image.fromarray(np.full((40, 90), 30000, np.uint16)).save(images / "deep.tif")

    (failed,) = [outcome for outcome in predict().values() if outcome.status == "failed"]

    assert failed.image == "deep.tif"
    assert failed.problem == "pixels are uint16, those of the data set uint8: convert it to uint8"


# What cannot be read ------------------------------------------------------------------------------------------------


def test_broken_images_fail_alone_and_the_table_says_why(predict, images, output, caplog):
    whole = (images / "case_01.png").read_bytes()
    (images / "case_01.png").write_bytes(whole[: len(whole) // 2])
    (images / "text.png").write_text("no image")
    (images / "empty.jpg").write_bytes(b"")

    outcomes = predict()

    failed = {image for image, status in statuses(outcomes).items() if status == "failed"}
    assert failed == {"case_01.png", "text.png", "empty.jpg"}
    assert set(masks_in(output)) == {f"case_{i:02d}.png" for i in (0, 2, 3, 4)}
    problems = {row["image"]: row["problem"] for row in table_of(output) if row["status"] == "failed"}
    assert "is truncated or damaged" in problems["case_01.png"]
    assert "is not a readable PNG, JPEG, BMP or TIFF image" in problems["text.png"]
    assert "file is empty: copy it again or remove it" in problems["empty.jpg"]
    assert all(f"failed: {image}: {problem}" in caplog.messages for image, problem in problems.items())
    assert {row["foreground_pixels"] for row in table_of(output) if row["status"] == "failed"} == {""}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: folder / "none", DatasetError, "none does not exist: check the path"),
        (lambda folder: folder, PredictionError, "holds no images .*: check the path"),
        (lambda folder: folder / "note.txt", PredictionError, "is no image that is read: give one of .png"),
    ],
)
def test_nothing_to_predict_is_refused(tmp_path, make, error, message):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "note.txt").write_text("no image")

    with pytest.raises(error, match=message):
        list_inputs(make(folder), tmp_path / "out")


def test_masks_beside_images_and_of_an_earlier_prediction_are_told_and_not_predicted(tmp_path):
    files = (
        *("a/images/1.png", "a/images/2.png", "a/Masks/1.png", "a/Masks/deep/2.png"),
        *("b/masks/3.png", "earlier/1.png", "earlier/below/2.png", "earlier/predictions.csv", "5.png"),
        *("c/7.jpg", "c/7_Mask.png", "c/8_mask.png", "c/7_mask_1.png"),
    )
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()

    found = list_inputs(tmp_path, tmp_path / "out")

    names = [path.relative_to(tmp_path).as_posix() for path in found.images]
    alone = ["c/7.jpg", "c/7_mask_1.png", "c/8_mask.png"]
    assert names == ["5.png", "a/images/1.png", "a/images/2.png", "b/masks/3.png", *alone]
    give = "give their folder to -i, or move them to one, to predict them"
    assert found.left_out == (
        f"2 files in a/Masks/ left out as masks of the images in images/: {give}",
        f"1 file in c/ left out as masks of the images beside them: {give}",
        f"2 files in earlier/ left out as masks of an earlier prediction: {give}",
    )
    assert len(list_inputs(tmp_path / "a" / "Masks", tmp_path / "out").images) == 2
    assert len(list_inputs(tmp_path / "earlier", tmp_path / "out").images) == 2


def test_a_folder_of_masks_alone_says_so(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "1.png").touch()
    (tmp_path / "images").mkdir()

    with pytest.raises(PredictionError, match=r"holds no images but masks \(1 file in masks/ left out"):
        list_inputs(tmp_path, tmp_path / "out")


def test_masks_are_never_written_among_the_images(predict, images):
    before = masks_in(images)

    for inputs in (images, images / "case_00.png"):
        with pytest.raises(PredictionError, match="holds the images themselves: give another folder for the masks"):
            predict(inputs, to=images)
    with pytest.raises(PredictionError, match="holds the images themselves"):
        predict(images, to=images / ".." / images.name)

    assert masks_in(images) == before
    assert not (images / "predictions.json").exists()


def test_an_output_folder_inside_the_input_is_not_read_as_input(predict, images):
    for _ in range(2):
        outcomes = predict(to=images / "masks")
        assert sorted(outcomes) == [f"case_{i:02d}.png" for i in range(5)]


def test_an_output_folder_above_the_input_is_fine(predict, images):
    outcomes = predict(to=images.parent)

    assert set(statuses(outcomes).values()) == {"done"}
    assert (images.parent / "case_00.png").exists()


def test_an_output_that_is_a_file_is_named(predict, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(WorkspaceError, match=r"file cannot be written .*: choose another folder"):
        predict(to=tmp_path / "file")


def test_a_second_process_in_one_output_folder_is_refused(predict, output):
    with locked(output, "predicting"), pytest.raises(WorkspaceError, match="another process is predicting in"):
        predict()


def test_a_full_disk_is_named_and_leaves_whole_masks_only(predict, output, images):
    resource = pytest.importorskip("resource", reason="no limits on file sizes on this system")
    big = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(big).save(images / "zz.png")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(WorkspaceError, match=r"no space left for .*zz\.png: free some space and run the same"):
            predict(overlay=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert not list(output.rglob("*tmp"))
    for path in output.rglob("*.png"):
        Image.open(path).load()
    assert set(statuses(predict(overlay=True)).values()) <= {"done", "kept"}


def test_masks_are_on_the_disk_before_the_audit_file_says_so_several_at_a_time(predict, images, output, monkeypatch):
    for i in range(20):
        shutil.copyfile(images / "case_00.png", images / f"more_{i:02d}.png")
    told, settle, add = [], FileGroup.settle, AuditLog.add
    monkeypatch.setattr(FileGroup, "settle", lambda group: (told.append([]), settle(group)))

    def add_line(log, line):
        assert file_digest(output / line.mask) == line.output_sha256
        told[-1].append(line.image)
        add(log, line)

    monkeypatch.setattr(AuditLog, "add", add_line)
    monkeypatch.setattr(settling, "SETTLED_WITHIN", 1e9)
    outcomes = predict()

    assert set(statuses(outcomes).values()) == {"done"}
    assert sorted(itertools.chain(*told)) == sorted(outcomes)
    assert 2 <= sum(map(bool, told)) <= 9  # 25 images, eight at a time; some that came meanwhile may be fewer


def test_masks_that_take_long_are_not_kept_waiting_for_others(predict, monkeypatch):
    settled, settle = [], FileGroup.settle
    monkeypatch.setattr(FileGroup, "settle", lambda group: (settled.append(0), settle(group)))
    monkeypatch.setattr(settling, "SETTLED_WITHIN", -1.0)
    predict()

    assert len(settled) > 2


@pytest.mark.parametrize("end", [KeyboardInterrupt, WorkspaceError("no space left")])
def test_what_was_made_before_an_end_is_kept_whole_and_told(predict, output, monkeypatch, end):
    draw = mask_files.draw_stack_overlay
    drawn = []

    def interrupt(*arguments):
        drawn.append(0)
        if len(drawn) == 4:
            raise end
        return draw(*arguments)

    monkeypatch.setattr(mask_files, "draw_stack_overlay", interrupt)
    with pytest.raises(type(end) if isinstance(end, Exception) else end):
        predict(overlay=True)

    monkeypatch.setattr(mask_files, "draw_stack_overlay", draw)
    assert not list(output.rglob("*tmp"))
    there = {path.name for path in output.glob("*.png")}
    assert len(there) >= 3
    assert {values["mask"] for values in read_audit(output / "audit.jsonl")} == there
    again = statuses(predict(overlay=True))
    assert {image for image, status in again.items() if status == "kept"} == there


# Names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["a.png", "b.jpg"], ["a.png", "b.png"]),
        (["a.jpg", "a.png", "b.tif"], ["a.jpg.png", "a.png.png", "b.png"]),
        (["a.jpg", "A.png"], ["a.jpg.png", "A.png.png"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a.png", "y/a.png"]),
        (["x/a.jpg", "x/a.bmp", "y/a.jpg"], ["x/a.jpg.png", "x/a.bmp.png", "y/a.png"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg.png", "a.png.png", "a.jpg.png.png"]),
        (["a.jpg", "a.jpg.png"], ["a.png", "a.jpg.png.png"]),
        (["a.b.c.png", "a.b.jpg"], ["a.b.c.png", "a.b.png"]),
    ],
)
def test_masks_are_named_by_stems_and_keep_the_ending_where_these_collide(images, masks):
    cases = group_channels(Path(), [Path(image) for image in images], 0)

    assert mask_names(cases, [".png"] * len(cases)) == masks
    assert len({mask.lower() for mask in masks}) == len(masks)


def test_folders_are_searched_to_their_depth_and_kept(predict, images, output):
    deep = images / "patient 1" / "left"
    deep.mkdir(parents=True)
    shutil.copyfile(images / "case_00.png", deep / "case_00.png")
    shutil.copyfile(images / "case_01.png", deep / "case_01.bmp")
    Image.open(images / "case_02.png").save(deep / "case_01.jpg")

    outcomes = predict(overlay=True)

    assert len(outcomes) == 8
    nested = {"case_00.png", "case_01.bmp.png", "case_01.jpg.png"}
    assert {path.name for path in (output / "patient 1" / "left").iterdir()} == nested
    assert {path.name for path in (output / "overlays" / "patient 1" / "left").iterdir()} == nested
    assert outcomes["patient 1/left/case_01.jpg"].mask == "patient 1/left/case_01.jpg.png"


# Once more ----------------------------------------------------------------------------------------------------------


def test_a_rerun_keeps_what_is_there_and_does_what_is_missing(predict, images, output):
    first = predict()
    before = masks_in(output)
    times = {path: path.stat().st_mtime_ns for path in output.glob("*.png")}
    (output / "case_02.png").unlink()
    shutil.copyfile(images / "case_00.png", images / "case_09.png")

    again = predict()

    assert statuses(again) == {
        **dict.fromkeys(first, "kept"),
        "case_02.png": "done",
        "case_09.png": "done",
    }
    assert {image: again[image].measures for image in first} == {image: first[image].measures for image in first}
    assert masks_in(output) == {**before, "case_09.png": before["case_00.png"]}
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path.stem != "case_02")
    assert [row["status"] for row in table_of(output)].count("kept") == 4


def test_an_image_that_changed_since_is_predicted_again(predict, images, output):
    predict()
    shutil.copyfile(images / "case_00.png", images / "case_01.png")

    again = predict()

    assert [image for image, status in statuses(again).items() if status == "done"] == ["case_01.png"]
    assert (output / "case_01.png").read_bytes() == (output / "case_00.png").read_bytes()


@pytest.mark.parametrize("content", [b"", b"half", None])
def test_a_mask_that_cannot_be_read_is_made_again(predict, output, content):
    predict()
    whole = (output / "case_01.png").read_bytes()
    (output / "case_01.png").write_bytes(whole[: len(whole) // 2] if content is None else content)

    assert statuses(predict())["case_01.png"] == "done"
    assert (output / "case_01.png").read_bytes() == whole


def test_a_mask_with_values_that_no_mask_of_this_model_has_is_made_again(predict, output):
    predict()
    whole = (output / "case_01.png").read_bytes()
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(output / "case_01.png")

    assert statuses(predict())["case_01.png"] == "done"
    assert (output / "case_01.png").read_bytes() == whole


@pytest.mark.parametrize("wish", ["overlay", "probabilities"])
def test_further_pictures_that_are_wished_later_are_made(predict, output, wish):
    predict()
    before = masks_in(output)

    outcomes = predict(**{wish: True})

    assert set(statuses(outcomes).values()) == {"done"}
    assert masks_in(output).items() >= before.items()
    assert len(masks_in(output)) == 10
    assert set(statuses(predict(**{wish: True})).values()) == {"kept"}
    assert set(statuses(predict()).values()) == {"kept"}


def test_leftovers_of_a_killed_prediction_are_removed(predict, output, images):
    (images / "deep").mkdir()
    shutil.copyfile(images / "case_00.png", images / "deep" / "a.png")
    predict(overlay=True)
    leftovers = [
        folder / ".a.png.1-1.iaunet-tmp"
        for folder in (output, output / "deep", output / "overlays", output / "overlays" / "deep")
    ]
    for path in leftovers:
        path.write_bytes(b"half")

    predict(overlay=True)

    assert not any(path.exists() for path in leftovers)


@pytest.fixture
def other(run):
    predictor = Predictor.from_runs([run], ["1"], "cpu", mirroring=True)
    return {"by": predictor}


def test_another_model_is_refused_without_overwrite_and_replaces_with_it(predict, output, other):
    predict()
    before = masks_in(output)

    with pytest.raises(PredictionError, match="holds masks of another model: use --overwrite, or another folder"):
        predict(**other)
    assert masks_in(output) == before
    assert set(statuses(predict(**other, overwrite=True)).values()) == {"done"}
    assert masks_in(output) != before
    assert set(statuses(predict(**other)).values()) == {"kept"}
    with pytest.raises(PredictionError, match="holds masks of another model"):
        predict()


def test_masks_of_two_models_are_never_mixed_though_overwriting_was_killed(predict, output, other, images):
    predict()
    old = masks_in(output)
    expected = masks_in(images.parent / "expected") if predict(**other, to=images.parent / "expected") else {}
    (images.parent / "aside").mkdir()
    for name in ("case_03.png", "case_04.png"):
        shutil.move(images / name, images.parent / "aside" / name)
    predict(**other, overwrite=True)  # as if it had been killed after three of five
    for name in ("case_03.png", "case_04.png"):
        shutil.move(images.parent / "aside" / name, images / name)
    assert (output / "case_04.png").read_bytes() == old["case_04.png"]

    again = predict(**other)

    assert [*statuses(again).values()] == ["kept", "kept", "kept", "done", "done"]
    assert masks_in(output) == expected


def test_overwrite_makes_everything_again(predict):
    predict()

    assert set(statuses(predict(overwrite=True)).values()) == {"done"}


def test_files_that_no_prediction_made_are_not_overwritten_unasked(predict, output):
    output.mkdir()
    (output / "case_01.png").write_bytes(b"my own annotation")

    with pytest.raises(PredictionError, match=r"case_01\.png is there and no prediction made it: use --overwrite"):
        predict()
    assert (output / "case_01.png").read_bytes() == b"my own annotation"
    assert not (output / "predictions.json").exists()
    assert set(statuses(predict(overwrite=True)).values()) == {"done"}


@pytest.mark.parametrize("text", ["{", "[]", '{"digest": 1}'])
def test_a_damaged_record_is_refused_without_overwrite(predict, output, text):
    predict()
    (output / "predictions.json").write_text(text)

    with pytest.raises(PredictionError, match="use --overwrite, or another folder"):
        predict()
    assert set(statuses(predict(overwrite=True)).values()) == {"done"}


def test_files_beside_the_masks_stay(predict, output):
    output.mkdir()
    (output / "notes.txt").write_text("mine")

    predict(overwrite=True)

    assert (output / "notes.txt").read_text() == "mine"
    assert {*os.listdir(output)} >= {"notes.txt", "predictions.csv", "predictions.json"}  # noqa: PTH208


def audit_of(output):
    return [json.loads(line) for line in (output / "audit.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_image_has_a_line_in_the_audit_file_each_time_it_is_asked_for(predict, images, output):
    (images / "case_01.png").write_bytes(b"no image")
    predict()
    predict()

    lines = audit_of(output)
    assert [line["outcome"] for line in lines].count("done") == 4
    assert [line["outcome"] for line in lines].count("kept") == 4
    failed = [line for line in lines if line["outcome"] == "failed"]
    assert {line["image"] for line in failed} == {"case_01.png"}
    assert len(failed) == 2
    assert all(line["problem"] and not line["output_sha256"] for line in failed)
    model = json.loads((output / "predictions.json").read_text())
    for line in lines:
        assert line["input_sha256"] == file_digest(images / line["image"])
        if line["outcome"] != "failed":
            assert line["output_sha256"] == file_digest(output / line["mask"])
            assert line["seconds"] > 0
        assert line["model"] == model["digest"]
        assert line["settings"]["thresholds"] == [0.5]
        assert (line["device"], line["iaunet"]) == ("cpu", version("iaunet"))
        assert datetime.fromisoformat(line["time"]).tzinfo is not None


def judged(predictor, flag_below):
    """The predictor with a model of the Dice that expects the soft Dice."""
    models = {"run": {"0": DiceModel(intercept=0.0, coefficients=(1.0, 0, 0, 0, 0))}}
    numbers = {"rank_correlation": 0.7, "low": 0.6, "high": 0.8, "dice_unflagged": 0.9}
    learnt = ExpectedDice(flag_below=flag_below, models=models, mirroring=False, **numbers)
    networks = [*predictor.ensemble.networks]
    return Predictor(
        predictor.plan,
        networks,
        predictor.device,
        False,
        Tuning(expected_dice=learnt),
        [NetworkName(run="run", fold="0")],
    )


def test_an_expected_dice_is_told_flagged_and_remembered(predictor, images, output):
    by = judged(predictor, flag_below=2.0)
    first = predict_folder(by, images, output, FolderOptions())

    for outcome in first:
        assert 0.5 < outcome.expected_dice < 1
        assert outcome.flag == f"expected Dice {outcome.expected_dice:.2f}"
        prediction = by.predict_case(
            read_stack([images / outcome.image], predictor.plan.slicing), keep_probabilities=True
        )
        assert outcome.expected_dice == pytest.approx(by.expect_dice(prediction))
    again = predict_folder(by, images, output, FolderOptions())
    assert [outcome.status for outcome in again] == ["kept"] * 5
    assert [(o.expected_dice, o.flag) for o in again] == [(o.expected_dice, o.flag) for o in first]
    assert [row["expected_dice"] for row in table_of(output)] == [f"{o.expected_dice:.4f}" for o in first]
    assert {line["flag"] for line in audit_of(output)} == {outcome.flag for outcome in first}

    sure = predict_folder(judged(predictor, 0.01), images, output, FolderOptions(overwrite=True))
    assert {outcome.flag for outcome in sure} == {""}


def test_an_image_unlike_the_training_images_is_flagged(predictor, images, output):
    height, width = np.asarray(Image.open(images / "case_00.png")).shape[:2]
    familiar = Familiar(channels=3, smallest=(height, width), largest=(height, width), means=((0, 255),) * 3)
    Image.new("RGB", (width + 1, height)).save(images / "case_00.png")

    networks = [*predictor.ensemble.networks]
    by = Predictor(predictor.plan, networks, predictor.device, False, familiar=familiar)
    outcomes = predict_folder(by, images, output, FolderOptions())

    assert [bool(outcome.flag) for outcome in outcomes] == [True, False, False, False, False]
    expected = f"size {height} x {width + 1}, trained on {height} x {width}"
    assert outcomes[0].flag == f"unlike the training images: {expected}"


def test_uncertainty_is_the_spread_of_networks_and_flips_at_native_size(run, images, output):
    predictor = Predictor.from_runs([run], ["0", "1"], "cpu", mirroring=True)

    predict_folder(predictor, images, output, FolderOptions(uncertainty=True))

    path = images / "case_00.png"
    written = np.asarray(Image.open(output / "uncertainty" / "case_00.png"))
    assert written.dtype == np.uint16
    assert written.shape == np.asarray(Image.open(path)).shape[:2]
    case = prepare_case(read_stack([path], predictor.plan.slicing), predictor.plan)
    [row] = case.rows()
    inputs = torch.from_numpy(row)[None]
    with torch.no_grad():
        maps = [
            network(inputs.flip(axes)).sigmoid().flip(axes)
            for network in predictor.ensemble.networks
            for axes in predictor.flips
        ]
    spread = np.std([each.numpy()[0, 0] for each in maps], axis=0)
    native = case.places[0].geometry.restore(spread[None])[0]
    np.testing.assert_allclose(written / 65535 / 2, native, atol=1e-4)
    assert written.max() > 600


def test_a_mask_whose_line_was_lost_is_made_again_and_told_in_full(predictor, images, output):
    by = judged(predictor, flag_below=2.0)
    first = predict_folder(by, images, output, FolderOptions())
    lines = (output / "audit.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (output / "audit.jsonl").write_text("".join(line for line in lines if "case_02" not in line), encoding="utf-8")

    again = predict_folder(by, images, output, FolderOptions())

    assert statuses({o.image: o for o in again})["case_02.png"] == "done"
    assert [o.status for o in again].count("kept") == 4
    assert [(o.expected_dice, o.flag) for o in again] == [(o.expected_dice, o.flag) for o in first]


def test_what_was_learnt_since_is_told_of_masks_that_are_there_already(predictor, images, output):
    predict_folder(predictor, images, output, FolderOptions())

    outcomes = predict_folder(judged(predictor, flag_below=2.0), images, output, FolderOptions(overwrite=True))
    assert all(outcome.flag for outcome in outcomes)
    outcomes = predict_folder(judged(predictor, flag_below=0.01), images, output, FolderOptions())
    assert [outcome.status for outcome in outcomes] == ["done"] * 5
    assert not any(outcome.flag for outcome in outcomes)


def test_a_mask_that_was_changed_by_hand_is_kept_and_flagged(predictor, images, output):
    by = judged(predictor, flag_below=0.01)
    predict_folder(by, images, output, FolderOptions())
    with Image.open(output / "case_01.png") as image:
        pixels, text = np.asarray(image).copy(), image.text
    pixels[:5] = 255
    written = PngInfo()
    for key, value in text.items():
        written.add_text(key, value)
    Image.fromarray(pixels).save(output / "case_01.png", pnginfo=written)

    for _ in range(2):
        changed = predict_folder(by, images, output, FolderOptions())[1]
        assert (changed.status, changed.expected_dice) == ("kept", None)
        assert changed.flag == "changed since it was predicted"
    np.testing.assert_array_equal(np.asarray(Image.open(output / "case_01.png")), pixels)
    Image.fromarray(np.full_like(pixels, 7)).save(output / "case_01.png", pnginfo=written)
    assert predict_folder(by, images, output, FolderOptions())[1].status == "done"  # 7 stands for nothing


def test_masks_of_other_images_and_of_earlier_calls_are_told(predict, images, output, caplog):
    caplog.set_level("INFO")
    predict()
    (images / "case_00.png").unlink()
    shutil.copyfile(images / "case_03.png", images / "case_01.png")

    predict()

    assert "note       1 masks that are there are made anew" in caplog.text
    assert "note       1 masks of earlier calls are not in the table of this one: case_00.png" in caplog.text


def test_a_lone_pass_has_no_uncertainty(predict):
    with pytest.raises(PredictionError, match="one network without mirroring cannot disagree: leave out --uncertainty"):
        predict(uncertainty=True)


# Names and places ---------------------------------------------------------------------------------------------------


def test_an_image_whose_mask_would_have_too_long_a_name_fails_alone(predict, images):
    long = "x" * 251
    for ending in (".png", ".bmp"):  # both keep their ending in the names of their masks
        Image.open(images / "case_00.png").save(images / f"{long}{ending}")

    for _ in range(2):
        outcomes = predict()

        assert outcomes[f"{long}.png"].problem == "has a name that is too long for its mask: shorten it"
        assert [o.status for name, o in outcomes.items() if name.startswith("case")] in (["done"] * 5, ["kept"] * 5)


@pytest.mark.parametrize("wish", ["overlay", "probabilities", "uncertainty"])
def test_images_in_a_folder_named_as_that_of_other_files_are_refused_with_these(run, predict, images, output, wish):
    folder = {"overlay": "overlays"}.get(wish, wish)
    (images / folder).mkdir()
    shutil.copyfile(images / "case_00.png", images / folder / "case_00.png")
    flips = Predictor.from_runs([run], ["0"], "cpu")

    with pytest.raises(PredictionError, match=rf"would lie in .*{folder}, where {folder} are written: rename"):
        predict(by=flips, **{wish: True})
    assert not output.exists()
    assert statuses(predict())[f"{folder}/case_00.png"] == "done"


def test_an_earlier_mask_of_an_image_that_fails_now_is_told(predict, images, output):
    predict()
    (images / "case_01.png").write_bytes(b"no image")
    (images / "new.png").write_bytes(b"no image")

    outcomes = predict()

    assert outcomes["case_01.png"].problem.endswith("; its mask there is of an earlier call")
    assert "earlier" not in outcomes["new.png"].problem
    assert (output / "case_01.png").exists()
