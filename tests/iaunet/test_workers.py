import concurrent.futures
import contextlib
import errno
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

import pytest

from iaunet.errors import FileError, WorkspaceError
from iaunet.workers import default_workers, keeping_processes, map_in_processes, prepare_processes

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return import_module("jobs_for_workers")


def run_workers(function, items, workers=2):
    return list(map_in_processes(function, items, workers, items_worth_a_process=1))


def test_results_come_in_the_order_of_the_items_from_other_processes(jobs):
    results = run_workers(jobs.square, range(40))

    assert [result for result, _ in results] == [number**2 for number in range(40)]
    assert os.getpid() not in {process for _, process in results}


@pytest.mark.parametrize(("n_items", "workers"), [(0, 4), (1, 4), (24, 4), (500, 1)])
def test_little_work_is_done_in_this_process(jobs, n_items, workers):
    results = list(map_in_processes(jobs.square, range(n_items), workers))

    assert {process for _, process in results} <= {os.getpid()}
    assert len(results) == n_items


def test_processes_that_are_kept_do_one_piece_of_work_after_another_and_end_with_the_block(jobs):
    with keeping_processes():
        first = {process for _, process in run_workers(jobs.square, range(20))}
        with pytest.raises(FileError, match="is damaged"):
            run_workers(jobs.square, [1, jobs.RAISING, *range(20)])
        second = {process for _, process in run_workers(jobs.square, range(20))}
        kept = {process.pid for process in multiprocessing.active_children()}
        assert first | second <= kept  # one may have found nothing left to do
        assert len(kept) <= 2

    assert not multiprocessing.active_children()


def parent_of(process):
    """The number of the process that a process is a child of."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@needs_linux
def test_prepared_processes_are_forked_from_one_when_there_is_work_and_those_of_an_inner_block_are_the_same(jobs):
    with keeping_processes():
        prepare_processes(2, jobs.__name__)
        assert not multiprocessing.active_children()
        first = {process for _, process in run_workers(jobs.square, range(20))}
        with keeping_processes():
            second = {process for _, process in run_workers(jobs.square, range(20))}
        kept = {process.pid for process in multiprocessing.active_children()}
        servers = {parent_of(process) for process in kept}

    assert first | second <= kept
    assert len(kept) <= 2
    assert len(servers) == 1
    assert os.getpid() not in servers
    assert not multiprocessing.active_children()


PREPARED = """
import os
from iaunet.workers import keeping_processes, map_in_processes, prepare_processes
if __name__ == "__main__":
    with keeping_processes():
        prepare_processes(2, "imported_once")
        print({*map_in_processes(os.path.basename, ["a"] * 60, 2)})
"""


@needs_linux
def test_what_prepared_processes_need_is_imported_once(tmp_path):
    (tmp_path / "imported_once.py").write_text("import os\nos.write(1, b'imported\\n')\n")
    (tmp_path / "prepared.py").write_text(PREPARED)
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
    done = run([sys.executable, tmp_path / "prepared.py"], env={**os.environ, "PYTHONPATH": str(tmp_path)})

    assert done.stdout.split() == ["imported", "{'a'}"]
    assert done.stderr == ""


@pytest.mark.parametrize("is_prepared", [False, pytest.param(True, marks=needs_linux)])
def test_a_process_that_is_killed_before_there_is_more_work_is_told_when_there_is(jobs, is_prepared):
    with keeping_processes():
        if is_prepared:
            prepare_processes(2, jobs.__name__)
        run_workers(jobs.square, range(20))
        first, *_ = multiprocessing.active_children()
        first.kill()
        first.join()
        with pytest.raises(WorkspaceError, match="a worker process was killed"):
            run_workers(jobs.square, range(20))

    assert not multiprocessing.active_children()


@contextlib.contextmanager
def interrupted_by(number):
    """Let a signal raise KeyboardInterrupt in the block, which it must."""

    def stop(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        signal.signal(number, before)


@needs_linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_stops_the_command_waits_until_the_process_that_forks_is_started(jobs, monkeypatch, number):
    ensure_running, started = forkserver.ensure_running, []

    def start_amid_a_signal():
        signal.raise_signal(number)
        ensure_running()
        started.append(number)

    monkeypatch.setattr(forkserver, "ensure_running", start_amid_a_signal)
    with interrupted_by(number), keeping_processes():
        prepare_processes(2, jobs.__name__)

    assert started == [number]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_stops_the_command_waits_until_the_processes_are_started(jobs, monkeypatch, number):
    pool = concurrent.futures.ProcessPoolExecutor
    submit, submitted = pool.submit, []

    def submit_amid_a_signal(self, *what):
        signal.raise_signal(number)
        submitted.append(submit(self, *what))
        return submitted[-1]

    monkeypatch.setattr(pool, "submit", submit_amid_a_signal)
    with interrupted_by(number), keeping_processes():
        run_workers(jobs.square, range(20))

    assert len(submitted) == 8
    assert not multiprocessing.active_children()


def test_processes_are_prepared_only_where_several_are_kept(jobs):
    with keeping_processes():
        prepare_processes(1, jobs.__name__)
        prepared = {process for _, process in run_workers(jobs.square, range(20))}
        alone = {parent_of(process.pid) for process in multiprocessing.active_children()}
    prepare_processes(2, jobs.__name__)
    run_workers(jobs.square, range(20))
    assert prepared
    assert alone == {os.getpid()}
    assert not multiprocessing.active_children()


def test_items_are_taken_only_as_results_are(jobs):
    taken = []

    class Items:
        def __len__(self):
            return 1000

        def __iter__(self):
            for number in range(1000):
                taken.append(number)
                yield number

    results = map_in_processes(jobs.square, Items(), 2, items_worth_a_process=1)
    next(results)
    results.close()

    assert len(taken) <= 9


def test_what_a_worker_raises_arrives_with_its_own_traceback_and_leaves_no_worker(jobs):
    with pytest.raises(FileError, match="is damaged: copy it again") as caught:
        run_workers(jobs.square, [1, 2, jobs.RAISING, *range(20)])

    assert "square" in str(caught.value.__cause__)
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_reported_with_a_mend(jobs):
    with pytest.raises(WorkspaceError, match=r"a worker process was killed, .* fewer workers \(--workers 1\)"):
        run_workers(jobs.square, [1, jobs.DYING, 2, 3])

    assert not multiprocessing.active_children()


@pytest.mark.parametrize("fault", [OSError("handle is closed"), BrokenPipeError(errno.EPIPE, "Broken pipe")])
def test_a_worker_that_dies_while_another_is_started_is_reported_alike(jobs, monkeypatch, fault):
    def submit(*_):
        raise fault

    monkeypatch.setattr(concurrent.futures.ProcessPoolExecutor, "submit", submit)
    with pytest.raises(WorkspaceError, match="a worker process was killed"):
        run_workers(jobs.square, [1, 2, 3, 4])

    fault.errno = errno.EMFILE  # another fault keeps its name
    with pytest.raises(OSError) as caught:
        run_workers(jobs.square, [1, 2, 3, 4])
    assert caught.value is fault


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_ends_when_its_parent_is_killed(jobs):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=jobs.start_worker_and_be_killed, args=(theirs,))
    parent.start()
    worker = ours.recv()
    ours.send("die")
    parent.join()

    deadline = time.monotonic() + 30
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.01)

    assert not is_running(worker)


def test_a_worker_leaves_the_interrupt_to_its_parent(jobs):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=jobs.serve_for_ever, args=(theirs,))
    worker.start()
    os.kill(ours.recv(), signal.SIGINT)
    worker.join(0.2)

    assert worker.is_alive()
    worker.kill()
    worker.join()


def test_at_least_one_worker_is_the_default():
    assert 1 <= default_workers() <= (os.cpu_count() or 1)
