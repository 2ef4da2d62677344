"""Recognises what a labelling tool exported, by what its files hold and never by their order."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from iaunet.annotations.coco import coco_annotations, is_coco
from iaunet.annotations.labelme import is_labelme, labelme_annotations
from iaunet.annotations.run_lengths import find_table, table_annotations
from iaunet.annotations.shapes import AnnotatedImage, Annotations, image_name
from iaunet.annotations.texts import decode_text, parse_json, read_data
from iaunet.annotations.yolo import is_yolo_text, read_class_names, read_yolo
from iaunet.dataset import Problem
from iaunet.errors import DatasetError, FileError
from iaunet.workspace import WORKSPACE_NAME

_EXAMPLE_SUBMISSION = "sample_submission"
"""In the name of a competition's CSV file whose run lengths are made up."""


@dataclass(frozen=True, eq=False)
class Found:
    """The annotations of a folder.

    ``format`` is Labelme, COCO, YOLO or run lengths. ``files`` are all files they were read from, sorted: what is
    made from them is stale when one changes.
    """

    format: str
    root: Path
    annotations: Annotations
    files: tuple[Path, ...]


def find_annotations(root: Path, images: Sequence[Path]) -> Found | None:
    """Find and read the annotations below a folder, whichever format they have.

    Args:
        root: The data set's folder; hidden files and those of a workspace are left out.
        images: Its images. Text and CSV files count only where they name some of them.

    Returns:
        None when there are none. Faults in their files are among the annotations' problems.

    Raises:
        DatasetError: There are annotations of several formats.
    """
    files = _list_files(root)
    stems = {image_name(path.name) for path in images}
    readings = [
        *_read_json_files(_ending(files, ".json"), root),
        *_read_tables(_ending(files, ".csv"), stems, root),
        *_read_yolo_files(files, stems, root),
    ]
    formats = sorted({reading.format for reading in readings})
    if len(formats) > 1:
        examples = ", ".join(f"{reading.format} ({reading.files[0].name})" for reading in _first_of_each(readings))
        raise DatasetError(f"{root} holds annotations of several formats, {examples}: keep those of one")
    return _unite(readings, root) if readings else None


def _list_files(root: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name != WORKSPACE_NAME]
        found += [Path(parent) / name for name in files if not name.startswith(".")]
    return sorted(found, key=lambda path: path.as_posix())


def _ending(files: Iterable[Path], *endings: str) -> list[Path]:
    return [path for path in files if path.suffix.lower() in endings]


def _first_of_each(readings: Sequence[Found]) -> list[Found]:
    return list({reading.format: reading for reading in reversed(readings)}.values())[::-1]


def _unite(readings: Sequence[Found], root: Path) -> Found:
    parts = [reading.annotations for reading in readings]
    annotations = Annotations(
        tuple(image for part in parts for image in part.images),
        tuple(dict.fromkeys(label for part in parts for label in part.labels)),
        tuple(problem for part in parts for problem in part.problems),
    )
    files = tuple(sorted(path for reading in readings for path in reading.files))
    return Found(readings[0].format, root, annotations, files)


def _read_json_files(paths: Sequence[Path], root: Path) -> list[Found]:
    found = []
    for path in paths:
        file_format, annotations = _read_json(path, root)
        if annotations is not None:
            found.append(Found(file_format, root, annotations, (path,)))
    return found


def _read_json(path: Path, root: Path) -> tuple[str, Annotations | None]:
    """The format, and what it holds: nothing where it is no annotation file, a fault where it is a damaged one."""
    file_format = "COCO"
    try:
        data = read_data(path)
        if b'"shapes"' in data:
            file_format = "Labelme"
        elif b'"annotations"' not in data:
            return "", None
        parsed = parse_json(data)
    except FileError as fault:
        return file_format, _only_fault(path, fault, root, is_of_one_image=file_format == "Labelme")
    if is_labelme(parsed):
        return "Labelme", labelme_annotations(parsed, path, root)
    return "COCO", coco_annotations(parsed, path, root) if is_coco(parsed) else None


def _only_fault(path: Path, fault: FileError, root: Path, is_of_one_image: bool = False) -> Annotations:
    """A fault in place of annotations; the image that a file is called like must not count as one without."""
    file = path.relative_to(root).as_posix()
    image = AnnotatedImage((image_name(file[: -len(path.suffix)]),), (), None, file, is_faulty=True)
    return Annotations((image,) if is_of_one_image else (), problems=(Problem.of(file, fault),))


def _read_tables(paths: Sequence[Path], images: Collection[str], root: Path) -> list[Found]:
    found = []
    for path in paths:
        annotations = None if _EXAMPLE_SUBMISSION in path.name.lower() else _read_table(path, images, root)
        if annotations is not None:
            found.append(Found("run lengths", root, annotations, (path,)))
    return found


def _read_table(path: Path, images: Collection[str], root: Path) -> Annotations | None:
    try:
        text = decode_text(read_data(path))
    except FileError:  # some other table
        return None
    try:
        table = find_table(text, images)
    except FileError as fault:
        return _only_fault(path, fault, root)
    return table_annotations(table, path, root) if table else None


def _read_yolo_files(files: Sequence[Path], images: Collection[str], root: Path) -> list[Found]:
    texts = [path for path in _ending(files, ".txt") if image_name(path.stem) in images]
    if not any(map(_is_yolo, texts)):
        return []
    names, sources, faults = _class_names(files)
    problems = [Problem.of(path.relative_to(root).as_posix(), fault) for path, fault in faults]
    if not names and not problems:
        what, mend = "class names are not told, labels are called by number", "add classes.txt, one name a line"
        problems = [Problem(level="note", file=texts[0].relative_to(root).as_posix(), what=what, mend=mend)]
    read = read_yolo(texts, names, root)
    annotations = Annotations(read.images, read.labels, (*problems, *read.problems))
    return [Found("YOLO", root, annotations, (*texts, *sources))]


def _is_yolo(path: Path) -> bool:
    try:
        return is_yolo_text(decode_text(read_data(path)))
    except FileError:
        return False


def _class_names(files: Sequence[Path]) -> tuple[tuple[str, ...], list[Path], list[tuple[Path, FileError]]]:
    """The names, the files that tell them, and what is wrong with these."""
    named = [path for path in files if path.name.lower() in ("classes.txt", "obj.names")]
    named += [path for path in _ending(files, ".yaml", ".yml") if _mentions_names(path)]
    told: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    faults = []
    for path in named:
        try:
            told[read_class_names(path)].append(path)
        except FileError as fault:
            faults.append((path, fault))
    if len(told) > 1:
        (_, (first, *_)), (_, (second, *_)), *_ = told.items()
        faults.append((second, FileError(f"class names differ from those of {first.name}", "keep the true ones")))
    return next(iter(told), ()), named, faults


def _mentions_names(path: Path) -> bool:
    try:
        return any(line.startswith("names") for line in decode_text(read_data(path)).splitlines())
    except FileError:
        return False
