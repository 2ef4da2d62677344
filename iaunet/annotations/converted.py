"""Masks in the workspace that were made from other files: kept while up to date, removed when their case is gone."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet.dataset import Problem
from iaunet.files import read_made_from, write_png
from iaunet.storage import remove_leftovers


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Label maps written as PNG.

    ``labels`` are the names in order: the i-th, from 0, has the value i + 1. ``masks`` maps the name of each case
    that has a mask to its file, uint8 or uint16 in the image's displayed size. ``problems`` are all faults and notes
    together; ``faulty`` are the cases with a fault, which have no mask and must not count as empty. ``understood``
    is one line for the user.
    """

    labels: tuple[str, ...]
    masks: dict[str, Path]
    problems: tuple[Problem, ...]
    understood: str
    faulty: tuple[str, ...] = ()


def mask_path(folder: Path, case: str) -> Path:
    """Where the mask of a case lies; "/" in its name makes folders."""
    return folder / f"{case}.png"


def keep_or_write(path: Path, made_from: str, make: Callable[[], NDArray[np.generic]]) -> None:
    """Write a mask unless the one that is there was made from the same.

    Args:
        path: Of the PNG file.
        made_from: Names all that the mask depends on.
        make: Gives its pixels [height, width], uint8 or uint16; called only when needed.
    """
    if read_made_from(path) != made_from:
        write_png(path, make(), made_from)


def remove_stale(folder: Path, kept: Collection[Path]) -> None:
    """Remove the masks of cases that went away: PNG files below a folder that say what they were made from."""
    for path in sorted(folder.rglob("*.png"), reverse=True):
        if path not in kept and read_made_from(path):
            path.unlink(missing_ok=True)
    for parent in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        remove_leftovers(parent)
        with contextlib.suppress(OSError):  # not empty
            parent.rmdir()
    if folder.is_dir():
        remove_leftovers(folder)


def shown(path: Path, root: Path) -> str:
    """A path as messages show it: relative to the data set's root where it lies below."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
