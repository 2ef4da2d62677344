"""Masks for a folder of images: names, files, what was done before, and a table of what came of each."""

import csv
import hashlib
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from iaunet.discovery import list_image_files, natural_order
from iaunet.errors import FileError, IaunetError, PredictionError
from iaunet.files import FORMATS, is_image_file, read_bytes, read_image, read_made_from, read_mask, write_png
from iaunet.inference.overlay import draw_overlay
from iaunet.inference.predictor import Prediction, Predictor
from iaunet.inference.runs import Run, choose_folds
from iaunet.inference.stream import Input, predict_stream
from iaunet.planners.plan import Plan
from iaunet.preprocessing.cases import prepare_image
from iaunet.storage import digest, read_json, remove_leftovers, write_json, write_text
from iaunet.workspace import locked

logger = logging.getLogger(__name__)

RECORD, TABLE = "predictions.json", "predictions.csv"


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """``overlay`` and ``probabilities`` write further pictures; ``overwrite`` replaces masks of another model."""

    overlay: bool = False
    probabilities: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one image: its mask's name and the pixels of each label, or the problem."""

    image: str
    mask: str
    status: Literal["done", "kept", "failed"]
    problem: str = ""
    pixels: tuple[int, ...] = ()


def describe_model(runs: Sequence[Run], folds: Sequence[str] | None, predictor: Predictor) -> dict[str, Any]:
    """What masks depend on: the weights by hash, and the settings."""
    members = [
        {"run": run.name, "fold": folder.fold, "weights_sha256": folder.weights_digest()}
        for run in runs
        for folder in choose_folds(run, list(folds) if folds else None)
    ]
    plan = predictor.plan
    return {
        "dataset": plan.dataset,
        "members": members,
        "mirroring": len(predictor.flips) > 1,
        "thresholds": list(plan.inference.thresholds),
        "labels": dict(zip(plan.labels, plan.coding.written, strict=True)),
    }


def predict_folder(
    predictor: Predictor,
    model: Mapping[str, Any],
    inputs: Path,
    output: Path,
    options: FolderOptions,
) -> list[Outcome]:
    """Write a mask for every image of a folder.

    Args:
        predictor: Predicts.
        model: See `describe_model`; masks of the same model that are there already are kept.
        inputs: A folder of images, searched to its depth, or one image.
        output: Gets ``<name>.png`` for each, predictions.csv and predictions.json.
        options: What else to write.

    Returns:
        An outcome for each image, by name. An image that cannot be read fails; the rest goes on.

    Raises:
        PredictionError: There is nothing to predict, or the output folder holds other masks.
        WorkspaceError: The output folder cannot be written, or another process is writing there.
    """
    root, images = list_inputs(inputs, output)
    names = mask_names([path.relative_to(root) for path in images])
    jobs = dict(zip(images, names, strict=True))
    with locked(output, "predicting"):
        _claim(output, model, names, options.overwrite)
        work = _Work(predictor.plan, root, output, jobs, options, digest(model))
        for folder in {output, *(file.parent for path in images for file in work.files(path))}:
            remove_leftovers(folder)
        found = {} if options.overwrite else {path: work.find(path) for path in images}
        kept = {path: outcome for path, outcome in found.items() if outcome is not None}
        outcomes = list(kept.values())
        waiting = [path for path in images if path not in kept]
        stream = predict_stream(predictor, waiting, work.load, work.finish)
        for path, result in tqdm(stream, "predict", len(waiting), unit=" images", disable=None, leave=False):
            if isinstance(result, FileError | PredictionError):
                name = path.relative_to(root).as_posix()
                logger.warning("failed: %s: %s", name, result)
                result = Outcome(image=name, mask="", status="failed", problem=str(result))
            elif isinstance(result, IaunetError):
                raise result
            outcomes.append(result)
        outcomes.sort(key=lambda outcome: natural_order(outcome.image))
        _write_table(output / TABLE, outcomes, predictor.plan.labels)
    return outcomes


def list_inputs(inputs: Path, output: Path) -> tuple[Path, list[Path]]:
    """The root of the images and the images, those in the output folder left out.

    Raises:
        PredictionError: There is none, or masks would be written among the images.
    """
    inputs, output = inputs.resolve(), output.resolve()
    if inputs.is_file():
        root, images = inputs.parent, [inputs]
        if not is_image_file(inputs):
            raise PredictionError(f"{inputs} is no image that is read: give one of {', '.join(FORMATS)}")
    else:
        root = inputs
        images = list_image_files(inputs)
        if output.is_relative_to(inputs) and output != inputs:
            images = [path for path in images if not path.is_relative_to(output)]
    if not images:
        raise PredictionError(f"{inputs} holds no images ({', '.join(FORMATS)}): check the path")
    if output == root:
        raise PredictionError(f"{output} holds the images themselves: give another folder for the masks")
    return root, images


def mask_names(images: Sequence[Path]) -> list[str]:
    """The mask's path for each image: ``<stem>.png``; images whose stems collide keep their ending before it.

    A stem also collides with an image's whole name: of ``a.jpg``, ``a.png`` and ``a.jpg.png`` all keep their ending.
    """
    names = [path.as_posix() for path in images]
    stems = [path.with_suffix("").as_posix() for path in images]
    times = Counter(name.lower() for name in (*names, *stems))
    return [
        f"{name}.png" if times[stem.lower()] > 1 else f"{stem}.png" for name, stem in zip(names, stems, strict=True)
    ]


@dataclass(frozen=True)
class _Work:
    """Loads images and writes what was predicted; called from threads."""

    plan: Plan
    root: Path
    output: Path
    jobs: Mapping[Path, str]
    options: FolderOptions
    model: str

    def load(self, path: Path) -> Input:
        return prepare_image(read_image(path).pixels, self.plan)

    def find(self, path: Path) -> Outcome | None:
        """What came of an image before, if all its files say that this model made them from it."""
        files = self.files(path)
        if not files[0].exists():
            return None
        try:
            made_from = self._made_from(path)
            labels = self.plan.coding.encode(read_mask(files[0]))
        except FileError:
            return None
        if any(read_made_from(file) != made_from for file in files):
            return None
        return self._outcome(path, "kept", labels)

    def finish(self, path: Path, prediction: Prediction) -> Outcome:
        made_from = self._made_from(path)
        if self.options.overlay:
            write_png(self._overlay(path), draw_overlay(read_image(path).pixels, prediction.labels), made_from)
        if self.options.probabilities:
            for file, plane in zip(self._probabilities(path), prediction.probabilities, strict=True):
                write_png(file, np.rint(plane * 65535).astype(np.uint16), made_from)
        write_png(self.output / self.jobs[path], self.plan.coding.decode(prediction.labels), made_from)
        return self._outcome(path, "done", prediction.labels)

    def files(self, path: Path) -> list[Path]:
        """All that is written for an image, the mask first."""
        overlays = [self._overlay(path)] if self.options.overlay else []
        probabilities = self._probabilities(path) if self.options.probabilities else []
        return [self.output / self.jobs[path], *overlays, *probabilities]

    def _made_from(self, path: Path) -> str:
        """Names the image's bytes and the model."""
        return f"{hashlib.sha256(read_bytes(path)).hexdigest()} {self.model}"

    def _overlay(self, path: Path) -> Path:
        return self.output / "overlays" / self.jobs[path]

    def _probabilities(self, path: Path) -> list[Path]:
        """A 16-bit PNG a label: 0 for impossible, 65535 for certain."""
        mask = self.output / "probabilities" / self.jobs[path]
        labels = self.plan.labels
        return [mask] if len(labels) == 1 else [mask.with_name(f"{mask.stem}_{label}.png") for label in labels]

    def _outcome(self, path: Path, status: Literal["done", "kept"], labels: NDArray[np.uint8]) -> Outcome:
        image = path.relative_to(self.root).as_posix()
        pixels = count_pixels(labels, len(self.plan.labels))
        return Outcome(image=image, mask=self.jobs[path], status=status, pixels=pixels)


def count_pixels(labels: NDArray[np.uint8], n_labels: int) -> tuple[int, ...]:
    """The pixels of each label 1..n."""
    return tuple(np.bincount(labels.ravel(), minlength=n_labels + 1)[1 : n_labels + 1].tolist())


def _claim(output: Path, model: Mapping[str, Any], names: Sequence[str], overwrite: bool) -> None:
    """Make the output folder this model's.

    Raises:
        PredictionError: It holds masks of another model, or files that no prediction made.
    """
    record = output / RECORD
    if not overwrite and record.exists():
        before = read_json(record, PredictionError, "use --overwrite, or another folder")
        if not isinstance(before, dict) or before.get("digest") != digest(model):
            raise PredictionError(f"{output} holds masks of another model: use --overwrite, or another folder")
        return
    strangers = [name for name in names if (output / name).exists()]
    if strangers and not overwrite:
        raise PredictionError(
            f"{output / strangers[0]} is there and no prediction made it: use --overwrite, or another folder"
        )
    write_json(record, {**model, "digest": digest(model)})


def _write_table(path: Path, outcomes: Sequence[Outcome], labels: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "mask", "status", "problem", *(f"{label}_pixels" for label in labels)])
    for outcome in outcomes:
        blanks = [""] * (len(labels) - len(outcome.pixels))
        writer.writerow([outcome.image, outcome.mask, outcome.status, outcome.problem, *outcome.pixels, *blanks])
    write_text(path, text.getvalue())
