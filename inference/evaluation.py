"""Scores the masks of one folder on those of another."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from iaunet.dataset import BINARY_CUT, MaskCoding, Problem, Slicing
from iaunet.discovery import IMAGE_ENDINGS, MASK_SUFFIXES, composed, list_images, natural_order
from iaunet.errors import DatasetError, FileError, PredictionError
from iaunet.grouping import Grouping, resolve_groups
from iaunet.inference.output import OVERLAYS, PROBABILITIES, RECORD, SEGMENTATIONS, UNCERTAINTY
from iaunet.inference.scores import CaseScore, ScoreSummary, score_masks, summarise_scores, write_scores
from iaunet.masks import image_stem
from iaunet.planners.mask_values import judge_masks
from iaunet.planners.measures import MOST_MASK_VALUES, Measurement, count_values
from iaunet.records import to_json
from iaunet.stacks import MaskStack, read_mask_stack
from iaunet.storage import write_json
from iaunet.volumes import require_same_space
from iaunet.workers import map_in_processes
from iaunet.workspace import locked

SCORES, SUMMARY = "scores.csv", "summary.json"

SLICING = Slicing()
"""Scores are those of whole volumes, so it does not matter how they are cut."""

FOREGROUND = "foreground"
BINARY_VALUES = (255, 1)
"""The values that masks with one label write it with; they mean the same."""

_MASK_SUFFIX = re.compile(rf"(?<=[^/])({'|'.join(MASK_SUFFIXES)})$", re.IGNORECASE)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well a folder of masks agrees with the truth.

    ``problems`` holds a fault for each case that was not scored, and notes. ``understood`` tells how the values of
    the masks were read, ``groups_from`` where the groups come from. ``tolerance`` is that of surface Dice in pixels;
    distances are in mm where every true mask tells its spacing, else in pixels.
    """

    predictions: str
    truth: str
    understood: str
    groups_from: str
    tolerance: float
    problems: tuple[Problem, ...]
    summary: ScoreSummary
    scores: tuple[CaseScore, ...]

    @property
    def failures(self) -> list[Problem]:
        """Why each case that has no score has none."""
        return [problem for problem in self.problems if problem.level == "fault"]


@dataclass(frozen=True, kw_only=True)
class MaskPair:
    """The files of a case: its predicted and its true mask, a multi-page TIFF with ``axes`` if it does not say them."""

    name: str
    prediction: Path
    truth: Path
    axes: str | None = None


@dataclass(frozen=True, kw_only=True)
class MaskReading:
    """How the values of predicted and true masks stand for labels, and a line that says so.

    ``outputs`` are the labels that each of ``labels`` unites where these are regions, None for one each.
    """

    prediction: MaskCoding
    truth: MaskCoding
    labels: tuple[str, ...]
    understood: str
    outputs: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class SetReading:
    """How the values of several sets of masks stand for the same labels, and a line that says so."""

    codings: Mapping[str, MaskCoding]
    labels: tuple[str, ...]
    understood: str

    def between(self, prediction: str, truth: str) -> MaskReading:
        """How to score one set on another."""
        return MaskReading(
            prediction=self.codings[prediction],
            truth=self.codings[truth],
            labels=self.labels,
            understood=self.understood,
        )


@dataclass(frozen=True, kw_only=True)
class PairContents:
    """How often each value occurs in the masks of a pair; or the fault that keeps it from being scored."""

    pair: MaskPair
    prediction: Mapping[int, int] = field(default_factory=dict)
    truth: Mapping[int, int] = field(default_factory=dict)
    spacing_mm: tuple[float, float, float] | None = None
    fault: Problem | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreTask:
    """A pair to score: how its values are read, its spacing if distances are in mm, the tolerance in pixels."""

    pair: MaskPair
    reading: MaskReading
    spacing_mm: tuple[float, float, float] | None
    tolerance: float


def evaluate_folders(
    predictions: Path,
    truth: Path,
    groups: str | None,
    tolerance: float = 2.0,
    workers: int = 1,
) -> Evaluation:
    """Score the masks of a folder on the true masks of another.

    Masks belong together by their path below the folder, without ending and mask suffix. How their values stand for
    labels is judged over all of them, see `judge_folders`.

    Args:
        predictions: The folder of predicted masks.
        truth: The folder of true masks.
        groups: Which cases share a patient or video, as `resolve_groups` takes it.
        tolerance: Tolerance of surface Dice in pixels.
        workers: Processes at most.

    Returns:
        Scores and what they say together. A pair that cannot be scored and a truth without prediction are faults in
        its ``problems``, a prediction without truth is a note there.

    Raises:
        DatasetError: A folder does not exist, or the groups cannot be used.
        PredictionError: There is nothing to score, or the values of the masks cannot be read.
    """
    pairs, problems = pair_masks(predictions, truth)
    grouping = resolve_groups([pair.name for pair in pairs], groups)
    return evaluate_pairs(
        pairs,
        grouping,
        predictions=str(predictions),
        truth=str(truth),
        problems=problems,
        tolerance=tolerance,
        workers=workers,
    )


def evaluate_pairs(
    pairs: Sequence[MaskPair],
    grouping: Grouping,
    *,
    predictions: str,
    truth: str,
    problems: Sequence[Problem] = (),
    reading: MaskReading | None = None,
    tolerance: float = 2.0,
    workers: int = 1,
) -> Evaluation:
    """Score predicted masks on true ones.

    Args:
        pairs: The masks that belong together.
        grouping: Which of them share a patient or video.
        predictions: Where the predicted masks lie, to be told.
        truth: Where the true ones lie.
        problems: What is wrong with the pairs already.
        reading: How their values stand for labels; None to judge it by the masks.
        tolerance: Tolerance of surface Dice in pixels.
        workers: Processes at most.

    Raises:
        PredictionError: None can be scored, or the values of the masks cannot be read.
    """
    sound, faults = split_faults(inspect_pairs(pairs, workers))
    reading = reading or judge_folders(
        add_values(each.prediction for each in sound), add_values(each.truth for each in sound)
    )
    in_mm = all(each.spacing_mm for each in sound)  # else all in pixels: they are summed up together
    tasks = [
        ScoreTask(
            pair=each.pair,
            reading=reading,
            spacing_mm=each.spacing_mm if in_mm else None,
            tolerance=tolerance,
        )
        for each in sound
    ]
    scores = tuple(score_pairs(tasks, workers))
    return Evaluation(
        predictions=predictions,
        truth=truth,
        understood=reading.understood,
        groups_from=grouping.source,
        tolerance=tolerance,
        problems=(*problems, *faults),
        summary=summarise_scores(scores, grouping.groups, unit="mm" if in_mm else "px"),
        scores=scores,
    )


def save_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write ``scores.csv``, a row a case and label, and ``summary.json``, everything else, into a folder.

    Raises:
        WorkspaceError: The folder cannot be written, or another process is writing there.
    """
    summary = to_json(evaluation)
    del summary["scores"]
    with locked(folder, "writing scores"):
        write_scores(folder / SCORES, evaluation.scores)
        write_json(folder / SUMMARY, summary)


def pair_masks(predictions: Path, truth: Path) -> tuple[list[MaskPair], list[Problem]]:
    """Find the predicted mask that belongs to each true one.

    Returns:
        The pairs in natural order of their names; a fault for each truth without prediction and a note for each
        prediction without truth.

    Raises:
        DatasetError: A folder does not exist.
        PredictionError: A folder has no masks, two of one name, or none that the other has.
    """
    predicted, true = masks_by_name(predictions), masks_by_name(truth)
    pairs = [
        MaskPair(name=name, prediction=predicted[name], truth=true[name])
        for name in sorted(predicted.keys() & true.keys(), key=natural_order)
    ]
    if not pairs:
        raise PredictionError(
            f"{predictions} ({len(predicted)} masks, the first is {min(predicted)}) and {truth} ({len(true)}, the "
            f"first is {min(true)}) have no name in common: give folders whose masks have the same names"
        )
    mend = "predict its image, or remove it from the true masks"
    problems = [
        Problem(level="fault", file=str(true[name]), what="has no prediction", mend=mend)
        for name in sorted(true.keys() - predicted.keys(), key=natural_order)
    ]
    mend = "nothing, if it is not to be scored"
    problems += [
        Problem(level="note", file=str(predicted[name]), what="has no truth and is left out", mend=mend)
        for name in sorted(predicted.keys() - true.keys(), key=natural_order)
    ]
    return pairs, problems


def judge_folders(predictions: Mapping[int, int], truth: Mapping[int, int]) -> MaskReading:
    """Decide how the values of predicted and true masks stand for labels, see `judge_sets`.

    Args:
        predictions: How often each value occurs in all predicted masks.
        truth: The same for the true masks.

    Raises:
        PredictionError: As `judge_sets`.
    """
    sides = ("predicted masks", "true masks")
    return judge_sets(dict(zip(sides, (predictions, truth), strict=True)), [sides]).between(*sides)


def judge_sets(values: Mapping[str, Mapping[int, int]], scored: Iterable[tuple[str, str]]) -> SetReading:
    """Decide how mask values stand for labels.

    Masks with one label may write it as 1 or as 255, or be noisy around 0 and 255, each set in its own way. All others
    are label maps, where a value means the same in every set.

    Args:
        values: How often each value occurs in all masks of a set, by words for the set.
        scored: The sets that are scored on each other.

    Raises:
        PredictionError: The values are neither labels nor black and white, or those of sets that are scored on each
            other are not comparable.
    """
    binary = {title: _binary_coding(of_set) for title, of_set in values.items()}
    codings = {title: coding for title, coding in binary.items() if coding is not None}
    if len(codings) == len(values):
        told = ", ".join(f"{title} {_words(coding)}" for title, coding in codings.items())
        return SetReading(codings=codings, labels=(FOREGROUND,), understood=f"one label: {told}")
    labels = {title: _label_values(title, of_set) for title, of_set in values.items()}
    for first, second in scored:
        if labels[first] and labels[second] and not labels[first] & labels[second]:
            raise PredictionError(
                f"{first} hold the labels {_listed(labels[first])}, {second} {_listed(labels[second])}: write the same "
                "values for the same labels"
            )
    union = tuple(sorted(set().union(*labels.values())))
    coding = MaskCoding(kind="values", values=union, written=union)
    return SetReading(
        codings=dict.fromkeys(values, coding),
        labels=(FOREGROUND,) if len(union) == 1 else tuple(f"label_{value}" for value in union),
        understood=f"labels by value: {_listed(union)}",
    )


def masks_by_name(folder: Path) -> dict[str, Path]:
    """The masks below a folder by their names; those of one stem go by their names with ending instead.

    What predictions write beside their masks is left out.

    Raises:
        DatasetError: The folder does not exist.
        PredictionError: It has no masks, or two of one name.
    """
    by_stem = defaultdict(list)
    beside = (OVERLAYS, PROBABILITIES, UNCERTAINTY, SEGMENTATIONS) if (folder / RECORD).exists() else ()
    for path in list_images(folder):
        if path.relative_to(folder).parts[0] in beside:
            continue
        stem = composed((path.parent.relative_to(folder) / image_stem(path)).as_posix())
        by_stem[_MASK_SUFFIX.sub("", stem)].append(path)
    masks: dict[str, Path] = {}
    for stem, paths in by_stem.items():
        for path in paths:
            name = stem if len(paths) == 1 else composed(path.relative_to(folder).as_posix())
            if name in masks:
                raise PredictionError(f"{path} and {masks[name]} have the same name: rename one of them")
            masks[name] = path
    if not masks:
        raise PredictionError(f"{folder} holds no masks ({', '.join(IMAGE_ENDINGS)}): give the folder that holds them")
    return masks


def inspect_pairs(pairs: Sequence[MaskPair], workers: int) -> list[PairContents]:
    """Read all masks for their values, and find what keeps a pair from being scored."""
    return list(_in_processes(_inspect_pair, pairs, workers, "read"))


def score_pairs(tasks: Sequence[ScoreTask], workers: int) -> list[CaseScore]:
    """Score each pair."""
    return list(_in_processes(_score_pair, tasks, workers, "score"))


def split_faults(contents: Sequence[PairContents]) -> tuple[list[PairContents], list[Problem]]:
    """The pairs that can be scored, and the faults of the others.

    Raises:
        PredictionError: None can be scored.
    """
    sound = [each for each in contents if each.fault is None]
    faults = [each.fault for each in contents if each.fault is not None]
    if not sound:
        first = f"{faults[0].file}: {faults[0].what}: {faults[0].mend}"
        raise PredictionError(f"none of the {len(contents)} pairs of masks can be scored; the first: {first}")
    return sound, faults


def add_values(contents: Iterable[Mapping[int, int]]) -> Counter[int]:
    """How often each value occurs in all of them together."""
    total: Counter[int] = Counter()
    for values in contents:
        total.update(values)
    return total


def _in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, what: str
) -> Iterator[Result]:
    results = map_in_processes(function, items, workers)
    return iter(tqdm(results, what, len(items), unit=" cases", disable=None, leave=False))


def _inspect_pair(pair: MaskPair) -> PairContents:
    """The values of both masks, if they can be read and have one size."""
    masks = []
    for path, axes in ((pair.prediction, None), (pair.truth, pair.axes)):
        try:
            masks.append(read_mask_stack(path, Slicing(axes=axes)))
        except FileError as fault:
            return PairContents(pair=pair, fault=Problem.of(str(path), fault))
    prediction, truth = masks
    misfit = _find_misfit(prediction, truth)
    if misfit is not None:
        return PairContents(pair=pair, fault=Problem.of(str(pair.prediction), misfit))
    return PairContents(
        pair=pair,
        prediction=count_values(prediction.values),
        truth=count_values(truth.values),
        spacing_mm=truth.spacing_mm,
    )


def _find_misfit(prediction: MaskStack, truth: MaskStack) -> FileError | None:
    """Why a mask cannot be scored on another: its size, or its place as a volume."""
    if prediction.values.shape != truth.values.shape:
        sizes = _by(prediction.values.shape), _by(truth.values.shape)
        picture = len(prediction.values) == len(truth.values) == 1
        return FileError(
            f"is {sizes[0]}, its truth {sizes[1]} ({'height x width' if picture else 'slices x height x width'})",
            "bring it to the size of the truth, or find the prediction that belongs to it",
        )
    if prediction.header is not None and truth.header is not None:
        try:
            require_same_space(truth.header, prediction.header)
        except FileError as fault:
            return fault
    return None


def _score_pair(task: ScoreTask) -> CaseScore:
    pair, reading = task.pair, task.reading
    return score_masks(
        pair.name,
        reading.prediction.encode(read_mask_stack(pair.prediction, SLICING).values),
        reading.truth.encode(read_mask_stack(pair.truth, Slicing(axes=pair.axes)).values),
        reading.labels,
        task.spacing_mm,
        task.tolerance,
        reading.outputs,
    )


def _binary_coding(values: Mapping[int, int]) -> MaskCoding | None:
    """How masks write their one label; None where they are no binary masks."""
    for foreground in BINARY_VALUES:
        if values.keys() <= {0, foreground}:
            return MaskCoding(kind="values", values=(foreground,), written=(foreground,))
    if max(values) > 255:
        return None
    try:
        coding, _ = judge_masks([Measurement(case="all", mask_values=values)])
    except DatasetError:
        return None
    return coding if coding.kind == "binary" else None


def _label_values(title: str, values: Mapping[int, int]) -> set[int]:
    """The values above 0 of masks that are label maps."""
    low, high = min(values), max(values)
    if len(values) > MOST_MASK_VALUES or low < 0 or high > 65535:
        raise PredictionError(
            f"{title} hold {len(values)} values from {low} to {high}, which cannot be labels: "
            "save them as PNG with 0 for background and one value from 1 to 65535 a label"
        )
    return values.keys() - {0}


def _words(coding: MaskCoding) -> str:
    return f"noisy, cut at {BINARY_CUT}" if coding.kind == "binary" else f"0 and {coding.values[0]}"


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(values)))


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[1:] if shape[0] == 1 else shape))
