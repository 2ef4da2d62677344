"""One case on its way to the network: the raw image becomes an input, with the geometry that undoes it."""

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import FileError
from iaunet.files import to_channels
from iaunet.planners.plan import Plan
from iaunet.preprocessing.geometry import Geometry
from iaunet.preprocessing.normalisation import Normaliser

LARGEST_INTENSITY = 64.0
"""Normalised intensities are clipped here, far out, so that float16 holds them."""


def prepare_image(pixels: NDArray[np.generic], plan: Plan) -> tuple[NDArray[np.float32], Geometry]:
    """Make the network's input of an image.

    Args:
        pixels: [own channels, H, W] as read from its file.
        plan: Says how.

    Returns:
        The input [channels, *input_size], normalised, padding 0; and how to take a prediction back.

    Raises:
        FileError: The image's channels cannot be brought to the plan's, or its pixels are of another type.
    """
    if str(pixels.dtype) != plan.depth:
        raise FileError(f"pixels are {pixels.dtype}, those of the data set {plan.depth}", f"convert it to {plan.depth}")
    image = to_channels(pixels, plan.channels)
    geometry = Geometry.of(plan.input_mode, (image.shape[1], image.shape[2]), plan.input_size)
    normalised = Normaliser.of(plan.normalisation, image).apply(geometry.resize_image(image))
    return geometry.pad(normalised.clip(-LARGEST_INTENSITY, LARGEST_INTENSITY)), geometry
