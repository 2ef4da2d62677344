"""A held-out test set: read and compared with the training data, never planned on."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet.dataset import Case, Dataset, Problem, Source
from iaunet.errors import DatasetError
from iaunet.grouping import resolve_groups
from iaunet.planners.duplicates import NEAR_CORRELATION, correlations_between
from iaunet.planners.fingerprint import LARGEST_NEAR_SHARE, Reading, fingerprint_dataset
from iaunet.preprocessing.layout import Layout, understand

TEST_IMAGES, TEST_MASKS = "imagesTs", "labelsTs"


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A held-out test set as it was checked.

    ``root`` is its folder, ``sha256`` names the files of each case (image, mask). ``same`` and ``alike`` are pairs of a
    test case and the training case with equal bytes, or nearly the same picture; ``groups`` is the patient or video
    of each case, empty if not known, and ``shared_groups`` those with cases on both sides.
    """

    root: str
    understood: str
    cases: tuple[Case, ...]
    sha256: dict[str, tuple[str, str | None]]
    same: tuple[tuple[str, str], ...]
    alike: tuple[tuple[str, str], ...]
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
    found = _find(dataset.source, layout, masks)
    if found is None:
        return None, []
    root, cases, understood, of_files = found
    read = fingerprint_dataset(root, cases, workers, skip_faulty=True, slicing=dataset.slicing, given=dataset.coding)
    problems = [_placed(problem) for problem in (*of_files, *read.problems)]
    sound = tuple(case for case in cases if case.name not in read.faulty)
    if read.fingerprint is None:
        return None, problems
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
        groups=groups,
        shared_groups=tuple(sorted({*groups.values()} & {*dataset.groups.values()})),
    )
    return held_out, [*problems, *note, *_leaks(held_out)]


def _find(
    source: Source, layout: Layout, masks: Path
) -> tuple[Path, tuple[Case, ...], str, tuple[Problem, ...]] | None:
    """Root, cases, line and problems of the test set: the one the user names, else the folder's own."""
    root = Path(source.root)
    plain = dataclasses.replace(source, images=None, masks=None, test=None, missing_mask="error")
    if source.test is not None:
        found = understand(dataclasses.replace(plain, root=source.test), masks / "test")
        return Path(source.test), found.cases, found.understood, found.problems
    if layout.test_cases:
        cases = tuple(case for case in layout.test_cases if case.mask is not None)
        return (root, cases, f"{len(cases)} cases of {TEST_IMAGES} and {TEST_MASKS}", ()) if cases else None
    if layout.coding is None and (root / TEST_IMAGES).is_dir() and (root / TEST_MASKS).is_dir():
        folders = {"images": str(root / TEST_IMAGES), "masks": str(root / TEST_MASKS)}
        found = understand(dataclasses.replace(plain, **folders), masks / "test")  # type: ignore[arg-type]
        return root, found.cases, found.understood, found.problems
    return None


def _placed(problem: Problem) -> Problem:
    return dataclasses.replace(problem, file=f"test set: {problem.file}")


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
        return {}, [Problem(level="note", file="test set", what=what, mend="give --groups for its cases too")]
    return {name: groups[name] for name in test if name in groups}, []


def _leaks(held_out: HeldOut) -> list[Problem]:
    """A note for each way in which the test set is not independent."""
    mend = "remove them from one side"
    notes = [
        *(("is the same image as", pair) for pair in held_out.same),
        *(("shows nearly the same as", pair) for pair in held_out.alike),
    ]
    problems = [
        Problem(level="note", file=f"test set: {test}", what=f"{what} the training image {training}", mend=mend)
        for what, (test, training) in notes
    ]
    if held_out.shared_groups:
        shown = ", ".join(held_out.shared_groups[:5])
        what = f"{len(held_out.shared_groups)} groups are in the training data too ({shown})"
        problems.append(Problem(level="note", file="test set", what=what, mend=mend))
    return problems
