"""The plan: everything that preprocessing, training and inference must agree on, as one frozen value."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from iaunet.dataset import DEFAULT_SLICING, MaskCoding, Slicing
from iaunet.decision import decide, decide_regions, find_reached
from iaunet.errors import NetworkError, PlanError
from iaunet.networks import DEPTHS, build_network, check_network
from iaunet.planners.recipes import Recipe
from iaunet.records import FieldError, from_json, require, to_json
from iaunet.storage import digest, read_json, write_json

if TYPE_CHECKING:
    from torch import nn

PLAN_VERSION = 2
NetworkOption = str | int | float | bool | None
SIDE_STEP = 16
WIDEST = 1024
PREPARATION = (
    "channels",
    "depth",
    "coding",
    "slicing",
    "input_mode",
    "input_size",
    "tile_scale",
    "equal_spacing",
    "normalisation",
)
"""The fields of a plan that say how a case becomes rows of the arrays."""

REPLAN = "correct it, or run iaunet_plan_and_preprocess with --replan for a new plan"


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How intensities are normalised.

    ``dataset``: minus ``mean``, divided by ``sd``, a number each channel in the units of the files, after clipping to
    ``windows`` if there are any, a lowest and highest value each channel. ``case``: each case is clipped to its own
    ``percentiles`` and brought to mean 0 and sd 1. No sd is taken as less than 1e-6.
    """

    kind: Literal["dataset", "case"]
    mean: tuple[float, ...] = ()
    sd: tuple[float, ...] = ()
    windows: tuple[tuple[float, float], ...] = ()
    percentiles: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind == "dataset":
            fits = len(self.mean) > 0 and all(map(math.isfinite, self.mean))
            require(fits, "mean", self.mean, "a number for each channel")
            require(len(self.sd) == len(self.mean), "sd", self.sd, f"{len(self.mean)} numbers, as in mean")
            require(all(sd >= 0 for sd in self.sd), "sd", self.sd, "numbers of 0 or more")
        fits = not self.windows or len(self.windows) == len(self.mean)
        require(fits, "windows", self.windows, "a lowest and a highest value for each channel")
        require(all(low < high for low, high in self.windows), "windows", self.windows, "rising pairs of numbers")
        if self.percentiles is not None:
            low, high = self.percentiles
            require(0 <= low < high <= 100, "percentiles", self.percentiles, "two rising numbers in 0 to 100")


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """A network by name, with its width (channels of the first stage), depth (stages) and options of its own."""

    name: str
    width: int
    depth: int
    options: dict[str, NetworkOption] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        require(1 <= self.width <= WIDEST, "width", self.width, f"a whole number from 1 to {WIDEST}")
        allowed = f"a whole number from {DEPTHS[0]} to {DEPTHS[-1]}"
        require(self.depth in DEPTHS, "depth", self.depth, allowed)
        if ":" in self.name:  # a stranger's code runs only when it is built, never to check a file
            return
        try:
            check_network(self.name, {**self.options})
        except NetworkError as fault:
            raise FieldError("name and options", f"do not fit: {fault}") from fault


@dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """``mirroring``: average over the four flips. ``thresholds``: the probability from which a label counts."""

    mirroring: bool
    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        allowed = "probabilities between 0 and 1"
        require(all(0 < value < 1 for value in self.thresholds), "thresholds", self.thresholds, allowed)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What training and inference must agree on.

    Sizes are (height, width) in pixels. ``depth`` is the pixel type of the image files (numpy's name). ``labels``
    names the network's outputs: labels, or regions of them. ``tile_scale`` is what pictures are resized by before
    they are cut into tiles; with ``equal_spacing`` their pixels are made square in mm first. ``channel_files`` is how
    many files a case consists of where their names end in the channel's number as nnU-Net's do (``_0000``), else 0.
    ``fingerprint`` is the digest of the data it was made for. ``why`` explains
    a field's choice by the figures behind it, ``warnings`` tells what to keep in mind. ``planned`` is the digest of
    the plan as the planner made it: a plan edited by hand no longer has it.
    """

    version: int = PLAN_VERSION
    planner: str
    dataset: str
    fingerprint: str
    channels: int
    depth: str
    labels: tuple[str, ...]
    coding: MaskCoding
    slicing: Slicing = DEFAULT_SLICING
    channel_files: int = 0
    input_mode: Literal["resize", "letterbox", "tiles"]
    input_size: tuple[int, int]
    tile_scale: float = 1.0
    equal_spacing: bool = False
    normalisation: Normalisation
    network: NetworkPlan
    recipe: Recipe
    inference: InferencePlan
    split: Literal["random", "grouped"]
    why: dict[str, str]
    warnings: tuple[str, ...] = ()
    planned: str = ""

    def __post_init__(self) -> None:
        require(self.version == PLAN_VERSION, "version", self.version, f"{PLAN_VERSION}, or plan again")
        require(1 <= self.channels <= 64, "channels", self.channels, "a whole number from 1 to 64")
        n = len(self.labels)
        require(1 <= len({*self.labels}) == n <= 255, "labels", self.labels, "1 to 255 different names")
        outputs = self.coding.outputs
        require(len(outputs) == n, "coding", outputs, f"{n} labels or regions, as in labels")
        require(0 < self.tile_scale <= 1, "tile_scale", self.tile_scale, "a number above 0, 1 at most")
        thresholds = self.inference.thresholds
        require(len(thresholds) == n, "inference.thresholds", thresholds, f"{n} numbers, one a label")
        size = self.input_size
        sides = f"two sides from 32 to 2048 that are multiples of {SIDE_STEP}"
        require(all(32 <= s <= 2048 and s % SIDE_STEP == 0 for s in size), "input_size", size, sides)
        mean = self.normalisation.mean
        if self.normalisation.kind == "dataset":
            numbers = f"{self.channels} numbers, one a channel"
            require(len(mean) == self.channels, "normalisation.mean", mean, numbers)

    @property
    def value_names(self) -> tuple[str, ...]:
        """A name for each value that masks may hold: the label's, or that of the region that paints it."""
        if not self.coding.regions:
            return self.labels
        painters = dict(zip(self.coding.regions_class_order, self.labels, strict=True))
        return tuple(painters.get(value, f"value {value}") for value in self.coding.values)

    @property
    def is_edited(self) -> bool:
        """Whether somebody changed it since the planner made it."""
        return self.planned != content_digest(self)

    @cached_property
    def preparation_digest(self) -> str:
        """Names how a case is prepared, whatever the other cases are."""
        return digest({name: to_json(getattr(self, name)) for name in PREPARATION})

    @cached_property
    def arrays_digest(self) -> str:
        """Names what the preprocessed arrays depend on: the data and how they are prepared."""
        return digest({name: to_json(getattr(self, name)) for name in ("fingerprint", *PREPARATION)})

    def reached(self, probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Where [...] any of the probabilities [outputs, ...] reaches its threshold."""
        return np.asarray(find_reached(probabilities, self.inference.thresholds).any(axis=0))

    def decide(self, probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The labels [...] of probabilities [outputs, ...], see `iaunet.decision`."""
        thresholds = self.inference.thresholds
        if self.coding.regions:
            return decide_regions(probabilities, thresholds, self.coding.painted)
        return decide(probabilities, thresholds)


def with_thresholds(plan: Plan, thresholds: tuple[float, ...]) -> Plan:
    """The plan with other thresholds, one an output of the network."""
    return dataclasses.replace(plan, inference=dataclasses.replace(plan.inference, thresholds=thresholds))


def decisions(plan: Plan) -> dict[str, Any]:
    """All that a plan decides, as plain values; explanations are left out."""
    return {name: value for name, value in to_json(plan).items() if name not in ("planned", "why", "warnings")}


EDITED = "edited by hand"
_DECIDED_TOGETHER = {"input_mode": ("input_mode", "input_size", "tile_scale", "equal_spacing")}
"""Fields that one reason is about."""


def with_reasons(plan: Plan, planned: Plan) -> Plan:
    """A plan with the planner's reasons for what is still the planner's choice, and "edited by hand" for the rest.

    Args:
        plan: May be edited. A reason that was edited too is kept, unless the choice is the planner's again.
        planned: The plan as the planner made it.
    """
    why = dict(plan.why)
    for name, reason in planned.why.items():
        if all(getattr(plan, field) == getattr(planned, field) for field in _DECIDED_TOGETHER.get(name, (name,))):
            why[name] = reason
        elif why.get(name) == reason:
            why[name] = EDITED
    return dataclasses.replace(plan, why=why)


def content_digest(plan: Plan) -> str:
    """The digest of what a plan decides."""
    return digest(decisions(plan))


def parse_plan(data: Any) -> Plan:
    """A plan from its JSON.

    Raises:
        FieldError: A field is missing, unknown or holds what it cannot; the message names it and what is allowed.
    """
    return from_json(Plan, data)


def load_plan(path: Path) -> Plan:
    """Read plan.json.

    Raises:
        PlanError: It is missing or holds what a plan cannot; the message names the field and what is allowed.
    """
    try:
        return parse_plan(read_json(path, PlanError, "run iaunet_plan_and_preprocess first"))
    except FieldError as fault:
        raise PlanError(f"{path}: {fault}; {REPLAN}") from fault


def save_plan(plan: Plan, path: Path) -> None:
    """Write plan.json."""
    write_json(path, to_json(plan))


def build_planned_network(plan: Plan) -> "nn.Module":
    """The network a plan asks for, with fresh weights; imports torch."""
    network = plan.network
    return build_network(
        network.name,
        channels=plan.channels,
        labels=len(plan.labels),
        width=network.width,
        depth=network.depth,
        **network.options,
    )
