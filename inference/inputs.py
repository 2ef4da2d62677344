"""Which images a folder holds for prediction, as cases, and what their masks are called."""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iaunet.discovery import (
    IMAGE_ENDINGS,
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    MASK_SUFFIXES,
    find_images,
    require_text,
    without_suffix,
)
from iaunet.errors import PredictionError
from iaunet.files import is_image_file
from iaunet.inference.output import TABLE
from iaunet.masks import image_stem
from iaunet.stacks import is_volume

_CHANNEL = re.compile(r".+_(\d{4})", re.ASCII)


@dataclass(frozen=True)
class Inputs:
    """The ``root`` of the images, the images, and lines about folders whose files are no images to predict."""

    root: Path
    images: tuple[Path, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InputCase:
    """An image to predict: its path below the folder, with and without ending, and the files of its channels.

    In the path, bytes that are not UTF-8 are told by numbers: such an image fails.
    """

    name: str
    stem: str
    files: tuple[Path, ...]


def list_inputs(inputs: Path, output: Path) -> Inputs:
    """The images of a folder, searched to its depth, or one image; some may have names that fail.

    Left out are what lies in the output folder, masks that an earlier prediction wrote into a folder below, folders of
    masks beside one of images (``masks`` beside ``images`` and the like), and masks named so among their images
    (``a_mask.png`` beside ``a.png``).

    Raises:
        DatasetError: The root does not exist, or has a name that is not UTF-8.
        PredictionError: There is none, or masks would be written among the images.
    """
    inputs, output = inputs.resolve(), output.resolve()
    require_text(inputs)
    if inputs.is_file():
        if not (is_image_file(inputs) or is_volume(inputs)):
            raise PredictionError(f"{inputs} is no image that is read: give one of {', '.join(IMAGE_ENDINGS)}")
        found = Inputs(inputs.parent, (inputs,))
    else:
        images = find_images(inputs)
        if output.is_relative_to(inputs) and output != inputs:
            images = [path for path in images if not path.is_relative_to(output)]
        images, left_out = _without_masks(inputs, images)
        # the folder of a DICOM series is an image itself
        found = Inputs(inputs.parent if inputs in images else inputs, tuple(images), left_out)
    if not found.images and found.left_out:
        raise PredictionError(f"{inputs} holds no images but masks ({found.left_out[0]})")
    if not found.images:
        raise PredictionError(f"{inputs} holds no images ({', '.join(IMAGE_ENDINGS)}): check the path")
    if output in (found.root, inputs):
        raise PredictionError(f"{output} holds the images themselves: give another folder for the masks")
    return found


def _without_masks(root: Path, images: Sequence[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """The images but for those in folders of masks, and a line for each such folder."""

    @functools.cache
    def find_reason(folder: Path) -> tuple[Path, str] | None:
        """The folder of masks that a folder is or lies in, and why it is one."""
        if folder == root:
            return None
        if (folder / TABLE).is_file():
            return folder, "an earlier prediction"
        if folder.name.lower() in MASK_FOLDERS:
            beside = sorted(path.name for path in folder.parent.iterdir() if path.name.lower() in IMAGE_FOLDERS)
            if beside:
                return folder, f"the images in {beside[0]}/"
        return find_reason(folder.parent)

    named = _named_as_masks(images)
    kept, masks = [], Counter[tuple[Path, str]]()
    for path in images:
        reason = find_reason(path.parent) if path != root else None
        if reason is None and path in named:
            reason = path.parent, "the images beside them"
        if reason is None:
            kept.append(path)
        else:
            masks[reason] += 1
    mend = "give their folder to -i, or move them to one, to predict them"
    lines = (
        f"{n} file{'s' * (n > 1)} in {folder.relative_to(root).as_posix()}/ left out as masks of {of}: {mend}"
        for (folder, of), n in masks.items()
    )
    return kept, tuple(map(text, lines))


def _named_as_masks(images: Sequence[Path]) -> set[Path]:
    """The files called as an image beside them, with a suffix for masks (``a_mask.png`` beside ``a.png``)."""
    candidates = [path for path in images if any(suffix in path.name.lower() for suffix in MASK_SUFFIXES)]
    stems = {(path.parent, image_stem(path)) for path in images} if candidates else set()
    bare = {path: without_suffix(image_stem(path)) for path in candidates}
    return {path for path, stem in bare.items() if stem != image_stem(path) and (path.parent, stem) in stems}


def group_channels(root: Path, images: Sequence[Path], channel_files: int) -> list[InputCase]:
    """The images as cases: where their names end in the channel's number, the files of one case together.

    Args:
        root: What names are relative to.
        images: The images.
        channel_files: How many files a case has whose names end so (``_0000``), 0 if names do not.
    """
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in images:
        folder, stem = path.parent.relative_to(root), image_stem(path)
        ending = path.name[len(stem) :]
        if channel_of(path) in range(channel_files):
            stem, ending = stem[: -len("_0000")], ending.lower()  # which the files of a case may not have alike
        name, stem = (text((folder / own).as_posix()) for own in (stem + ending, stem))
        groups.setdefault((name, stem), []).append(path)
    return [InputCase(name, stem, tuple(files)) for (name, stem), files in groups.items()]


def mask_names(cases: Sequence[InputCase], endings: Sequence[str]) -> list[str]:
    """The mask's path for each image, with the ending its mask gets; images whose stems collide keep their own too.

    A stem also collides with an image's whole name: of ``a.jpg``, ``a.png`` and ``a.jpg.png`` all keep their ending.
    """
    times = Counter(name.lower() for case in cases for name in {case.name, case.stem})
    return [
        f"{case.name if times[case.stem.lower()] > 1 else case.stem}{ending}"
        for case, ending in zip(cases, endings, strict=True)
    ]


def text(name: str) -> str:
    """A name that can be written, whatever its bytes."""
    return name.encode(errors="backslashreplace").decode()


def channel_of(path: Path) -> int | None:
    """The number of the channel that a file's name ends in, as nnU-Net names its files."""
    numbered = _CHANNEL.fullmatch(image_stem(path))
    return int(numbered[1]) if numbered else None
