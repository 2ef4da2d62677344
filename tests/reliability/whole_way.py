"""The whole way in one process and those it starts, for tests that change what is around it.

    python whole_way.py DATASET WORKSPACE MASKS [--workers N] [--loaders N] [--then COMMAND ...]

Plans and preprocesses the folder DATASET for 32x32 pixels, trains a tiny network on two folds for an epoch each and
predicts the images of DATASET into MASKS. Then come further commands by name: find_best, report, export_model.
"""

import argparse
import json
import sys
from pathlib import Path

from iaunet.__main__ import main as iaunet


def main() -> int:
    """Run the commands; stop at the first that fails, with its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", type=Path)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("--workers", default="1")
    parser.add_argument("--loaders", default="0")
    parser.add_argument("--then", nargs="*", default=[])
    arguments = parser.parse_args()
    name, workspace = arguments.dataset.name, ["--workspace", str(arguments.workspace)]
    given = ["--folds", "2", "--groups", "none", "--workers", arguments.workers]
    plan = ["plan_and_preprocess", str(arguments.dataset), *workspace, *given]
    after = {
        "find_best": ["find_best", name],
        "report": ["report", name],
        "export_model": ["export_model", name, "-o", str(arguments.workspace / "model.zip")],
    }
    images = str(arguments.dataset / "images")
    commands = [
        plan,
        ["train", name, "cv", *workspace, "--workers", arguments.loaders, "--device", "cpu"],
        ["predict", "-i", images, "-o", str(arguments.masks), "-d", name, *workspace, "--device", "cpu"],
        *([*after[command], *workspace] for command in arguments.then),
    ]
    for command in commands:
        code = iaunet(command)
        if code:
            return code
        if command == plan:
            shrink(arguments.workspace / name / "plan.json")
            iaunet(plan)
    return 0


def shrink(path: Path) -> None:
    """Edit a plan by hand to what is trained in no time."""
    plan = json.loads(path.read_text(encoding="utf-8"))
    plan["input_size"] = [32, 32]
    plan["network"] = {"name": "unet", "width": 2, "depth": 3}
    plan["recipe"] |= {"epochs": 1, "batch_size": 4}
    path.write_text(json.dumps(plan), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
