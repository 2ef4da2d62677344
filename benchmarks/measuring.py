"""What the benchmarks share: commands timed with the memory of their processes, turns, machine, result files."""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]
SAMPLES_A_SECOND = 20

Item = TypeVar("Item")

Command = list[str | Path]
"""A program and its arguments."""

Row = dict[str, Any]
"""A row of a table: numbers, words, spreads (see `spread`) or None, by column."""


# Commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What a command took: seconds, and the peak RssAnon of its process tree in MiB (None where /proc is missing)."""

    seconds: float
    peak_mib: float | None
    output: str


def run_measured(command: Command, environment: Mapping[str, str] | None = None) -> Measured:
    """Run a command to its end and sample the memory of it and all processes below it.

    RssAnon is what grows with the data; mapped files are not in it.

    Args:
        command: What is run.
        environment: What is set for it besides this process's own environment.

    Returns:
        With ``output``, what it wrote to its standard output.

    Raises:
        SystemExit: It failed; the end of what it wrote to its standard error is told.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(1 / SAMPLES_A_SECOND):
            peak = max(peak, memory_of(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, faults = process.communicate()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if process.returncode:
        told = "\n".join(faults.splitlines()[-20:])
        raise SystemExit(f"{told}\n{' '.join(map(str, command))} ended with {process.returncode}")
    return Measured(seconds, round(peak / 2**20, 1) if peak else None, output)


def iaunet(command: str, *options: str | Path) -> Command:
    """A command of iaunet, run by this Python."""
    return [sys.executable, "-m", "iaunet", command, *options]


def memory_of(root: int) -> int:
    """RssAnon in bytes of a process and all below it; 0 where /proc is missing."""
    return sum(map(_rss_anon, _tree(root)))


def _tree(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for process in found:
        for path in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += map(int, path.read_text().split())
            except OSError:  # it ended meanwhile
                continue
    return found


def _rss_anon(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


# Numbers ----------------------------------------------------------------------------------------------------------


def in_turns(methods: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call methods one after the other, round by round, so that what else the machine does meets them alike.

    Returns:
        The seconds that each method says it took, a number a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            seconds[name].append(method())
    return seconds


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """The same work, which tells how many seconds it took."""

    def call() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return call


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of values with the lowest and the highest of them."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def ratios(values: Sequence[float], to: Sequence[float]) -> list[float]:
    """Ratios of numbers taken in the same rounds."""
    return [one / other for one, other in zip(values, to, strict=True)]


# Results ----------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a benchmark found: tables by name, each a list of rows with the same columns."""

    benchmark: str
    settings: Row
    tables: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, table: str, row: Row) -> None:
        """Add a row to a table and tell it on the standard error, so that one sees how far a long benchmark is."""
        self.tables.setdefault(table, []).append(row)
        cells = (f"{column}: {format_cell(value)}" for column, value in row.items())
        print(f"{table}:  {'  '.join(cells)}", file=sys.stderr, flush=True)

    def finish(self, file: Path | None) -> None:
        """Print the tables as Markdown and write everything as JSON where that is asked for."""
        facts = {
            "benchmark": self.benchmark,
            "machine": describe_machine(),
            "settings": self.settings,
            "tables": self.tables,
        }
        print("\n\n".join(markdown_table(rows) for rows in self.tables.values()))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, whose columns are those of the first row."""
    columns = [*rows[0]]
    lines = [columns, ["---"] * len(columns), *([format_cell(row[name]) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_cell(value: object) -> str:
    """A cell as text: numbers with three significant digits, spreads as the median and (lowest to highest)."""
    if isinstance(value, dict):
        median, lowest, highest = (format_cell(value[name]) for name in ("median", "lowest", "highest"))
        return median if lowest == highest else f"{median} ({lowest} to {highest})"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, versions and the commit that is measured."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "memory_gb": _memory_gb(),
        "gpu": _gpu(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gb() -> int | None:
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _commit() -> str | None:
    """The checkout's commit; with a plus when files differ from it."""
    if shutil.which("git") is None:
        return None
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode
    return f"{commit.stdout.strip()}{'+' if changed else ''}" if commit.returncode == 0 else None


# Options and images -----------------------------------------------------------------------------------------------


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="with images/ and masks/ (default: generated)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="N", help="numbers of images (default: 100 612 2594; generated: 20 40)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="times that all take turns (default: 3)")
    parser.add_argument("--nnunet", type=Path, metavar="ENV", help="a virtual environment with nnunetv2, to compare")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go besides the screen")
    return parser


def sizes_of(arguments: argparse.Namespace) -> list[int]:
    """The numbers of images that are asked for."""
    usual = [20, 40] if arguments.data is None else [100, 612, 2594]
    return arguments.sizes or usual


def settings_of(arguments: argparse.Namespace) -> Row:
    """The options of a benchmark as they go into its results: no paths, only what data they named."""
    told = ("json", "data", "nnunet", "sizes", "groups")
    row = {name: value for name, value in vars(arguments).items() if name not in told}
    data = arguments.data
    return {"data": data.resolve().name if data else "generated", "nnunet": arguments.nnunet is not None, **row}


def find_pairs(folder: Path | None, work: Path, n: int) -> list[tuple[Path, Path]]:
    """The images of a folder with their masks.

    Args:
        folder: With ``images/`` and ``masks/``; None to generate one.
        work: Gets the generated images.
        n: How many are generated.
    """
    from iaunet.discovery import list_images

    if folder is None:
        folder = _generate(work / "generated", n)
    masks = {path.stem.removesuffix("_segmentation"): path for path in list_images(folder / "masks")}
    return [(path, masks[path.stem]) for path in list_images(folder / "images")]


def spaced(items: Sequence[Item], n: int) -> list[Item]:
    """So many of the items, evenly spaced, so that few images are of many patients; all where there are no more."""
    n = min(n, len(items))
    return [items[number * len(items) // n] for number in range(n)]


def copy_pairs(pairs: Sequence[tuple[Path, Path]], target: Path) -> Path:
    """A folder with ``images/`` and ``masks/`` that holds these alone."""
    for name in ("images", "masks"):
        (target / name).mkdir(parents=True)
    for image, mask in pairs:
        shutil.copy(image, target / "images")
        shutil.copy(mask, target / "masks")
    return target


def usable_sizes(sizes: Sequence[int], there: int) -> list[int]:
    """The numbers of images that a folder has enough for, and all of them where it has fewer than the least."""
    return [size for size in sizes if size <= there] or [there]


def _generate(folder: Path, n: int) -> Path:
    from iaunet.trainers.demo_data import write_demo_dataset

    write_demo_dataset(folder, n_train=n, n_test=0)
    return folder / "dataset"
