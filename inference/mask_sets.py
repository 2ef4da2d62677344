"""Sets of masks of the same cases, scored on each other: several models on the truth, or several people."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from iaunet.dataset import Problem
from iaunet.discovery import natural_order
from iaunet.errors import PredictionError
from iaunet.grouping import Grouping, resolve_groups
from iaunet.inference.evaluation import (
    MaskPair,
    PairContents,
    ScoreTask,
    SetReading,
    add_values,
    inspect_pairs,
    judge_sets,
    masks_by_name,
    score_pairs,
    split_faults,
)
from iaunet.inference.scores import CaseScore, DistanceUnit
from iaunet.workspace import is_dataset_name

Item = TypeVar("Item")

TRUTH = "true masks"
"""The name of the set of true masks where there is one."""

Pairing = tuple[str, str]
"""The names of two sets: the first is scored with the second as truth."""


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """The scores of sets of masks on each other.

    ``scores`` holds for each pairing those of the cases that both have, ``common`` names the cases that all pairings
    have, in natural order. ``problems`` are faults of masks that should have been scored, and notes.
    """

    scores: Mapping[Pairing, tuple[CaseScore, ...]]
    common: tuple[str, ...]
    grouping: Grouping
    unit: DistanceUnit
    understood: str
    problems: tuple[Problem, ...]


def parse_sets(texts: Sequence[str]) -> dict[str, Path]:
    """The folders of masks that a user names as ``NAME=DIR``, or as ``DIR``, which is then called by its last part.

    A folder that exists is taken as it is, with or without ``=`` in its path.

    Raises:
        PredictionError: A name cannot be one, or two sets have the same.
    """
    sets: list[tuple[str, Path]] = []
    for text in texts:
        name, folder = parse_set(text)
        if not is_dataset_name(name):
            raise PredictionError(
                f"{name!r} of {text!r} cannot be the name of a set of masks: give NAME=DIR with a name of at most 100 "
                "letters, digits, spaces, '_', '.', '+', '-' that begins with a letter or digit"
            )
        sets.append((name, folder))
    return join_sets(sets)


def parse_set(text: str) -> tuple[str, Path]:
    """A name, not checked, and a folder, see `parse_sets`."""
    name, equals, folder = text.partition("=")
    if not equals or Path(text).is_dir() or not is_dataset_name(name):
        return Path(text).resolve().name, Path(text)
    return name, Path(folder)


def join_sets(sets: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Sets by name.

    Raises:
        PredictionError: Two have the same name; upper and lower case are the same here, as they are on some disks.
    """
    found: dict[str, Path] = {}
    for name, folder in sets:
        if name.casefold() in map(str.casefold, found):
            raise PredictionError(f"two sets of masks are called {name!r}: give each a name of its own with NAME=DIR")
        found[name] = folder
    return found


def score_sets(
    sets: Mapping[str, Path],
    references: Sequence[str],
    pairings: Sequence[Pairing],
    groups: str | None,
    tolerance: float = 2.0,
    workers: int = 1,
) -> SetScores:
    """Score sets of masks on each other.

    The cases are those that every reference has. How values stand for labels is judged over all sets together.

    Args:
        sets: Folders of masks by name; masks belong together as in `iaunet.inference.evaluation.evaluate_folders`.
        references: The sets that say which cases there are.
        pairings: What is scored on what.
        groups: Which cases share a patient or video, as `resolve_groups` takes it.
        tolerance: Tolerance of surface Dice in pixels.
        workers: Processes at most.

    Raises:
        DatasetError: A folder does not exist, or the groups cannot be used.
        PredictionError: No case can be scored in every pairing, or the values of the masks cannot be read.
    """
    masks = {name: masks_by_name(folder) for name, folder in sets.items()}
    cases = _cases(masks, references, sets)
    grouping = resolve_groups(cases, groups)
    pairs = [_pairs(masks[first], masks[second], cases) for first, second in pairings]
    contents = _cut(inspect_pairs([*itertools.chain(*pairs)], workers), pairs)
    split = [split_faults(of_pairing) for of_pairing in contents]
    sound = dict(zip(pairings, (good for good, _ in split), strict=True))
    reading = judge_sets(_values(sound), [(_title(first), _title(second)) for first, second in pairings])
    in_mm = all(each.spacing_mm for each in itertools.chain(*sound.values()))  # else all in pixels
    tasks = [_tasks(of_pairing, reading, pairing, in_mm, tolerance) for pairing, of_pairing in sound.items()]
    scores = _cut(score_pairs([*itertools.chain(*tasks)], workers), tasks)
    in_all = set.intersection(*({score.name for score in of_pairing} for of_pairing in scores))
    if not in_all:
        raise PredictionError(f"no case can be scored in all of {', '.join(sets)}: evaluate them one by one")
    faults = dict.fromkeys(fault for _, of_pairing in split for fault in of_pairing)
    return SetScores(
        scores={pairing: tuple(of_pairing) for pairing, of_pairing in zip(pairings, scores, strict=True)},
        common=tuple(name for name in cases if name in in_all),
        grouping=grouping,
        unit="mm" if in_mm else "px",
        understood=reading.understood,
        problems=(*_missing(masks, references, cases), *faults),
    )


def _title(name: str) -> str:
    return name if name == TRUTH else f"masks of {name}"


def _cases(masks: Mapping[str, Mapping[str, Path]], references: Sequence[str], sets: Mapping[str, Path]) -> list[str]:
    """The cases that every reference has, in natural order; every set has one of them at least."""
    cases = set.intersection(*({*masks[name]} for name in references))
    for name, of_set in masks.items():
        if not cases & of_set.keys():
            raise PredictionError(
                f"{sets[name]} ({len(of_set)} masks, the first is {min(of_set)}) has none of the cases that all of "
                f"{', '.join(references)} have: give folders whose masks have the same names"
            )
    return sorted(cases, key=natural_order)


def _pairs(first: Mapping[str, Path], second: Mapping[str, Path], names: Sequence[str]) -> list[MaskPair]:
    return [
        MaskPair(name=name, prediction=first[name], truth=second[name])
        for name in names
        if name in first and name in second
    ]


def _cut(items: Sequence[Item], like: Sequence[Sequence[object]]) -> list[list[Item]]:
    """A sequence cut into parts as long as those of another."""
    rest = iter(items)
    return [[*itertools.islice(rest, len(part))] for part in like]


def _tasks(
    contents: Sequence[PairContents], reading: SetReading, pairing: Pairing, in_mm: bool, tolerance: float
) -> list[ScoreTask]:
    between = reading.between(*map(_title, pairing))
    return [
        ScoreTask(pair=each.pair, reading=between, spacing_mm=each.spacing_mm if in_mm else None, tolerance=tolerance)
        for each in contents
    ]


def _values(sound: Mapping[Pairing, Sequence[PairContents]]) -> dict[str, Mapping[int, int]]:
    """How often each value occurs in each set, by its title."""
    found: dict[str, list[Mapping[int, int]]] = {}
    for (first, second), of_pairing in sound.items():
        found.setdefault(_title(first), []).extend(each.prediction for each in of_pairing)
        found.setdefault(_title(second), []).extend(each.truth for each in of_pairing)
    return {title: add_values(values) for title, values in found.items()}


def _missing(masks: Mapping[str, Mapping[str, Path]], references: Sequence[str], cases: Sequence[str]) -> list[Problem]:
    """A fault for each case that a set lacks, a note for each mask that is not needed."""
    problems = []
    for name, of_set in masks.items():
        lacking = [masks[references[0]][case] for case in cases if case not in of_set]
        spare = [of_set[case] for case in sorted(of_set.keys() - {*cases}, key=natural_order)]
        what, mend = f"has no mask in {name}", "add it, or remove the case from all sets"
        problems += [Problem(level="fault", file=str(file), what=what, mend=mend) for file in lacking]
        what, mend = f"is not among all of {', '.join(references)} and is left out", "nothing, if it is not to count"
        problems += [Problem(level="note", file=str(file), what=what, mend=mend) for file in spare]
    return problems
