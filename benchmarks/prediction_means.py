"""Weighs the means of making a network predict faster on a CPU: each beside float32 as prediction runs it, in turns.

    python benchmarks/prediction_means.py [--networks NAME:WIDTH ...] [--images N] [--compile]

Images lie in memory, and as many networks run side by side as prediction lets. *First* is the seconds until the first
image is done, compiling included. *Apart* is the largest difference of a probability from that in float32, of a network
with the weights it begins with.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from measuring import Report, Row, in_turns, ratios, spread, timed
from torch import Tensor

from iaunet.allocation import keep_freed_memory
from iaunet.inference.ensemble import Ensemble
from iaunet.inference.lanes import in_lanes, lanes_of
from iaunet.networks import build_network

SIDE = 256


def main() -> None:
    """Print a Markdown table and write the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["unet:8", "unet:32", "iaunet:32"], metavar="NAME:WIDTH")
    parser.add_argument("--images", type=int, default=16, metavar="N")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    keep_freed_memory()
    threads = torch.get_num_threads()
    settings: Row = {"data": "generated", "images": arguments.images, "rounds": arguments.rounds, "threads": threads}
    report = Report("prediction_means", settings)
    for network in arguments.networks:
        _compare(report, network, arguments.images, arguments.rounds, arguments.compile)
    report.finish(arguments.json)


def _compare(report: Report, name: str, n: int, rounds: int, compiles: bool) -> None:
    """Add a row for each of the means."""
    kind, _, width = name.partition(":")
    torch.manual_seed(0)
    network = build_network(kind, channels=3, labels=1, width=int(width), depth=5)
    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.compiler.reset()  # else what was compiled before counts, and more is not compiled
    means = {"float32": Ensemble([network]), "bfloat16": Ensemble([network], precision="bfloat16")}
    if compiles:
        means["compiled"] = Ensemble([torch.compile(network)])  # type: ignore[list-item]
    images = [torch.randn(1, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last) for _ in range(n)]
    first, said = {}, {}
    for each, ensemble in means.items():
        start = time.perf_counter()
        said[each] = _run(ensemble, images[0])
        first[each] = time.perf_counter() - start

    def predict(ensemble: Ensemble) -> None:
        for _ in in_lanes(lambda image: _run(ensemble, image), images, lanes_of(torch.get_num_threads())):
            pass

    taken = in_turns({each: timed(lambda of=ensemble: predict(of)) for each, ensemble in means.items()}, rounds)
    for each, seconds in taken.items():
        row: Row = {"network": kind, "width": int(width), "means": each}
        row["ms an image"] = 1000 * statistics.median(seconds) / n
        row["of float32"] = spread(ratios(seconds, taken["float32"]))
        row["first, s"] = first[each]
        row["apart"] = float((said[each] - said["float32"]).abs().max())
        report.add("prediction_means", row)


@torch.inference_mode()
def _run(ensemble: Ensemble, image: Tensor) -> Tensor:
    said: Tensor = ensemble(image)
    return said


if __name__ == "__main__":
    main()
