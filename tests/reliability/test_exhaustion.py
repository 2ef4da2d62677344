"""What is used up: memory, simulated and real; workers that are killed; numbers that are none; one folder for two.

Memory runs out at an allocation of torch's that a test names, or for real, under a limit on a command's address space.
The long forms go through whole rows of allocations and limits.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from iaunet.__main__ import main
from iaunet.errors import TrainingError
from iaunet.exhaustion import is_out_of_memory
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import FoldFolder, Run
from iaunet.planners.folds import load_splits
from iaunet.planners.plan import NetworkPlan, load_plan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.storage import digest
from iaunet.trainers.checkpoint import load_checkpoint, save_checkpoint
from iaunet.trainers.fold_setup import FoldSetup
from iaunet.trainers.trainer import Trainer
from iaunet.weights import save_weights
from iaunet.workspace import DatasetFolder

NETWORKS = Path(__file__).parents[1] / "trainers"
RUN = "unet-best-random"
SHORT_OF_MEMORY = r"memory|can't start new thread"


@pytest.fixture(scope="module", autouse=True)
def strange_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(NETWORKS)
        yield


# Memory that runs out at an allocation -------------------------------------------------------------------------------


class Allocator(TorchDispatchMode):
    """Counts the allocations of torch operations; at one of them, once, there is no memory."""

    def __init__(self, fails_at, watch=lambda: None):
        super().__init__()
        self.count = 0
        self._fails_at = fails_at
        self._watch = watch

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(made.alias_info is None for made in func._schema.returns):
            self.count += 1
            self._watch()
            if self.count == self._fails_at:
                kinds = torch.OutOfMemoryError("simulated"), RuntimeError("DefaultCPUAllocator: can't allocate memory")
                raise kinds[self.count % 2]
        return func(*args, **(kwargs or {}))


class Watched(Trainer):
    """Knows which of its steps is under way, as (what, epoch, step)."""

    doing = "other"

    def place(self):
        return self.doing, self.epoch, self.step

    def _during(self, what, action, *arguments):
        before, self.doing = self.doing, what
        result = action(*arguments)
        self.doing = before
        return result

    def accumulate_gradients(self, batch):
        return self._during("gradients", super().accumulate_gradients, batch)

    def update_weights(self, sums):
        return self._during("update", super().update_weights, sums)

    def validate(self):
        return self._during("validation", super().validate)


class Halving(Trainer):
    """Goes over to four rows at a time at the step ``at``."""

    at = None

    def train_step(self, batch):
        if (self.epoch, self.step) == self.at:
            self.micro_batch = 4
        return super().train_step(batch)


@pytest.fixture(scope="module")
def begin(toy_workspace, tmp_path_factory):
    """The settings of two epochs of two steps of eight rows, in a new folder each time."""
    dataset = DatasetFolder(toy_workspace / "toy")
    fold = load_splits(dataset.splits_json).splits["random"].folds[0]
    plan = load_plan(dataset.plan_json)
    network = NetworkPlan(name="strange_networks:Dropping", width=4, depth=3)
    plan = dataclasses.replace(plan, network=network, recipe=dataclasses.replace(plan.recipe, batch_size=8))

    def begin():
        return FoldSetup(
            plan=plan,
            folder=FoldFolder(tmp_path_factory.mktemp("fold") / "fold_0"),
            preprocessed=dataset.preprocessed,
            run="a run",
            train=fold.train,
            validation=fold.validation[:5],
            seed=0,
            device=torch.device("cpu"),
            micro_batch=8,
            workers=0,
            epochs=2,
        )

    return begin


@pytest.fixture(scope="module")
def weights_of(begin):
    """The weights of a training that takes four rows at a time from a step on, or always eight."""

    @cache
    def weights_of(at=None):
        trainer = Halving(begin())
        trainer.at = at
        trainer.fit()
        return trainer.folder.weights.read_bytes()

    return weights_of


@pytest.fixture(scope="module")
def allocations(begin):
    """The numbers of the allocations of a training, by what it was doing."""
    trainer = Watched(begin())
    numbers = {}
    with Allocator(0, lambda: numbers.setdefault(trainer.place(), []).append(allocator.count)) as allocator:
        trainer.fit()
    return numbers


def starve(setup, number):
    """Train with no memory at an allocation: where that was, and what was raised."""
    trainer, places, fault = Watched(setup), [], None
    with Allocator(number, lambda: places.append(trainer.place())):
        try:
            trainer.fit()
        except (TrainingError, RuntimeError) as raised:
            fault = raised
    return places[number - 1], fault


def require_good_end(begin, weights_of, number):
    """Whatever memory runs out for, the weights become what they should; returns what it was."""
    setup = begin()
    (doing, *at), fault = starve(setup, number)
    if doing in ("gradients", "validation"):
        if fault is not None:
            raise AssertionError(f"{doing} at {at}, allocation {number}") from fault
        assert setup.folder.weights.read_bytes() == weights_of(tuple(at) if doing == "gradients" else None)
        assert load_checkpoint(setup.folder.checkpoint).micro_batch == (4 if doing == "gradients" else 8)
        return doing
    if fault is not None or doing == "update":  # what may be left out, as a picture, ends nothing
        assert is_out_of_memory(fault if doing == "other" else fault.__cause__)
    if doing == "update":
        assert isinstance(fault, TrainingError)
        assert "memory ran out on cpu while the weights were changed" in str(fault)
        assert "run the same command again to go on from the last checkpoint" in str(fault)
        assert setup.folder.checkpoint.exists() == (at[0] > 0)
    if setup.folder.checkpoint.exists():
        load_checkpoint(setup.folder.checkpoint)
    Trainer(setup).fit()
    halved = fault is None and load_checkpoint(setup.folder.checkpoint).micro_batch == 4  # no memory to remember with
    assert setup.folder.weights.read_bytes() == weights_of(tuple(at) if halved else None)
    return doing


def moments(allocations, every):
    """Of each step of each kind the first, the last and every so many allocations."""
    found = set()
    for numbers in allocations.values():
        found |= {numbers[0], numbers[-1], *numbers[every // 2 :: every]}
    return sorted(found)


@pytest.mark.parametrize("doing", ["gradients", "update", "validation", "other"])
def test_memory_that_runs_out_in_training_costs_no_bit_of_the_result(begin, weights_of, allocations, doing):
    numbers = allocations[next(place for place in allocations if place[0] == doing and (place[1] or doing == "other"))]

    assert require_good_end(begin, weights_of, numbers[len(numbers) // 2]) == doing


@pytest.mark.slow
def test_memory_that_runs_out_at_any_allocation_of_a_training_costs_no_bit_of_the_result(
    begin, weights_of, allocations
):
    ends = [require_good_end(begin, weights_of, number) for number in moments(allocations, 12)]

    for doing in ("gradients", "update", "validation", "other"):
        print(f"{doing}: {ends.count(doing)}")
        assert ends.count(doing) >= 4


def test_a_validation_that_does_not_fit_takes_fewer_rows_until_one_does_not_fit_either(begin, caplog):
    class Starving(Trainer):
        def build(self):
            super().build()
            self.average.network.register_forward_pre_hook(refuse)

    def refuse(module, rows):
        raise torch.OutOfMemoryError("simulated")

    with pytest.raises(TrainingError, match="memory does not suffice to validate one row on cpu: close other programs"):
        Starving(begin()).fit()

    told = "memory ran out in validation: going on with {} rows at a time"
    assert caplog.messages == [told.format(rows) for rows in (4, 2, 1)]


READING = """
import resource, sys
from pathlib import Path

import torch

from iaunet.errors import IaunetError
from iaunet.trainers.checkpoint import load_checkpoint
from iaunet.weights import load_weights

weights, checkpoint = map(Path, sys.argv[1:])
large = torch.nn.Linear(4096, 4096, bias=False)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (16 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for read in (lambda: load_weights(weights, large), lambda: load_checkpoint(checkpoint)):
    try:
        read()
    except IaunetError as fault:
        print(fault)
"""
"""A process that may take 16 MiB more than it has reads files of 64."""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no limits on memory on this system")
def test_files_that_do_not_fit_into_memory_are_not_called_damaged(begin, tmp_path):
    large = torch.nn.Linear(4096, 4096, bias=False)  # 64 MiB
    save_weights(tmp_path / "weights.safetensors", large.state_dict())
    setup = dataclasses.replace(begin(), epochs=1)
    Trainer(setup).fit()
    checkpoint = dataclasses.replace(load_checkpoint(setup.folder.checkpoint), network=large.state_dict())
    save_checkpoint(checkpoint, tmp_path / "checkpoint.pt")
    files = [tmp_path / "weights.safetensors", tmp_path / "checkpoint.pt"]

    done = subprocess.run([sys.executable, "-c", READING, *files], capture_output=True, text=True, check=True)

    of_weights, of_checkpoint = done.stdout.splitlines()
    assert f"memory does not suffice to read {files[0]}: close other" in of_weights
    assert f"memory does not suffice to read {files[1]} " in of_checkpoint
    load_checkpoint(files[1])


def test_a_checkpoint_for_whose_state_memory_does_not_suffice_is_not_said_to_be_another_trainings(begin):
    setup = dataclasses.replace(begin(), epochs=1)
    Trainer(setup).fit()

    def starve(state):
        raise torch.OutOfMemoryError("simulated")

    trainer = Trainer(setup)
    trainer.build()
    trainer.network.load_state_dict = starve
    with pytest.raises(torch.OutOfMemoryError):  # which the command tells in its line
        trainer.load(load_checkpoint(setup.folder.checkpoint))


# Memory that runs out for real --------------------------------------------------------------------------------------


@pytest.fixture
def start_limited(start_command):
    """Start a command that gets no more than some MiB of address space."""
    resource = pytest.importorskip("resource", reason="no limits on memory on this system")

    def start(mib, *arguments, **environment):
        command = start_command(*arguments, PYTHONPATH=str(NETWORKS), **environment)
        resource.prlimit(command.pid, resource.RLIMIT_AS, (mib << 20, mib << 20))
        return command

    return start


def training_of(workspace, *options):
    """Two epochs of one step of sixteen rows with a network that takes memory for each row."""
    network = "--network", "strange_networks:Hungry", "--batch_size", "16", "--epochs", "2", "--workers", "0"
    return "train", "toy", "0", "--workspace", str(workspace), *network, *options


def weights_in(workspace):
    return Run(workspace / "toy" / "runs" / "Hungry-best-random").fold("0").weights.read_bytes()


@pytest.fixture(scope="module")
def weights_by_rows(toy_workspace, tmp_path_factory, fed):
    """The weights after that training, by how many rows it took at a time from its first step on."""

    @cache
    def weights_by_rows(rows):
        workspace = shutil.copytree(toy_workspace, tmp_path_factory.mktemp("rows") / "workspace")
        assert main(training_of(workspace, "--memory", f"{(rows + 3) * ROW_MIB / 1024}")) == 0
        return weights_in(workspace)

    return weights_by_rows


ROW_MIB = 64
"""Memory that a row takes; whatever a command needs besides is little beside a batch of these."""


@pytest.fixture(scope="module")
def fed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROW_MIB", str(ROW_MIB))
        yield


def require_one_line(code, err):
    """A command that does not come to its end says in one line that memory is short, and what to do."""
    lines = err.splitlines()
    if code == -signal.SIGABRT:  # a library of C++ that ends the process itself, while it is loaded
        assert "std::bad_alloc" in lines[-1]
        return
    assert code == 2, err
    assert len(lines) == 1, err
    assert re.search(SHORT_OF_MEMORY, lines[0])
    assert re.search("close other programs|--width|--workers", lines[0])


def test_a_training_whose_batch_does_not_fit_goes_on_in_parts_to_the_same_weights(
    start_limited, workspace, weights_by_rows
):
    command = start_limited(1800, *training_of(workspace), ROW_MIB=str(ROW_MIB))

    code, err, out = command.end()

    assert (code, err) == (0, "")
    assert "memory ran out: going on with 8 rows at a time" in out
    assert weights_in(workspace) == weights_by_rows(8)


LIMITS = [32, 128, 256, 400, 500, 600, 700, 800, 1000, 1200, 1500, 3000]
"""MiB of address space."""


@pytest.mark.slow
@pytest.mark.parametrize("mib", LIMITS)
def test_a_training_with_so_much_memory_ends_well_or_in_one_line_and_goes_on_with_more(
    mib, start_limited, start_command, workspace, weights_by_rows, require_whole
):
    command = start_limited(mib, *training_of(workspace), ROW_MIB=str(ROW_MIB))

    code, err, out = command.end()

    print(f"{mib} MiB: {code} {(err.splitlines() or out.splitlines())[-1:]}")
    require_whole(workspace)
    if code != 0:
        require_one_line(code, err)
        assert main(training_of(workspace)) == 0
    rows = [int(number) for number in re.findall(r"going on with (\d+) rows at a time", out)] or [16]
    assert weights_in(workspace) in [weights_by_rows(n) for n in {rows[-1], 16}]


def prediction_of(workspace, output, *options):
    images = Path(DatasetFolder(workspace / "toy").load_dataset().source.root) / "images"
    network = "--network", "strange_networks:Hungry", "--run", "Hungry-best-random"
    return (
        "predict",
        "-d",
        "toy",
        "--workspace",
        str(workspace),
        "-i",
        str(images),
        "-o",
        str(output),
        *network,
        *options,
    )


def masks_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def hungry(toy_workspace, tmp_path_factory, fed):
    """A workspace with one trained fold of the network that takes memory, and the masks that it predicts."""
    folder = tmp_path_factory.mktemp("hungry")
    workspace = shutil.copytree(toy_workspace, folder / "workspace")
    assert main(training_of(workspace)) == 0
    assert main(prediction_of(workspace, folder / "masks")) == 0
    return workspace, masks_in(folder / "masks")


def test_a_prediction_that_does_not_fit_beside_another_goes_on_one_at_a_time_with_the_same_masks(
    start_limited, hungry, tmp_path
):
    workspace, masks = hungry
    arguments = prediction_of(workspace, tmp_path / "out")

    command = start_limited(2000, *arguments, ROW_MIB="600", OMP_NUM_THREADS="2")
    code, err, out = command.end()

    assert (code, err) == (0, "")
    assert "memory ran out with several images at once: going on with one at a time" in out
    assert masks_in(tmp_path / "out") == masks


@pytest.mark.slow
@pytest.mark.parametrize("mib", LIMITS)
def test_a_prediction_with_so_much_memory_ends_well_or_in_one_line_and_goes_on_with_more(
    mib, start_limited, hungry, tmp_path, require_whole
):
    workspace, masks = hungry
    arguments = prediction_of(workspace, tmp_path / "out")

    code, err, out = start_limited(mib, *arguments, ROW_MIB="300", OMP_NUM_THREADS="2").end()

    print(f"{mib} MiB: {code} {(err.splitlines() or out.splitlines())[-1:]}")
    require_whole(tmp_path)
    if code == 1:
        assert "failed" in out
        assert "memory ran out for this image" in out
    elif code != 0:
        require_one_line(code, err)
    if code != 0:
        assert main(arguments) == 0
    assert masks_in(tmp_path / "out") == masks


# Processes that the system kills ------------------------------------------------------------------------------------


def kill_a_worker(command, seconds=0.0):
    """Kill one of the processes that a command started to work for it, some time after the first is there."""
    command.wait_until(lambda: command.workers() or command.poll() is not None, "there is a worker")
    time.sleep(seconds)
    for number in command.workers()[-1:]:
        with contextlib.suppress(ProcessLookupError):  # it is at its end
            os.kill(number, signal.SIGKILL)


def test_a_loading_process_that_is_killed_is_told_and_the_training_goes_on_to_the_same_weights(
    start_command, workspace
):
    network = "--network", "strange_networks:Slow", "--epochs", "3"
    arguments = "train", "toy", "0", "--workspace", workspace, *network
    command = start_command(*arguments, "--workers", "2", SLOW_SECONDS="0.2", PYTHONPATH=str(NETWORKS))
    command.read_until("epoch 2/3")
    kill_a_worker(command)

    code, err, _ = command.end()

    told = (
        "error: a loading process was killed, most likely because memory ran out: run the same command again to go on"
    )
    assert (code, err) == (2, f"{told}, with fewer --workers\n")
    fold = Run(workspace / "toy" / "runs" / "Slow-best-random").fold("0")
    assert load_checkpoint(fold.checkpoint).epoch >= 1
    assert main([str(argument) for argument in arguments]) == 0
    interrupted = fold.weights.read_bytes()
    assert main([*map(str, arguments), "--restart"]) == 0
    assert fold.weights.read_bytes() == interrupted


KILLED = "a worker process was killed, most likely because memory ran out"


@pytest.fixture(scope="module")
def sixty(write_toy, tmp_path_factory):
    """A dataset large enough for two processes."""
    return write_toy(tmp_path_factory.mktemp("sixty") / "toy", 60)


def arrays_of(workspace):
    return {path.name: path.read_bytes() for path in (workspace / "toy" / "preprocessed").glob("*.npy")}


@pytest.mark.parametrize(
    ("moments", "fewest_told"),
    [
        ((0.0,), 1),
        # most of them amid the work, the others up to its end and after it
        pytest.param((*np.linspace(0, 1, 20), *np.linspace(1.1, 3, 10)), 10, marks=pytest.mark.slow),
    ],
)
def test_a_preprocessing_process_that_is_killed_is_told_and_the_same_command_goes_on(
    moments, fewest_told, start_command, sixty, tmp_path
):
    def arguments(workspace):
        return "plan_and_preprocess", str(sixty), "--workspace", str(workspace), "--groups", "none", "--workers", "2"

    assert main([*arguments(tmp_path / "undisturbed")[:-1], "1"]) == 0
    n_told = 0
    for moment in moments:
        shutil.rmtree(tmp_path / "workspace", ignore_errors=True)
        command = start_command(*arguments(tmp_path / "workspace"))
        kill_a_worker(command, moment)
        code, err, _ = command.end()
        if code != 0:
            assert code == 2, err
            assert err.splitlines()[-1] == f"error: {KILLED}: run the same command with fewer workers (--workers 1)"
            n_told += 1

    assert n_told >= fewest_told
    assert main([*arguments(tmp_path / "workspace")[:-1], "1"]) == 0
    assert arrays_of(tmp_path / "workspace") == arrays_of(tmp_path / "undisturbed")


def test_an_evaluating_process_that_is_killed_is_told(start_command, sixty, tmp_path):
    masks = sixty / "masks"
    command = start_command(
        "evaluate", "--pred", masks, "--truth", masks, "--workers", "2", "--output", tmp_path / "out"
    )
    kill_a_worker(command)

    code, err, _ = command.end()

    assert code == 2
    assert err.splitlines()[-1] == f"error: {KILLED}: run the same command with fewer workers (--workers 1)"
    assert not (tmp_path / "out" / "summary.json").exists()


# Numbers that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_case_whose_pixels_are_no_numbers_is_named_and_the_last_good_state_stays(
    value, start_command, workspace, capsys
):
    arguments = ["train", "toy", "0", "--workspace", str(workspace), "--network", "strange_networks:Slow"]
    arguments += ["--epochs", "4", "--workers", "0"]
    command = start_command(*arguments, SLOW_SECONDS="0.1", PYTHONPATH=str(NETWORKS))
    command.read_until("epoch 1/4")
    command.terminate()
    assert command.end()[0] == 130
    dataset = DatasetFolder(workspace / "toy")
    arrays = open_arrays(dataset.preprocessed, load_plan(dataset.plan_json).arrays_digest)
    case = load_splits(dataset.splits_json).splits["random"].folds[0].train[3]
    images = np.load(dataset.preprocessed / "images.npy", mmap_mode="r+")
    place = arrays.cases[case].rows[0], 0, 5, 5
    before = images[place]
    images[place] = value

    assert main(arguments) == 2

    told = r"error: the loss is nan in epoch \d, step \d, with the cases (.*): look at these, .* checkpoint is kept\n"
    assert case in re.fullmatch(told, capsys.readouterr().err)[1].split(", ")
    fold = Run(dataset.runs / "Slow-best-random").fold("0")
    assert all(tensor.isfinite().all() for tensor in load_checkpoint(fold.checkpoint).network.values())
    images[place] = before
    assert main(arguments) == 0
    gone_on = fold.weights.read_bytes()
    assert main([*arguments, "--restart"]) == 0
    assert fold.weights.read_bytes() == gone_on


def test_an_image_for_which_networks_give_no_number_fails_and_the_others_are_predicted(trained_toy, tmp_path):
    predictor = Predictor.from_dataset(DatasetFolder(trained_toy / "toy"), folds=["0"], device="cpu")
    images = tmp_path / "images"
    images.mkdir()
    for grey in (0, 50, 200):
        Image.fromarray(np.full((64, 64, 3), grey, np.uint8)).save(images / f"{grey:03d}.png")
    numbers = predictor.plan.normalisation
    limit = (100 - np.mean(numbers.mean)) / np.mean(numbers.sd)

    def spoil(module, arguments, logits):
        return logits * (np.nan if arguments[0].mean() > limit else 1)

    predictor.ensemble.networks[0].register_forward_hook(spoil)

    outcomes = predictor.predict_folder(images, tmp_path / "out")

    assert [outcome.status for outcome in outcomes] == ["done", "done", "failed"]
    assert "the network gives no number for this image: look whether its pixels" in outcomes[2].problem
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["000.png", "050.png"]


# One folder for two -------------------------------------------------------------------------------------------------


def predict_toy(workspace, folder):
    images = Path(DatasetFolder(workspace / "toy").load_dataset().source.root) / "images"
    return ["predict", "-i", images, "-o", folder / "out", "-d", "toy", "-f", "0"], folder / "out" / ".lock"


def plan_toy(workspace, folder):
    root = DatasetFolder(workspace / "toy").load_dataset().source.root
    return ["plan_and_preprocess", root, "--workers", "1"], workspace / "toy" / ".lock"


def train_toy(workspace, folder):
    return [
        "train",
        "toy",
        "0",
        "--name",
        "new",
        "--epochs",
        "1",
    ], workspace / "toy" / "runs" / "new" / "fold_0" / ".lock"


def find_best_of_toy(workspace, folder):
    return ["find_best", "toy"], workspace / "toy" / "best" / ".lock"


def evaluate_toy(workspace, folder):
    masks = Path(DatasetFolder(workspace / "toy").load_dataset().source.root) / "masks"
    return ["evaluate", "--pred", masks, "--truth", masks, "--output", folder / "out"], folder / "out" / ".lock"


def evaluate_raters(workspace, folder):
    masks = Path(DatasetFolder(workspace / "toy").load_dataset().source.root) / "masks"
    raters = ["--raters", f"A={masks}", f"B={masks}"]
    return ["evaluate", *raters, "--output", folder / "out"], folder / "out" / ".lock"


def compare_toy(workspace, folder):
    return ["compare", "toy", "--no_timing"], workspace / "toy" / "comparison" / ".lock"


def report_toy(workspace, folder):
    return ["report", "toy"], workspace / "toy" / "report" / ".lock"


def lock_beside(path):
    return path.with_name(f".{digest(path.name)[:16]}.lock")


def export_toy(workspace, folder):
    return ["export_model", "toy", "-o", folder / "toy.zip"], lock_beside(folder / "toy.zip")


def export_toy_as_onnx(workspace, folder):
    return ["export_model", "toy", "--onnx", "-f", "0", "-o", folder / "onnx"], lock_beside(folder / "onnx")


def import_toy(workspace, folder):
    model = folder / "toy.zip"
    if not model.exists():
        assert main(["export_model", "toy", "-o", str(model), "--workspace", str(workspace)]) == 0
    return ["import_model", model, "--dataset_name", "another"], workspace / ".lock"


def run_demo(workspace, folder):
    return ["demo", "--output", folder / "demo", "--images", "10", "--epochs", "1"], folder / "demo" / ".lock"


WITHOUT_WORKSPACE = ("evaluate", "demo")

HOLD = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"


@pytest.mark.parametrize(
    "command",
    [
        evaluate_toy,
        export_toy,
        import_toy,
        predict_toy,
        train_toy,
        pytest.param(compare_toy, marks=pytest.mark.slow),
        pytest.param(evaluate_raters, marks=pytest.mark.slow),
        pytest.param(export_toy_as_onnx, marks=pytest.mark.slow),
        pytest.param(find_best_of_toy, marks=pytest.mark.slow),
        pytest.param(plan_toy, marks=pytest.mark.slow),
        pytest.param(report_toy, marks=pytest.mark.slow),
        pytest.param(run_demo, marks=pytest.mark.slow),
    ],
)
def test_a_second_process_is_refused_until_the_first_is_gone_which_leaves_no_lock(command, trained, tmp_path, capsys):
    pytest.importorskip("fcntl", reason="another kind of locks on this system")
    arguments, lock = command(trained, tmp_path)
    if arguments[0] not in WITHOUT_WORKSPACE:
        arguments += ["--workspace", trained]
    arguments = [str(argument) for argument in arguments]
    lock.parent.mkdir(parents=True, exist_ok=True)
    capsys.readouterr()
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        first.stdout.readline()

        assert main(arguments) == 2

        told = r"error: another process is .*: wait until it ends, or stop it first\n"
        assert re.fullmatch(told, capsys.readouterr().err)
        first.kill()
    assert main(arguments) == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", [plan_toy, train_toy, predict_toy, find_best_of_toy, export_toy_as_onnx, run_demo])
def test_a_command_that_is_killed_leaves_no_lock(command, start_command, trained, tmp_path, capsys):
    arguments, lock = command(trained, tmp_path)
    if arguments[0] not in WITHOUT_WORKSPACE:
        arguments += ["--workspace", trained]
    first = start_command(*arguments)
    first.wait_until(lambda: holds(first.pid, lock), f"it holds {lock}")
    time.sleep(0.05)  # between opening and locking it
    first.send_signal(signal.SIGSTOP)  # so that it lasts
    arguments = [str(argument) for argument in arguments]

    assert main(arguments) == 2

    assert "another process is" in capsys.readouterr().err
    first.kill()
    assert first.end()[0] == -signal.SIGKILL
    assert main(arguments) == 0


def holds(pid, lock):
    """Whether a process has the file of a lock open."""
    with contextlib.suppress(OSError):
        return any(file.readlink() == lock for file in Path(f"/proc/{pid}/fd").iterdir())
    return False
