"""Labelme: one JSON file an image, with the shapes drawn on it."""

import base64
import binascii
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from iaunet.annotations.shapes import (
    AnnotatedImage,
    Annotations,
    Bitmap,
    Circle,
    Outline,
    Polygons,
    Shape,
    Size,
    at,
    base_name,
    coordinates,
    image_name,
    ring,
)
from iaunet.annotations.texts import parse_json, read_data
from iaunet.dataset import Problem
from iaunet.errors import FileError

WITHOUT_AREA = ("point", "points", "line", "linestrip")
"""Kinds of shapes that bound nothing."""

_POLYGONS = ("polygon", "rotation", "oriented_rectangle")
_PNG_START = b"\x89PNG\r\n\x1a\n"


def is_labelme(data: Any) -> bool:
    """Whether a parsed JSON file is Labelme's."""
    return isinstance(data, dict) and isinstance(data.get("shapes"), list) and "imagePath" in data


def read_labelme(path: Path, root: Path) -> Annotations:
    """Read the shapes of one image.

    Args:
        path: A JSON file of Labelme.
        root: The folder to which problems and names are relative.

    Returns:
        One image, and every fault and note about its shapes. Polygons, rectangles, circles and masks are read; what
        has no area is left out with a note. Groups have no meaning for a label map.

    Raises:
        FileError: It cannot be read, or is no JSON of Labelme.
    """
    data = parse_json(read_data(path))
    if not is_labelme(data):
        raise FileError("is no Labelme file", "remove it, or export it again")
    return labelme_annotations(data, path, root)


def labelme_annotations(data: Mapping[str, Any], path: Path, root: Path) -> Annotations:
    """`read_labelme` for a file that is parsed already."""
    file = path.relative_to(root).as_posix()
    problems: list[Problem] = []
    size = None
    try:
        size = _size(data)
    except FileError as fault:
        problems.append(Problem.of(file, fault))
    shapes = []
    for number, item in enumerate(data["shapes"], start=1):
        place = f"shape {number}"
        try:
            shapes += _shape(item, place)
        except FileError as fault:
            problems.append(Problem.of(file, at(place, fault)))
    image = AnnotatedImage(_names(data["imagePath"], file), tuple(shapes), size, file, is_faulty=bool(problems))
    return Annotations((image,), problems=(*problems, *_left_out(data["shapes"], file)))


def _names(image_path: Any, file: str) -> tuple[str, ...]:
    """The image that the file names, in the file's own folder; else the one that is called like the file itself."""
    own = file[: -len(".json")]
    folder = own[: -len(base_name(own))]
    named = base_name(image_name(image_path)) if isinstance(image_path, str) else ""
    return tuple(dict.fromkeys(name for name in (folder + named if named else "", own) if name))


def _size(data: Mapping[str, Any]) -> Size | None:
    sides = data.get("imageHeight"), data.get("imageWidth")
    if None in sides:
        return None
    if any(type(side) is not int or side <= 0 for side in sides):
        raise FileError(f"imageHeight and imageWidth are {sides[0]!r} and {sides[1]!r}", "give whole numbers above 0")
    return sides  # type: ignore[return-value]


def _shape(item: Any, place: str) -> list[Shape]:
    """One shape, or none where it has no area."""
    if not isinstance(item, dict):
        raise FileError("is no object in braces", "export the file again")
    if _kind(item) in WITHOUT_AREA:
        return []
    label = item.get("label")
    if not isinstance(label, str) or not label.strip():
        raise FileError("has no label", "name it in Labelme")
    return [Shape(label, _outline(item), place)]


def _kind(item: Mapping[str, Any]) -> str:
    return str(item.get("shape_type") or "polygon")


def _outline(item: Mapping[str, Any]) -> Outline:
    kind, points = _kind(item), item.get("points")
    if kind in _POLYGONS:
        return Polygons((ring(points),))
    if kind == "rectangle":
        return _rectangle(points)
    if kind == "circle":
        (x, y), edge = _two_points(points, kind)
        return Circle(x, y, math.dist((x, y), edge))
    if kind == "mask":
        return _bitmap(coordinates(points)[0].tolist(), item.get("mask"))
    raise FileError(f"is of the kind {kind!r}, which is not known", "draw it as a polygon")


def _rectangle(points: Any) -> Polygons:
    if isinstance(points, list) and len(points) == 4:
        return Polygons((ring(points),))
    (left, top), (right, bottom) = _two_points(points, "rectangle")
    return Polygons((np.array([(left, top), (right, top), (right, bottom), (left, bottom)]),))


def _two_points(points: Any, kind: str) -> tuple[tuple[float, float], tuple[float, float]]:
    pairs = coordinates(points)
    if len(pairs) != 2:
        raise FileError(f"{kind} has {len(pairs)} points", "give it 2, or draw it as a polygon")
    first, second = pairs.tolist()
    return tuple(first), tuple(second)


def _bitmap(corner: tuple[float, float], encoded: Any) -> Bitmap:
    try:
        png = base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error) as fault:
        raise FileError("mask is not in base64", "draw it again in Labelme") from fault
    if not png.startswith(_PNG_START):
        raise FileError("mask is no PNG image", "draw it again in Labelme")
    x, y = corner
    return Bitmap(png, row=round(y), column=round(x))


def _left_out(items: list[Any], file: str) -> list[Problem]:
    kinds = [_kind(item) for item in items if isinstance(item, dict)]
    without_area = [kind for kind in kinds if kind in WITHOUT_AREA]
    if not without_area:
        return []
    what = f"{len(without_area)} shapes without area are left out ({', '.join(sorted(set(without_area)))})"
    return [Problem(level="note", file=file, what=what, mend="draw them as polygons if they bound a label")]
