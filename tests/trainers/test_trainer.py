import csv
import dataclasses
import json
import logging
import math
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from iaunet.console import Stopped
from iaunet.errors import NetworkError, TrainingError
from iaunet.inference.runs import FoldFolder
from iaunet.loss import bce_dice_loss
from iaunet.planners.plan import NetworkPlan, build_planned_network, load_plan
from iaunet.preprocessing.command import main as prepare
from iaunet.trainers.checkpoint import load_checkpoint
from iaunet.trainers.epoch_validation import dice_per_image
from iaunet.trainers.loader import Batch, start_batches
from iaunet.trainers.progress import Pace
from iaunet.trainers.trainer import Trainer
from iaunet.weights import load_weights, save_weights
from iaunet.workspace import DatasetFolder


@pytest.fixture(autouse=True)
def strange_networks(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


def with_network(setup, name, **changes):
    network = NetworkPlan(name=name if name == "unet" else f"strange_networks:{name}", width=4, depth=3)
    return dataclasses.replace(setup, plan=dataclasses.replace(setup.plan, network=network), **changes)


def with_recipe(setup, **changes):
    recipe = dataclasses.replace(setup.plan.recipe, **changes)
    return dataclasses.replace(setup, plan=dataclasses.replace(setup.plan, recipe=recipe))


def elsewhere(setup, name):
    return dataclasses.replace(setup, folder=FoldFolder(setup.folder.root.with_name(name)))


def of_eight(setup, network, **changes):
    """Steps of eight rows, two an epoch."""
    changes = {"micro_batch": 8, "epochs": 3, **changes}
    return with_recipe(with_network(setup, network, **changes), batch_size=8)


def fit(setup, trainer=Trainer):
    done = trainer(setup)
    done.fit()
    return done


def rows_of(setup):
    """metrics.csv without what the clock says."""
    with setup.folder.metrics_csv.open(newline="") as file:
        return [{name: row[name] for name in row if name != "seconds"} for row in csv.DictReader(file)]


def assert_same_result(left, right):
    assert left.folder.weights.read_bytes() == right.folder.weights.read_bytes()
    assert rows_of(left) == rows_of(right)


def same_state(left, right):
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def stopping_at(epoch, step, number=signal.SIGINT):
    """A trainer that is signalled during a step, counted from 0."""

    class Signalled(Trainer):
        def train_step(self, batch):
            if (self.epoch, self.step) == (epoch, step):
                signal.raise_signal(number)
            return super().train_step(batch)

    return Signalled


# Results ------------------------------------------------------------------------------------------------------------


def test_equal_trainings_give_weights_and_metrics_equal_to_the_bit(setup):
    again = elsewhere(setup, "again")
    fit(setup)
    torch.manual_seed(99)  # what was drawn before has no influence
    fit(again)

    assert_same_result(setup, again)
    other = dataclasses.replace(elsewhere(setup, "other"), seed=1)
    fit(other)
    assert rows_of(other) != rows_of(setup)


def test_a_training_with_a_loading_process_is_equal_to_one_without(setup):
    with_worker = dataclasses.replace(elsewhere(setup, "with worker"), workers=1)
    fit(setup)
    fit(with_worker)

    assert_same_result(setup, with_worker)


@pytest.mark.parametrize("means", [{"augments_on_device": True}, {"precision": torch.bfloat16}], ids=str)
def test_a_training_by_other_means_is_equal_to_itself_stopped_and_resumed(setup, means):
    plain = elsewhere(setup, "plain")
    setup = dataclasses.replace(setup, **means)
    stopped = elsewhere(setup, "stopped")
    fit(plain)
    fit(setup)
    with pytest.raises(Stopped):
        fit(stopped, stopping_at(1, 1))
    fit(stopped)

    assert_same_result(setup, stopped)
    losses, usual = ([float(row["loss"]) for row in rows_of(one)] for one in (setup, plain))
    assert losses != usual
    assert losses == pytest.approx(usual, rel=0.2)


@pytest.mark.slow
def test_a_training_augmented_on_the_device_is_equal_with_a_loading_process(setup):
    setup = dataclasses.replace(setup, augments_on_device=True)
    with_worker = dataclasses.replace(elsewhere(setup, "with worker"), workers=1)
    fit(setup)
    fit(with_worker)

    assert_same_result(setup, with_worker)


def test_the_result_is_the_average_of_the_last_epoch_and_not_the_raw_weights(setup):
    trainer = fit(setup)
    written = load_file(setup.folder.weights)

    assert same_state(trainer.average.network.state_dict(), written)
    assert not same_state(trainer.network.state_dict(), written)
    assert same_state(load_checkpoint(setup.folder.checkpoint).average, written)
    assert trainer.average.updates == 6


def test_a_recipe_that_does_not_average_gives_the_raw_weights(setup):
    setup = with_recipe(setup, average_weights=False)
    trainer = fit(setup)

    assert trainer.average is None
    assert same_state(trainer.network.state_dict(), load_file(setup.folder.weights))


def test_metrics_hold_the_mean_losses_and_the_rate_of_the_last_step(setup):
    class Remembering(Trainer):
        steps = ()

        def train_step(self, batch):
            losses = super().train_step(batch)
            self.steps += ({**losses, "lr": self.optimiser.param_groups[0]["lr"]},)
            return losses

    trainer = fit(setup, Remembering)

    rows = rows_of(setup)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row, steps in zip(rows, (trainer.steps[:3], trainer.steps[3:]), strict=True):
        for name in ("loss", "bce", "dice_loss"):
            assert float(row[name]) == pytest.approx(np.mean([step[name] for step in steps]))
        assert float(row["lr"]) == pytest.approx(steps[-1]["lr"])
        assert float(row["bce"]) + float(row["dice_loss"]) == pytest.approx(float(row["loss"]))
    assert [step["lr"] for step in trainer.steps] == pytest.approx(
        [0.02 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    )


def test_validation_is_loss_and_dice_of_the_held_out_rows_under_the_average(setup):
    trainer = fit(setup)
    network = trainer.average.network
    rows = [i for i, row in enumerate(trainer.arrays.index.rows) if row.case in setup.validation]
    images = torch.from_numpy(trainer.arrays.images[rows].astype(np.float32))
    truth = torch.from_numpy(trainer.arrays.masks[rows][:, None] == 1)

    with torch.no_grad():
        logits = network(images)

    last = rows_of(setup)[-1]
    dices = dice_per_image(logits.sigmoid() >= 0.5, truth)
    assert float(last["validation_loss"]) == pytest.approx(float(bce_dice_loss(logits, truth.float()).loss), rel=1e-4)
    assert float(last["validation_dice"]) == pytest.approx(float(dices.mean()), rel=1e-4)


@pytest.fixture
def tiled(workspace, setup):
    """One epoch of the toy dataset cut into nine tiles of 32x32 px an image, two draws a case."""
    dataset = DatasetFolder(workspace / "toy")
    plan = json.loads(dataset.plan_json.read_text(encoding="utf-8"))
    plan |= {"input_mode": "tiles", "input_size": [32, 32], "tile_scale": 1.0}
    plan["recipe"] |= {"draws_a_case": 2}
    dataset.plan_json.write_text(json.dumps(plan), encoding="utf-8")
    raw = dataset.load_dataset().source.root
    assert prepare([raw, "--workspace", str(workspace), "--workers", "1", "--groups", "none", "--folds", "3"]) == 0
    return dataclasses.replace(setup, plan=load_plan(dataset.plan_json), preprocessed=dataset.preprocessed, epochs=1)


def test_an_epoch_of_tiled_images_draws_rows_of_each_case_and_looks_at_a_few_held_out_ones(tiled):
    trainer = Trainer(tiled)
    trainer.build()
    cases = [row.case for row in trainer.arrays.index.rows]
    assert len(cases) == 18 * 9

    assert trainer.sampler.order.steps == 6  # 12 cases, twice, four a step
    drawn = [sample for step in range(6) for sample in trainer.sampler.order.batch(0, step)]
    assert Counter(cases[sample.row] for sample in drawn) == dict.fromkeys(tiled.train, 2)
    shown = trainer.validation.rows
    assert {cases[row] for row in shown} == {*tiled.validation}
    assert all(1 <= n <= 4 for n in Counter(cases[row] for row in shown).values())
    assert trainer.arrays.foreground[shown].all()
    trainer.fit()
    [row] = rows_of(tiled)
    assert 0 < float(row["validation_dice"]) <= 1


def test_a_step_does_not_depend_on_the_targets_of_ignored_pixels(setup):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.normal(size=(4, 3, 64, 64))).float()
    targets = torch.from_numpy(rng.integers(0, 2, (4, 1, 64, 64))).float()
    valid = torch.from_numpy(rng.integers(0, 2, (4, 1, 64, 64))).float()
    states = []
    for elsewhere_is in (0.0, 1.0):
        trainer = Trainer(setup)
        trainer.build()
        batch = Batch(images, torch.where(valid > 0, targets, elsewhere_is), (0, 1, 2, 3), valid)
        trainer.train_step(batch)
        states.append({name: tensor.clone() for name, tensor in trainer.network.state_dict().items()})

    assert same_state(*states)
    trainer = Trainer(setup)
    trainer.build()
    trainer.train_step(Batch(images, targets, (0, 1, 2, 3)))
    assert not same_state(states[0], trainer.network.state_dict())


def test_nothing_held_out_leaves_validation_undefined(setup, caplog):
    caplog.set_level(logging.INFO)
    setup = dataclasses.replace(setup, train=(*setup.train, *setup.validation), validation=(), epochs=1)
    trainer = fit(setup)

    assert rows_of(setup)[0]["validation_dice"] == "nan"
    assert trainer.sampler.order.steps == 5
    assert "dice nan" in caplog.text
    assert setup.folder.progress_png.exists()


def test_training_starts_from_weights_that_are_given(setup, tmp_path):
    torch.manual_seed(5)
    network = build_planned_network(setup.plan)
    save_weights(tmp_path / "start.safetensors", network.state_dict())
    trainer = Trainer(dataclasses.replace(setup, weights=tmp_path / "start.safetensors"))

    trainer.build()

    assert same_state(trainer.network.state_dict(), network.state_dict())
    assert same_state(trainer.average.network.state_dict(), network.state_dict())


def test_weights_of_another_network_are_refused_as_a_start(setup, tmp_path):
    save_weights(tmp_path / "other.safetensors", torch.nn.Conv2d(3, 1, 1).state_dict())

    with pytest.raises(NetworkError, match="holds weights of another network"):
        fit(dataclasses.replace(setup, weights=tmp_path / "other.safetensors"))


def test_a_network_whose_layers_share_a_weight_is_trained_and_written(setup):
    setup = with_network(setup, "Tied", epochs=1)
    trainer = fit(setup)
    network = build_planned_network(setup.plan)

    load_weights(setup.folder.weights, network)

    assert torch.equal(network.one.weight, network.two.weight)
    assert same_state(network.state_dict(), trainer.average.network.state_dict())


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_is_the_recipes(setup, name, kind):
    trainer = Trainer(with_recipe(setup, optimiser=name, weight_decay=0.03, lr=0.005))
    trainer.build()

    [group] = trainer.optimiser.param_groups
    assert type(trainer.optimiser) is kind
    expected = {"lr": 0.005, "weight_decay": 0.03, "betas": (0.9, 0.999), "eps": 1e-8}
    assert {name: group[name] for name in expected} == expected


@pytest.mark.parametrize("clip", [None, 0.01, 1e6])
def test_gradients_are_clipped_to_the_recipes_norm_and_not_without_one(setup, clip):
    trainer = Trainer(with_recipe(setup, clip_gradient_norm=clip))
    trainer.build()
    trainer.resume_or_start()
    [batch, *_] = start_batches(trainer.loader)
    trainer.network.train()
    trainer.accumulate_gradients(batch)
    before = [parameter.grad.clone() for parameter in trainer.network.parameters()]
    trainer.build()
    trainer.network.train()

    trainer.train_step(batch)

    after = [parameter.grad for parameter in trainer.network.parameters()]
    if clip == 0.01:
        assert torch.nn.utils.get_total_norm(after) == pytest.approx(0.01, rel=1e-3)
    else:
        assert all(map(torch.equal, before, after))


# Micro-batches and memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [4, 2, 3])
def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(setup, rows):
    trainer = Trainer(of_eight(setup, "build_plain"))
    trainer.build()
    [batch, *_] = start_batches(trainer.loader)
    losses = trainer.accumulate_gradients(batch)
    whole = [parameter.grad.clone() for parameter in trainer.network.parameters()]

    trainer.micro_batch = rows  # 3 leaves a last part of 2, which weighs less
    parts = trainer.accumulate_gradients(batch)

    torch.testing.assert_close(parts, losses, rtol=1e-5, atol=0)
    for gradient, parameter in zip(whole, trainer.network.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_step_that_runs_out_of_memory_is_repeated_in_smaller_parts_as_if_it_had_not_been_tried(setup, caplog):
    class Halving(Trainer):
        """Goes over to four rows where the other network runs out of memory."""

        def train_step(self, batch):
            if (self.epoch, self.step) == (1, 0):
                self.micro_batch = 4
            return super().train_step(batch)

    failing = of_eight(setup, "Forgetful")
    planned = elsewhere(of_eight(setup, "Dropping"), "planned")
    trainer = fit(failing)
    fit(planned, Halving)

    assert_same_result(failing, planned)
    assert trainer.micro_batch == load_checkpoint(failing.folder.checkpoint).micro_batch == 4
    assert caplog.messages == ["memory ran out: going on with 4 rows at a time"]


def test_a_network_that_never_fits_is_told_with_a_mend(setup, caplog):
    told = "memory does not suffice for 4 rows on cpu: use a smaller --width, or close other programs"
    with pytest.raises(TrainingError, match=told):
        fit(of_eight(setup, "Greedy"))

    assert caplog.messages == ["memory ran out: going on with 4 rows at a time"]


def test_other_faults_of_a_network_keep_their_traceback(setup):
    with pytest.raises(ValueError, match="a fault of the network's own"):
        fit(with_network(setup, "Failing"))


def test_a_resumed_training_keeps_the_smaller_micro_batch(setup):
    with pytest.raises(Stopped):
        fit(of_eight(setup, "Forgetful"), stopping_at(1, 1))

    trainer = Trainer(of_eight(setup, "Forgetful"))
    trainer.build()
    trainer.resume_or_start()

    assert trainer.micro_batch == 4


# Faults -------------------------------------------------------------------------------------------------------------


def poison(setup, tmp_path, case, value):
    """A copy of the arrays with a case whose image holds ``value``."""
    folder = shutil.copytree(setup.preprocessed, tmp_path / "preprocessed")
    trainer = Trainer(setup)
    trainer.build()
    place = [row.case for row in trainer.arrays.index.rows].index(case)
    images = np.load(folder / "images.npy", mmap_mode="r+")
    images[place, :, 5, 5] = value
    images.flush()
    return dataclasses.replace(setup, preprocessed=folder)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_naming_the_cases_and_keeps_the_last_checkpoint(setup, tmp_path, value):
    with pytest.raises(Stopped):
        fit(setup, stopping_at(0, 2))

    poisoned = poison(setup, tmp_path, setup.train[3], value)
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 2, step \d, with the cases .*") as caught:
        fit(poisoned)

    assert setup.train[3] in str(caught.value)
    assert "look at these, or begin another run with --name and a lower --lr; the last checkpoint" in str(caught.value)
    kept = load_checkpoint(setup.folder.checkpoint)
    assert (kept.epoch, kept.step) == (1, 0)
    assert all(tensor.isfinite().all() for tensor in kept.network.values())
    assert not setup.folder.weights.exists()


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(setup):
    setup = with_network(setup, "Kinked")

    with pytest.raises(TrainingError, match="the gradient's norm is nan in epoch 1, step 3, with the cases"):
        fit(setup)
    assert not setup.folder.checkpoint.exists()


def test_a_checkpoint_that_does_not_fit_is_named(setup):
    trainer = fit(dataclasses.replace(setup, epochs=1))
    checkpoint = load_checkpoint(setup.folder.checkpoint)

    for wrong in ({"network": {}}, {"optimiser": {}}, {"losses": 3}):
        told = r"checkpoint\.pt does not fit this training \(.*\): start the fold anew with --restart"
        with pytest.raises(TrainingError, match=told):
            trainer.load(dataclasses.replace(checkpoint, **wrong))


def test_a_checkpoint_of_a_run_with_other_settings_is_refused(setup):
    fit(dataclasses.replace(setup, epochs=1))

    told = r"checkpoint\.pt belongs to a run with other settings: use --restart, or --name for a new run"
    with pytest.raises(TrainingError, match=told):
        fit(dataclasses.replace(setup, run="another run"))


# Stopping and going on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "epoch", "step", "saved"),
    [
        (signal.SIGINT, 0, 0, "epoch 0, step 1"),
        (signal.SIGTERM, 0, 2, "epoch 0, step 3"),
        (signal.SIGINT, 1, 1, "epoch 1, step 2"),
        (signal.SIGTERM, 1, 2, "epoch 1, step 3"),
    ],
)
def test_a_training_stopped_at_any_step_goes_on_to_the_same_result(setup, number, epoch, step, saved):
    undisturbed = elsewhere(setup, "undisturbed")
    fit(undisturbed)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    with pytest.raises(Stopped, match=f"saved after {saved}: run the same command again to go on"):
        fit(setup, stopping_at(epoch, step, number))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    fit(setup)

    assert_same_result(setup, undisturbed)


def test_a_network_that_draws_goes_on_to_the_same_result(setup):
    network = NetworkPlan(name="swin_unet", width=4, depth=3, options={"window": 2, "drop_path": 0.5})
    setup = dataclasses.replace(setup, plan=dataclasses.replace(setup.plan, network=network))
    undisturbed = elsewhere(setup, "undisturbed")
    fit(undisturbed)

    with pytest.raises(Stopped):
        fit(setup, stopping_at(1, 0))
    torch.manual_seed(77)  # what another process would have drawn
    fit(setup)

    assert_same_result(setup, undisturbed)


def test_a_signal_between_two_epochs_stops_there(setup):
    class Signalled(Trainer):
        def validate(self):
            signal.raise_signal(signal.SIGTERM)
            return super().validate()

    with pytest.raises(Stopped, match="saved after epoch 1: run the same command again to go on"):
        fit(setup, Signalled)
    undisturbed = elsewhere(setup, "undisturbed")
    fit(undisturbed)
    fit(setup)

    assert_same_result(setup, undisturbed)


def test_random_numbers_that_the_network_draws_go_on_too(setup):
    setup = with_network(setup, "Dropping")
    undisturbed = elsewhere(setup, "undisturbed")
    fit(undisturbed)

    with pytest.raises(Stopped):
        fit(setup, stopping_at(1, 0))
    torch.manual_seed(99)
    fit(setup)

    assert_same_result(setup, undisturbed)


def test_a_second_signal_does_not_wait_for_the_step(setup):
    class Impatient(Trainer):
        def train_step(self, batch):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt):
        fit(setup, Impatient)


def test_going_on_at_the_end_only_writes_the_weights_again(setup):
    fit(setup)
    before = setup.folder.weights.read_bytes(), rows_of(setup)
    setup.folder.weights.unlink()
    (setup.folder.root / ".weights.safetensors.1-1.iaunet-tmp").write_bytes(b"half")

    fit(setup)

    assert (setup.folder.weights.read_bytes(), rows_of(setup)) == before
    assert not list(setup.folder.root.glob(".*tmp"))


def test_another_number_of_threads_is_told(setup, caplog):
    caplog.set_level(logging.INFO)
    threads = torch.get_num_threads()
    with pytest.raises(Stopped):
        fit(setup, stopping_at(0, 1))
    torch.set_num_threads(threads + 1)
    try:
        fit(setup)
    finally:
        torch.set_num_threads(threads)

    assert "going on from epoch 1, step 2" in caplog.text
    told = f"this CPU training began with {threads} threads and goes on with {threads + 1}: the last digits may differ"
    assert told in caplog.text


# Hours --------------------------------------------------------------------------------------------------------------


def test_hours_fix_the_epochs_after_the_first_steps_and_the_running_epoch_ends(setup, caplog):
    caplog.set_level(logging.INFO)
    trainer = fit(dataclasses.replace(setup, epochs=50, hours=1e-9))

    assert trainer.epochs == trainer.epoch == 4  # the tenth of three steps each is in the fourth
    assert "1e-09 hours allow 4 epochs" in caplog.messages
    assert any(message.startswith("epoch 4/4  loss ") for message in caplog.messages)
    assert load_checkpoint(setup.folder.checkpoint).epochs == 4


def test_hours_that_are_plenty_leave_the_epochs_as_planned(setup):
    assert fit(dataclasses.replace(setup, epochs=5, hours=1000.0)).epochs == 5


@pytest.mark.parametrize("place", [(0, 1), (2, 2)])
def test_hours_are_kept_to_though_the_training_was_stopped_before_they_fixed_the_epochs(setup, place):
    setup = dataclasses.replace(setup, epochs=50, hours=1e-9)
    with pytest.raises(Stopped):
        fit(setup, stopping_at(*place))

    assert fit(setup).epochs < 10


def test_hours_that_fixed_the_epochs_do_not_fix_them_again(setup):
    setup = dataclasses.replace(setup, epochs=50, hours=1e-9)
    with pytest.raises(Stopped):
        fit(setup, stopping_at(3, 1))

    assert fit(dataclasses.replace(setup, hours=1000.0)).epochs == 4


# Checkpoints that would take too much of the time ---------------------------------------------------------------------


@pytest.fixture
def saving_once(monkeypatch):
    """After the first epoch no checkpoint is due."""
    due = iter([True])
    monkeypatch.setattr(Pace, "is_due", lambda pace: next(due, False))


class Saving(Trainer):
    """Remembers what it saved."""

    def __init__(self, setup):
        super().__init__(setup)
        self.saved = []

    def save_checkpoint(self):
        self.saved.append((self.epoch, self.step))
        super().save_checkpoint()


def test_checkpoints_that_are_not_due_are_left_out_but_for_the_last(setup, saving_once):
    assert fit(dataclasses.replace(setup, epochs=4), Saving).saved == [(1, 0), (4, 0)]


def test_a_stop_is_saved_whether_or_not_a_checkpoint_is_due(setup, saving_once):
    class StoppedAfterTheSecondEpoch(Saving):
        def log_epoch(self, validation):
            super().log_epoch(validation)
            if self.epoch == 2:
                signal.raise_signal(signal.SIGTERM)

    trainer = StoppedAfterTheSecondEpoch(dataclasses.replace(setup, epochs=4))
    with pytest.raises(Stopped, match="saved after epoch 2:"):
        trainer.fit()

    assert trainer.saved == [(1, 0), (2, 0)]


def test_epochs_without_a_checkpoint_are_done_again_to_the_same_weights(setup, saving_once):
    class Killed(Saving):
        def log_epoch(self, validation):
            super().log_epoch(validation)
            if self.epoch == 3:
                raise OSError("the power went")

    setup = dataclasses.replace(setup, epochs=4)
    undisturbed = elsewhere(setup, "undisturbed")
    with pytest.raises(OSError, match="the power went"):
        fit(setup, Killed)
    assert load_checkpoint(setup.folder.checkpoint).epoch == 1
    fit(setup)
    fit(undisturbed)

    assert_same_result(setup, undisturbed)


def test_a_training_that_went_on_for_a_while_without_half_precision_goes_on_with_it(setup):
    fit(dataclasses.replace(setup, epochs=1))
    trainer = Trainer(dataclasses.replace(setup, epochs=2))
    trainer.build()
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    trainer.resume_or_start()

    assert load_checkpoint(setup.folder.checkpoint).scaler == {}
    assert (trainer.epoch, trainer.scaler.get_scale()) == (1, 8.0)
