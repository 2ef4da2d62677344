"""The faults and notes that the page ``check.html`` shows, kind by kind, with the files they are about."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from iaunet.dataset import Case, Dataset, Problem
from iaunet.files import is_image_file
from iaunet.planners.suspicions import ALL_MASKS
from iaunet.preprocessing.check_figures import Figure, Group, file_tasks, within
from iaunet.preprocessing.check_pictures import FileTask, Picture, Role, draw_files
from iaunet.preprocessing.held_out import TEST_SET
from iaunet.stacks import is_volume

MOST_PICTURED_A_KIND, MOST_PICTURED = 60, 180
MOST_MASKS_SHOWN = 4
PROBLEM_BYTES = 3_500_000
"""What the pictures of faults, and of notes, may take."""


@dataclass(frozen=True, kw_only=True)
class ProblemKind:
    """Problems of one kind: those with pictures, and those only named."""

    title: str
    figures: tuple[Figure, ...]
    others: tuple[Figure, ...]

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self.figures) + len(self.others)


def find_problem_kinds(
    level: str, problems: Sequence[Problem], found: Sequence[Case], dataset: Dataset, workers: int
) -> list[ProblemKind]:
    """The problems of a level kind by kind, the first of each with pictures."""
    kinds: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        if problem.level == level:
            kinds[_kind(problem)].append(problem)
    pictured = [problem for several in kinds.values() for problem in several[:MOST_PICTURED_A_KIND]][:MOST_PICTURED]
    files = _Files(found, dataset)
    tasks = {problem: files.tasks(problem) for problem in pictured}
    drawn = draw_files([task for several in tasks.values() for task in several], workers)
    shown = [
        Group(title=problem.what, figures=(_say_problem(problem, [drawn[task] for task in tasks[problem]]),))
        for problem in tasks
    ]
    figures = dict(zip(tasks, within(PROBLEM_BYTES, shown), strict=False))
    return [
        ProblemKind(
            title=several[0].what,
            figures=tuple(figures[problem].figures[0] for problem in several if problem in figures),
            others=tuple(_say_problem(problem) for problem in several if problem not in figures),
        )
        for several in kinds.values()
    ]


def _kind(problem: Problem) -> str:
    """What a problem says without its numbers and file names."""
    return " ".join(word for word in problem.what.split() if not re.search(r"[\d/.]", word))


def _say_problem(problem: Problem, pictures: Sequence[Picture] = ()) -> Figure:
    if problem.what == "has no mask":
        pictures = [*pictures, Picture(alt=f"mask of {problem.file}", says="no mask")]
    return Figure(name=problem.file, says=(problem.what, problem.mend), pictures=tuple(pictures))


class _Files:
    """Finds the raw files that a problem is about."""

    def __init__(self, found: Sequence[Case], dataset: Dataset) -> None:
        self._dataset = dataset
        self._examples = sorted(found, key=lambda case: hashlib.sha256(case.name.encode()).digest())
        self._case_of = {file: case for case in found for file in (case.name, *case.images, case.mask) if file}

    def tasks(self, problem: Problem) -> list[FileTask]:
        """The image and the mask of its case, else the file alone; some masks where it is about all of them."""
        if problem.file == ALL_MASKS:
            masks = [case for case in self._examples if case.mask][:MOST_MASKS_SHOWN]
            return [file_tasks(case, self._dataset)[-1] for case in masks]
        first = re.sub(r" and \d+ more$", "", problem.file)  # how a note about several cases names them
        case = self._case_of.get(problem.file) or self._case_of.get(first)
        if case is not None:
            return file_tasks(case, self._dataset)
        path = self._dataset.path(problem.file)
        if problem.file.startswith(TEST_SET) or not (is_image_file(path) or is_volume(path)):
            return []
        role: Role = "mask" if problem.what.startswith(("mask ", "is a second mask")) else "image"
        return [FileTask(path, role, f"{role} {problem.file}", self._dataset.slicing)]
