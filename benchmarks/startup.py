"""Times how soon each command answers: its help, the first training step, the first predicted mask.

    python benchmarks/startup.py [--data FOLDER] [--nnunet ENV]

Each is a whole process, the commands taking turns, and stands beside a bare interpreter's start. The first step is that
of `iaunet_train` on a planned data set, from the start of the process to the end of the step, with the network, width
and batch of the plan or as given; the first mask is that of `iaunet_predict` for one image, written and recorded.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from measuring import (
    Command,
    Report,
    benchmark_parser,
    copy_pairs,
    find_pairs,
    iaunet,
    in_turns,
    run_measured,
    settings_of,
    sizes_of,
    spaced,
    spread,
    timed,
)

from iaunet.__main__ import COMMANDS

NNUNET = ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict")


def main() -> None:
    """Run the benchmark; print Markdown and write JSON."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=["iaunet:8"], metavar="NAME:WIDTH", help="for the first step")
    arguments = parser.parse_args()
    report = Report("startup", settings_of(arguments))
    _take_help(report, arguments.rounds, arguments.nnunet)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        size = max(sizes_of(arguments))
        pairs = spaced(find_pairs(arguments.data, work, size), size)
        bench = _Bench(pairs, work)
        for network in arguments.networks:
            bench.take_first_step(report, network, arguments.rounds)
        bench.take_first_mask(report, arguments.rounds)
    report.finish(arguments.json)


def _take_help(report: Report, rounds: int, nnunet: Path | None) -> None:
    commands: dict[str, Command] = {"python -c pass": [sys.executable, "-c", "pass"]}
    commands |= {f"iaunet_{name} --help": iaunet(name, "--help") for name in COMMANDS}
    if nnunet is not None:
        commands |= {f"{name} --help": [nnunet / "bin" / name, "--help"] for name in NNUNET}
    methods = {name: timed(partial(run_measured, command)) for name, command in commands.items()}
    seconds = in_turns(methods, rounds + 1)  # the first round reads files that the others find in memory
    bare = spread(seconds["python -c pass"][1:])["median"]
    for name, taken in seconds.items():
        median = spread(taken[1:])["median"]
        report.add("help", {"command": name, "s": spread(taken[1:]), "times a bare Python": median / bare})


class _Bench:
    """A planned data set, and what is begun on it."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]], work: Path) -> None:
        self.pairs = pairs
        self.work = work
        self.workspace: Command = ["--workspace", work / "workspace"]
        folder = copy_pairs(pairs, work / "images")
        run_measured(iaunet("plan_and_preprocess", folder, *self.workspace, "--dataset_name", "bench"))

    def take_first_step(self, report: Report, network: str, rounds: int) -> None:
        """Add the row of the first training step."""
        kind, _, width = network.partition(":")
        seconds = [self._first_step(kind, width, f"{kind}_{width}_{number}") for number in range(rounds + 1)]
        told = {"what": f"first step of iaunet_train, {kind} of width {width}", "images": len(self.pairs)}
        report.add("first", told | {"s": spread(seconds[1:])})

    def take_first_mask(self, report: Report, rounds: int) -> None:
        """Add the row of the first mask, predicted by the narrowest network, so that its own time hardly counts."""
        small = ["--network", "unet", "--width", "1", "--epochs", "1", "--batch_size", "4", "--workers", "0"]
        run_measured(iaunet("train", "bench", "0", *self.workspace, "--name", "predicts", *small))
        seconds = [self._first_mask(f"round_{number}") for number in range(rounds + 1)]
        report.add("first", {"what": "first mask of iaunet_predict", "images": 1, "s": spread(seconds[1:])})

    def _first_step(self, network: str, width: str, name: str) -> float:
        """Seconds from the start of a process that trains to the end of its first step, where it is ended."""
        start = time.time()
        options = ["--network", network, "--width", width, "--name", name]
        command: Command = [sys.executable, __file__, "first_step", "bench", "0", *self.workspace, *options]
        return float(run_measured(command).output.split()[-1]) - start

    def _first_mask(self, name: str) -> float:
        """Seconds of the whole command for one image."""
        where: Command = ["-i", self.pairs[0][0], "-o", self.work / "masks" / name, "-d", "bench", "--run", "predicts"]
        return run_measured(iaunet("predict", *where, "--no_mirroring", *self.workspace)).seconds


def train_one_step(options: list[str]) -> None:
    """Run ``iaunet_train`` up to the end of its first step, print the time and end at once."""
    from iaunet.trainers.command import main as train
    from iaunet.trainers.trainer import Trainer

    step = Trainer.train_step

    def only_step(*arguments: object) -> None:
        step(*arguments)  # type: ignore[arg-type]
        print(time.time(), flush=True)
        os._exit(0)  # loading processes end with this one

    Trainer.train_step = only_step  # type: ignore[assignment,method-assign]
    train(options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["first_step"]:
        train_one_step(sys.argv[2:])
    else:
        main()
