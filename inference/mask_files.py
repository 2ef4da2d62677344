"""The files that a prediction makes of an image: their names, their content, and what they say they were made from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet.dataset import MaskCoding, Slicing
from iaunet.dicom import is_dicom_file
from iaunet.errors import PredictionError
from iaunet.files import write_png
from iaunet.inference.dicom_seg import read_model, write_segmentation
from iaunet.inference.inputs import InputCase
from iaunet.inference.mosaic import Prediction
from iaunet.inference.outcomes import MaskMeasures, measure_mask, strips
from iaunet.inference.output import OVERLAYS, PROBABILITIES, SEGMENTATIONS, UNCERTAINTY, FolderOptions
from iaunet.inference.overlay import draw_stack_overlay
from iaunet.masks import image_stem, path_ending, read_made_from, write_mask
from iaunet.planners.plan import Plan
from iaunet.stacks import (
    Spacing,
    is_volume,
    read_mask_stack,
    read_stack,
    read_volume_header,
    series_files,
    volume_labels,
)
from iaunet.storage import digest
from iaunet.volumes import VolumeHeader, is_volume_file, write_probabilities


@dataclass(frozen=True)
class MaskFiles:
    """Names, writes and checks the files of images in an output folder.

    ``names`` are those of the masks, ``model`` is the digest of what predicts; ``plan`` says how labels are written.
    """

    output: Path
    names: Mapping[InputCase, str]
    plan: Plan
    options: FolderOptions
    model: str

    @property
    def folders(self) -> set[Path]:
        """All that files are written to."""
        return {self.output, *(file.parent for case in self.names for file in self.of(case))}

    def require_own_folders(self) -> None:
        """Refuse images whose masks would lie among other files that are written.

        Raises:
            PredictionError: Such as those in a folder ``overlays``, with overlays.
        """
        options = self.options
        wished = {OVERLAYS: options.overlay, PROBABILITIES: options.probabilities, UNCERTAINTY: options.uncertainty}
        wished[SEGMENTATIONS] = options.dicom_seg
        for case, name in self.names.items():
            folder = name.partition("/")[0]
            if wished.get(folder.lower()) and folder != name:
                raise PredictionError(
                    f"the mask of {case.name} would lie in {self.output / folder}, where {folder.lower()} are written: "
                    "rename that folder of images, or leave the option out"
                )

    def mask(self, case: InputCase) -> Path:
        """Where an image's mask lies, or is to lie."""
        return self.output / self.names[case]

    def of(self, case: InputCase) -> list[Path]:
        """All that is written for an image, the mask first."""
        overlays = [self._overlay(case)] if self.options.overlay else []
        maps = self._probabilities(case) if self.options.probabilities else []
        maps += [self._uncertainty(case)] if self.options.uncertainty else []
        return [self.mask(case), *overlays, *maps, *self._segmentations(case)]

    def measure(self, case: InputCase) -> MaskMeasures:
        """What the mask that is there holds.

        Raises:
            FileError: It cannot be read, or has values that this plan does not write.
        """
        mask = read_mask_stack(self.mask(case), Slicing(slice_axis=self.plan.slicing.slice_axis))
        labels = np.empty(mask.values.shape, np.uint8)
        for values, place in zip(strips(mask.values), strips(labels), strict=True):
            place[...] = self.plan.coding.of_written.encode(values)
        return measure_mask(labels, self.plan.coding.outputs, mask.spacing_mm)

    def are_made_from(self, files: Sequence[Path], sha256: str) -> bool:
        """Whether files say that this model made them from an image whose bytes have this hash."""
        return all(_is_made_from(file, self._made_from(sha256)) for file in files)

    def write(self, case: InputCase, prediction: Prediction, sha256: str, spacing_mm: Spacing | None) -> MaskMeasures:
        """Write the files of an image, the mask last.

        Args:
            case: The image.
            prediction: What was predicted; its labels may be overwritten.
            sha256: Of the image's bytes.
            spacing_mm: Of the image, for what is measured.

        Returns:
            What the mask holds.
        """
        made_from = self._made_from(sha256)
        header = read_volume_header(case.files[0]) if is_volume(case.files[0]) else None
        labels = prediction.labels
        if self.options.overlay:
            picture = draw_stack_overlay(read_stack(case.files, self.plan.slicing).pixels, labels)
            write_png(self._overlay(case), picture, made_from)
        if prediction.probabilities is not None:
            for file, plane in zip(self._probabilities(case), prediction.probabilities, strict=True):
                self._write_map(file, plane, 1.0, case, header, made_from)
        if prediction.uncertainty is not None:
            self._write_map(self._uncertainty(case), prediction.uncertainty, 0.5, case, header, made_from)
        for file in self._segmentations(case):
            names = self.plan.value_names
            volume = volume_labels(labels, self.plan.slicing).astype(np.uint8)
            write_segmentation(file, volume, names, series_files(case.files[0]), digest(made_from))
        measures = measure_mask(labels, self.plan.coding.outputs, spacing_mm)
        values = _to_values(self.plan.coding, labels)
        write_mask(self.mask(case), values, self.plan.slicing, header, case.files, made_from)
        return measures

    def _write_map(
        self,
        file: Path,
        plane: NDArray[np.float32],
        greatest: float,
        case: InputCase,
        header: VolumeHeader | None,
        made_from: str,
    ) -> None:
        """Write numbers from 0 to ``greatest``: as 0 to 65535 in 16-bit PNG or TIFF, float32 as they are in volumes."""
        if header is not None:
            like = case.files[0] if is_volume_file(case.files[0]) else header
            write_probabilities(file, volume_labels(plane, self.plan.slicing), like, made_from)
        else:
            levels = np.rint(plane * (65535 / greatest)).astype(np.uint16)
            write_mask(file, levels, self.plan.slicing, None, case.files, made_from)

    def _made_from(self, sha256: str) -> str:
        """Names the image's bytes and the model."""
        return f"{sha256} {self.model}"

    def _segmentations(self, case: InputCase) -> list[Path]:
        """The DICOM segmentation of a DICOM image, if it is wished."""
        if not self.options.dicom_seg or not is_volume(case.files[0]) or is_volume_file(case.files[0]):
            return []
        mask = self.output / SEGMENTATIONS / self.names[case]
        return [mask.with_name(f"{image_stem(mask)}.dcm")]

    def _overlay(self, case: InputCase) -> Path:
        mask = self.output / OVERLAYS / self.names[case]
        return mask.with_name(f"{image_stem(mask)}.png")

    def _probabilities(self, case: InputCase) -> list[Path]:
        """A file an output."""
        mask = self.output / PROBABILITIES / self.names[case]
        if len(self.plan.labels) == 1:
            return [mask]
        return [mask.with_name(f"{image_stem(mask)}_{word}{path_ending(mask)}") for word in _words(self.plan.labels)]

    def _uncertainty(self, case: InputCase) -> Path:
        return self.output / UNCERTAINTY / self.names[case]


def _words(labels: Sequence[str]) -> list[str]:
    """What tells labels apart in names of files: themselves, or numbers from 1 where one cannot be part of a name."""
    fit = all(re.fullmatch(r"[^/\\:*?\"<>|\x00-\x1f]{1,100}", label) for label in labels)
    if fit and len({label.casefold() for label in labels}) == len(labels):
        return [*labels]
    return [str(number) for number in range(1, len(labels) + 1)]


def _is_made_from(file: Path, made_from: str) -> bool:
    """Whether a written file says so; a DICOM segmentation has room for the digest only."""
    return read_model(file) == digest(made_from) if is_dicom_file(file) else read_made_from(file) == made_from


def _to_values(coding: MaskCoding, labels: NDArray[np.uint8]) -> NDArray[np.integer]:
    """The values of labels [S, H, W], where they fit in the place of these: a large mask is not held twice."""
    if max(coding.written) > np.iinfo(np.uint8).max:
        return coding.decode(labels)
    if len(coding.written) == 1:
        return np.multiply(labels, coding.written[0], out=labels)
    every = np.arange(1 + len(coding.written), dtype=np.uint8)
    table = coding.decode(every).astype(np.uint8).tobytes().ljust(256, b"\0")
    for strip in strips(labels):
        strip[...] = np.frombuffer(strip.tobytes().translate(table), np.uint8).reshape(strip.shape)
    return labels
