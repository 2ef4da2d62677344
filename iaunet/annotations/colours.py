"""Masks whose colours are the labels, with or without a file that names the colours."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iaunet.annotations.converted import Converted, keep_or_write, mask_path, remove_stale, shown
from iaunet.annotations.texts import decode_text, parse_json, read_data
from iaunet.dataset import Problem
from iaunet.errors import DatasetError, FileError
from iaunet.files import read_image
from iaunet.storage import digest, file_digest

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

MOST_COLOURS = 8
"""Labels that colours without names may stand for."""

RAREST_COLOUR = 1e-4
"""A colour without a name and with a smaller share of all pixels is taken for a blended edge, not for a label."""

BLACK: Colour = (0, 0, 0)

_BACKGROUND = ("background", "_background_", "bg")
_LARGEST_MAP = 2**20
_MOST_COUNTED = 4096
_SAVE_UNBLENDED = "save it as PNG without smoothed edges"
_NAME_COLOURS = "name the colours in labelmap.txt (NAME:R,G,B::)"
_BASIC = {
    BLACK: "black",
    (255, 255, 255): "white",
    (255, 0, 0): "red",
    (0, 255, 0): "green",
    (0, 0, 255): "blue",
    (255, 255, 0): "yellow",
    (255, 0, 255): "magenta",
    (0, 255, 255): "cyan",
    (128, 0, 0): "dark red",
    (0, 128, 0): "dark green",
    (0, 0, 128): "dark blue",
}


@dataclass(frozen=True)
class LabelMap:
    """The colour of each label, in order, and the file that tells it.

    ``background`` are the colours that stand for no label: black, unless it is a label's, and what the file calls
    background.
    """

    labels: dict[str, Colour]
    background: tuple[Colour, ...]
    path: Path | None = None


@dataclass(frozen=True)
class _Counts:
    """The pixels of each colour of a mask, and of a palette's used entries their colours by index."""

    colours: Counter[Colour]
    palette: dict[int, Colour]


def read_colour_mask(path: Path) -> NDArray[np.uint8]:
    """The colours of a mask, [height, width, 3] uint8 as red, green, blue; a palette's colours, not its indices.

    Raises:
        FileError: It cannot be read, or has more than 8 bits a channel.
    """
    pixels = read_image(path).pixels
    if pixels.dtype != np.uint8:
        raise FileError(f"mask has colours or greys of {pixels.dtype}", "save it with 8 bits a channel")
    colours = np.broadcast_to(pixels, (3, *pixels.shape[1:]))
    return np.ascontiguousarray(np.moveaxis(colours, 0, 2), dtype=np.uint8)


def find_label_map(root: Path) -> LabelMap | None:
    """Find the file that names the colours of masks.

    Args:
        root: The data set's folder. Looked for in it and in the folders right below: CVAT's ``labelmap.txt``
            (``name:r,g,b::``), any CSV file with the columns name (or class, label), r, g, b (or red, green, blue),
            any JSON file that is nothing but ``{name: [r, g, b]}``.

    Returns:
        None when there is none.

    Raises:
        FileError: A file that names colours is damaged.
        DatasetError: Two files name different colours.
    """
    found: list[LabelMap] = []
    for path in sorted(path for pattern in ("*", "*/*") for path in root.glob(pattern)):
        if path.suffix.lower() in (".txt", ".csv", ".json") and path.is_file() and path.stat().st_size <= _LARGEST_MAP:
            label_map = read_label_map(path)
            found += [label_map] if label_map else []
    for other in found[1:]:
        if other.labels != found[0].labels:
            raise DatasetError(f"{found[0].path} and {other.path} name different colours: keep the true one")
    return found[0] if found else None


def read_label_map(path: Path) -> LabelMap | None:
    """Read one of the files `find_label_map` looks for; None where it is another kind of file.

    Raises:
        FileError: It names colours, but not as it should; the message starts with its name.
    """
    readers = {".json": _json_entries, ".csv": _csv_entries}
    entries = _cvat_entries if path.name.lower() == "labelmap.txt" else readers.get(path.suffix.lower())
    if entries is None:
        return None
    try:
        named = entries(read_data(path))
        return _label_map(named, path) if named else None
    except FileError as fault:
        raise FileError(f"{path.name}: {fault.what}", fault.mend) from fault


def convert_colours(
    masks: Mapping[str, Path], folder: Path, root: Path, label_map: LabelMap | None
) -> Converted | None:
    """Turn masks in colour into label maps.

    Args:
        masks: The mask file of each case by the case's name.
        folder: In the workspace, for these masks alone; see `iaunet.annotations.conversion.convert`.
        root: The data set's folder, to which problems are relative.
        label_map: Which colour is which label. Without one the colours of all masks together are ``label_1`` and
            so on, the most frequent first, and black is background.

    Returns:
        None when no mask holds a colour: shades of grey are values.
    """
    counts, problems = _count_all(masks, root)
    if not any(len({*colour}) > 1 for count in counts.values() for colour in count.colours):
        return None
    files = {case: shown(path, root) for case, path in masks.items()}
    problems += _palette_problems(counts, files, "fault" if label_map is None else "note")
    if label_map is None:
        label_map, faults = _number_colours(counts)
        problems += faults
    strange = _strange_colours(counts, files, label_map)
    problems += strange.values()
    written = {}
    for case in [case for case in counts if case not in strange and label_map.labels]:
        written[case] = mask_path(folder, case)
        made_from = digest(["colours", file_digest(masks[case]), list(label_map.labels.values())])
        keep_or_write(written[case], made_from, functools.partial(_encode, masks[case], label_map))
    remove_stale(folder, set(written.values()))
    told = f"named by {shown(label_map.path, root)}" if label_map.path else "numbered by frequency"
    named = ", ".join(f"{name} {_in_words(colour)}" for name, colour in label_map.labels.items())
    understood = f"colours of {len(written)} masks are labels, {told}: {named}"
    return Converted(
        labels=tuple(label_map.labels),
        masks=written,
        problems=tuple(problems),
        understood=understood,
        faulty=tuple(case for case in masks if case not in written),
    )


def _encode(path: Path, label_map: LabelMap) -> NDArray[np.generic]:
    """The label map [height, width] of a mask whose colours are all known."""
    packed = _pack(read_colour_mask(path))
    values = np.zeros(packed.shape, np.uint8 if len(label_map.labels) <= 255 else np.uint16)
    for value, colour in enumerate(label_map.labels.values(), start=1):
        values[packed == _pack(np.array(colour, np.uint8))] = value
    return values


def _pack(colours: NDArray[np.uint8]) -> NDArray[np.int32]:
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    packed: NDArray[np.int32] = red << 16 | green << 8 | blue
    return packed


def _count_all(masks: Mapping[str, Path], root: Path) -> tuple[dict[str, _Counts], list[Problem]]:
    counts, problems = {}, []
    for case, path in masks.items():
        try:
            counts[case] = _count(path)
        except FileError as fault:
            problems.append(Problem.of(shown(path, root), fault))
    return counts, problems


def _count(path: Path) -> _Counts:
    image = Image.fromarray(read_colour_mask(path))
    counted = image.getcolors(_MOST_COUNTED)
    if counted is None:
        raise FileError(f"mask has more than {_MOST_COUNTED} colours", _SAVE_UNBLENDED)
    return _Counts(Counter({colour: n for n, colour in counted}), _used_palette(path))  # type: ignore[misc]


def _used_palette(path: Path) -> dict[int, Colour]:
    """The colour of each index that occurs in a palette image; nothing for any other."""
    with Image.open(path) as image:
        if image.mode != "P":
            return {}
        palette = image.getpalette("RGB") or []
        used = sorted(int(index) for _, index in image.getcolors(256) or ())  # type: ignore[arg-type]
    return {index: tuple(palette[3 * index : 3 * index + 3]) for index in used}  # type: ignore[misc]


def _palette_problems(
    counts: Mapping[str, _Counts], files: Mapping[str, str], level: Literal["fault", "note"]
) -> list[Problem]:
    """Indices that have one colour in one file and another in another."""
    first: dict[int, tuple[Colour, str]] = {}
    problems: dict[int, Problem] = {}
    for case, count in counts.items():
        for index, colour in count.palette.items():
            before, file = first.setdefault(index, (colour, files[case]))
            if colour != before and index not in problems:
                what = f"value {index} is {_in_words(before)} in {file} and {_in_words(colour)} in {files[case]}"
                mend = "save all masks with one palette, or name the colours in labelmap.txt (NAME:R,G,B::)"
                problems[index] = Problem(level=level, file=files[case], what=what, mend=mend)
    return [problems[index] for index in sorted(problems)]


def _number_colours(counts: Mapping[str, _Counts]) -> tuple[LabelMap, list[Problem]]:
    """The frequent colours of all masks as ``label_1``, ``label_2``; no label at all where that cannot be."""
    total: Counter[Colour] = Counter()
    for count in counts.values():
        total.update(count.colours)
    common = [colour for colour, n in total.items() if colour != BLACK and n >= RAREST_COLOUR * total.total()]
    common.sort(key=lambda colour: (-total[colour], colour))
    if BLACK not in total:
        what, mend = "no mask has black, which stands for background", f"make it black, or {_NAME_COLOURS}"
    elif len(common) > MOST_COLOURS:
        what = f"masks have {len(common)} colours ({', '.join(map(_in_words, common[:MOST_COLOURS]))} and more)"
        mend = f"{_NAME_COLOURS}, or {_SAVE_UNBLENDED}"
    else:
        labels = {f"label_{number}": colour for number, colour in enumerate(common, start=1)}
        return LabelMap(labels, (BLACK,)), []
    return LabelMap({}, (*common, BLACK)), [Problem(level="fault", file="masks", what=what, mend=mend)]


def _strange_colours(
    counts: Mapping[str, _Counts], files: Mapping[str, str], label_map: LabelMap
) -> dict[str, Problem]:
    """A fault for each mask with colours that stand for nothing."""
    known = {*label_map.labels.values(), *label_map.background}
    problems = {}
    for case, count in counts.items():
        strange = sorted(count.colours.keys() - known, key=lambda colour: (-count.colours[colour], colour))
        if strange:
            n_pixels = sum(count.colours[colour] for colour in strange)
            what = (
                f"mask has {len(count.colours)} colours, of which {len(strange)} are no label's "
                f"(first {_in_words(strange[0])}; {n_pixels} pixels)"
            )
            mend = f"{_SAVE_UNBLENDED}, or {_NAME_COLOURS}"
            problems[case] = Problem(level="fault", file=files[case], what=what, mend=mend)
    return problems


def _in_words(colour: Colour) -> str:
    return _BASIC.get(colour, "({}, {}, {})".format(*colour))


def _label_map(named: Sequence[tuple[str, Colour, str]], path: Path) -> LabelMap:
    """Check entries (name, colour, place in the file)."""
    labels: dict[str, Colour] = {}
    background: list[Colour] = []
    for name, colour, place in named:
        if any(not 0 <= part <= 255 for part in colour):
            raise FileError(f"{place}: colour {colour} is not within 0 to 255", "correct it")
        if colour in labels.values() or colour in background or name in labels:
            raise FileError(f"{place}: {name} or its colour {_in_words(colour)} is named twice", "keep one of them")
        if name.lower() in _BACKGROUND:
            background.append(colour)
        else:
            labels[name] = colour
    if BLACK not in labels.values() and BLACK not in background:
        background.append(BLACK)
    return LabelMap(labels, tuple(background), path)


def _cvat_entries(data: bytes) -> list[tuple[str, Colour, str]]:
    """Lines ``name:r,g,b:parts:actions``, comments after ``#``."""
    entries = []
    for number, line in enumerate(decode_text(data).splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, _, rest = line.partition(":")
            colour = _colour(rest.partition(":")[0].split(","), f"line {number}")
            entries.append((name.strip(), colour, f"line {number}"))
    return entries


def _csv_entries(data: bytes) -> list[tuple[str, Colour, str]]:
    """Rows of a table whose header names a label and three colours; nothing for any other table."""
    try:
        rows = [[field.strip() for field in line.split(",")] for line in decode_text(data).splitlines()]
    except FileError:
        return []
    header = [field.strip("\"'").lower() for field in rows[0]] if rows else []
    name = next((header.index(word) for word in ("name", "class", "label") if word in header), None)
    colours = next((c for c in (("r", "g", "b"), ("red", "green", "blue")) if {*c} <= {*header}), None)
    if name is None or colours is None:
        return []
    entries = []
    for number, row in enumerate(rows[1:], start=2):
        if any(row):
            if len(row) != len(header):
                raise FileError(f"line {number}: has {len(row)} fields, the header {len(header)}", "correct the line")
            colour = _colour([row[header.index(part)] for part in colours], f"line {number}")
            entries.append((row[name].strip("\"'"), colour, f"line {number}"))
    return entries


def _json_entries(data: bytes) -> list[tuple[str, Colour, str]]:
    """An object that is nothing but names with three whole numbers each; nothing for any other JSON."""
    try:
        parsed: Any = parse_json(data)
    except FileError:
        return []
    if not isinstance(parsed, dict) or not all(_is_triple(value) for value in parsed.values()):
        return []
    return [(name.strip(), tuple(value), f"entry {name!r}") for name, value in parsed.items()]


def _is_triple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(part) is int for part in value)


def _colour(parts: Sequence[str], place: str) -> Colour:
    if len(parts) != 3 or not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise FileError(f"{place}: {','.join(parts)!r} is no colour", "give red, green and blue from 0 to 255")
    red, green, blue = map(int, parts)
    return red, green, blue
