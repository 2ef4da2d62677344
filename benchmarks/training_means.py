"""Weighs the means of making a training step faster: each switched on alone beside the plain step, in turns.

    python benchmarks/training_means.py [--networks NAME:WIDTH ...] [--batch N] [--size PX] [--device auto|cpu|cuda]

The plain step is float32, channels first, with torch's usual Adam, on a batch that lies on the device. The first step
of each is on its own, as it compiles and warms up. On a GPU batches are also brought from the CPU: from usual memory,
from pinned memory, and from pinned memory on a stream of their own while the step before runs; and augmented there.
Ratios are taken round by round, of seconds and of the processor's seconds, which other programs disturb less.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Literal

import torch
from measuring import Report, Row, ratios, spread
from torch import Tensor, nn

from iaunet.device import CPU, casting, choose_device, training_precision
from iaunet.loss import bce_dice_loss
from iaunet.networks import build_network
from iaunet.planners.plan import Normalisation
from iaunet.planners.recipes import RECIPES
from iaunet.trainers.device_augmentation import DeviceAugmenter
from iaunet.trainers.loader import Batch, prepared_ahead

CHANNELS = 3


@dataclass(frozen=True)
class Means:
    """How a step is done; the default is plain."""

    channels_last: bool = False
    precision: torch.dtype | None = None
    adam: Literal["usual", "foreach", "fused"] = "usual"
    compiled: bool = False
    graph: bool = False
    threads: int | None = None
    batches: Literal["there", "copied", "pinned", "ahead"] = "there"
    augmented: bool = False


def means_of(device: torch.device) -> dict[str, Means]:
    """What is weighed on a device, by name; the first is plain."""
    precision = training_precision(device) or torch.bfloat16
    found = {
        "plain": Means(),
        "channels_last": Means(channels_last=True),
        "bfloat16": Means(precision=precision),
        "channels_last and bfloat16": Means(channels_last=True, precision=precision),
        "foreach Adam": Means(adam="foreach"),
        "fused Adam": Means(adam="fused"),
        "compiled": Means(compiled=True),
        "compiled, channels_last and bfloat16": Means(compiled=True, channels_last=True, precision=precision),
    }
    if device.type == "cpu":
        return found | {"one thread": Means(threads=1)}
    best = Means(channels_last=True, precision=precision)
    return found | {
        "CUDA graph": Means(graph=True),
        "CUDA graph, channels_last and bfloat16": replace(best, graph=True),
        "batches copied": replace(best, batches="copied"),
        "batches copied from pinned memory": replace(best, batches="pinned"),
        "batches copied ahead": replace(best, batches="ahead"),
        "batches copied ahead and augmented": replace(best, batches="ahead", augmented=True),
    }


def main() -> None:
    """Print a Markdown table for each network, and write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["iaunet:32", "unet:32"], metavar="NAME:WIDTH")
    parser.add_argument("--batch", type=int, default=4, metavar="N")
    parser.add_argument("--size", type=int, default=256, metavar="PX")
    parser.add_argument("--depth", type=int, default=4, metavar="N")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--means", nargs="+", metavar="NAME", help="besides plain (default: all)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    all_means = means_of(device)
    wished = ["plain", *(arguments.means or [name for name in all_means if name != "plain"])]
    settings: Row = {name: getattr(arguments, name) for name in ("batch", "size", "depth", "rounds")}
    report = Report(
        "training_means",
        settings | {"data": "random numbers", "device": device.type, "threads": torch.get_num_threads()},
    )
    for network in arguments.networks:
        name, _, width = network.partition(":")
        steps = {}
        for means in wished:
            torch.manual_seed(0)
            built = build_network(name, channels=CHANNELS, labels=1, width=int(width), depth=arguments.depth)
            try:
                steps[means] = Stepper(built, all_means[means], arguments.batch, arguments.size, device)
            except RuntimeError as fault:
                if not all_means[means].compiled:  # which needs a C compiler and Python's headers
                    raise
                print(f"{network}, {means}: left out ({str(fault).splitlines()[0]})", file=sys.stderr)
        _compare(report, network, steps, arguments.rounds)
    report.finish(arguments.json)


class Stepper:
    """Does steps of one network by certain means; ``first`` holds the seconds of the first."""

    def __init__(self, network: nn.Module, means: Means, batch: int, size: int, device: torch.device) -> None:
        self.means = means
        self.device = device
        self.layout = torch.channels_last if means.channels_last else torch.contiguous_format
        self.network = network.to(device=device, memory_format=self.layout).train()  # type: ignore[call-overload]
        kinds = {"usual": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}
        self.optimiser = torch.optim.Adam(self.network.parameters(), capturable=means.graph, **kinds[means.adam])
        self.forward = torch.compile(self.network) if means.compiled else self.network
        self.batches = self._batches(batch, size)
        self.captured: torch.cuda.CUDAGraph | None = None
        self.first = self.timed()[0]
        if means.graph:
            self._capture()

    def timed(self) -> tuple[float, float]:
        """Seconds and processor's seconds of a step, waited for."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.means.threads or threads)
        start, busy = time.perf_counter(), time.process_time()
        batch = next(self.batches)
        if self.captured is None:
            self._step(batch)
        else:
            self.captured.replay()  # type: ignore[no-untyped-call]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        taken = time.perf_counter() - start, time.process_time() - busy
        torch.set_num_threads(threads)
        return taken

    def _step(self, batch: Batch) -> None:
        images = batch.images.contiguous(memory_format=self.layout)
        self.optimiser.zero_grad(set_to_none=True)
        with casting(self.device, self.means.precision):
            logits: Tensor = self.forward(images)
        bce_dice_loss(logits, batch.targets).loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    def _capture(self) -> None:
        """Record a step to be replayed: after steps on a stream of their own, as torch asks for."""
        batch = next(self.batches)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step(batch)
        torch.cuda.current_stream().wait_stream(stream)
        self.captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.captured):
            self._step(batch)

    def _batches(self, n: int, size: int) -> Iterator[Batch]:
        """The same batch for ever, brought to the device as the means say."""
        masks = (torch.rand(n, size, size) > 0.8).byte()
        there = Batch(torch.randn(n, CHANNELS, size, size), masks[:, None].float(), tuple(range(n)))
        if self.means.batches == "there":
            return repeat(there.to(self.device))
        if self.means.batches == "copied":
            return (batch.to(self.device) for batch in repeat(there))
        pinned = there.pin_memory()
        prepare = self._augment if self.means.augmented else self._bring
        return prepared_ahead(repeat(pinned), prepare, self.device if self.means.batches == "ahead" else CPU)

    def _bring(self, batch: Batch) -> Batch:
        return batch.to(self.device)

    def _augment(self, batch: Batch) -> Batch:
        augmenter = DeviceAugmenter(RECIPES["best"].augmentation, Normalisation(kind="case"))
        batch = batch.to(self.device)
        images, masks = augmenter(batch.images, batch.targets[:, 0].byte(), [(0, 0, row) for row in batch.rows])
        return replace(batch, images=images, targets=masks[:, None].float())


def _compare(report: Report, network: str, steps: dict[str, Stepper], rounds: int) -> None:
    """Let the means take turns and add a row for each."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(step.timed())
    plain = taken["plain"]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None

    def ratio(name: str, which: int) -> dict[str, float]:
        return spread(ratios([one[which] for one in taken[name]], [one[which] for one in plain]))

    for name, step in steps.items():
        row: Row = {"network": network, "means": name, "step, s": spread([one[0] for one in taken[name]])}
        row |= {"of plain": ratio(name, 0), "of plain, processor": ratio(name, 1)}
        report.add("means", row | {"first step, s": step.first, "load": load})


if __name__ == "__main__":
    main()
