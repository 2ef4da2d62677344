"""The command ``iaunet_train``."""

import argparse
import contextlib
import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iaunet.console import ALL_DONE, command_parser, run_command, terminating_like_interrupt
from iaunet.networks import NETWORKS
from iaunet.trainers.metrics_log import LOGS

if TYPE_CHECKING:
    from iaunet.planners.plan import NetworkOption

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
        "--network", metavar="NAME", help=f"{', '.join(NETWORKS)}, or package.module:function (default: the plan's)"
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
    return parser


def parse_option(text: str) -> tuple[str, "NetworkOption"]:
    """An option of a network: its value is read as JSON (``256``, ``true``, ``null``), as a word if it is none.

    Raises:
        ArgumentTypeError: There is no ``=``.
    """
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no option: give KEY=VALUE")
    with contextlib.suppress(json.JSONDecodeError):
        read: NetworkOption | list[object] | dict[str, object] = json.loads(value, parse_constant=str)
        if not isinstance(read, list | dict):
            return key, read
    return key, value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from iaunet.workspace import find_dataset

    folder = find_dataset(arguments.dataset, arguments.workspace)

    from iaunet.trainers.training import TrainingOptions, train  # imports torch: after what fails quickly

    options = TrainingOptions(
        network=arguments.network,
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
        log=arguments.log,
    )
    with terminating_like_interrupt():
        run = train(folder, arguments.fold, options)
    names = shlex.quote(folder.name), shlex.quote(run.name)
    logger.info("next       iaunet_predict -i FOLDER -o FOLDER -d %s --run %s", *names)
    return ALL_DONE
