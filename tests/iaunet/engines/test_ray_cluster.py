import itertools
import logging
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from iaunet.engines.ray_cluster import RETRIES, RayEngine, RayOptions, Share, choose_share, connected
from iaunet.engines.tasks import EngineError
from iaunet.errors import FileError

TWO_GPUS = {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "n_tasks", "on_gpu", "options", "share"),
    [
        ([{"CPU": 2.0}], 1, True, {}, Share(2, 0)),
        ([{"CPU": 2.0}], 5, True, {}, Share(1, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], 3, False, {}, Share(4, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], 2, False, {}, Share(4, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], 1, False, {}, Share(8, 0)),
        ([TWO_GPUS], 5, True, {}, Share(8, 1)),
        ([TWO_GPUS], 5, True, {"gpus": 0.5}, Share(4, 0.5)),
        ([TWO_GPUS], 2, False, {}, Share(8, 0)),
        ([TWO_GPUS, {"CPU": 64.0}], 2, True, {}, Share(8, 1)),
        ([TWO_GPUS], 2, True, {"processors": 3}, Share(3, 1)),
        ([TWO_GPUS], 2, True, {"gpus": 4}, Share(1, 4)),
        ([], 2, True, {}, Share(1, 0)),
    ],
)
def test_a_call_gets_a_gpu_or_as_many_processors_as_let_all_run_at_once(nodes, n_tasks, on_gpu, options, share):
    assert choose_share(nodes, n_tasks, on_gpu, RayOptions(**options)) == share


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:port"])
def test_a_cluster_that_does_not_answer_is_told_at_once(address):
    silent = pytest.raises(EngineError, match=rf"no cluster of Ray answers at '{address}' .*: check the address")
    with silent, connected(address):
        pass


def test_nothing_is_begun_for_a_cluster_that_does_not_answer(jobs, task, tmp_path):
    with pytest.raises(EngineError, match="no cluster of Ray answers"):
        next(RayEngine({"address": "127.0.0.1:1"}, tmp_path).run(jobs.square, [task("two", 2)], False, pytest.fail))


def test_nothing_is_begun_where_no_machine_has_what_a_call_is_to_get(jobs, task, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    engine = RayEngine({"processors": 100_000}, tmp_path)

    with pytest.raises(EngineError, match=r"no machine here has 100000 processors for a call: give fewer with"):
        next(engine.run(jobs.square, [task("two", 2)], False, pytest.fail))


def test_calls_run_in_processes_of_this_machine_alone_and_one_that_is_killed_begins_again(
    jobs, task, tmp_path, caplog, monkeypatch
):
    """One start of Ray, which takes seconds, for what must hold of each."""
    caplog.set_level(logging.INFO, "iaunet")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    homes = set(Path.home().glob(".ray*"))
    items = {"two": 2, "bad": jobs.RAISING, "killed": tmp_path, "three": 3}
    tasks = [task(name, item) for name, item in items.items()]
    logs_at_begin = []
    calls = RayEngine({"processors": 1}, tmp_path).run(
        jobs.square_or_be_killed, tasks, True, lambda: logs_at_begin.append(any(task.log.exists() for task in tasks))
    )

    outcomes = {task.name: outcome for task, outcome in itertools.islice(calls, 4)}

    assert logs_at_begin == [False]
    assert outcomes["two"][0::2] == (4, 1)
    assert outcomes["three"][3] == "1"
    assert outcomes["two"][1] != os.getpid()
    assert isinstance(outcomes["bad"], FileError)
    assert outcomes["killed"] == 2
    assert "three: squaring 3" in caplog.messages
    ray = sys.modules["ray"]
    assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
    assert signal.getsignal(signal.SIGTERM) is handler
    with (
        pytest.raises(EngineError, match=r"Ray cannot be started or joined .*: check that all"),
        connected(None),
    ):
        pass
    assert list(calls) == []
    assert not ray.is_initialized()
    assert set(Path.home().glob(".ray*")) == homes


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [0, 0.5, 1])
def test_a_call_with_a_gpu_has_a_process_of_its_own_which_gives_its_memory_back(
    jobs, task, tmp_path, monkeypatch, gpus
):
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 1, "GPU": 1}')
    tasks = [task(str(number), number) for number in range(3)]

    outcomes = [outcome for _, outcome in RayEngine({"gpus": gpus}, tmp_path).run(jobs.square, tasks, on_gpu=True)]

    assert len({process for _, process, _, _ in outcomes}) == (3 if gpus else 1)


@pytest.mark.slow
def test_a_call_whose_process_is_killed_each_time_ends_in_a_line(jobs, task, tmp_path):
    [(_, fault)] = RayEngine({"processors": 1}, tmp_path).run(jobs.die, [task("dying", tmp_path)], on_gpu=False)

    assert isinstance(fault, EngineError)
    assert re.search(
        rf"its process was killed {RETRIES + 1} times .*: give it more, .* log is .*dying\.txt", str(fault)
    )
    assert len(list(tmp_path.glob("begun_*"))) == RETRIES + 1


@pytest.mark.slow
def test_a_bug_of_a_call_is_raised_here(jobs, task, tmp_path):
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(RayEngine({}, tmp_path).run(jobs.square, [task("broken", jobs.BREAKING)], on_gpu=False))


@pytest.mark.slow
def test_calls_that_run_may_save_what_they_have_when_the_command_is_stopped(jobs, task, tmp_path):
    def interrupt_once_begun():
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_once_begun).start()
    with pytest.raises(KeyboardInterrupt):
        list(RayEngine({}, tmp_path).run(jobs.wait_to_be_stopped, [task("waiting", tmp_path)], on_gpu=False))

    assert (tmp_path / "saved").exists()
    assert not sys.modules["ray"].is_initialized()
