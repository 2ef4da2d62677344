import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iaunet.inference.compare_command import main as compare_main
from iaunet.inference.export_command import main as export_main
from iaunet.inference.find_best_command import main as find_best_main
from iaunet.inference.import_command import main as import_main
from iaunet.inference.model_file import open_model
from iaunet.inference.predict_command import main as predict_main
from iaunet.inference.report.command import main as report_main
from iaunet.preprocessing.command import main as prepare_main
from iaunet.storage import TEMPORARY_SUFFIX, replacing
from iaunet.trainers.command import main as train_main
from iaunet.workspace import DatasetFolder

WITH_DATA = (compare_main, find_best_main, report_main)

RUN = "unet-best-random"


@pytest.fixture
def export(trained_toy, tmp_path):
    """Run ``iaunet_export_model`` on the toy model; returns its exit code."""

    def export(*options, dataset="toy", output=tmp_path / "model ü.zip"):
        return export_main([dataset, "-o", str(output), "--workspace", str(trained_toy), *options])

    return export


@pytest.fixture
def elsewhere(tmp_path):
    return tmp_path / "elsewhere"


@pytest.fixture
def do_import(tmp_path, elsewhere):
    """Run ``iaunet_import_model``; returns its exit code."""

    def do_import(*options, model=tmp_path / "model ü.zip"):
        return import_main([str(model), "--workspace", str(elsewhere), *options])

    return do_import


def test_a_model_goes_elsewhere_and_predicts_the_same_masks(
    export, do_import, elsewhere, trained_toy, tmp_path, capsys
):
    inputs = Path(DatasetFolder(trained_toy / "toy").load_dataset().source.root) / "images"

    def predict(name, workspace):
        output = tmp_path / f"masks of {name}"
        common = ["-i", str(inputs), "-o", str(output), "--workspace", str(workspace)]
        assert predict_main([*common, "-d", name]) == 0
        return {path.name: path.read_bytes() for path in sorted(output.glob("*.png"))}, json.loads(
            (output / "predictions.json").read_text()
        )

    assert export() == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1:4] == [f"model      run {RUN}, fold {fold}" for fold in (0, 1, 2)]
    assert shown[4].startswith(f"scores     run {RUN}: Dice foreground 0.")
    assert shown[4].endswith(" over 18 cases")
    assert shown[-1] == f"next       iaunet_predict --model '{tmp_path}/model ü.zip' -i FOLDER -o FOLDER"
    assert do_import("--dataset-name", "handed on") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next       iaunet_predict -i FOLDER -o FOLDER -d 'handed on'"

    there, record_there = predict("handed on", elsewhere)
    here, record_here = predict("toy", trained_toy)

    assert len(here) == 18
    assert there == here
    assert record_there == record_here


def test_runs_and_folds_are_chosen_as_for_prediction(export, tmp_path, capsys):
    assert export("--run", RUN, "--folds", "2", "1") == 0

    assert [member.fold for member in open_model(tmp_path / "model ü.zip").members] == ["1", "2"]
    assert f"scores     run {RUN}, fold 2: Dice foreground" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "none"}, "has no data set 'none', it knows: toy"),
        ({"output": "m.txt"}, "m.txt cannot be a model's file: give one whose name ends in .zip"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(export, tmp_path, options, message, capsys):
    assert export(**options) == 2

    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*.zip"))


def test_a_file_that_is_refused_is_told_in_one_line_and_nothing_is_written(do_import, elsewhere, tmp_path, capsys):
    (tmp_path / "model ü.zip").write_bytes(b"\x89PNG")

    assert do_import() == 2

    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'model ü.zip'} is no model's file or damaged")
    assert err.count("\n") == 1
    assert not elsewhere.exists()


def test_what_a_killed_export_left_is_removed_by_the_next_and_nothing_else(export, tmp_path):
    path = tmp_path / "model ü.zip"
    with replacing(path) as temporary:
        temporary.touch()
        this = temporary.name.partition("-")[0]
    for name in (f"{this}-of_a_killed_process", ".of_another_file"):
        path.with_name(f"{name}{TEMPORARY_SUFFIX}").touch()

    assert export() == 0

    assert {file.name for file in tmp_path.iterdir()} == {path.name, f".of_another_file{TEMPORARY_SUFFIX}"}


def test_importing_twice_is_refused(export, do_import, capsys):
    assert export() == 0
    assert do_import() == 0
    assert do_import() == 2

    assert capsys.readouterr().err.endswith("toy is there already: give the model another name with --dataset_name\n")


def test_what_needs_the_data_says_that_they_are_not_there(export, do_import, elsewhere, capsys):
    assert export() == 0
    assert do_import() == 0
    workspace = ["--workspace", str(elsewhere)]
    capsys.readouterr()

    message = "error: toy is a model without the data it was trained on: it can predict and be exported, no more\n"
    assert prepare_main(["toy", *workspace]) == 2
    assert capsys.readouterr().err == message
    assert predict_main(["-d", "toy", "--test", "-o", str(elsewhere / "out"), *workspace]) == 2
    assert capsys.readouterr().err == message
    assert train_main(["toy", "0", *workspace]) == 2
    assert capsys.readouterr().err == message
    for command in WITH_DATA:
        assert command(["toy", *workspace]) == 2
        assert capsys.readouterr().err == message


def test_the_data_can_be_planned_where_a_model_was_imported(export, do_import, elsewhere, trained_toy, tmp_path):
    raw = shutil.copytree(DatasetFolder(trained_toy / "toy").load_dataset().source.root, tmp_path / "toy")
    assert export() == 0
    assert do_import() == 0

    prepare = [str(raw), "--workspace", str(elsewhere), "--folds", "3", "--workers", "1", "--groups", "none"]

    assert prepare_main(prepare) == 0
    assert len(DatasetFolder(elsewhere / "toy").load_dataset().cases) == 18


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_imports_no_torch(command):
    code = (
        f"import sys; from iaunet.inference.{command}_command import main\n"
        "try:\n    main(['--help'])\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stdout.startswith(f"usage: iaunet_{command}_model")
    assert done.stdout.endswith("False\n")
