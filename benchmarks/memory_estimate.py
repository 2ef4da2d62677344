"""Compares the estimated memory of a training step with what it takes, for every network.

python benchmarks/memory_estimate.py [--device cuda] [--rows 4 8] [--width 32] [--json FILE]

Each measurement is a process of its own. On a CPU the peak is that of the resident memory above what is there before
the step, with an allocator that gives memory back at once; on a GPU it is `torch.cuda.max_memory_allocated`.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from iaunet.device import training_precision
from iaunet.loss import bce_dice_loss
from iaunet.networks import NETWORKS, build_network
from iaunet.trainers.memory import ALLOWANCE, row_bytes, state_bytes

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_WAIT_POLICY": "PASSIVE"}
MIB = 2**20
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    """Print a Markdown table, and write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", help="default: float32 and that of training")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    usual = str(training_precision(torch.device(arguments.device)) or torch.float32).removeprefix("torch.")
    precisions = arguments.precision or list(dict.fromkeys(["float32", usual]))

    print("| network | rows | products | estimated live, MiB | measured, MiB | ratio | with allowance |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found = []
    for network in arguments.networks:
        for rows in arguments.rows:
            for precision in precisions:
                task = {name: getattr(arguments, name) for name in ("device", "width", "size")}
                task |= {"network": network, "rows": rows, "precision": precision}
                found.append(task | _measure_apart(task))
                _print(found[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _print(one: dict[str, Any]) -> None:
    live, measured = one["estimated"], one["measured"]
    cells = [one["network"], one["rows"], one["precision"], f"{live / MIB:.0f}", f"{measured / MIB:.0f}"]
    cells += [f"{live / measured:.3f}", f"{one['allowed'] / measured:.3f}"]
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def _measure_apart(task: dict[str, Any]) -> dict[str, float]:
    answer = subprocess.run(
        [sys.executable, __file__, "measure", json.dumps(task)],
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | ENVIRONMENT,
    ).stdout
    result: dict[str, float] = json.loads(answer)
    return result


def _measure(task: dict[str, Any]) -> dict[str, float]:
    """Bytes that the second step takes at its peak, weights and the optimiser's state included, and their estimate."""
    device, precision = torch.device(task["device"]), PRECISIONS[task["precision"]]
    size, rows = (task["size"], task["size"]), task["rows"]
    torch.manual_seed(0)
    network = build_network(task["network"], channels=3, labels=1, width=task["width"], depth=4)
    a_row, fixed = row_bytes(network, 3, size, device, precision), state_bytes(network) * 4 // 5  # no average here
    network = network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(network.parameters())

    def step(rows: int) -> None:
        images = torch.zeros(rows, 3, *size, device=device).contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            logits = network(images)
        bce_dice_loss(logits, torch.zeros_like(logits)).loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    step(2)  # libraries and threads take memory of their own when they are first used
    optimiser.zero_grad(set_to_none=True)
    lasting = 3 * fixed // 4  # weights and the optimiser's two moments lie there already
    before = _start_peak(device)
    step(rows)
    measured = _peak(device) - before + lasting
    return {
        "estimated": fixed + rows * a_row / ALLOWANCE,
        "allowed": fixed + rows * a_row,
        "measured": measured,
    }


def _start_peak(device: torch.device) -> int:
    """Forget the peak so far; gives the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    """Bytes that Linux counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(_measure(json.loads(sys.argv[2]))))
    else:
        main()
