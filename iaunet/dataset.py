"""A dataset as it was understood: its cases, its labels, how its mask files hold them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import FileError
from iaunet.records import require

BINARY_CUT = 127
"""Mask values above this are foreground where a mask is binary but noisy."""


IGNORED = 255
"""Stands for an ignored pixel among labels."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image or volume with its mask.

    ``name`` is the image's path below its folder without ending, parts joined by "/". ``images`` are the files of
    its channels (a folder stands for the DICOM series in it), ``mask`` is None when there is none and the case counts
    as empty. Paths are relative to the dataset's root or absolute.
    """

    name: str
    images: tuple[str, ...]
    mask: str | None

    def __post_init__(self) -> None:
        require_case_name(self.name)


LONGEST_NAME = 255
"""Bytes of a file's name."""


def require_case_name(name: str, field: str = "name") -> None:
    """Refuse the name of a case, or of a run, whose files would lie outside of the folders that hold them, or nowhere.

    Args:
        name: What is to be a path below a folder.
        field: What holds it, for the message.

    Raises:
        FieldError: It is empty, a path that does not lead down, or longer than a file's name can be.
    """
    path = Path(name)
    fits = bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in name
    fits = fits and all(len(part.encode(errors="replace")) <= LONGEST_NAME for part in path.parts)
    require(fits, field, name, "a path below a folder")


@dataclass(frozen=True, kw_only=True)
class MaskCoding:
    """How the values of mask files stand for labels.

    ``values``: each value in ``values`` is one label, in order. ``binary``: values above 127 are the one label.
    ``nonzero``: all values above 0 are the one label (they number instances). ``written`` holds the value that
    stands for each label in the masks that are written. ``regions``, where there are any, are what the network gives
    instead of labels: the values each unites, and ``regions_class_order`` the value that each paints, later over
    earlier. Pixels of the value ``ignore`` count nowhere.
    """

    kind: Literal["values", "binary", "nonzero"]
    values: tuple[int, ...]
    written: tuple[int, ...]
    regions: tuple[tuple[int, ...], ...] = ()
    regions_class_order: tuple[int, ...] = ()
    ignore: int | None = None

    def __post_init__(self) -> None:
        n = len(self.written)
        fits = 0 < n < IGNORED and len({*self.written}) == n and all(0 < value <= 65535 for value in self.written)
        require(fits, "written", self.written, "a different value from 1 to 65535 for each label")
        if self.kind == "values":
            fits = len({*self.values} - {0, self.ignore}) == len(self.values) == n
            require(fits, "values", self.values, f"{n} different values other than 0 and the ignored one, a label each")
        else:
            require(n == 1, "written", self.written, f"one value, as {self.kind} masks have one label")
            require(not self.values, "values", self.values, f"none, as {self.kind} masks have one label")
        fits = all(region and {*region} <= {*self.values} for region in self.regions)
        require(fits, "regions", self.regions, f"lists of the values {self.values}")
        order = self.regions_class_order
        fits = len(order) == len(self.regions) and {*order} <= {*self.values}
        require(fits, "regions_class_order", order, f"one of the values {self.values} for each region")

    @property
    def outputs(self) -> tuple[tuple[int, ...], ...]:
        """The labels that each output of the network unites: one each, unless there are regions."""
        if not self.regions:
            return tuple((label,) for label in range(1, len(self.written) + 1))
        return tuple(tuple(self.values.index(value) + 1 for value in region) for region in self.regions)

    @property
    def of_written(self) -> "MaskCoding":
        """How to read the masks that are written."""
        return MaskCoding(kind="values", values=self.written, written=self.written)

    @property
    def painted(self) -> tuple[int, ...]:
        """The label that each region paints; empty without regions."""
        return tuple(self.values.index(value) + 1 for value in self.regions_class_order)

    def encode(self, raw: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Turn raw mask values of any shape into labels 0..n, uint8; `IGNORED` where they are to be ignored.

        Raises:
            FileError: A value stands for no label.
        """
        if self.kind == "binary":
            return (raw > BINARY_CUT).astype(np.uint8)
        if self.kind == "nonzero":
            return (raw > 0).astype(np.uint8)
        labels = np.zeros(raw.shape, np.uint8)
        known = raw == 0
        coded = [*enumerate(self.values, start=1)] + ([] if self.ignore is None else [(IGNORED, self.ignore)])
        for label, value in coded:
            here = raw == value
            labels[here] = label
            known |= here
        if not known.all():
            stranger = int(raw[~known][0])
            raise FileError(
                f"mask holds the value {stranger}, the data set has {(0, *(value for _, value in coded))}",
                "correct the mask, or plan again if the value is meant",
            )
        return labels

    def decode(self, labels: NDArray[np.uint8]) -> NDArray[np.integer]:
        """Turn labels of any shape into the values of the dataset's masks, uint8 or uint16."""
        table = np.array([0, *self.written])
        table = table.astype(np.uint8 if table.max() <= 255 else np.uint16)
        values = np.empty(labels.shape, table.dtype)
        for row in np.ndindex(labels.shape[:-1]):  # numpy looks up with 8 bytes a pixel
            values[row] = table[labels[row]]
        return values

    def targets(self, labels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the network is to give for labels [..., H, W]: [..., outputs, H, W] of 0 and 1."""
        return np.stack([where_any(labels, output) for output in self.outputs], axis=-3).astype(np.float32)


def where_any(labels: NDArray[np.integer], values: Sequence[int]) -> NDArray[np.bool_]:
    """Where labels are any of some values, one at least: `numpy.isin`, many times faster for a few values."""
    first, *others = values
    found: NDArray[np.bool_] = labels == first
    for value in others:
        found |= labels == value
    return found


MissingMask = Literal["error", "empty", "skip"]

SliceAxis = Literal["axial", "coronal", "sagittal"]
"""The planes that a volume is cut into."""


@dataclass(frozen=True, kw_only=True)
class Slicing:
    """How files with more than one picture are read: the planes volumes are cut into, and the letters of the axes of
    multi-page TIFF files that do not say them."""

    slice_axis: SliceAxis = "axial"
    axes: str | None = None


DEFAULT_SLICING = Slicing()


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the raw data lie, and what the user said about reading and planning them; paths are absolute.

    ``images`` and ``masks`` are None where the folder's own layout tells them apart. ``groups`` is as
    `iaunet.grouping.resolve_groups` takes it. ``skip_faulty`` leaves out the cases whose files cannot be used.
    ``width`` is None for the planner's choice, ``n_folds`` the number of folds of each split. ``slice_axis`` names the
    planes that volumes are cut into, None for those of coarsest spacing; ``axes`` are the letters of the axes of
    multi-page TIFF files that do not say them. ``test`` is a folder with a held-out test set.
    """

    root: str
    images: str | None = None
    masks: str | None = None
    mask_suffixes: tuple[str, ...] = ()
    missing_mask: MissingMask = "error"
    groups: str | None = None
    skip_faulty: bool = False
    planner: str = "auto"
    width: int | None = None
    n_folds: int = 5
    slice_axis: SliceAxis | None = None
    axes: str | None = None
    test: str | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What was understood of a folder with raw data, and where it lay.

    ``labels`` names the foreground labels in order. ``groups`` maps a case's name to the patient or video it comes
    from; without groups it is empty. ``understood`` is the line that was shown to the user. ``channel_kinds`` is how
    the dataset's own dataset.json wishes each channel to be normalised (`iaunet.nnunet.normalisation_of`), if it says;
    ``channel_files`` is as in a plan.
    """

    name: str
    source: Source
    understood: str
    labels: tuple[str, ...]
    coding: MaskCoding
    cases: tuple[Case, ...]
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    groups_from: str = "none"
    slicing: Slicing = DEFAULT_SLICING
    channel_kinds: tuple[str, ...] = ()
    channel_files: int = 0

    def path(self, file: str) -> Path:
        """The path of a case's file."""
        return Path(self.source.root) / file


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something about the raw data the user should know: a ``fault`` stops planning, a ``note`` does not."""

    level: Literal["fault", "note"]
    file: str
    what: str
    mend: str

    @classmethod
    def of(cls, file: str, error: FileError) -> "Problem":
        """The fault of a file that could not be read."""
        return cls(level="fault", file=file, what=error.what, mend=error.mend)
