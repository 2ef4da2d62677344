"""Times prediction from file to file beside the network alone, by the number of images, and beside nnU-Net.

    python benchmarks/prediction.py [--data FOLDER] [--network NAME:WIDTH] [--images N] [--nnunet ENV]

A small part of the images is planned and the network trained on it for one epoch of two steps, so that the command has
a run to predict with; speed does not depend on what it has learnt. `predict_folder` of the images (decode to mask file,
table and audit) and the network alone (the same batches of inputs in memory, as many side by side, the same flips and
process) take turns, and the network with its kernels shared between all cores. The command is run for more and more
images for its memory: RssAnon of the process tree, which is what grows with the data. nnU-Net predicts with a model
before its first step, and its network alone runs on the tiles and flips that it would use, in the same minute.
"""

import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import (
    Command,
    Measured,
    Report,
    Row,
    benchmark_parser,
    copy_pairs,
    find_pairs,
    iaunet,
    in_turns,
    ratios,
    run_measured,
    settings_of,
    sizes_of,
    spaced,
    spread,
    timed,
    usable_sizes,
)

if TYPE_CHECKING:
    from torch import Tensor

    from iaunet.inference.predictor import Predictor

PLANNED = 20
TOGETHER = 4
"""Rows that a network gets at once where all cores work on the same kernel."""

HELD_IN_MEMORY = 256
"""Inputs for the network alone at most; more images take them again."""


def main() -> None:
    """Run the benchmark; print Markdown and write JSON."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--network", default="unet:8", metavar="NAME:WIDTH")
    parser.add_argument("--images", type=int, default=612, metavar="N", help="images at most that are timed in turns")
    parser.add_argument("--mirroring", action="store_true", help="four flips an image, as the command does by itself")
    parser.add_argument("--device", default="auto", metavar="DEVICE")
    parser.add_argument("--nnunet_images", type=int, default=100, metavar="N", help="images for nnU-Net, which is slow")
    arguments = parser.parse_args()
    report = Report("prediction", settings_of(arguments))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        pairs = find_pairs(arguments.data, work, max(PLANNED, *sizes_of(arguments)))
        bench = _Bench([image for image, _ in pairs], work, arguments.device, arguments.mirroring)
        bench.train(copy_pairs(spaced(pairs, PLANNED), work / "planned"), arguments.network)
        bench.compare_with_network(report, min(arguments.images, len(pairs)), arguments.rounds)
        bench.take_parts(report)
        for size in usable_sizes(sizes_of(arguments), len(pairs)):
            bench.take_memory(report, size)
        if arguments.nnunet:
            bench.compare_with_nnunet(report, arguments.nnunet, pairs, min(arguments.nnunet_images, len(pairs)))
    report.finish(arguments.json)


class _Bench:
    """A trained run, and what is predicted with it."""

    def __init__(self, images: Sequence[Path], work: Path, device: str, mirroring: bool) -> None:
        self.images = images
        self.work = work
        self.workspace = work / "workspace"
        self.device = device
        self.mirroring = mirroring

    def train(self, folder: Path, network: str) -> None:
        """Plan a folder and train a network on it as briefly as can be."""
        kind, _, width = network.partition(":")
        self.of: Row = {"network": kind, "width": int(width), "flips": 4 if self.mirroring else 1}
        workspace: Command = ["--workspace", self.workspace]
        run_measured(iaunet("plan_and_preprocess", folder, *workspace, "--dataset_name", "bench", "--groups", "none"))
        size = ["--network", kind, "--width", width, "--batch_size", "8", "--epochs", "1", "--workers", "0"]
        run_measured(iaunet("train", "bench", "0", *workspace, *size, "--device", self.device))

    def compare_with_network(self, report: Report, n: int, rounds: int) -> None:
        """Add the row of ``predict_folder`` beside the network alone."""
        import torch

        from iaunet.inference.lanes import in_lanes
        from iaunet.inference.predictor import Predictor
        from iaunet.workspace import DatasetFolder

        predictor = Predictor.from_dataset(
            DatasetFolder(self.workspace / "bench"), device=self.device, mirroring=self.mirroring
        )
        inputs = self._folder(n)
        batches = _load_batches(spaced(self.images, n), predictor)
        cores: list[float] = []

        @torch.inference_mode()
        def run(batch: torch.Tensor) -> torch.Tensor:
            images = batch.to(predictor.device).contiguous(memory_format=torch.channels_last)
            return predictor.ensemble(images).cpu()

        def run_network() -> None:
            started = time.process_time()  # of all threads
            for _ in in_lanes(run, batches, predictor.lanes):
                pass
            cores.append(started - time.process_time())

        def run_one_by_one() -> None:
            rows = torch.cat(batches)
            for batch in torch.split(rows, max(TOGETHER, predictor.batch_size)):
                run(batch)

        def predict() -> None:
            started = time.process_time()
            predictor.predict_folder(inputs, self._output())
            cores.append(time.process_time() - started)

        run(batches[0])  # its first call is slower
        ways = {"network": timed(run_network), "folder": timed(predict), "shared": timed(run_one_by_one)}
        networks, folders, shared = in_turns(ways, rounds).values()
        self.alone = statistics.median(networks) / n
        report.add(
            "prediction",
            self.of
            | {
                "images": n,
                "network alone, ms an image": 1000 * statistics.median(networks) / n,
                "file to file, ms an image": 1000 * statistics.median(folders) / n,
                "network alone, images/s": n / statistics.median(networks),
                "file to file, images/s": n / statistics.median(folders),
                "core ms an image beyond the network": 1000 * sum(cores) / rounds / n,
                "of the network's speed": spread(ratios(networks, folders)),
                "kernels shared between cores, ms an image": 1000 * statistics.median(shared) / n,
                "side by side, of that": spread(ratios(networks, shared)),
            },
        )

    def take_parts(self, report: Report) -> None:
        """Add a row for each step beside the network, done alone in this thread."""
        import numpy as np

        from iaunet.files import write_png
        from iaunet.inference.mosaic import Assembly, RowPrediction
        from iaunet.planners.plan import load_plan
        from iaunet.preprocessing.cases import prepare_case
        from iaunet.stacks import read_stack
        from iaunet.workspace import DatasetFolder

        plan = load_plan(DatasetFolder(self.workspace / "bench").plan_json)
        height, width = (np.linspace(-1, 1, side, dtype=np.float32) ** 2 for side in plan.input_size)
        disc = (1 - (height[:, None] + width) / 2).astype(np.float32)
        says = np.tile(disc, (len(plan.labels), 1, 1))
        seconds = dict.fromkeys(("read and decode", "make the input", "restore and decide", "encode and write"), 0.0)
        images = spaced(self.images, HELD_IN_MEMORY)
        for path in images:
            times = [time.perf_counter()]
            stack = read_stack([path], plan.slicing)
            times.append(time.perf_counter())
            case = prepare_case(stack, plan)
            rows = [case.make(number) for number in range(len(case.places))]
            times.append(time.perf_counter())
            assembly = Assembly(case, plan)
            for _ in rows:
                assembly.add(RowPrediction(says, None, None))
            labels = assembly.prediction.labels
            times.append(time.perf_counter())
            write_png(self.work / "mask.png", 255 * labels[0], "")
            times.append(time.perf_counter())
            for name, (start, end) in zip(seconds, itertools.pairwise(times), strict=True):
                seconds[name] += end - start
        for name, taken in seconds.items():
            report.add("prediction_parts", {"part": name, "ms an image, one core": 1000 * taken / len(images)})

    def take_memory(self, report: Report, n: int) -> None:
        """Add the row of the whole command for a number of images."""
        measured = self.predict(n)
        row = {"images": n, "s": measured.seconds, "ms an image": 1000 * measured.seconds / n}
        report.add("prediction_memory", self.of | row | {"peak RssAnon, MiB": measured.peak_mib})

    def compare_with_nnunet(
        self, report: Report, environment: Path, pairs: Sequence[tuple[Path, Path]], n: int
    ) -> None:
        """Add the row of the whole command beside nnU-Net's, and of its network alone."""
        from nnunet import NnUNet, write_channels

        other = NnUNet(environment, self.work / "nnunet")
        other.write_raw(spaced(pairs, PLANNED))
        other.plan_and_preprocess(workers=2)
        device = "cpu" if self.device == "cpu" or not _has_gpu() else "cuda"
        other.save_model(device)
        inputs = self.work / "nnunet_inputs"
        inputs.mkdir()
        for image in spaced(self.images, n):
            write_channels(image, inputs)
        ours = self.predict(n)
        flips = [] if self.mirroring else ["--disable_tta"]
        which = ["-d", "1", "-c", "2d", "-f", "0", "-device", device, *flips]
        theirs = other.run("nnUNetv2_predict", "-i", inputs, "-o", self.work / "nnunet_masks", *which)
        told = json.loads(other.run_script("predict", device, inputs, *flips).output)
        report.add(
            "prediction_nnunet",
            self.of
            | {
                "images": n,
                "iaunet_predict, s": ours.seconds,
                "images/s": n / ours.seconds,
                "of its network's speed, start-up included": self.alone * n / ours.seconds,
                "peak RssAnon, MiB": ours.peak_mib,
                "nnUNetv2_predict, s": theirs.seconds,
                "nnU-Net's images/s": n / theirs.seconds,
                "nnU-Net's peak RssAnon, MiB": theirs.peak_mib,
                "nnU-Net's network alone, s": told["seconds"],
                "nnU-Net, of its network's speed, start-up included": told["seconds"] / theirs.seconds,
            },
        )

    def predict(self, n: int) -> Measured:
        """The whole command."""
        flips = [] if self.mirroring else ["--no_mirroring"]
        where: Command = ["-i", self._folder(n), "-o", self._output(), "-d", "bench", "--workspace", self.workspace]
        return run_measured(iaunet("predict", *where, "--device", self.device, *flips))

    def _output(self) -> Path:
        """A new folder, which stays to the end: some file systems are slower for minutes after files were deleted."""
        return Path(tempfile.mkdtemp(dir=self.work, prefix="masks_"))

    def _folder(self, n: int) -> Path:
        folder = self.work / f"{n}_images"
        if not folder.exists():
            folder.mkdir()
            for image in spaced(self.images, n):
                shutil.copy(image, folder)
        return folder


def _load_batches(images: Sequence[Path], predictor: "Predictor") -> list["Tensor"]:
    """The inputs [B, C, h, w] of images, as many at once as the predictor takes."""
    import numpy as np
    import torch

    from iaunet.preprocessing.cases import prepare_case
    from iaunet.stacks import read_stack

    plan = predictor.plan
    cases = [prepare_case(read_stack([path], plan.slicing), plan) for path in images[:HELD_IN_MEMORY]]
    held = [case.make(number) for case in cases for number in range(len(case.places))]
    rows = [*itertools.islice(itertools.cycle(held), round(len(images) * len(held) / len(cases)))]
    size = predictor.batch_size
    return [torch.from_numpy(np.stack(rows[at : at + size])) for at in range(0, len(rows), size)]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
