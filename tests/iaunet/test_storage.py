import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.errors import PlanError, WorkspaceError
from iaunet.storage import (
    TEMPORARY_SUFFIX,
    FileGroup,
    digest,
    file_digest,
    make_folder,
    naming_disk_faults,
    read_json,
    read_text,
    remove_leftovers,
    replacing,
    sync_files,
    write_bytes,
    write_json,
    write_text,
    writing_beside,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_only_when_whole(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("old")

    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path

    assert path.read_text() == "new"
    assert files_of(tmp_path) == ["plan.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("old")

    with pytest.raises(RuntimeError, match="failed halfway"), replacing(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("failed halfway")

    assert path.read_text() == "old"
    assert files_of(tmp_path) == ["plan.json"]


@given(JSON)
def test_json_is_read_back_as_it_was_written(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "ordner mit ä.json"
    write_json(path, value)

    assert read_json(path, PlanError, "mend") == value


def test_text_is_written_as_utf8_with_plain_line_ends_into_new_folders(tmp_path):
    path = tmp_path / "a b" / "ü" / "notes.txt"
    write_text(path, "größe\nµm\n")

    assert path.read_bytes() == "größe\nµm\n".encode()
    assert read_text(path, PlanError, "mend") == "größe\nµm\n"


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    (tmp_path / "groups.csv").write_bytes(b"\xef\xbb\xbfa,1")

    assert read_text(tmp_path / "groups.csv", PlanError, "mend") == "a,1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: make it again"),
        (b"{", "is no JSON .*: make it again"),
        (b"[" * 100_000, "is no JSON .*: make it again"),
        (b"\xff\xfe\x00", "cannot be read .*: make it again"),
    ],
)
def test_a_file_that_is_no_json_is_named_with_its_mend(tmp_path, content, message):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(PlanError, match=f"{path} {message}"):
        read_json(path, PlanError, "make it again")


def test_a_folder_in_a_files_place_is_named(tmp_path):
    (tmp_path / "plan.json").mkdir()

    with pytest.raises(PlanError, match=r"plan\.json cannot be read .*: mend"):
        read_json(tmp_path / "plan.json", PlanError, "mend")
    with pytest.raises(WorkspaceError, match=r"plan\.json cannot be written .*: choose another folder"):
        write_json(tmp_path / "plan.json", {})
    assert files_of(tmp_path) == ["plan.json"]


def test_a_file_in_a_folders_place_is_named(tmp_path):
    (tmp_path / "workspace").write_text("a file")

    for write in (lambda path: write_text(path / "a.txt", ""), make_folder, lambda path: make_folder(path / "deep")):
        with pytest.raises(WorkspaceError, match=r"workspace.* cannot be written .*: choose another folder"):
            write(tmp_path / "workspace")


def test_a_name_too_long_for_the_disk_is_named(tmp_path):
    with pytest.raises(WorkspaceError, match=r"aaa cannot be written \(.*\): shorten its name$"):
        write_text(tmp_path / ("a" * 300), "")
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, os.fsdecode(b"caf\xe9")], ids=["long", "accents", "not UTF-8"])
def test_every_name_the_disk_allows_can_be_written(tmp_path, name):
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this disk allows no such name")

    write_text(tmp_path / name, "whole")

    assert (tmp_path / name).read_text() == "whole"
    assert files_of(tmp_path) == [name]


def test_writers_of_two_files_or_in_two_threads_do_not_meet(tmp_path):
    def half_written(name):
        with replacing(tmp_path / name) as temporary:
            temporary.touch()
            barrier.wait()
        return temporary

    barrier = threading.Barrier(3)
    with ThreadPoolExecutor(2) as pool, replacing(tmp_path / "b") as temporary:
        temporary.touch()
        futures = [pool.submit(half_written, "a") for _ in range(2)]
        barrier.wait()
        others = [future.result() for future in futures]

    assert len({temporary, *others}) == 3
    assert files_of(tmp_path) == ["a", "b"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from iaunet.storage import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_bytes(Path(sys.argv[1]) / 'weights', bytes(5000))\n"
    )
    pytest.importorskip("resource", reason="no limits on file sizes on this system")

    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)

    assert f"WorkspaceError: no space left for {tmp_path / 'weights'}: free some space" in done.stderr
    assert files_of(tmp_path) == []


def test_files_of_a_group_take_their_names_together_once_all_are_on_the_disk(tmp_path, monkeypatch):
    told = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (told.append("sync"), fsync(file)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (told.append(to.name), replace(path, to)))
    group, folders = FileGroup(), [tmp_path / "x", tmp_path / "y"]

    with group.taking():
        write_text(folders[0] / "a", "first")
        write_text(folders[1] / "b", "second")
        write_text(folders[0] / "a2", "third")
    write_text(tmp_path / "c", "at once")
    assert told == ["sync", "c", "sync"]
    assert files_of(tmp_path) == ["c", "x", "y"]
    assert {name[-len(TEMPORARY_SUFFIX) :] for folder in folders for name in files_of(folder)} == {TEMPORARY_SUFFIX}

    told.clear()
    group.settle()
    assert told == ["sync"] * 3 + ["a", "b", "a2"] + ["sync"] * 2
    assert [files_of(folder) for folder in folders] == [["a", "a2"], ["b"]]
    assert (folders[0] / "a2").read_text() == "third"
    group.settle()
    assert len(told) == 8


def test_a_group_takes_no_files_of_other_threads_nor_those_that_fail(tmp_path):
    group = FileGroup()
    with group.taking(), ThreadPoolExecutor(1) as pool:
        pool.submit(write_text, tmp_path / "b", "another thread").result()
        with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as temporary:
            temporary.touch()
            raise ZeroDivisionError
        assert files_of(tmp_path) == ["b"]

    group.settle()
    assert files_of(tmp_path) == ["b"]


def test_what_a_disk_has_no_room_for_is_removed_and_what_has_its_name_stays(tmp_path, monkeypatch):
    group = FileGroup()
    with group.taking():
        for name in "abc":
            write_text(tmp_path / name, name)
    replace = Path.replace

    def refuse(path, to):
        if to.name == "b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(WorkspaceError, match=f"no space left for {tmp_path / 'b'}"):
        group.settle()

    assert files_of(tmp_path) == ["a"]
    group.settle()  # nothing waits any more


def test_other_faults_of_the_system_keep_their_type(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass


def test_a_disk_that_fails_is_named(tmp_path):
    fails = r"the disk of .*a fails \(.*\): check it and run the same command again"
    with pytest.raises(WorkspaceError, match=fails), naming_disk_faults(tmp_path / "a"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_nothing_is_written_in_place_of_a_folder_that_was_taken_away(tmp_path):
    folder = tmp_path / "disk" / "toy"
    folder.mkdir(parents=True)
    (folder / "mark").touch()
    gone = rf"{folder} is gone or emptied: bring it back, or its disk, and run the same command again"
    with writing_beside(folder / "mark"):
        write_bytes(folder / "a", b"before")
        (tmp_path / "disk").rename(tmp_path / "away")
        for write in (lambda path: write_bytes(path, b"after"), make_folder):
            with pytest.raises(WorkspaceError, match=gone):
                write(folder / "deep" / "a")
        write_bytes(tmp_path / "b", b"beside")

    assert files_of(tmp_path) == ["away", "b"]
    assert files_of(tmp_path / "away" / "toy") == ["a", "mark"]
    write_bytes(folder / "a", b"another command")


def test_a_folder_that_went_while_a_file_in_it_was_written_is_named(tmp_path):
    path = tmp_path / "folder" / "a"
    with pytest.raises(WorkspaceError, match="folder is gone or emptied: bring it back"), naming_disk_faults(path):
        path.write_bytes(b"")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no folders: /proc")
def test_a_place_that_takes_no_folders_is_named():
    with pytest.raises(WorkspaceError, match="/proc/nothing cannot be made: choose another folder"):
        make_folder(Path("/proc/nothing"))


@pytest.mark.parametrize("name", [None, "plan.json"])
def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    job = import_module("jobs_for_workers").write_half_and_die
    (tmp_path / "keep.json").write_text("{}")
    (tmp_path / ".lock").write_text("")
    worker = multiprocessing.get_context("spawn").Process(target=job, args=(tmp_path / "plan.json",))
    worker.start()
    worker.join()
    assert len(files_of(tmp_path)) == 3

    remove_leftovers(tmp_path, "another.json")
    assert len(files_of(tmp_path)) == 3
    remove_leftovers(tmp_path, name)
    assert files_of(tmp_path) == [".lock", "keep.json"]


def test_the_digest_depends_on_the_values_and_not_on_the_order_of_keys():
    assert digest({"a": 1, "b": [1.5, "ü"]}) == digest({"b": [1.5, "ü"], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest([1, 2]) != digest([2, 1])


def test_the_digest_of_a_file_is_sha256(tmp_path):
    write_bytes(tmp_path / "a", b"abc")

    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(JSON)
def test_json_is_indented_as_python_indents_it(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"

    write_json(path, value)

    assert path.read_bytes() == (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def test_files_that_others_wrote_are_synced_and_a_missing_one_is_told(tmp_path):
    files = [tmp_path / name for name in "abc"]
    for file in files[:2]:
        file.write_bytes(b"rows")

    sync_files(files[:2])

    assert [file.read_bytes() for file in files[:2]] == [b"rows"] * 2
    with pytest.raises(FileNotFoundError):
        sync_files(files)


def test_json_with_numbers_that_json_does_not_have_is_a_programmers_fault(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert files_of(tmp_path) == []
