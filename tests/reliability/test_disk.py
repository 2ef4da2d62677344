"""Disks that are full, closed or taken away: each command ends in one line, and the same command goes on later.

Small disks are mounted in memory. Where that is not allowed, limits on the size of files stand for full disks; their
tests lie beside each command.
"""

import contextlib
import ctypes
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from iaunet.__main__ import main
from iaunet.errors import PreprocessingError
from iaunet.inference.runs import Run
from iaunet.planners.plan import load_plan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.storage import TEMPORARY_SUFFIX
from iaunet.workspace import DatasetFolder

PAGE = 4096
ROOM = 256 << 20
"""Bytes of a disk on which nothing is full."""

OF_THE_WAY = {".lock", "checkpoint.pt", "audit.jsonl", "metrics.csv"}
"""Files that hold times."""

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""The environment of a process that is to give the same weights as this one."""

RUN = "unet-best-random"
NO_SPACE = "no space left for {}/.*: (.*, )?free some space and run the same command again"
READ_ONLY = r"{}.* cannot be written \(Read-only file system\): choose another folder or mend its permissions"
GONE = "{}.* is gone or emptied: bring it back, or its disk, and run the same command again"


class Disk:
    """A mounted folder."""

    def __init__(self, folder: Path, *how: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._how = how

    def mount(self) -> None:
        """Put it in its place; the test is skipped where that is not allowed."""
        done = subprocess.run(["mount", *self._how, self.folder], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("no disk can be mounted here")

    def take_away(self) -> None:
        """Take it from its place at once, whoever uses it."""
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def change(self, option: str) -> None:
        """Give it another size or state."""
        subprocess.run(["mount", "-o", f"remount,{option}", self.folder], check=True)

    def leave(self, n_bytes: int) -> None:
        """Let it have room for about so many bytes."""
        self.change(f"size={max(PAGE, self.used + n_bytes // PAGE * PAGE)}")

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        said = os.statvfs(self.folder)
        return (said.f_blocks - said.f_bfree) * said.f_frsize


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command that writes to a folder, once ``begin`` has put there what it needs."""

    arguments: Callable[[Path], list[str]]
    begin: Callable[[Path], object] = lambda folder: None


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """What a job left where nothing was full: its files, and how many bytes it took on the disk."""

    files: dict[str, bytes]
    n_bytes: int


def results_of(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in OF_THE_WAY)
    return {path.relative_to(folder).as_posix(): path.read_bytes().replace(b",kept,", b",done,") for path in paths}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, write_toy, toy_workspace, trained_toy):
    raw = write_toy(tmp_path_factory.mktemp("raw") / "toy")
    trained, images = str(trained_toy), str(toy_workspace.parent / "toy" / "images")
    preprocess = ["plan_and_preprocess", "--width", "1", "--workers", "1", str(raw), "--workspace"]
    predict = ["predict", "-i", images, "-d", "toy", "--workspace", trained, "--overlay", "--probabilities", "-o"]
    export = ["export_model", "toy", "--workspace", trained, "-o"]
    return {
        "preprocessing": Job(arguments=lambda disk: [*preprocess, str(disk / "workspace")]),
        "training": Job(
            arguments=lambda disk: ["train", "toy", "0", "--workers", "0", "--workspace", str(disk / "workspace")],
            begin=lambda disk: shutil.copytree(toy_workspace, disk / "workspace"),
        ),
        "prediction": Job(arguments=lambda disk: [*predict, str(disk / "masks")]),
        "export": Job(arguments=lambda disk: [*export, str(disk / "model.zip")]),
        "export to ONNX": Job(arguments=lambda disk: [*export, str(disk / "model"), "--onnx"]),
        "choice of the best": Job(
            arguments=lambda disk: ["find_best", "toy", "--workspace", str(disk / "workspace")],
            begin=lambda disk: shutil.copytree(trained_toy, disk / "workspace"),
        ),
    }


@pytest.fixture
def mounted(tmp_path):
    """Mount a `Disk`; it is taken away after the test."""
    with contextlib.ExitStack() as at_the_end:

        def mounted(name, *how):
            disk = Disk(tmp_path / name, *how)
            disk.mount()
            at_the_end.callback(subprocess.run, ["umount", "--lazy", disk.folder], capture_output=True, check=False)
            return disk

        yield mounted


@pytest.fixture
def disk(mounted):
    """A disk in memory."""
    return mounted("disk", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs")


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def undisturbed(jobs, known, disk, tmp_path):
    """Run a job to its end on a disk with room, once."""

    def run(name):
        if name not in known:
            job = jobs[name]
            job.begin(disk.folder)
            before = disk.used
            assert main(job.arguments(disk.folder)) == 0
            known[name] = Undisturbed(files=results_of(disk.folder), n_bytes=disk.used - before)
            for path in disk.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return known[name]

    return run


def require_one_line(said, pattern, folder):
    assert re.fullmatch(f"error: {pattern.format(re.escape(str(folder)))}\n", said), said


def go_on(job, disk, expected):
    """With room on the disk the same command ends as if nothing had been."""
    disk.change(f"size={ROOM}")
    assert main(job.arguments(disk.folder)) == 0
    assert results_of(disk.folder) == expected.files


SOME_SHARES = [("preprocessing", 0.97), ("training", 0.4)]
JOBS = ["preprocessing", "training", "prediction", "export", "choice of the best"]
SHARES = [0.0, 0.05, 0.4, 0.8, 0.97]
SHARES_OF_ONNX = [0.0, 0.6]
EVERY_SHARE = [
    *((name, share) for name in JOBS for share in SHARES if (name, share) not in SOME_SHARES),
    *(("export to ONNX", share) for share in SHARES_OF_ONNX),
]


@pytest.mark.parametrize(
    ("name", "share"), [*SOME_SHARES, *(pytest.param(*each, marks=pytest.mark.slow) for each in EVERY_SHARE)]
)
def test_a_full_disk_is_named_what_was_finished_stays_and_the_same_command_goes_on(
    jobs, disk, undisturbed, start_command, require_whole, name, share
):
    job, expected = jobs[name], undisturbed(name)
    job.begin(disk.folder)
    disk.leave(int(share * expected.n_bytes))

    code, err, _ = start_command(*job.arguments(disk.folder)).end()

    require_one_line(err, NO_SPACE, disk.folder)
    assert code == 2
    require_whole(disk.folder)
    assert not list(disk.folder.rglob(f"*{TEMPORARY_SUFFIX}"))
    go_on(job, disk, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_on_a_disk_that_grows_bit_by_bit_the_same_command_comes_to_its_end(
    jobs, disk, undisturbed, start_command, require_whole, name
):
    job, expected = jobs[name], undisturbed(name)
    job.begin(disk.folder)
    before, room, refusals = disk.used, PAGE, 0
    while True:
        disk.change(f"size={before + room}")
        code, err, _ = start_command(*job.arguments(disk.folder)).end()
        if code == 0:
            break
        require_one_line(err, NO_SPACE, disk.folder)
        assert code == 2
        require_whole(disk.folder)
        refusals += 1
        room = PAGE * (room // PAGE * 3 // 2 + 1)

    assert refusals > 2
    assert results_of(disk.folder) == expected.files


# Mapped files --------------------------------------------------------------------------------------------------------

SPARSE = """
import sys
import numpy as np
np.lib.format.open_memmap(sys.argv[1] + "/sparse.npy", "w+", np.uint8, (1 << 21,))[:] = 1
"""

ALLOCATED = """
import contextlib, sys
from pathlib import Path
import numpy as np
from iaunet.errors import PreprocessingError
from iaunet.preprocessing.arrays import Index, PartialArrays, RowWriter, open_arrays
from iaunet.records import load_record

disk = Path(sys.argv[1])
index = load_record(Index, Path(sys.argv[2]), PreprocessingError, "")
arrays = PartialArrays(disk / "preprocessed", index)
with contextlib.suppress(OSError), (disk / "others").open("wb", buffering=0) as others:
    while True:
        others.write(bytes(4096))
mapped = open_arrays(arrays.folder, index.made_from)
assert not mapped.images.any() and not mapped.masks.any()
with RowWriter(arrays.folder, index.image_shape) as writer:
    for row in range(len(index.rows)):
        writer.write(row, np.full(index.image_shape[1:], row, np.float16), np.full(index.input_size, row, np.uint8))
print(mapped.images[:, 0, -1, -1].sum(), mapped.masks[:, -1, -1].sum())
"""


def run_program(program, *arguments):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_arrays_of_a_disk_that_became_full_are_read_and_written_where_a_sparse_map_dies(disk, toy_workspace):
    index = toy_workspace / "toy" / "preprocessed" / "index.json"
    disk.change("size=1m")

    assert run_program(SPARSE, disk.folder).returncode == -signal.SIGBUS
    (disk.folder / "sparse.npy").unlink()
    done = run_program(ALLOCATED, disk.folder, index)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["153.0", "153"]


@pytest.mark.parametrize("name", ["images.npy", "masks.npy"])
def test_an_array_that_somebody_cuts_while_it_is_mapped_is_told_when_it_is_opened_next(workspace, name, capsys):
    folder = DatasetFolder(workspace / "toy")
    digest = load_plan(folder.plan_json).arrays_digest
    mapped = open_arrays(folder.preprocessed, digest)
    os.truncate(folder.preprocessed / name, 10_000)

    with pytest.raises(PreprocessingError, match=r"preprocessed cannot be read \(.*\): run iaunet_plan_and_prepr"):
        open_arrays(folder.preprocessed, digest)
    assert main(["train", "toy", "0", "--workspace", str(workspace)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert mapped.index.cases


@pytest.mark.slow
def test_a_training_whose_arrays_are_cut_ends_and_the_next_start_tells_why(workspace, start_command, capsys):
    process = start_command("train", "toy", "0", "--workspace", workspace, "--workers", "1")
    process.read_until("epoch 2/12")
    os.truncate(workspace / "toy" / "preprocessed" / "images.npy", 4096)

    code, err, _ = process.end()

    assert code == 2
    assert "error: a loading process was killed" in err
    assert main(["train", "toy", "0", "--workspace", str(workspace)]) == 2
    assert "preprocessed cannot be read" in capsys.readouterr().err


# Disks that may not be written, and disks that go ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan_and_preprocess", "RAW", "--dataset_name", "toy", "--folds", "3"),
        ("train", "toy", "0", "--name", "another"),
        ("train", "toy", "0", "--restart"),
        ("train", "toy", "0", "--val_only"),
        ("find_best", "toy"),
        ("compare", "toy"),
        ("report", "toy"),
    ],
    ids=" ".join,
)
def test_a_workspace_that_may_only_be_read_is_named_and_stays_as_it_is(disk, trained_toy, arguments, capsys):
    workspace = shutil.copytree(trained_toy, disk.folder / "workspace")
    raw = DatasetFolder(workspace / "toy").load_dataset().source.root
    before = results_of(workspace)
    disk.change("ro")

    code = main([raw if each == "RAW" else each for each in arguments] + ["--workspace", str(workspace)])

    assert code == 2
    require_one_line(capsys.readouterr().err, READ_ONLY, workspace)
    assert results_of(workspace) == before


def test_a_workspace_that_may_only_be_read_predicts_and_exports(disk, trained_toy, tmp_path):
    workspace = shutil.copytree(trained_toy, disk.folder / "workspace")
    images = Path(DatasetFolder(workspace / "toy").load_dataset().source.root) / "images"
    disk.change("ro")
    where = ["-d", "toy", "--workspace", str(workspace)]

    assert main(["predict", "-i", str(images), "-o", str(tmp_path / "out"), *where]) == 0
    assert main(["export_model", "toy", "-o", str(tmp_path / "m.zip"), "--workspace", str(workspace)]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 18


OUTPUTS = {
    "masks": ("predict", "-i", "IMAGES", "-d", "toy", "-o", "OUT/masks"),
    "model": ("export_model", "toy", "-o", "OUT/model.zip"),
    "scores": ("evaluate", "--pred", "TRUTH", "--truth", "TRUTH", "--output", "OUT/scores"),
    "report": ("report", "toy", "--output", "OUT/report"),
}


@pytest.fixture
def fill_in(trained_toy):
    """The arguments of one of `OUTPUTS` with the paths it stands for."""
    raw = Path(DatasetFolder(trained_toy / "toy").load_dataset().source.root)

    def fill_in(name, output):
        places = {"IMAGES": raw / "images", "TRUTH": raw / "masks"}
        filled = [str(places.get(each, each)).replace("OUT", str(output), 1) for each in OUTPUTS[name]]
        return filled if name == "scores" else [*filled, "--workspace", str(trained_toy)]

    return fill_in


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_folder_that_may_only_be_read_is_named(disk, fill_in, name, capsys):
    disk.change("ro")

    assert main(fill_in(name, disk.folder)) == 2

    require_one_line(capsys.readouterr().err, READ_ONLY, disk.folder)


@pytest.mark.parametrize("command", ["train toy 0", "predict -d toy -i a -o b", "report toy"])
def test_a_workspace_that_is_a_file_is_named(tmp_path, command, capsys):
    (tmp_path / "file").write_text("no workspace")

    assert main([*command.split(), "--workspace", str(tmp_path / "file")]) == 2

    require_one_line(capsys.readouterr().err, "{} is a file: give a folder as --workspace", tmp_path / "file")


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int))


@contextlib.contextmanager
def obeying_permissions():
    """As any user must: root may write and read everywhere. Gives up that right in this thread, within the block."""
    system = ctypes.CDLL(None, use_errno=True)
    header, rights = _Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert system.capget(ctypes.byref(header), rights) == 0
    before = rights[0]
    rights[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert system.capset(ctypes.byref(header), rights) == 0
    try:
        yield
    finally:
        rights[0] = before
        assert system.capset(ctypes.byref(header), rights) == 0


@pytest.fixture
def closed(tmp_path):
    """Close a folder or file for this process; it is opened again after the test."""
    paths = []

    def close(path, mode):
        paths.append((path, path.stat().st_mode))
        path.chmod(mode)

    with obeying_permissions():
        yield close
    for path, mode in paths:
        path.chmod(mode)


DENIED = r"{}.* (cannot be written|cannot be read|cannot be opened) \(.*Permission denied.*\): .*"


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read only", "closed"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_folder_without_the_right_to_write_is_named(tmp_path, closed, fill_in, name, mode, capsys):
    (tmp_path / "out").mkdir()
    closed(tmp_path / "out", mode)

    assert main(fill_in(name, tmp_path / "out")) == 2

    require_one_line(capsys.readouterr().err, DENIED, tmp_path / "out")


@pytest.mark.parametrize(("place", "mode"), [("toy/runs", 0o555), ("toy/runs", 0), ("", 0)])
def test_a_workspace_without_the_right_to_write_or_read_is_named(workspace, closed, place, mode, capsys):
    (workspace / "toy" / "runs").mkdir()
    closed(workspace / place, mode)

    assert main(["train", "toy", "0", "--workspace", str(workspace)]) == 2

    require_one_line(capsys.readouterr().err, DENIED, workspace)


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read only", "closed"])
def test_a_place_for_a_workspace_without_the_right_to_write_is_named(tmp_path, toy, closed, mode, capsys):
    (tmp_path / "home").mkdir()
    closed(tmp_path / "home", mode)

    assert main(["plan_and_preprocess", str(toy), "--workspace", str(tmp_path / "home" / "workspace")]) == 2

    require_one_line(capsys.readouterr().err, DENIED, tmp_path / "home")


@pytest.mark.parametrize("place", ["", "images", "masks", "images/case_03.png"])
def test_raw_data_without_the_right_to_read_are_named(tmp_path, toy, closed, place, capsys):
    closed(toy / place, 0o000)

    assert main(["plan_and_preprocess", str(toy), "--workspace", str(tmp_path / "workspace")]) == 2

    assert re.search(f"error: .*{place}.*(Permission denied|cannot be read)", capsys.readouterr().err)


@pytest.mark.parametrize(("place", "code"), [("", 2), ("case_03.png", 1)])
def test_images_without_the_right_to_read_are_named(tmp_path, toy, closed, trained_toy, place, code, capsys):
    closed(toy / "images" / place, 0o000)
    where = ["-i", str(toy / "images"), "-o", str(tmp_path / "out"), "-d", "toy", "--workspace", str(trained_toy)]

    assert main(["predict", "--fast", *where]) == code

    said = "".join(capsys.readouterr())
    assert re.search(r"(case_03|images).* cannot be read \(Permission denied\): mend its permissions", said)


@pytest.fixture
def bound(mounted, tmp_path):
    """A folder seen at another place, as a disk is at its mount point: what is taken away there is not lost."""
    (tmp_path / "real").mkdir()
    return mounted("place", "--bind", str(tmp_path / "real"))


def require_taken_away(process, disk, process_goes_on=lambda: None):
    disk.take_away()
    process_goes_on()
    code, err, _ = process.end()

    require_one_line(err, GONE, disk.folder)
    assert code == 2
    assert not list(disk.folder.iterdir())  # nothing was put on the disk below
    disk.mount()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["epoch 2/12", "epoch 6/12"])
def test_a_training_whose_disk_is_taken_away_ends_and_goes_on_when_it_is_back(
    jobs, bound, undisturbed, start_command, require_whole, moment
):
    job, expected = jobs["training"], undisturbed("training")
    job.begin(bound.folder)
    process = start_command(*job.arguments(bound.folder))
    process.read_until(moment)

    require_taken_away(process, bound)

    require_whole(bound.folder)
    assert Run(bound.folder / "workspace/toy/runs" / RUN).fold("0").checkpoint.exists()
    assert main(job.arguments(bound.folder)) == 0
    assert results_of(bound.folder) == expected.files


@pytest.mark.slow
def test_a_preprocessing_whose_disk_is_taken_away_ends_and_goes_on_when_it_is_back(
    bound, tmp_path, write_toy, start_command
):
    raw = write_toy(tmp_path / "many" / "toy", 60)
    arguments = ["plan_and_preprocess", "--width", "1", str(raw), "--workers", "2", "--workspace"]
    done = bound.folder / "toy" / "preprocessed.partial" / "done.npy"
    process = start_command(*arguments, bound.folder)
    process.wait_until(lambda: done.exists() and np.fromfile(done, np.uint8)[-60:].any(), "some rows are done")
    os.kill(process.pid, signal.SIGSTOP)

    require_taken_away(process, bound, functools.partial(os.kill, process.pid, signal.SIGCONT))

    assert main([*arguments, str(bound.folder)]) == 0
    assert main([*arguments, str(tmp_path / "undisturbed")]) == 0
    assert results_of(bound.folder) == results_of(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_prediction_whose_disk_is_taken_away_ends_and_goes_on_when_it_is_back(
    bound, trained_toy, tmp_path, start_command, require_whole
):
    images = tmp_path / "images"
    images.mkdir()
    raw = Path(DatasetFolder(trained_toy / "toy").load_dataset().source.root)
    for number in range(300):
        shutil.copyfile(raw / f"images/case_{number % 18:02d}.png", images / f"{number:03d}.png")
    arguments = ["predict", "-i", str(images), "-d", "toy", "--workspace", str(trained_toy), "-o"]
    process = start_command(*arguments, bound.folder / "masks")
    process.wait_until(lambda: len(list(bound.folder.glob("masks/*.png"))) > 5, "some masks are written")

    require_taken_away(process, bound)

    require_whole(bound.folder)
    assert main([*arguments, str(bound.folder / "masks")]) == 0
    assert main([*arguments, str(tmp_path / "masks")]) == 0
    assert results_of(bound.folder / "masks") == results_of(tmp_path / "masks")


# Shared memory and the screen ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_shared_memory_is_named_and_the_same_command_goes_on(jobs, disk, undisturbed):
    job, expected = jobs["training"], undisturbed("training")
    job.begin(disk.folder)
    small = 'mount -t tmpfs -o size=100k tmpfs /dev/shm && exec "$@"'
    command = [sys.executable, "-m", "iaunet", *job.arguments(disk.folder), "--workers", "1"]

    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", small, "sh", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=ONE_THREAD,
    )

    require_one_line(done.stderr, "no space left for /dev/shm, through which .* to go on", "")
    assert done.returncode == 2
    go_on(job, disk, expected)


@pytest.mark.slow
def test_a_training_whose_screen_is_a_file_on_a_full_disk_goes_on(jobs, disk, undisturbed):
    job, expected = jobs["training"], undisturbed("training")
    job.begin(disk.folder)
    command = [sys.executable, "-m", "iaunet", *job.arguments(disk.folder)]

    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=ONE_THREAD)

    left_out = "warning: lines are left out that cannot be written (No space left on device)\n"
    assert (done.returncode, done.stderr) == (0, left_out)
    assert results_of(disk.folder) == expected.files
