"""What images of the training data are like, and in what a new one differs from them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from iaunet.errors import WorkspaceError
from iaunet.files import to_channels
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.plan import Plan
from iaunet.records import FieldError, load_record, require, to_json
from iaunet.resample import Size
from iaunet.stacks import Stack
from iaunet.storage import digest, write_json
from iaunet.workspace import DatasetFolder

FAMILIAR = "familiar.json"
"""In the folder of a dataset: what the images were like at each planning, for runs outlive a change of the data."""

LOW, HIGH = 1, 99
VERSION = 1
"""Of the rule of `Familiar.of`: what was kept under another one is found anew."""
ROUNDING = 1e-5
"""The fingerprint's means have six digits."""


@dataclass(frozen=True, kw_only=True)
class Familiar:
    """What images of the training data are like.

    Args:
        channels: Of each image.
        smallest: The least height and the least width in pixels.
        largest: The greatest.
        means: For each channel the percentiles 1 and 99 of the images' mean intensities, in the units of the files; the
            least and the greatest below 100 images.
    """

    channels: int
    smallest: Size
    largest: Size
    means: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        fits = len(self.means) == self.channels and all(math.isfinite(mean) for pair in self.means for mean in pair)
        require(fits, "means", self.means, f"two numbers for each of {self.channels} channels")

    @classmethod
    def of(cls, fingerprint: Fingerprint) -> "Familiar":
        """What a fingerprint says."""
        own = ([channel.mean for channel in case.intensity] for case in fingerprint.cases)
        means = np.array([np.broadcast_to(each, fingerprint.channels) for each in own])  # grey among colour as well
        low = np.percentile(means, LOW, axis=0, method="lower")  # so that below 100 cases all are familiar
        high = np.percentile(means, HIGH, axis=0, method="higher")
        (height, width), (greatest_height, greatest_width) = fingerprint.sizes.min(0), fingerprint.sizes.max(0)
        return cls(
            channels=fingerprint.channels,
            smallest=(int(height), int(width)),
            largest=(int(greatest_height), int(greatest_width)),
            means=tuple(zip(low.tolist(), high.tolist(), strict=True)),
        )

    def differences(self, stack: Stack) -> Iterator[str]:
        """In what an image differs from all or nearly all training images, in words; nothing if it does not.

        Raises:
            FileError: The channels of the image cannot be brought to those of the training images.
        """
        own = stack.pixels.shape[0]
        if own != self.channels:
            yield f"{own} channel{'s' if own > 1 else ''} made {self.channels}"
        size = stack.shape[1:]
        if any(not low <= side <= high for low, side, high in zip(self.smallest, size, self.largest, strict=True)):
            there = " to ".join(dict.fromkeys(f"{height} x {width}" for height, width in (self.smallest, self.largest)))
            yield f"size {size[0]} x {size[1]}, trained on {there}"
        means = to_channels(stack.pixels, self.channels).mean(axis=(1, 2, 3), dtype=np.float64).tolist()
        for number, (mean, (low, high)) in enumerate(zip(means, self.means, strict=True)):
            slack = ROUNDING * max(abs(low), abs(high))
            if not low - slack <= mean <= high + slack:
                which = f" of channel {number + 1}" if self.channels > 1 else ""
                yield f"mean intensity{which} {mean:.4g}, trained on {low:.4g} to {high:.4g}"


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What was found by which rule, by the digests of the fingerprints."""

    made_by: str
    of_fingerprint: Mapping[str, Familiar]


def keep_familiar(folder: DatasetFolder, fingerprint: str, familiar: Familiar) -> None:
    """Keep what the images of a fingerprint, given by its digest, are like, beside those of earlier ones."""
    of_fingerprint = {**_kept(folder), fingerprint: familiar}
    write_json(folder.root / FAMILIAR, to_json(_Kept(made_by=_rule(), of_fingerprint=of_fingerprint)))


def find_familiar(folder: DatasetFolder, plan: Plan) -> Familiar | None:
    """What the images that a plan was made for are like, None where that is not known."""
    if found := _kept(folder).get(plan.fingerprint):
        return found
    try:
        fingerprint = load_record(Fingerprint, folder.fingerprint_json, WorkspaceError, "")
        return Familiar.of(fingerprint) if fingerprint.digest == plan.fingerprint else None
    except (WorkspaceError, FieldError):
        return None


def _kept(folder: DatasetFolder) -> Mapping[str, Familiar]:
    """What is kept by today's rule, nothing where that cannot be read."""
    try:
        kept = load_record(_Kept, folder.root / FAMILIAR, WorkspaceError, "")
    except (WorkspaceError, FieldError):
        return {}
    return kept.of_fingerprint if kept.made_by == _rule() else {}


def _rule() -> str:
    return digest([LOW, HIGH, VERSION])
