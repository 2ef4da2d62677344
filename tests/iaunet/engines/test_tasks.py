import logging
import os
import pickle

import pytest

from iaunet.engines.logs import LogFollower, logging_to_file
from iaunet.engines.tasks import EngineError, allotted_processors, pack, work
from iaunet.errors import FileError, WorkspaceError


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment without OMP_NUM_THREADS, restored after the test."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"})


def test_a_call_logs_to_its_file_and_knows_its_processors(jobs, task):
    nine = task("nine", 3)

    result, _, processors, threads = work(*pickle.loads(pickle.dumps(pack(jobs.square, nine, 5))))

    assert (result, processors, threads) == (9, 5, "5")
    assert nine.log.read_text() == "squaring 3\n"
    assert allotted_processors() is None


def test_the_user_s_number_of_threads_goes_before_the_processors(jobs, task):
    os.environ["OMP_NUM_THREADS"] = "2"

    assert work(*pack(jobs.square, task("nine", 3), 5))[2:] == (5, "2")


def test_a_fault_that_the_user_can_mend_is_the_outcome(jobs, task):
    fault = work(*pack(jobs.square, task("bad", jobs.RAISING), None))

    assert isinstance(fault, FileError)
    assert str(fault) == "is damaged: copy it again"


def test_want_of_memory_is_the_outcome_as_well(task):
    fault = work(*pack(bytearray, task("large", 10**15), None))

    assert isinstance(fault, EngineError)
    assert str(fault).startswith("memory ran out, and what was written before is kept: close other programs")


def test_a_call_that_was_stopped_says_so(jobs, task):
    fault = work(*pack(jobs.square, task("stopped", jobs.STOPPING), None))

    assert isinstance(fault, EngineError)
    assert str(fault) == "stopped: saved"


def test_a_bug_of_a_call_is_raised(jobs, task):
    with pytest.raises(ZeroDivisionError, match="a bug"):
        work(*pack(jobs.square, task("broken", jobs.BREAKING), None))


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(WorkspaceError, match=r"file"), logging_to_file(tmp_path / "file" / "log.txt"):
        pass


def test_a_follower_tells_whole_new_lines_behind_their_name(tmp_path, caplog):
    caplog.set_level(logging.INFO, "iaunet")
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_bytes(b"told before\n")
    follower = LogFollower({"fold 0": old, "fold 1": new})

    follower.tell_news()
    with old.open("ab") as file:
        file.write("epoch 1 \xfc\nepo".encode())
    follower.tell_news()
    with old.open("ab") as file:
        file.write(b"ch 2\n")
    new.write_bytes(b"first\n")
    follower.tell_news()

    assert caplog.messages == ["fold 0: epoch 1 \xfc", "fold 0: epoch 2", "fold 1: first"]


def test_a_log_that_cannot_be_read_for_now_ends_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO, "iaunet")
    log = tmp_path / "log.txt"
    follower = LogFollower({"fold 0": log})

    log.mkdir()
    follower.tell_news()
    log.rmdir()
    log.write_bytes(b"epoch 1\n")
    follower.tell_news()

    assert caplog.messages == ["fold 0: epoch 1"]
