"""Contours of masks: where they run, and which colour each label has."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

LABEL_COLOURS: tuple[Colour, ...] = (
    (0, 230, 64),
    (255, 64, 200),
    (0, 200, 255),
    (255, 176, 0),
    (170, 110, 255),
    (255, 80, 60),
    (235, 235, 0),
    (0, 160, 140),
)
"""The colours of labels 1, 2, ...; after the last they begin again."""


def label_colour(label: int) -> Colour:
    """The colour of a label, counted from 1."""
    return LABEL_COLOURS[(label - 1) % len(LABEL_COLOURS)]


def find_contour(shape: NDArray[np.bool_], thickness: int = 1) -> NDArray[np.bool_]:
    """The pixels [H, W] along the border of a shape [H, W], half within and half without.

    What lies beyond the image is without. ``thickness`` is in pixels.
    """
    here = shape.astype(np.uint8)
    most = ndimage.maximum_filter(here, thickness + 1, mode="constant")
    least = ndimage.minimum_filter(here, thickness + 1, mode="constant")
    return np.asarray(most != least)
