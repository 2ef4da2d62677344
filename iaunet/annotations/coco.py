"""COCO: one JSON file with images, categories and annotations, several files united by name."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iaunet.annotations.shapes import (
    AnnotatedImage,
    Annotations,
    Outline,
    Polygons,
    Runs,
    Shape,
    Size,
    at,
    image_name,
    ring,
)
from iaunet.annotations.texts import parse_json, read_data
from iaunet.dataset import Problem
from iaunet.errors import FileError

_LONGEST_CODE = 12
"""Characters of five bits that a number of the string code may take."""


def is_coco(data: Any) -> bool:
    """Whether a parsed JSON file is COCO's."""
    return isinstance(data, dict) and all(
        isinstance(data.get(key), list) for key in ("images", "annotations", "categories")
    )


def read_coco(path: Path, root: Path) -> Annotations:
    """Read the annotations of one file.

    Args:
        path: A JSON file with "images", "annotations" and "categories".
        root: The folder to which problems are relative.

    Returns:
        Every image it lists, with or without shapes, joined to the annotations by its own file's ids; every fault
        and note. Category names are the labels, in the order of their list.

    Raises:
        FileError: It cannot be read, or is no JSON of COCO.
    """
    data = parse_json(read_data(path))
    if not is_coco(data):
        raise FileError("is no COCO file", 'give "images", "annotations" and "categories"')
    return coco_annotations(data, path, root)


def coco_annotations(data: Mapping[str, Any], path: Path, root: Path) -> Annotations:
    """`read_coco` for a file that is parsed already."""
    file = path.relative_to(root).as_posix()
    faults: list[FileError] = []
    categories = _by_id(data["categories"], "category", "name", faults)
    images = _by_id(data["images"], "image", "file_name", faults)
    shapes: dict[Any, list[Shape]] = defaultdict(list)
    boxes = []
    faulty = set()
    for number, item in enumerate(data["annotations"], start=1):
        place = f"annotation {_key(item, number)}"
        try:
            image, label = _owner(item, images, categories)
            if item.get("segmentation"):
                shapes[image] += [Shape(label, outline, place) for outline in _outlines(item["segmentation"])]
            else:
                boxes.append(place)
                faulty.add(image)
        except FileError as fault:
            faulty.add(_image_id(item))
            faults.append(at(place, fault))
    found = []
    for key, item in images.items():
        try:
            own, size = tuple(shapes[key]), _size(item)
            found.append(AnnotatedImage((image_name(item["file_name"]),), own, size, file, key in faulty))
        except FileError as fault:
            faults.append(at(f"image {key}", fault))
    if boxes:
        what = f"{len(boxes)} annotations have no outline, only a box (first {boxes[0]})"
        faults.append(FileError(what, "boxes are no masks: export polygons or masks"))
    names = tuple(dict.fromkeys(item["name"] for item in categories.values()))
    return Annotations(tuple(found), names, tuple(Problem.of(file, fault) for fault in faults))


def decode_counts(code: str) -> NDArray[np.int64]:
    """Decode COCO's compressed run lengths.

    A number is written from its lowest bits up, five bits a character (less 48), the sixth bit telling that more
    follow, the fifth bit of the last being the sign; from the fourth number on it is the difference to the number
    two before.

    Args:
        code: The text under "counts".

    Returns:
        Lengths of runs, int64, background first.

    Raises:
        FileError: It is no such code.
    """
    digits = np.frombuffer(code.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() >= 64 or digits[-1] & 32:
        raise _bad_code()
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= _LONGEST_CODE:
        raise _bad_code()
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, ends - starts + 1))
    numbers = np.add.reduceat((digits & 31) << shifts, starts)
    numbers -= np.where(digits[ends] & 16, np.int64(1) << (shifts[ends] + 5), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _bad_code() -> FileError:
    return FileError("compressed run lengths are damaged", "export the file again")


def _key(item: Any, number: int) -> Any:
    return item.get("id", number) if isinstance(item, dict) else number


def _image_id(item: Any) -> Any:
    """The image an annotation names, None where it names none."""
    key = item.get("image_id") if isinstance(item, dict) else None
    return key if isinstance(key, int | str) else None


def _by_id(items: Iterable[Any], kind: str, name: str, faults: list[FileError]) -> dict[Any, Mapping[str, Any]]:
    """The entries of a list by their id; those without id or name, or with another's id, become faults."""
    found: dict[Any, Mapping[str, Any]] = {}
    for number, item in enumerate(items, start=1):
        fits = isinstance(item, dict) and isinstance(item.get("id"), int | str) and isinstance(item.get(name), str)
        if not fits or not item[name].strip():
            faults.append(FileError(f"entry {number} of the {kind} list has no id or no {name}", "export it again"))
        elif item["id"] in found and found[item["id"]][name] != item[name]:
            other = found[item["id"]][name]
            what = f"{kind} id {item['id']} stands for {other} and for {item[name]}"
            faults.append(FileError(what, "give each an id of its own"))
        else:
            found[item["id"]] = item
    return found


def _owner(item: Any, images: Mapping[Any, Any], categories: Mapping[Any, Any]) -> tuple[Any, str]:
    """The image's id and the label of an annotation."""
    if not isinstance(item, dict):
        raise FileError("is no object in braces", "export the file again")
    image, category = _image_id(item), item.get("category_id")
    if image not in images:
        raise FileError(f"image_id {item.get('image_id')!r} is not among the images", "export the file again")
    if not isinstance(category, int | str) or category not in categories:
        raise FileError(f"category_id {category!r} is not among the categories", "export the file again")
    return image, categories[category]["name"]


def _size(item: Mapping[str, Any]) -> Size | None:
    sides = item.get("height"), item.get("width")
    if None in sides:
        return None
    if any(type(side) is not int or side <= 0 for side in sides):
        raise FileError(f"height and width are {sides[0]!r} and {sides[1]!r}", "give whole numbers above 0")
    return sides  # type: ignore[return-value]


def _outlines(segmentation: Any) -> list[Outline]:
    """Each polygon an outline of its own, for they are united; or the runs."""
    if isinstance(segmentation, dict):
        return [_runs(segmentation)]
    if not isinstance(segmentation, list):
        raise FileError("segmentation is neither polygons nor run lengths", "export the file again")
    return [Polygons((_polygon(flat),)) for flat in segmentation]


def _polygon(flat: Any) -> NDArray[np.float64]:
    if not isinstance(flat, list) or len(flat) % 2 or any(isinstance(number, list) for number in flat[:1]):
        raise FileError("polygon is no flat list of x and y", "export the file again")
    return ring(list(zip(flat[::2], flat[1::2], strict=True)))


def _runs(segmentation: Mapping[str, Any]) -> Runs:
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2 or any(type(side) is not int or side <= 0 for side in size):
        raise FileError(f"size of the run lengths is {size!r}", "give height and width")
    lengths = decode_counts(counts) if isinstance(counts, str) else _plain_counts(counts)
    total = size[0] * size[1]
    if (lengths < 0).any() or (lengths > total).any() or lengths.sum() != total:
        raise FileError(f"run lengths do not fill {size[0]} x {size[1]} pixels", "export the file again")
    ends = np.cumsum(lengths)
    return Runs(ends[0:-1:2], lengths[1::2], (size[0], size[1]))


def _plain_counts(counts: Any) -> NDArray[np.int64]:
    kinds = Counter(map(type, counts)) if isinstance(counts, list) else {}
    if set(kinds) != {int} or max(map(abs, counts)) >= 2**31:
        raise FileError("run lengths are no list of whole numbers", "export the file again")
    return np.array(counts, np.int64)
