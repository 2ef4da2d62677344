"""The command ``iaunet_train``."""

import argparse
import dataclasses
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iaunet.console import ALL_DONE, command_parser, parse_option, run_command
from iaunet.engines.options import add_engine_options, read_engine_options
from iaunet.networks import NETWORKS
from iaunet.trainers.metrics_log import LOGS

if TYPE_CHECKING:
    from iaunet.trainers.training import TrainingOptions

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser(
        "iaunet_train",
        "Train a network on a planned data set. Run the same command again to go on with what was begun.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a name the workspace knows, or the raw data's folder")
    parser.add_argument("fold", metavar="FOLD", help="0, 1, ...; cv for every fold; all for one model on every case")
    parser.add_argument(
        "--network",
        action="append",
        metavar="NAME",
        help=f"{', '.join(NETWORKS)}, or package.module:function (default: the plan's); given several times, "
        "one run for each",
    )
    parser.add_argument(
        "--network_option",
        action="append",
        default=[],
        type=parse_option,
        metavar="KEY=VALUE",
        help="an option of the network, such as spatial_attention=scaled or max_keys=256; may be given several times",
    )
    parser.add_argument("--recipe", metavar="NAME", help="best or paper (default: the plan's)")
    parser.add_argument("--split", metavar="NAME|FILE", help="random, grouped, or a JSON file (default: the plan's)")
    parser.add_argument("--name", metavar="NAME", help="the run's name (default: NETWORK-RECIPE-SPLIT)")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs (default: the recipe's)")
    parser.add_argument("--hours", type=float, metavar="H", help="choose the epochs so that the command takes H hours")
    parser.add_argument("--lr", type=float, metavar="RATE", help="learning rate (default: the recipe's)")
    parser.add_argument("--batch_size", type=int, metavar="N", help="rows a step (default: the recipe's)")
    parser.add_argument("--width", type=int, metavar="N", help="channels of the first stage (default: the plan's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides all that is random")
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="memory of a training step (default: what a GPU has free, half a CPU's)",
    )
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="train each fold on N GPUs of this machine together (default: one)"
    )
    parser.add_argument(
        "--precision",
        choices=("float32",),
        help="the type of products; default: the fastest, half precision on GPUs, bfloat16 on CPUs with units for it "
        "(AMX)",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="start from the weights of a safetensors file")
    parser.add_argument("--workers", type=int, metavar="N", help="loading processes (default: chosen)")
    parser.add_argument(
        "--log",
        choices=LOGS,
        default="csv",
        help="where the numbers of each epoch go: csv, or csv and tensorboard (iaunet[tensorboard])",
    )
    parser.add_argument(
        "--val_only",
        action="store_true",
        help="predict and score the held-out cases again; with --name by the settings of that run",
    )
    parser.add_argument("--restart", action="store_true", help="put the old run aside and begin anew")
    add_engine_options(parser, part_of="folds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    tokens = sys.argv[1:] if argv is None else argv
    arguments = build_parser().parse_args(tokens)
    return run_command(lambda: _run(arguments, tokens), joins_ranks=True)


def _run(arguments: argparse.Namespace, tokens: Sequence[str]) -> int:
    from iaunet.allocation import keep_freed_memory
    from iaunet.trainers.distributed import joined, must_be_started, require_alone, start_ranks
    from iaunet.workspace import find_dataset

    if arguments.engine is not None:
        require_alone(arguments.gpus or 1)
    if must_be_started(os.environ, arguments.gpus):
        return start_ranks(arguments.gpus, arguments.device, [sys.executable, "-m", "iaunet", "train", *tokens])
    keep_freed_memory()
    with joined(os.environ, arguments.device) as ranks:
        folder = ranks.first(lambda: find_dataset(arguments.dataset, arguments.workspace))
        given = arguments.engine, arguments.engine_option, arguments.part
        engine, part = ranks.first(lambda: read_engine_options(*given, folder.root / "engine", arguments.device))

        from iaunet.trainers.units import train_networks  # imports torch: after what fails quickly

        choices = ranks.first(lambda: _choices(arguments))
        runs = train_networks(folder, arguments.fold, choices, engine, part, ranks)
    usable = " ".join(shlex.quote(run.name) for run in runs if run.finished_folds())
    if usable and arguments.fold == "cv":
        logger.info("next       iaunet_find_best %s (chooses and calibrates what predicts)", shlex.quote(folder.name))
    if usable:
        logger.info("next       iaunet_predict -i FOLDER -o FOLDER -d %s --run %s", shlex.quote(folder.name), usable)
    return ALL_DONE


def _choices(arguments: argparse.Namespace) -> "list[TrainingOptions]":
    """What is asked for, for each network."""
    from iaunet.trainers.training import TrainingOptions

    options = TrainingOptions(
        network_options=dict(arguments.network_option),
        recipe=arguments.recipe,
        split=arguments.split,
        name=arguments.name,
        epochs=arguments.epochs,
        hours=arguments.hours,
        lr=arguments.lr,
        batch_size=arguments.batch_size,
        width=arguments.width,
        seed=arguments.seed,
        memory_gb=arguments.memory,
        device=arguments.device,
        weights=arguments.weights,
        val_only=arguments.val_only,
        restart=arguments.restart,
        workers=arguments.workers,
        precision=arguments.precision,
        log=arguments.log,
    )
    return [dataclasses.replace(options, network=network) for network in arguments.network or [None]]
