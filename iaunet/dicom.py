"""Reads DICOM images as volumes: series of slices, multi-frame files and single pictures, and segmentations of them.

Slices are put in order by their positions in space, never by names or instance numbers. Voxels are what the modality
measured: rescaled, without window and level.
"""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet.dicom_frames import (
    SEGMENTATION_CLASSES,
    SOP_CLASS,
    Frames,
    Groups,
    decode,
    frames_of,
    functional_groups,
    read_frames,
    require_pixels,
)
from iaunet.dicom_header import Header, has_dicom_magic, read_elements
from iaunet.errors import FileError
from iaunet.orientation import MAX_VOXELS, Volume, VolumeHeader, as_float32

DICOM_ENDINGS = (".dcm", ".dicom")

SPACING_TOLERANCE = 0.05
"""Share of the slice spacing by which a step between two slices may differ from it; at least 0.02 mm are allowed."""

SHEAR_TOLERANCE = 0.5
"""Pixels by which a slice may lie beside the normal through the first."""

_SERIES_UID, _DESCRIPTION = 0x0020000E, 0x0008103E
_SEGMENTS, _SEGMENT_NUMBER, _SEGMENT_LABEL, _SEGMENTATION_TYPE = 0x00620002, 0x00620004, 0x00620005, 0x00620001
_SEGMENT_IDENTIFICATION, _REFERENCED_SEGMENT = 0x0062000A, 0x0062000B
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SMALL_DTYPES = (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32)
_EXPORT = "export it again"


@dataclass(frozen=True)
class Series:
    """The files of one stack of slices, in order along the normal of their planes, or one lone file."""

    uid: str
    description: str
    files: tuple[Path, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the pictures of a series lie.

    ``files`` are in the order of the slices. ``frames`` holds for each slice the picture it is, counted from 0
    through all files in that order. ``header.affine`` is that of the axes (column, row, slice).
    """

    files: tuple[Path, ...]
    frames: tuple[int, ...]
    header: VolumeHeader


def is_dicom_file(path: Path) -> bool:
    """Whether the name ends in .dcm or .dicom, or has no ending (or a number for it) and the file says ``DICM``.

    The list of what a CD holds, ``DICOMDIR``, is no image.
    """
    ending = path.suffix.lower()
    if path.name.upper() == "DICOMDIR":
        return False
    return ending in DICOM_ENDINGS or ((ending[1:].isdecimal() or not ending) and has_dicom_magic(path))


def find_series(files: Sequence[Path]) -> list[Series]:
    """Group the DICOM files of one folder; only headers are read.

    Slices belong together when they share series, orientation and size. Multi-frame files, pictures without a
    position and files that cannot be read are series of their own; but where all others are the slices of one series,
    those that cannot be read belong to it. In either case `read_series` says what is wrong with them.

    Returns:
        The series in the order of their first files as given.
    """
    groups: dict[str, list[tuple[int, list[Frames]]]] = defaultdict(list)  # by series: place in the result, slices
    series: list[Series] = []
    unreadable: list[Path] = []
    for path in files:
        try:
            frames = read_frames(path)
        except FileError:
            unreadable.append(path)
            series.append(Series("", "", (path,)))
            continue
        of_series = groups[frames.header.text(_SERIES_UID)]
        stack = next((stack for _, stack in of_series if _belongs(frames, stack[0])), None)
        if stack is None:
            of_series.append((len(series), [frames]))
            series.append(Series("", "", (path,)))
        else:
            stack.append(frames)
    for place, stack in itertools.chain.from_iterable(groups.values()):
        first = stack[0].header
        paths = tuple(frames.header.path for frames in _in_order(stack))
        series[place] = Series(first.text(_SERIES_UID), first.text(_DESCRIPTION), paths)
    stacks = [each for each in series if each.files[0] not in unreadable]
    if len(stacks) == 1 and len(stacks[0].files) > 1:
        return [dataclasses.replace(stacks[0], files=(*stacks[0].files, *unreadable))]
    return series


def read_series_header(files: Sequence[Path]) -> VolumeHeader:
    """What a series is without its voxels.

    Raises:
        FileError: As `read_series`, but for what only decoding shows.
    """
    return read_layout(files).header


def read_layout(files: Sequence[Path]) -> Layout:
    """The order and geometry of the slices of a series.

    Args:
        files: All files of the series, in any order.

    Raises:
        FileError: As `read_series`, but for what only decoding shows.
    """
    return _lay_out([read_frames(path) for path in files])[1]


def read_series(files: Sequence[Path]) -> Volume:
    """Read a series as a volume.

    Args:
        files: All files of the series, in any order: slices, or one file with one or several pictures.

    Returns:
        The volume with one channel for grey, three for colour. Values are rescaled (modality LUT, slope and
        intercept): whole where these are whole, else float32. MONOCHROME1 is inverted. A picture without orientation
        counts as axial; spacing that is not told is 1 mm.

    Raises:
        FileError: Files are missing, damaged, of several series or no images; slices are missing, doubled, tilted,
            unevenly spaced or of different sizes; or the compression cannot be read.
    """
    stack, layout = _lay_out([read_frames(path) for path in files])
    pictures = np.concatenate([decode(frames) for frames in stack])  # [slices, rows, columns, channels]
    if layout.frames != tuple(range(len(pictures))):
        pictures = pictures[list(layout.frames)]
    return Volume.of(_small(pictures).transpose(3, 2, 1, 0), layout.header.affine)


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM segmentation.

    Raises:
        FileError: It is missing or damaged.
    """
    return read_elements(path).text(SOP_CLASS) in SEGMENTATION_CLASSES


def read_segmentation(path: Path, like: Series) -> tuple[NDArray[np.integer], dict[int, str]]:
    """Read a DICOM segmentation as the mask of a series.

    Args:
        path: A segmentation of kind BINARY or LABELMAP, on the pixels of the series.
        like: The series; slices the segmentation leaves out are background.

    Returns:
        The labels [I, P, L] of the series (segment numbers, 0 for background) and the name of each segment.

    Raises:
        FileError: It is no such segmentation, lies elsewhere than the series, or its segments overlap.
    """
    layout = read_layout(like.files)
    header = require_pixels(read_elements(path))
    if not is_segmentation(path):
        raise FileError("is no DICOM segmentation", "give the segmentation of the series, or a mask file")
    if header.text(_SEGMENTATION_TYPE) == "FRACTIONAL":
        raise FileError("is a segmentation of kind FRACTIONAL", "save it as BINARY")
    frames = frames_of(header)
    names = {
        segment.whole(_SEGMENT_NUMBER): segment.text(_SEGMENT_LABEL)
        for segment in header.items(_SEGMENTS)
        if segment.whole(_SEGMENT_NUMBER) > 0  # 0 is the background of a LABELMAP
    }
    volume = layout.header
    shape = volume.orientation.to_file(np.empty(volume.shape, np.bool_)).shape
    if frames.size != (shape[1], shape[0]):
        raise FileError(
            f"has {frames.size[0]} x {frames.size[1]} pixels, its series {shape[1]} x {shape[0]}",
            "give the segmentation made on this series",
        )
    pixels = decode(frames)[..., 0]
    labels: NDArray[np.integer] = np.zeros(shape[::-1], np.uint16)
    for picture, segment, place in zip(pixels, _segments(header, frames.n), _places(frames, layout), strict=True):
        here = picture != 0
        values = np.where(here, picture if segment is None else segment, 0).astype(labels.dtype)
        if ((labels[place] != 0) & here & (labels[place] != values)).any():
            raise FileError("has segments that overlap", "save them so that each pixel has one label")
        labels[place][here] = values[here]
    if labels.max() <= 255:
        labels = labels.astype(np.uint8)
    return np.ascontiguousarray(volume.orientation.to_canonical(labels.transpose(2, 1, 0))), names


def _belongs(frames: Frames, first: Frames) -> bool:
    """Whether two pictures of one series can be slices of one stack."""
    return frames.can_stack and first.can_stack and frames.has_form_of(first) and frames.is_parallel_to(first)


def _in_order(stack: Sequence[Frames]) -> list[Frames]:
    if len(stack) == 1:
        return list(stack)
    return sorted(stack, key=lambda frames: float(_along_normal(frames)[0]))


def _along_normal(frames: Frames) -> NDArray[np.float64]:
    """How far the pictures of a stackable file lie along the normal, in mm."""
    assert frames.positions is not None
    assert frames.axes is not None
    return np.asarray(frames.positions @ np.cross(*frames.axes), np.float64)


def _lay_out(stack: Sequence[Frames]) -> tuple[list[Frames], Layout]:
    """The files in order, and the places of their pictures.

    Raises:
        FileError: They are no stack of evenly spaced slices.
    """
    if not stack:
        raise FileError("series has no files", "give the files of one series")
    if len(stack) > 1:
        _require_one_stack(stack)
        stack = _in_order(stack)
    first = stack[0]
    names = [frames.header.path.name for frames in stack for _ in range(frames.n)]
    if first.positions is None or first.axes is None:
        order = list(range(first.n))
        affine = _affine(np.array([[1.0, 0, 0], [0, 1, 0]]), first.spacing_mm, np.zeros(3))
    else:
        positions = np.concatenate([frames.positions for frames in stack if frames.positions is not None])
        along = positions @ np.cross(*first.axes)
        order = np.argsort(along, kind="stable").tolist()
        step = _require_even(along[order], positions[order], [names[k] for k in order], first.spacing_mm)
        affine = _affine(first.axes, (*first.spacing_mm[:2], step), positions[order[0]])
    if len(names) * first.size[0] * first.size[1] * first.channels > MAX_VOXELS:
        raise FileError(f"series has more than the {MAX_VOXELS:,} values allowed", "split or shrink it")
    header = VolumeHeader.of((first.size[1], first.size[0], len(names)), first.channels, affine)
    return list(stack), Layout(tuple(frames.header.path for frames in stack), tuple(order), header)


def _affine(
    axes: NDArray[np.float64], spacing_mm: tuple[float, float, float], origin: NDArray[np.float64]
) -> NDArray[np.float64]:
    """From (column, row, slice) to RAS mm."""
    affine = np.eye(4)
    affine[:3, 0] = axes[0] * spacing_mm[1]
    affine[:3, 1] = axes[1] * spacing_mm[0]
    affine[:3, 2] = np.cross(*axes) * (abs(spacing_mm[2]) or 1.0)
    affine[:3, 3] = origin
    return np.asarray(_LPS_TO_RAS @ affine + 0.0, np.float64)  # no negative zeros


def _require_one_stack(stack: Sequence[Frames]) -> None:
    """Refuse files that are not slices of one series, naming what differs."""
    by_uid: dict[str, list[Frames]] = {}
    for frames in stack:
        by_uid.setdefault(frames.header.text(_SERIES_UID), []).append(frames)
    if len(by_uid) > 1:
        shown = ", ".join(
            f"{group[0].header.text(_DESCRIPTION) or uid} ({len(group)} files)" for uid, group in by_uid.items()
        )
        raise FileError(f"holds {len(by_uid)} series: {shown}", "put each series in a folder of its own")
    first = stack[0]
    for frames in stack:
        name = frames.header.path.name
        if not frames.can_stack:
            what = "several pictures" if frames.n > 1 else "no position or orientation"
            raise FileError(f"{name} has {what} and is not alone", "put it in a folder of its own")
        if not frames.has_form_of(first):
            raise FileError(
                f"{name} has {_form(frames)}, {first.header.path.name} {_form(first)}",
                "put slices of different form in folders of their own",
            )
        if not frames.is_parallel_to(first):
            raise FileError(
                f"{name} has another orientation than {first.header.path.name}",
                "put slices of different orientation in folders of their own",
            )
        if not np.allclose(frames.spacing_mm[:2], first.spacing_mm[:2], rtol=1e-3):
            raise FileError(
                f"{name} has another pixel spacing than {first.header.path.name}",
                "put slices of different spacing in folders of their own",
            )


def _form(frames: Frames) -> str:
    return f"{frames.size[0]} x {frames.size[1]} pixels of {frames.channels} values"


def _require_even(
    along: NDArray[np.float64],
    positions: NDArray[np.float64],
    names: Sequence[str],
    spacing_mm: tuple[float, float, float],
) -> float:
    """The step between slices in mm, checked to be the same everywhere and along the normal; all in order."""
    if len(along) == 1:
        return spacing_mm[2]
    steps = np.diff(along)
    pairs = [f"{names[k]} and {names[k + 1]}" if len({*names}) > 1 else names[k] for k in range(len(steps))]
    tiny = np.flatnonzero(steps < 1e-3)
    if tiny.size:
        raise FileError(
            f"several slices lie at one position, {along[tiny[0]]:g} mm ({pairs[tiny[0]]})",
            "put each acquisition in a folder of its own and remove copies",
        )
    step = _likely_step(steps)
    if step is None:
        usual = float(np.median(steps))
        worst = int(np.argmax(np.abs(steps - usual)))
        raise FileError(
            f"slices are unevenly spaced: {steps[worst]:g} mm at {pairs[worst]}, {usual:g} mm elsewhere",
            "resample the series to one spacing",
        )
    counts = np.rint(steps / step)
    if counts.max() > 1:
        n_missing = int(counts.sum()) - len(steps)
        shown = ", ".join(f"{value:g}" for value in itertools.islice(_gaps(along, counts), 5))
        raise FileError(
            f"{n_missing} of {len(along) + n_missing} slices are missing, expected at {shown}"
            f"{', ...' if n_missing > 5 else ''} mm "
            f"({pairs[int(np.argmax(counts))]})",
            "copy the whole series again, or give each slice a folder of its own if these are all",
        )
    _require_straight(along, positions, spacing_mm)
    return float((along[-1] - along[0]) / (len(along) - 1))


def _likely_step(steps: NDArray[np.float64]) -> float | None:
    """The usual step, else the shortest, if all are multiples of it within tolerance."""
    for step in (float(np.sort(steps)[(len(steps) - 1) // 2]), float(steps.min())):
        counts = np.rint(steps / step)
        allowed = max(SPACING_TOLERANCE * step, 0.02) * counts
        if counts.all() and (np.abs(steps - counts * step) <= allowed).all():
            return step
    return None


def _gaps(along: NDArray[np.float64], counts: NDArray[np.float64]) -> Iterator[float]:
    """Where slices are missing, when the steps between slices are ``counts`` times the usual one."""
    for start, end, count in zip(along[:-1], along[1:], counts, strict=True):
        for k in range(1, int(count)):
            yield float(start + (end - start) * k / count)


def _require_straight(
    along: NDArray[np.float64], positions: NDArray[np.float64], spacing_mm: tuple[float, float, float]
) -> None:
    travelled = positions - positions[0]
    sideways = np.sqrt(np.maximum((travelled**2).sum(1) - (along - along[0]) ** 2, 0))
    if sideways.max() > SHEAR_TOLERANCE * min(spacing_mm[:2]):
        worst = int(np.argmax(sideways))
        angle = np.degrees(np.arctan2(sideways[worst], along[worst] - along[0]))
        raise FileError(
            f"slices are not stacked along their normal (tilted gantry, {angle:.1f} degrees)",
            "resample the series without tilt",
        )


def _small(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Pixels of at most 32 bits: whole numbers as int32 where they fit, else float32."""
    if pixels.dtype in _SMALL_DTYPES:
        return pixels
    if pixels.dtype.kind in "iu":
        limits = np.iinfo(np.int32)
        if limits.min <= int(pixels.min()) and int(pixels.max()) <= limits.max:
            return pixels.astype(np.int32)
    return as_float32(pixels)


def _segments(header: Header, n: int) -> list[int | None]:
    """The segment each picture of a segmentation shows; None where its values are the segments."""
    if header.text(_SEGMENTATION_TYPE) == "LABELMAP":
        return [None] * n
    groups = functional_groups(header, n)
    found: list[int | None] = [_segment(picture) for picture in groups]
    return found if len(found) == n else found * n


def _segment(picture: Groups) -> int:
    for place in picture.places:
        for item in place.items(_SEGMENT_IDENTIFICATION):
            return item.whole(_REFERENCED_SEGMENT)
    raise FileError("has pictures that name no segment", _EXPORT)


def _places(frames: Frames, layout: Layout) -> list[int]:
    """The slice each picture of a segmentation lies on, counted along the series."""
    affine = layout.header.affine
    n = len(layout.frames)
    if frames.positions is None or frames.axes is None:
        if n != 1:
            raise FileError("does not say where its pictures lie", _EXPORT)
        return [0] * frames.n
    columns = frames.axes.T @ np.diag([frames.spacing_mm[1], frames.spacing_mm[0]])
    if not np.allclose(
        _LPS_TO_RAS[:3, :3] @ columns, affine[:3, :2], rtol=0.01, atol=0.01 * min(frames.spacing_mm[:2])
    ):
        raise FileError("has other axes or another spacing than its series", "resample it onto the series")
    homogeneous = np.column_stack([frames.positions, np.ones(frames.n)]) @ _LPS_TO_RAS
    indices = np.linalg.solve(affine, homogeneous.T).T[:, :3]
    places = np.rint(indices[:, 2]).astype(int)
    if (
        np.abs(indices - np.column_stack([np.zeros((frames.n, 2)), places])).max() > 0.1
        or not ((places >= 0) & (places < n)).all()
    ):
        raise FileError("lies elsewhere than its series", "give the segmentation made on this series")
    return [int(place) for place in places]
