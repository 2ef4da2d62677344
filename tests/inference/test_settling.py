import shutil
import threading

import pytest

from iaunet.errors import WorkspaceError
from iaunet.inference import settling
from iaunet.inference.settling import Settler
from iaunet.storage import write_text


@pytest.fixture
def settler(monkeypatch):
    monkeypatch.setattr(settling, "SETTLED_WITHIN", 1e9)
    return Settler()


@pytest.fixture
def make(settler, tmp_path):
    """Writes a file, and has what the folder then holds told once it is settled."""
    told = []

    def make_one(number):
        with settler.files.taking():
            write_text(tmp_path / f"{number}.txt", "whole")
        settler.add(lambda: told.append((number, (tmp_path / f"{number}.txt").read_text())))

    make_one.told = told
    return make_one


def test_nothing_is_told_before_enough_wait_and_all_when_the_block_ends(settler, make, tmp_path):
    with settler.beside() as settle_some:
        for number in range(settling.SETTLED_AT_ONCE - 1):
            make(number)
            settle_some()
        assert not make.told
        assert not list(tmp_path.glob("*.txt"))
    assert make.told == [(number, "whole") for number in range(settling.SETTLED_AT_ONCE - 1)]


def test_enough_are_told_while_the_block_goes_on_by_another_thread(settler, make):
    threads = []
    with settler.beside() as settle_some:
        for number in range(settling.SETTLED_AT_ONCE):
            make(number)
        called = threading.Event()
        settler.add(lambda: (threads.append(threading.current_thread()), called.set()))
        settle_some()
        assert called.wait(60)
    assert threads != [threading.current_thread()]
    assert len(make.told) == settling.SETTLED_AT_ONCE


def test_what_was_made_before_an_end_is_told(settler, make):
    with pytest.raises(KeyboardInterrupt), settler.beside():
        make(0)
        raise KeyboardInterrupt
    assert make.told == [(0, "whole")]


def test_a_folder_that_is_gone_ends_the_block_and_nothing_is_told_of_what_it_held(settler, make, tmp_path):
    with pytest.raises(WorkspaceError, match="is gone or emptied"), settler.beside() as settle_some:
        for number in range(settling.SETTLED_AT_ONCE):
            make(number)
        shutil.rmtree(tmp_path)
        settle_some()
    assert not make.told
