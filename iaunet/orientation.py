"""How a volume lies in space, and what every file of a volume must keep to.

The canonical axes of an array are inferior, posterior, left (I, P, L): the first axis runs towards the feet, the
second towards the back, the third towards the left hand. A slice along any of them is then a picture as a
radiologist sees it: axial [P, L], coronal [I, L], sagittal [I, P]. Voxels are permuted and flipped to the closest such
axes, never resampled.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from iaunet.errors import FileError

MAX_VOXELS = 2**31
"""Voxels, times channels, a volume may have."""

_CANONICAL = np.array([[0, 0, -1], [0, -1, 0], [-1, 0, 0]])
"""A row for each canonical axis: its direction in RAS coordinates."""


@dataclass(frozen=True)
class Orientation:
    """How a file's array axes map to the canonical ones: transpose by ``order``, then reverse the ``flipped`` axes."""

    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    @classmethod
    def closest(cls, directions: ArrayLike) -> "Orientation":
        """The orientation that brings a file's axes closest to the canonical ones.

        Args:
            directions: [3, 3]. Column ``a`` is the direction of the file's array axis ``a`` in RAS coordinates, of
                any length above 0; the upper left part of an affine is such a matrix.
        """
        columns = np.asarray(directions, np.float64)
        cosines = _CANONICAL @ (columns / np.linalg.norm(columns, axis=0))  # [canonical axis, file axis]
        axes = (0, 1, 2)
        # rounded, so that the last bits of an affine do not decide between two that are as close
        order = max(itertools.permutations(axes), key=lambda order: round(sum(abs(cosines[axes, order])), 5))
        flipped = cosines[axes, order] < 0
        return cls((order[0], order[1], order[2]), (bool(flipped[0]), bool(flipped[1]), bool(flipped[2])))

    def to_canonical(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """A view of an array [..., file's axes] with its last three axes as I, P, L."""
        return np.flip(_transposed(array, self.order), self._flipped_axes)

    def to_file(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """A view of an array [..., I, P, L] with its last three axes as in the file: the inverse of `to_canonical`."""
        inverse = [self.order.index(axis) for axis in range(3)]
        return _transposed(np.flip(array, self._flipped_axes), inverse)

    def to_canonical_affine(self, affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
        """The affine [4, 4] of canonical voxels (I, P, L) from that of the file's, given the canonical ``shape``."""
        canonical = affine.copy()
        canonical[:, :3] = affine[:, self.order]
        for axis in (axis for axis in range(3) if self.flipped[axis]):
            canonical[:, 3] += canonical[:, axis] * (shape[axis] - 1)
            canonical[:, axis] *= -1
        return canonical

    @property
    def _flipped_axes(self) -> tuple[int, ...]:
        return tuple(axis - 3 for axis in range(3) if self.flipped[axis])


@dataclass(frozen=True, eq=False)
class VolumeHeader:
    """What a volume is without its voxels.

    ``shape`` is (I, P, L) in voxels. ``affine`` [4, 4] float64 maps voxel indices along the file's own axes to RAS
    coordinates in mm.
    """

    shape: tuple[int, int, int]
    channels: int
    orientation: Orientation
    affine: NDArray[np.float64]

    @classmethod
    def of(cls, file_shape: Sequence[int], channels: int, affine: NDArray[np.float64]) -> "VolumeHeader":
        """The header of a file with this shape and affine along its own three axes.

        Raises:
            FileError: The affine is singular or not finite.
        """
        require_affine(affine)
        orientation = Orientation.closest(affine[:3, :3])
        first, second, third = (int(file_shape[axis]) for axis in orientation.order)
        return cls((first, second, third), channels, orientation, affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The distance of neighbouring voxels along I, P, L."""
        return _spacing_mm(self.affine, self.orientation)

    @property
    def canonical_affine(self) -> NDArray[np.float64]:
        """[4, 4] from voxel indices along I, P, L to RAS coordinates in mm."""
        return self.orientation.to_canonical_affine(self.affine, self.shape)


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume along the canonical axes.

    ``voxels`` is [channels, I, P, L], often a view with negative strides. ``spacing_mm`` is along (I, P, L).
    ``orientation`` leads back to the file's axes; ``affine`` [4, 4] float64 maps voxel indices along those to RAS
    coordinates in mm.
    """

    voxels: NDArray[np.generic]
    spacing_mm: tuple[float, float, float]
    orientation: Orientation
    affine: NDArray[np.float64]

    @classmethod
    def of(cls, voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> "Volume":
        """The volume of voxels [channels, file's axes] and the affine of these axes.

        Raises:
            FileError: The affine is singular or not finite.
        """
        require_affine(affine)
        orientation = Orientation.closest(affine[:3, :3])
        return cls(orientation.to_canonical(voxels), _spacing_mm(affine, orientation), orientation, affine)

    @property
    def header(self) -> VolumeHeader:
        """The same volume without its voxels."""
        channels, *shape = self.voxels.shape
        return VolumeHeader((shape[0], shape[1], shape[2]), channels, self.orientation, self.affine)


def damaged(reason: str) -> FileError:
    """The fault of a file that is not whole."""
    return FileError(f"is truncated or damaged ({reason})", "copy it again from its source or remove it")


def as_float32(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """Finite values as float32.

    Raises:
        FileError: Some are beyond its range.
    """
    with np.errstate(over="ignore"):  # becomes infinity
        narrow = values.astype(np.float32)
    if values.dtype.itemsize > narrow.dtype.itemsize and not np.isfinite(narrow).all():
        raise FileError("holds values beyond 3.4e38, the largest of 32-bit floats", "scale them down")
    return narrow


def sizes_text(shape: Sequence[float]) -> str:
    """``3 x 4 x 5``."""
    return " x ".join(map(str, shape))


def require_size(shape: Sequence[int], channels: int = 1) -> None:
    """Refuse a shape without voxels or with more than `MAX_VOXELS`."""
    if min(shape) < 1:
        raise damaged(f"its header says {sizes_text(shape)} voxels")
    if math.prod(shape) * channels > MAX_VOXELS:
        raise FileError(f"has {sizes_text(shape)} voxels, more than the {MAX_VOXELS:,} allowed", "cut or shrink it")


def require_one_volume(further: Sequence[int]) -> None:
    """Refuse a file whose axes after the third hold more than one volume."""
    n = math.prod(further)
    if n != 1:
        raise FileError(f"holds {n} volumes", "save each as a file of its own, one a channel")


def require_affine(affine: NDArray[np.float64]) -> None:
    """Refuse an affine [4, 4] that is singular, nearly so, or not finite."""
    columns = affine[:3, :3]
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(columns, axis=0)
    fits = np.isfinite(affine).all() and np.isfinite(lengths).all() and lengths.all()
    if not fits or abs(np.linalg.det(columns / lengths)) < 1e-3:
        raise FileError(
            "its header gives voxels no place in space (spacing of 0, axes in one plane, or nan)",
            "convert it again from its source",
        )


def _transposed(array: NDArray[np.generic], order: Sequence[int]) -> NDArray[np.generic]:
    leading = array.ndim - 3
    return array.transpose(*range(leading), *(leading + axis for axis in order))


def _spacing_mm(affine: NDArray[np.float64], orientation: Orientation) -> tuple[float, float, float]:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)[list(orientation.order)]
    return float(lengths[0]), float(lengths[1]), float(lengths[2])
