"""A dataset as it was understood: its cases, its labels, how its mask files hold them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import FileError
from iaunet.records import require

BINARY_CUT = 127
"""Mask values above this are foreground where a mask is binary but noisy."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image or volume with its mask.

    ``name`` is the image's path below its folder without ending, parts joined by "/". ``images`` are the files of
    its channels, ``mask`` is None when there is none and the case counts as empty. Paths are relative to the
    dataset's root or absolute.
    """

    name: str
    images: tuple[str, ...]
    mask: str | None


@dataclass(frozen=True, kw_only=True)
class MaskCoding:
    """How the values of mask files stand for labels.

    ``values``: each value in ``values`` is one label, in order. ``binary``: values above 127 are the one label.
    ``nonzero``: all values above 0 are the one label (they number instances). ``written`` holds the value that
    stands for each label in the masks that are written.
    """

    kind: Literal["values", "binary", "nonzero"]
    values: tuple[int, ...]
    written: tuple[int, ...]

    def __post_init__(self) -> None:
        n = len(self.written)
        fits = n > 0 and len({*self.written}) == n and all(0 < value <= 65535 for value in self.written)
        require(fits, "written", self.written, "a different value from 1 to 65535 for each label")
        if self.kind == "values":
            fits = len({*self.values} - {0}) == len(self.values) == n
            require(fits, "values", self.values, f"{n} different values other than 0, a label each")
        else:
            require(n == 1, "written", self.written, f"one value, as {self.kind} masks have one label")
            require(not self.values, "values", self.values, f"none, as {self.kind} masks have one label")

    def encode(self, raw: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Turn raw mask values [height, width] into labels 0..n, uint8.

        Raises:
            FileError: A value stands for no label.
        """
        if self.kind == "binary":
            return (raw > BINARY_CUT).astype(np.uint8)
        if self.kind == "nonzero":
            return (raw > 0).astype(np.uint8)
        labels = np.zeros(raw.shape, np.uint8)
        known = raw == 0
        for label, value in enumerate(self.values, start=1):
            here = raw == value
            labels[here] = label
            known |= here
        if not known.all():
            stranger = int(raw[~known][0])
            raise FileError(
                f"mask holds the value {stranger}, the data set has {(0, *self.values)}",
                "correct the mask, or plan again if the value is meant",
            )
        return labels

    def decode(self, labels: NDArray[np.uint8]) -> NDArray[np.generic]:
        """Turn labels [height, width] into the values of the dataset's masks, uint8 or uint16."""
        table = np.array([0, *self.written])
        return table.astype(np.uint8 if table.max() <= 255 else np.uint16)[labels]


MissingMask = Literal["error", "empty", "skip"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the raw data lie, and what the user said about reading and planning them; paths are absolute.

    ``images`` and ``masks`` are None where the folder's own layout tells them apart. ``groups`` is as
    `iaunet.grouping.resolve_groups` takes it. ``skip_faulty`` leaves out the cases whose files cannot be used.
    ``width`` is None for the planner's choice, ``n_folds`` the number of folds of each split.
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


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What was understood of a folder with raw data; the only file that knows where it lay.

    ``labels`` names the foreground labels in order. ``groups`` maps a case's name to the patient or video it comes
    from; without groups it is empty. ``understood`` is the line that was shown to the user.
    """

    name: str
    source: Source
    understood: str
    labels: tuple[str, ...]
    coding: MaskCoding
    cases: tuple[Case, ...]
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    groups_from: str = "none"

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
