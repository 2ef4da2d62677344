"""Draws annotations into label maps in the workspace, one PNG a case, joined to images by name."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

from iaunet.annotations.converted import Converted, mask_path, remove_stale, shown
from iaunet.annotations.recognition import Found
from iaunet.annotations.shapes import AnnotatedImage, Shape, Size, base_name, draw, image_name, shapes_digest
from iaunet.annotations.sizes import image_size
from iaunet.dataset import Problem
from iaunet.errors import DatasetError, FileError
from iaunet.files import read_made_from, write_png
from iaunet.storage import digest

_RULE = "pixel centres 1"
"""Names the rule of `draw`: masks drawn by another are stale."""

_FAR_OUTSIDE = 0.1
"""A shape that leaves the image by more than this share of its longer side is told."""

_MOST_LABELS = 65535


@dataclass(frozen=True, eq=False)
class _Join:
    """The annotations of each case that has any, and those whose image is not there or cannot be told.

    ``doubtful`` are the cases that the unclear ones may belong to.
    """

    cases: dict[str, list[AnnotatedImage]]
    strangers: list[AnnotatedImage]
    unclear: list[AnnotatedImage]
    doubtful: list[str]


@dataclass(eq=False)
class _Remarks:
    """What is told once for all images: how much of it, and where first: the case and the file of its annotations."""

    amounts: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    first: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, kind: str, amount: int, case: str, file: str) -> None:
        """Count something of one image."""
        if amount:
            self.amounts[kind] += amount
            self.images[kind] += 1
            self.first.setdefault(kind, (case, file))


def convert(found: Found, images: Mapping[str, Path], folder: Path) -> Converted:
    """Draw the annotations of a data set into label maps.

    Args:
        found: As `find_annotations` gave it.
        images: The image of each case by the case's name; the mask gets its displayed size.
        folder: In the workspace, for these masks alone. Masks that are up to date are kept, those of cases that
            went away are removed.

    Returns:
        A mask for each image that is listed, an empty one where it has no shapes; none for an image that is not
        listed, nor for one with a fault.

    Raises:
        DatasetError: There are more labels than a PNG file has values.
        WorkspaceError: The folder cannot be written.
    """
    join = _join(found.annotations.images, images)
    spelling = _spell(shape.label for parts in join.cases.values() for part in parts for shape in part.shapes)
    labels = _order_labels(found.annotations.labels, spelling)
    if len(labels) > _MOST_LABELS:
        raise DatasetError(f"annotations have {len(labels)} labels: unite them to at most {_MOST_LABELS}")
    values = {label: labels.index(name) + 1 for label, name in spelling.items()}
    masks, faults, remarks = {}, [], _Remarks()
    for case, parts in join.cases.items():
        fault = _draw_case(mask_path(folder, case), case, parts, images[case], values, remarks)
        if fault is not None:
            faults.append(Problem.of(parts[0].file, FileError(f"image {case}: {fault.what}", fault.mend)))
        elif not any(part.is_faulty for part in parts):
            masks[case] = mask_path(folder, case)
    remove_stale(folder, set(masks.values()))
    n_shapes = sum(len(part.shapes) for case in masks for part in join.cases[case])
    return Converted(
        labels=labels,
        masks=masks,
        problems=(
            *found.annotations.problems,
            *_join_problems(found, join, images),
            *_label_notes(found, spelling, labels),
            *faults,
            *_remark_notes(remarks),
        ),
        understood=(
            f"{len(masks)} masks drawn from {found.format} ({_some_files(found)}): {n_shapes} shapes of {_some(labels)}"
        ),
        faulty=(*(case for case in join.cases if case not in masks), *join.doubtful),
    )


def _draw_case(
    path: Path,
    case: str,
    parts: Sequence[AnnotatedImage],
    image: Path,
    values: Mapping[str, int],
    remarks: _Remarks,
) -> FileError | None:
    """Draw one mask unless it is up to date, and give what stands against it.

    What the drawing told is kept in the file for the next time.
    """
    shapes = [shape for part in parts for shape in part.shapes]
    try:
        size = image_size(image)
        _require_size(parts, size)
        made_from = digest([_RULE, shapes_digest(shapes), dict(values), list(size)])
        before, *counts = read_made_from(path).split(" ")
        if before == made_from and len(counts) == 2 and all(map(str.isdecimal, counts)):
            painted_over, vanished = map(int, counts)
        else:
            drawing = draw(shapes, size, values)
            painted_over, vanished = drawing.painted_over, drawing.vanished
            write_png(path, drawing.pixels, f"{made_from} {painted_over} {vanished}")
    except FileError as fault:
        return fault
    n_outside = sum(_is_far_outside(shape, size) for shape in shapes)
    for kind, amount in {"overlap": painted_over, "vanished": vanished, "outside": n_outside}.items():
        remarks.add(kind, amount, case, parts[0].file)
    return None


def _is_far_outside(shape: Shape, size: Size) -> bool:
    height, width = size
    left, right, top, bottom = shape.outline.reach(size)
    return max(-left, right - width, -top, bottom - height) > _FAR_OUTSIDE * max(size)


def _require_size(parts: Iterable[AnnotatedImage], size: Size) -> None:
    for part in parts:
        if part.size is not None and part.size != size:
            height, width = part.size
            turned = ", turned" if (width, height) == size else ""
            raise FileError(
                f"annotated at {height} x {width} pixels, it has {size[0]} x {size[1]}{turned}",
                "annotate this very image, or restore the one that was annotated",
            )


def _join(annotated: Iterable[AnnotatedImage], images: Mapping[str, Path]) -> _Join:
    """Join by the last part of the name, and by folders where several have it in common."""
    cases_by_base: dict[str, list[str]] = defaultdict(list)
    for case, path in images.items():
        cases_by_base[image_name(path.name)].append(case)
    by_name: dict[str, list[AnnotatedImage]] = defaultdict(list)
    for item in annotated:
        known = (name for name in item.names if base_name(name) in cases_by_base)
        by_name[next(known, item.names[0] if item.names else "")].append(item)
    names_by_base: dict[str, list[str]] = defaultdict(list)
    for name in by_name:
        names_by_base[base_name(name)].append(name)
    case_of: dict[str, str] = {}
    strangers, unclear, doubtful = [], [], []
    for base, names in names_by_base.items():
        matched, missed = _match(names, {case: images[case] for case in cases_by_base.get(base, ())})
        case_of |= matched
        strangers += [item for name in names if name not in matched and name not in missed for item in by_name[name]]
        unclear += [item for name in missed for item in by_name[name]]
        doubtful += [case for case in cases_by_base.get(base, ()) if missed and case not in matched.values()]
    name_of = {case: name for name, case in case_of.items()}
    return _Join({case: by_name[name_of[case]] for case in images if case in name_of}, strangers, unclear, doubtful)


def _match(names: Sequence[str], cases: Mapping[str, Path]) -> tuple[dict[str, str], list[str]]:
    """The case of each name, where all end alike, and the names that fit several equally well.

    A name that ends a single path is that image's; for others the folders in common count, wherever they stand.
    """
    if len(names) == len(cases) == 1:
        return {names[0]: next(iter(cases))}, []
    matched = _match_tails(names, cases)
    rest = [name for name in names if name not in matched]
    free = {case: {*_parts(path)[:-1]} for case, path in cases.items() if case not in matched.values()}
    shared = {(name, case): len(free[case].intersection(name.split("/")[:-1])) for name in rest for case in free}
    best = {name: _sole_best(free, [shared[name, case] for case in free]) for name in rest}
    owner = {case: _sole_best(rest, [shared[name, case] for name in rest]) for case in free}
    matched |= {name: case for name, case in best.items() if case is not None and owner[case] == name}
    is_any_free = len(matched) < len(cases)
    return matched, [name for name in rest if best[name] is None and is_any_free]


def _match_tails(names: Iterable[str], cases: Mapping[str, Path]) -> dict[str, str]:
    by_tail: dict[str, list[str]] = defaultdict(list)
    for case, path in cases.items():
        parts = _parts(path)
        for start in range(len(parts)):
            by_tail["/".join(parts[start:])].append(case)
    shortest_first = sorted(names, key=lambda name: name.count("/"))  # so that the longest stays
    name_of = {by_tail[name][0]: name for name in shortest_first if len(by_tail.get(name, ())) == 1}
    return {name: case for case, name in name_of.items()}


def _parts(path: Path) -> list[str]:
    return image_name(path.as_posix()).split("/")


def _sole_best(choices: Iterable[str], scores: Sequence[int]) -> str | None:
    """The one choice with the highest score above 0, None if two share it."""
    top = max(scores, default=0)
    winners = [choice for choice, score in zip(choices, scores, strict=True) if score == top]
    return winners[0] if top and len(winners) == 1 else None


def _join_problems(found: Found, join: _Join, images: Mapping[str, Path]) -> Iterator[Problem]:
    for file, items in _by_file(join.unclear):
        what = f"{len(items)} names fit several images ({items[0].names[0]})"
        yield Problem(level="fault", file=file, what=what, mend="name images with their folder, or rename them")
    annotated = found.annotations.images
    if annotated and not join.cases and not join.unclear:
        what = f"none of {len(annotated)} annotated images ({', '.join(annotated[0].names[:1])}) is among the images"
        first = next(iter(images), "none")
        mend = f"give the images the names the annotations tell; the first image is {first}"
        yield Problem(level="fault", file=_first_file(found), what=what, mend=mend)
        return
    for file, items in _by_file(join.strangers):
        what = f"{len(items)} annotated images are not in the data set and are left out ({items[0].names[0]})"
        yield Problem(level="note", file=file, what=what, mend="add the images if they should be used")


def _by_file(items: Iterable[AnnotatedImage]) -> list[tuple[str, list[AnnotatedImage]]]:
    found: dict[str, list[AnnotatedImage]] = defaultdict(list)
    for item in items:
        found[item.file].append(item)
    return sorted(found.items())


def _spell(labels: Iterable[str]) -> dict[str, str]:
    """One name for the spellings of a label that differ in case or spaces only: the most frequent."""
    counts = Counter(labels)
    by_sound: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        by_sound[_sound(label)].append(label)
    usual = {sound: min(same, key=lambda label: (-counts[label], label)) for sound, same in by_sound.items()}
    return {label: " ".join(usual[_sound(label)].split()) for label in counts}


def _sound(label: str) -> str:
    return " ".join(normalize("NFC", label).casefold().split())


def _order_labels(table: Sequence[str], spelling: Mapping[str, str]) -> tuple[str, ...]:
    """The labels that have shapes: in the order of the format's table, then of the alphabet."""
    used = {_sound(label): name for label, name in spelling.items()}
    listed = [used[_sound(label)] for label in table if _sound(label) in used]
    return tuple(dict.fromkeys((*listed, *sorted(used.values(), key=str.casefold))))


def _label_notes(found: Found, spelling: Mapping[str, str], labels: Sequence[str]) -> Iterator[Problem]:
    file = _first_file(found)
    for name in labels:
        others = sorted(repr(label) for label, usual in spelling.items() if usual == name and label != name)
        if others:
            what = f"labels {', '.join(others)} are read as {name!r}"
            yield Problem(level="note", file=file, what=what, mend="spell them alike")
    used = {_sound(label) for label in labels}
    unused = [label for label in found.annotations.labels if _sound(label) not in used]
    if unused:
        what = f"labels without a shape are left out: {_some(unused)}"
        yield Problem(level="note", file=file, what=what, mend="draw them if they are meant")


def _remark_notes(remarks: _Remarks) -> Iterator[Problem]:
    texts = {
        "overlap": ("pixels lie in shapes of different labels", "the later shape counts: order them, or redraw"),
        "vanished": ("shapes cover no pixel", "check that they belong to these images"),
        "outside": ("shapes reach far outside the image and are cut", "check that they belong to these images"),
    }
    for kind, (what, mend) in texts.items():
        if remarks.amounts[kind]:
            case, file = remarks.first[kind]
            where = f"in {remarks.images[kind]} images, first {case}"
            yield Problem(level="note", file=file, what=f"{remarks.amounts[kind]} {what} ({where})", mend=mend)


def _first_file(found: Found) -> str:
    return shown(found.files[0], found.root)


def _some_files(found: Found) -> str:
    more = len(found.files) - 1
    return _first_file(found) + (f" and {more} more files" if more else "")


def _some(names: Sequence[str]) -> str:
    text = ", ".join(names[:6]) or "no label"
    return text + (f" and {len(names) - 6} more" if len(names) > 6 else "")
