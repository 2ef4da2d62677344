"""What preprocessing must remember of an image to undo itself, and both directions beside each other."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iaunet import resample
from iaunet.records import require
from iaunet.resample import Size

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""


def _fill(native_size: Size, input_size: Size) -> Box:
    return (0, 0, *input_size)


def _fit(native_size: Size, input_size: Size) -> Box:
    scale = min(there / here for here, there in zip(native_size, input_size, strict=True))
    height, width = (max(1, round(side * scale)) for side in native_size)
    return ((input_size[0] - height) // 2, (input_size[1] - width) // 2, height, width)


MODES: dict[str, Callable[[Size, Size], Box]] = {"resize": _fill, "letterbox": _fit}
"""Where the image lies inside the input: all over it, or centred with its aspect kept."""


def _placement(mode: str) -> Callable[[Size, Size], Box]:
    require(mode in MODES, "mode", mode, f"one of {', '.join(MODES)}")
    return MODES[mode]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How one image lies in the network's input.

    Args:
        mode: A name in `MODES`.
        native_size: (height, width) of the image in pixels.
        input_size: (height, width) of the network's input in pixels.
        content: (top, left, height, width) of the image inside the input in pixels; padding is around it.

    Raises:
        FieldError: The mode is unknown, a size is below 1 px or the content leaves the input.
    """

    mode: str
    native_size: Size
    input_size: Size
    content: Box

    def __post_init__(self) -> None:
        _placement(self.mode)
        sides = {"native_size": self.native_size, "input_size": self.input_size, "content": self.content[2:]}
        for name, side in sides.items():
            require(min(side) >= 1, name, getattr(self, name), "sides of 1 px or more")
        inside = all(room >= 0 for margin in self._margins for room in margin)
        require(inside, "content", self.content, f"a box inside the input of {self.input_size} px")

    @classmethod
    def of(cls, mode: str, native_size: Size, input_size: Size) -> "Geometry":
        """Place an image of ``native_size`` in an input of ``input_size``; sides are at least 1 px.

        Raises:
            FieldError: The mode is unknown.
        """
        content = _placement(mode)(native_size, input_size)
        return cls(mode=mode, native_size=native_size, input_size=input_size, content=content)

    def resize_image(self, image: NDArray[np.generic]) -> NDArray[np.float32]:
        """Resize an image to its content box: normalise the result, then `pad` it.

        Args:
            image: (C, *native_size) of any real dtype, see `iaunet.resample.resize_image`.

        Returns:
            (C, *content size) float32 in the units of ``image``.

        Raises:
            ValueError: The image has another size than ``native_size``.
        """
        _check_size(image, self.native_size)
        return resample.resize_image(image, self.content[2:])

    def pad(self, content: NDArray[np.float32], fill: float = 0.0) -> NDArray[np.float32]:
        """Surround (C, *content size) with ``fill``: (C, *input_size).

        Raises:
            ValueError: ``content`` has another size than the content box.
        """
        _check_size(content, self.content[2:])
        return np.pad(content, ((0, 0), *self._margins), constant_values=fill)

    def mask_to_input(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Take a mask (*native_size) to the input (*input_size); padding is background.

        Raises:
            ValueError: The mask has another size than ``native_size``.
        """
        _check_size(mask, self.native_size)
        return np.pad(resample.resize_mask(mask, self.content[2:]), self._margins)

    def restore(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take probabilities of the input back to the image, the padding cut away.

        Args:
            probabilities: (L, *input_size) in [0, 1].

        Returns:
            (L, *native_size) in [0, 1].

        Raises:
            ValueError: The probabilities have another size than ``input_size``.
        """
        _check_size(probabilities, self.input_size)
        top, left, height, width = self.content
        content = probabilities[:, top : top + height, left : left + width]
        return resample.resize_probabilities(content, self.native_size)

    @property
    def _margins(self) -> tuple[tuple[int, int], tuple[int, int]]:
        top, left, height, width = self.content
        return (top, self.input_size[0] - top - height), (left, self.input_size[1] - left - width)


def _check_size(array: NDArray[np.generic], size: Size) -> None:
    if array.shape[-2:] != size:
        raise ValueError(f"an array of {array.shape[-2:]} px where the geometry has {size} px")
