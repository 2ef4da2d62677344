"""The whole way on a small generated dataset, through the very functions the commands call."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from iaunet.discovery import list_images
from iaunet.errors import WorkspaceError
from iaunet.files import read_image, read_mask, write_png
from iaunet.inference.evaluation import Evaluation, evaluate_folders
from iaunet.inference.output import FolderOptions
from iaunet.inference.overlay import Picture, contact_sheet, draw_overlay
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run
from iaunet.inference.scores import format_table
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.plan import NetworkPlan
from iaunet.planners.planner import AutoPlanner
from iaunet.planners.recipes import Augmentation, Recipe
from iaunet.planners.rules import Choice, InputMode
from iaunet.preprocessing.preparation import Preparation, locate_dataset, prepare_dataset
from iaunet.preprocessing.summary import describe
from iaunet.trainers.demo_data import write_demo_dataset
from iaunet.trainers.training import TrainingOptions, train
from iaunet.workspace import LOCK, DatasetFolder, Workspace, locked

logger = logging.getLogger(__name__)

DATASET = "demo"
FOLDS = ("0", "1")
MARKER = ".iaunet-demo"


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """``output`` gets everything; ``images`` to train on; ``epochs`` of each of the two folds."""

    output: Path
    images: int
    epochs: int
    workers: int


class DemoPlanner(AutoPlanner):
    """Decides for minutes on a laptop's CPU: a narrow network and a short, gentle training."""

    name = "demo"

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def choose_input_size(self) -> tuple[int, int]:
        """A quarter of the usual pixels: four times as many steps in the same minutes."""
        return 128, 128

    def choose_network(self, width: int | None) -> Choice[NetworkPlan]:
        """The attention network with 8 channels in its first stage."""
        return Choice(super().choose_network(8).value, "the attention network, narrow for minutes on a CPU")

    def choose_recipe(self, fingerprint: Fingerprint, mode: InputMode) -> Choice[Recipe]:
        """Few epochs with small batches, so that there are enough steps."""
        recipe = Recipe(
            name="demo",
            lr=4e-3,
            schedule="cosine",
            average_weights=True,
            batch_size=4,
            epochs=self._epochs,
            augmentation=Augmentation(brightness_probability=0.5),
        )
        return Choice(recipe, f"{self._epochs} epochs of small batches, for minutes on a CPU")


def run_demo(options: DemoOptions) -> Evaluation:
    """Generate images, plan, preprocess, train two folds, predict unseen images with both, and score that.

    Returns:
        The evaluation on the unseen images.

    Raises:
        WorkspaceError: The output folder holds something that no demo made, or another demo is running there.
    """
    start = time.perf_counter()
    output = options.output.resolve()
    _require_own(output)
    with locked(output, "running a demo"):
        return _run(options, output, start)


def _run(options: DemoOptions, output: Path, start: float) -> Evaluation:
    _clear(output)
    logger.info("step 1 of 5: generate %d images to learn from and 12 unseen ones in %s", options.images, output)
    write_demo_dataset(output, n_train=options.images)
    logger.info("step 2 of 5: iaunet_plan_and_preprocess")
    folder = _prepare(output, options)
    for step, fold in enumerate(FOLDS, start=3):
        logger.info("step %d of 5: iaunet_train %s %s", step, DATASET, fold)
        run = train(folder, fold, TrainingOptions())
    logger.info("step 5 of 5: iaunet_predict with both folds, then iaunet_evaluate")
    evaluation = _predict_unseen(output, run)
    dice = evaluation.summary.labels["foreground"].all_cases["dice"].mean
    seconds = time.perf_counter() - start
    logger.info("Dice %.3f on %d unseen images, after %.0f s", dice, len(evaluation.scores), seconds)
    logger.info("overlays (green: predicted, white: true where they differ): %s", output / "overlays.png")
    return evaluation


def _prepare(output: Path, options: DemoOptions) -> DatasetFolder:
    workspace = Workspace(output / "workspace")
    folder, source = locate_dataset(workspace, str(output / "dataset"), {}, DATASET)
    wish = Preparation(planner=DemoPlanner(options.epochs), workers=options.workers)
    for line in describe(prepare_dataset(folder, source, wish)):
        logger.info("%s", line)
    return folder


def _predict_unseen(output: Path, run: Run) -> Evaluation:
    predictor = Predictor.from_runs([run], FOLDS)
    masks = output / "predicted_masks"
    predictor.predict_folder(output / "new_images", masks, FolderOptions(overlay=True))
    evaluation = evaluate_folders(masks, output / "new_masks", groups=None)
    for line in format_table(evaluation.summary):
        logger.info("%s", line)
    write_png(output / "overlays.png", _sheet(output))
    return evaluation


def _require_own(output: Path) -> None:
    """Refuse a folder that holds something and is not of an earlier demo."""
    if output.is_file():
        raise WorkspaceError(f"{output} is a file: give a folder with --output")
    if output.exists() and {path.name for path in output.iterdir()} - {LOCK} and not (output / MARKER).exists():
        raise WorkspaceError(f"{output} is not empty and no demo made it: give another folder with --output")


def _clear(output: Path) -> None:
    """Empty the folder but for what marks it as a demo's."""
    (output / MARKER).touch()
    for path in output.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (MARKER, LOCK):
            path.unlink()


def _sheet(output: Path) -> Picture:
    """The unseen images with predicted and true contours."""
    pictures = []
    for path in list_images(output / "new_images"):
        mask = read_mask(output / "predicted_masks" / f"{path.stem}.png") > 0
        truth = read_mask(output / "new_masks" / f"{path.stem}.png") > 0
        pictures.append(draw_overlay(read_image(path).pixels, mask.astype("uint8"), truth.astype("uint8")))
    return contact_sheet(pictures, columns=4)
