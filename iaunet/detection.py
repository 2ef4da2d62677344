"""Whether lesions are found, whatever their outlines: components of two masks, matched one to one.

A lesion is a component of the true mask, an alarm one of the predicted mask; pixels that touch at sides or corners are
of one component (8 neighbours in an image, 26 in a volume). A pair can match from an intersection over union of 0.1 on,
which asks for coarse localisation only and is what medical object detection is usually evaluated at (Baumgartner et
al., nnDetection, MICCAI 2021; the PI-CAI challenge, Saha et al. 2022). Of all ways to match one to one the one with the
most pairs counts, among these the one with the highest sum of IoU: so a lesion that is predicted in two parts is one
found lesion and one false alarm, and two lesions that are predicted as one are one found and one missed.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from iaunet.dataset import IGNORED, where_any
from iaunet.metrics import Mask

LEAST_IOU = 0.1
SIZE_NAMES = ("small", "medium", "large")


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Lesions, those of them that were found, and alarms that are no lesion; of many cases they add up."""

    lesions: int = 0
    found: int = 0
    false_alarms: int = 0

    def __add__(self, other: "Detection") -> "Detection":
        return Detection(
            lesions=self.lesions + other.lesions,
            found=self.found + other.found,
            false_alarms=self.false_alarms + other.false_alarms,
        )

    @property
    def missed(self) -> int:
        """Lesions that no alarm matches."""
        return self.lesions - self.found

    @property
    def sensitivity(self) -> float:
        """The share of lesions that were found, in [0, 1]; NaN without lesions."""
        return _ratio(self.found, self.lesions)

    @property
    def precision(self) -> float:
        """The share of alarms that are lesions, in [0, 1]; NaN without alarms."""
        return _ratio(self.found, self.found + self.false_alarms)

    @property
    def f1(self) -> float:
        """The harmonic mean of both, in [0, 1]; NaN without lesions and alarms."""
        return _ratio(2 * self.found, self.lesions + self.found + self.false_alarms)


@dataclass(frozen=True, eq=False)
class ComponentMatch:
    """The components of the masks of one case.

    ``lesion_areas`` [lesions] and ``alarm_areas`` [alarms] are in pixels (of a volume: voxels), int64;
    ``lesion_ious`` and ``alarm_ious`` hold the IoU of each with its partner, 0 where it has none, float64.
    """

    lesion_areas: NDArray[np.int64]
    alarm_areas: NDArray[np.int64]
    lesion_ious: NDArray[np.float64]
    alarm_ious: NDArray[np.float64]

    @property
    def detection(self) -> Detection:
        """The counts of the case."""
        return self.count(0, math.inf)

    def count(self, above: float, most: float) -> Detection:
        """The counts of the components of more than ``above`` and at most ``most`` pixels, each by its own area."""
        lesions = (self.lesion_areas > above) & (self.lesion_areas <= most)
        alarms = (self.alarm_areas > above) & (self.alarm_areas <= most)
        return Detection(
            lesions=int(lesions.sum()),
            found=int((self.lesion_ious[lesions] > 0).sum()),
            false_alarms=int((self.alarm_ious[alarms] == 0).sum()),
        )


@dataclass(frozen=True, kw_only=True)
class SizeClass:
    """The lesions of one third of a dataset's, by area: above ``above`` and at most ``most`` pixels.

    The largest class has no upper end, None. A false alarm belongs to the class of its own area.
    """

    name: str
    above: float
    most: float | None
    detection: Detection


@dataclass(frozen=True, kw_only=True)
class DetectionSummary:
    """The detection of the lesions of many cases.

    ``sizes`` is empty where there are fewer than three lesions. ``n_empty`` cases have no lesion; in
    ``n_empty_with_alarms`` of them something was predicted all the same.
    """

    overall: Detection
    sizes: tuple[SizeClass, ...]
    n_cases: int
    n_empty: int
    n_empty_with_alarms: int

    @property
    def alarms_per_case(self) -> float:
        """False alarms a case on average; NaN without cases."""
        return _ratio(self.overall.false_alarms, self.n_cases)


def match_components(
    prediction: Mask, truth: Mask, valid: Mask | None = None, least_iou: float = LEAST_IOU
) -> ComponentMatch:
    """Match the components of a predicted mask with those of the true one.

    Args:
        prediction: Predicted mask, an image or a volume.
        truth: True mask of the same shape.
        valid: The pixels that count; the others are background in both masks. None for all.
        least_iou: The least IoU of a pair that can match, above 0.

    Raises:
        ValueError: The shapes differ, or ``least_iou`` is not in (0, 1].
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"a prediction of {prediction.shape} px cannot be matched with a truth of {truth.shape} px")
    if not 0 < least_iou <= 1:
        raise ValueError(f"a least IoU of {least_iou} is not above 0 and at most 1")
    if valid is not None:
        prediction, truth = prediction & valid, truth & valid
    lesions, lesion_areas = _components(truth)
    alarms, alarm_areas = _components(prediction)
    ious = _ious(lesions[truth & prediction], alarms[truth & prediction], lesion_areas, alarm_areas)
    ious.data[ious.data < least_iou] = 0
    ious.eliminate_zeros()
    match = ComponentMatch(lesion_areas, alarm_areas, np.zeros(len(lesion_areas)), np.zeros(len(alarm_areas)))
    for lesion, alarm, iou in _best_pairs(ious):
        match.lesion_ious[lesion] = match.alarm_ious[alarm] = iou
    return match


def detect(
    cases: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]], outputs: Sequence[tuple[int, ...]]
) -> tuple[DetectionSummary, ...]:
    """Detect the lesions of many cases in one pass; only their areas and IoUs are kept.

    Args:
        cases: Of each the predicted and the true labels, uint8, (H, W), or (slices, H, W) of a volume; one slice counts
            as a picture. Pixels whose true label is `IGNORED` count nowhere.
        outputs: The labels that each output unites: components of labels that belong together are one lesion.

    Returns:
        One for each of ``outputs``.

    Raises:
        ValueError: The shapes of a case differ.
    """
    matches: list[list[ComponentMatch]] = [[] for _ in outputs]
    for prediction, truth in cases:
        if truth.ndim == 3 and len(truth) == 1 == len(prediction):
            prediction, truth = prediction[0], truth[0]
        valid = truth != IGNORED
        for of_output, labels in zip(matches, outputs, strict=True):
            of_output.append(match_components(where_any(prediction, labels), where_any(truth, labels), valid))
    return tuple(summarise_detection(of_output) for of_output in matches)


def summarise_detection(matches: Sequence[ComponentMatch]) -> DetectionSummary:
    """Sum up the matches of many cases; the size classes are thirds of their lesions by area."""
    empty = [match for match in matches if not match.lesion_areas.size]
    return DetectionSummary(
        overall=_total(matches),
        sizes=_size_classes(matches),
        n_cases=len(matches),
        n_empty=len(empty),
        n_empty_with_alarms=sum(match.alarm_areas.size > 0 for match in empty),
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _components(mask: Mask) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """For each pixel the number of its component from 1 on, 0 outside; and the area of each."""
    numbers, n = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
    return numbers, np.bincount(numbers[mask], minlength=n + 1)[1:].astype(np.int64)


def _ious(
    lesions: NDArray[np.integer],
    alarms: NDArray[np.integer],
    lesion_areas: NDArray[np.int64],
    alarm_areas: NDArray[np.int64],
) -> coo_array:
    """The IoU of all pairs that share pixels, from the numbers of both at each shared pixel."""
    shape = len(lesion_areas), len(alarm_areas)
    shared = coo_array((np.ones(len(lesions)), (lesions - 1, alarms - 1)), shape)
    shared.sum_duplicates()
    shared.data /= lesion_areas[shared.row] + alarm_areas[shared.col] - shared.data
    return shared


def _best_pairs(ious: coo_array) -> Iterator[tuple[int, int, float]]:
    """The best pairs (lesion, alarm, IoU), sought in each cluster of components that overlap for itself."""
    n_lesions, n_alarms = ious.shape
    nodes = n_lesions + n_alarms
    edges = coo_array((ious.data, (ious.row, ious.col + n_lesions)), (nodes, nodes))
    _, cluster_of = connected_components(edges, directed=False)
    clusters = cluster_of[ious.row]
    order = np.argsort(clusters, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1):
        yield from _assign(ious.row[members], ious.col[members], ious.data[members])


def _assign(
    lesions: NDArray[np.integer], alarms: NDArray[np.integer], ious: NDArray[np.float64]
) -> Iterator[tuple[int, int, float]]:
    """The best pairs of one cluster; a pair more is always worth more than any gain of IoU."""
    rows, row = np.unique(lesions, return_inverse=True)
    columns, column = np.unique(alarms, return_inverse=True)
    table = np.zeros((len(rows), len(columns)))
    table[row, column] = ious
    worth = np.where(table > 0, table + min(table.shape), 0)
    for i, j in zip(*linear_sum_assignment(worth, maximize=True), strict=True):
        if table[i, j] > 0:
            yield int(rows[i]), int(columns[j]), float(table[i, j])


def _size_classes(matches: Sequence[ComponentMatch]) -> tuple[SizeClass, ...]:
    areas = np.concatenate([np.empty(0, np.int64), *(match.lesion_areas for match in matches)])
    if len(areas) < len(SIZE_NAMES):
        return ()
    small, medium = (float(limit) for limit in np.quantile(areas, [1 / 3, 2 / 3]))
    limits = zip(SIZE_NAMES, (0.0, small, medium), (small, medium, None), strict=True)
    return tuple(
        SizeClass(
            name=name, above=above, most=most, detection=_total(matches, above, math.inf if most is None else most)
        )
        for name, above, most in limits
    )


def _total(matches: Sequence[ComponentMatch], above: float = 0, most: float = math.inf) -> Detection:
    return sum((match.count(above, most) for match in matches), Detection())
