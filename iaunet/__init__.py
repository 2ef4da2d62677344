"""The ground every stage stands on: value types, errors, workspace, image files, networks, losses, metrics.

The stages themselves are named here as well, resolved on use: importing iaunet imports none of them.
"""

from importlib import import_module
from typing import Any

STAGES = {
    "fingerprint_dataset": "iaunet.planners.fingerprint",
    "prepare_dataset": "iaunet.preprocessing.preparation",
    "train": "iaunet.trainers.training",
    "Predictor": "iaunet.inference.predictor",
    "predict_folder": "iaunet.inference.folder",
    "evaluate_folders": "iaunet.inference.evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in STAGES:
        raise AttributeError(f"module 'iaunet' has no attribute {name!r}")
    return getattr(import_module(STAGES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *STAGES])
