"""Trains the paper's networks and makes its tables, as far as a budget of time goes; results add up over sittings.

python benchmarks/paper_tables.py DATA --results FOLDER [--minutes M] [--epochs N] [--networks ...] [--recipes ...]
[--splits ...] [--folds ...], with DATA a folder of raw data or a data set that the workspace knows.

The unit is one (network, recipe, split, fold), trained and scored at native size by ``iaunet_train``. When it is
finished, all but weights, checkpoint and logits is copied to FOLDER/RUN/fold_K with ``unit.json`` that says how it was
made; a unit found there is not trained again, so FOLDER may be carried from one borrowed machine to the next. Another
unit is begun only if the longest one so far would still fit; one that takes longer than the rest of the time is
stopped, keeps its checkpoint in the workspace, and goes on in the next sitting there. ``--ablation`` trains variants of
the attention network on fold 0 instead of the networks. At the end ``iaunet_compare`` makes tables of what there is.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iaunet.inference.published import TITLES
from iaunet.inference.runs import FoldFolder, Run
from iaunet.storage import make_folder, read_json, write_json
from iaunet.trainers.training import settings
from iaunet.workspace import DatasetFolder, is_path, open_workspace

VARIANTS = {
    "paper5": ("variant=paper5",),
    "sa_scaled": ("spatial_attention=scaled",),
    "sa_scaled_count": ("spatial_attention=scaled", "sigmoid_scale=count"),
    "sa_softmax": ("spatial_attention=softmax",),
    "sa_channel": ("spatial_attention=channel",),
    "sa_literal_paper5": ("spatial_attention=literal", "variant=paper5"),
    "keys_256": ("max_keys=256",),
    "keys_1024": ("max_keys=1024",),
    "keys_all": ("max_keys=null",),
    "ca_before_sa": ("attention_order=channel_first",),
    "sfa_last": ("scale_attention=last",),
    "sfa_every": ("scale_attention=every",),
    "no_sfa": ("scale_attention=none",),
    "no_sa": ("spatial_attention=none",),
    "no_ca": ("channel_attention=false",),
    "no_attention": ("scale_attention=none", "spatial_attention=none", "channel_attention=false"),
}
"""The ablation: options of the attention network. `literal` at full resolution has more positions than it can hold."""

SECONDS_TO_SAVE = 60
"""Left to a unit that is stopped."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One training: ``options`` are those of the network, ``extra`` further options of ``iaunet_train``."""

    network: str
    recipe: str
    split: str
    fold: int
    variant: str = ""
    options: tuple[str, ...] = ()
    extra: tuple[str, ...] = field(default=())
    tag: str = ""

    @property
    def run(self) -> str:
        """The name of its run, the same for all folds."""
        return "-".join(part for part in (self.network, self.variant, self.recipe, self.split, self.tag) if part)

    def command(self, dataset: str, workspace: Path) -> list[str]:
        """What trains and scores it."""
        options = itertools.chain.from_iterable(("--network_option", option) for option in self.options)
        return [
            *(sys.executable, "-m", "iaunet", "train", dataset, str(self.fold), "--workspace", str(workspace)),
            *("--network", self.network, "--recipe", self.recipe, "--split", self.split, "--name", self.run),
            *options,
            *self.extra,
        ]


def main() -> int:
    """Train what is missing, as far as time goes, and make the tables."""
    arguments = parse_arguments()
    begun = time.monotonic()
    workspace = open_workspace(arguments.workspace, os.environ)
    folder = plan_if_new(arguments.data, arguments.plan_options, workspace.root)
    longest = 0.0
    for unit in list_units(arguments):
        kept = FoldFolder(arguments.results / unit.run / f"fold_{unit.fold}")
        if (kept.root / "unit.json").exists():
            print(f"done       {unit.run}, fold {unit.fold}", flush=True)
            continue
        left = arguments.minutes * 60 - (time.monotonic() - begun) - SECONDS_TO_SAVE
        if left < longest or left <= 0:
            print(f"no time    {unit.run}, fold {unit.fold}: {max(left, 0):.0f} s are left", flush=True)
            continue
        start = time.monotonic()
        command = unit.command(folder.name, workspace.root)
        if not train(command, left):
            print(f"unfinished {unit.run}, fold {unit.fold}", flush=True)
            continue
        longest = max(longest, time.monotonic() - start)
        keep(Run(folder.runs / unit.run), unit, arguments, command, time.monotonic() - start)
        print(f"finished   {unit.run}, fold {unit.fold}: {time.monotonic() - start:.0f} s", flush=True)
    return compare(folder.name, workspace.root, arguments)


def parse_arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder with raw data, or the name of a planned data set")
    parser.add_argument("--results", type=Path, required=True, help="where finished units are kept")
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--plan_options", default="", help="options of iaunet_plan_and_preprocess, as one text")
    parser.add_argument("--networks", nargs="+", default=[*TITLES], metavar="NAME")
    parser.add_argument("--ablation", nargs="*", metavar="VARIANT", help=f"all, or some of {', '.join(VARIANTS)}")
    parser.add_argument("--recipes", nargs="+", default=["paper", "best"], metavar="NAME")
    parser.add_argument("--splits", nargs="+", default=["random", "grouped"], metavar="NAME")
    parser.add_argument("--folds", nargs="+", type=int, default=[0], metavar="FOLD")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for everything (default: no limit)")
    parser.add_argument("--epochs", type=int, help="the same for all (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train_options", default="", help="further options of iaunet_train, as one text")
    parser.add_argument("--commit", default="", help="the state of the sources (default: git is asked)")
    return parser.parse_args()


def list_units(arguments: argparse.Namespace) -> Iterator[Unit]:
    """The units in the order in which they are to be trained."""
    extra = ["--seed", str(arguments.seed), *arguments.train_options.split()]
    tags = [f"s{arguments.seed}"] if arguments.seed else []
    if arguments.epochs:
        extra += ["--epochs", str(arguments.epochs)]
        tags.append(f"e{arguments.epochs}")
    if arguments.ablation is not None:
        chosen = {"": (), **{name: VARIANTS[name] for name in arguments.ablation or VARIANTS}}
        networks = [("iaunet", name, options) for name, options in chosen.items()]
        folds = [0]
    else:
        networks = [(name, "", ()) for name in arguments.networks]
        folds = arguments.folds
    for split, recipe, fold in itertools.product(arguments.splits, arguments.recipes, folds):
        for network, variant, options in networks:
            yield Unit(
                network=network,
                recipe=recipe,
                split=split,
                fold=fold,
                variant=variant,
                options=options,
                extra=tuple(extra),
                tag="-".join(tags),
            )


def plan_if_new(data: str, options: str, workspace: Path) -> DatasetFolder:
    """The data set's folder in the workspace, planned and preprocessed if it is a folder of raw data."""
    found = open_workspace(workspace, os.environ)
    if is_path(data):
        command = [sys.executable, "-m", "iaunet", "plan_and_preprocess", data, "--workspace", str(workspace)]
        subprocess.run([*command, *options.split()], check=True)
    return found.find(data)


def train(command: Sequence[str], seconds: float) -> bool:
    """Whether a training was finished within so many seconds; if not it is stopped and keeps its checkpoint."""
    process = subprocess.Popen(command)
    try:
        return process.wait(None if seconds == float("inf") else seconds) == 0
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            process.kill()
        return False


def keep(run: Run, unit: Unit, arguments: argparse.Namespace, command: Sequence[str], seconds: float) -> None:
    """Copy a finished unit to the results, all but weights, checkpoint and logits, and say how it was made.

    Raises:
        SystemExit: The results hold other folds of this run that were trained with other settings.
    """
    kept = Run(arguments.results / run.name)
    if kept.run_json.exists() and settings(kept.record) != settings(run.record):
        raise SystemExit(f"{kept.root} holds results of other settings: give another folder for --results")
    fold, target = run.fold(str(unit.fold)), kept.fold(str(unit.fold))
    shutil.rmtree(target.root, ignore_errors=True)
    make_folder(kept.root)
    shutil.copyfile(run.run_json, kept.run_json)
    shutil.copytree(fold.root, target.root, ignore=shutil.ignore_patterns("*.safetensors", "*.pt", "logits", ".*"))
    record = run.record
    facts = {
        "network": unit.network,
        "options": list(unit.options),
        "recipe": unit.recipe,
        "split": unit.split,
        "fold": unit.fold,
        "epochs": record.epochs or record.plan.recipe.epochs,
        "seed": record.seed,
        "device": record.device,
        "commit": arguments.commit or ask_git(),
        "command": " ".join(["iaunet_train", *command[4:6], *command[8:]]),  # without where the workspace lies
        "seconds": round(seconds, 1),
    }
    write_json(target.root / "unit.json", facts)  # last: it makes the unit count


def ask_git() -> str:
    """The commit of the sources, with a word if they were changed since; ``unknown`` without git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def compare(dataset: str, workspace: Path, arguments: argparse.Namespace) -> int:
    """Make tables and figures of all results, and a list of the units; 1 if there are none."""
    units = [read_json(path, SystemExit, "") for path in sorted(arguments.results.glob("*/fold_*/unit.json"))]
    if not units:
        print("no unit is finished")
        return 1
    tables = arguments.results / "tables"
    make_folder(tables)
    (tables / "units.json").write_text(json.dumps(units, indent=1) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "iaunet", "compare", dataset, "--workspace", str(workspace)]
    return subprocess.run([*command, "--results", str(arguments.results), "-o", str(tables)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
