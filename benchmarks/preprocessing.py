"""Times planning and preprocessing of a folder, beside the floor, and reports the memory of the process tree.

    python benchmarks/preprocessing.py [FOLDER] [--images N] [--workers N]

Without a folder it generates one. The floor, run in the same minute with the same number of processes, does nothing but
decode, resize, normalise and write each image. RssAnon is what grows with the data; mapped files are not in it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from iaunet.discovery import list_images


def main() -> None:
    """Run the benchmark and print a Markdown row and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--images", type=int, help="the first N images only")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = arguments.folder or _generate(work)
        if arguments.images:
            folder = _subset(folder, work / "subset", arguments.images)
        images = list_images(folder / "images")
        masks = {path.stem.removesuffix("_segmentation"): path for path in list_images(folder / "masks")}
        command = [sys.executable, "-m", "iaunet", "plan_and_preprocess", str(folder), "--workspace", str(work / "ws")]
        command += ["--dataset_name", "bench", "--workers", str(arguments.workers)]
        seconds, peak = _measure(command)
        start_up, floor = _floor([(path, masks[path.stem]) for path in images], work / "floor.npy", arguments.workers)
    result = {
        "images": len(images),
        "workers": arguments.workers,
        "seconds": round(seconds, 2),
        "images_per_second": round(len(images) / seconds, 1),
        "peak_rss_anon_mb": round(peak / 2**20),
        "floor_seconds": round(floor, 2),
        "floor_start_up_seconds": round(start_up, 2),
        "ratio_to_floor": round(seconds / (floor + start_up), 2),
    }
    print(json.dumps(result))
    print("| images | workers | seconds | images/s | peak RssAnon MB | floor s | floor's start-up s | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print("|", " | ".join(str(value) for key, value in result.items()), "|")


def _measure(command: list[str]) -> tuple[float, int]:
    """Seconds of a command and the peak RssAnon in bytes of its process tree, sampled 20 times a second."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, sum(map(_rss_anon, _tree(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return seconds, peak


def _tree(root: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def _rss_anon(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def _floor(cases: list[tuple[Path, Path]], target: Path, workers: int) -> tuple[float, float]:
    """Seconds to start processes, and to decode, resize, normalise and write in them."""
    np.lib.format.open_memmap(target, "w+", np.float16, (len(cases), 3, 256, 256)).flush()
    start = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(_nothing, range(workers)))
        ready = time.perf_counter()
        list(pool.map(_bare, cases, range(len(cases)), [target] * len(cases), chunksize=16))
        end = time.perf_counter()
    return ready - start, end - ready


def _nothing(_: int) -> None:
    time.sleep(0.1)


def _bare(case: tuple[Path, Path], row: int, target: Path) -> None:
    image, mask = case
    pixels = np.asarray(Image.open(image).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR), np.float32)
    np.asarray(Image.open(mask).convert("L").resize((256, 256), Image.Resampling.BILINEAR))
    array = np.load(target, mmap_mode="r+")
    array[row] = np.moveaxis((pixels - 120) / 60, 2, 0)


def _generate(work: Path) -> Path:
    from iaunet.trainers.demo_data import write_demo_dataset

    write_demo_dataset(work / "generated", n_train=80, n_test=0)
    return work / "generated" / "dataset"


def _subset(folder: Path, target: Path, n: int) -> Path:
    for kind in ("images", "masks"):
        (target / kind).mkdir(parents=True)
        for path in list_images(folder / kind)[:n]:
            shutil.copy(path, target / kind)
    return target


if __name__ == "__main__":
    main()
