"""Where a prediction is right and where it is wrong, drawn on its image."""

import numpy as np
from numpy.typing import NDArray

from iaunet.contours import Colour, find_contour
from iaunet.dataset import IGNORED
from iaunet.inference.overlay import PIXELS_A_LINE, Picture, to_picture

# Sky blue and yellow are Okabe and Ito's; their vermilion is lost on red mucosa, magenta is not. Whatever the colour
# blindness, two of the three are at least 28 apart (CIEDE2000).
TRUE_POSITIVE_COLOUR: Colour = (86, 180, 233)
FALSE_POSITIVE_COLOUR: Colour = (220, 38, 127)
FALSE_NEGATIVE_COLOUR: Colour = (240, 228, 66)

OUTCOME_COLOURS = {
    "true positive": TRUE_POSITIVE_COLOUR,
    "false positive": FALSE_POSITIVE_COLOUR,
    "false negative": FALSE_NEGATIVE_COLOUR,
}

TINT = 0.3
"""The share of the colour in an area; its contour is nothing but colour."""


def draw_confusion(
    image: NDArray[np.generic], prediction: NDArray[np.uint8], truth: NDArray[np.uint8], label: int | None = None
) -> Picture:
    """Tint true positives, false positives and false negatives on an image, each with its contour.

    The contours run within their areas, so that each pixel has the colour of what it is, and true negatives are left
    as they are.

    Args:
        image: (C, H, W), shown as `to_picture` does.
        prediction: Predicted labels (H, W).
        truth: True labels (H, W); `IGNORED` pixels are left as they are.
        label: The one to show. None for all: then a true positive has the right label, a false positive a wrong one,
            be it on background or on another label, and a false negative has none where the truth has one.

    Returns:
        The picture at the image's size, in the colours of `OUTCOME_COLOURS`.

    Raises:
        ValueError: A mask has another size than the image.
    """
    picture = to_picture(image)
    for mask in (prediction, truth):
        if mask.shape != picture.shape[:2]:
            raise ValueError(f"a mask of {mask.shape} px cannot be drawn on an image of {picture.shape[:2]} px")
    for outcome, area in find_outcomes(prediction, truth, label).items():
        _paint(picture, area, OUTCOME_COLOURS[outcome])
    return picture


def find_outcomes(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8], label: int | None = None
) -> dict[str, NDArray[np.bool_]]:
    """The area (H, W) of each outcome of `OUTCOME_COLOURS`; none overlap. Arguments as in `draw_confusion`."""
    valid = truth != IGNORED
    predicted = prediction > 0 if label is None else prediction == label
    true = truth > 0 if label is None else truth == label
    agreeing = predicted & (prediction == truth)
    return {
        "true positive": valid & agreeing,
        "false positive": valid & predicted & ~agreeing,
        "false negative": valid & true & ~predicted,
    }


def _paint(picture: Picture, area: NDArray[np.bool_], colour: Colour) -> None:
    picture[area] = np.rint((1 - TINT) * picture[area] + TINT * np.array(colour))
    thickness = max(1, round(max(area.shape) / PIXELS_A_LINE))
    picture[area & find_contour(area, 2 * thickness)] = colour
