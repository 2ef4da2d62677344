import dataclasses
import json
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iaunet.inference.model_export import export_model
from iaunet.inference.predict_command import main
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run
from iaunet.inference.validation import write_summary
from iaunet.planners.plan import NetworkPlan, load_plan, save_plan
from iaunet.weights import save_weights
from iaunet.workspace import DatasetFolder

RUN = "unet-best-random"


@pytest.fixture
def raw(trained_toy):
    return Path(DatasetFolder(trained_toy / "toy").load_dataset().source.root)


@pytest.fixture
def predict(trained_toy, raw, tmp_path):
    """Run ``iaunet_predict`` on the toy images in this process; returns its exit code."""

    def run(*options, inputs=raw / "images", workspace=trained_toy, output=tmp_path / "out"):
        return main(["-i", str(inputs), "-o", str(output), "-d", "toy", "--workspace", str(workspace), *options])

    return run


def record_of(tmp_path):
    return json.loads((tmp_path / "out" / "predictions.json").read_text())


def folds_used(tmp_path):
    return [member["fold"] for member in record_of(tmp_path)["members"]]


def mean_dice(masks, truth):
    dices = []
    for path in masks.glob("*.png"):
        predicted, true = (np.asarray(Image.open(folder / path.name)) > 0 for folder in (masks, truth))
        dices.append(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
    return np.mean(dices)


def test_the_ensemble_of_all_finished_folds_is_the_default(predict, tmp_path, raw, capsys):
    assert predict() == 0

    assert folds_used(tmp_path) == ["0", "1", "2"]
    assert record_of(tmp_path)["mirroring"] is True
    assert mean_dice(tmp_path / "out", raw / "masks") > 0.9
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("workspace ")
    assert [line for line in lines if line.startswith("model ")] == [
        f"model      run {RUN}, fold {fold}" for fold in (0, 1, 2)
    ]
    assert lines[-1].startswith("masks      18 done in ")
    assert lines[-1].endswith(f" images/s), 0 kept from before, 0 failed: {tmp_path / 'out'}")


@pytest.mark.parametrize(
    ("options", "folds", "mirroring"),
    [
        (("--fast",), ["0"], False),
        (("--no_mirroring",), ["0", "1", "2"], False),
        (("-f", "2", "1"), ["2", "1"], True),
        (("--fast", "-f", "2"), ["2"], False),
        (("--run", RUN, "--folds", "1"), ["1"], True),
    ],
)
def test_options_choose_the_members(predict, tmp_path, options, folds, mirroring):
    assert predict(*options) == 0

    assert folds_used(tmp_path) == folds
    assert record_of(tmp_path)["mirroring"] is mirroring


def test_a_rerun_keeps_all_and_another_model_needs_overwrite(predict, capsys):
    assert predict("--fast") == 0
    assert predict("--fast") == 0
    assert "0 done" in capsys.readouterr().out.splitlines()[-1]

    assert predict() == 2
    assert capsys.readouterr().err.endswith("holds masks of another model: use --overwrite, or another folder\n")
    assert predict("--overwrite") == 0


def test_masks_in_another_precision_are_those_of_another_model_and_the_audit_says_so(predict, tmp_path, capsys):
    assert predict("--fast") == 0
    assert predict("--fast", "--precision", "bfloat16") == 2
    assert capsys.readouterr().err.endswith("holds masks of another model: use --overwrite, or another folder\n")
    assert predict("--fast", "--precision", "bfloat16", "--overwrite") == 0

    lines = [json.loads(line) for line in (tmp_path / "out" / "audit.jsonl").read_text().splitlines()]
    assert [line["settings"]["precision"] for line in lines] == [None] * 18 + ["bfloat16"] * 18
    assert record_of(tmp_path)["precision"] == "bfloat16"


@pytest.mark.parametrize("has_units", [True, False])
def test_what_is_faster_on_this_cpu_is_told_unless_it_was_chosen(predict, monkeypatch, has_units, capsys):
    monkeypatch.setattr("iaunet.device._has_matrix_units", lambda: has_units)
    told = "note       wide networks predict faster on this CPU with --precision bfloat16, which changes masks a little"

    assert predict("--fast", "--device", "cpu") == 0
    assert (told in capsys.readouterr().out.splitlines()) is has_units
    assert predict("--fast", "--device", "cpu", "--precision", "float32", "--overwrite") == 0
    assert told not in capsys.readouterr().out.splitlines()


def test_overlays_and_probabilities_are_written_when_wished(predict, tmp_path):
    assert predict("--fast", "--overlay", "--probabilities") == 0

    for part in ("overlays", "probabilities"):
        assert len(list((tmp_path / "out" / part).glob("*.png"))) == 18


@pytest.mark.parametrize(("n_broken", "code"), [(1, 1), (3, 2)])
def test_broken_images_are_told_by_the_exit_code(predict, tmp_path, raw, n_broken, code, capsys):
    inputs = tmp_path / "in"
    inputs.mkdir()
    for i in range(3):
        data = (raw / "images" / f"case_{i:02d}.png").read_bytes()
        (inputs / f"{i}.png").write_bytes(data[:100] if i < n_broken else data)

    assert predict("--fast", inputs=inputs) == code

    assert f"{3 - n_broken} done" in (out := capsys.readouterr().out)
    assert f"{n_broken} failed" in out
    assert "failed: 0.png: is truncated or damaged" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-f", "7"), f"fold 7 of {RUN} is not finished: choose among 0, 1, 2"),
        (("-f", "all"), f"fold all of {RUN} is not finished: choose among 0, 1, 2"),
        (("--run", "other"), f"no finished fold of a run 'other': choose among {RUN}"),
        (("--device", "abacus"), "device 'abacus' cannot be used"),
        (("-d", "unknown"), "has no data set 'unknown', it knows: toy"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_leaves_nothing(predict, tmp_path, options, message, capsys):
    assert predict(*options) == 2

    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_refused(predict, tmp_path, capsys):
    (tmp_path / "empty").mkdir()

    assert predict(inputs=tmp_path / "empty") == 2
    assert f"{tmp_path / 'empty'} holds no images" in capsys.readouterr().err


def test_an_untrained_dataset_names_the_command(predict, toy_workspace, capsys):
    assert predict(workspace=toy_workspace) == 2
    assert "toy has no finished fold yet: run iaunet_train toy 0 first" in capsys.readouterr().err


def test_several_runs_ask_and_may_be_used_together(predict, trained, tmp_path, capsys):
    runs = trained / "toy" / "runs"
    shutil.copytree(runs / RUN, runs / "another")

    assert predict(workspace=trained) == 2
    assert f"toy has several runs: choose with --run among another, {RUN}" in capsys.readouterr().err
    assert predict("--run", "another", RUN, "-f", "0", workspace=trained) == 0
    assert [member["run"] for member in record_of(tmp_path)["members"]] == ["another", RUN]


def test_a_strangers_network_runs_only_when_it_is_named(predict, trained, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "trainers")
    name = "strange_networks:Strange"
    run = Run(trained / "toy" / "runs" / RUN)
    record = json.loads(run.run_json.read_text())
    record["plan"]["network"] |= {"name": name}
    run.run_json.write_text(json.dumps(record))
    fold = run.fold("0")
    save_weights(fold.weights, import_module("strange_networks").Strange(3, 1, 4, 3).state_dict())
    write_summary(fold, {})

    assert predict("-f", "0", workspace=trained) == 2
    assert f"whose code would be run: give --network {name} if you trust it" in capsys.readouterr().err
    assert predict("-f", "0", "--network", name, workspace=trained) == 0


def test_the_plan_of_the_run_and_not_of_the_dataset_is_used(predict, trained, tmp_path, raw):
    """Planning again for something else must not touch what was trained."""
    path = trained / "toy" / "plan.json"
    plan = load_plan(path)
    network = NetworkPlan(name="iaunet", width=2, depth=4)
    save_plan(dataclasses.replace(plan, network=network, input_size=(96, 96)), path)

    assert predict(workspace=trained) == 0
    assert mean_dice(tmp_path / "out", raw / "masks") > 0.9


def test_input_output_and_dataset_must_be_given(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["-i", "somewhere"])

    assert caught.value.code == 2
    assert "the following arguments are required: -o/--output" in capsys.readouterr().err


# A model's file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--fast",), ("--no_mirroring", "--no_postprocessing")])
def test_a_models_file_predicts_as_the_data_set_does_and_is_the_same_model(trained_toy, tmp_path, options, capsys):
    source = DatasetFolder(trained_toy / "toy")
    export_model(source, tmp_path / "m.zip")
    inputs = Path(source.load_dataset().source.root) / "images"
    common = ["-i", str(inputs), "-o", str(tmp_path / "out"), *options]
    assert main([*common, "--model", str(tmp_path / "m.zip")]) == 0
    assert "18 done" in capsys.readouterr().out
    assert main([*common, "-d", "toy", "--workspace", str(trained_toy)]) == 0
    assert "0 done" in capsys.readouterr().out  # predictions.json says the same model
    one = Predictor.from_model(tmp_path / "m.zip", "cpu")
    two = Predictor.from_runs([Run(source.runs / "unet-best-random")], device="cpu")
    image = np.asarray(Image.open(inputs / "case_00.png"))
    np.testing.assert_array_equal(one.predict(image), two.predict(image))


def test_choices_of_runs_and_folds_are_refused_beside_a_models_file(tmp_path, capsys):
    assert main(["-i", str(tmp_path), "-o", str(tmp_path / "o"), "--model", "m.zip", "-f", "0"]) == 2
    assert "are for -d DATASET: leave them out with --model" in capsys.readouterr().err
