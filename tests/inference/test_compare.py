import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from iaunet.errors import FileError, PredictionError, TrainingError, WorkspaceError
from iaunet.files import read_mask, write_png
from iaunet.inference.compare import CompareOptions, choose_table, collect_columns, compare_runs
from iaunet.inference.compare_command import main
from iaunet.inference.comparison import collect_contests
from iaunet.inference.runs import Run, RunRecord, list_runs
from iaunet.inference.scores import read_scores, score_masks, write_scores
from iaunet.planners.folds import load_splits
from iaunet.planners.plan import load_plan
from iaunet.planners.recipes import find_recipe
from iaunet.preprocessing.arrays import open_arrays
from iaunet.preprocessing.command import main as prepare
from iaunet.records import FieldError, to_json
from iaunet.storage import digest, write_json
from iaunet.workspace import LOCK, DatasetFolder

RUN = "unet-best-random"
NO_CASES = {"n_random": 0, "n_best": 0, "n_worst": 0}


@pytest.fixture
def folder(trained):
    return DatasetFolder(trained / "toy")


@pytest.fixture
def run(folder):
    return Run(folder.runs / RUN)


def write_record(run, **changes):
    """Change a run as if it had been trained so."""
    run.write_record(dataclasses.replace(run.record, **changes))
    for fold in run.finished_folds():
        summary = json.loads(fold.summary_json.read_text(encoding="utf-8"))
        summary["settings_sha256"] = digest(run.record.settings)
        fold.summary_json.write_text(json.dumps(summary), encoding="utf-8")


@pytest.fixture
def copy(run):
    """Copy the run under another name, with another network and, if asked, changes of its plan or record."""

    def copy(name, network="unet", folds=(0, 1, 2), record=None, **plan):
        other = Run(shutil.copytree(run.root, run.root.with_name(name)))
        changed = dataclasses.replace(
            run.record.plan, network=dataclasses.replace(run.record.plan.network, name=network), **plan
        )
        write_record(other, plan=changed, **(record or {}))
        for fold in {0, 1, 2} - {*folds}:
            shutil.rmtree(other.fold(str(fold)).root)
        return other

    return copy


@pytest.fixture
def raw(folder):
    """The raw data, moved so that no other test misses them."""
    source = Path(folder.load_dataset().source.root)
    moved = shutil.copytree(source, folder.root.parent / "raw")
    content = json.loads(folder.dataset_json.read_text(encoding="utf-8"))
    content["source"]["root"] = str(moved)
    folder.dataset_json.write_text(json.dumps(content), encoding="utf-8")
    return moved


@pytest.fixture
def command(trained, capsys):
    """Run ``iaunet_compare toy ...`` in this process: its exit code, and what it says."""

    def command(*options):
        code = main(["toy", "--workspace", str(trained), *map(str, options)])
        said = capsys.readouterr()
        return code, said.err if code else said.out

    return command


def columns_of(folder, **options):
    """The columns of the grid of the only contest."""
    wished = CompareOptions(**options)
    contests = collect_contests(folder, list_runs(folder.runs), "unet")
    assert len(contests) == 1
    return [*collect_columns(folder, contests[0], wished)]


def compare_quickly(folder, **options):
    """Without timing and, unless asked for, without a grid."""
    return compare_runs(folder, CompareOptions(**({"device": None, **NO_CASES} | options)))


def foreground_scores(run):
    """Each case that a run held out, and its score."""
    for fold in Run(run).scored_folds():
        yield from ((case, case.labels["foreground"]) for case in read_scores(fold.scores_csv))


# The command --------------------------------------------------------------------------------------------------------


def test_the_command_compares_and_names_what_it_wrote(folder, copy, command):
    copy("unext-best-random", "unext", folds=(0, 2))

    code, said = command("--reference", RUN, "--published", "CVC-ClinicDB")

    assert code == 0
    lines = said.splitlines()
    assert "recipe best, split random" in lines
    dice = json.loads((folder.runs / RUN / "crossval.json").read_text(encoding="utf-8"))["scores"]["labels"]
    mean = f"{dice['foreground']['all_cases']['dice']['mean']:.3f}"
    assert f"{'U-Net':28} Dice {mean}  folds 0, 1, 2" in lines
    assert any(line.startswith("UNeXt ") and line.endswith("folds 0, 2") for line in lines)
    output = folder.root / "comparison"
    names = ["comparison.md", "comparison.csv", "chart_best-random.png", "cases_best-random.png"]
    assert lines[-4:] == [f"written    {output / name}" for name in names]
    assert sorted(path.name for path in output.iterdir()) == sorted([LOCK, *names])
    text = (output / "comparison.md").read_text(encoding="utf-8")
    assert text.startswith("# toy: networks compared\n")
    assert "UNeXt (*incomplete: folds 0, 2 of all 3 folds*)" in text
    assert "the paper's Dice" in text
    assert "images/s, bare network, c" in text
    rows = [*csv.DictReader((output / "comparison.csv").read_text(encoding="utf-8").splitlines())]
    assert {row["run"] for row in rows} == {RUN, "unext-best-random"}
    assert {row["p"] for row in rows if row["run"] == "unext-best-random"} == {"1.0"}  # the same scores
    for name in names[2:]:
        with Image.open(output / name) as picture:
            picture.load()


def test_runs_from_elsewhere_compare_the_same_without_their_weights(folder, copy, command, tmp_path):
    copy("unext-best-random", "unext")
    elsewhere = shutil.copytree(
        folder.runs, tmp_path / "results ü", ignore=shutil.ignore_patterns("*.safetensors", "checkpoint.pt")
    )
    options = ("--no_timing", "--random", 0, "--best", 1, "--worst", 1)
    assert command(*options, "-o", tmp_path / "own")[0] == 0
    shutil.rmtree(folder.runs)

    assert command(*options, "--results", elsewhere, "-o", tmp_path / "other")[0] == 0

    own, other = ([path.read_bytes() for path in sorted((tmp_path / name).glob("c*"))] for name in ("own", "other"))
    assert len(own) == 4
    assert own == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--run", RUN, "nnunet"), f"no run 'nnunet': choose among {RUN}"),
        (("--results", "nowhere"), "nowhere is no folder: give one that holds runs"),
        (("--cases", "case_1"), "case 'case_1' has no score: the nearest name is 'case_1"),
        (("--reference", "iaunett"), f"no run or network 'iaunett' to test against: choose among {RUN}, iaunet, unet"),
        (("--published", "Kvasir"), "published is 'Kvasir': give one of ISIC2018, CVC-ClinicDB, none"),
        (("--random", "-1"), "n_random is -1: give 0 or more"),
        (("--worst", "12"), "the number of cases shown is 17: give 12 at most"),
        (("--device", "abacus"), "device 'abacus' cannot be used"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line_before_anything_is_written(folder, command, options, message):
    code, said = command(*options)

    assert code == 2
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1
    assert not (folder.root / "comparison").exists()


def test_without_a_trained_fold_the_command_tells_what_to_train(folder, command):
    shutil.rmtree(folder.runs)

    assert command() == (2, "error: toy has no scored fold yet: run iaunet_train toy 0 first\n")
    assert command("--run", RUN) == (2, f"error: no run '{RUN}': choose among none\n")


def test_help_imports_no_torch():
    code = (
        "import sys; from iaunet.inference.compare_command import build_parser; build_parser().format_help(); "
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_screen_says_that_scores_are_inflated(folder, command):
    content = json.loads(folder.splits_json.read_text(encoding="utf-8"))
    for split in content["splits"].values():
        split["inflated"] = "inflated: 4 groups are spread over training and validation"
    folder.splits_json.write_text(json.dumps(content), encoding="utf-8")

    _, said = command("--no_timing", "--random", 0, "--best", 0, "--worst", 0)

    assert "these scores are inflated: 4 groups are spread over training and validation" in said.splitlines()


@pytest.mark.parametrize(("options", "is_told"), [((), True), (("--reference", "unet"), False)])
def test_the_screen_says_that_there_are_no_tests_without_the_reference(folder, command, options, is_told):
    _, said = command("--no_timing", "--random", 0, "--best", 0, "--worst", 0, *options)

    line = "no tests: the reference iaunet has not been trained so (--reference NAME for another)"
    assert (line in said.splitlines()) is is_told


def test_several_labels_are_named_on_the_screen(folder, command):
    folder.plan_json.unlink()
    forge_labels(folder)

    _, said = command("--no_timing", "--random", 0, "--best", 0, "--worst", 0)

    assert "recipe best, split random, disc" in said.splitlines()


def forge_labels(folder):
    """Turn the run into one of two labels, both with the foreground's scores."""
    run = Run(folder.runs / RUN)
    plan = run.record.plan
    coding = dataclasses.replace(plan.coding, kind="values", values=(1, 2), written=(1, 2))
    inference = dataclasses.replace(plan.inference, thresholds=(0.5, 0.5))
    plan = dataclasses.replace(plan, labels=("disc", "cup"), coding=coding, inference=inference)
    write_record(run, plan=plan)
    for path in run.root.rglob("scores*.csv"):
        head, *rows = path.read_text(encoding="utf-8").splitlines()
        rows = [row.replace(",foreground,", f",{label},") for row in rows for label in plan.labels]
        path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")


# Files and choices --------------------------------------------------------------------------------------------------


def test_pictures_of_runs_that_are_no_longer_compared_do_not_stay(folder, copy, tmp_path):
    other = copy("other", recipe=find_recipe("paper"))
    compare_quickly(folder)
    old = folder.root / "comparison" / "chart_paper-random.png"
    assert old.exists()
    shutil.rmtree(other.root)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "chart_of_mine.png").touch()

    compare_quickly(folder)
    compare_quickly(folder, output=tmp_path / "mine")

    assert not old.exists()
    assert (tmp_path / "mine" / "chart_of_mine.png").exists()


def test_runs_that_are_named_are_compared_once(folder, copy):
    copy("another", "unext")
    copy("third", "resunet")

    comparison = compare_quickly(folder, runs=("third", RUN, "third"))

    [contest] = comparison.contests
    assert [each.run.name for each in contest.contestants] == [RUN, "third"]


def test_each_contest_has_its_chart_and_grid_and_its_own_file_names(folder, copy, run):
    copy("old", record={"split_digest": "0"})
    recipe = dataclasses.replace(run.record.plan.recipe, name="paper")
    copy("paper", recipe=recipe)

    comparison = compare_quickly(folder, n_worst=1)

    assert [path.name for path in comparison.files] == [
        "comparison.md",
        "comparison.csv",
        "chart_best-random-1.png",
        "chart_best-random-2.png",
        "chart_paper-random.png",
        "cases_best-random-1.png",
        "cases_best-random-2.png",
        "cases_paper-random.png",
    ]
    assert all(path.is_file() for path in comparison.files)


@pytest.mark.parametrize(
    ("name", "wish", "shown"),
    [
        ("isic_2018", None, "ISIC2018"),
        ("isic_2018", "CVC-ClinicDB", "CVC-ClinicDB"),
        ("isic_2018", "none", ""),
        ("toy", None, ""),
        ("toy", "ISIC2018", "ISIC2018"),
    ],
)
def test_published_figures_go_by_the_name_unless_told_otherwise(folder, name, wish, shown):
    folder = DatasetFolder(folder.root.rename(folder.root.with_name(name)))

    text = compare_quickly(folder, published=wish).files[0].read_text(encoding="utf-8")

    assert f"those it gives for {shown}" in text if shown else "the paper's Dice" not in text


def test_the_chart_beside_published_figures_is_of_their_size(folder):
    [contest] = collect_contests(folder, list_runs(folder.runs))

    assert choose_table(contest, None).size == "native"
    assert choose_table(contest, "ISIC2018").size == "input"
    for path in folder.runs.rglob("scores_input_size.csv"):
        path.unlink()
    [contest] = collect_contests(folder, list_runs(folder.runs))
    assert choose_table(contest, "ISIC2018").size == "native"


def test_a_strangers_network_is_compared_without_running_its_code(folder, copy, monkeypatch, tmp_path):
    (tmp_path / "stranger.py").write_text("raise SystemExit('the code of a stranger ran')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    copy("stranger", "stranger:build")

    text = compare_quickly(folder, device="cpu", reference="stranger:build").files[0].read_text(encoding="utf-8")

    assert "| stranger:build | 4 | 3 | 64x64 | - | - | - |" in text
    assert "Dice less stranger:build's" in text


def test_scores_of_other_weights_stop_the_comparison(folder, run):
    run.fold("1").weights.write_bytes(b"other weights")

    with pytest.raises(PredictionError, match="is not the file that was scored: run iaunet_train with --val_only"):
        compare_quickly(folder)

    assert not (folder.root / "comparison").exists()


def test_a_damaged_record_is_named(folder, run):
    run.run_json.write_text("[]", encoding="utf-8")

    with pytest.raises(TrainingError, match=r"run\.json"):
        compare_quickly(folder)


def test_an_output_that_is_a_file_is_named(folder, tmp_path):
    (tmp_path / "taken").write_text("", encoding="utf-8")

    with pytest.raises(WorkspaceError, match="taken"):
        compare_quickly(folder, output=tmp_path / "taken")


def test_options_are_checked():
    with pytest.raises(FieldError, match="n_best is -1: give 0 or more"):
        CompareOptions(n_best=-1)


# The grid -----------------------------------------------------------------------------------------------------------


def test_a_column_shows_the_raw_image_the_true_mask_and_the_mask_each_run_predicted(folder, copy, run):
    copy("unext-best-random", "unext", folds=(1, 2))
    held_out = load_splits(folder.splits_json).splits["random"].folds[0].validation

    columns = columns_of(folder, cases=held_out[:2], **NO_CASES)

    source = Path(folder.load_dataset().source.root)
    assert [column.title for column in columns] == [f"{name}\nchosen" for name in held_out[:2]]
    for name, column in zip(held_out, columns, strict=False):
        image = np.asarray(Image.open(source / "images" / f"{name}.png"))
        np.testing.assert_array_equal(column.image, np.moveaxis(image, 2, 0))
        np.testing.assert_array_equal(column.truth, read_mask(source / "masks" / f"{name}.png") > 0)
        np.testing.assert_array_equal(
            column.predictions["U-Net"], read_mask(run.fold("0").validation / f"{name}.png") > 0
        )
        assert column.predictions["UNeXt"] is None  # its fold 0 was not trained
        score = score_masks(name, column.predictions["U-Net"], column.truth, ["foreground"])
        assert column.scores == {"U-Net": score.labels["foreground"].metrics["dice"]}


def test_best_and_worst_are_told_by_the_mean_over_runs(folder, copy):
    other = copy("unext-best-random", "unext")
    arrays = open_arrays(folder.preprocessed, other.record.plan.arrays_digest)
    for fold in other.scored_folds():
        names = [path.stem for path in sorted(fold.validation.glob("*.png"))]
        truths = {name: arrays.truth(name) for name in names}
        nothing = [score_masks(name, np.zeros_like(truth), truth, ["foreground"]) for name, truth in truths.items()]
        write_scores(fold.scores_csv, nothing)

    columns = columns_of(folder, n_random=0, n_best=2, n_worst=3)

    assert [column.title.partition("\n")[2] for column in columns] == ["best", "best", "worst", "worst", "worst"]
    dice = {case.name: score.metrics["dice"] for case, score in foreground_scores(folder.runs / RUN)}
    rising = sorted(dice, key=lambda name: (dice[name], name))
    assert [column.title.partition("\n")[0] for column in columns] == [*rising[:-3:-1], *rising[:3]]
    for column in columns:  # the mean over both runs is half of this
        assert column.scores == {"U-Net": dice[column.title.partition("\n")[0]], "UNeXt": 0.0}


def test_a_case_that_only_some_contests_know_is_shown_there(folder, copy):
    recipe = dataclasses.replace(Run(folder.runs / RUN).record.plan.recipe, name="paper")
    copy("paper", folds=(1,), recipe=recipe)
    held_out = load_splits(folder.splits_json).splits["random"].folds[0].validation

    comparison = compare_quickly(folder, cases=(held_out[0],))

    assert [path.name for path in comparison.files if path.name.startswith("cases")] == ["cases_best-random.png"]


def test_without_cases_to_show_there_is_no_grid(folder, caplog):
    comparison = compare_quickly(folder)

    assert [path.name for path in comparison.files] == ["comparison.md", "comparison.csv", "chart_best-random.png"]
    assert "warning" not in caplog.text


def test_images_come_from_the_arrays_where_the_raw_data_are_gone(folder, raw):
    before = columns_of(folder, n_random=0, n_best=2, n_worst=0)
    shutil.rmtree(raw)

    after = columns_of(folder, n_random=0, n_best=2, n_worst=0)

    for there, gone in zip(before, after, strict=True):
        assert (gone.title, gone.image.shape) == (there.title, there.image.shape)
        for plane, as_prepared in zip(there.image, gone.image, strict=True):
            assert np.corrcoef(plane.ravel(), as_prepared.ravel())[0, 1] > 0.999


def test_what_cannot_be_shown_is_a_warning_and_the_tables_stay(folder, raw, caplog):
    for path in (raw / "images").iterdir():
        path.write_bytes(b"no image")

    comparison = compare_quickly(folder, n_worst=1)

    assert [path.name for path in comparison.files] == ["comparison.md", "comparison.csv", "chart_best-random.png"]
    assert "no cases are shown of recipe best, split random: case case_" in caplog.text


def test_an_image_of_another_size_than_was_prepared_is_named(folder, raw):
    for path in (raw / "images").iterdir():
        Image.open(path).resize((70, 64)).save(path)

    with pytest.raises(FileError, match=r"^case case_.*: the image is not as large as when it was prepared: run"):
        columns_of(folder)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((64, 63), np.uint8), "is not as large as the image: run iaunet_train with --val_only for this fold"),
        (np.full((64, 64), 7, np.uint8), "holds the value 7.*: run iaunet_train with --val_only for this fold"),
        (None, "file is missing: run iaunet_train with --val_only for this fold"),
        (b"no mask", "is not a readable PNG.*: run iaunet_train with --val_only for this fold"),
    ],
)
def test_a_predicted_mask_that_cannot_be_is_named(folder, run, mask, message):
    for path in [*run.root.rglob("validation/*.png")]:
        path.unlink()
        if isinstance(mask, bytes):
            path.write_bytes(mask)
        elif mask is not None:
            write_png(path, mask)

    with pytest.raises(FileError, match=rf"^case case_.*fold_\d.validation.case_\d\d\.png.*{message}"):
        columns_of(folder)


def test_runs_on_other_data_have_tables_but_no_grid(folder, copy, caplog):
    shutil.rmtree(copy("old", fingerprint="0").root.with_name(RUN))

    comparison = compare_quickly(folder, n_worst=1)

    assert len(comparison.files) == 3
    assert "no cases are shown of recipe best, split random: " in caplog.text
    assert "was made from other data or another plan: run iaunet_plan_and_preprocess toy again" in caplog.text
    assert "trained on another state of the data" in comparison.files[0].read_text(encoding="utf-8")


# Volumes and tiles --------------------------------------------------------------------------------------------------


def forge_run(folder):
    """A run whose one fold was predicted as the true masks, but two pixels too low, and scored at native size only."""
    plan = load_plan(folder.plan_json)
    split = load_splits(folder.splits_json).splits["random"]
    arrays = open_arrays(folder.preprocessed, plan.arrays_digest)
    run = Run(folder.runs / "forged")
    record = {"split": "random", "split_digest": digest(to_json(split.folds)), "seed": 0, "micro_batch": 1}
    run.write_record(RunRecord(plan=plan, device="cpu", threads=1, **record))
    fold = run.fold("0")
    scores = []
    for name in split.folds[0].validation:
        truth = arrays.truth(name)
        predicted = np.roll(truth, 2, axis=1)
        values = plan.coding.decode(predicted)
        write_png(fold.validation / f"{name}.png", values.reshape(-1, values.shape[-1]))
        scores.append(score_masks(name, predicted, truth, plan.labels))
    write_scores(fold.scores_csv, scores)
    write_json(fold.summary_json, {"weights_sha256": ""})
    return run


def write_volumes(folder):
    """Six volumes of five slices: a box in all but the outer slices, largest in the fourth (the second from above)."""
    for number in range(6):
        mask = np.zeros((40, 36, 5), np.uint8)
        mask[10 : 20 + number, 8:24, 1:4] = 1
        mask[10:30, 4:30, 3] = 1
        image = (mask * 100 + np.random.default_rng(number).integers(0, 30, mask.shape)).astype(np.int16)
        for part, values in (("images", image), ("labels", mask)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, np.diag([0.8, 0.8, 3.0, 1.0])), folder / part / f"v{number}.nii.gz")


def test_a_volume_shows_its_fullest_slice(tmp_path):
    write_volumes(tmp_path / "raw")
    options = [str(tmp_path / "raw"), "--workspace", str(tmp_path / "ws"), "--workers", "1", "--groups", "none"]
    assert prepare([*options, "--folds", "3"]) == 0
    folder = DatasetFolder(tmp_path / "ws" / "raw")
    run = forge_run(folder)
    arrays = open_arrays(folder.preprocessed, run.record.plan.arrays_digest)

    columns = columns_of(folder, n_random=0, n_best=1, n_worst=1)

    [title] = {each for column in columns for each in column.predictions}
    for column in columns:
        name = column.title.partition(",")[0]
        truth = arrays.truth(name)
        number = int(truth.sum(axis=(1, 2)).argmax())
        assert column.title.startswith(f"{name}, slice {number + 1}\n")
        assert column.truth.sum() == 20 * 26
        np.testing.assert_array_equal(column.truth, truth[number])
        np.testing.assert_array_equal(column.predictions[title], np.roll(truth[number], 2, axis=0))
        assert column.image[0][column.truth > 0].min() > column.image[0][column.truth == 0].max()
    before = [column.image for column in columns]
    shutil.rmtree(tmp_path / "raw")
    for column, image in zip(columns_of(folder, n_random=0, n_best=1, n_worst=1), before, strict=True):
        assert column.image.shape == image.shape
        assert np.corrcoef(column.image.ravel(), image.ravel())[0, 1] > 0.9


def test_tiles_are_not_put_together_for_a_picture_without_the_raw_data(write_toy, tmp_path, caplog):
    raw = write_toy(tmp_path / "raw", 6)
    options = [str(raw), "--workspace", str(tmp_path / "ws"), "--workers", "1", "--groups", "none", "--folds", "3"]
    assert prepare(options) == 0
    folder = DatasetFolder(tmp_path / "ws" / "raw")
    plan = json.loads(folder.plan_json.read_text(encoding="utf-8"))
    plan |= {"input_mode": "tiles", "input_size": [32, 32]}
    folder.plan_json.write_text(json.dumps(plan), encoding="utf-8")
    assert prepare(options) == 0
    forge_run(folder)
    assert len(columns_of(folder, n_random=0, n_best=1, n_worst=1)) == 2
    shutil.rmtree(raw)

    comparison = compare_quickly(folder, n_worst=1)

    assert [path.name for path in comparison.files][2:] == ["chart_best-random.png"]
    assert "the image is missing, and tiles are not put together again: bring the raw data back" in caplog.text
