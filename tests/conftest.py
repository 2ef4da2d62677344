"""What tests share: a toy dataset of bright ellipses, commands as processes, tracing of masks, and the real data."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what tests expect is what the CPU gives; torch comes later

ROOT = Path(__file__).parents[1]
TOY_SIDE = 64
PATIENCE = 120.0
"""Seconds after which a test no longer waits for a process."""

settings.register_profile("repeatable", deadline=None, derandomize=True)  # what fails is due to the change under test
settings.register_profile("searching", deadline=None)  # new examples each time: `make test-all`


def pytest_configure() -> None:
    """Let commands that tests start be interrupted: what a shell runs in the background ignores SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def toy_case(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image [64, 64, 3] uint8 and its mask [64, 64] of 0 and 255: a bright ellipse on clouds, unlike the others."""
    rng = np.random.default_rng(number)
    clouds = rng.integers(20, 110, (4, 4, 3), dtype=np.uint8)
    ground = np.asarray(Image.fromarray(clouds).resize((TOY_SIDE, TOY_SIDE), Image.Resampling.BICUBIC)).astype(float)
    rows, columns = np.mgrid[:TOY_SIDE, :TOY_SIDE] / TOY_SIDE
    centre, radii = rng.uniform(0.35, 0.65, 2), rng.uniform(0.12, 0.3, 2)
    inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1
    image = ground + inside[..., None] * (90.0, 60.0, 40.0) + rng.normal(0, 8, ground.shape)
    return image.clip(0, 255).astype(np.uint8), np.where(inside, np.uint8(255), np.uint8(0))


def write_toy_dataset(folder: Path, n_cases: int = 12) -> Path:
    """Write ``images/case_00.png`` ... and ``masks/case_00.png`` ...: the same bytes each time. Returns the folder."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(n_cases):
        image, mask = toy_case(number)
        Image.fromarray(image).save(folder / "images" / f"case_{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"case_{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def write_toy() -> Callable[..., Path]:
    """`write_toy_dataset`, for tests that say where and how much."""
    return write_toy_dataset


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A toy dataset of 12 cases, the test's own to spoil."""
    return write_toy_dataset(tmp_path / "toy")


class Command(subprocess.Popen[str]):
    """``iaunet ...`` as a process in a session of its own, so that whatever it starts can be found."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        super().__init__(
            [sys.executable, "-m", "iaunet", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", **environment},
            start_new_session=True,
        )

    def session(self) -> list[int]:
        """The ids of the processes of its session that still run, its own among them."""
        members = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == self.pid and state != "Z":
                members.append(int(stat.parent.name))
        return members

    def workers(self) -> list[int]:
        """The ids of the processes that work for it: those it started itself, and those forked from one it started."""
        found = []
        for number in self.session():
            with contextlib.suppress(OSError):
                said = Path(f"/proc/{number}/cmdline").read_text()
                parent = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
                if "spawn_main" in said or ("forkserver" in said and parent != self.pid):
                    found.append(number)
        return found

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Look again and again until something has happened."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain until {what}"
            time.sleep(0.002)

    def read_until(self, beginning: str) -> None:
        """Read what it prints up to a line that begins so."""
        for line in self.stdout:
            if line.startswith(beginning):
                return
        raise AssertionError(f"no line begins with {beginning!r}: {self.stderr.read()}")

    def end(self) -> tuple[int, str, str]:
        """Its exit code, and what it said on stderr and on stdout; no process of its session may be left soon after."""
        out, err = self.communicate(timeout=PATIENCE)
        self.wait_until(lambda: not self.session(), "no process is left")
        return self.returncode, err, out


@pytest.fixture(scope="session")
def command_class() -> type[Command]:
    """`Command`, for fixtures that outlive a test."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to find processes")
    return Command


@pytest.fixture
def start_command(command_class: type[Command]) -> Iterator[Callable[..., Command]]:
    """Start a `Command` with arguments and variables; whatever is left of it is killed after the test."""
    started: list[Command] = []

    def start(*arguments: object, **environment: str) -> Command:
        started.append(command_class(*arguments, **environment))
        return started[-1]

    yield start
    for command in started:
        for member in command.session():
            os.kill(member, signal.SIGKILL)
        command.communicate()


@pytest.fixture
def browser(monkeypatch, tmp_path):
    """A headless Chromium; the test is skipped without one."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return import_module("browser").find_browser(tmp_path / "profile")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real datasets, $IAUNET_REAL_DATA or ../shared/data; the test is skipped without it."""
    folder = Path(os.environ.get("IAUNET_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


@pytest.fixture(scope="session")
def toy_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that knows the data set ``toy``: 18 cases in 3 folds, planned for 64x64 px and a narrow U-Net.

    To be read only: `workspace` is a copy.
    """
    import torch

    from iaunet.preprocessing.command import main

    torch.set_num_threads(1)  # faster for so small a network
    folder = tmp_path_factory.mktemp("toy workspace ü")
    raw = write_toy_dataset(folder / "toy", 18)
    prepare = [str(raw), "--workspace", str(folder / "workspace"), "--folds", "3", "--workers", "1"]
    assert main([*prepare, "--groups", "none"]) == 0
    path = folder / "workspace" / "toy" / "plan.json"
    plan = json.loads(path.read_text(encoding="utf-8"))
    plan["input_size"] = [64, 64]
    plan["network"] = {"name": "unet", "width": 4, "depth": 3}
    plan["recipe"] |= {"epochs": 12, "batch_size": 4, "lr": 0.02}
    path.write_text(json.dumps(plan), encoding="utf-8")
    assert main(prepare) == 0
    return folder / "workspace"


@pytest.fixture(scope="session")
def trained_toy(toy_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `toy_workspace` with the run ``unet-best-random``, all folds trained; to be read only."""
    from iaunet.trainers.command import main

    workspace = shutil.copytree(toy_workspace, tmp_path_factory.mktemp("trained") / "workspace")
    assert main(["toy", "cv", "--workspace", str(workspace)]) == 0
    return workspace


@pytest.fixture
def workspace(toy_workspace: Path, tmp_path: Path) -> Path:
    """A copy of `toy_workspace`, the test's own to train in."""
    return shutil.copytree(toy_workspace, tmp_path / "workspace")


@pytest.fixture
def trained(trained_toy: Path, tmp_path: Path) -> Path:
    """A copy of `trained_toy`, the test's own to spoil."""
    return shutil.copytree(trained_toy, tmp_path / "trained")


def trace_rings(mask):
    """The rings along the pixel borders of a mask [H, W] bool, each a list of (x, y); holes are rings as well."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    onward = defaultdict(list)
    for (down, right), begin, end in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    ):
        beside = padded[1 + down : 1 + down + mask.shape[0], 1 + right : 1 + right + mask.shape[1]]
        for y, x in np.argwhere(inside & ~beside).tolist():
            onward[x + begin[0], y + begin[1]].append((x + end[0], y + end[1]))
    rings = []
    while onward:
        start = point = next(iter(onward))
        points = []
        while point in onward:
            points.append(point)
            ends = onward[point]
            following = ends.pop()
            if not ends:
                del onward[point]
            point = following
        assert point == start
        rings.append(_without_straights(points))
    return rings


def _without_straights(points):
    kept = []
    for i, (x, y) in enumerate(points):
        (before_x, before_y), (after_x, after_y) = points[i - 1], points[(i + 1) % len(points)]
        if (x - before_x) * (after_y - y) != (y - before_y) * (after_x - x):
            kept.append((x, y))
    return kept


@pytest.fixture(scope="session")
def rings():
    """`trace_rings`."""
    return trace_rings


@pytest.fixture(scope="session")
def polygon():
    """One polygon along all borders of a mask: rings joined by cuts of no width, there and back."""

    def polygon(mask):
        first, *others = trace_rings(mask)
        points = [*first, first[0]]
        for other in others:
            points += [*other, other[0], first[0]]
        return points

    return polygon
