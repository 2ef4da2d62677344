"""Two real processes that train together, against one that trains alone."""

import csv
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from iaunet.console import Stopped
from iaunet.errors import TrainingError
from iaunet.inference.runs import FoldFolder
from iaunet.planners.plan import NetworkPlan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.trainers.checkpoint import load_checkpoint
from iaunet.trainers.command import main
from iaunet.trainers.distributed import ALONE, Ranks, joined, must_be_started, rank_device, require_alone, start_ranks
from iaunet.trainers.trainer import Trainer

HERE = Path(__file__).parent
PROGRAM = [sys.executable, str(HERE / "rank_program.py")]


@pytest.fixture(autouse=True)
def strange_networks(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def changed(setup, network="unet", batch_size=4, **changes):
    network = network if network == "unet" else f"strange_networks:{network}"
    recipe = replace(setup.plan.recipe, batch_size=batch_size)
    plan = replace(setup.plan, network=NetworkPlan(name=network, width=4, depth=3), recipe=recipe)
    return replace(setup, plan=plan, **{"micro_batch": batch_size, **changes})


def poisoned(setup, folder):
    """The setup with a nan in the image of a case that rank 1 is the first to see."""
    arrays = open_arrays(setup.preprocessed, setup.plan.arrays_digest)
    [row] = arrays.cases[setup.train[3]].rows
    shutil.copytree(setup.preprocessed, folder)
    images = np.load(folder / "images.npy", mmap_mode="r+")
    images[row, :, 5, 5] = np.nan
    images.flush()
    return replace(setup, preprocessed=folder)


class StoppedInTheSecondStep(Trainer):
    def train_step(self, batch):
        if (self.epoch, self.step) == (0, 1):
            signal.raise_signal(signal.SIGINT)
        return super().train_step(batch)


@pytest.fixture(scope="module")
def work(toy_workspace, setup_in, tmp_path_factory):
    """What two ranks are to do in one go, by name: single steps, and whole trainings of two epochs."""
    root = tmp_path_factory.mktemp("ranks")

    def setup(name, network="unet", **changes):
        return changed(setup_in(root / name / "fold_0"), network, **changes)

    steps = {
        "plain": setup("plain", "build_plain"),
        "normalised": setup("normalised"),
        "in parts": setup("in parts", batch_size=8, micro_batch=2),
        "uneven": setup("uneven", "build_plain", batch_size=5),
        "dropping": setup("dropping", "Dropping"),
        "idle": setup("idle", "Idle"),
        "modest": setup("modest", "Modest", batch_size=16),
    }
    fits = {
        "resumed": setup("resumed", "build_plain"),
        "stopped": setup("stopped", "build_plain"),
        "undisturbed dropping": setup("undisturbed dropping", "Dropping"),
        "stopped dropping": setup("dropping again", "Dropping"),
        "continued dropping": setup("dropping again", "Dropping"),
        "poisoned": poisoned(setup("poisoned"), root / "preprocessed"),
        "greedy": setup("greedy", "Greedy", batch_size=16),
        "forgetful": setup("forgetful", "Forgetful", batch_size=8),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        with pytest.raises(Stopped):
            StoppedInTheSecondStep(fits["resumed"]).fit()
    return root, {"steps": steps, "fits": fits, "toy": toy_workspace / "toy"}


@pytest.fixture(scope="module")
def ranks(work):
    """What each of the two ranks has got."""
    root, tasks = work
    (root / "work.pickle").write_bytes(pickle.dumps(tasks))
    assert start_ranks(2, "cpu", [*PROGRAM, str(root)]) == 0
    return [torch.load(root / f"rank {rank}.pt", weights_only=True) for rank in (0, 1)]


def alone(work, name, **changes):
    """What one process gets of the same steps."""
    return import_module("rank_program").step_by_step(replace(work[1]["steps"][name], **changes), ALONE)


def apart(left, right):
    """How far lists of tensors are apart, relative to the second."""
    difference = sum(float((a - b).double().square().sum()) for a, b in zip(left, right, strict=True))
    return (difference / sum(float(b.double().square().sum()) for b in right)) ** 0.5


def rows_of(folder):
    with folder.metrics_csv.open(newline="") as file:
        return [{name: float(row[name]) for name in row if name != "seconds"} for row in csv.DictReader(file)]


# Results ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "normalised"])
def test_two_ranks_take_the_steps_of_one_process_that_adds_up_the_two_halves(work, ranks, name):
    expected = alone(work, name, micro_batch=2)

    assert len(expected["steps"]) == 3
    for first, second, one in zip(
        ranks[0]["steps " + name]["steps"], ranks[1]["steps " + name]["steps"], expected["steps"], strict=True
    ):
        assert (*first["rows"], *second["rows"]) == one["rows"]
        assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-6)
        assert apart(first["gradients"], one["gradients"]) < 1e-6


def test_ranks_cut_their_share_into_micro_batches(work, ranks):
    one, two = alone(work, "in parts")["steps"][0], ranks[1]["steps in parts"]["steps"][0]

    assert two["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert apart(two["gradients"], one["gradients"]) < 1e-6


def test_uneven_shares_weigh_by_their_rows(work, ranks):
    one = alone(work, "uneven")["steps"][0]  # in one part: other sums, so other rounding
    first, second = (rank["steps uneven"]["steps"][0] for rank in ranks)

    assert (len(first["rows"]), len(second["rows"])) == (2, 3)
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert apart(first["gradients"], one["gradients"]) < 1e-5


@pytest.mark.parametrize("name", ["plain", "normalised", "in parts", "uneven", "dropping", "idle", "modest"])
def test_weights_buffers_averages_and_validation_are_equal_on_all_ranks(ranks, name):
    first, second = (rank["steps " + name] for rank in ranks)

    for part in ("state", "average"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(tensor, second[part][key]) for key, tensor in first[part].items())
    assert first["validation"] == second["validation"]
    assert not any(key.startswith("module.") for key in first["state"])


def test_validation_is_that_of_one_process(work, ranks):
    assert ranks[0]["steps plain"]["validation"] == pytest.approx(alone(work, "plain", micro_batch=2)["validation"])


def test_buffers_are_the_means_of_what_the_ranks_have_seen(work, ranks):
    whole = alone(work, "normalised")["steps"][0]["means"][0]  # of the first layer: what comes before is the same

    for rank in ranks:
        torch.testing.assert_close(rank["steps normalised"]["steps"][0]["means"][0], whole)


def test_the_network_of_each_rank_draws_numbers_of_its_own(ranks):
    first, second = (rank["steps dropping"]["drawn next"] for rank in ranks)

    assert first != second


def test_a_micro_batch_that_does_not_fit_is_halved_on_all_ranks_before_the_first_step(ranks):
    assert [rank["steps modest"]["micro_batch"] for rank in ranks] == [4, 4]


# Stopping and going on ----------------------------------------------------------------------------------------------


def test_two_ranks_go_on_with_what_one_process_began(work, ranks):
    setup = work[1]["fits"]["resumed"]
    undisturbed = replace(setup, folder=FoldFolder(setup.folder.root.with_name("undisturbed")))
    Trainer(undisturbed).fit()

    assert [rank["resumed"] for rank in ranks] == ["well", "well"]
    for resumed, row in zip(rows_of(setup.folder), rows_of(undisturbed.folder), strict=True):
        assert resumed == pytest.approx(row, rel=1e-4)
    assert load_checkpoint(setup.folder.checkpoint).ranks == 2
    assert load_file(setup.folder.weights).keys() == load_file(undisturbed.folder.weights).keys()


def test_all_ranks_stop_after_the_step_in_which_one_is_signalled_and_one_process_goes_on(work, ranks, caplog):
    caplog.set_level(logging.INFO)
    setup = work[1]["fits"]["stopped"]
    assert ranks[0]["stopped"] == "saved after epoch 0, step 2: run the same command again to go on"
    assert ranks[1]["stopped"] == "exit 130"
    kept = load_checkpoint(setup.folder.checkpoint)
    assert (kept.epoch, kept.step, kept.ranks) == (0, 2, 2)

    Trainer(setup).fit()

    assert "this training began with 2 ranks and goes on with 1: the last digits may differ" in caplog.messages
    assert len(rows_of(setup.folder)) == 2


def test_two_ranks_go_on_to_the_bit_with_what_two_began(work, ranks):
    undisturbed, continued = (work[1]["fits"][name + " dropping"].folder for name in ("undisturbed", "continued"))

    assert [rank["stopped dropping"] for rank in ranks][1] == "exit 130"
    assert [rank["continued dropping"] for rank in ranks] == ["well", "well"]
    assert continued.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert rows_of(continued) == rows_of(undisturbed)


# Faults -------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_on_one_rank_stops_all_and_is_told_once(work, ranks):
    told = ranks[0]["poisoned"]

    assert told.startswith("the loss is nan in epoch 1, step ")
    assert work[1]["fits"]["poisoned"].train[3] in told
    assert ranks[1]["poisoned"] == "exit 2"


def test_a_network_that_never_fits_is_told_once(ranks):
    assert ranks[0]["greedy"].startswith("memory does not suffice for 4 rows on cpu: use a smaller --width")
    assert ranks[1]["greedy"] == "exit 2"


def test_memory_that_runs_out_in_the_middle_of_a_step_is_told_by_the_rank_itself(ranks):
    for rank, results in enumerate(ranks):
        assert results["forgetful"] == (
            f"memory ran out on rank {rank} with 4 rows at a time on cpu: run the same command again to go on, or "
            "begin anew with --restart and less --memory"
        )


def test_more_ranks_than_rows_are_refused_once(ranks):
    assert ranks[0]["too many"] == (
        "2 ranks are more than the 1 rows of a step: start as many at most, or give a larger --batch_size"
    )
    assert ranks[1]["too many"] == "exit 2"


def test_rank_0_leads_and_its_numbers_hold(ranks):
    assert ranks[0]["led"] == ("by rank 0", 5.0, True)
    assert ranks[1]["led"] == (None, 5.0, True)


# Who is a rank, and where it computes -------------------------------------------------------------------------------


def two_ranks():
    """The environment of each of two ranks on this machine that no launcher watches."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [{**meeting, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


@pytest.mark.parametrize(("n", "size"), [(16, 2), (16, 3), (5, 4), (3, 3), (7, 1)])
def test_shares_cover_the_rows_and_differ_by_one_at_most(n, size):
    shares = [Ranks(rank, size).share(n) for rank in range(size)]

    lengths = [len(range(n)[share]) for share in shares]
    assert [row for share in shares for row in range(n)[share]] == list(range(n))
    assert max(lengths) == Ranks(0, size).largest_share(n)
    assert min(lengths) >= max(lengths) - 1


def test_a_process_alone_gets_back_what_it_gives():
    with joined({}, "auto") as ranks:
        assert ranks is ALONE
    with joined({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "auto") as ranks:
        assert ranks is ALONE
    assert ALONE.sum([0.1, 2]) == [0.1, 2]
    assert (ALONE.any(False), ALONE.any(True), ALONE.from_first(3)) == (False, True, 3)
    assert ALONE.first(lambda: "done") == ALONE.lead(lambda: "done") == "done"
    fault = TrainingError("a fault")
    assert ALONE.told_once(fault) is fault


def test_other_ranks_than_the_first_end_silently_with_the_same_exit_code():
    for fault, code in ((TrainingError("a fault"), 2), (Stopped("saved"), 130)):
        end = Ranks(1, 2).told_once(fault)
        assert isinstance(end, SystemExit)
        assert end.code == code


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_ranks_without_gpus_compute_on_the_cpu_where_that_is_not_against_the_wish():
    assert rank_device("auto", Ranks(1, 2, 1, 2)) == rank_device("cpu", Ranks(1, 2, 1, 2)) == "cpu"
    assert rank_device("mps", ALONE) == "mps"
    with pytest.raises(TrainingError, match=r"2 ranks .* need a GPU each, and torch can use 0: give --device cpu$"):
        rank_device("cuda", Ranks(1, 2, 1, 2))


def test_one_device_for_several_ranks_is_refused():
    for refuse in (lambda: rank_device("cuda:1", Ranks(1, 2, 1, 2)), lambda: start_ranks(2, "cuda:1", ["false"])):
        with pytest.raises(TrainingError, match="--device cuda:1 is one device for 2 ranks: give auto, cuda or cpu"):
            refuse()


def test_a_device_that_cannot_be_is_told_by_one_rank():
    program = (
        "import os, sys\n"
        "from iaunet.console import run_command\n"
        "from iaunet.trainers.distributed import joined\n"
        "def body():\n"
        "    with joined(os.environ, 'cuda:1'): return 0\n"
        "sys.exit(run_command(body, joins_ranks=True))\n"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program], env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True
        )
        for variables in two_ranks()
    ]
    told = [rank.communicate(timeout=120)[1] for rank in ranks]

    assert [rank.returncode for rank in ranks] == [2, 2]
    assert told == ["error: --device cuda:1 is one device for 2 ranks: give auto, cuda or cpu\n", ""]


@pytest.fixture
def failing(tmp_path):
    """A command whose rank 1 fails while rank 0 is in an exchange with it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, torch\n"
        "from torch import distributed\n"
        "from iaunet.console import run_command\n"
        "from iaunet.errors import TrainingError\n"
        "from iaunet.trainers.distributed import joined\n"
        "def body():\n"
        "    with joined(os.environ, 'cpu') as ranks:\n"
        "        if ranks.rank == 0: return ranks.any(True)\n"
        "        gradients = distributed.all_reduce(torch.ones(1), async_op=True)\n"
        "        raise TrainingError('the disk of rank 1 is full')\n"
        "sys.exit(run_command(body, joins_ranks=True))\n"
    )
    return [sys.executable, str(program)]


def test_a_fault_of_one_rank_amid_an_exchange_is_told_at_once_and_ends_the_others(failing):
    ranks = [
        subprocess.Popen(failing, env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True)
        for variables in two_ranks()
    ]
    told = [rank.communicate(timeout=120)[1] for rank in ranks]

    assert [rank.returncode for rank in ranks] == [2, 2]
    assert told[0].startswith("error: another of the 2 ranks ended or cannot be reached (")
    assert told[1] == "error: the disk of rank 1 is full\n"


def test_a_fault_of_one_rank_amid_an_exchange_is_all_that_is_told_of_those_started_together(failing, capfd):
    assert start_ranks(2, "cpu", failing) == 2
    assert capfd.readouterr().err == "error: the disk of rank 1 is full\n"


def test_ranks_are_started_unless_they_are_started_already():
    rank = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}

    assert [must_be_started({}, gpus) for gpus in (None, 1, 2)] == [False, False, True]
    assert not must_be_started(rank, 2)
    with pytest.raises(TrainingError, match="--gpus 0 cannot be: give 1 or more"):
        must_be_started({}, 0)
    with pytest.raises(TrainingError, match="--gpus 4 within 2 ranks: leave it out"):
        must_be_started(rank, 4)


def test_several_ranks_are_refused_where_one_process_is_to_train():
    require_alone(1)
    with pytest.raises(TrainingError, match="in one process: give --engine or several ranks, not both"):
        require_alone(2)


@pytest.mark.skipif(torch.cuda.device_count() > 98, reason="there are as many GPUs")
def test_more_gpus_than_there_are_are_refused_in_one_line(capsys):
    assert main(["toy", "0", "--gpus", "99"]) == 2

    found = torch.cuda.device_count()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: 99 GPUs are asked for, and torch can use {found} on this machine: ")


# The real command ---------------------------------------------------------------------------------------------------


def ranks_of(process):
    """The process numbers of the ranks that a command has started, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in map(int, children):
        variables = Path(f"/proc/{child}/environ").read_text().split("\0")
        found |= {int(variable.removeprefix("RANK=")): child for variable in variables if variable.startswith("RANK=")}
    return found


def go_on(workspace, *options):
    """The same command again on one rank, in this process."""
    assert main(["toy", "0", "--workspace", str(workspace), *options]) == 0


def fold_of(workspace, run="unet-best-random"):
    return FoldFolder(workspace / "toy" / "runs" / run / "fold_0")


TWO = ("--gpus", "2", "--device", "cpu")
SLOW = ("--network", "strange_networks:Slow", "--epochs", "4")


@pytest.mark.slow
def test_the_command_trains_on_two_ranks_that_tell_all_once(start, workspace):
    process = start(*TWO, "--workers", "1", "--epochs", "3")
    out, err = process.communicate(timeout=120)

    assert (process.returncode, err) == (0, "")
    told = [line.split()[0] for line in out.splitlines() if line.startswith(("workspace ", "run ", "epoch ", "next "))]
    assert told == ["workspace", "run", "epoch", "epoch", "epoch", "next"]
    assert fold_of(workspace).is_finished
    assert not list(workspace.rglob("*tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_ranks_after_the_step_and_one_goes_on(start, workspace, number):
    process = start(*TWO, *SLOW, SLOW_SECONDS="0.2")
    process.read_until("epoch 2/4")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)

    assert process.returncode == 130
    [line] = err.splitlines()
    assert line.startswith("stopped: saved after epoch ")
    go_on(workspace, *SLOW)
    assert len(rows_of(fold_of(workspace, "Slow-best-random"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_others_and_the_same_command_goes_on(start, workspace, rank):
    process = start(*TWO, *SLOW, SLOW_SECONDS="0.2")
    process.read_until("epoch 2/4")
    os.kill(ranks_of(process)[rank], signal.SIGKILL)
    _, err = process.communicate(timeout=120)

    assert process.returncode == 2
    assert err == f"error: rank {rank} was killed by signal 9: run the same command again to go on\n"
    go_on(workspace, *SLOW)
    assert len(rows_of(fold_of(workspace, "Slow-best-random"))) == 4


@pytest.mark.slow
def test_ranks_stop_after_their_step_when_what_started_them_is_gone(start, workspace):
    process = start(*TWO, *SLOW, SLOW_SECONDS="0.2")
    process.read_until("epoch 2/4")
    process.kill()
    _, err = process.communicate(timeout=120)  # until the ranks have closed it

    [line] = err.splitlines()
    assert line.startswith("stopped: saved after epoch ")
    go_on(workspace, *SLOW)


@pytest.mark.slow
def test_ranks_without_a_launcher_tell_themselves_that_another_is_gone(start):
    first, second = (start(*SLOW, "--device", "cpu", SLOW_SECONDS="0.2", **variables) for variables in two_ranks())
    first.read_until("epoch 1/4")
    second.kill()
    _, err = first.communicate(timeout=120)

    assert first.returncode == 2
    [line] = err.splitlines()
    assert line.startswith("error: another of the 2 ranks ended or cannot be reached (")
    assert line.endswith("): run the same command again to go on")
