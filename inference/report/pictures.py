"""Pictures of held-out cases as data URIs: image, label as an outline, prediction as an area."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iaunet.contours import find_contour, label_colour
from iaunet.dataset import IGNORED, Dataset
from iaunet.errors import FileError
from iaunet.inference.overlay import to_picture
from iaunet.inference.report.masks import HeldOutMasks
from iaunet.preprocessing.arrays import Arrays
from iaunet.resample import resize_image
from iaunet.stacks import read_stack

LONGEST_SIDE = 448
"""Of a picture, in pixels."""

OUTLINE_SIDE, OUTLINE_THICKNESS = 896, 4
"""Outlines are drawn on a grid of about this many pixels, so that they stay fine on small images."""

AREA_OPACITY = 110
IGNORED_COLOUR = (150, 150, 150)
JPEG_QUALITY = 82


@dataclass(frozen=True, kw_only=True)
class CasePicture:
    """Three layers of one shape as data URIs: a JPEG, and two PNG that are transparent where nothing is marked.

    ``size`` is (height, width) in pixels. ``place`` names the slice of a volume, empty for an image.
    """

    image: str
    label: str
    prediction: str
    size: tuple[int, int]
    place: str

    @property
    def n_bytes(self) -> int:
        """What it adds to a page."""
        return len(self.image) + len(self.label) + len(self.prediction)


def picture_case(name: str, masks: HeldOutMasks, dataset: Dataset) -> CasePicture:
    """Show a held-out case; of a volume the slice where label and prediction disagree most.

    Raises:
        FileError: The image cannot be shown.
        PredictionError: The predicted mask is missing or damaged.
        PreprocessingError: The true mask is missing or damaged.
    """
    truth, prediction = masks.truth(name), masks.prediction(name)
    number = find_slice(truth, prediction)
    image = read_image(name, masks.arrays, dataset)[:, number]
    place = f"slice {number + 1} of {len(truth)}" if len(truth) > 1 else ""
    return draw_layers(image, truth[number], prediction[number], place)


def find_slice(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> int:
    """The slice where labels [slices, H, W] disagree most; where they agree, the one with most of the label."""
    wrong = np.count_nonzero((truth != prediction) & (truth != IGNORED), axis=(1, 2))
    marked = np.count_nonzero((truth > 0) & (truth != IGNORED), axis=(1, 2))
    return int(np.argmax(wrong if wrong.any() else marked))


def read_image(name: str, arrays: Arrays, dataset: Dataset) -> NDArray[np.generic]:
    """The image [C, slices, H, W] of a case: as its files have it, or as the network got it where these are gone or
    have changed since.

    Raises:
        FileError: The files are gone or have changed, and the image was cut into tiles.
    """
    known = arrays.cases[name]
    files = [dataset.path(file) for case in dataset.cases if case.name == name for file in case.images]
    try:
        stack = read_stack(files, dataset.slicing) if files else None
    except FileError:
        stack = None  # what the network got is shown instead
    if stack is not None and (stack.sha256, stack.shape) == (known.image_sha256, known.shape):
        return stack.pixels
    prepared = arrays.case_input(name)
    if not all(place.geometry.is_whole for place in prepared.places):
        raise FileError("the image is gone or has changed, and tiles are not put together again", "bring it back")
    rows = [place.geometry.crop(row) for place, row in zip(prepared.places, prepared.rows(), strict=True)]
    return np.stack([resize_image(row, known.shape[1:]) for row in rows], axis=1)


def draw_layers(
    image: NDArray[np.generic], truth: NDArray[np.uint8], prediction: NDArray[np.uint8], place: str = ""
) -> CasePicture:
    """Draw an image [C, H, W] and labels [H, W] of it.

    Three channels are shown in colour, else the first in grey. `IGNORED` pixels of the truth are hatched.
    """
    step = max(1, max(truth.shape) // (2 * LONGEST_SIDE))
    shown = _shrink(Image.fromarray(to_picture(image[:, ::step, ::step])))
    size = shown.height, shown.width
    return CasePicture(
        image=_data_uri(shown, "JPEG", quality=JPEG_QUALITY),
        label=_layer(_outlines(_fit(truth, size)), opacity=255),
        prediction=_layer(_fit(prediction, size), opacity=AREA_OPACITY),
        size=size,
        place=place,
    )


def _fit(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Labels at a smaller size: of the pixels that fall together the highest label, so that nothing small is lost."""
    if labels.shape == size:
        return labels
    for axis, length in enumerate(size):
        starts = np.arange(length) * labels.shape[axis] // length
        labels = np.maximum.reduceat(labels, starts, axis=axis)
    return labels


def _outlines(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The outlines of labels on a finer grid, and hatching where they are to be ignored."""
    factor = max(1, OUTLINE_SIDE // max(labels.shape))
    fine = labels.repeat(factor, axis=0).repeat(factor, axis=1)
    drawn = np.zeros_like(fine)
    diagonals = np.add.outer(np.arange(fine.shape[0]), np.arange(fine.shape[1]))
    drawn[(fine == IGNORED) & (diagonals % 12 < OUTLINE_THICKNESS)] = IGNORED
    for label in _labels_of(labels):
        drawn[find_contour(fine == label, OUTLINE_THICKNESS)] = label
    return drawn


def _labels_of(labels: NDArray[np.uint8]) -> list[int]:
    return [int(label) for label in np.unique(labels) if label not in (0, IGNORED)]


def _layer(labels: NDArray[np.uint8], opacity: int) -> str:
    """Labels in their colours, transparent elsewhere; empty where nothing is marked."""
    if not labels.any():
        return ""
    picture = Image.fromarray(labels).convert("P")
    colours = [(0, 0, 0), *map(label_colour, range(1, IGNORED)), IGNORED_COLOUR]
    picture.putpalette([value for colour in colours for value in colour])
    return _data_uri(picture, "PNG", transparency=bytes([0] + [opacity] * IGNORED), optimize=True)


def _shrink(picture: Image.Image) -> Image.Image:
    scale = LONGEST_SIDE / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _data_uri(picture: Image.Image, form: str, **options: int | bytes | bool) -> str:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
