"""Several mask files of one image, united into one."""

import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from iaunet.annotations.converted import Converted, keep_or_write, mask_path, remove_stale, shown
from iaunet.annotations.run_lengths import ONE_LABEL
from iaunet.annotations.shapes import at, image_name
from iaunet.dataset import Problem
from iaunet.errors import FileError
from iaunet.files import decode_mask, read_bytes
from iaunet.storage import digest, file_digest

_BOUNDARY = re.compile(r"[_\-. (]")
"""What parts an image's name from what tells its masks apart: ``img_mask1``, ``img-2``, ``img (3)``."""


def group_masks(images: Sequence[str], masks: Sequence[str]) -> dict[str, list[str]]:
    """Find the masks of each image by name.

    Args:
        images: Names of images: paths below their folder without ending, "/" between parts.
        masks: Relative paths of masks with ending. A mask belongs to the image it is called like, to the one whose
            name its own begins with (``img_mask1.png``; the longest such name), or to the one its folder is called
            like (``masks/img/0.png``, ``img/masks/0.png``). One folder of the path may be the masks' own.

    Returns:
        The masks of each image that has any, sorted; masks of no image are left out.
    """
    keys = {image_name(image): image for image in images}
    for image in images:  # as img/images/img.png beside img/masks/0.png
        parts = image_name(image).split("/")
        if len(parts) > 1 and parts[-1] in parts[:-1]:
            keys.setdefault(parts[-1], image)
    groups: dict[str, list[str]] = defaultdict(list)
    for mask in sorted(masks, key=_natural):
        owner = next((keys[name] for name in _possible_names(mask) if name in keys), None)
        if owner is not None:
            groups[owner].append(mask)
    return {image: groups[image] for image in images if image in groups}


def unite(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """Unite masks: 1 where any of them is above 0, else 0, [height, width] uint8.

    Raises:
        FileError: One cannot be read as a mask, or is not as large as the first; the message names it.
    """
    united: NDArray[np.bool_] | None = None
    for path in paths:
        inside = _read(path) > 0
        if united is None:
            united = inside
        elif inside.shape != united.shape:
            height, width = united.shape
            raise FileError(
                f"{path.name} has {inside.shape[0]} x {inside.shape[1]} pixels, {paths[0].name} has {height} x {width}",
                "give all masks of an image its size",
            )
        else:
            united |= inside
    if united is None:
        raise ValueError("no masks to unite")
    return united.astype(np.uint8)


def convert_united(groups: Mapping[str, Sequence[Path]], folder: Path, root: Path) -> Converted:
    """Unite the masks of each case into one PNG file of 0 and 1.

    Args:
        groups: The mask files of each case by the case's name, at least one.
        folder: In the workspace, for these masks alone; see `iaunet.annotations.conversion.convert`.
        root: The data set's folder, to which problems are relative.
    """
    masks, problems, faulty = {}, [], []
    for case, paths in groups.items():
        path = mask_path(folder, case)
        try:
            made_from = digest(["united", [_digest(part) for part in paths]])
            keep_or_write(path, made_from, functools.partial(unite, paths))
            masks[case] = path
        except FileError as fault:
            problems.append(Problem.of(shown(paths[0].parent, root), fault))
            faulty.append(case)
    remove_stale(folder, set(masks.values()))
    n_files = sum(map(len, groups.values()))
    understood = f"{n_files} mask files united to {len(masks)} masks, an image each, of one label"
    return Converted(
        labels=(ONE_LABEL,),
        masks=masks,
        problems=tuple(problems),
        understood=understood,
        faulty=tuple(faulty),
    )


def _read(path: Path) -> NDArray[np.integer]:
    try:
        return decode_mask(read_bytes(path))
    except FileError as fault:
        raise at(path.name, fault) from fault


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as fault:
        raise FileError(
            f"{path.name} cannot be read ({fault.strerror})", "restore it or mend its permissions"
        ) from fault


def _possible_names(mask: str) -> Iterator[str]:
    """The names of images a mask may belong to, the surest first."""
    path = PurePosixPath(image_name(mask))
    folders = [
        path.parent.parts,
        *(path.parent.parts[:i] + path.parent.parts[i + 1 :] for i in range(len(path.parts) - 1)),
    ]
    ends = [match.start() for match in _BOUNDARY.finditer(path.name)]
    for name in (path.name, *(path.name[:end] for end in reversed(ends) if end)):
        yield from ("/".join((*folder, name)) for folder in folders)
    yield from ("/".join(folder) for folder in folders if folder)


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key under which ``2`` comes before ``10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.findall(r"\d+|\D+", text)]
