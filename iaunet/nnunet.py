"""Reads raw datasets of nnU-Net, versions 1 and 2, as they are: dataset.json, images and labels, Tr and Ts."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iaunet.dataset import Case, Problem
from iaunet.discovery import composed, natural_order
from iaunet.errors import DatasetError
from iaunet.storage import read_json

DATASET_FILE = "dataset.json"
SPLITS_FILE = "splits_final.json"

Normalisation = Literal["ct", "none", "rescale_to_0_1", "rgb_to_0_1", "zscore"]

NORMALISATIONS: dict[str, Normalisation] = {
    "ct": "ct",
    "nonorm": "none",
    "rescale_0_1": "rescale_to_0_1",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}
"""What names of channels ask for, in small letters; every other name means ``zscore``."""

COLOUR_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Files of which one may hold the three channels of a colour image."""

_IMAGE_ENDINGS = (*COLOUR_ENDINGS, ".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")
_DEFAULT_ENDING = ".nii.gz"
_CORRECT = f"correct {DATASET_FILE}"


@dataclass(frozen=True, kw_only=True)
class NnunetDataset:
    """What a raw dataset of nnU-Net says of itself, and the files it has.

    ``channel_names`` are in the order of the channels. ``labels`` gives the mask values of each label, or region
    where there are several, in the order of dataset.json, without background and ``ignore``, the value of pixels
    that do not count. ``regions_class_order`` is the value each region is painted with, later over earlier; None
    without regions. ``images`` of a case are the files of its channels in order; one colour file may hold several.
    ``test_cases`` have a mask only if there is one in labelsTs. ``problems`` are all faults and notes about it.
    """

    channel_names: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None
    ignore: int | None
    file_ending: str
    cases: tuple[Case, ...]
    test_cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    understood: str


@dataclass(frozen=True, kw_only=True)
class _Description:
    """What dataset.json says, its types checked."""

    channel_names: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    ignore: int | None
    regions_class_order: tuple[int, ...] | None
    file_ending: str
    files: Mapping[str, tuple[tuple[str, ...], str]] | None
    listed: frozenset[str]
    n_training: int | None
    reader: str | None


def is_nnunet_dataset(root: Path) -> bool:
    """Whether a folder holds a dataset.json as nnU-Net's, or a broken one beside imagesTr: reading it tells more."""
    try:
        data = json.loads((root / DATASET_FILE).read_text(encoding="utf-8-sig"))
    except OSError:
        return False
    except (ValueError, RecursionError):
        return (root / "imagesTr").is_dir()
    return isinstance(data, dict) and "labels" in data and bool({"channel_names", "modality"} & data.keys())


def read_nnunet(root: Path) -> NnunetDataset:
    """Read what dataset.json says and find the files it means, without opening an image.

    Files are given relative to ``root``, or absolute if dataset.json has them so. Faults of single files are among
    ``problems``.

    Raises:
        DatasetError: dataset.json is missing or says something else than such files do, all of it in one message;
            it has labels that nnU-Net would refuse; or there is no case at all.
    """
    data = read_json(root / DATASET_FILE, DatasetError, "restore or correct it")
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as fault:
        raise DatasetError(f"{DATASET_FILE} holds characters that are no text: {_CORRECT}") from fault
    description = _describe(data)
    _require_sound_labels(description)
    problems = _notes(description)
    if description.files is None:
        cases, found = _find_cases(root, description, "Tr")
    else:
        cases, found = _listed_cases(root, description.files)
    tests, found_tests = _find_cases(root, description, "Ts")
    problems += [*found, *found_tests, *_count_notes(description, cases)]
    if not cases and not found:
        raise DatasetError(f"{root / 'imagesTr'} holds no images that end in {description.file_ending}: {_CORRECT}")
    return NnunetDataset(
        channel_names=description.channel_names,
        labels=description.labels,
        regions_class_order=description.regions_class_order,
        ignore=description.ignore,
        file_ending=description.file_ending,
        cases=tuple(cases),
        test_cases=tuple(tests),
        problems=tuple(problems),
        understood=_understood(description, len(cases), len(tests)),
    )


def normalisation_of(channel_name: str) -> Normalisation:
    """How nnU-Net normalises a channel of this name, whatever the case of its letters.

    ``ct``: clip to percentiles of the foreground over the dataset, then its mean and sd. ``zscore``: mean and sd of
    each image. ``rescale_to_0_1``: minimum and maximum of each image. ``rgb_to_0_1``: divide by 255.
    """
    return NORMALISATIONS.get(channel_name.casefold(), "zscore")


def find_splits_file(root: Path) -> Path | None:
    """The splits_final.json of a dataset: in its folder, or in nnUNet_preprocessed beside nnUNet_raw."""
    places = (root, root.resolve().parent.parent / "nnUNet_preprocessed" / root.resolve().name)
    return next((place / SPLITS_FILE for place in places if (place / SPLITS_FILE).is_file()), None)


def _describe(data: Any) -> _Description:
    faults: list[str] = []
    if not isinstance(data, dict):
        raise DatasetError(f"{DATASET_FILE} holds no object: {_CORRECT}")
    channel_names = _channel_names(data.get("channel_names", data.get("modality")), faults)
    labels, ignore = _labels(data.get("labels"), faults)
    ending = data.get("file_ending", _DEFAULT_ENDING)
    if not isinstance(ending, str) or not re.fullmatch(r"(\.\w+)+", ending):
        faults.append(f"file_ending is {ending!r}, not an ending like .png")
    order = data.get("regions_class_order")
    if order is not None and not (isinstance(order, list) and all(map(_is_value, order))):
        faults.append(f"regions_class_order is {order!r}, not a list of mask values")
    files = _files(data.get("dataset"), faults)
    if faults:
        raise DatasetError(f"{DATASET_FILE}: {'; '.join(faults)}: {_CORRECT}")
    n_training = data.get("numTraining")
    reader = data.get("overwrite_image_reader_writer")
    return _Description(
        channel_names=channel_names,
        labels=labels,
        ignore=ignore,
        regions_class_order=tuple(order) if order is not None else None,
        file_ending=ending,
        files=files,
        listed=_listed_names(data.get("training"), ending),
        n_training=n_training if isinstance(n_training, int) else None,
        reader=str(reader) if reader else None,
    )


def _is_value(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535


def _channel_names(entry: Any, faults: list[str]) -> tuple[str, ...]:
    """The names by rising number, from {"0": name, ...} or a list."""
    if isinstance(entry, list):
        entry = {str(i): name for i, name in enumerate(entry)}
    numbers = [str(i) for i in range(len(entry))] if isinstance(entry, dict) else []
    if not numbers or {*entry} != {*numbers} or not all(isinstance(name, str) for name in entry.values()):
        faults.append('channel_names is not {"0": name, "1": name, ...}, counted from 0')
        return ()
    return tuple(entry[number] for number in numbers)


def _labels(entry: Any, faults: list[str]) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """The foreground labels and the value of ``ignore``, from {name: value or values}; version 1 has {value: name}."""
    if isinstance(entry, dict) and entry and all(isinstance(name, str) for name in entry.values()):
        entry = {name: int(value) if str(value).isdecimal() else value for value, name in entry.items()}
    if not isinstance(entry, dict) or not entry:
        faults.append('labels is not {"background": 0, name: value, ...}')
        return {}, None
    labels = {}
    for name, value in entry.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(map(_is_value, values)):
            faults.append(f"label {name!r} is {value!r}, not a whole number from 0 to 65535 or a list of them")
        else:
            labels[name] = tuple(values)
    ignore = labels.pop("ignore", None)
    if ignore is not None and len(ignore) > 1:
        faults.append(f"label 'ignore' has {len(ignore)} values, not one")
    if labels.get("background") != (0,):
        faults.append("label 'background' is not 0")
    foreground = {name: values for name, values in labels.items() if values != (0,)}
    if not foreground:
        faults.append("labels has nothing but background")
    return foreground, ignore[0] if ignore else None


def _files(entry: Any, faults: list[str]) -> dict[str, tuple[tuple[str, ...], str]] | None:
    """The image files and the mask of each case, where dataset.json lists them."""
    if entry is None or entry == {}:
        return None
    files = {}
    for name, parts in entry.items() if isinstance(entry, dict) else [("?", None)]:
        images, label = (parts.get("images"), parts.get("label")) if isinstance(parts, dict) else (None, None)
        if not name or {"", ".", ".."} & {*name.replace("\\", "/").split("/")}:
            faults.append(f"dataset has the case name {name!r}, which cannot name a file")
        elif not isinstance(images, list) or not all(isinstance(image, str) for image in images) or not images:
            faults.append(f"dataset has no list of images for case {name!r}")
        elif not isinstance(label, str):
            faults.append(f"dataset has no label for case {name!r}")
        else:
            files[composed(name)] = (tuple(images), label)
    return files


def _listed_names(entry: Any, ending: Any) -> frozenset[str]:
    """The cases in version 1's list ``training``."""
    if not isinstance(entry, list):
        return frozenset()
    labels = [part["label"] for part in entry if isinstance(part, dict) and isinstance(part.get("label"), str)]
    return frozenset(composed(Path(label).name.removesuffix(str(ending))) for label in labels)


def _require_sound_labels(description: _Description) -> None:
    """Refuse labels that nnU-Net would refuse, since that is most likely a slip; no case can be read without them."""
    faults = []
    values = {0}.union(*description.labels.values())
    if values != {*range(len(values))}:
        shown = ", ".join(map(str, sorted(values)))
        faults.append((f"labels have the values {shown}", "number them 0, 1, 2, ... without gaps"))
    if description.ignore is not None and description.ignore <= max(values):
        what = f"label 'ignore' is {description.ignore}, other labels go up to {max(values)}"
        faults.append((what, f"make it {max(values) + 1}, the highest of all"))
    with_background = [name for name, region in description.labels.items() if 0 in region]
    if with_background:
        faults.append((f"region {with_background[0]} holds the background 0", "take 0 out of it"))
    has_regions = any(len(region) > 1 for region in description.labels.values())
    order, n = description.regions_class_order, len(description.labels)
    if has_regions and order is None:
        faults.append(("has regions but no regions_class_order", "add it: a value for each region"))
    if has_regions and order is not None and (len(order) != n or not {*order} <= values - {0}):
        what = f"regions_class_order is {list(order)} for {n} regions"
        faults.append((what, "give one value of the labels for each region"))
    if faults:
        raise DatasetError("; ".join(f"{DATASET_FILE}: {what}: {mend}" for what, mend in faults))


def _notes(description: _Description) -> list[Problem]:
    if description.reader is None:
        return []
    what = f"overwrite_image_reader_writer {description.reader} is not used"
    return [Problem(level="note", file=DATASET_FILE, what=what, mend="nothing: files are read by their ending")]


def _count_notes(description: _Description, cases: list[Case]) -> list[Problem]:
    names = {case.name for case in cases}
    problems = [
        _fault(DATASET_FILE, f"lists the case {name}, whose files are not there", "restore them, or take it off")
        for name in sorted(description.listed - names, key=natural_order)
    ]
    if description.n_training is not None and description.n_training != len(cases):
        what = f"numTraining is {description.n_training}, {len(cases)} cases were found"
        problems.append(Problem(level="note", file=DATASET_FILE, what=what, mend=_CORRECT))
    return problems


def _fault(file: str, what: str, mend: str) -> Problem:
    return Problem(level="fault", file=file, what=what, mend=mend)


def _listed_cases(root: Path, files: Mapping[str, tuple[tuple[str, ...], str]]) -> tuple[list[Case], list[Problem]]:
    cases, problems = [], []
    for name in sorted(files, key=natural_order):
        images, mask = files[name]
        missing = [file for file in (*images, mask) if not _is_there(root / file)]
        problems += [_fault(file, f"file of case {name} is missing", "restore it, or take it off") for file in missing]
        if not missing:
            cases.append(Case(name=name, images=images, mask=mask))
    return cases, problems


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no disk can hold
        return False


def _find_cases(root: Path, description: _Description, part: Literal["Tr", "Ts"]) -> tuple[list[Case], list[Problem]]:
    """Pair imagesTr with labelsTr, or imagesTs with labelsTs, whose masks may be missing."""
    ending = description.file_ending
    image_files, problems = _files_of(root / f"images{part}", ending)
    mask_files, mask_problems = _files_of(root / f"labels{part}", ending)
    problems += mask_problems
    channels = _channels(image_files, ending, {composed(name.removesuffix(ending)) for name in mask_files})
    masks = {composed(name.removesuffix(ending)): f"labels{part}/{name}" for name in mask_files}
    expected = _expected_files(channels, len(description.channel_names), ending)
    cases = []
    for name in sorted(channels, key=natural_order):
        files = channels[name]
        missing = [number for number in range(expected) if number not in files]
        for number in missing:
            channel = description.channel_names[number]
            lacking = f"images{part}/{name}_{number:04d}{ending}"
            problems.append(_fault(lacking, f"file of channel {channel} is missing", "restore it, or remove the case"))
        for number in sorted(files.keys() - {*range(expected)}):
            what = f"is channel {number}, {DATASET_FILE} names {len(description.channel_names)}"
            problems.append(_fault(f"images{part}/{files[number]}", what, "remove it, or name the channel"))
        if part == "Tr" and name not in masks:
            first = f"images{part}/{files[min(files)]}"
            problems.append(_fault(first, "has no mask", f"add labelsTr/{name}{ending}, or remove the image"))
        elif not missing:
            images = tuple(f"images{part}/{files[number]}" for number in range(expected))
            cases.append(Case(name=name, images=images, mask=masks.get(name)))
    for name in sorted(masks.keys() - channels.keys(), key=natural_order):
        mend = f"add images{part}/{name}_0000{ending}, or remove the mask"
        problems.append(_fault(masks[name], "mask has no image", mend))
    return cases, problems


def _files_of(folder: Path, ending: str) -> tuple[list[str], list[Problem]]:
    """The names of a folder's files with this ending, and a fault if others look like images."""
    if not folder.is_dir():
        return [], []
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as fault:
            shown = name.encode(errors="backslashreplace").decode()
            raise DatasetError(f"{folder.name}/{shown} has a name that is not UTF-8: rename it") from fault
    others = [name for name in names if not name.endswith(ending) and name.lower().endswith(_IMAGE_ENDINGS)]
    problems = []
    if others:
        what = f"holds {len(others)} images that do not end in {ending} ({others[0]})"
        problems.append(_fault(folder.name, what, f"correct file_ending in {DATASET_FILE}, or save them as {ending}"))
    return [name for name in names if name.endswith(ending)], problems


def _channels(names: list[str], ending: str, masks: set[str]) -> dict[str, dict[int, str]]:
    """The files of each case by the number of their channel; one without number is channel 0 if a mask has its name."""
    channels: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        stem = composed(name.removesuffix(ending))
        numbered = re.fullmatch(r"(.+)_(\d{4})", stem)
        if numbered and stem not in masks:
            channels[numbered[1]][int(numbered[2])] = name
        else:
            channels[stem][0] = name
    return dict(channels)


def _expected_files(channels: Mapping[str, Mapping[int, str]], n_channels: int, ending: str) -> int:
    """How many files a case has: one a channel, or fewer where one file of every case holds colours."""
    most = max((max(files) + 1 for files in channels.values()), default=n_channels)
    if ending.lower() in COLOUR_ENDINGS and n_channels - most in (2, 3):
        return most
    return n_channels


def _understood(description: _Description, n_cases: int, n_tests: int) -> str:
    names = description.channel_names
    kind = "regions" if any(len(values) > 1 for values in description.labels.values()) else "labels"
    parts = [
        f"{len(names)} channel{'s' if len(names) > 1 else ''} ({', '.join(names)})",
        f"{kind} {', '.join(description.labels)}",
        f"files {description.file_ending}",
    ]
    if description.ignore is not None:
        parts.append(f"value {description.ignore} ignored")
    if n_tests:
        parts.append(f"{n_tests} test cases")
    return f"{n_cases} cases: nnU-Net dataset, {', '.join(parts)}"
