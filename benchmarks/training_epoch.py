"""Times a training epoch beside the same steps on batches in memory, part by part, and beside nnU-Net's network.

    python benchmarks/training_epoch.py [--data FOLDER] [--networks NAME:WIDTH ...] [--nnunet ENV]

The trainer's own epoch and the same steps on the batches of its first epoch, kept in memory, take turns in one process:
their ratio is what loading and augmenting cost (on a GPU these batches lie there, augmented). The parts are taken in an
epoch of their own, in which a GPU is waited for after each of them. Model FLOPs are 2 x multiply-adds of a forward pass
x 3; they stand beside the rate of a matrix product of 4096 x 4096 on the same device, in the type that training takes
products in there. nnU-Net's step is its trainer's own, at the same input and batch, on a batch in memory, in a process
of its own. Memory is that of the whole command for one epoch of the narrowest U-Net on more and more images, scores of
the held-out fifth included: RssAnon of the process tree.
"""

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from measuring import (
    Command,
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
from torch.profiler import ProfilerActivity, profile

from iaunet.device import choose_device, training_precision
from iaunet.inference.runs import FoldFolder
from iaunet.networks.counting import count_multiply_adds
from iaunet.planners.folds import load_splits
from iaunet.planners.plan import build_planned_network, load_plan
from iaunet.trainers.fold_setup import FoldSetup
from iaunet.trainers.loader import Batch, ending_workers, start_batches
from iaunet.trainers.trainer import Trainer
from iaunet.trainers.training import READING_WORKERS, TrainingOptions, resolve_plan
from iaunet.workers import default_workers
from iaunet.workspace import DatasetFolder

MATRIX = 4096
PROFILED_STEPS = 3


def main() -> None:
    """Run the benchmark; print Markdown and write JSON."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=["iaunet:8"], metavar="NAME:WIDTH")
    parser.add_argument("--recipe", metavar="NAME", help="best or paper (default: the plan's)")
    parser.add_argument("--batch_size", type=int, metavar="N", help="rows a step (default: the recipe's)")
    parser.add_argument("--images", type=int, metavar="N", help="that are planned (default: 160; generated: 40)")
    parser.add_argument("--workers", type=int, metavar="N", help="loading processes (default: 1 on a CPU)")
    parser.add_argument("--device", default="auto", metavar="DEVICE")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    workers = arguments.workers
    if workers is None:
        workers = 1 if device.type == "cpu" else READING_WORKERS  # as `iaunet_train` has by itself
    report = Report("training_epoch", settings_of(arguments) | {"workers": workers, "device": device.type})
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        images = arguments.images or (160 if arguments.data else 40)
        pairs = find_pairs(arguments.data, work, max(images, *sizes_of(arguments)))
        dataset = _plan(copy_pairs(spaced(pairs, images), work / "images"), work / "workspace")
        rate = _matrix_rate(device)
        for network in arguments.networks:
            kind, _, width = network.partition(":")
            options = TrainingOptions(
                network=kind, width=int(width), recipe=arguments.recipe, batch_size=arguments.batch_size
            )
            bench = _Bench(dataset, options, device, workers, work / network.replace(":", "_"))
            with bench.ready():
                bench.compare_with_memory(report, arguments.rounds, rate)
                bench.take_parts(report)
                bench.profile_steps(report)
                if arguments.nnunet:
                    bench.compare_with_nnunet(report, arguments.nnunet, spaced(pairs, 20), arguments.rounds)
        for size in usable_sizes(sizes_of(arguments), len(pairs)):
            report.add("training_memory", _take_memory(spaced(pairs, size), work / f"{size}_images", device))
    report.finish(arguments.json)


class _TimedTrainer(Trainer):
    """A trainer that adds up the seconds of its steps; what is left of an epoch is its loader's."""

    in_steps = 0.0

    def train_step(self, batch: Batch) -> dict[str, float]:
        start = time.perf_counter()
        losses = super().train_step(batch)
        _wait(self.device)
        self.in_steps += time.perf_counter() - start
        return losses


class _Bench:
    """A network under training, and what is taken of it."""

    def __init__(
        self, dataset: DatasetFolder, options: TrainingOptions, device: torch.device, workers: int, folder: Path
    ) -> None:
        self.device = device
        self.workers = workers
        plan = self.plan = resolve_plan(load_plan(dataset.plan_json), options)
        fold = load_splits(dataset.splits_json).splits[plan.split].folds[0]
        setup = FoldSetup(
            plan=plan,
            folder=FoldFolder(folder / "fold_0"),
            preprocessed=dataset.preprocessed,
            run="benchmark",
            train=fold.train,
            validation=(),
            seed=0,
            device=device,
            micro_batch=plan.recipe.batch_size,
            workers=workers,
            epochs=1000,
            precision=training_precision(device),
            augments_on_device=device.type == "cuda",
        )
        (folder / "fold_0").mkdir(parents=True)
        self.trainer = _TimedTrainer(setup)
        self.of: Row = {"network": plan.network.name, "width": plan.network.width, "batch": plan.recipe.batch_size}

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The trainer built, its loader started, the batches of an epoch in memory, and one epoch behind it."""
        trainer = self.trainer
        trainer.build()
        trainer.resume_or_start()
        with ending_workers(trainer.loader):
            self.batches = [*map(trainer.prepare_batch, start_batches(trainer.loader))]
            self.train_epoch()
            yield

    def train_epoch(self) -> None:
        """The trainer's own epoch."""
        self.trainer.train_epoch()
        self._begin_next()

    def train_in_memory(self) -> None:
        """The same steps on batches in memory."""
        for batch in self.batches:
            self.trainer.train_step(batch)
            self.trainer.step += 1
        self._begin_next()

    def compare_with_memory(self, report: Report, rounds: int, rate: float) -> None:
        """Add the row of the whole epoch."""
        seconds = in_turns({"loader": timed(self.train_epoch), "memory": timed(self.train_in_memory)}, rounds)
        images = len(self.batches) * self.plan.recipe.batch_size
        speed = images / statistics.median(seconds["loader"])
        multiply_adds = count_multiply_adds(build_planned_network(self.plan), self.plan.channels, self.plan.input_size)
        flops = 2 * multiply_adds * 3 * speed
        report.add(
            "training",
            self.of
            | {
                "loading processes": self.workers,
                "steps": len(self.batches),
                "epoch, s": spread(seconds["loader"]),
                "same steps in memory, s": spread(seconds["memory"]),
                "ratio": spread(ratios(seconds["loader"], seconds["memory"])),
                "images/s": speed,
                "multiply-adds an image, G": multiply_adds / 1e9,
                "model TFLOP/s": flops / 1e12,
                "products in": str(_product_type(self.device)).removeprefix("torch."),
                "matrix product, TFLOP/s": rate / 1e12,
                "share": flops / rate,
            },
        )

    def take_parts(self, report: Report) -> None:
        """Add a row a part of an epoch."""
        trainer = self.trainer
        trainer.in_steps = 0.0
        start = time.perf_counter()
        with _timing_parts(trainer) as parts:
            self.train_epoch()
        epoch = time.perf_counter() - start
        parts = {
            "waiting for the loader": epoch - trainer.in_steps,
            **parts,
            "loss, clipping, checks": trainer.in_steps - sum(parts.values()),
        }
        for part, seconds in parts.items():
            row = {"part": part, "ms a step": 1000 * seconds / len(self.batches), "share": seconds / epoch}
            report.add("training_parts", self.of | row)

    def profile_steps(self, report: Report) -> None:
        """Add the three largest costs of a step: operations of the CPU, on a GPU its kernels."""
        on_gpu = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
            for batch in self.batches[:PROFILED_STEPS]:
                self.trainer.train_step(batch)
        costs = {
            event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
            for event in found.key_averages()
        }
        steps = len(self.batches[:PROFILED_STEPS])
        for name, microseconds in sorted(costs.items(), key=lambda cost: -cost[1])[:3]:
            row = {"operation": f"`{name[:60]}`", "ms a step": microseconds / 1000 / steps}
            report.add("training_costs", self.of | row | {"share": microseconds / sum(costs.values())})

    def compare_with_nnunet(
        self, report: Report, environment: Path, pairs: list[tuple[Path, Path]], rounds: int
    ) -> None:
        """Add the row of a step beside that of nnU-Net's trainer."""
        from nnunet import NnUNet

        size, side = self.plan.recipe.batch_size, self.plan.input_size[0]
        ours, theirs = [], []
        with tempfile.TemporaryDirectory() as name:
            other = NnUNet(environment, Path(name))
            other.write_raw(pairs)
            other.plan_and_preprocess(default_workers())
            for _ in range(rounds):
                ours.append(timed(lambda: self.trainer.train_step(self.batches[0]))())
                told = json.loads(other.run_script("step", self.device.type, str(size), str(side), "2").output)
                theirs.append(statistics.median(told["seconds"]))
        report.add(
            "training_nnunet",
            self.of
            | {
                "step, s": spread(ours),
                "images/s": size / statistics.median(ours),
                "nnU-Net's step, s": spread(theirs),
                "nnU-Net's images/s": size / statistics.median(theirs),
                "times as fast": spread(ratios(theirs, ours)),
                "nnU-Net's multiply-adds an image, G": told["multiply_adds"] / 1e9,
            },
        )

    def _begin_next(self) -> None:
        _wait(self.device)
        self.trainer.epoch, self.trainer.step = self.trainer.epoch + 1, 0


@contextmanager
def _timing_parts(trainer: Trainer) -> Iterator[dict[str, float]]:
    """Seconds of the parts of training steps, added up while the block runs."""
    seconds: dict[str, float] = defaultdict(float)
    backward, update = torch.Tensor.backward, trainer.average.update if trainer.average else None
    started = 0.0

    def begin(*_: object) -> None:
        nonlocal started
        _wait(trainer.device)
        started = time.perf_counter()

    def end(part: str) -> Callable[..., None]:
        def add(*_: object) -> None:
            _wait(trainer.device)
            seconds[part] += time.perf_counter() - started

        return add

    def around(part: str, work: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            begin()
            work(*arguments, **options)
            end(part)()

        return call

    hooks = [
        trainer.network.register_forward_pre_hook(begin),
        trainer.network.register_forward_hook(end("forward")),
        trainer.optimiser.register_step_pre_hook(begin),
        trainer.optimiser.register_step_post_hook(end("optimiser")),
    ]
    torch.Tensor.backward = around("backward", backward)  # type: ignore[method-assign]
    if trainer.average and update:
        trainer.average.update = around("average of the weights", update)  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
        if trainer.average and update:
            trainer.average.update = update  # type: ignore[method-assign]
        for hook in hooks:
            hook.remove()


def _plan(folder: Path, workspace: Path) -> DatasetFolder:
    options: Command = ["--workspace", workspace, "--dataset_name", "bench", "--groups", "none"]
    run_measured(iaunet("plan_and_preprocess", folder, *options))
    return DatasetFolder(workspace / "bench")


def _take_memory(pairs: list[tuple[Path, Path]], work: Path, device: torch.device) -> Row:
    """A row: the whole command for one epoch of the narrowest network, with its validation."""
    _plan(copy_pairs(pairs, work), work / "workspace")
    options = ["--network", "unet", "--width", "1", "--epochs", "1", "--workers", "1", "--device", device.type]
    measured = run_measured(iaunet("train", "bench", "0", "--workspace", work / "workspace", *options))
    n = len(pairs)
    row = {"images": n, "s": measured.seconds, "ms an image": 1000 * measured.seconds / n}
    return row | {"peak RssAnon, MiB": measured.peak_mib}


def _matrix_rate(device: torch.device) -> float:
    """Floating point operations a second of a product of two square matrices, the best of a few.

    On a GPU many are waited for together: one takes hardly longer than its start.
    """
    matrix = torch.randn(MATRIX, MATRIX, device=device, dtype=_product_type(device))
    products = 1 if device.type == "cpu" else 50
    seconds = []
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        for _ in range(products):
            matrix @ matrix
        _wait(device)
        seconds.append((time.perf_counter() - start) / products)
    return 2 * MATRIX**3 / min(seconds)


def _product_type(device: torch.device) -> torch.dtype:
    return training_precision(device) or torch.float32


def _wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
