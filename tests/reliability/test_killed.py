"""The real commands, killed or asked to stop at any moment: no file is ever damaged, and the same command goes on.

The moments are drawn over the whole time that a command takes when nobody disturbs it; pytest prints them, with the
seed, when a test fails.
"""

import csv
import io
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from iaunet.inference.audit import read_audit
from iaunet.inference.output import AUDIT
from iaunet.storage import TEMPORARY_SUFFIX
from iaunet.trainers.checkpoint import load_checkpoint

SEED = 0
N_CASES, N_IMAGES = 60, 150
KILL, INTERRUPT, TERMINATE = signal.SIGKILL, signal.SIGINT, signal.SIGTERM
STOPPED = re.compile(r"stopped: .*run the same command again to go on\n")
AS_IT_RAN = {"metrics.csv": {"seconds"}, "predictions.csv": {"status"}}
"""Columns that say how a command ran, not what came of it."""

OF_THE_WAY = {".lock", "checkpoint.pt"}
"""Files that say nothing else."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command and the folder it writes to, which ``begin`` makes anew.

    It is at work from the line that begins with ``at_work`` on. Where it says how many of its ``items`` it did,
    ``says`` finds that, and ``done`` counts those done before. One that does not do again what is there says
    ``is_there``.
    """

    arguments: tuple[str, ...]
    folder: Path
    begin: Callable[[], object]
    at_work: str = "workspace "
    items: int = 0
    done: Callable[[], int] = lambda: 0
    says: str = "there are no items"
    is_there: str = "it is done again"

    def results(self) -> dict[str, object]:
        """What came of it, by file."""
        files = (path for path in self.folder.rglob("*") if path.is_file() and path.name not in OF_THE_WAY)
        return {path.relative_to(self.folder).as_posix(): result_of(path) for path in files}

    def has_ended(self, code: int, err: str) -> bool:
        """Whether a process that ended so has come to its end, or found that another had."""
        return code == 0 or (code == 2 and self.is_there in err)

    def require_work_is_kept(self, done: int, said: str) -> None:
        """Of all items none was done again, if ``done`` of them were done when the process began that said this."""
        found = re.search(self.says, said, re.MULTILINE)
        assert found is None or int(found[1]) + done == self.items


@dataclass(frozen=True)
class Undisturbed:
    """The seconds that a job took that nobody stopped, those when it was at work, and what came of it."""

    seconds: float
    seconds_at_work: float
    results: dict[str, object]


def result_of(path):
    if path.name == AUDIT:
        return masks_made(path)
    if path.name not in AS_IT_RAN:
        return path.read_bytes()
    table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    return [{name: row[name] for name in row if name not in AS_IT_RAN[path.name]} for row in table]


def masks_made(audit):
    """The masks that an audit file says were made, each time they were."""
    lines = (line for line in read_audit(audit) if line["outcome"] == "done")
    return sorted((line["image"], line["mask"], line["output_sha256"]) for line in lines)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def preprocessing(place, write_toy):
    raw, workspace = write_toy(place / "raw" / "toy", N_CASES), place / "workspace"

    def rows_done():
        for folder in ("preprocessed", "preprocessed.partial"):
            if (file := workspace / "toy" / folder / "done.npy").exists():
                return int(np.fromfile(file, np.uint8)[-N_CASES:].astype(bool).sum())
        return 0

    return Job(
        arguments=("plan_and_preprocess", "--width", "1", str(raw), "--workspace", str(workspace), "--workers", "2"),
        folder=workspace,
        begin=lambda: shutil.rmtree(workspace, ignore_errors=True),
        at_work="toy: ",
        items=N_CASES,
        done=rows_done,
        says=r"^preprocessed (\d+) cases",
    )


@pytest.fixture(scope="module")
def training(place, toy_workspace):
    workspace = place / "training"

    def begin():
        shutil.rmtree(workspace, ignore_errors=True)
        shutil.copytree(toy_workspace, workspace)

    where = ("--workspace", str(workspace))
    return Job(arguments=("train", "toy", "0", *where), folder=workspace, begin=begin, at_work="epoch ")


@pytest.fixture(scope="module")
def training_with_a_worker(training):
    return replace(training, arguments=(*training.arguments, "--workers", "1"))


@pytest.fixture(scope="module")
def prediction(place, trained_toy, toy_workspace):
    images, output = place / "images", place / "masks"
    images.mkdir()
    for number in range(N_IMAGES):
        shutil.copyfile(toy_workspace.parent / f"toy/images/case_{number % 18:02d}.png", images / f"{number:03d}.png")
    where = ("-i", str(images), "-o", str(output), "-d", "toy", "--workspace", str(trained_toy))
    return Job(
        arguments=("predict", *where, "-f", "0", "--overlay"),
        folder=output,
        begin=lambda: shutil.rmtree(output, ignore_errors=True),
        at_work="model ",
        items=N_IMAGES,
        done=lambda: len(masks_made(output / AUDIT)),
        says=r"^masks +(\d+) done",
    )


def export(place, workspace, name, *options, **fields):
    output = place / name
    arguments = ("export_model", "toy", "-o", str(output / name), "--workspace", str(workspace), *options)
    return Job(arguments=arguments, folder=output, begin=lambda: shutil.rmtree(output, ignore_errors=True), **fields)


@pytest.fixture(scope="module")
def exporting(place, trained_toy):
    return export(place, trained_toy, "model.zip")


@pytest.fixture(scope="module")
def exporting_onnx(place, trained_toy):
    pytest.importorskip("onnxscript", reason="exporting to ONNX needs iaunet[onnx]")
    return export(place, trained_toy, "model", "--onnx", is_there="is there already: give another folder, or remove it")


@pytest.fixture(scope="module")
def run_undisturbed(command_class):
    """Run a job to its end, once."""
    known = {}

    def run(job):
        if job.arguments not in known:
            job.begin()
            start = time.perf_counter()
            process = command_class(*job.arguments)
            read_until_at_work(process, job)
            until_work = time.perf_counter() - start
            code, err, _ = process.end()
            seconds = time.perf_counter() - start
            known[job.arguments] = Undisturbed(seconds, seconds - until_work, job.results())
            assert (code, err) == (0, "")
        return known[job.arguments]

    return run


def read_until_at_work(process, job):
    """What it says until it is at work, or ends."""
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(job.at_work):
            break
    return "".join(said)


def stop(process, number, seconds):
    """Send a signal after some seconds, unless the process ends before; whether it was sent."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        (os.killpg if number == INTERRUPT else os.kill)(process.pid, number)  # as a terminal, as a batch system does
        return True


def first_epoch(said):
    """The epoch that a training began with, counted from 1; None if it came to none."""
    found = re.search(r"^going on from epoch (\d+)|^epoch (\d+)/", said, re.MULTILINE)
    return found and int(found[1] or found[2])


def epochs_saved(folder):
    """The epochs that a training need not do again."""
    return max((load_checkpoint(path).epoch for path in folder.rglob("checkpoint.pt")), default=0)


def require_no_saved_epoch_is_done_again(saved, said):
    first = first_epoch(said)
    assert first is None or first > saved


REQUESTS = {"preprocessing": INTERRUPT, "training": TERMINATE, "prediction": INTERRUPT, "exporting": TERMINATE}
"""The commands, and how the short form of the test asks each to stop after it has killed it."""

STOPS = [
    *(pytest.param(job, (KILL, number), id=f"{job}-2_stops") for job, number in REQUESTS.items()),
    *(pytest.param(job, (KILL,) * 50, id=f"{job}-50_kills", marks=pytest.mark.slow) for job in REQUESTS),
    *(
        pytest.param(job, (TERMINATE, INTERRUPT) * 5, id=f"{job}-10_requests", marks=pytest.mark.slow)
        for job in REQUESTS
    ),
    *(
        pytest.param(job, (KILL, TERMINATE, INTERRUPT) * 4, id=f"{job}-12_stops", marks=pytest.mark.slow)
        for job in ("training_with_a_worker", "exporting_onnx")
    ),
]


@pytest.mark.parametrize(("job", "numbers"), STOPS)
def test_stopped_at_any_moment_nothing_corrupt_is_seen_and_it_ends_as_if_undisturbed(
    job, numbers, request, run_undisturbed, start_command, require_whole
):
    job = request.getfixturevalue(job)
    undisturbed = run_undisturbed(job)
    rng = np.random.default_rng(SEED)
    job.begin()
    waiting, times_at_its_end = list(numbers), 0
    while waiting:
        number, done, saved = waiting[0], job.done(), epochs_saved(job.folder)
        seconds = rng.uniform(0, undisturbed.seconds if number == KILL else undisturbed.seconds_at_work)
        process = start_command(*job.arguments)
        said = "" if number == KILL else read_until_at_work(process, job)
        was_sent = stop(process, number, seconds)
        code, err, rest = process.end()
        said += rest
        print(f"seed {SEED}: {number.name} after {seconds:.3f} s, {done=} {saved=} {code=} {err=}")

        require_whole(job.folder)
        job.require_work_is_kept(done, said)
        require_no_saved_epoch_is_done_again(saved, said)
        if was_sent:
            waiting.pop(0)
            if number == KILL:
                assert job.has_ended(code, err) or code == -KILL
            elif not job.has_ended(code, err) and not STOPPED.fullmatch(err):  # Python itself was ending
                assert code in (-number, 130)
                assert job.results() == undisturbed.results
            else:
                assert job.has_ended(code, err) or code in (130, -INTERRUPT)  # of which a shell says 130
        if job.has_ended(code, err):
            assert job.results() == undisturbed.results
            job.begin()
            times_at_its_end += 1
    code, err, _ = start_command(*job.arguments).end()
    assert job.has_ended(code, err), err
    assert job.results() == undisturbed.results
    assert not list(job.folder.rglob(f"*{TEMPORARY_SUFFIX}*"))
    print(f"stopped {len(numbers)} times, came {times_at_its_end} times to its end")
