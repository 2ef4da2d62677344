"""Folds: which cases are held out together, stratified by what they show."""

import dataclasses
import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iaunet.discovery import composed
from iaunet.errors import PlanError
from iaunet.planners.duplicates import join
from iaunet.planners.fingerprint import Fingerprint
from iaunet.records import FieldError, from_json, load_record, to_json
from iaunet.storage import read_json, write_json

N_FOLDS = 5
SHARE_BINS = 4


@dataclass(frozen=True, kw_only=True)
class Fold:
    """The names of the cases to train on and of those held out."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Split:
    """A named set of folds. ``inflated`` is empty, or says why its scores are too good."""

    name: str
    inflated: str
    folds: tuple[Fold, ...]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits of a dataset by name; ``missing`` says why a split could not be made."""

    splits: dict[str, Split]
    missing: dict[str, str] = dataclasses.field(default_factory=dict)


def make_splits(
    fingerprint: Fingerprint,
    groups: Mapping[str, str],
    n_folds: int = N_FOLDS,
    known: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Splits:
    """Make the splits ``random`` and ``grouped``.

    Args:
        fingerprint: Of the dataset.
        groups: The group of each case, empty when there are none.
        n_folds: Folds of each split.
        known: By split, the validation cases of each fold of an older split: they keep their fold.

    Raises:
        PlanError: There are too few cases, or too few groups when the user gave them; says what is possible.
    """
    names = [case.name for case in fingerprint.cases]
    _require_enough(len(names), n_folds, "cases")
    same_bytes = _units(names, fingerprint.exact_duplicates)
    together = _units(names, (*fingerprint.exact_duplicates, *fingerprint.near_duplicates, *_members(groups)))
    known = known or {}
    _require_enough(len(same_bytes), n_folds, "different images")
    random = _split("random", fingerprint, same_bytes, n_folds, known.get("random", ()))
    if len(together) < len(same_bytes):
        random = dataclasses.replace(random, inflated=_inflation(groups, names, together))
    if len(together) >= n_folds:
        grouped = _split("grouped", fingerprint, together, n_folds, known.get("grouped", ()))
        return Splits(splits={"random": random, "grouped": grouped})
    if groups:
        _require_enough(len(together), n_folds, "groups")
    missing = f"groups and near duplicates leave {len(together)} independent parts for {n_folds} folds"
    return Splits(splits={"random": random}, missing={"grouped": missing})


def load_splits(path: Path) -> Splits:
    """Read splits.json.

    Raises:
        PlanError: It is missing or holds something else.
    """
    return load_record(Splits, path, PlanError, "run iaunet_plan_and_preprocess again")


def save_splits(splits: Splits, path: Path) -> None:
    """Write splits.json."""
    write_json(path, to_json(splits))


def find_split(splits: Splits, wish: str, names: Sequence[str], groups: Mapping[str, str]) -> Split:
    """The split a user asks for.

    Args:
        splits: The dataset's own.
        wish: A name among them, or a JSON file with a list of {"train": [...], "val": [...]}.
        names: The dataset's cases.
        groups: The group of each case, empty when there are none.

    Raises:
        PlanError: It is neither, or names unknown cases or trains on what it holds out, or the file holds out twice.
    """
    known = set(names)
    if wish in splits.splits:
        for i, fold in enumerate(splits.splits[wish].folds):
            if problem := _problem_of(fold, known):
                raise PlanError(f"split {wish!r}: fold {i} {problem}: run iaunet_plan_and_preprocess again")
        return splits.splits[wish]
    if wish in splits.missing:
        raise PlanError(f"split {wish!r} could not be made: {splits.missing[wish]}; use --split random")
    path = Path(wish)
    if path.suffix.lower() != ".json":
        raise PlanError(
            f"split {wish!r} is not known: give {', '.join(splits.splits)} or a JSON file with a list of "
            '{"train": [...], "val": [...]}'
        )
    split = _parse_split_file(path, read_json(path, PlanError, "check the path"), known)
    return dataclasses.replace(split, inflated=_shared_groups(split, groups))


def _parse_split_file(path: Path, data: Any, known: set[str]) -> Split:
    form = 'give a list of {"train": [names], "val": [names]}'
    if not isinstance(data, list) or not data:
        raise PlanError(f"{path} holds no list of folds: {form}")
    folds: list[Fold] = []
    for i, entry in enumerate(data):
        if not isinstance(entry, dict) or not {"train", "val"} <= entry.keys():
            raise PlanError(f"{path}: fold {i} lacks train or val: {form}")
        try:
            read = from_json(Fold, {"train": entry["train"], "validation": entry["val"]})
        except FieldError as fault:
            raise PlanError(f"{path}: fold {i}: {fault}: {form}") from fault
        fold = Fold(train=tuple(map(composed, read.train)), validation=tuple(map(composed, read.validation)))
        if problem := _problem_of(fold, known):
            raise PlanError(f"{path}: fold {i} {problem}: correct it")
        again = {*fold.validation} & {name for earlier in folds for name in earlier.validation}
        if again:
            raise PlanError(f"{path}: fold {i} holds {min(again)} out a second time: hold each case out once")
        folds.append(fold)
    return Split(name=path.stem, inflated="", folds=tuple(folds))


def _problem_of(fold: Fold, known: set[str]) -> str:
    """Why a fold cannot be trained, empty if it can."""
    train, validation = {*fold.train}, {*fold.validation}
    if strangers := (train | validation) - known:
        return f"names {min(strangers)}, which is no case of the data set"
    if both := train & validation:
        return f"trains on {min(both)} and holds it out"
    return "" if train and validation else "has nothing to train on or to hold out"


def _shared_groups(split: Split, groups: Mapping[str, str]) -> str:
    """Why the scores of a split are too good: groups that a fold both trains on and holds out."""
    shared = set()
    for fold in split.folds:
        shared |= {groups.get(name) for name in fold.train} & {groups.get(name) for name in fold.validation}
    n = len(shared - {None})
    return f"inflated: {n} groups are spread over training and validation" if n else ""


def _require_enough(n: int, n_folds: int, what: str) -> None:
    if n_folds < 2:
        raise PlanError(f"--folds {n_folds} is too few: give 2 or more")
    if n >= n_folds:
        return
    possible = f"use --folds {n}, or add" if n >= 2 else "add"
    raise PlanError(f"{n} {what} are too few for {n_folds} folds: {possible} {n_folds - n} more")


def _members(groups: Mapping[str, str]) -> list[tuple[str, ...]]:
    members = defaultdict(list)
    for name, group in groups.items():
        members[group].append(name)
    return [tuple(group) for group in members.values()]


def _units(names: Sequence[str], together: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """What must stay in one fold: joined groups, and every other case alone; sorted."""
    place = {name: i for i, name in enumerate(names)}
    pairs = [(place[a], place[b]) for group in together for a, b in itertools.pairwise(group)]
    joined = join(names, pairs)
    taken = {name for group in joined for name in group}
    return sorted([*joined, *((name,) for name in names if name not in taken)], key=lambda u: place[u[0]])


def _split(
    name: str,
    fingerprint: Fingerprint,
    units: Sequence[tuple[str, ...]],
    n_folds: int,
    known: Sequence[Sequence[str]],
) -> Split:
    held_out = _deal(units, _strata(fingerprint), n_folds, known)
    if len({*held_out.values()}) < n_folds:  # all cases of a known fold are gone
        held_out = _deal(units, _strata(fingerprint), n_folds, ())
    names = [case.name for case in fingerprint.cases]
    folds = []
    for fold in range(n_folds):
        folds.append(
            Fold(
                train=tuple(name for name in names if held_out[name] != fold),
                validation=tuple(name for name in names if held_out[name] == fold),
            )
        )
    return Split(name=name, inflated="", folds=tuple(folds))


def _strata(fingerprint: Fingerprint) -> dict[str, NDArray[np.float64]]:
    """What must be balanced over the folds: one for the case, its bin of foreground share, its labels."""
    shares = np.array([case.foreground_share for case in fingerprint.cases])
    edges = np.quantile(shares[shares > 0], np.linspace(0, 1, SHARE_BINS + 1)[1:-1]) if shares.any() else []
    bins = np.where(shares > 0, 1 + np.searchsorted(edges, shares), 0)
    strata = {}
    for case, share_bin in zip(fingerprint.cases, bins, strict=True):
        one_hot = np.eye(SHARE_BINS + 1)[share_bin]
        labels = [label is not None for label in case.labels]
        strata[case.name] = np.array([1.0, *one_hot, *labels])
    return strata


def _deal(
    units: Sequence[tuple[str, ...]],
    strata: Mapping[str, NDArray[np.float64]],
    n_folds: int,
    known: Sequence[Sequence[str]],
) -> dict[str, int]:
    """Give every unit to the fold where it unbalances least, the largest first; known cases keep theirs."""
    fold_of = {name: fold for fold, names in enumerate(known[:n_folds]) for name in names}
    weight = {unit: np.sum([strata[name] for name in unit], axis=0) for unit in units}
    total = np.maximum(np.sum(list(weight.values()), axis=0), 1)
    filled = np.zeros((n_folds, len(total)))
    importance = np.array([len(total) - 1.0, *[1.0] * (len(total) - 1)])  # the number of cases counts as all else
    held_out: dict[str, int] = {}
    order = sorted(units, key=lambda unit: (not any(n in fold_of for n in unit), -len(unit), _shuffle_key(unit)))
    for unit in order:
        before = [fold_of[name] for name in unit if name in fold_of]
        if before:
            fold = max(sorted(set(before)), key=before.count)
        else:
            after = (filled + weight[unit]) / total
            cost = (after**2 - (filled / total) ** 2) @ importance
            fold = int(np.argmin(cost))
        filled[fold] += weight[unit]
        held_out |= dict.fromkeys(unit, fold)
    return held_out


def _shuffle_key(unit: tuple[str, ...]) -> str:
    """An order that has nothing to do with the names, the same on every machine."""
    return hashlib.sha256("\0".join(unit).encode()).hexdigest()


def _inflation(groups: Mapping[str, str], names: Sequence[str], together: Sequence[tuple[str, ...]]) -> str:
    several = [group for group, n in Counter(groups.values()).items() if n > 1]
    if several:
        return f"inflated: {len(several)} of {len(set(groups.values()))} groups are spread over training and validation"
    return f"inflated: near duplicates leave {len(together)} of {len(names)} cases independent"
