"""Figures of the page ``check.html``: cases and files with their pictures."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from iaunet.dataset import IGNORED, Case, Dataset
from iaunet.preprocessing.arrays import Arrays
from iaunet.preprocessing.check_pictures import FileTask, Picture, RowTask, Window, draw_files, draw_rows


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Pictures of one case or file, what they are called and what is said about them; ``marked`` stands out."""

    name: str
    says: tuple[str, ...]
    pictures: tuple[Picture, ...] = ()
    marked: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cases that are shown together: the strangest in one respect, the strangest first, or equal images."""

    title: str
    meaning: str = ""
    figures: tuple[Figure, ...]


class Gallery:
    """Pictures of cases by name: their rows in the arrays where there are any, else their raw files."""

    def __init__(self, dataset: Dataset, arrays: Arrays | None, workers: int) -> None:
        self._dataset = dataset
        self._arrays = arrays
        self._workers = workers
        self._pictures: dict[str, tuple[Picture, ...]] = {}
        self._places: dict[str, tuple[str, ...]] = {}
        self.has_ignored = False

    def add(self, names: Sequence[str]) -> None:
        """Draw cases."""
        if self._arrays is None:
            self._add_files(names)
        elif names:
            self._add_rows(self._arrays, _rows_of(self._arrays, names))

    def fill(self, figures: Sequence[Figure]) -> tuple[Figure, ...]:
        """The figures with the pictures of their cases."""
        return tuple(
            dataclasses.replace(
                figure,
                pictures=self._pictures.get(figure.name, ()),
                says=(*figure.says, *self._places.get(figure.name, ())),
            )
            for figure in figures
        )

    def fill_group(self, group: Group) -> Group:
        """The group with the pictures of its cases."""
        return dataclasses.replace(group, figures=self.fill(group.figures))

    def _add_rows(self, arrays: Arrays, rows: Mapping[str, Sequence[int]]) -> None:
        chosen = {name: _best_row(arrays, several) for name, several in rows.items()}
        window = Window.of([arrays.images[row] for row in chosen.values()])
        tasks = [
            RowTask(
                np.asarray(arrays.images[row]), np.asarray(arrays.masks[row]), window, f"{name} as the network gets it"
            )
            for name, row in chosen.items()
        ]
        pictures = draw_rows(tasks, self._workers)
        self._pictures |= {name: (picture,) for name, picture in zip(chosen, pictures, strict=True)}
        self._places |= {name: _say_place(arrays, row, rows[name]) for name, row in chosen.items()}
        self.has_ignored |= any(bool((task.mask == IGNORED).any()) for task in tasks)

    def _add_files(self, names: Sequence[str]) -> None:
        cases = {case.name: case for case in self._dataset.cases}
        tasks = {name: file_tasks(cases[name], self._dataset) for name in names if name in cases}
        drawn = draw_files([task for several in tasks.values() for task in several], self._workers)
        self._pictures |= {name: tuple(drawn[task] for task in several) for name, several in tasks.items()}


def within(n_bytes: int, groups: Iterable[Group]) -> Iterator[Group]:
    """The groups until their pictures take more than ``n_bytes``."""
    for group in groups:
        n_bytes -= sum(picture.n_bytes for figure in group.figures for picture in figure.pictures)
        if n_bytes < 0:
            return
        yield group


def file_tasks(case: Case, dataset: Dataset) -> list[FileTask]:
    """The raw files of a case to show: its images, then its mask if it has one."""
    tasks = [FileTask(dataset.path(file), "image", f"image of {case.name}", dataset.slicing) for file in case.images]
    if case.mask is not None:
        tasks.append(FileTask(dataset.path(case.mask), "mask", f"mask of {case.name}", dataset.slicing))
    return tasks


def _rows_of(arrays: Arrays, names: Sequence[str]) -> dict[str, range]:
    """The rows of each case."""
    return {name: arrays.cases[name].rows for name in names if name in arrays.cases}


def _best_row(arrays: Arrays, rows: Sequence[int]) -> int:
    """The first row with most foreground."""

    def foreground(row: int) -> int:
        mask = arrays.masks[row]
        return int(np.count_nonzero((mask > 0) & (mask != IGNORED)))

    return max(rows, key=foreground) if len(rows) > 1 else rows[0]


def _say_place(arrays: Arrays, row: int, rows: Sequence[int]) -> tuple[str, ...]:
    """Where a row lies in its case, nothing if it is all of it."""
    if len(rows) == 1:
        return ()
    slices = {arrays.index.rows[other].slice for other in rows}
    at = f"slice {arrays.index.rows[row].slice}, " if len(slices) > 1 else ""
    return (f"{at}1 of {len(rows)} rows",)
