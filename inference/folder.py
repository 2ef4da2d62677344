"""Masks for a folder of images: names, files, what was done before, and a table of what came of each."""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from iaunet.dataset import MaskCoding, Slicing
from iaunet.dicom import is_dicom_file
from iaunet.discovery import IMAGE_ENDINGS, list_images, natural_order
from iaunet.errors import FileError, IaunetError, PredictionError
from iaunet.files import is_image_file, write_png
from iaunet.inference.dicom_seg import read_model, write_segmentation
from iaunet.inference.mosaic import Prediction
from iaunet.inference.output import OVERLAYS, PROBABILITIES, RECORD, SEGMENTATIONS, TABLE
from iaunet.inference.overlay import draw_stack_overlay
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run, choose_folds
from iaunet.inference.stream import predict_stream
from iaunet.masks import image_stem, mask_ending, path_ending, read_made_from, write_mask
from iaunet.planners.plan import Plan
from iaunet.preprocessing.cases import CaseInput, prepare_case
from iaunet.records import to_json
from iaunet.stacks import (
    Stack,
    hash_files,
    is_volume,
    read_mask_stack,
    read_stack,
    read_volume_header,
    series_files,
    volume_labels,
)
from iaunet.storage import digest, read_json, remove_leftovers, write_json, write_text
from iaunet.volumes import VolumeHeader, is_volume_file, write_probabilities
from iaunet.workspace import locked

logger = logging.getLogger(__name__)


STRIP = 256
"""Rows of a picture that are counted at once."""

Label = TypeVar("Label", bound=np.generic)

_CHANNEL = re.compile(r".+_(\d{4})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """``overlay``, ``probabilities`` and ``dicom_seg`` write further files, the last for DICOM input; ``overwrite``
    replaces masks of another model."""

    overlay: bool = False
    probabilities: bool = False
    dicom_seg: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one image: its mask's name and the pixels of each label, or the problem."""

    image: str
    mask: str
    status: Literal["done", "kept", "failed"]
    problem: str = ""
    pixels: tuple[int, ...] = ()


@dataclass(frozen=True)
class InputCase:
    """An image to predict: its path below the folder, with and without ending, and the files of its channels."""

    name: str
    stem: str
    files: tuple[Path, ...]


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
        "cleaning": to_json(predictor.cleaning),
        "labels": dict(zip(plan.value_names, plan.coding.written, strict=True)),
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
        output: Gets a mask for each, see `iaunet.masks.mask_ending`, predictions.csv and predictions.json.
        options: What else to write.

    Returns:
        An outcome for each image, by name. An image that cannot be read fails; the rest goes on.

    Raises:
        PredictionError: There is nothing to predict, or the output folder holds other masks.
        WorkspaceError: The output folder cannot be written, or another process is writing there.
    """
    root, found = list_inputs(inputs, output)
    cases = group_channels(root, found, predictor.plan.channel_files)
    return predict_cases(predictor, model, cases, output, options)


def predict_cases(
    predictor: Predictor,
    model: Mapping[str, Any],
    cases: Sequence[InputCase],
    output: Path,
    options: FolderOptions,
) -> list[Outcome]:
    """Write a mask for each of some images, see `predict_folder`."""
    names = mask_names(cases, [mask_ending(case.files[0], predictor.plan.slicing) for case in cases])
    jobs = dict(zip(cases, names, strict=True))
    with locked(output, "predicting"):
        _claim(output, model, names, options.overwrite)
        work = _Work(predictor.plan, output, jobs, options, digest(model))
        for folder in {output, *(file.parent for case in cases for file in work.files(case))}:
            remove_leftovers(folder)
        before = {} if options.overwrite else {case: work.find(case) for case in cases}
        kept = {case: outcome for case, outcome in before.items() if outcome is not None}
        outcomes = list(kept.values())
        waiting = [case for case in cases if case not in kept]
        stream = predict_stream(predictor, waiting, work.load, work.finish, options.probabilities)
        for case, result in tqdm(stream, "predict", len(waiting), unit=" images", disable=None, leave=False):
            if isinstance(result, FileError | PredictionError):
                logger.warning("failed: %s: %s", case.name, result)
                result = Outcome(image=case.name, mask="", status="failed", problem=str(result))
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
        if not (is_image_file(inputs) or is_volume(inputs)):
            raise PredictionError(f"{inputs} is no image that is read: give one of {', '.join(IMAGE_ENDINGS)}")
    else:
        root = inputs
        images = list_images(inputs)
        if output.is_relative_to(inputs) and output != inputs:
            images = [path for path in images if not path.is_relative_to(output)]
        if images == [inputs]:  # the folder of a DICOM series itself
            root = inputs.parent
    if not images:
        raise PredictionError(f"{inputs} holds no images ({', '.join(IMAGE_ENDINGS)}): check the path")
    if output == root:
        raise PredictionError(f"{output} holds the images themselves: give another folder for the masks")
    return root, images


def group_channels(root: Path, images: Sequence[Path], channel_files: int) -> list[InputCase]:
    """The images as cases: where their names end in the channel's number, the files of one case together.

    Args:
        root: What names are relative to.
        images: The images.
        channel_files: How many files a case has whose names end so (``_0000``), 0 if names do not.
    """
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in images:
        folder, stem, ending = path.parent.relative_to(root), image_stem(path), path_ending(path)
        if _channel_of(path) in range(channel_files):
            stem = stem[: -len("_0000")]
        groups.setdefault(((folder / (stem + ending)).as_posix(), (folder / stem).as_posix()), []).append(path)
    return [InputCase(name, stem, tuple(files)) for (name, stem), files in groups.items()]


def mask_names(cases: Sequence[InputCase], endings: Sequence[str]) -> list[str]:
    """The mask's path for each image, with the ending its mask gets; images whose stems collide keep their own too.

    A stem also collides with an image's whole name: of ``a.jpg``, ``a.png`` and ``a.jpg.png`` all keep their ending.
    """
    times = Counter(text.lower() for case in cases for text in {case.name, case.stem})
    return [
        f"{case.name if times[case.stem.lower()] > 1 else case.stem}{ending}"
        for case, ending in zip(cases, endings, strict=True)
    ]


def _channel_of(path: Path) -> int | None:
    """The number of the channel that a file's name ends in, as nnU-Net names its files."""
    numbered = _CHANNEL.fullmatch(image_stem(path))
    return int(numbered[1]) if numbered else None


@dataclass(frozen=True)
class _Work:
    """Loads images and writes what was predicted; called from threads."""

    plan: Plan
    output: Path
    jobs: Mapping[InputCase, str]
    options: FolderOptions
    model: str

    def load(self, case: InputCase) -> CaseInput:
        return prepare_case(self._read(case), self.plan)

    def _read(self, case: InputCase) -> Stack:
        expected = self.plan.channel_files
        if expected and len(case.files) != expected:
            there = {_channel_of(path) for path in case.files}
            missing = [f"_{number:04d}" for number in range(expected) if number not in there]
            raise FileError(
                f"has {len(case.files)} of {expected} channel files",
                f"add those whose names end in {', '.join(missing)}",
            )
        return read_stack(case.files, self.plan.slicing)

    def find(self, case: InputCase) -> Outcome | None:
        """What came of an image before, if all its files say that this model made them from it."""
        files = self.files(case)
        if not files[0].exists():
            return None
        try:
            made_from = self._made_from(case)
            if not all(_is_made_from(file, made_from) for file in files):
                return None
            mask = read_mask_stack(files[0], Slicing(slice_axis=self.plan.slicing.slice_axis)).values
            coding = self.plan.coding
            pixels = count_pixels(map(coding.of_written.encode, _strips(mask)), coding.outputs)
        except FileError:
            return None
        return self._outcome(case, "kept", pixels)

    def finish(self, case: InputCase, prediction: Prediction) -> Outcome:
        made_from = self._made_from(case)
        header = read_volume_header(case.files[0]) if is_volume(case.files[0]) else None
        labels = prediction.labels
        if self.options.overlay:
            picture = draw_stack_overlay(read_stack(case.files, self.plan.slicing).pixels, labels)
            write_png(self._overlay(case), picture, made_from)
        if prediction.probabilities is not None:
            for file, plane in zip(self._probabilities(case), prediction.probabilities, strict=True):
                self._write_probabilities(file, plane, case, header, made_from)
        for file in self._segmentations(case):
            names = self.plan.value_names
            volume = volume_labels(labels, self.plan.slicing).astype(np.uint8)
            write_segmentation(file, volume, names, series_files(case.files[0]), digest(made_from))
        pixels = count_pixels(_strips(labels), self.plan.coding.outputs)
        values = _to_values(self.plan.coding, labels)
        write_mask(self.output / self.jobs[case], values, self.plan.slicing, header, case.files, made_from)
        return self._outcome(case, "done", pixels)

    def files(self, case: InputCase) -> list[Path]:
        """All that is written for an image, the mask first."""
        overlays = [self._overlay(case)] if self.options.overlay else []
        probabilities = self._probabilities(case) if self.options.probabilities else []
        return [self.output / self.jobs[case], *overlays, *probabilities, *self._segmentations(case)]

    def _write_probabilities(
        self, file: Path, plane: NDArray[np.float32], case: InputCase, header: VolumeHeader | None, made_from: str
    ) -> None:
        if header is not None:
            like = case.files[0] if is_volume_file(case.files[0]) else header
            write_probabilities(file, volume_labels(plane, self.plan.slicing), like, made_from)
        else:
            write_mask(file, np.rint(plane * 65535).astype(np.uint16), self.plan.slicing, None, case.files, made_from)

    def _made_from(self, case: InputCase) -> str:
        """Names the image's bytes and the model."""
        return f"{hash_files(case.files)} {self.model}"

    def _segmentations(self, case: InputCase) -> list[Path]:
        """The DICOM segmentation of a DICOM image, if it is wished."""
        if not self.options.dicom_seg or not is_volume(case.files[0]) or is_volume_file(case.files[0]):
            return []
        mask = self.output / SEGMENTATIONS / self.jobs[case]
        return [mask.with_name(f"{image_stem(mask)}.dcm")]

    def _overlay(self, case: InputCase) -> Path:
        mask = self.output / OVERLAYS / self.jobs[case]
        return mask.with_name(f"{image_stem(mask)}.png")

    def _probabilities(self, case: InputCase) -> list[Path]:
        """A file an output: 16-bit PNG or TIFF, 0 for impossible and 65535 for certain; float32 for volumes."""
        mask = self.output / PROBABILITIES / self.jobs[case]
        labels = self.plan.labels
        if len(labels) == 1:
            return [mask]
        return [mask.with_name(f"{image_stem(mask)}_{label}{path_ending(mask)}") for label in labels]

    def _outcome(self, case: InputCase, status: Literal["done", "kept"], pixels: tuple[int, ...]) -> Outcome:
        return Outcome(image=case.name, mask=self.jobs[case], status=status, pixels=pixels)


def count_pixels(labels: Iterable[NDArray[np.uint8]], outputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The pixels, or voxels, of each output, a label or the union of several, in all arrays of labels together."""
    counts = np.zeros(256, np.int64)
    for part in labels:
        counts += np.bincount(part.ravel(), minlength=256)
    return tuple(int(counts[list(output)].sum()) for output in outputs)


def _is_made_from(file: Path, made_from: str) -> bool:
    """Whether a written file says so; a DICOM segmentation has room for the digest only."""
    return read_model(file) == digest(made_from) if is_dicom_file(file) else read_made_from(file) == made_from


def _to_values(coding: MaskCoding, labels: NDArray[np.uint8]) -> NDArray[np.integer]:
    """The values of labels [S, H, W], where they fit in the place of these: a large mask is not held twice."""
    if max(coding.written) > np.iinfo(np.uint8).max:
        return coding.decode(labels)
    for strip in _strips(labels):
        strip[...] = coding.decode(strip)
    return labels


def _strips(slices: NDArray[Label]) -> Iterator[NDArray[Label]]:
    """The slices [S, H, W] in strips of rows: numpy counts and looks up with 8 bytes a pixel."""
    for picture in slices:
        for top in range(0, len(picture), STRIP):
            yield picture[top : top + STRIP]


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
