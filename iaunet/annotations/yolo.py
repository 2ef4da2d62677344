"""YOLO: a text file an image, one row an object: class number and polygon in shares of the image."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iaunet.annotations.shapes import AnnotatedImage, Annotations, Polygons, Shape, at, image_name, ring
from iaunet.annotations.texts import decode_text, read_data
from iaunet.dataset import Problem
from iaunet.errors import FileError

_NUMBERS_OF_A_BOX = 4
_LARGEST_SHARE = 2.0
"""A share of the image beyond this, either side of 0, is taken for pixels."""


def is_yolo_text(text: str) -> bool:
    """Whether the first row of a text file is YOLO's: a class number, then at least four numbers."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    return bool(rows) and len(rows[0]) > _NUMBERS_OF_A_BOX and rows[0][0].isdecimal() and all(map(_is_number, rows[0]))


def read_yolo(paths: Sequence[Path], names: Sequence[str], root: Path) -> Annotations:
    """Read polygons.

    Args:
        paths: The text files, each called like its image; an empty one says that the image has no object.
        names: Class names by number, see `read_class_names`; empty where no file tells them.
        root: The folder to which problems and names are relative.

    Returns:
        An image a file, and every fault.
    """
    images, problems = [], []
    for path in paths:
        file = path.relative_to(root).as_posix()
        shapes, faults = _read_rows(path, names)
        images.append(AnnotatedImage((image_name(file[: -len(path.suffix)]),), tuple(shapes), None, file, bool(faults)))
        problems += [Problem.of(file, fault) for fault in faults]
    labels = tuple(names) or tuple(sorted({shape.label for image in images for shape in image.shapes}))
    return Annotations(tuple(images), labels, tuple(problems))


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names from ``classes.txt`` or ``obj.names``, one a line, or from the ``names`` of a YAML file.

    Of YAML the forms that labelling tools write are read: ``[a, b]``, ``{0: a}``, ``- a`` a line, ``0: a`` a line.

    Raises:
        FileError: It cannot be read, holds no names, or its numbers do not count from 0.
    """
    text = decode_text(read_data(path))
    if path.suffix.lower() in (".yaml", ".yml"):
        names = _yaml_names(text)
    else:
        names = [line.strip() for line in text.rstrip().splitlines()]
    if not names or not all(names):
        raise FileError("holds no class names", "give one name a class")
    return tuple(names)


def _read_rows(path: Path, names: Sequence[str]) -> tuple[list[Shape], list[FileError]]:
    try:
        lines = decode_text(read_data(path)).splitlines()
    except FileError as fault:
        return [], [fault]
    shapes, faults = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                shapes.append(_read_row(line.split(), names, f"line {number}"))
            except FileError as fault:
                faults.append(at(f"line {number}", fault))
    return shapes, faults


def _read_row(fields: Sequence[str], names: Sequence[str], place: str) -> Shape:
    if not fields[0].isdecimal() or len(fields[0]) > 6 or not all(map(_is_number, fields)):
        raise FileError("is no class number followed by numbers", "correct the row, or export it again")
    number, shares = int(fields[0]), [float(field) for field in fields[1:]]
    if len(shares) == _NUMBERS_OF_A_BOX:
        raise FileError("is a box, and boxes are no masks", "export polygons (segmentation)")
    if len(shares) % 2:
        raise FileError(f"has {len(shares)} numbers after the class", "give an x and a y for each point")
    if names and number >= len(names):
        raise FileError(f"class {number} has no name, there are {len(names)}", "add its name, or correct the row")
    points = ring(list(zip(shares[::2], shares[1::2], strict=True)))
    if np.abs(points).max() > _LARGEST_SHARE:
        raise FileError("coordinates are no shares of the image", "divide x by its width and y by its height")
    return Shape(names[number] if names else f"class {number}", Polygons((points,), normalised=True), place)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _yaml_names(text: str) -> list[str]:
    lines = [line for line in map(_without_comment, text.splitlines()) if line.strip()]
    first = next((i for i, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if first is None:
        return []
    inline = lines[first].split(":", 1)[1].strip()
    if not inline:
        return _numbered([_block_item(line) for line in _block(lines[first + 1 :])])
    while inline[0] in "[{" and inline[-1] not in "]}" and first + 1 < len(lines):  # goes on over lines
        first += 1
        inline += " " + lines[first].strip()
    parts = re.findall(r"""(?:'(?:[^']|'')*'|"[^"]*"|[^,'"])+""", inline[1:-1])
    return _numbered([_block_item(part if inline[0] == "{" else f"- {part}") for part in parts if part.strip()])


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*", "", line)


def _block(lines: Sequence[str]) -> list[str]:
    """The lines that belong to a key before them: indented, or items of a list."""
    end = next((i for i, line in enumerate(lines) if not line.startswith((" ", "\t", "-"))), len(lines))
    return list(lines[:end])


def _block_item(text: str) -> tuple[str | None, str]:
    """The number, if it is written, and the name of one item."""
    text = text.strip()
    if text.startswith("- "):
        return None, _unquoted(text[2:])
    number, _, name = text.partition(":")
    return _unquoted(number), _unquoted(name)


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace("''", "'").strip()
    return text


def _numbered(items: Sequence[tuple[str | None, str]]) -> list[str]:
    if any(number is not None for number, _ in items):
        by_number = dict(items)
        expected = [str(i) for i in range(len(items))]
        if sorted(map(str, by_number)) != sorted(expected):
            raise FileError("class numbers do not count from 0", "number the names 0, 1, 2 and so on")
        return [by_number[number] for number in expected]
    return [name for _, name in items]
