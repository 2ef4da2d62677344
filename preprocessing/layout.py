"""Understands the layout of a folder with raw data: which files are cases, and what it says of itself."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet.annotations.colours import convert_colours, find_label_map
from iaunet.annotations.conversion import convert
from iaunet.annotations.converted import Converted
from iaunet.annotations.recognition import find_annotations
from iaunet.annotations.united import convert_united, group_masks
from iaunet.dataset import DEFAULT_SLICING, Case, MaskCoding, Problem, SliceAxis, Slicing, Source
from iaunet.discovery import Files, find_files, pair_files
from iaunet.errors import FileError
from iaunet.files import may_hold_colours
from iaunet.nnunet import DATASET_FILE, NnunetDataset, is_nnunet_dataset, normalisation_of, read_nnunet
from iaunet.stacks import SLICE_AXES, is_volume, read_volume_header

EQUAL_MM = 0.01
"""Spacings closer than this are equal."""

PARTS_NAMES = "_-. ("
"""What may follow an image's name in the longer name of another, or of one of its masks."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What was understood of a folder before any pixel was read.

    ``labels`` and ``coding`` are None where the masks have to tell. ``are_numbered`` tells that labels are colours
    without names, numbered by frequency: other masks may number them otherwise. ``test_cases`` are held out by the
    folder itself. All else is as in `iaunet.dataset.Dataset`.
    """

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    understood: str
    slicing: Slicing = DEFAULT_SLICING
    labels: tuple[str, ...] | None = None
    coding: MaskCoding | None = None
    are_numbered: bool = False
    channel_kinds: tuple[str, ...] = ()
    channel_files: int = 0
    test_cases: tuple[Case, ...] = ()


def understand(source: Source, masks: Path) -> Layout:
    """Find the cases of a folder, whatever its layout.

    Args:
        source: Where it lies and what the user said about it.
        masks: Where masks are written that have to be made of other files, such as polygons.

    Raises:
        DatasetError: It holds nothing that can be used.
    """
    root = Path(source.root)
    if source.images is None and is_nnunet_dataset(root):
        layout = _of_nnunet(read_nnunet(root))
        if source.missing_mask != "error":
            what = f"--missing_mask {source.missing_mask} has no effect on a dataset of nnU-Net"
            note = Problem(level="note", file=DATASET_FILE, what=what, mend="add the masks, or remove their images")
            layout = dataclasses.replace(layout, problems=(*layout.problems, note))
    else:
        layout = _of_folder(source, masks)
    slicing, why = choose_slicing(root, layout.cases, source)
    return dataclasses.replace(layout, slicing=slicing, understood=f"{layout.understood}{why}")


def choose_slicing(root: Path, cases: tuple[Case, ...], source: Source) -> tuple[Slicing, str]:
    """How the volumes among the cases are cut: as the user says, else across the axis along which all are one voxel
    thick, else across the coarsest median spacing."""
    volumes = [root / case.images[0] for case in cases if is_volume(root / case.images[0])]
    axes = list(SLICE_AXES)
    if not volumes:
        return Slicing(axes=source.axes), ""
    headers = []
    for path in volumes:
        with contextlib.suppress(FileError):  # reading the volume will tell
            headers.append(read_volume_header(path))
    median = np.median([header.spacing_mm for header in headers], axis=0) if headers else np.ones(3)
    thickest = np.max([header.shape for header in headers], axis=0) if headers else np.zeros(3)
    coarsest: SliceAxis = axes[int(np.argmax(np.round(median / EQUAL_MM)))]  # of equal ones the first, axial
    if source.slice_axis:
        chosen, reason = source.slice_axis, "as asked"
    elif thickest.min() == 1:
        chosen, reason = axes[int(np.argmin(thickest))], "one voxel thick"
    else:
        chosen, reason = coarsest, "where spacing is coarsest" if np.ptp(median) > EQUAL_MM else "usual"
    shown = " x ".join(f"{side:.3g}" for side in median)
    words = f", volumes cut into {chosen} slices ({reason}; median spacing {shown} mm)"
    return Slicing(slice_axis=chosen, axes=source.axes), words


def _of_folder(source: Source, masks: Path) -> Layout:
    """Images with masks, or with what becomes masks: annotations, colours, several files an image."""
    root = Path(source.root)
    files = find_files(source)
    images = {key: paths[0] for key, paths in files.images.items()}
    if not files.masks:
        annotations = find_annotations(root, list(images.values()))
        if annotations is not None:
            return _of_converted(source, files, convert(annotations, images, masks / "drawn"))
    several = _find_several(source, files)
    if several:
        return _of_converted(source, files, convert_united(several, masks / "united", root))
    one_each = {key: paths[0] for key, paths in files.masks.items() if key in images and len(paths) == 1}
    if any(may_hold_colours(path) for path in one_each.values()):
        label_map = find_label_map(root)
        coloured = convert_colours(one_each, masks / "coloured", root, label_map)
        if coloured is not None:
            return dataclasses.replace(_of_converted(source, files, coloured), are_numbered=label_map is None)
    found = pair_files(files, source)
    return Layout(cases=found.cases, problems=found.problems, understood=found.understood)


def _find_several(source: Source, files: Files) -> dict[str, list[Path]]:
    """The masks of each image where images have several; empty where each has its own."""
    unpaired = files.masks.keys() - files.images.keys() and files.images.keys() - files.masks.keys()
    if not (unpaired or any(len(paths) > 1 for paths in files.masks.values())):
        return {}
    if any(is_volume(path) for paths in files.masks.values() for path in paths):
        return {}  # only pictures are united
    root = Path(source.masks or source.root)
    by_name = {path.relative_to(root).as_posix(): path for paths in files.masks.values() for path in paths}
    groups = group_masks([*files.images], [*by_name])
    paired = files.images.keys() & files.masks.keys()
    begins = {name[:i] for name in files.images for i, letter in enumerate(name) if letter in PARTS_NAMES}
    for image in paired & begins:  # a longer name is another image's here, whose image may be gone
        groups[image] = [path.relative_to(root).as_posix() for path in files.masks[image]]
    if len(groups) < len(paired) or not any(len(names) > 1 for names in groups.values()):
        return {}
    return {image: [by_name[name] for name in names] for image, names in groups.items()}


def _of_converted(source: Source, files: Files, converted: Converted) -> Layout:
    """The layout with masks that were made of something else; cases with faults are not among them."""
    sound = {key: paths for key, paths in files.images.items() if key not in converted.faulty}
    masks = {key: [path] for key, path in converted.masks.items()}
    if not masks and any(problem.level == "fault" for problem in converted.problems):
        return Layout(cases=(), problems=converted.problems, understood=converted.understood)
    found = pair_files(Files(sound, masks, converted.understood), source)
    n = len(converted.labels)
    values = tuple(range(1, n + 1))
    coding = MaskCoding(kind="values", values=values, written=(255,) if n == 1 else values) if n else None
    return Layout(
        cases=found.cases,
        problems=(*found.problems, *converted.problems),
        understood=found.understood,
        labels=converted.labels or None,
        coding=coding,
    )


def _of_nnunet(dataset: NnunetDataset) -> Layout:
    values = sorted({value for region in dataset.labels.values() for value in region})
    order = dataset.regions_class_order
    coding = MaskCoding(
        kind="values",
        values=tuple(values),
        written=tuple(values),
        regions=tuple(dataset.labels.values()) if order else (),
        regions_class_order=order or (),
        ignore=dataset.ignore,
    )
    n_files = len(dataset.cases[0].images) if dataset.cases else 0
    return Layout(
        cases=dataset.cases,
        problems=dataset.problems,
        understood=dataset.understood,
        labels=tuple(dataset.labels),
        coding=coding,
        channel_kinds=tuple(map(normalisation_of, dataset.channel_names)),
        channel_files=n_files,
        test_cases=dataset.test_cases,
    )
