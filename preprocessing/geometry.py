"""What preprocessing must remember of a row to undo itself, and both directions beside each other."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iaunet import resample
from iaunet.records import require
from iaunet.resample import Box, Size
from iaunet.tiling import tile_origins


def _fill(native_size: Size, input_size: Size, stretch: tuple[float, float], scale: float) -> Size:
    return input_size


def _fit(native_size: Size, input_size: Size, stretch: tuple[float, float], scale: float) -> Size:
    sides = [side * factor for side, factor in zip(native_size, stretch, strict=True)]
    shrink = min(there / here for here, there in zip(sides, input_size, strict=True))
    height, width = (max(1, min(room, round(s * shrink))) for s, room in zip(sides, input_size, strict=True))
    return height, width


def _shrink(native_size: Size, input_size: Size, stretch: tuple[float, float], scale: float) -> Size:
    height, width = (max(1, round(s * factor * scale)) for s, factor in zip(native_size, stretch, strict=True))
    return height, width


MODES: dict[str, Callable[[Size, Size, tuple[float, float], float], Size]] = {
    "resize": _fill,
    "letterbox": _fit,
    "tiles": _shrink,
}
"""The size a picture is resized to: the input's, as large as fits with its aspect kept, or by a fixed scale."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a row lies in its picture: the picture is resized, and the row is a window of it.

    Args:
        native_size: (height, width) of the picture in pixels.
        scaled_size: (height, width) it is resized to.
        origin: (top, left) of the row's window in the resized picture; (0, 0) where the row holds all of it.
        input_size: (height, width) of the network's input in pixels.
        content: (top, left, height, width) of the window inside the input in pixels; padding is around it.

    Raises:
        FieldError: A size is below 1 px, the content leaves the input or the window leaves the picture.
    """

    native_size: Size
    scaled_size: Size
    origin: tuple[int, int]
    input_size: Size
    content: Box

    def __post_init__(self) -> None:
        sides = {
            "native_size": self.native_size,
            "scaled_size": self.scaled_size,
            "input_size": self.input_size,
            "content": self.content[2:],
        }
        for name, side in sides.items():
            require(min(side) >= 1, name, getattr(self, name), "sides of 1 px or more")
        inside = all(room >= 0 for margin in self._margins for room in margin)
        require(inside, "content", self.content, f"a box inside the input of {self.input_size} px")
        ends = zip(self.origin, self.content[2:], self.scaled_size, strict=True)
        within = all(start >= 0 and start + length <= side for start, length, side in ends)
        require(within, "origin", self.origin, f"a window inside the resized picture of {self.scaled_size} px")

    @classmethod
    def of(cls, mode: str, native_size: Size, input_size: Size) -> "Geometry":
        """Place a whole picture in one input; see `place`."""
        (geometry,) = place(mode, native_size, input_size)
        return geometry

    @property
    def is_whole(self) -> bool:
        """Whether the row holds all of its picture."""
        return self.content[2:] == self.scaled_size

    @property
    def window(self) -> Box:
        """(top, left, height, width) of the row in the resized picture."""
        return *self.origin, *self.content[2:]

    def resize_image(self, image: NDArray[np.generic]) -> NDArray[np.float32]:
        """Resize the row's part of a picture to its content box: normalise the result, then `pad` it.

        Args:
            image: (C, *native_size) of any real dtype, see `iaunet.resample.resize_image`.

        Returns:
            (C, *content size) float32 in the units of ``image``.

        Raises:
            ValueError: The image has another size than ``native_size``.
        """
        _check_size(image, self.native_size)
        return resample.resize_image(image, self.scaled_size, None if self.is_whole else self.window)

    def pad(self, content: NDArray[np.float32], fill: float = 0.0) -> NDArray[np.float32]:
        """Surround (C, *content size) with ``fill``: (C, *input_size).

        Raises:
            ValueError: ``content`` has another size than the content box.
        """
        _check_size(content, self.content[2:])
        if self.content[2:] == self.input_size:
            return content
        return np.pad(content, ((0, 0), *self._margins), constant_values=fill)

    def mask_to_input(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Take a mask (*native_size) to the input (*input_size); padding is background.

        Raises:
            ValueError: The mask has another size than ``native_size``.
        """
        _check_size(mask, self.native_size)
        window = None if self.is_whole else self.window
        return np.pad(resample.resize_mask(mask, self.scaled_size, window), self._margins)

    def crop(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut the padding away: the content (L, *content size) of (L, *input_size), a view.

        Raises:
            ValueError: The probabilities have another size than ``input_size``.
        """
        _check_size(probabilities, self.input_size)
        top, left, height, width = self.content
        return probabilities[:, top : top + height, left : left + width]

    def restore(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take probabilities of a row that holds all of its picture back to the picture's size.

        Args:
            probabilities: (L, *input_size) in [0, 1].

        Returns:
            (L, *native_size) in [0, 1].

        Raises:
            ValueError: The probabilities have another size than ``input_size``, or the row is a part of its picture.
        """
        if not self.is_whole:
            raise ValueError("a part of a picture cannot be restored alone: put the parts together first")
        return resample.resize_probabilities(self.crop(probabilities), self.native_size)

    def restore_around(
        self, probabilities: NDArray[np.float32], where: NDArray[np.bool_]
    ) -> tuple[tuple[slice, slice], NDArray[np.float32]] | None:
        """As `restore`, only what depends on some pixels (*input_size); see `iaunet.resample.resize_around`."""
        if not self.is_whole:
            raise ValueError("a part of a picture cannot be restored alone: put the parts together first")
        top, left, height, width = self.content
        content = where[top : top + height, left : left + width]
        return resample.resize_around(self.crop(probabilities), content, self.native_size)

    @property
    def _margins(self) -> tuple[tuple[int, int], tuple[int, int]]:
        top, left, height, width = self.content
        return (top, self.input_size[0] - top - height), (left, self.input_size[1] - left - width)


def place(
    mode: str,
    native_size: Size,
    input_size: Size,
    *,
    scale: float = 1.0,
    spacing_mm: tuple[float, float] | None = None,
) -> list[Geometry]:
    """Place a picture in one input or more.

    Args:
        mode: A name in `MODES`.
        native_size: (height, width) of the picture in pixels, 1 at least.
        input_size: (height, width) of the network's input in pixels.
        scale: For ``tiles``: what the picture's shorter spacing is scaled by before it is cut.
        spacing_mm: Of its pixels (height, width), where they are to become square; ``resize`` takes no heed of it.

    Returns:
        The rows in reading order; together they hold the whole picture, tiles with half overlap.

    Raises:
        FieldError: The mode is unknown.
    """
    require(mode in MODES, "mode", mode, f"one of {', '.join(MODES)}")
    finest = min(spacing_mm) if spacing_mm else 1.0
    down, across = (side / finest for side in spacing_mm) if spacing_mm else (1.0, 1.0)
    scaled = MODES[mode](native_size, input_size, (down, across), scale)
    axes = [tile_origins(length, side) for length, side in zip(scaled, input_size, strict=True)]
    return [
        Geometry(
            native_size=native_size,
            scaled_size=scaled,
            origin=(top, left),
            input_size=input_size,
            content=_centred(scaled, input_size),
        )
        for top in axes[0]
        for left in axes[1]
    ]


def _centred(scaled: Size, input_size: Size) -> Box:
    height, width = (min(side, room) for side, room in zip(scaled, input_size, strict=True))
    return (input_size[0] - height) // 2, (input_size[1] - width) // 2, height, width


def _check_size(array: NDArray[np.generic], size: Size) -> None:
    if array.shape[-2:] != size:
        raise ValueError(f"an array of {array.shape[-2:]} px where the geometry has {size} px")
