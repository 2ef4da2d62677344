"""Peak memory and time of spatial attention in blocks, beside its plain formula and that formula checkpointed.

    python benchmarks/spatial_attention.py [--sizes N ...] [--batch B ...] [--device auto|cpu|cuda] [--json FILE]

`blocks` is `iaunet.networks.attention.sigmoid_attention`; `plain` is alpha = sigmoid(q k^T / sqrt(C)) / M,
out = alpha v under autograd; `checkpoint` is the plain formula in `torch.utils.checkpoint`, which makes alpha again in
the backward pass. q, k and v are three tensors [B, C, N], M = N, each with a gradient.

Each measurement has a process of its own. Its first pass, forward and backward, gives the peak: all that is allocated
at once beside q, k and v (the output and its gradient, the three gradients, alpha and everything in between). On a CPU
that is VmHWM, set back before the pass, less VmRSS (Linux only), on CUDA `torch.cuda.max_memory_allocated`. The passes
after it give the time. The methods take turns, repetition by repetition, and the table shows medians. A method that
needs more memory than is free, by the size of its alphas, is left out and the table says so.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from iaunet.networks.attention import sigmoid_attention

METHODS = ("blocks", "plain", "checkpoint")
ALPHAS = 4  # the plain formula holds three matrices of the size of alpha at once; one more to spare
MIB = 2**20
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # else small kernels wait for each other where cores are shared
    "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed goes back to the system: the peak is that of live tensors
}


def main() -> None:
    """Run the benchmark, print a Markdown table and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 16384], metavar="N", help="positions")
    parser.add_argument("--features", type=int, default=128, metavar="C")
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 1], metavar="B")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--types", choices=["float32", "bfloat16"], nargs="+", help="bfloat16 is autocast")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="processes for each method")
    parser.add_argument("--passes", type=int, default=3, metavar="N", help="timed in each process")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    types = arguments.types or (["float32", "bfloat16"] if device == "cuda" else ["float32"])

    print("| B | N = M | type | method | peak MiB | of plain | s | of plain | peak MiB and s of each repetition |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows, load = [], [os.getloadavg()[0]]
    for batch in arguments.batch:
        for size in arguments.sizes:
            for kind in types:
                task = {"shape": [batch, arguments.features, size], "device": device, "type": kind}
                rows += _compare(task | {"passes": arguments.passes}, arguments.repetitions)
                load.append(os.getloadavg()[0])
    result = {
        "device": _device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": load,
        "largest_difference": _largest_differences(arguments.features, device),
        "rows": rows,
    }
    print(f"\n{result['device']}, {result['threads']} threads, load {min(load):.1f} to {max(load):.1f}")
    print("largest difference from float64, of the largest value or gradient:", result["largest_difference"])
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _compare(task: dict[str, Any], repetitions: int) -> list[dict[str, Any]]:
    """Measure all methods, in turns, and print a row for each."""
    measured: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for _ in range(repetitions):
        for method in METHODS:
            if method == "blocks" or _fits(task):
                measured[method].append(_measure_apart(task | {"method": method}))
    medians = {
        method: {key: statistics.median(one[key] for one in each) for key in each[0]}
        for method, each in measured.items()
        if each
    }
    rows = []
    for method in METHODS:
        row = {**task, "method": method, "repetitions": measured[method], "median": medians.get(method)}
        if method in medians and "plain" in medians:
            row["of_plain"] = {key: value / medians["plain"][key] for key, value in medians[method].items()}
        rows.append(row)
        _print(row)
    return rows


def _print(row: dict[str, Any]) -> None:
    batch, _, size = row["shape"]
    cells = [batch, size, row["type"], row["method"]]
    if row["median"] is None:
        cells += ["does not fit", "", "", "", ""]
    else:
        ratio = {key: f"{value:.2f}" for key, value in row.get("of_plain", {}).items()}
        each = ", ".join(f"{one['peak_mib']:.0f} {one['seconds']:.3g}" for one in row["repetitions"])
        cells += [f"{row['median']['peak_mib']:.0f}", ratio.get("peak_mib", "")]
        cells += [f"{row['median']['seconds']:.3g}", ratio.get("seconds", ""), each]
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def _fits(task: dict[str, Any]) -> bool:
    batch, _, size = task["shape"]
    if task["device"] == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return bool(ALPHAS * batch * size**2 * 4 < free)


def _measure_apart(task: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, __file__, "measure", json.dumps(task)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | ENVIRONMENT).stdout
    result: dict[str, float] = json.loads(answer)
    return result


def _measure(task: dict[str, Any]) -> dict[str, float]:
    """Peak memory over the inputs of one pass, in MiB, and the median seconds of the passes after it."""
    batch, features, _ = task["shape"]
    once = _pass(task | {"shape": [batch, features, 64]})
    once()  # libraries and threads take memory of their own when they are first used
    once = _pass(task)
    before = _start_peak(task["device"])
    once()
    peak = _peak(task["device"]) - before
    return {"peak_mib": peak / MIB, "seconds": statistics.median(_seconds(once, task) for _ in range(task["passes"]))}


def _pass(task: dict[str, Any]) -> Callable[[], tuple[Tensor, ...]]:
    """Inputs, and the function that sends them forward and backward once; it gives the output and the gradients."""
    torch.manual_seed(0)
    attend = {"blocks": _blocks, "plain": _plain, "checkpoint": _checkpoint}[task["method"]]
    dtype = getattr(torch, task["type"])
    shape: list[int] = task["shape"]
    inputs = [torch.randn(shape, device=task["device"]).requires_grad_() for _ in range(3)]

    def once() -> tuple[Tensor, ...]:
        with torch.autocast(task["device"], dtype, enabled=dtype == torch.bfloat16):
            out = attend(*inputs)
        return out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out))

    return once


def _blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sigmoid_attention(q, k, v, score_factor=q.shape[1] ** -0.5, sum_factor=1 / k.shape[2])


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    alpha = torch.sigmoid(k.mT @ q / q.shape[1] ** 0.5) / k.shape[2]
    return v @ alpha


def _checkpoint(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = checkpoint(_plain, q, k, v, use_reentrant=False)
    return out


def _seconds(once: Callable[[], object], task: dict[str, Any]) -> float:
    _wait(task["device"])
    start = time.perf_counter()
    once()
    _wait(task["device"])
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _start_peak(device: str) -> int:
    """Forget the peak so far; gives the bytes in use now."""
    if device == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    _wait(device)
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    """Bytes that Linux counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _largest_differences(features: int, device: str) -> dict[str, float]:
    """How far each method in float32 is from the plain formula in float64, over output and gradients."""
    shape = [2, features, 1500]
    task = {"shape": shape, "device": device, "type": "float32"}
    torch.manual_seed(0)
    exact = [torch.randn(shape, device=device).double().requires_grad_() for _ in range(3)]
    out = _plain(*exact)
    expected = [out, *torch.autograd.grad(out, exact, torch.ones_like(out))]
    return {
        method: max(
            ((one - true).abs().max() / true.abs().max()).item()
            for one, true in zip(_pass(task | {"method": method})(), expected, strict=True)
        )
        for method in METHODS
    }


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(_measure(json.loads(sys.argv[2]))))
    else:
        main()
