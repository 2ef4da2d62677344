import logging
import os
import re
import shutil
import signal
import threading
import time

import pytest
import torch

from iaunet.engines.slurm import RETRIES, Requeueable, SlurmEngine
from iaunet.engines.tasks import EngineError, pack
from iaunet.errors import FileError


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Starts jobs as processes of this machine."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return SlurmEngine({"executor": "local", "processors": 1}, tmp_path / "engine")


def test_jobs_run_in_other_processes(engine, jobs, task, tmp_path, caplog):
    caplog.set_level(logging.INFO, "iaunet")

    logs_at_begin = []
    two, bad = task("two", 2), task("bad", jobs.RAISING)

    outcomes = dict(engine.run(jobs.square, [two, bad], False, lambda: logs_at_begin.append(two.log.exists())))

    assert logs_at_begin == [False]
    assert outcomes[two][0::2] == (4, 1)
    assert outcomes[two][1] != os.getpid()
    assert isinstance(outcomes[bad], FileError)
    assert "two: squaring 2" in caplog.messages
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.parametrize("given", [{}, {"gpus": 2}])
def test_jobs_of_this_machine_that_would_share_its_first_gpu_are_refused(jobs, task, tmp_path, monkeypatch, given):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engine = SlurmEngine({"executor": "local", **given}, tmp_path / "engine")

    with pytest.raises(EngineError, match="executor=local starts all jobs at once on the same GPU: give --engine ray"):
        next(engine.run(jobs.square, [task("two", 2), task("three", 3)], on_gpu=True, begin=pytest.fail))


def test_jobs_of_this_machine_that_get_no_gpu_or_are_alone_are_not_refused(jobs, task, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    two, three = task("two", 2), task("three", 3)
    alone = SlurmEngine({"executor": "local"}, tmp_path / "engine").run(jobs.square, [two], on_gpu=True)
    without = SlurmEngine({"executor": "local", "gpus": 0}, tmp_path / "engine")

    assert [outcome[0] for _, outcome in alone] == [4]
    assert {outcome[0] for _, outcome in without.run(jobs.square, [two, three], on_gpu=True)} == {4, 9}


def test_what_slurm_says_to_jobs_that_it_does_not_take_is_one_line(jobs, task, tmp_path, monkeypatch):
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\n>&2 echo error: invalid partition specified: gpus\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    engine = SlurmEngine({"partition": "gpus"}, tmp_path / "engine")

    with pytest.raises(EngineError, match=r"SLURM takes no jobs \(.*invalid partition specified: gpus.*\): mend the"):
        list(engine.run(jobs.square, [task("two", 2), task("three", 3)], on_gpu=False))


@pytest.mark.slow
def test_a_job_that_is_killed_begins_again(engine, jobs, task, tmp_path, caplog):
    [(_, begun)] = engine.run(jobs.square_or_be_killed, [task("killed", tmp_path)], on_gpu=True)

    assert begun == 2
    assert "killed was killed and begins again: see" in caplog.text


@pytest.mark.slow
def test_a_job_that_is_killed_each_time_ends_in_a_line(engine, jobs, task, tmp_path):
    [(_, fault)] = engine.run(jobs.die, [task("dying", tmp_path)], on_gpu=False)

    assert isinstance(fault, EngineError)
    assert re.search(
        rf"its job ended {RETRIES + 1} times without a result: look into .*\.err, .* run the same", str(fault)
    )


@pytest.mark.slow
def test_a_bug_of_a_job_is_raised_with_its_own_traceback(engine, jobs, task):
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        list(engine.run(jobs.square, [task("broken", jobs.BREAKING)], on_gpu=False))


@pytest.mark.slow
def test_jobs_that_run_may_save_what_they_have_when_the_command_is_stopped(engine, jobs, task, tmp_path):
    def interrupt_once_begun():
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_once_begun).start()
    with pytest.raises(KeyboardInterrupt):
        list(engine.run(jobs.wait_to_be_stopped, [task("waiting", tmp_path)], on_gpu=False))

    assert (tmp_path / "saved").exists()


@pytest.mark.skipif(shutil.which("srun") is not None, reason="there is a SLURM here")
def test_without_slurm_there_is_a_line(jobs, task, tmp_path):
    with pytest.raises(EngineError, match="there is no SLURM here: run this where sbatch and srun are"):
        next(SlurmEngine({}, tmp_path).run(jobs.square, [task("two", 2)], on_gpu=False, begin=pytest.fail))


def test_a_job_whose_time_is_up_is_handed_in_again_as_it_was(jobs, task):
    arguments = pack(jobs.square, task("two", 2), 1)

    again = Requeueable().checkpoint(*arguments)

    assert isinstance(again.function, Requeueable)
    assert again.args == arguments
