import csv
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from iaunet.device import training_precision
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run
from iaunet.inference.scores import read_scores, summarise_scores
from iaunet.planners.folds import load_splits
from iaunet.planners.plan import NetworkPlan, load_plan
from iaunet.planners.rules import choose_max_keys
from iaunet.records import FieldError, to_json
from iaunet.storage import digest, file_digest
from iaunet.trainers import training
from iaunet.trainers.checkpoint import load_checkpoint
from iaunet.trainers.command import main
from iaunet.trainers.training import TrainingOptions, differences, resolve_plan, train
from iaunet.workspace import DatasetFolder, locked

RUN = "unet-best-random"


@pytest.fixture(autouse=True)
def strange_networks(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.fixture
def train_toy(workspace):
    """Run ``iaunet_train toy ...`` in this process; returns its exit code."""
    return lambda *options: main(["toy", *map(str, options), "--workspace", str(workspace)])


@pytest.fixture
def refused(train_toy, capsys):
    """Run ``iaunet_train toy ...``, which must refuse; returns its one line."""

    def run(*options):
        capsys.readouterr()
        assert train_toy(*options) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    return run


def run_of(workspace, name=RUN):
    return Run(workspace / "toy" / "runs" / name)


def metrics_of(folder):
    with folder.metrics_csv.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_json(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


# Results ------------------------------------------------------------------------------------------------------------


def test_the_attention_network_learns_ellipses_that_it_never_saw(train_toy, workspace, capsys):
    options = ("--network", "iaunet", "--width", "8", "--epochs", "16")

    assert train_toy("0", *options) == 0

    summary = json.loads(run_of(workspace, "iaunet-best-random").fold("0").summary_json.read_text())
    dice = summary["scores"]["labels"]["foreground"]["all_cases"]["dice"]
    assert dice["n_defined"] == 6
    assert dice["mean"] > 0.85
    out = capsys.readouterr().out
    assert "next       iaunet_predict -i FOLDER -o FOLDER -d toy --run iaunet-best-random" in out
    assert "no groups: optimistic if images share patients" in out


def test_a_cross_validation_sums_up_the_scores_of_all_folds(trained_toy):
    run = run_of(trained_toy)
    content = json.loads(run.crossval_json.read_text())
    scores, folds = [], {}
    for fold in range(3):
        held_out = read_scores(run.fold(str(fold)).scores_csv)
        scores += held_out
        folds |= {score.name: fold for score in held_out}

    assert sorted(folds) == [f"case_{i:02d}" for i in range(18)]
    assert content["scores"] == json.loads(json.dumps(to_json(summarise_scores(scores, {}, folds))))
    dice = content["scores"]["labels"]["foreground"]["all_cases"]["dice"]
    values = [score.labels["foreground"].metrics["dice"] for score in scores]
    assert dice["mean"] == pytest.approx(np.mean(values))
    means = [np.mean([v for v, s in zip(values, scores, strict=True) if folds[s.name] == fold]) for fold in range(3)]
    assert dice["sd"] == pytest.approx(np.std(means, ddof=1))
    assert dice["mean"] > 0.8
    assert (content["run"], content["split"], content["inflated"]) == (RUN, "random", "")
    assert content["weights_sha256"] == [file_digest(run.fold(str(fold)).weights) for fold in range(3)]


def test_a_fold_trains_on_its_cases_and_scores_those_held_out(trained_toy):
    split = load_splits(trained_toy / "toy" / "splits.json").splits["random"]

    for number, fold in enumerate(split.folds):
        folder = run_of(trained_toy).fold(str(number))
        assert {score.name for score in read_scores(folder.scores_csv)} == {*fold.validation}
        assert {path.stem for path in folder.validation.glob("*.png")} == {*fold.validation}
        assert len(metrics_of(folder)) == 12
        assert folder.progress_png.exists()
        assert not {*fold.train} & {*fold.validation}


def test_the_reported_score_is_that_of_the_last_averaged_weights(trained_toy):
    run = run_of(trained_toy)
    folder = run.fold("1")
    summary = json.loads(folder.summary_json.read_text())
    average = load_checkpoint(folder.checkpoint).average

    assert summary["weights_sha256"] == file_digest(folder.weights)
    written = load_file(folder.weights)
    assert all(torch.equal(tensor, average[name]) for name, tensor in written.items())
    predictor = Predictor.from_runs([run], ["1"], "cpu")
    raw = Path(DatasetFolder(trained_toy / "toy").load_dataset().source.root)
    for score in read_scores(folder.scores_csv):
        predicted = predictor.predict(np.asarray(Image.open(raw / "images" / f"{score.name}.png"))) > 0
        truth = np.asarray(Image.open(raw / "masks" / f"{score.name}.png")) > 0
        dice = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
        assert score.labels["foreground"].metrics["dice"] == pytest.approx(dice, abs=0.01)


def test_all_trains_on_every_case_and_has_no_score(train_toy, workspace, capsys):
    assert train_toy("all", "--epochs", "1") == 0

    folder = run_of(workspace).fold("all")
    assert json.loads(folder.summary_json.read_text())["scores"] is None
    assert not folder.validation.exists()
    assert not run_of(workspace).crossval_json.exists()
    assert metrics_of(folder)[0]["validation_dice"] == "nan"
    assert "trained on every case, so there is no score; next: iaunet_predict -d toy -f all" in capsys.readouterr().out


def test_each_epoch_is_one_line(train_toy, capsys):
    train_toy("0", "--epochs", "2")

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert re.fullmatch(r"epoch 2/2  loss \d\.\d{3}  dice \d\.\d{3}  lr 1\.3e-03  \d+ s", lines[1])


def test_the_record_holds_what_the_run_was_made_from_and_with(train_toy, workspace):
    train_toy("0", "--epochs", "1", "--lr", "0.01", "--seed", "3", "--batch-size", "6", "--width", "5")

    record = run_of(workspace).record
    assert record.plan.recipe.epochs == 1
    assert record.plan.recipe.lr == 0.01
    assert record.plan.network.width == 5
    assert record.overrides == {"epochs": 1, "lr": 0.01, "batch_size": 6, "width": 5}
    assert (record.seed, record.micro_batch, record.split, record.threads) == (3, 6, "random", torch.get_num_threads())
    assert record.versions["torch"]
    precision = training_precision(torch.device("cpu"))
    products = "" if precision is None else ", products in bfloat16"
    assert record.device == f"cpu{products}"
    assert record.precision == ("float32" if precision is None else "bfloat16")


def test_a_run_goes_on_in_the_precision_it_began_with(train_toy, workspace, refused):
    """bfloat16 can be computed everywhere, so a run that begins in it can be told from one in float32 on any CPU."""
    train_toy("0", "--epochs", "1", "--precision", "float32")
    run = run_of(workspace)
    assert run.record.overrides == {"epochs": 1, "precision": "float32"}
    assert (run.record.device, run.record.precision) == ("cpu", "float32")
    train_toy("0", "--epochs", "1", "--precision", "float32", "--name", "other")
    other = run_of(workspace, "other")
    other.write_record(dataclasses.replace(other.record, precision="bfloat16"))

    train_toy("1", "--epochs", "1")
    train_toy("1", "--epochs", "1", "--name", "other")

    in_float, in_bfloat = (float(metrics_of(each.fold("1"))[0]["loss"]) for each in (run, other))
    assert in_float != in_bfloat
    assert in_float == pytest.approx(in_bfloat, rel=0.02)
    assert "precision: bfloat16 -> float32" in refused(
        "2", "--epochs", "1", "--name", "other", "--precision", "float32"
    )


def test_a_fold_that_is_trained_by_other_means_than_the_run_began_with_says_so(train_toy, workspace, capsys):
    train_toy("0", "--epochs", "1")
    run = run_of(workspace)
    run.write_record(dataclasses.replace(run.record, device="cuda (a card), products in float16"))
    capsys.readouterr()

    train_toy("1", "--epochs", "1")

    told = capsys.readouterr().out
    assert "this run began on cuda (a card), products in float16, this fold is trained on cpu" in told
    assert "numbers may differ" in told


def test_a_finished_fold_is_left_as_it_is(trained, capsys):
    before = contents(trained)

    assert main(["toy", "0", "--workspace", str(trained)]) == 0

    assert "fold 0 is finished" in capsys.readouterr().out
    assert {name: data for name, data in contents(trained).items() if not name.endswith(".lock")} == {
        name: data for name, data in before.items() if not name.endswith(".lock")
    }


def test_val_only_predicts_and_scores_again(trained, capsys):
    folder = run_of(trained).fold("2")
    before = contents(folder.root)
    shutil.rmtree(folder.validation)

    assert main(["toy", "2", "--workspace", str(trained), "--val_only"]) == 0

    assert contents(folder.root) == before
    assert "epoch" not in capsys.readouterr().out


def test_a_copied_workspace_is_trained_elsewhere(train_toy, workspace, tmp_path):
    train_toy("0", "--epochs", "1")
    moved = shutil.move(workspace, tmp_path / "elsewhere")

    assert main(["toy", "1", "--epochs", "1", "--workspace", str(moved)]) == 0
    assert [folder.fold for folder in run_of(Path(moved)).finished_folds()] == ["0", "1"]


def test_the_raw_folder_names_the_dataset_too(workspace):
    raw = DatasetFolder(workspace / "toy").load_dataset().source.root

    assert main([raw, "0", "--epochs", "1", "--workspace", str(workspace)]) == 0
    assert run_of(workspace).fold("0").is_finished


def test_memory_that_suffices_for_part_of_a_batch_is_kept_to(train_toy, workspace):
    assert train_toy("0", "--epochs", "1", "--batch_size", "8", "--memory", "0.0001") == 0
    assert run_of(workspace).record.micro_batch == 4


@pytest.mark.parametrize(("n_ranks", "reserved"), [(1, 2**29), (2, 2**30)])
def test_of_the_free_memory_of_a_gpu_some_is_left_for_what_is_no_tensor_of_a_step(monkeypatch, n_ranks, reserved):
    monkeypatch.setattr(training, "free_memory", lambda device: 10 * 2**30)
    ranks = SimpleNamespace(size=n_ranks)
    given = SimpleNamespace(options=TrainingOptions(), device=torch.device("cuda"), ranks=ranks)

    assert training._Training._memory(given) == 10 * 2**30 - reserved
    given.options = TrainingOptions(memory_gb=2.0)
    assert training._Training._memory(given) == 2 * 2**30


def test_a_split_can_be_a_file(train_toy, workspace, tmp_path):
    names = [f"case_{i:02d}" for i in range(18)]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"train": names[4:], "val": names[:4]}, {"train": names[:8], "val": names[8:]}]))

    assert train_toy("0", "--epochs", "1", "--split", path) == 0

    folder = run_of(workspace, "unet-best-mine").fold("0")
    assert [score.name for score in read_scores(folder.scores_csv)] == names[:4]


def test_training_starts_from_given_weights_and_records_their_hash(train_toy, refused, trained_toy, workspace):
    start = run_of(trained_toy).fold("0").weights

    assert train_toy("0", "--epochs", "1", "--lr", "1e-6", "--weights", start, "--name", "further") == 0

    run = run_of(workspace, "further")
    assert run.record.weights_sha256 == file_digest(start)
    assert run.record.overrides["weights"] == str(start)
    dice = json.loads(run.fold("0").summary_json.read_text())["scores"]["labels"]["foreground"]["all_cases"]["dice"]
    assert dice["mean"] > 0.8
    line = refused("1", "--epochs", "1", "--lr", "1e-6", "--name", "further")
    assert "weights_sha256: " in line


# Names and settings that cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", ["7", "3", "-1", "00", "one", "ALL", "0 1", ""])
def test_an_unknown_fold_is_refused_with_those_there_are(refused, fold):
    assert refused(fold) == (
        f"error: fold {fold!r} is not known: toy has folds 0 to 2 in the split random, 'cv' for all of them, and "
        "'all' for one model on every case"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--network", "resnet"), "unknown network 'resnet': choose one of iaunet, unet"),
        (("--network", "no.such:network"), "network 'no.such:network' cannot be found"),
        (("--network_option", "max_keys=256"), "network 'unet' has no option 'max_keys': its options are none"),
        (
            ("--network", "iaunet", "--network_option", "variant=full"),
            "option 'variant' of network 'iaunet' is 'full': give one of 'fullres', 'paper5'",
        ),
        (("--recipe", "magic"), "recipe 'magic' is not known: choose one of paper, best"),
        (("--split", "alternating"), "split 'alternating' is not known: give random, grouped or a JSON file"),
        (("--split", "none.json"), "none.json is missing: check the path"),
        (("--epochs", "0"), "epochs is 0: give 1 or more"),
        (("--lr", "0"), "lr is 0.0: give a number above 0"),
        (("--lr", "nan"), "lr is nan: give a number above 0"),
        (("--batch_size", "0"), "batch_size is 0: give 1 or more"),
        (("--width", "0"), "width is 0: give a whole number from 1"),
        (("--seed", "-1"), "seed is -1: give a whole number of 0 or more"),
        (("--hours", "0"), "hours is 0.0: give a number above 0"),
        (("--hours", "nan"), "hours is nan: give a number above 0"),
        (("--memory", "-2"), "memory_gb is -2.0: give a number above 0"),
        (("--memory", "inf"), "memory_gb is inf: give a number above 0"),
        (("--workers", "-1"), "workers is -1: give a whole number of 0 or more"),
        (("--device", "abacus"), "device 'abacus' cannot be used"),
        (("--name", "../up"), "'../up' cannot be a run's name: use letters, digits"),
        (("--name", ""), "'' cannot be a run's name"),
        (("--name", ".hidden"), "'.hidden' cannot be a run's name"),
        (("--weights", "none.safetensors"), "none.safetensors is no file: give the safetensors file to start from"),
        (("--val_only",), "unet-best-random was not trained yet: leave out --val_only"),
        (("--val_only", "--restart"), "--restart begins anew and --val_only scores what is there: give one of them"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_leaves_nothing(refused, workspace, options, message):
    assert message in refused("0", *options)
    assert not (workspace / "toy" / "runs").exists()


def test_an_unknown_dataset_is_refused_with_those_that_are_known(workspace, capsys):
    assert main(["tpy", "0", "--workspace", str(workspace)]) == 2

    assert (
        "has no data set 'tpy', it knows: toy; run iaunet_plan_and_preprocess FOLDER first" in capsys.readouterr().err
    )


def test_training_before_planning_names_the_command(tmp_path, toy, capsys):
    assert main([str(toy), "0", "--workspace", str(tmp_path / "empty")]) == 2

    assert f"run iaunet_plan_and_preprocess {toy}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("plan.json", "plan.json is missing: run iaunet_plan_and_preprocess first"),
        ("splits.json", "splits.json is missing: run iaunet_plan_and_preprocess again"),
        ("preprocessed/images.npy", "run iaunet_plan_and_preprocess toy again"),
    ],
)
def test_a_missing_file_of_an_earlier_stage_names_the_command(refused, workspace, file, message):
    (workspace / "toy" / file).unlink()

    assert message in refused("0")


def test_a_plan_edited_after_preprocessing_names_the_command(refused, workspace):
    edit_json(workspace / "toy" / "plan.json", lambda plan: plan.update(input_size=[96, 96]))

    assert "was made from other data or another plan: run iaunet_plan_and_preprocess toy again" in refused("0")


def test_a_plan_edited_to_nonsense_names_the_field_and_what_is_allowed(refused, workspace):
    edit_json(workspace / "toy" / "plan.json", lambda plan: plan["recipe"].update(lr=-1))

    assert "plan.json: recipe.lr is -1.0: give a number above 0, 1 at most" in refused("0")


def test_a_strangers_network_in_the_plan_runs_only_when_it_is_named(refused, train_toy, workspace):
    name = "strange_networks:Strange"
    edit_json(workspace / "toy" / "plan.json", lambda plan: plan["network"].update(name=name))

    line = refused("0")
    assert line == (
        f"error: the plan names the network {name}, whose code would be run: give --network {name} if you trust it"
    )
    assert train_toy("0", "--network", name, "--epochs", "1") == 0
    assert run_of(workspace, "Strange-best-random").fold("0").is_finished


def test_options_change_the_plan_where_they_are_given(toy_workspace):
    plan = load_plan(toy_workspace / "toy" / "plan.json")

    assert resolve_plan(plan, TrainingOptions()) == plan
    changed = resolve_plan(plan, TrainingOptions(network="iaunet", width=6, recipe="paper", lr=0.5))
    assert (changed.network.name, changed.network.width, changed.network.depth) == ("iaunet", 6, 3)
    assert (changed.recipe.name, changed.recipe.lr, changed.recipe.epochs) == ("paper", 0.5, 500)
    assert resolve_plan(plan, TrainingOptions(recipe="best")).recipe == plan.recipe


@pytest.mark.parametrize(
    ("planned", "name", "sizes"),
    [
        (("iaunet", 64, 5), "swin_unet", (96, 4)),
        (("iaunet", 64, 5), "unext", (16, 5)),
        (("iaunet", 1024, 5), "swin_unet", (1024, 4)),
        (("iaunet", 8, 5), "swin_unet", (12, 4)),
        (("iaunet", 8, 4), "resunet", (8, 3)),
        (("iaunet", 2, 3), "unext", (1, 3)),
        (("unext", 16, 5), "iaunet", (64, 5)),
        (("strange_networks:build", 7, 4), "unet", (7, 4)),
        (("iaunet", 7, 4), "strange_networks:Slow", (7, 4)),
    ],
)
def test_another_network_has_the_size_it_was_published_with_shrunk_as_the_planned_one_is(
    toy_workspace, planned, name, sizes
):
    plan = load_plan(toy_workspace / "toy" / "plan.json")
    network = NetworkPlan(name=planned[0], width=planned[1], depth=planned[2])

    changed = resolve_plan(dataclasses.replace(plan, network=network), TrainingOptions(network=name)).network

    assert (changed.width, changed.depth) == sizes
    wide = resolve_plan(dataclasses.replace(plan, network=network), TrainingOptions(network=name, width=5)).network
    assert (wide.width, wide.depth) == (5, sizes[1])
    assert changed.options == ({"max_keys": choose_max_keys(changed.width)} if name == "iaunet" else {})


def test_a_recipe_that_a_networks_needs_are_not_met_by_is_told(train_toy, workspace, capsys):
    network = {"name": "swin_unet", "width": 4, "depth": 3, "options": {"window": 2}}
    edit_json(workspace / "toy" / "plan.json", lambda plan: plan.update(network=network))

    assert train_toy("0", "--epochs", "1") == 0

    assert "swin_unet trains badly under the recipe as it is: change it in plan.json (optimiser: adam -> adamw" in (
        capsys.readouterr().out
    )


def test_options_of_the_network_are_taken_over_those_of_the_plan(toy_workspace):
    plan = load_plan(toy_workspace / "toy" / "plan.json")
    network = NetworkPlan(name="iaunet", width=4, depth=3, options={"max_keys": 256, "variant": "paper5"})
    wish = TrainingOptions(network_options={"max_keys": None, "spatial_attention": "scaled"})

    changed = resolve_plan(dataclasses.replace(plan, network=network), wish).network

    assert changed.options == {"max_keys": None, "variant": "paper5", "spatial_attention": "scaled"}


def test_a_recipe_is_adapted_to_the_network_it_trains(toy_workspace):
    plan = load_plan(toy_workspace / "toy" / "plan.json")

    swin = resolve_plan(plan, TrainingOptions(network="swin_unet", epochs=7)).recipe
    assert (swin.name, swin.optimiser, swin.weight_decay, swin.epochs) == ("best", "adamw", 0.05, 7)
    assert swin.lr == plan.recipe.lr == 0.02  # as it was edited
    assert swin.draws_a_case == plan.recipe.draws_a_case
    assert resolve_plan(plan, TrainingOptions(network="swin_unet", lr=0.1)).recipe.lr == 0.1
    of_swin = dataclasses.replace(plan, network=NetworkPlan(name="swin_unet", width=96, depth=4), recipe=swin)
    assert resolve_plan(of_swin, TrainingOptions(network="iaunet")).recipe == dataclasses.replace(plan.recipe, epochs=7)
    paper = resolve_plan(plan, TrainingOptions(network="swin_unet", recipe="paper")).recipe
    assert (paper.optimiser, paper.lr) == ("adam", 1e-4)


@pytest.mark.parametrize("options", [{"seed": -1}, {"hours": math.nan}, {"memory_gb": 0.0}, {"workers": -1}])
def test_options_that_exist_are_valid(options):
    with pytest.raises(FieldError, match="give a"):
        TrainingOptions(**options)


# Going on -----------------------------------------------------------------------------------------------------------


def test_going_on_with_other_settings_is_refused_naming_the_fields(trained, capsys):
    before = contents(trained)

    assert main(["toy", "0", "--workspace", str(trained), "--lr", "0.5", "--width", "9", "--seed", "4"]) == 2

    line = capsys.readouterr().err
    assert "was begun with other settings (" in line
    for change in ("plan.network.width: 4 -> 9", "plan.recipe.lr: 0.02 -> 0.5", "seed: 0 -> 4"):
        assert change in line
    assert line.count(" -> ") == 3
    assert "--restart to put it aside and begin anew, or --name for another run" in line
    assert contents(trained) == before


def test_other_folds_of_a_run_need_its_settings_too(trained, capsys):
    edit_json(trained / "toy" / "splits.json", lambda s: s["splits"]["random"]["folds"].reverse())

    assert main(["toy", "all", "--workspace", str(trained)]) == 2

    assert "the folds of the split random have changed since " in capsys.readouterr().err


def test_another_name_is_another_run(trained):
    before = contents(run_of(trained).root)

    assert main(["toy", "0", "--workspace", str(trained), "--epochs", "1", "--name", "größer"]) == 0

    assert contents(run_of(trained).root) == before
    assert run_of(trained, "größer").record.plan.recipe.epochs == 1


def test_restart_renames_the_old_run_and_deletes_nothing(trained, capsys):
    before = contents(run_of(trained).root)
    options = ["toy", "0", "--workspace", str(trained), "--epochs", "1", "--restart"]

    assert main(options) == 0
    assert main(options) == 0

    assert contents(run_of(trained, f"{RUN}.old-1").root) == before
    assert run_of(trained, f"{RUN}.old-2").record == run_of(trained).record
    assert [folder.fold for folder in run_of(trained).finished_folds()] == ["0"]
    assert f"the old run is kept as {run_of(trained, f'{RUN}.old-1').root}" in capsys.readouterr().out


@pytest.mark.parametrize("options", [("--device", "abacus"), ("--network", "no.such:network", "--name", RUN)])
def test_a_restart_that_cannot_be_leaves_the_old_run_in_its_place(trained, capsys, options):
    before = contents(run_of(trained).root)

    assert main(["toy", "0", "--workspace", str(trained), "--restart", *options]) == 2

    assert contents(run_of(trained).root) == before
    assert [path.name for path in run_of(trained).root.parent.iterdir() if path.is_dir()] == [RUN]


@pytest.mark.parametrize("options", [(), ("--restart",)])
def test_a_second_process_on_a_fold_is_refused_in_one_line(refused, workspace, options):
    folder = run_of(workspace).fold("0").root
    with locked(folder, "training"):
        line = refused("0", *options)

    assert line == f"error: another process is training in {folder}: wait until it ends, or stop it first"
    assert folder.exists()


def test_a_damaged_record_or_checkpoint_names_the_way_out(refused, trained, workspace, train_toy):
    run = run_of(workspace)
    train_toy("0", "--epochs", "1")
    run.fold("0").summary_json.unlink()
    run.fold("0").checkpoint.write_bytes(b"half")

    assert "checkpoint.pt is no checkpoint of this version or damaged" in refused("0", "--epochs", "1")
    run.run_json.write_text('{"version": 1}')
    assert "run.json: plan is missing; start the run anew with --restart" in refused("0", "--epochs", "1")
    assert train_toy("0", "--epochs", "1", "--restart") == 0


def test_val_only_by_name_takes_the_settings_of_that_run_but_no_other_folds(trained, capsys):
    folder = DatasetFolder(trained / "toy")
    run = Run(folder.runs / RUN)
    plan = dataclasses.replace(run.record.plan, recipe=dataclasses.replace(run.record.plan.recipe, lr=0.123))
    run.write_record(dataclasses.replace(run.record, plan=plan, seed=7))
    summary = run.root / "fold_2" / "summary.json"
    before = json.loads(summary.read_text())
    common = ["toy", "cv", "--workspace", str(trained), "--val_only"]

    assert main(common) == 2
    assert "was begun with other settings (plan.recipe.lr: 0.123 ->" in capsys.readouterr().err
    assert main([*common, "--name", RUN]) == 0
    assert json.loads(summary.read_text()) == {**before, "settings_sha256": digest(run.record.settings)}

    run.write_record(dataclasses.replace(run.record, split_digest="other"))
    assert main([*common, "--name", RUN]) == 2
    assert "the folds of the split random have changed since " in capsys.readouterr().err


def test_val_only_of_a_fold_that_was_not_trained_is_refused(trained, capsys):
    assert main(["toy", "all", "--workspace", str(trained), "--val_only"]) == 2

    assert f"fold all of {RUN} was not trained yet: leave out --val_only" in capsys.readouterr().err


def test_hours_fix_the_epochs_of_the_first_fold_for_all(train_toy, refused, workspace):
    assert train_toy("cv", "--hours", "1e-9") == 0

    record = run_of(workspace).record
    assert (record.hours, record.epochs) == (1e-9, 4)
    for fold in range(3):
        assert len(metrics_of(run_of(workspace).fold(str(fold)))) == 4
    assert "hours: 1e-09 -> None" in refused("all")


def test_hours_are_shared_among_the_folds_still_to_do(workspace):
    folder = DatasetFolder(workspace / "toy")
    options = TrainingOptions(epochs=1)
    train(folder, "1", options)

    run = train(folder, "cv", options)

    assert [fold.fold for fold in run.finished_folds()] == ["0", "1", "2"]


def test_a_case_whose_true_mask_is_gone_stops_with_the_fold_trained(train_toy, refused, workspace):
    fold = load_splits(workspace / "toy" / "splits.json").splits["random"].folds[0]
    mask = workspace / "toy" / "preprocessed" / "truth" / f"{fold.validation[2]}.png"
    saved = mask.read_bytes()
    mask.unlink()

    line = refused("0", "--epochs", "1")

    assert line == f"error: {mask}: file is missing: run iaunet_plan_and_preprocess toy again"
    folder = run_of(workspace).fold("0")
    assert folder.weights.exists()
    assert not folder.is_finished
    mask.write_bytes(saved)
    assert train_toy("0", "--epochs", "1") == 0
    assert folder.is_finished


def test_differences_name_nested_fields():
    before, now = {"a": {"b": 1, "c": [1, 2]}, "d": None}, {"a": {"b": 2, "c": [1, 3]}, "e": 5}

    assert differences(before, now) == ["a.b: 1 -> 2", "a.c: [1, 2] -> [1, 3]", "e: None -> 5"]
    assert differences(before, before) == []
