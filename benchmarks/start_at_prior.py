"""Trains a fold twice, with the last bias at the share of foreground and at one half, and compares the curves.

python benchmarks/start_at_prior.py WORKSPACE DATASET [--epochs N], on a data set that was planned with a small --width.
"""

import argparse
import csv
import dataclasses
import shutil
import tempfile
from pathlib import Path

from iaunet.planners.plan import load_plan, save_plan
from iaunet.trainers.training import TrainingOptions, train
from iaunet.workspace import DatasetFolder


def main() -> None:
    """Print loss and validation Dice of both by epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    columns = {}
    for start in (True, False):
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary) / arguments.dataset
            ignored = shutil.ignore_patterns("runs", ".lock")
            shutil.copytree(arguments.workspace / arguments.dataset, copy, ignore=ignored)
            folder = DatasetFolder(copy)
            plan = load_plan(folder.plan_json)
            recipe = dataclasses.replace(plan.recipe, start_at_prior=start)
            save_plan(dataclasses.replace(plan, recipe=recipe), folder.plan_json)
            options = TrainingOptions(epochs=arguments.epochs, batch_size=8, lr=0.003, name="trial", workers=0)
            run = train(folder, "0", options)
            with run.fold("0").metrics_csv.open(encoding="utf-8") as file:
                columns["prior" if start else "half"] = list(csv.DictReader(file))
    print("| epoch | loss, prior | loss, half | Dice, prior | Dice, half |\n| --- | --- | --- | --- | --- |")
    for epoch, rows in enumerate(zip(columns["prior"], columns["half"], strict=True), start=1):
        numbers = [float(row[name]) for name in ("loss", "validation_dice") for row in rows]
        print(f"| {epoch} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")


if __name__ == "__main__":
    main()
