"""Trains the paper's networks and makes its tables, as far as a budget of time goes; results add up over calls.

python benchmarks/paper_tables.py DATA --results FOLDER [--minutes M] [--epochs N] [--networks ...] [--recipes ...]
[--splits ...] [--folds ...], with DATA a folder of raw data or a data set that the workspace knows.

The unit is one (network, recipe, split, fold), trained and scored at native size by ``iaunet_train``. When it is
finished, all but weights, checkpoint and logits is copied to FOLDER/RUN/fold_K with ``unit.json`` that says how it was
made; a unit found there is not trained again, so FOLDER may be carried from one machine to the next. Another
unit is begun only if the longest one so far would still fit; one that takes longer than the rest of the time is
stopped, keeps its checkpoint in the workspace, and goes on in the next call there. ``--ablation`` trains variants of
the attention network on fold 0 instead of the networks. At the end ``iaunet_compare`` makes tables of what there is.
"""

import argparse
import csv
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iaunet.console import terminating_like_interrupt
from iaunet.errors import IaunetError, PredictionError, WorkspaceError
from iaunet.inference.published import TITLES
from iaunet.inference.runs import FoldFolder, Run
from iaunet.storage import TEMPORARY_SUFFIX, make_folder, read_json, write_json
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

UNIT = "unit.json"


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

    @property
    def settings(self) -> list[str]:
        """The options that its training depends on."""
        options = itertools.chain.from_iterable(("--network_option", option) for option in self.options)
        named = ("--network", self.network, "--recipe", self.recipe, "--split", self.split, "--name", self.run)
        return [*named, *options, *self.extra]

    def command(self, dataset: str, workspace: Path) -> list[str]:
        """What trains and scores it."""
        start = [sys.executable, "-m", "iaunet", "train", dataset, str(self.fold), "--workspace", str(workspace)]
        return [*start, *self.settings]

    def kept(self, results: Path) -> Path:
        """The file that says that it is finished."""
        return results / self.run / f"fold_{self.fold}" / UNIT


def main() -> int:
    """Train what is missing, as far as time goes, and make the tables; 1 if something failed, 130 if stopped."""
    arguments = parse_arguments()
    try:
        with terminating_like_interrupt():
            return run(arguments)
    except (IaunetError, subprocess.CalledProcessError) as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: run the same command again to go on", file=sys.stderr)
        return 130


def run(arguments: argparse.Namespace) -> int:
    """Do all units for which there is time."""
    begun = time.monotonic()
    workspace = open_workspace(arguments.workspace, os.environ)
    units = list(list_units(arguments))
    for unit in units:
        require_same(arguments.results, unit)
    folder = plan_if_new(arguments.data, arguments.plan_options, workspace.root)
    longest, n_failed = 0.0, 0
    for unit in units:
        name = f"{unit.run}, fold {unit.fold}"
        if unit.kept(arguments.results).exists():
            print(f"done       {name}", flush=True)
            continue
        left = arguments.minutes * 60 - (time.monotonic() - begun) - SECONDS_TO_SAVE
        if left < longest or left <= 0:
            print(f"no time    {name}: {max(left, 0):.0f} s are left", flush=True)
            continue
        start = time.monotonic()
        code = train(unit.command(folder.name, workspace.root), left)
        if code is None:
            print(f"unfinished {name}", flush=True)
        elif code:
            n_failed += 1
            print(f"failed     {name}", flush=True)
        else:
            longest = max(longest, time.monotonic() - start)
            keep(Run(folder.runs / unit.run), unit, folder.name, arguments)
            print(f"finished   {name}: {time.monotonic() - start:.0f} s", flush=True)
    return compare(folder.name, workspace.root, arguments) or int(n_failed > 0)


def parse_arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder with raw data, or the name of a planned data set")
    parser.add_argument("--results", type=Path, required=True, help="where finished units are kept")
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--plan_options", default="", help="options of iaunet_plan_and_preprocess, as one text")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="default: the paper's six")
    parser.add_argument("--ablation", nargs="*", metavar="VARIANT", help=f"all, or some of {', '.join(VARIANTS)}")
    parser.add_argument("--recipes", nargs="+", default=["paper", "best"], metavar="NAME")
    parser.add_argument("--splits", nargs="+", default=["random", "grouped"], metavar="NAME")
    parser.add_argument("--folds", nargs="+", type=int, metavar="FOLD", help="default: 0")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for everything (default: no limit)")
    parser.add_argument("--epochs", type=int, help="the same for all (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train_options", default="", help="further options of iaunet_train, as one text")
    parser.add_argument("--commit", default="", help="the state of the sources (default: git is asked)")
    return parser.parse_args()


def list_units(arguments: argparse.Namespace) -> Iterator[Unit]:
    """The units in the order in which they are to be trained."""
    extra = ["--seed", str(arguments.seed), *shlex.split(arguments.train_options)]
    tags = [f"s{arguments.seed}"] if arguments.seed else []
    if arguments.epochs:
        extra += ["--epochs", str(arguments.epochs)]
        tags.append(f"e{arguments.epochs}")
    if arguments.ablation is not None:
        if arguments.networks or arguments.folds not in (None, [0]):
            raise PredictionError("--ablation trains variants of iaunet on fold 0: leave out --networks and --folds")
        unknown = [name for name in arguments.ablation if name not in VARIANTS]
        if unknown:
            raise PredictionError(f"variant {unknown[0]!r} is not known: choose among {', '.join(VARIANTS)}")
        chosen = {"": (), **{name: VARIANTS[name] for name in arguments.ablation or VARIANTS}}
        networks = [("iaunet", name, options) for name, options in chosen.items()]
        folds = [0]
    else:
        networks = [(name, "", ()) for name in arguments.networks or TITLES]
        folds = arguments.folds or [0]
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
        subprocess.run([*command, *shlex.split(options)], check=True)
    return found.find(data)


def train(command: Sequence[str], seconds: float) -> int | None:
    """The exit code of a training; None if it took longer than so many seconds: it was stopped, its checkpoint kept."""
    process = subprocess.Popen(command)
    try:
        return process.wait(None if seconds == float("inf") else seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(SECONDS_TO_SAVE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def require_same(results: Path, unit: Unit) -> None:
    """Refuse to add to results of a run that was trained otherwise.

    Raises:
        PredictionError: A fold of it was.
    """
    for path in (results / unit.run).glob(f"fold_*/{UNIT}"):
        found = read_json(path, PredictionError, "remove its folder").get("settings", ["unknown"])
        if found != unit.settings:
            raise PredictionError(
                f"{path.parent} was trained with the settings {' '.join(found)}: give these, or another folder for "
                "--results"
            )


def keep(run: Run, unit: Unit, dataset: str, arguments: argparse.Namespace) -> None:
    """Copy a finished unit to the results, whole or not at all, and say how it was made.

    Raises:
        WorkspaceError: The results cannot be written.
        PredictionError: They hold folds of this run of another plan or split.
    """
    kept = Run(arguments.results / run.name)
    if kept.run_json.exists() and kept.record.settings != run.record.settings:
        raise PredictionError(f"{kept.root} holds results of another plan or split: give another folder for --results")
    record, fold = run.record, run.fold(str(unit.fold))
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
        "command": " ".join(["iaunet_train", dataset, str(unit.fold), *unit.settings]),
        "settings": unit.settings,
        "seconds": round(training_seconds(fold), 1),
    }
    target = kept.fold(str(unit.fold)).root
    partial = target.with_name(f".{target.name}{TEMPORARY_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        make_folder(kept.root)
        shutil.copytree(fold.root, partial, ignore=shutil.ignore_patterns("*.safetensors", "*.pt", "logits", ".*"))
        write_json(partial / UNIT, facts)
        kept.write_record(record)
        shutil.rmtree(target, ignore_errors=True)  # what does not count, without unit.json
        partial.rename(target)
    except OSError as fault:  # shutil.Error is one
        raise WorkspaceError(
            f"{kept.root} cannot be written: free some space or mend its permissions, and run the same command again"
        ) from fault
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def training_seconds(fold: FoldFolder) -> float:
    """What the steps of a fold took, over all calls."""
    with fold.metrics_csv.open(encoding="utf-8", newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))


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
    paths = sorted(arguments.results.glob(f"*/fold_*/{UNIT}"))
    units = [read_json(path, PredictionError, "remove its folder") for path in paths]
    if not units:
        print("no unit is finished")
        return 1
    tables = arguments.results / "tables"
    make_folder(tables)
    write_json(tables / "units.json", units)
    command = [sys.executable, "-m", "iaunet", "compare", dataset, "--workspace", str(workspace)]
    return subprocess.run([*command, "--results", str(arguments.results), "-o", str(tables)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
