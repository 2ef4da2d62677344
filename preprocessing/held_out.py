"""A held-out test set: read and compared with the training data, never planned on."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet.dataset import Case, Dataset, MaskCoding, Problem, Source
from iaunet.errors import DatasetError
from iaunet.grouping import resolve_groups
from iaunet.planners.duplicates import NEAR_CORRELATION, correlations_between
from iaunet.planners.fingerprint import LARGEST_NEAR_SHARE, Reading, fingerprint_dataset
from iaunet.preprocessing.layout import Layout, understand

TEST_IMAGES, TEST_MASKS = "imagesTs", "labelsTs"

TEST_SET = "test set"
"""Begins the file of a problem of the test set."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A held-out test set as it was checked.

    ``root`` is its folder, ``sha256`` names the files of each case (image, mask). ``same`` and ``alike`` are pairs of a
    test case and the training case with equal bytes, or nearly the same picture; ``groups`` is the patient or video
    of each case, empty if not known, and ``shared_groups`` those with cases on both sides. ``coding`` is how its true
    masks stand for labels; ``labels`` and ``training_coding`` are those of the training data it was checked with.
    ``masks`` is the folder where masks were drawn that had to be made of other files.
    """

    root: str
    understood: str
    cases: tuple[Case, ...]
    sha256: dict[str, tuple[str, str | None]]
    same: tuple[tuple[str, str], ...]
    alike: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    coding: MaskCoding
    training_coding: MaskCoding
    masks: str
    groups: dict[str, str]
    shared_groups: tuple[str, ...]

    @property
    def leakage(self) -> str | None:
        """Why scores on it are too good, None if nothing speaks for that."""
        found = {
            "image(s) equal to training images": len(self.same),
            "image(s) nearly equal to training images": len(self.alike),
            "group(s) shared with the training data": len(self.shared_groups),
        }
        told = ", ".join(f"{n} {what}" for what, n in found.items() if n)
        return f"the test set has {told}: its scores are inflated" if told else None


def check_held_out(
    dataset: Dataset, layout: Layout, reading: Reading, masks: Path, workers: int
) -> tuple[HeldOut | None, list[Problem]]:
    """Read the test set that the user or the dataset's folder names, and compare it with the training data.

    Args:
        dataset: The training data.
        layout: As the folder was understood; it may hold test cases of its own.
        reading: What was measured on the training data.
        masks: Where masks are written that have to be made of other files.
        workers: Processes to use.

    Returns:
        The test set, None if there is none, and what is wrong with it; its faults stop planning as others do.

    Raises:
        DatasetError: The named folder holds nothing that can be used.
    """
    found = _find(dataset, layout, masks)
    if found is None:
        return None, []
    root, cases, understood, of_files = found.root, found.cases, found.understood, found.problems
    given = dataset.coding if len(dataset.labels) > 1 else found.coding  # one label may be written by another value
    read = fingerprint_dataset(root, cases, workers, skip_faulty=True, slicing=dataset.slicing, given=given)
    problems = [_placed(problem) for problem in (*of_files, *read.problems)]
    sound = tuple(case for case in cases if case.name not in read.faulty)
    if read.fingerprint is None or read.coding is None:
        return None, problems
    if len(read.coding.outputs) != len(dataset.labels):
        what = f"masks hold {len(read.coding.outputs)} labels, those of the training data {_listed(dataset.labels)}"
        mend = "save its masks with the values of the training masks"
        return None, [*problems, Problem(level="fault", file=TEST_SET, what=what, mend=mend)]
    hashes = {case.name: (case.image_sha256, case.mask_sha256) for case in read.fingerprint.cases}
    same = _same(reading, hashes)
    alike = [pair for pair in _alike(reading, read) if pair[0] not in {test for test, _ in same}]
    groups, note = _find_groups(dataset, [case.name for case in sound])
    held_out = HeldOut(
        root=str(root),
        understood=understood,
        cases=sound,
        sha256=hashes,
        same=tuple(same),
        alike=tuple(alike),
        labels=dataset.labels,
        coding=read.coding,
        training_coding=dataset.coding,
        masks=str(masks),
        groups=groups,
        shared_groups=tuple(sorted({*groups.values()} & {*dataset.groups.values()})),
    )
    return held_out, [*problems, *note, *_leaks(held_out)]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A test set before its pixels are read: as a `Layout`, with its root."""

    root: Path
    cases: tuple[Case, ...]
    understood: str
    problems: tuple[Problem, ...] = ()
    coding: MaskCoding | None = None


def _find(dataset: Dataset, layout: Layout, masks: Path) -> _Found | None:
    """The test set that the user names, else the folder's own; no cases if its labels are not those of training."""
    source = dataset.source
    root = Path(source.root)
    slice_axis = dataset.slicing.slice_axis
    plain = dataclasses.replace(source, images=None, masks=None, test=None, missing_mask="error", slice_axis=slice_axis)
    if source.test is not None:
        if not Path(source.test).is_dir():
            raise DatasetError(f"the test set {source.test} does not exist: give --test with its folder, or --no_test")
        return _understood(dataset, dataclasses.replace(plain, root=source.test), masks)
    if layout.test_cases:
        cases = tuple(case for case in layout.test_cases if case.mask is not None)
        line = f"{len(cases)} cases of {TEST_IMAGES} and {TEST_MASKS}"
        return _Found(root=root, cases=cases, understood=line, coding=layout.coding) if cases else None
    if layout.coding is None and (root / TEST_IMAGES).is_dir() and (root / TEST_MASKS).is_dir():
        folders = {"images": str(root / TEST_IMAGES), "masks": str(root / TEST_MASKS)}
        return _understood(dataset, dataclasses.replace(plain, **folders), masks)  # type: ignore[arg-type]
    return None


def _understood(dataset: Dataset, source: Source, masks: Path) -> _Found:
    found = understand(source, masks / "test")
    differing = _differing_labels(dataset, found)
    return _Found(
        root=Path(source.root),
        cases=() if differing else found.cases,
        understood=found.understood,
        problems=(*found.problems, *differing),
        coding=found.coding,
    )


def _differing_labels(dataset: Dataset, found: Layout) -> list[Problem]:
    """A fault if the values of the test masks stand for other labels than those of the training masks."""
    if found.labels is None or found.coding is None or len(found.labels) == len(dataset.labels) == 1:
        return []  # the masks' own values, as in the training data; one label has no other to be taken for
    here, there = found.coding, dataset.coding
    same_names = [*map(str.casefold, found.labels)] == [*map(str.casefold, dataset.labels[: len(found.labels)])]
    same_values = here.values == there.values[: len(here.values)]
    same_regions = (here.regions, here.regions_class_order) == (there.regions, there.regions_class_order)
    if same_names and same_values and same_regions and not found.are_numbered:
        return []
    if found.are_numbered:
        what, mend = "colours are numbered by frequency here", "name them in a labelmap.txt beside either set"
    else:
        what = f"labels are {_listed(found.labels)}, those of the training data {_listed(dataset.labels)}"
        mend = "save its masks with the values of the training masks"
    return [Problem(level="fault", file="masks", what=what, mend=mend)]


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels)


def _placed(problem: Problem) -> Problem:
    return dataclasses.replace(problem, file=f"{TEST_SET}: {problem.file}")


def _same(reading: Reading, hashes: Mapping[str, tuple[str, str | None]]) -> list[tuple[str, str]]:
    training = {case.image_sha256: case.name for case in reading.fingerprint.cases} if reading.fingerprint else {}
    return [(name, training[image]) for name, (image, _) in hashes.items() if image in training]


def _alike(training: Reading, test: Reading) -> list[tuple[str, str]]:
    """Test cases that show nearly the same as a training case; not those that look like many of them."""
    if not training.thumbnails or not test.thumbnails:
        return []
    names = [*training.thumbnails]
    table = correlations_between([*test.thumbnails.values()], [*training.thumbnails.values()]) >= NEAR_CORRELATION
    most = max(2, LARGEST_NEAR_SHARE * len(names))
    return [
        (name, names[int(np.argmax(row))])
        for name, row in zip(test.thumbnails, table, strict=True)
        if 0 < row.sum() <= most
    ]


def _find_groups(dataset: Dataset, test: Sequence[str]) -> tuple[dict[str, str], list[Problem]]:
    """The groups of test cases, found as those of the training data were; none if these have none."""
    if not dataset.groups:
        return {}, []
    training = [case.name for case in dataset.cases]
    known = set(training)
    try:
        names = [*training, *(name for name in test if name not in known)]
        groups = resolve_groups(names, dataset.source.groups).groups
    except DatasetError as fault:
        what = f"its groups are not known ({fault})"
        return {}, [Problem(level="note", file=TEST_SET, what=what, mend="give --groups for its cases too")]
    return {name: groups[name] for name in test if name in groups}, []


def _leaks(held_out: HeldOut) -> list[Problem]:
    """A note for each way in which the test set is not independent."""
    mend = "remove them from one side"
    notes = [
        *(("is the same image as", pair) for pair in held_out.same),
        *(("shows nearly the same as", pair) for pair in held_out.alike),
    ]
    problems = [
        Problem(level="note", file=f"{TEST_SET}: {test}", what=f"{what} the training image {training}", mend=mend)
        for what, (test, training) in notes
    ]
    if held_out.shared_groups:
        shown = ", ".join(held_out.shared_groups[:5])
        what = f"{len(held_out.shared_groups)} groups are in the training data too ({shown})"
        problems.append(Problem(level="note", file=TEST_SET, what=what, mend=mend))
    return problems
