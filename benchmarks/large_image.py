"""Peak memory of predicting one large TIFF image in tiles, beside that of a small one.

    python benchmarks/large_image.py [--sides PX PX] [--scale S] [--case_normalisation]

Writes grey 8-bit images, uncompressed, and predicts each in a process of its own with a small network of random
weights, through the folder prediction: image to PNG mask. RssAnon is what grows with the data; mapped files are not in
it. A mask takes one byte a pixel.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """Run the benchmark and print JSON and a Markdown row for each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[5_000, 20_000], metavar="PX")
    parser.add_argument("--scale", type=float, default=1.0, help="that images are resized by before they are cut")
    parser.add_argument("--case_normalisation", action="store_true", help="intensities are measured image by image")
    arguments = parser.parse_args()
    print("| side px | scale | tiles | seconds | mask MB | RssAnon before MB | peak MB | peak less before, a mask MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for side in arguments.sides:
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            _write_image(work / "images" / "large.tif", side)
            command = [sys.executable, __file__, "predict", str(work), str(arguments.scale)]
            command += [str(int(arguments.case_normalisation))]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(json.dumps(result), file=sys.stderr)
        print("|", " | ".join(map(str, result.values())), "|", flush=True)


def _write_image(path: Path, side: int) -> None:
    """Waves and noise, written a strip at a time."""
    import tifffile

    path.parent.mkdir()
    pixels = tifffile.memmap(path, shape=(side, side), dtype=np.uint8, photometric="minisblack")
    rng = np.random.default_rng(0)
    columns = np.sin(np.arange(side) / 300)
    for top in range(0, side, 500):
        rows = np.sin(np.arange(top, min(top + 500, side)) / 200)
        noise = rng.integers(0, 60, (len(rows), side))
        pixels[top : top + len(rows)] = 100 + 40 * rows[:, None] * columns + noise
    pixels.flush()


def _predict(work: Path, scale: float, normalised_by_case: bool) -> dict[str, float]:
    """Predict the one image, while the memory of this process is watched."""
    import torch

    from iaunet.dataset import MaskCoding
    from iaunet.inference.folder import predict_folder
    from iaunet.inference.output import FolderOptions
    from iaunet.inference.predictor import Predictor
    from iaunet.planners.plan import InferencePlan, NetworkPlan, Normalisation, Plan, build_planned_network
    from iaunet.planners.recipes import find_recipe
    from iaunet.preprocessing.cases import place_rows

    of_dataset = Normalisation(kind="dataset", mean=(130.0,), sd=(40.0,))
    of_case = Normalisation(kind="case", percentiles=(0.5, 99.5))
    plan = Plan(
        planner="by hand",
        dataset="large",
        fingerprint="0",
        channels=1,
        depth="uint8",
        labels=("foreground",),
        coding=MaskCoding(kind="values", values=(255,), written=(255,)),
        input_mode="tiles",
        input_size=(256, 256),
        tile_scale=scale,
        normalisation=of_case if normalised_by_case else of_dataset,
        network=NetworkPlan(name="unet", width=4, depth=3),
        recipe=find_recipe("paper"),
        inference=InferencePlan(mirroring=False, thresholds=(0.5,)),
        split="random",
        why={},
    )
    torch.manual_seed(0)
    predictor = Predictor(plan, [build_planned_network(plan)], torch.device("cpu"))
    predictor.predict_inputs(np.zeros((predictor.batch_size, 1, 256, 256), np.float32))  # torch takes its share first
    before, start = _rss_anon(), time.perf_counter()
    peak = _Peak()
    with peak:
        [outcome] = predict_folder(predictor, work / "images", work / "masks", FolderOptions())
    seconds = time.perf_counter() - start
    if outcome.status != "done":
        raise SystemExit(outcome.problem)
    import tifffile

    side = tifffile.TiffFile(work / "images" / "large.tif").pages[0].imagelength
    return {
        "side": side,
        "scale": scale,
        "tiles": len(place_rows((1, side, side), None, plan)),
        "seconds": round(seconds, 1),
        "mask_mb": round(side**2 / 2**20),
        "rss_anon_before_mb": round(before / 2**20),
        "peak_rss_anon_mb": round(peak.n_bytes / 2**20),
        "peak_less_before_and_mask_mb": round((peak.n_bytes - before - side**2) / 2**20),
    }


class _Peak:
    """The peak of this process's RssAnon in bytes, sampled 100 times a second."""

    def __enter__(self) -> None:
        self.n_bytes = 0
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.n_bytes = max(self.n_bytes, _rss_anon())


def _rss_anon() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["predict"]:
        print(json.dumps(_predict(Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "1")))
    else:
        main()
