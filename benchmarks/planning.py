"""Times fingerprint, plan and arrays of a folder beside the floor and nnU-Net, with the memory of the process tree.

    python benchmarks/planning.py [--data FOLDER] [--sizes N ...] [--nnunet ENV]

The floor does nothing but decode, resize, normalise and write each image and mask, in as many processes. What both
take whatever the number of images stands in columns of its own: for the floor, all but its work (interpreter, imports,
processes); for the command, the seconds that the same command needs for 30 images. All take turns, round by
round. RssAnon is what grows with the data; mapped files are not in it. nnU-Net gets the same images as PNG, written
before the clock starts.
"""

import json
import pstats
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from measuring import (
    Command,
    Measured,
    Report,
    Row,
    benchmark_parser,
    copy_pairs,
    find_pairs,
    iaunet,
    ratios,
    run_measured,
    settings_of,
    sizes_of,
    spaced,
    spread,
    usable_sizes,
)
from numpy.typing import NDArray
from PIL import Image

LARGEST = 8
"""Functions of the profile that are told."""

SETTLING = 0.1
"""Seconds that let all processes of the floor start, counted nowhere."""

ESTIMATE = "estimate of the time"
"""Whether the command tries how long training will take, which nothing else here does."""

FEW = 30
"""Images whose planning shows what a command costs before its first image."""


def main() -> None:
    """Run the benchmark; print Markdown and write JSON."""
    from iaunet.workers import default_workers

    parser = benchmark_parser(__doc__)
    parser.add_argument("--workers", type=int, default=default_workers(), metavar="N", help="processes")
    parser.add_argument(
        "--nnunet_images", type=int, nargs="+", default=[200], metavar="N", help="images for nnU-Net, which is slow"
    )
    parser.add_argument("--groups", metavar="CSV", help="a table of case and group, as iaunet_plan_and_preprocess has")
    arguments = parser.parse_args()
    report = Report("planning", settings_of(arguments))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        pairs = find_pairs(arguments.data, work, max(sizes_of(arguments)))
        bench = _Bench(pairs, work, arguments.workers, arguments.groups)
        for size in usable_sizes(sizes_of(arguments), len(pairs)):
            for with_estimate in (True, False):
                report.add("planning", bench.compare_with_floor(size, arguments.rounds, with_estimate))
        report.tables["planning_costs"] = bench.profile(usable_sizes(sizes_of(arguments), len(pairs))[-1])
        if arguments.nnunet:
            for size in usable_sizes(arguments.nnunet_images, len(pairs)):
                for row in bench.compare_with_nnunet(size, arguments.rounds, arguments.nnunet):
                    report.add("planning_nnunet", row)
    report.finish(arguments.json)


class _Bench:
    """Folders with so many of the images, and what is run on them."""

    def __init__(self, pairs: list[tuple[Path, Path]], work: Path, workers: int, groups: str | None) -> None:
        self.pairs = pairs
        self.work = work
        self.workers = workers
        self.groups = ["--groups", groups] if groups else []

    def compare_with_floor(self, size: int, rounds: int, with_estimate: bool) -> dict[str, object]:
        """A row: the whole command on some images beside the floor."""
        commands, fews, floors, starts = [], [], [], []
        for _ in range(rounds):
            commands.append(self.plan(size, with_estimate))
            whole, worked = self.floor(size)
            floors.append(worked)
            starts.append(whole - worked - SETTLING)
            fews.append(self.plan(min(FEW, size), with_estimate).seconds)
        seconds = [command.seconds for command in commands]
        work = [max(whole - few, 0.0) for whole, few in zip(seconds, fews, strict=True)]
        wholes = [floor + start for floor, start in zip(floors, starts, strict=True)]
        return {
            "images": size,
            ESTIMATE: "yes" if with_estimate else "no",
            "s": spread(seconds),
            "images/s": size / statistics.median(seconds),
            f"for {FEW} images, s": spread(fews),
            "ms a further image": 1000 * statistics.median(work) / max(size - FEW, 1),
            "floor, s": spread(floors),
            "floor's start-up, s": spread(starts),
            "ratio": spread(ratios(seconds, wholes)),
            "ratio without start-up": spread(ratios(work, [floor * max(size - FEW, 1) / size for floor in floors])),
            "peak RssAnon, MiB": max((command.peak_mib or 0 for command in commands), default=0),
        }

    def compare_with_nnunet(self, size: int, rounds: int, environment: Path) -> list[Row]:
        """Rows: the command on some images, with and without its estimate, beside nnU-Net's, in turns."""
        from nnunet import NnUNet

        other = NnUNet(environment, self.work / f"nnunet_{size}")
        other.write_raw(spaced(self.pairs, size))
        ours: dict[str, list[Measured]] = {"yes": [], "no": []}
        theirs = []
        for _ in range(rounds):
            ours["yes"].append(self.plan(size))
            ours["no"].append(self.plan(size, with_estimate=False))
            theirs.append(other.plan_and_preprocess(self.workers))
        seconds = [measured.seconds for measured in theirs]
        their_peak = max(measured.peak_mib or 0 for measured in theirs)
        return [
            {
                "images": size,
                ESTIMATE: estimated,
                "iaunet, s": spread([measured.seconds for measured in measurements]),
                "nnU-Net, s": spread(seconds),
                "times as fast": spread(ratios(seconds, [measured.seconds for measured in measurements])),
                "iaunet, peak RssAnon MiB": max(measured.peak_mib or 0 for measured in measurements),
                "nnU-Net, peak RssAnon MiB": their_peak,
                "memory, of nnU-Net's": max(measured.peak_mib or 0 for measured in measurements) / (their_peak or 1),
            }
            for estimated, measurements in ours.items()
        ]

    def profile(self, size: int) -> list[Row]:
        """The functions that take the most time themselves, in one process."""
        file, workspace = self.work / "profile", self.work / "profiled"
        command = self._command(size, workspace, workers=1)
        run_measured([command[0], "-m", "cProfile", "-o", file, *command[1:]])
        functions = pstats.Stats(str(file)).get_stats_profile()
        largest = sorted(functions.func_profiles.items(), key=lambda item: -item[1].tottime)[:LARGEST]
        return [
            {
                "images": size,
                "function": f"`{name}`" if of.file_name == "~" else f"`{Path(of.file_name).name}: {name}`",
                "calls": of.ncalls,
                "s": of.tottime,
                "share": of.tottime / functions.total_tt,
            }
            for name, of in largest
        ]

    def plan(self, size: int, with_estimate: bool = True) -> Measured:
        """The whole command in a new workspace, whose many small files stay to the end.

        Some file systems are slower for minutes after files were deleted.
        """
        workspace = Path(tempfile.mkdtemp(dir=self.work, prefix="workspace_"))
        command = self._command(size, workspace, self.workers)
        measured = run_measured(command if with_estimate else [*command, "--no_timing"])
        for array in workspace.rglob("*.npy"):
            array.unlink()
        return measured

    def floor(self, size: int) -> tuple[float, float]:
        """Seconds of the whole process that does the floor, and of its work alone."""
        cases = self.work / "cases.json"
        cases.write_text(
            json.dumps([[str(path) for path in pair] for pair in spaced(self.pairs, size)]), encoding="utf-8"
        )
        measured = run_measured([sys.executable, __file__, "floor", cases, self.work, str(self.workers)])
        return measured.seconds, float(measured.output)

    def _command(self, size: int, workspace: Path, workers: int) -> Command:
        where: Command = ["--workspace", workspace, "--dataset_name", "bench", "--workers", str(workers)]
        return iaunet("plan_and_preprocess", self._folder(size), *where, *self.groups)

    def _folder(self, size: int) -> Path:
        folder = self.work / f"{size}_images"
        return folder if folder.exists() else copy_pairs(spaced(self.pairs, size), folder)


# The floor, a process of its own ----------------------------------------------------------------------------------

_targets: dict[str, NDArray[np.generic]] = {}


def run_floor(cases: Path, folder: Path, workers: int) -> None:
    """Do the least that makes arrays of images and print the seconds from the first image on."""
    pairs = json.loads(cases.read_text(encoding="utf-8"))
    images, masks = folder / "floor_images.npy", folder / "floor_masks.npy"
    np.lib.format.open_memmap(images, "w+", np.float16, (len(pairs), 3, 256, 256))
    np.lib.format.open_memmap(masks, "w+", np.uint8, (len(pairs), 256, 256))
    with ProcessPoolExecutor(workers, get_context("spawn"), _open, (images, masks)) as pool:
        list(pool.map(time.sleep, [SETTLING] * workers))  # all processes are there
        start = time.perf_counter()
        list(pool.map(_make_row, pairs, range(len(pairs)), chunksize=8))
        print(time.perf_counter() - start)


def _open(images: Path, masks: Path) -> None:
    _targets.update(images=np.load(images, mmap_mode="r+"), masks=np.load(masks, mmap_mode="r+"))


def _make_row(pair: tuple[str, str], row: int) -> None:
    image, mask = (Image.open(path) for path in pair)
    pixels = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR), np.float32)
    _targets["images"][row] = np.moveaxis((pixels - 120) / 60, 2, 0)
    _targets["masks"][row] = np.asarray(mask.convert("L").resize((256, 256), Image.Resampling.BILINEAR)) > 127


if __name__ == "__main__":
    if sys.argv[1:2] == ["floor"]:
        run_floor(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
