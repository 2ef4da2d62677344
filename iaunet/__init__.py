"""The ground every stage stands on: value types, errors, workspace, image files, networks, losses, metrics.

The stages themselves are named here as well, resolved on use: importing iaunet imports none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iaunet.errors import IaunetError as IaunetError
    from iaunet.inference.evaluation import evaluate_folders as evaluate
    from iaunet.inference.find_best import find_best as find_best
    from iaunet.inference.folder import predict_folder as predict
    from iaunet.inference.model_export import export_model as export_model
    from iaunet.inference.model_import import import_model as import_model
    from iaunet.inference.output import FolderOptions as FolderOptions
    from iaunet.inference.predictor import Predictor as Predictor
    from iaunet.planners.fingerprint import fingerprint_dataset as fingerprint_dataset
    from iaunet.planners.planner import plan_dataset as plan
    from iaunet.preprocessing.preparation import Preparation as Preparation
    from iaunet.preprocessing.preparation import prepare as prepare
    from iaunet.preprocessing.preprocess import preprocess as preprocess
    from iaunet.trainers.training import TrainingOptions as TrainingOptions
    from iaunet.trainers.training import train as train
    from iaunet.workspace import find_dataset as find_dataset

__all__ = [
    "FolderOptions",
    "IaunetError",
    "Predictor",
    "Preparation",
    "TrainingOptions",
    "evaluate",
    "export_model",
    "find_best",
    "find_dataset",
    "fingerprint_dataset",
    "import_model",
    "plan",
    "predict",
    "prepare",
    "preprocess",
    "train",
]  # as type checkers want it: literal

STAGES = {
    "find_dataset": "iaunet.workspace:find_dataset",
    "prepare": "iaunet.preprocessing.preparation:prepare",
    "Preparation": "iaunet.preprocessing.preparation:Preparation",
    "fingerprint_dataset": "iaunet.planners.fingerprint:fingerprint_dataset",
    "plan": "iaunet.planners.planner:plan_dataset",
    "preprocess": "iaunet.preprocessing.preprocess:preprocess",
    "train": "iaunet.trainers.training:train",
    "TrainingOptions": "iaunet.trainers.training:TrainingOptions",
    "find_best": "iaunet.inference.find_best:find_best",
    "Predictor": "iaunet.inference.predictor:Predictor",
    "predict": "iaunet.inference.folder:predict_folder",
    "FolderOptions": "iaunet.inference.output:FolderOptions",
    "evaluate": "iaunet.inference.evaluation:evaluate_folders",
    "export_model": "iaunet.inference.model_export:export_model",
    "import_model": "iaunet.inference.model_import:import_model",
    "IaunetError": "iaunet.errors:IaunetError",
}
"""The names of docs/python.md, and where they are defined."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("iaunet")
    if name not in STAGES:
        raise AttributeError(f"module 'iaunet' has no attribute {name!r}")
    module, _, attribute = STAGES[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *STAGES])
