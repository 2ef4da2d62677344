"""The rules of planning: each a function of the fingerprint that gives a choice and the figures behind it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from iaunet.planners.fingerprint import INPUT_SIZE, CaseFingerprint, Fingerprint
from iaunet.planners.histogram import PERCENTS
from iaunet.planners.measures import HIGH_CEILING, TILE_SCALES
from iaunet.planners.plan import Normalisation
from iaunet.resample import Size
from iaunet.tiling import tile_origins

Value = TypeVar("Value")

LOWEST_CEILING = HIGH_CEILING
LEAST_WIDTH = 3.0
MOST_STRETCH = 2.0
MOST_UNEVEN_SPACING = 1.5
SMALL_SHIFT = 0.05
"""Statistics that moved by less, in sd, leave the normalisation as it was."""

CT_AIR = (-1100.0, -500.0)
"""Where the darkest half percent of a CT volume lies, in Hounsfield units."""

GOAL_STEPS = 20_000
ROWS_A_DRAW = 4
"""A case is drawn once an epoch for so many rows: with half overlap a pixel lies in four tiles, and neighbouring slices
are much alike."""

MOST_STEPS_AN_EPOCH = 250
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


@dataclass(frozen=True)
class InputMode:
    """How pictures become inputs: a name of `iaunet.preprocessing.geometry.MODES`, the scale of tiles, and whether
    pixels are made square in mm first."""

    mode: Literal["resize", "letterbox", "tiles"]
    tile_scale: float = 1.0
    equal_spacing: bool = False


def choose_input_mode(fingerprint: Fingerprint, input_size: Size) -> Choice[InputMode]:
    """Stretch images to the input as the paper does, unless that would distort shapes or lose thin structures."""
    uneven = _find_uneven_spacing(fingerprint)
    tiles = _choose_tiles(fingerprint, uneven is not None)
    if tiles is not None:
        return tiles
    height, width = fingerprint.sizes.T
    stretch = np.maximum(height / width, width / height)
    typical, extreme = np.median(stretch), np.percentile(stretch, 95)
    sizes = f"sizes {_by(fingerprint.sizes.min(0))} to {_by(fingerprint.sizes.max(0))} (height x width)"
    if uneven is not None:
        return Choice(InputMode("letterbox", equal_spacing=True), f"{sizes}, {uneven}")
    if extreme > MOST_STRETCH:
        why = f"{sizes}: stretching would distort 5 % of the images more than {extreme:.2f} times, so aspect is kept"
        return Choice(InputMode("letterbox"), why)
    sides = f"sides differ {typical:.2f} times (95 %: {extreme:.2f})"
    return Choice(InputMode("resize"), f"{sizes}, {sides}: stretched to {_by(input_size)} as in the paper")


def _find_uneven_spacing(fingerprint: Fingerprint) -> str | None:
    """Why pixels have to be made square, None if they need not."""
    ratios = [max(case.spacing_mm[1:]) / min(case.spacing_mm[1:]) for case in fingerprint.cases if case.spacing_mm]
    if not ratios or max(ratios) <= MOST_UNEVEN_SPACING:
        return None
    return f"pixels up to {max(ratios):.2f} times as long as wide: scaled to equal mm, aspect kept"


def _choose_tiles(fingerprint: Fingerprint, uneven: bool) -> Choice[InputMode] | None:
    """Windows at the smallest scale that keeps structures, where the input's size does not; else None."""
    if not len(fingerprint.ceilings):
        return None
    ceiling = float(np.median(fingerprint.ceilings))
    at_input = fingerprint.input_widths
    width = float(np.median(at_input)) if len(at_input) else np.inf
    if ceiling >= LOWEST_CEILING and width >= LEAST_WIDTH:
        return None
    if (fingerprint.sizes <= INPUT_SIZE).all():
        return None  # the input enlarges: what is lost is lost in the images
    native = float(np.median(fingerprint.widths)) if len(fingerprint.widths) else np.inf
    reached = [
        scale
        for i, scale in enumerate(TILE_SCALES)
        if np.median(fingerprint.ceilings_at(i)) >= LOWEST_CEILING and native * scale >= LEAST_WIDTH
    ]
    scale = min(reached, default=1.0)
    why = (
        f"structures are too thin for {_by(INPUT_SIZE)} (median width there {width:.1f} px, least {LEAST_WIDTH:g}; "
        f"median ceiling {ceiling:.2f}, least {LOWEST_CEILING}): cut into half-overlapping tiles at {scale:g} of the "
        f"native size, where the median width is {native * scale:.1f} px"
    )
    return Choice(InputMode("tiles", tile_scale=scale, equal_spacing=uneven), why)


def find_lost_detail(fingerprint: Fingerprint, mode: InputMode) -> str | None:
    """A warning when no network can score well whatever is done: structures get lost that tiles do not save."""
    if mode.mode == "tiles" or not len(fingerprint.ceilings):
        return None
    ceiling = float(np.median(fingerprint.ceilings))
    if ceiling >= LOWEST_CEILING:
        return None
    return f"no network working at {_by(INPUT_SIZE)} can score a median Dice above {ceiling:.2f} on these masks"


def choose_normalisation(
    fingerprint: Fingerprint, channel_kinds: Sequence[str] = (), before: Normalisation | None = None
) -> Choice[Normalisation]:
    """Photographs by the dataset's mean and sd, as the paper; CT by a window; other intensities case by case.

    Args:
        fingerprint: Of the dataset.
        channel_kinds: What the dataset says of its channels, see `iaunet.nnunet.normalisation_of`; empty if nothing.
        before: That of the plan before, kept where the dataset's statistics moved little: then the cases that were
            there need not be prepared again.
    """
    if channel_kinds and {*channel_kinds} <= {"none", "rgb_to_0_1"}:
        sd = tuple(255.0 if kind == "rgb_to_0_1" else 1.0 for kind in channel_kinds)
        sd *= fingerprint.channels if len(sd) == 1 else 1  # one file may hold several channels
        why = f"the data set asks for {', '.join(channel_kinds)}"
        return Choice(Normalisation(kind="dataset", mean=(0.0,) * len(sd), sd=sd), why)
    asked_for_ct = bool(channel_kinds) and {*channel_kinds} == {"ct"}
    looks_like_ct = not channel_kinds and _looks_like_ct(fingerprint)
    if asked_for_ct or looks_like_ct:
        choice = _by_foreground_window(fingerprint, "named CT" if asked_for_ct else "air below -500 in every case")
    elif fingerprint.depth == "uint8":
        choice = _by_dataset(fingerprint)
    else:
        return _by_case(fingerprint)
    if before is not None and before != choice.value and _is_near(before, choice.value):
        return Choice(before, f"{choice.why}; kept from the plan before, which differs by less than {SMALL_SHIFT} sd")
    return choice


def _by_dataset(fingerprint: Fingerprint) -> Choice[Normalisation]:
    mean = tuple(channel.mean for channel in fingerprint.intensity)
    sd = tuple(channel.sd for channel in fingerprint.intensity)
    figures = ", ".join(f"{m:.1f} +- {s:.1f}" for m, s in zip(mean, sd, strict=True))
    why = f"8-bit photographs: by mean and sd of the data set's pixels ({figures}), as in the paper"
    return Choice(Normalisation(kind="dataset", mean=mean, sd=sd), why)


def _by_foreground_window(fingerprint: Fingerprint, sign: str) -> Choice[Normalisation]:
    """As nnU-Net treats CT: clipped to the foreground's percentiles, then by the foreground's mean and sd."""
    channels = fingerprint.foreground
    places = [PERCENTS.index(percent) for percent in NORMALISING_PERCENTILES]
    low, high = ([channel.percentiles[place] for channel in channels] for place in places)
    windows = tuple((a, b if b > a else a + 1) for a, b in zip(low, high, strict=True))
    mean, sd = tuple(c.mean for c in channels), tuple(c.sd for c in channels)
    shown = ", ".join(f"{a:g} to {b:g}" for a, b in windows)
    why = f"CT ({sign}): clipped to the foreground's {NORMALISING_PERCENTILES} % percentiles ({shown}), then z-scored"
    return Choice(Normalisation(kind="dataset", mean=mean, sd=sd, windows=windows), why)


def _by_case(fingerprint: Fingerprint) -> Choice[Normalisation]:
    means = [channel.mean for case in fingerprint.cases for channel in case.intensity]
    low, high = NORMALISING_PERCENTILES
    why = (
        f"{fingerprint.depth} intensities with case means from {min(means):.4g} to {max(means):.4g}: each case by "
        f"its own mean and sd after clipping to its {low} and {high} % percentiles"
    )
    return Choice(Normalisation(kind="case", percentiles=NORMALISING_PERCENTILES), why)


def _looks_like_ct(fingerprint: Fingerprint) -> bool:
    """Whether every case is a volume in Hounsfield units: air, about -1000, is in each."""
    lowest = PERCENTS.index(NORMALISING_PERCENTILES[0])
    return (
        fingerprint.are_volumes
        and fingerprint.channels == 1
        and all(CT_AIR[0] <= case.intensity[0].percentiles[lowest] <= CT_AIR[1] for case in fingerprint.cases)
    )


def _is_near(before: Normalisation, now: Normalisation) -> bool:
    if (before.kind, len(before.mean), len(before.windows)) != (now.kind, len(now.mean), len(now.windows)):
        return False
    numbers = [
        (*before.mean, *before.sd, *sum(before.windows, ())),
        (*now.mean, *now.sd, *sum(now.windows, ())),
    ]
    return bool(np.abs(np.subtract(*numbers)).max() <= SMALL_SHIFT * min(now.sd))


def choose_epochs(fingerprint: Fingerprint, mode: InputMode, batch_size: int) -> Choice[tuple[int, int]]:
    """How often a case is drawn in an epoch, and as many epochs as make about `GOAL_STEPS` steps on four fifths of the
    cases."""
    n_train = max(1, len(fingerprint.cases) * 4 // 5)
    n_rows = float(np.median([_count_rows(case, mode) for case in fingerprint.cases]))
    draws = max(1, min(round(n_rows / ROWS_A_DRAW), MOST_STEPS_AN_EPOCH * batch_size // n_train))
    steps = -(-n_train * draws // batch_size)
    epochs = int(np.clip(round(GOAL_STEPS / steps), FEWEST_EPOCHS, MOST_EPOCHS))
    drawn = f" drawn {draws} times ({n_rows:g} rows a case)" if draws > 1 else ""
    why = (
        f"{n_train} training cases{drawn} are {steps} steps of {batch_size}: {epochs} epochs make {steps * epochs:,} "
        f"steps (goal {GOAL_STEPS:,}, between {FEWEST_EPOCHS} and {MOST_EPOCHS} epochs)"
    )
    return Choice((draws, epochs), why)


def _count_rows(case: CaseFingerprint, mode: InputMode) -> int:
    """How many rows a case will have."""
    slices, *sides = case.shape
    if mode.mode != "tiles":
        return slices
    tiles = (
        len(tile_origins(max(1, round(side * mode.tile_scale)), room))
        for side, room in zip(sides, INPUT_SIZE, strict=True)
    )
    return slices * math.prod(tiles)


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
