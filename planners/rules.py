"""The rules of planning: each a function of the fingerprint that gives a choice and the figures behind it."""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from iaunet.planners.fingerprint import INPUT_SIZE, Fingerprint
from iaunet.planners.plan import Normalisation
from iaunet.resample import Size

Value = TypeVar("Value")

LOWEST_CEILING = 0.97
LEAST_WIDTH = 3.0
MOST_STRETCH = 2.0
GOAL_STEPS = 20_000
FEWEST_EPOCHS, MOST_EPOCHS = 100, 500
NARROW = 16
MANY_KEYS, FEW_KEYS = 1024, 256
"""On a CPU, 1024 keys cost a network of width 8 most of its time."""

NORMALISING_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Choice(Generic[Value]):
    """What was chosen and why, with its figures."""

    value: Value
    why: str


def choose_input_mode(fingerprint: Fingerprint, input_size: Size) -> Choice[Literal["resize", "letterbox"]]:
    """Stretch images to the input as the paper does, unless that would distort shapes much."""
    height, width = fingerprint.sizes.T
    stretch = np.maximum(height / width, width / height)
    typical, extreme = np.median(stretch), np.percentile(stretch, 95)
    sizes = f"sizes {_by(fingerprint.sizes.min(0))} to {_by(fingerprint.sizes.max(0))} (height x width)"
    if extreme > MOST_STRETCH:
        why = f"{sizes}: stretching would distort 5 % of the images more than {extreme:.2f} times, so aspect is kept"
        return Choice("letterbox", why)
    sides = f"sides differ {typical:.2f} times (95 %: {extreme:.2f})"
    return Choice("resize", f"{sizes}, {sides}: stretched to {_by(input_size)} as in the paper")


def find_lost_detail(fingerprint: Fingerprint) -> str | None:
    """A warning when shrinking to the input's size loses structures: they would need tiles."""
    if not len(fingerprint.ceilings):
        return None
    ceiling = float(np.median(fingerprint.ceilings))
    widths = fingerprint.input_widths
    width = float(np.median(widths)) if len(widths) else np.inf
    if ceiling >= LOWEST_CEILING and width >= LEAST_WIDTH:
        return None
    return (
        f"structures are too thin for {_by(INPUT_SIZE)}: their median width there is {width:.1f} px and no network "
        f"can score a median Dice above {ceiling:.2f}; cut the images into parts and train on those"
    )


def choose_normalisation(fingerprint: Fingerprint) -> Choice[Normalisation]:
    """Photographs by the dataset's mean and sd, as the paper; other intensities image by image."""
    if fingerprint.depth == "uint8":
        mean = tuple(channel.mean for channel in fingerprint.intensity)
        sd = tuple(channel.sd for channel in fingerprint.intensity)
        figures = ", ".join(f"{m:.1f} +- {s:.1f}" for m, s in zip(mean, sd, strict=True))
        why = f"8-bit photographs: by mean and sd of the data set's pixels ({figures}), as in the paper"
        return Choice(Normalisation(kind="dataset", mean=mean, sd=sd), why)
    means = [channel.mean for case in fingerprint.cases for channel in case.intensity]
    low, high = NORMALISING_PERCENTILES
    why = (
        f"{fingerprint.depth} intensities with case means from {min(means):.4g} to {max(means):.4g}: each image by "
        f"its own mean and sd after clipping to its {low} and {high} % percentiles"
    )
    return Choice(Normalisation(kind="case", percentiles=NORMALISING_PERCENTILES), why)


def choose_epochs(fingerprint: Fingerprint, batch_size: int) -> Choice[int]:
    """As many epochs as make about `GOAL_STEPS` steps on four fifths of the cases."""
    n_train = max(1, len(fingerprint.cases) * 4 // 5)
    steps = -(-n_train // batch_size)
    epochs = int(np.clip(round(GOAL_STEPS / steps), FEWEST_EPOCHS, MOST_EPOCHS))
    why = (
        f"{n_train} training cases are {steps} steps of {batch_size}: {epochs} epochs make {steps * epochs:,} steps "
        f"(goal {GOAL_STEPS:,}, between {FEWEST_EPOCHS} and {MOST_EPOCHS} epochs)"
    )
    return Choice(epochs, why)


def choose_split(
    fingerprint: Fingerprint, n_groups: int, n_cases: int, missing: str | None = None
) -> Choice[Literal["random", "grouped"]]:
    """Folds that keep groups and near duplicates together, when there are any and such folds can be made.

    Args:
        fingerprint: Of the dataset.
        n_groups: Groups that are known, 0 without.
        n_cases: Cases of the dataset.
        missing: Why there are no grouped folds, None if there are.
    """
    n_near = sum(map(len, fingerprint.near_duplicates))
    if not n_groups and not n_near:
        return Choice("random", "no groups and no near duplicates are known")
    why = f"{n_groups} groups among {n_cases} cases, {n_near} cases nearly equal to another"
    if missing:
        return Choice("random", f"{why}, but {missing}")
    return Choice("grouped", f"{why}: kept in one fold")


def choose_max_keys(width: int) -> int:
    """Keys of the spatial attention: so narrow a network would spend most of its time on many."""
    return FEW_KEYS if width <= NARROW else MANY_KEYS


def _by(size: object) -> str:
    return " x ".join(str(int(side)) for side in size)  # type: ignore[attr-defined]
