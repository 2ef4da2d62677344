"""Compares the seconds a row that planning estimates for training with those that steps take.

    python benchmarks/time_estimate.py [--networks NAME:WIDTH ...] [--sizes PX ...] [--rows N] [--device auto|cpu|cuda]

Every estimate is made in a process of its own, as planning makes it: from one to three small steps. Then steps of
`--rows` rows of the real size are taken, with Adam, of which the first is not counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measuring import Report, Row, spread
from torch import nn

from iaunet.allocation import keep_freed_memory
from iaunet.device import casting, choose_device, training_precision
from iaunet.loss import bce_dice_loss
from iaunet.networks import build_network
from iaunet.networks.timing import prepare_timing

CHANNELS, LABELS = 3, 1
NETWORKS = [
    "iaunet:8",
    "iaunet:16",
    "iaunet:32",
    "unet:8",
    "unet:32",
    "attention_unet:16",
    "resunet:16",
    "swin_unet:24",
]


def main() -> None:
    """Print a Markdown table, and write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME:WIDTH")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], metavar="PX")
    parser.add_argument("--rows", type=int, default=4, metavar="N", help="of a step that is taken")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="steps that are taken")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(_measure(**json.loads(arguments.task))))
        return
    device = choose_device(arguments.device).type
    steps: Row = {"rows": arguments.rows, "rounds": arguments.rounds}
    about: Row = {"data": "random numbers", "device": device, "threads": torch.get_num_threads()}
    report = Report("time_estimate", about | steps)
    for network in arguments.networks:
        kind, _, width = network.partition(":")
        for size in arguments.sizes:
            row: Row = {"network": kind, "width": int(width), "size": size}
            report.add("time_estimate", row | _measure_apart(row | steps | {"device": device}))
    report.finish(arguments.json)


def _measure_apart(task: Row) -> Row:
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    measured: Row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return measured


def _measure(network: str, width: int, size: int, rows: int, rounds: int, device: str) -> Row:
    """The columns of a network's row."""
    where = torch.device(device)
    start = time.perf_counter()
    time_row = prepare_timing(_build(network, width), CHANNELS, LABELS, (size, size), where)
    estimated = time_row()
    taken = time.perf_counter() - start
    keep_freed_memory()  # as training does
    steps = [seconds / rows for seconds in _take_steps(_build(network, width), size, rows, rounds + 1, where)[1:]]
    return {
        "estimated, ms a row": 1000 * estimated,
        "steps, ms a row": spread([1000 * seconds for seconds in steps]),
        "estimated, of the steps": estimated / statistics.median(steps),
        "estimating, s": taken,
    }


def _build(network: str, width: int) -> nn.Module:
    torch.manual_seed(0)
    return build_network(network, channels=CHANNELS, labels=LABELS, width=width, depth=4)


def _take_steps(network: nn.Module, size: int, rows: int, n: int, device: torch.device) -> list[float]:
    """The seconds of steps."""
    network = network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(network.parameters())
    images = torch.randn(rows, CHANNELS, size, size, device=device).contiguous(memory_format=torch.channels_last)
    targets = torch.zeros(rows, LABELS, size, size, device=device)
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with casting(device, training_precision(device)):
            logits: Any = network(images)
        loss = bce_dice_loss(logits, targets).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        loss.item()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
