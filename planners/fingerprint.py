"""The fingerprint: what a dataset is, measured case by case and summed up."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from iaunet.dataset import DEFAULT_SLICING, Case, MaskCoding, Problem, Slicing
from iaunet.errors import FileError
from iaunet.planners.duplicates import Groups, exact_duplicates, near_duplicates
from iaunet.planners.histogram import Intensity, Totals
from iaunet.planners.mask_values import judge_masks
from iaunet.planners.measures import LabelMeasures, Measurement, Measurements, MeasureTask, measure_cases
from iaunet.planners.pictures import KeptPictures, KeptPlace
from iaunet.planners.suspicions import ALL_MASKS, find_suspicions
from iaunet.records import require, to_json
from iaunet.resample import Size
from iaunet.storage import digest
from iaunet.workers import IMAGES_WORTH_A_PROCESS, map_in_processes

logger = logging.getLogger(__name__)

INPUT_SIZE: Size = (256, 256)
"""(height, width) of the network's input in pixels, as in the paper."""

MOST_WIDTHS = 64
"""The local width is measured on at most this many cases, spread evenly."""

MOST_AT_ONCE = 8
"""Cases that a process measures before it tells of them, which costs about a tenth of measuring one."""

LEAST_TURNS = 4
"""Into how many parts each process divides its cases at least, so that none waits long for the others at the end."""

LARGEST_NEAR_SHARE = 0.1
"""A group of near duplicates that holds more of the cases is a look they share, not one image repeated."""


@dataclass(frozen=True, kw_only=True)
class LabelFingerprint:
    """One label in one case: share of the pixels, components and their median equivalent diameter in native pixels,
    the ceiling, its Dice when taken to the input's size and back, and the same for `TILE_SCALES` where it is low."""

    share: float
    components: int
    diameter: float
    ceiling: float
    tile_ceilings: tuple[float, ...] = ()

    @classmethod
    def of(cls, measures: LabelMeasures) -> "LabelFingerprint":
        """The measures of a label, rounded."""
        return cls(
            share=round(measures.share, 6),
            components=len(measures.diameters),
            diameter=float(np.median(measures.diameters)),
            ceiling=round(measures.ceiling, 4),
            tile_ceilings=tuple(round(ceiling, 4) for ceiling in measures.tile_ceilings),
        )


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One case. ``shape`` is (slices, height, width) in pixels, ``spacing_mm`` the distance of slices, rows and
    columns, None when unknown; ``labels`` is None at the labels the case has not; ``local_width`` is in native pixels,
    None where it was not measured."""

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    channels: int
    image_sha256: str
    mask_sha256: str | None
    intensity: tuple[Intensity, ...]
    foreground: tuple[Intensity, ...]
    labels: tuple[LabelFingerprint | None, ...]
    local_width: float | None

    @property
    def size(self) -> Size:
        """(height, width) of its pictures in pixels."""
        return self.shape[1:]

    @property
    def foreground_share(self) -> float:
        """Share of the pixels that have a label."""
        return sum(label.share for label in self.labels if label)

    @property
    def ceiling(self) -> float | None:
        """The mean ceiling of the labels it has, None when it has none."""
        return self.ceiling_at(None)

    def ceiling_at(self, scale: int | None) -> float | None:
        """The mean ceiling of the labels it has at the input's size (None) or a scale by its number in `TILE_SCALES`.

        A label that loses little at the input's size was not measured at other scales, and counts as it is.
        """
        found = [
            label.ceiling if scale is None or not label.tile_ceilings else label.tile_ceilings[scale]
            for label in self.labels
            if label
        ]
        return sum(found) / len(found) if found else None


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What was measured on a dataset; holds no time, host or path.

    ``depth`` is the files' pixel type. ``intensity`` and ``foreground`` are over all pixels of all cases, a channel
    each. ``near_duplicates`` leaves out groups larger than a tenth of the cases, counted in ``shared_look``.
    """

    version: int = 2
    channels: int
    depth: str
    labels: tuple[str, ...]
    intensity: tuple[Intensity, ...]
    foreground: tuple[Intensity, ...]
    exact_duplicates: tuple[tuple[str, ...], ...]
    near_duplicates: tuple[tuple[str, ...], ...]
    shared_look: int
    cases: tuple[CaseFingerprint, ...]

    def __post_init__(self) -> None:
        require(len(self.cases) > 0, "cases", [], "one at least")
        for case in self.cases:
            fits = len(case.intensity) in (1, self.channels)
            require(fits, f"intensity of {case.name}", len(case.intensity), f"1 or {self.channels}, one a channel")

    @cached_property
    def digest(self) -> str:
        """What names this state of the data."""
        return digest(to_json(self))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(height, width) of each case in pixels, [cases, 2]."""
        return np.array([case.size for case in self.cases])

    @property
    def ceilings(self) -> NDArray[np.float64]:
        """The ceiling of each case that has foreground."""
        return np.array([case.ceiling for case in self.cases if case.ceiling is not None])

    @property
    def widths(self) -> NDArray[np.float64]:
        """The local width in native pixels of the cases where it was measured."""
        return np.array([case.local_width for case in self.cases if case.local_width is not None])

    def ceilings_at(self, scale: int) -> NDArray[np.float64]:
        """As `ceilings`, at a scale by its number in `TILE_SCALES`."""
        found = [case.ceiling_at(scale) for case in self.cases]
        return np.array([ceiling for ceiling in found if ceiling is not None])

    @property
    def are_volumes(self) -> bool:
        """Whether a case has several slices."""
        return any(case.shape[0] > 1 for case in self.cases)

    @property
    def input_widths(self) -> NDArray[np.float64]:
        """The local width at the input's size, in pixels, of the cases where it was measured."""
        widths = []
        for case in self.cases:
            if case.local_width is not None:
                scale = min(there / here for here, there in zip(case.size, INPUT_SIZE, strict=True))
                widths.append(case.local_width * scale)
        return np.array(widths)

    @property
    def empty_masks(self) -> int:
        """Cases without any foreground."""
        return sum(not any(case.labels) for case in self.cases)


@dataclass(frozen=True)
class Reading:
    """A dataset read as a whole: its fingerprint, how its masks are coded, and what is notable.

    ``thumbnails`` are 32x32 grey pictures of the cases, uint8, for comparing them with others; ``kept`` says where
    pictures are kept that preprocessing need not decode again.
    """

    fingerprint: Fingerprint | None
    coding: MaskCoding | None
    problems: tuple[Problem, ...]
    faulty: frozenset[str]
    thumbnails: Mapping[str, NDArray[np.uint8]] = dataclasses.field(default_factory=dict)
    kept: Mapping[str, KeptPlace] = dataclasses.field(default_factory=dict)


def fingerprint_dataset(
    root: Path,
    cases: Sequence[Case],
    workers: int,
    skip_faulty: bool = False,
    slicing: Slicing = DEFAULT_SLICING,
    given: MaskCoding | None = None,
    pictures: KeptPictures | None = None,
) -> Reading:
    """Measure all cases of a dataset, each file decoded once.

    Args:
        root: What the cases' paths are relative to.
        cases: The cases, sorted.
        workers: Processes to use.
        skip_faulty: Go on with the other cases where some have faults.
        slicing: How volumes are cut and pages understood.
        given: How mask values stand for labels, where the dataset says so; None to judge it by the masks.
        pictures: Keeps what was decoded, if preprocessing is to follow.

    Returns:
        All faults and notes together. ``faulty`` names the cases that have a fault. There is no fingerprint if there
        are such cases and they are not to be skipped, or if the masks taken together cannot be read.
    """
    tasks = _tasks(root, cases, slicing, given, pictures)
    pixels, foreground = Totals(), Totals()
    measurements: list[Measurement] = []
    for measured in _measure(tasks, workers):
        pixels.add_all(measured.pixels)
        foreground.add_all(measured.foreground)
        measurements += measured.measurements
    sound, problems, suspect = _sift(measurements, tasks)
    faulty = frozenset(case.name for case in cases) - {measurement.case for measurement in sound}
    if not sound or ((faulty or suspect) and not skip_faulty):
        return Reading(None, None, tuple(problems), faulty | suspect)
    depth = sound[0].depth

    def without(others: frozenset[str]) -> Reading:
        """As if these cases had never been there: the sums and the coding hold what is spoiled by now."""
        left = [case for case in cases if case.name not in others]
        again = fingerprint_dataset(root, left, workers, skip_faulty, slicing, given, pictures)
        return dataclasses.replace(
            again, problems=tuple(dict.fromkeys((*problems, *again.problems))), faulty=others | again.faulty
        )

    if suspect:
        return without(faulty | suspect)
    try:
        coding, notes = (given, []) if given else judge_masks(sound)
    except FileError as fault:
        return Reading(None, None, (*problems, Problem.of(ALL_MASKS, fault)), faulty)
    sound = _measured_by(coding, tasks, sound, workers, foreground)
    late = [measurement for measurement in sound if measurement.problems]
    if late:
        problems += [problem for measurement in late for problem in measurement.problems]
        faulty |= {measurement.case for measurement in late}
        return without(faulty) if skip_faulty else Reading(None, None, tuple(problems), faulty)
    channels = max(m.channels for m in sound)
    fingerprint = _sum_up(
        sound,
        coding,
        depth,
        pixels.intensity(depth, channels),
        foreground.intensity((depth, coding.kind), channels),
    )
    thumbnails = {m.case: m.thumbnail for m in sound if m.thumbnail is not None}
    kept = {m.case: m.kept for m in sound if m.kept is not None}
    return Reading(fingerprint, coding, (*problems, *notes, *_notes(sound)), faulty, thumbnails, kept)


def _sift(
    measurements: Sequence[Measurement], tasks: Sequence[MeasureTask]
) -> tuple[list[Measurement], list[Problem], frozenset[str]]:
    """The cases that can be read and have one pixel type, all problems so far, and those whose masks look wrong."""
    problems = [problem for measurement in measurements for problem in measurement.problems]
    sound = [measurement for measurement in measurements if not measurement.problems]
    depth = _usual_depth(sound)
    problems += _mixed_images(sound, depth, tasks)
    sound = [measurement for measurement in sound if measurement.depth == depth]
    suspicions = find_suspicions([shapes for measurement in sound for shapes in measurement.shapes])
    wrong = {problem.file for problem in suspicions if problem.level == "fault"}
    suspect = frozenset(task.case for task in tasks if task.mask_file in wrong)
    return sound, [*problems, *suspicions], suspect


def _tasks(
    root: Path, cases: Sequence[Case], slicing: Slicing, coding: MaskCoding | None, pictures: KeptPictures | None
) -> list[MeasureTask]:
    stride = -(-len(cases) // MOST_WIDTHS)
    return [
        MeasureTask(
            case=case.name,
            images=tuple(root / image for image in case.images),
            image_file=case.images[0],
            mask=root / case.mask if case.mask else None,
            mask_file=case.mask,
            input_size=INPUT_SIZE,
            with_width=i % stride == 0,
            slicing=slicing,
            coding=coding,
            pictures=pictures,
        )
        for i, case in enumerate(cases)
    ]


def _measure(tasks: Sequence[MeasureTask], workers: int) -> Iterator[Measurements]:
    """What is measured on the cases, some at a time: few where there are few, so that every process has its part."""
    size = min(MOST_AT_ONCE, math.ceil(len(tasks) / (LEAST_TURNS * workers)))
    lots = [tasks[start : start + size] for start in range(0, len(tasks), size or 1)]
    processes = min(workers, math.ceil(len(tasks) / IMAGES_WORTH_A_PROCESS))
    with tqdm(total=len(tasks), desc="fingerprint", unit=" cases", disable=None, leave=False) as bar:
        for measured in map_in_processes(measure_cases, lots, processes, items_worth_a_process=1):
            bar.update(len(measured.measurements))
            yield measured


def _measured_by(
    coding: MaskCoding,
    tasks: Sequence[MeasureTask],
    measurements: Sequence[Measurement],
    workers: int,
    foreground: Totals,
) -> list[Measurement]:
    """The measurements by label; cases whose own values suggested another reading are measured once more."""
    again = {m.case for m in measurements if m.read_as != coding.kind}
    repeated = [dataclasses.replace(task, coding=coding) for task in tasks if task.case in again]
    corrected: dict[str, Measurement] = {}
    for measured in _measure(repeated, workers):
        foreground.add_all(measured.foreground)
        corrected |= {one.case: one for one in measured.measurements}
    by_label = tasks[0].coding is not None
    return [corrected.get(m.case) or _by_label(m, coding, by_label) for m in measurements]


def _by_label(measurement: Measurement, coding: MaskCoding, given: bool) -> Measurement:
    """Measures by raw value as measures by label, unless they were taken by label."""
    if coding.kind != "values" or given:
        return measurement
    raw = measurement.labels or {}
    labels = {i: raw[value] for i, value in enumerate(coding.values, start=1) if value in raw}
    return dataclasses.replace(measurement, labels=labels)


def _usual_depth(measurements: Sequence[Measurement]) -> str:
    depths = [m.depth for m in measurements]
    return max(sorted(set(depths)), key=depths.count, default="")


def _mixed_images(measurements: Sequence[Measurement], usual: str, tasks: Sequence[MeasureTask]) -> list[Problem]:
    """Faults of images whose pixel type is not the usual one."""
    files = {task.case: task.image_file for task in tasks}
    what = "pixels are {}, most of the data set has {}"
    mend = "convert the images to one bit depth"
    return [
        Problem(level="fault", file=files[m.case], what=what.format(m.depth, usual), mend=mend)
        for m in measurements
        if m.depth != usual
    ]


def _notes(measurements: Sequence[Measurement]) -> list[Problem]:
    """What the user should know though it stops nothing."""
    notes = []

    def note(cases: Sequence[str], what: str, mend: str) -> None:
        if cases:
            file = cases[0] if len(cases) == 1 else f"{cases[0]} and {len(cases) - 1} more"
            notes.append(Problem(level="note", file=file, what=what, mend=mend))

    channels = max(m.channels for m in measurements)
    grey = [m.case for m in measurements if m.channels < channels]
    note(grey, f"is grey among {channels}-channel images and was promoted", "check that it belongs to them")
    transparent = [m.case for m in measurements if m.has_transparency]
    note(transparent, "transparency is left out", "nothing, unless it hides part of the image")
    empty = [m.case for m in measurements if not m.labels]
    note(empty, "mask is empty: kept as an image without foreground", "nothing, if there is none to see")
    return notes


def _sum_up(
    measurements: Sequence[Measurement],
    coding: MaskCoding,
    depth: str,
    intensity: tuple[Intensity, ...],
    foreground: tuple[Intensity, ...],
) -> Fingerprint:
    names = [m.case for m in measurements]
    n_labels = len(coding.written)
    thumbnails = {m.case: m.thumbnail for m in measurements if m.thumbnail is not None}
    near = near_duplicates([*thumbnails], [*thumbnails.values()])
    kept = tuple(group for group in near if len(group) <= max(2, LARGEST_NEAR_SHARE * len(names)))
    return Fingerprint(
        channels=len(intensity),
        depth=depth,
        labels=label_names(n_labels),
        intensity=intensity,
        foreground=foreground,
        exact_duplicates=exact_duplicates(names, [m.image_sha256 for m in measurements]),
        near_duplicates=kept,
        shared_look=_n_members(near) - _n_members(kept),
        cases=tuple(_case_fingerprint(m, n_labels) for m in measurements),
    )


def label_names(n_labels: int) -> tuple[str, ...]:
    """Names for labels that have none of their own."""
    return ("foreground",) if n_labels == 1 else tuple(f"label_{i + 1}" for i in range(n_labels))


def _n_members(groups: Groups) -> int:
    return sum(map(len, groups))


def _case_fingerprint(measurement: Measurement, n_labels: int) -> CaseFingerprint:
    labels = measurement.labels or {}
    return CaseFingerprint(
        name=measurement.case,
        shape=measurement.shape,
        spacing_mm=measurement.spacing_mm,
        channels=measurement.channels,
        image_sha256=measurement.image_sha256,
        mask_sha256=measurement.mask_sha256,
        intensity=measurement.intensity,
        foreground=measurement.foreground_intensity if labels else (),
        labels=tuple(
            LabelFingerprint.of(labels[label]) if label in labels else None for label in range(1, n_labels + 1)
        ),
        local_width=measurement.local_width and round(measurement.local_width, 2),
    )
