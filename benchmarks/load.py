"""Predicts very many small images, is killed in the middle, goes on, and checks that no image is lost or done twice.

    python benchmarks/load.py [--images N] [--network NAME:WIDTH] [--kill_at SHARE] [--json FILE]

Images are generated, a few of them planned for 64x64 pixels and a tiny network trained on them for one epoch, so that
what is measured is the work beside the network: reading, writing, tables. `iaunet_predict` is started as a user does,
gets SIGKILL when it has done its share, and is started again with the same options; then once more when all is done.
Told are the rate and the memory (RssAnon of the process tree) of each tenth of the images, and how long a rerun takes
to find what is done. Each image must have one mask of its size, one line in predictions.csv and one line "done" in
audit.jsonl with the hash of its mask; masks that had their line at the kill must be the same files at the end.
"""

import argparse
import csv
import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import Command, Report, Row, iaunet, memory_of, run_measured, spread

PLANNED = 20
INPUT_SIDE = 64
SAMPLES_A_SECOND = 5

AUDIT, TABLE = "audit.jsonl", "predictions.csv"


def main() -> None:
    """Run the benchmark; print Markdown and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, metavar="N", help="how many (default: 100000)")
    parser.add_argument("--network", default="unet:2", metavar="NAME:WIDTH")
    parser.add_argument("--kill_at", type=float, default=0.5, metavar="SHARE", help="of the images (default: 0.5)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="holds all meanwhile (default: a temporary one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go besides the screen")
    arguments = parser.parse_args()
    told = {"images": arguments.images, "network": arguments.network, "kill_at": arguments.kill_at}
    report = Report("load", {"data": "generated", **told})
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        bench = _Bench(Path(name), arguments.images)
        bench.train(arguments.network)
        faults = bench.run(report, round(arguments.kill_at * arguments.images))
    report.finish(arguments.json)
    if faults:
        raise SystemExit(f"not as it must be: {'; '.join(faults)}")


# Watching a command -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Seconds since a command was started, lines it has added to its audit file, and RssAnon in MiB."""

    seconds: float
    lines: int
    mib: float


@dataclass(frozen=True)
class Call:
    """A command that was watched: how many masks were there before, and what was sampled."""

    name: str
    kept: int
    samples: list[Sample]

    def between(self, first: int, last: int) -> list[Sample]:
        """The samples while it made the masks from one number to another."""
        return [sample for sample in self.samples if max(first, self.kept + 1) <= sample.lines <= last]

    def row(self) -> Row:
        """What it took as a whole."""
        end = self.samples[-1]
        first_new = next((sample.seconds for sample in self.samples if sample.lines > self.kept), None)
        return {
            "call": self.name,
            "kept": self.kept,
            "done": end.lines - self.kept,
            "s": end.seconds,
            "s to the first new mask": first_new,
            "peak RssAnon, MiB": max(sample.mib for sample in self.samples),
        }


def watch(name: str, command: Command, audit: Path, kept: int, kill_at: int | None = None) -> Call:
    """Run a command to its end, or kill it.

    Args:
        name: Of the call.
        command: Adds a line to the audit file for each image.
        audit: That file.
        kept: How many masks are there before.
        kill_at: How many lines it has added when it is killed; None to let it end.

    Raises:
        SystemExit: It failed, or ended before it was killed.
    """
    samples: list[Sample] = []
    position, lines = audit.stat().st_size if audit.exists() else 0, 0
    start = time.perf_counter()
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL) as process:
        runs = True
        while runs:
            time.sleep(1 / SAMPLES_A_SECOND)
            mib, runs = memory_of(process.pid) / 2**20, process.poll() is None
            added = read_from(audit, position)
            position, lines = position + len(added), lines + added.count(b"\n")
            samples.append(Sample(time.perf_counter() - start, lines, mib or (samples[-1].mib if samples else 0.0)))
            if kill_at is not None and lines >= kill_at:
                process.kill()
                return Call(name, kept, samples)
    if process.returncode or kill_at is not None:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode} after {lines} images")
    return Call(name, kept, samples)


def read_from(file: Path, position: int) -> bytes:
    """What follows a place in a file; nothing if there is no file."""
    if not file.exists():
        return b""
    with file.open("rb") as opened:
        opened.seek(position)
        return opened.read()


# Images, network, calls -------------------------------------------------------------------------------------------


class _Bench:
    """Many images, a network, and what is predicted."""

    def __init__(self, work: Path, n: int) -> None:
        self.n = n
        self.inputs = work / "images"
        self.output = work / "masks"
        self.audit = self.output / AUDIT
        self.workspace = work / "workspace"
        self.planned = work / "planned"
        write_images(self.inputs, n)

    def train(self, network: str) -> None:
        """Plan a few images for a small input and train a network on them as briefly as can be."""
        write_images(self.planned / "images", PLANNED, self.planned / "masks")
        place: Command = ["--workspace", self.workspace]
        plan = iaunet("plan_and_preprocess", self.planned, *place, "--dataset_name", "bench", "--groups", "none")
        run_measured(plan)
        file = self.workspace / "bench" / "plan.json"
        values = json.loads(file.read_text(encoding="utf-8"))
        values["input_size"] = [INPUT_SIDE, INPUT_SIDE]
        file.write_text(json.dumps(values), encoding="utf-8")
        run_measured(plan)
        kind, _, width = network.partition(":")
        size = ["--network", kind, "--width", width, "--batch_size", "8", "--epochs", "1", "--workers", "0"]
        run_measured(iaunet("train", "bench", "0", *place, *size, "--device", "cpu"))

    def run(self, report: Report, kill_at: int) -> list[str]:
        """Predict all, killed once, and add the tables.

        Returns:
            What is not as it must be.
        """
        killed = self.watch("killed", 0, kill_at)
        done = {line["mask"] for line in read_lines(self.audit) if line["outcome"] == "done"}
        there = self.inodes()
        again = self.watch("the same again", len(done))
        masks = self.inodes()
        once_more = self.watch("once more", self.n)
        for tenth in range(10):
            self.add_tenth(report, (killed, again), tenth)
        for call in (killed, again, once_more):
            report.add("load_calls", call.row())
        counts = self.counts() | {
            "masks with a line at the kill that were made again": sum(masks[mask] != there[mask] for mask in done),
            "masks that a rerun with nothing to do made": sum(
                masks[mask] != made for mask, made in self.inodes().items()
            ),
        }
        for what, number in counts.items():
            report.add("load_checks", {"what": what, "number": number})
        report.add(
            "load_checks",
            {"what": "masks at the kill without their line, made again", "number": len(there) - len(done)},
        )
        return [f"{number} {what}" for what, number in counts.items() if number]

    def watch(self, name: str, kept: int, kill_at: int | None = None) -> Call:
        """Run the command that predicts all of them, each time the same."""
        where: Command = ["-i", self.inputs, "-o", self.output, "-d", "bench", "--workspace", self.workspace]
        command = iaunet("predict", *where, "--device", "cpu", "--no_mirroring")
        return watch(name, command, self.audit, kept, kill_at)

    def inodes(self) -> dict[str, int]:
        """The number of each mask's file on the disk, by its name: another one once it was written anew."""
        with os.scandir(self.output) as found:
            return {file.name: file.inode() for file in found if file.name.endswith(".png")}

    def add_tenth(self, report: Report, calls: tuple[Call, ...], tenth: int) -> None:
        """Add a row for a tenth of the images, for each call that made some of them."""
        first, last = tenth * self.n // 10, (tenth + 1) * self.n // 10
        for call in calls:
            samples = call.between(first, last)
            if samples and samples[0].lines < samples[-1].lines:
                images, seconds = samples[-1].lines - samples[0].lines, samples[-1].seconds - samples[0].seconds
                row = {"images": f"{first} to {last}", "call": call.name, "images/s": images / seconds}
                report.add("load", row | {"RssAnon, MiB": spread([sample.mib for sample in samples])})

    def counts(self) -> dict[str, int]:
        """How many images, masks and lines are not as they must be."""
        from iaunet.storage import file_digest

        images = {path.name for path in self.inputs.iterdir()}
        masks = {path.name for path in self.output.glob("*.png")}
        with (self.output / TABLE).open(newline="", encoding="utf-8") as file:
            table = [(row["image"], row["mask"]) for row in csv.DictReader(file)]
        told = [*read_lines(self.audit)]
        done = Counter(line["image"] for line in told if line["outcome"] == "done")
        hashes = {line["mask"]: line["output_sha256"] for line in told}
        lines_of = Counter(image for image, _ in table), Counter(mask for _, mask in table)
        return {
            "masks more or fewer than images": abs(len(masks) - len(images)),
            "images without exactly one line in predictions.csv": _not_once(images, lines_of[0]),
            "masks without exactly one line in predictions.csv": _not_once(masks, lines_of[1]),
            'images without exactly one line "done" in audit.jsonl': _not_once(images, done),
            "lines of audit.jsonl that are neither done nor kept": sum(
                line["outcome"] not in ("done", "kept") for line in told
            ),
            "masks whose hash is not that of their lines": sum(
                file_digest(self.output / mask) != hashes.get(mask) for mask in masks
            ),
            "masks of another size than their image": sum(
                _size(self.inputs / image) != _size(self.output / mask) for image, mask in table
            ),
            "temporary files left": sum(1 for _ in self.output.glob(".*tmp")),
        }


def write_images(folder: Path, n: int, masks: Path | None = None) -> None:
    """Write images of 64 to 96 pixels a side, PNG and JPEG in turns, each a bright disc on clouds unlike the others.

    Args:
        folder: Gets them.
        n: How many.
        masks: Gets the discs; None for no masks.
    """
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    clouds = Image.fromarray(rng.integers(20, 110, (16, 16, 3), dtype=np.uint8)).resize((512, 512))
    ground = np.asarray(clouds)
    for path in filter(None, (folder, masks)):
        path.mkdir(parents=True)
    for number in range(n):
        height, width, top, left, row, column, radius = rng.integers(
            (64, 64, 0, 0, 20, 20, 8), (97, 97, 415, 415, 44, 44, 20)
        ).tolist()
        rows, columns = np.ogrid[:height, :width]
        inside = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        image = ground[top : top + height, left : left + width] + np.uint8(90) * inside[..., None]
        Image.fromarray(image).save(folder / f"{number:06d}.{'jpg' if number % 2 else 'png'}", compress_level=1)
        if masks is not None:
            Image.fromarray(np.uint8(255) * inside).save(masks / f"{number:06d}.png")


def read_lines(audit: Path) -> list[dict[str, Any]]:
    """The lines of an audit file; what a kill left of one is no line."""
    return [json.loads(line) for line in audit.read_bytes().splitlines() if line.endswith(b"}")]


def _not_once(names: set[str], times: Counter[str]) -> int:
    """How many names do not come exactly once, or come and are none of these."""
    return sum(times[name] != 1 for name in names | times.keys())


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.size


if __name__ == "__main__":
    main()
