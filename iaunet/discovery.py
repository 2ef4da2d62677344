"""Finds the images of a folder and the mask that belongs to each, by name and never by order."""

import os
import re
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from iaunet.dataset import Case, MissingMask, Problem, Source
from iaunet.dicom import find_series, is_dicom_file
from iaunet.errors import DatasetError
from iaunet.files import FORMATS, is_image_file
from iaunet.masks import image_stem
from iaunet.volumes import VOLUME_ENDINGS, is_volume_file
from iaunet.workspace import WORKSPACE_NAME

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "original", "imagestr")
MASK_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "label",
    "ground truth",
    "ground_truth",
    "groundtruth",
    "gt",
    "segmentations",
    "annotations",
    "labelstr",
)
TEST_FOLDERS = ("test", "testing", "test_set", "testset")
OTHER_FOLDERS = ("imagests", "labelsts")
IMAGE_ENDINGS = (*FORMATS, *VOLUME_ENDINGS, ".dcm")
"""What is found, for messages."""

MASK_SUFFIXES = ("_mask", "_masks", "_seg", "_segmentation")


@dataclass(frozen=True)
class Discovery:
    """Cases sorted by name, what is wrong with the files' names, and a line that says what was understood."""

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    understood: str


@dataclass(frozen=True)
class _Found:
    """A file with the role its place or name gives it.

    ``key`` is its path without folders of images or masks and without ending, ``bare`` also without a mask's suffix:
    one of the two is what image and mask have in common. Both are in composed form (NFC), whatever the disk has.
    """

    path: Path
    key: str
    bare: str
    role: Literal["image", "mask", "unknown"]


@dataclass(frozen=True)
class Files:
    """The images and masks of a folder by the key they have in common; several of one key are a fault, or parts."""

    images: Mapping[str, list[Path]]
    masks: Mapping[str, list[Path]]
    understood: str


def find_files(source: Source) -> Files:
    """Find the images and the masks of a folder.

    Args:
        source: Its root holds images and masks: in folders named so (``images`` + ``masks`` and the like, at any
            depth), or side by side, told apart by a suffix of the mask's name or by the ending; or it names both
            folders. A test set that lies in the root is left out.

    Raises:
        DatasetError: The folder does not exist, holds no image, or one whose name is not UTF-8, or lies in the test
            set.
    """
    root = Path(source.root)
    suffixes = (*MASK_SUFFIXES, *map(composed, source.mask_suffixes))
    if (source.images is None) != (source.masks is None):
        raise DatasetError("--images and --masks belong together: give both or neither")
    if source.images is not None and source.masks is not None:
        images, masks = Path(source.images), Path(source.masks)
        if images == masks:
            raise DatasetError("--images and --masks are one folder: leave both away if it holds both")
        files = [file for file in _walk(images, suffixes, role="image") if not file.path.is_relative_to(masks)]
        files += _walk(masks, suffixes, role="mask")
        understood = f"images in {images}, masks in {masks}"
    else:
        files = list(_walk(root, suffixes))
        if source.test is not None:
            if root.is_relative_to(source.test):
                raise DatasetError(
                    f"the test set {source.test} holds the data set {root}: give another folder to --test, or --no_test"
                )
            files = [file for file in files if not file.path.is_relative_to(source.test)]
        understood = _describe_layout(root, files)
    image_list, mask_list = _tell_apart(files)
    if not image_list:
        raise DatasetError(
            f"{root} holds no images ({', '.join(IMAGE_ENDINGS)}): give the folder that holds images and masks"
        )
    image_files = _by_key((file.key, file.path) for file in image_list)
    mask_files = _by_key((file.key if file.key in image_files else file.bare, file.path) for file in mask_list)
    return Files(image_files, mask_files, understood)


def pair_files(files: Files, source: Source) -> Discovery:
    """Make a case of each image and its mask.

    Args:
        files: As found.
        source: Its ``missing_mask`` says what an image without mask is: a fault, a case without foreground, or left
            out.

    Raises:
        DatasetError: There is no mask at all, or none of an image's name.
    """
    root = Path(source.root)
    _require_masks(root, files, source.missing_mask)
    cases, problems = _pair(root, files.images, files.masks, source.missing_mask)
    if source.test is None:
        problems += _tell_test_folders(root, cases)
    return Discovery(cases, tuple(problems), f"{len(cases)} cases: {files.understood}")


def list_images(folder: Path) -> list[Path]:
    """All images below a folder, sorted: image files, volumes, and folders that hold a DICOM series.

    Hidden ones, those of a workspace, pipes and devices are left out. DICOM files that are a series each are images
    each; but a file alone in its folder is the series of that folder if other folders hold series.

    Raises:
        DatasetError: The folder does not exist, or the name of an image is not UTF-8.
    """
    images = find_images(folder)
    for path in images:
        require_text(path)
    return images


def find_images(folder: Path) -> list[Path]:
    """As `list_images`, with images whose names are not UTF-8 as well.

    Raises:
        DatasetError: The folder does not exist.
    """
    images, dicoms = [], defaultdict(list)
    for path in _list_files(folder):
        if is_image_file(path) or is_volume_file(path):
            images.append(path)
        elif is_dicom_file(path):
            dicoms[path.parent].append(path)
    loose = {parent for parent, files in dicoms.items() if all(len(series.files) == 1 for series in find_series(files))}
    if loose != dicoms.keys():
        loose = {parent for parent in loose if len(dicoms[parent]) > 1}
    for parent, files in dicoms.items():
        images += files if parent in loose else [parent]
    return sorted(images, key=lambda path: path.as_posix())


def require_folder(folder: Path) -> None:
    """Refuse a path that is no folder.

    Raises:
        DatasetError: It does not exist or is a file.
    """
    if not folder.exists():
        raise DatasetError(f"{folder} does not exist: check the path")
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file: give the folder that holds it")


def _list_files(folder: Path) -> list[Path]:
    require_folder(folder)
    found, folders = [], [str(folder)]
    while folders:
        for entry in _entries(folders.pop()):
            if entry.name.startswith("."):
                continue
            if _is_file(entry):
                found.append(Path(entry))
            elif entry.is_dir(follow_symlinks=False) and entry.name != WORKSPACE_NAME:
                folders.append(entry.path)
    return found


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [*entries]
    except OSError as fault:
        raise DatasetError(f"{fault.filename} cannot be read ({fault.strerror}): mend its permissions") from fault


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file or a link to one, and no pipe or device, which may never end; or a link to nothing, which
    is told when it is read."""
    if not entry.is_symlink():
        return entry.is_file()
    path = Path(entry)
    return path.is_file() or not path.exists()


def require_text(path: Path) -> None:
    """Refuse bytes that are no UTF-8 in a path: Python hands them on as characters that cannot be written.

    Raises:
        DatasetError: There are some.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as fault:
        raise DatasetError(f"{path} has a name that is not UTF-8: rename it") from fault


def _walk(root: Path, suffixes: Sequence[str], role: Literal["image", "mask"] | None = None) -> Iterator[_Found]:
    for path in list_images(root):
        inside = path.relative_to(root) if path != root else Path(path.name)
        parts = PurePosixPath(composed((inside.parent / image_stem(path)).as_posix())).parts
        found_role, parts = (role, parts) if role else _role_by_folder(parts)
        if found_role is None:
            continue
        bare = parts[-1] if found_role == "image" else without_suffix(parts[-1], suffixes)
        if bare != parts[-1]:
            found_role = "mask"
        yield _Found(path, "/".join(parts), "/".join((*parts[:-1], bare)), found_role)


def _role_by_folder(
    parts: tuple[str, ...],
) -> tuple[Literal["image", "mask", "unknown"] | None, tuple[str, ...]]:
    """The role the innermost telling folder gives, and the path without that folder."""
    for i in reversed(range(len(parts) - 1)):
        name = parts[i].lower()
        rest = parts[:i] + parts[i + 1 :]
        if name in OTHER_FOLDERS:
            return None, parts
        if name in IMAGE_FOLDERS:
            return "image", rest
        if name in MASK_FOLDERS:
            return "mask", rest
    return "unknown", parts


def without_suffix(name: str, suffixes: Sequence[str] = MASK_SUFFIXES) -> str:
    """The name of the image that a mask's name, without ending, belongs to; the name itself if it has no suffix."""
    for suffix in sorted(suffixes, key=len, reverse=True):
        if name.lower().endswith(suffix.lower()) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _tell_apart(files: Sequence[_Found]) -> tuple[list[_Found], list[_Found]]:
    """The images and the masks: by folder and suffix, and where these tell nothing, by ending."""
    images = [file for file in files if file.role == "image"]
    masks = [file for file in files if file.role == "mask"]
    unknown = [file for file in files if file.role == "unknown"]
    if images or masks:
        return images or unknown, masks
    endings = defaultdict(set)
    for file in unknown:
        endings[file.key].add(file.path.suffix.lower())
    by_ending = {file for file in unknown if _is_mask_by_ending(file, endings[file.key])}
    return [file for file in unknown if file not in by_ending], [file for file in unknown if file in by_ending]


def _is_mask_by_ending(file: _Found, endings: set[str]) -> bool:
    """Of ``a.jpg`` and ``a.png`` side by side, the second is the mask: JPEG cannot hold one unharmed."""
    return len(endings) == 2 and file.path.suffix.lower() == ".png"


def _by_key(files: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for key, path in files:
        found[key].append(path)
    return dict(found)


def _require_masks(root: Path, files: Files, missing_mask: MissingMask) -> None:
    images, masks = files.images, files.masks
    if not masks and missing_mask != "empty":
        raise DatasetError(
            f"{root} holds {len(images)} images and no masks: put the masks in a folder 'masks' beside 'images', "
            f"end their names in {', '.join(MASK_SUFFIXES)}, or give --images DIR --masks DIR"
        )
    if masks and not images.keys() & masks.keys():
        raise DatasetError(
            f"{root} holds {len(images)} images and {len(masks)} masks, no two of one name (the first are "
            f"{min(images, key=natural_order)} and {min(masks, key=natural_order)}): name each mask as its image, "
            "or give --mask_suffix TEXT or --images DIR --masks DIR"
        )


def _pair(
    root: Path,
    images: Mapping[str, list[Path]],
    masks: Mapping[str, list[Path]],
    missing_mask: MissingMask,
) -> tuple[tuple[Case, ...], list[Problem]]:
    cases: list[Case] = []
    problems: list[Problem] = []

    def report(level: Literal["fault", "note"], path: Path, what: str, mend: str) -> None:
        problems.append(Problem(level=level, file=_relative(path, root), what=what, mend=mend))

    for key in sorted(images, key=natural_order):
        (image, *copies), (mask, *more) = images[key], masks.get(key, [None])
        for path in copies:
            report("fault", path, f"has the name of {_relative(image, root)}", "rename one of them")
        for path in filter(None, more):
            report("fault", path, "is a second mask of its image", "unite the masks in one file")
        if mask is None and missing_mask == "error":
            report("fault", image, "has no mask", "add the mask, or use --missing_mask empty|skip")
        elif not (copies or more) and (mask is not None or missing_mask == "empty"):
            mask_file = _relative(mask, root) if mask else None
            cases.append(Case(name=key, images=(_relative(image, root),), mask=mask_file))
    for key in sorted(masks.keys() - images.keys(), key=natural_order):
        for path in masks[key]:
            mend = "give the image the same name, or remove the mask"
            report("note", path, "mask has no image and is left out", mend)
    return tuple(cases), problems


def _tell_test_folders(root: Path, cases: Sequence[Case]) -> Iterator[Problem]:
    """Notes about folders among others whose name says that they are to test what is trained on the others."""
    folders = Counter(case.images[0].partition("/")[0] for case in cases if "/" in case.images[0])
    for folder, n in sorted(folders.items()):
        if folder.lower() in TEST_FOLDERS and n < len(cases):
            what = f"{n} cases of this folder are trained on like all others"
            mend = f"give --test {shlex.quote(str(root / folder))} to keep them apart"
            yield Problem(level="note", file=folder, what=what, mend=mend)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def composed(name: str) -> str:
    """A name with each accented letter as one character (NFC): a Mac's files may have it as two."""
    return unicodedata.normalize("NFC", name)


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A sort key under which ``2`` comes before ``10``."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def _describe_layout(root: Path, files: Sequence[_Found]) -> str:
    places = {
        role: sorted({_place(root, file.path) for file in files if file.role == role})
        for role in ("image", "mask", "unknown")
    }
    if places["image"] and places["mask"]:
        return f"images in {_some(places['image'])}, masks in {_some(places['mask'])}"
    return f"images and masks side by side in {_some(places['unknown'] or places['image'] or places['mask'])}"


def _place(root: Path, path: Path) -> str:
    return path.parent.relative_to(root).as_posix()


def _some(places: Sequence[str]) -> str:
    if len(places) <= 2:
        return " and ".join(f"{place}/" for place in places) or "./"
    return f"{places[0]}/ and {len(places) - 1} more folders"
