"""One case on its way to the network: its pictures become rows, each with the geometry that undoes it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import FileError
from iaunet.files import to_channels
from iaunet.planners.plan import Plan
from iaunet.preprocessing.geometry import Geometry, place
from iaunet.preprocessing.normalisation import Normaliser
from iaunet.stacks import Stack

LARGEST_INTENSITY = 64.0
"""Normalised intensities are clipped here, far out, so that float16 holds them."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a row lies in its case: in which slice, and where in that."""

    slice: int
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class CaseInput:
    """The rows of a case, made when they are asked for.

    ``shape`` is (slices, height, width) of the case in pixels. ``make`` gives the input [C, *input_size] of a place.
    """

    shape: tuple[int, int, int]
    places: tuple[Place, ...]
    make: Callable[[int], NDArray[np.float32]]

    def rows(self) -> Iterator[NDArray[np.float32]]:
        """The inputs in order."""
        return map(self.make, range(len(self.places)))


def place_rows(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] | None, plan: Plan) -> list[Place]:
    """Where the rows of a case lie, slice by slice.

    Args:
        shape: (slices, height, width) of the case in pixels.
        spacing_mm: Distance of its slices, rows and columns, None if unknown.
        plan: Says how pictures are placed.
    """
    slices, height, width = shape
    in_plane = spacing_mm[1:] if spacing_mm is not None and plan.equal_spacing else None
    geometries = place(plan.input_mode, (height, width), plan.input_size, scale=plan.tile_scale, spacing_mm=in_plane)
    return [Place(slice=i, geometry=geometry) for i in range(slices) for geometry in geometries]


def prepare_resized(picture: NDArray[np.uint8], plan: Plan) -> NDArray[np.float16]:
    """Make the network's input of a picture resized to it, as `prepare_case` does up to float16.

    Args:
        picture: [C, *input_size], with the plan's channels.
        plan: Normalises by the dataset.
    """
    every_value = np.broadcast_to(np.arange(256, dtype=np.float32), (len(picture), 1, 256))
    normalised = Normaliser.of(plan.normalisation, picture).apply(every_value)
    table = normalised.clip(-LARGEST_INTENSITY, LARGEST_INTENSITY).astype(np.float16)
    return np.stack([values[0].take(plane) for values, plane in zip(table, picture, strict=True)])


def prepare_case(stack: Stack, plan: Plan) -> CaseInput:
    """Make the network's inputs of a case.

    Args:
        stack: As read from its files.
        plan: Says how.

    Returns:
        Rows [channels, *input_size], normalised by the case as a whole, padding 0; and how to take predictions back.

    Raises:
        FileError: The case's channels cannot be brought to the plan's, or its pixels are of another type.
    """
    if str(stack.pixels.dtype) != plan.depth:
        raise FileError(
            f"pixels are {stack.pixels.dtype}, those of the data set {plan.depth}", f"convert it to {plan.depth}"
        )
    pixels = to_channels(stack.pixels, plan.channels)
    normaliser = Normaliser.of(plan.normalisation, pixels)
    places = tuple(place_rows(stack.shape, stack.spacing_mm, plan))

    def make(row: int) -> NDArray[np.float32]:
        geometry = places[row].geometry
        content = normaliser.apply(geometry.resize_image(pixels[:, places[row].slice]))
        return geometry.pad(np.clip(content, -LARGEST_INTENSITY, LARGEST_INTENSITY, out=content))

    return CaseInput(stack.shape, places, make)
