"""Understands the layout of a folder with raw data: which files are cases, and what it says of itself."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet.dataset import Case, MaskCoding, Problem, SliceAxis, Slicing, Source
from iaunet.discovery import discover_cases
from iaunet.errors import FileError
from iaunet.nnunet import NnunetDataset, is_nnunet_dataset, normalisation_of, read_nnunet
from iaunet.stacks import SLICE_AXES, is_volume, read_volume_header

EQUAL_MM = 0.01
"""Spacings closer than this are equal."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What was understood of a folder before any pixel was read.

    ``labels`` and ``coding`` are None where the masks have to tell. ``test_cases`` are held out by the folder itself.
    All else is as in `iaunet.dataset.Dataset`.
    """

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    understood: str
    slicing: Slicing = Slicing()
    labels: tuple[str, ...] | None = None
    coding: MaskCoding | None = None
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
    else:
        found = discover_cases(source)
        layout = Layout(cases=found.cases, problems=found.problems, understood=found.understood)
    slicing, why = choose_slicing(root, layout.cases, source)
    return dataclasses.replace(layout, slicing=slicing, understood=f"{layout.understood}{why}")


def choose_slicing(root: Path, cases: tuple[Case, ...], source: Source) -> tuple[Slicing, str]:
    """How the volumes among the cases are cut: as the user says, else across the coarsest median spacing."""
    volumes = [root / case.images[0] for case in cases if is_volume(root / case.images[0])]
    axes = list(SLICE_AXES)
    if not volumes:
        return Slicing(axes=source.axes), ""
    spacings = []
    for path in volumes:
        try:
            spacings.append(read_volume_header(path).spacing_mm)
        except FileError:
            continue  # reading the volume will tell
    median = np.median(spacings, axis=0) if spacings else np.ones(3)
    coarsest: SliceAxis = axes[int(np.argmax(np.round(median / EQUAL_MM)))]  # of equal ones the first, axial
    chosen = source.slice_axis or coarsest
    reason = "as asked" if source.slice_axis else "where spacing is coarsest" if np.ptp(median) > EQUAL_MM else "usual"
    shown = " x ".join(f"{side:.3g}" for side in median)
    words = f", volumes cut into {chosen} slices ({reason}; median spacing {shown} mm)"
    return Slicing(slice_axis=chosen, axes=source.axes), words


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
