"""Pictures of masks: drawn as contours on their image, and put together on one sheet."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iaunet.contours import LABEL_COLOURS, Colour, find_contour

Picture = NDArray[np.uint8]
"""(H, W, 3), red, green and blue."""

TRUTH_COLOUR = (255, 255, 255)

MOST_SLICES = 16
"""Slices of a volume that are shown."""

PIXELS_A_LINE = 256
"""A contour is one pixel wide for so many pixels of the image's longer side."""


def to_picture(image: NDArray[np.generic]) -> Picture:
    """Show an image (C, H, W) as a picture, always a copy.

    Three channels are shown in colour, else the first in grey. uint8 is shown as it is, other types are stretched
    between their percentiles 0.5 and 99.5.
    """
    coloured = image if len(image) == 3 else np.repeat(image[:1], 3, axis=0)
    if coloured.dtype != np.uint8:
        coloured = _stretch(coloured)
    return np.array(np.moveaxis(coloured, 0, 2), np.uint8, order="C")


def draw_overlay(
    image: NDArray[np.generic], mask: NDArray[np.uint8], truth: NDArray[np.uint8] | None = None
) -> Picture:
    """Draw the contours of a mask on its image.

    Args:
        image: (C, H, W), shown as `to_picture` does.
        mask: Labels (H, W), each in its colour of `iaunet.contours.LABEL_COLOURS`.
        truth: The true labels (H, W), drawn in white below the mask's contours: white shows where they differ.

    Returns:
        The picture at the image's size.

    Raises:
        ValueError: A mask has another size than the image.
    """
    picture = to_picture(image)
    if truth is not None:
        _draw_contours(picture, truth, (TRUTH_COLOUR,))
    _draw_contours(picture, mask, LABEL_COLOURS)
    return picture


def draw_stack_overlay(pixels: NDArray[np.generic], labels: NDArray[np.uint8]) -> Picture:
    """Draw the contours of a case's mask: on its picture, or on a sheet of the slices of a volume that have most of it.

    Args:
        pixels: (C, slices, H, W).
        labels: (slices, H, W).
    """
    fullest = np.argsort(-np.count_nonzero(labels, axis=(1, 2)), kind="stable")[:MOST_SLICES]
    pictures = [draw_overlay(pixels[:, number], labels[number]) for number in np.sort(fullest)]
    return pictures[0] if len(pictures) == 1 else contact_sheet(pictures, columns=4)


def contact_sheet(pictures: Sequence[Picture], columns: int, height: int = 256, gap: int = 4) -> Picture:
    """Put pictures on one black sheet, row by row from the top left.

    Args:
        pictures: One or more, of any size.
        columns: Pictures in a row.
        height: Height of each in pixels; its width follows.
        gap: Pixels between two.

    Raises:
        ValueError: There is no picture.
    """
    if not pictures:
        raise ValueError("there is no picture to put on a sheet")
    scaled = [_scale(picture, height) for picture in pictures]
    columns = min(columns, len(scaled))
    rows = -(-len(scaled) // columns)
    width = max(picture.shape[1] for picture in scaled)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.uint8)
    for i, picture in enumerate(scaled):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + picture.shape[1]] = picture
    return sheet


def _stretch(image: NDArray[np.generic]) -> NDArray[np.float32]:
    values = image.astype(np.float32)
    low, high = np.percentile(values, [0.5, 99.5])
    if high <= low:
        low, high = values.min(), values.min() + 1
    return np.asarray(np.rint(np.clip((values - low) / (high - low), 0, 1) * 255))


def _draw_contours(picture: Picture, mask: NDArray[np.uint8], colours: Sequence[Colour]) -> None:
    """Paint the contour of each label into the picture."""
    if mask.shape != picture.shape[:2]:
        raise ValueError(f"a mask of {mask.shape} px cannot be drawn on an image of {picture.shape[:2]} px")
    thickness = max(1, round(max(mask.shape) / PIXELS_A_LINE))
    for label in np.unique(mask[mask > 0]):
        picture[find_contour(mask == label, thickness)] = colours[(int(label) - 1) % len(colours)]


def _scale(picture: Picture, height: int) -> Picture:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
