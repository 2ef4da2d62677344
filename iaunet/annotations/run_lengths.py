"""Run lengths in a CSV file, as Kaggle's competitions give them: down the columns, counted from 1."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet.annotations.shapes import AnnotatedImage, Annotations, Runs, Shape, at, base_name, image_name
from iaunet.annotations.texts import decode_text, read_data
from iaunet.dataset import Problem
from iaunet.errors import FileError

ONE_LABEL = "foreground"
"""The label where a file tells none."""

_EMPTY = ("", "-1", "nan", "none", "null")
_CLASS_COLUMNS = ("class", "classid", "class_id", "classname", "class_name", "label", "category")
_PIXEL_COLUMNS = ("encodedpixels", "rle", "rle_mask", "segmentation", "pixels", "annotation", "encoding", "mask_rle")
_NAME_AND_CLASS = re.compile(r"(?P<image>.+\.[A-Za-z]{3,4})_(?P<label>[^/]+)")
_ROWS_TO_JUDGE = 200


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file, and which columns hold the image, the run lengths and perhaps the class.

    ``rows`` are (line, fields); ``has_class_in_name`` tells that the image's column ends in ``_CLASS``.
    """

    rows: tuple[tuple[int, tuple[str, ...]], ...]
    image: int
    pixels: int
    label: int | None
    has_class_in_name: bool


def find_table(text: str, images: Collection[str]) -> Table | None:
    """Recognise a table of run lengths by what it holds.

    Args:
        text: Of the CSV file, with a header; fields are parted by comma, semicolon or tab.
        images: Names of the images without folder and ending.

    Returns:
        None unless one column names images and another holds run lengths, each in most of its first rows.

    Raises:
        FileError: A row has more or fewer fields than the header.
    """
    rows = _read_rows(text)
    if len(rows) < 2:
        return None
    header, body = [field.strip().lower() for field in rows[0][1]], rows[1:]
    sample = [fields for _, fields in body[:_ROWS_TO_JUDGE] if len(fields) == len(header)]
    columns = list(zip(*sample, strict=True))
    image = next((i for i, column in enumerate(columns) if _name_images(column, images)), None)
    with_runs = [i for i, column in enumerate(columns) if i != image and 2 * sum(map(_is_runs, column)) > len(column)]
    with_runs = [i for i in with_runs if header[i] in _PIXEL_COLUMNS or any(" " in value for value in columns[i])]
    if image is None or not with_runs:
        return None
    for line, fields in body:
        if len(fields) != len(header):
            what = f"line {line}: has {len(fields)} fields, the header has {len(header)}"
            raise FileError(what, "correct the line, or export the file again")
    label = next(
        (i for i, name in enumerate(header) if name in _CLASS_COLUMNS and i not in (image, with_runs[0])), None
    )
    in_name = all(_NAME_AND_CLASS.fullmatch(value.strip()) for value in columns[image])
    return Table(tuple(body), image, with_runs[0], label, label is None and in_name)


def read_run_lengths(path: Path, images: Collection[str], root: Path) -> Annotations:
    """Read the run lengths of all images in a file.

    Args:
        path: A CSV file; several rows of one image are united.
        images: As in `find_table`.
        root: The folder to which problems are relative.

    Raises:
        FileError: It cannot be read or holds no run lengths of these images.
    """
    table = find_table(decode_text(read_data(path)), images)
    if table is None:
        raise FileError("holds no run lengths of these images", "give a column of image names and one of run lengths")
    return table_annotations(table, path, root)


def table_annotations(table: Table, path: Path, root: Path) -> Annotations:
    """`read_run_lengths` for a table that is found already."""
    file = path.relative_to(root).as_posix()
    shapes: dict[str, list[Shape]] = defaultdict(list)
    labels: dict[str, None] = {}
    faulty = set()
    problems = []
    for line, fields in table.rows:
        place = f"line {line}"
        name = image_name(_bare(fields[table.image]) if table.has_class_in_name else fields[table.image])
        own = shapes[name]
        try:
            label = _label(table, fields)
            labels[label] = None
            if not _is_empty(fields[table.pixels]):
                own.append(Shape(label, _runs(fields[table.pixels]), place))
        except FileError as fault:
            faulty.add(name)
            problems.append(Problem.of(file, at(place, fault)))
    found = tuple(AnnotatedImage((name,), tuple(own), None, file, name in faulty) for name, own in shapes.items())
    return Annotations(found, tuple(sorted(labels)), tuple(problems))


def _read_rows(text: str) -> list[tuple[int, tuple[str, ...]]]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    with _long_fields():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return [(reader.line_num, tuple(fields)) for fields in reader if fields]


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let fields be as long as run lengths get; the limit is the whole process's and is put back."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _name_images(column: Sequence[str], images: Collection[str]) -> bool:
    """Whether most values of a column are images' names."""
    known = sum(base_name(image_name(_bare(value))) in images for value in column)
    return 2 * known > len(column)


def _bare(value: str) -> str:
    match = _NAME_AND_CLASS.fullmatch(value.strip())
    return match["image"] if match else value


def _is_empty(value: str) -> bool:
    return value.strip().lower() in _EMPTY


def _is_runs(value: str) -> bool:
    return _is_empty(value) or re.fullmatch(r"[\s\d+.\-]+", value) is not None


def _label(table: Table, fields: Sequence[str]) -> str:
    name = fields[table.image].strip()
    label = fields[table.label].strip() if table.label is not None else ONE_LABEL
    if table.has_class_in_name and (match := _NAME_AND_CLASS.fullmatch(name)):
        label = match["label"].strip()
    if not name or not label:
        raise FileError("has no image or no class", "fill it in, or remove the line")
    return label


def _runs(text: str) -> Runs:
    try:
        numbers = np.array(text.split(), np.int64)
    except (ValueError, OverflowError) as fault:
        raise FileError("run lengths are not whole numbers", "export the file again") from fault
    if len(numbers) % 2:
        raise FileError(f"has {len(numbers)} numbers", "give a start and a length for each run")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    if starts.min() < 0 or lengths.min() < 1 or numbers.max() >= 2**31:
        raise FileError("a run starts before pixel 1, has no length or is absurdly long", "export the file again")
    return Runs(starts, lengths)
