"""The page ``check.html``: a dataset's faults, its strangest cases and what the network gets, to be seen."""

import dataclasses
import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from iaunet.contours import label_colour
from iaunet.dataset import IGNORED, Case, Dataset, Problem
from iaunet.files import is_image_file
from iaunet.planners.fingerprint import CaseFingerprint, Fingerprint
from iaunet.planners.folds import Splits
from iaunet.planners.plan import Plan
from iaunet.planners.suspicions import ALL_MASKS
from iaunet.preprocessing.arrays import Arrays
from iaunet.preprocessing.check_pictures import (
    IGNORED_COLOUR,
    FileTask,
    Picture,
    Role,
    RowTask,
    Window,
    draw_files,
    draw_rows,
)
from iaunet.preprocessing.held_out import TEST_SET
from iaunet.records import to_json
from iaunet.stacks import is_volume
from iaunet.storage import write_text
from iaunet.workspace import DatasetFolder

PAGE = "check.html"
TEMPLATES = Path(__file__).parent / "templates"

N_SPREAD = 12
N_STRANGEST = 6
STRANGE_Z = 3.5
"""A robust z beyond this is marked, as is usual (Iglewicz and Hoaglin, 1993)."""

MOST_PICTURED_A_KIND, MOST_PICTURED = 60, 180
MOST_DUPLICATES, MOST_COPIES_SHOWN = 30, 4
MOST_GROUPS = 60
PROBLEM_BYTES, DUPLICATE_BYTES = 3_500_000, 2_500_000
"""What the pictures of faults, of notes and of duplicates may take each: with all else less than 15 MB."""

N_BARS = 25
CHART_WIDTH, CHART_HEIGHT = 600.0, 120.0

SD_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Pictures of one case or file, what they are called and what is said about them; ``marked`` stands out."""

    name: str
    says: tuple[str, ...]
    pictures: tuple[Picture, ...] = ()
    marked: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cases that are shown together: the strangest in one respect, the strangest first, or equal images."""

    title: str
    meaning: str = ""
    figures: tuple[Figure, ...]


@dataclass(frozen=True, kw_only=True)
class ProblemKind:
    """Problems of one kind: those with pictures, and those only named."""

    title: str
    figures: tuple[Figure, ...]
    others: tuple[Figure, ...]

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self.figures) + len(self.others)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A histogram in SVG units: ``bars`` are (x, y, width, height, text), ``ticks`` (x, text)."""

    bars: tuple[tuple[float, float, float, float, str], ...]
    ticks: tuple[tuple[float, str], ...]
    median_x: float
    median: float
    lowest: float
    total: int


@dataclass(frozen=True, kw_only=True)
class Respect:
    """One respect in which a case can be strange.

    ``figure`` is what the robust z is taken of, None for a case that has none; ``end`` says which end is strange.
    """

    title: str
    meaning: str
    figure: Callable[[CaseFingerprint], float | None]
    say: Callable[[CaseFingerprint], str]
    end: Literal["both", "high", "low"]


def write_check(
    folder: DatasetFolder,
    *,
    dataset: Dataset,
    found: Sequence[Case],
    problems: Sequence[Problem],
    fingerprint: Fingerprint | None = None,
    plan: Plan | None = None,
    splits: Splits | None = None,
    arrays: Arrays | None = None,
    workers: int = 1,
) -> Path:
    """Write one HTML page that shows a dataset; it needs no other file and no network.

    Args:
        folder: Where the page goes.
        dataset: Where the raw files lie, and the groups. Its coding is not looked at, so that a dataset whose masks
            could not be understood can be shown; its labels name the contours.
        found: All cases that were found, those with faults too: they say which mask belongs to which image.
        problems: The faults and notes.
        fingerprint: What was measured, None if there were faults.
        plan: What was decided, None if there were faults or nothing was planned.
        splits: The folds, None without a plan.
        arrays: What the network gets, None if it was not written: raw files are shown instead.
        workers: Processes for reading raw files.

    Returns:
        The page.

    Raises:
        WorkspaceError: The disk is full or cannot be written, or a process was killed.
    """
    import jinja2

    gallery = _Gallery(dataset, arrays, workers)
    strange = _find_strangest(fingerprint) if fingerprint else ()
    spread = _spread(fingerprint) if fingerprint and arrays else ()
    duplicates = _duplicates(fingerprint, dataset.groups) if fingerprint else ()
    grouped = [figure for group in (*strange, *duplicates) for figure in group.figures]
    gallery.add(sorted({figure.name for figure in (*spread, *grouped)}))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(f"{PAGE}.j2").render(
        dataset=dataset,
        state=_state(dataset, problems, plan, arrays),
        facts=_facts(dataset, fingerprint) if fingerprint else (),
        plan=plan,
        choices=_choices(plan) if plan else (),
        chart=_ceiling_chart(fingerprint.ceilings) if fingerprint and len(fingerprint.ceilings) else None,
        splits=_describe_splits(splits, dataset, fingerprint) if splits and fingerprint else (),
        missing_splits=splits.missing if splits else {},
        groups=Counter(dataset.groups.values()).most_common(),
        most_groups=MOST_GROUPS,
        legend=_legend(dataset.labels, gallery.has_ignored),
        spread=gallery.fill(spread),
        strange=[gallery.fill_group(group) for group in strange],
        strange_z=STRANGE_Z,
        faults=_problem_kinds("fault", problems, found, dataset, workers),
        notes=_problem_kinds("note", problems, found, dataset, workers),
        duplicates=[*_within(DUPLICATE_BYTES, map(gallery.fill_group, duplicates))],
        n_duplicates=_count_duplicates(fingerprint),
        empty=[case.name for case in fingerprint.cases if not any(case.labels)] if fingerprint else [],
    )
    path = folder.root / PAGE
    write_text(path, page)
    return path


def robust_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far values [n] lie from their median, in robust standard deviations.

    These are 1.4826 median absolute deviations, or where more than half of the values are equal 1.2533 mean absolute
    deviations: both are the standard deviation of normal values. All 0 where all are equal.
    """
    distance = values - np.median(values)
    spread = 1.4826 * np.median(np.abs(distance)) or 1.2533 * np.mean(np.abs(distance))
    return np.asarray(distance / spread if spread else np.zeros_like(distance))


class _Gallery:
    """Pictures of cases by name: their rows in the arrays where there are any, else their raw files."""

    def __init__(self, dataset: Dataset, arrays: Arrays | None, workers: int) -> None:
        self._dataset = dataset
        self._arrays = arrays
        self._workers = workers
        self._pictures: dict[str, tuple[Picture, ...]] = {}
        self._places: dict[str, tuple[str, ...]] = {}
        self.has_ignored = False

    def add(self, names: Sequence[str]) -> None:
        """Draw cases."""
        if self._arrays is None:
            self._add_files(names)
        elif names:
            self._add_rows(self._arrays, _rows_of(self._arrays, names))

    def fill(self, figures: Sequence[Figure]) -> tuple[Figure, ...]:
        """The figures with the pictures of their cases."""
        return tuple(
            dataclasses.replace(
                figure,
                pictures=self._pictures.get(figure.name, ()),
                says=(*figure.says, *self._places.get(figure.name, ())),
            )
            for figure in figures
        )

    def fill_group(self, group: Group) -> Group:
        """The group with the pictures of its cases."""
        return dataclasses.replace(group, figures=self.fill(group.figures))

    def _add_rows(self, arrays: Arrays, rows: Mapping[str, Sequence[int]]) -> None:
        chosen = {name: _best_row(arrays, several) for name, several in rows.items()}
        window = Window.of([arrays.images[row] for row in chosen.values()])
        tasks = [
            RowTask(
                np.asarray(arrays.images[row]), np.asarray(arrays.masks[row]), window, f"{name} as the network gets it"
            )
            for name, row in chosen.items()
        ]
        pictures = draw_rows(tasks, self._workers)
        self._pictures |= {name: (picture,) for name, picture in zip(chosen, pictures, strict=True)}
        self._places |= {name: _say_place(arrays, row, rows[name]) for name, row in chosen.items()}
        self.has_ignored |= any(bool((task.mask == IGNORED).any()) for task in tasks)

    def _add_files(self, names: Sequence[str]) -> None:
        cases = {case.name: case for case in self._dataset.cases}
        tasks = {name: _file_tasks(cases[name], self._dataset) for name in names if name in cases}
        drawn = draw_files([task for several in tasks.values() for task in several], self._workers)
        self._pictures |= {name: tuple(drawn[task] for task in several) for name, several in tasks.items()}


def _rows_of(arrays: Arrays, names: Sequence[str]) -> dict[str, range]:
    """The rows of each case."""
    return {name: arrays.cases[name].rows for name in names if name in arrays.cases}


def _best_row(arrays: Arrays, rows: Sequence[int]) -> int:
    """The first row with most foreground."""

    def foreground(row: int) -> int:
        mask = arrays.masks[row]
        return int(np.count_nonzero((mask > 0) & (mask != IGNORED)))

    return max(rows, key=foreground) if len(rows) > 1 else rows[0]


def _say_place(arrays: Arrays, row: int, rows: Sequence[int]) -> tuple[str, ...]:
    """Where a row lies in its case, nothing if it is all of it."""
    if len(rows) == 1:
        return ()
    slices = {arrays.index.rows[other].slice for other in rows}
    at = f"slice {arrays.index.rows[row].slice}, " if len(slices) > 1 else ""
    return (f"{at}1 of {len(rows)} rows",)


def _file_tasks(case: Case, dataset: Dataset) -> list[FileTask]:
    tasks = [FileTask(dataset.path(file), "image", f"image of {case.name}", dataset.slicing) for file in case.images]
    if case.mask is not None:
        tasks.append(FileTask(dataset.path(case.mask), "mask", f"mask of {case.name}", dataset.slicing))
    return tasks


def _state(
    dataset: Dataset, problems: Sequence[Problem], plan: Plan | None, arrays: Arrays | None
) -> tuple[str, str, str]:
    """How far it got: a tone, a headline and what to do."""
    n = sum(problem.level == "fault" for problem in problems)
    faults = _count(n, "fault")
    if plan is None and n:
        advice = "Mend the files shown here, or leave such cases out with --skip_faulty, and plan again."
        return "bad", f"Planning stopped: {faults}", advice
    left_out = f" Cases with faults are left out ({faults})." if n else ""
    if plan is None:
        return "good", "Read and checked", f"Nothing was planned yet.{left_out}"
    if arrays is None:
        return "good", "Planned", f"No arrays were written yet, so raw files are shown.{left_out}"
    return "good", "Ready to train", f"Look through this page, then run iaunet_train {dataset.name} cv.{left_out}"


def _facts(dataset: Dataset, fingerprint: Fingerprint) -> list[tuple[str, str]]:
    sizes = Counter(case.size for case in fingerprint.cases)
    (height, width), n_usual = sizes.most_common(1)[0]
    others = f" most often ({n_usual} cases), {len(sizes)} sizes in all" if len(sizes) > 1 else ""
    share = np.median([case.foreground_share for case in fingerprint.cases])
    group_sizes = Counter(dataset.groups.values()).values()
    groups = f"{len(group_sizes)}, {min(group_sizes)} to {max(group_sizes)} cases each" if group_sizes else "none"
    copies = sum(len(group) - 1 for group in fingerprint.exact_duplicates)
    near = sum(map(len, fingerprint.near_duplicates))
    facts = [
        ("Cases", f"{len(fingerprint.cases)}"),
        ("Size", f"{height} x {width} px{others}"),
        ("Pixels", f"{_count(fingerprint.channels, 'channel')}, {fingerprint.depth}"),
        ("Labels", ", ".join(dataset.labels or fingerprint.labels)),
        ("Foreground", f"{share:.1%} of an image (median)"),
        ("Empty masks", f"{fingerprint.empty_masks}"),
        ("Groups", f"{groups} ({dataset.groups_from})"),
        ("Duplicates", f"{_count(copies, 'exact copy', 'exact copies')}, {near} cases nearly equal to another"),
    ]
    if len(fingerprint.ceilings):
        ceiling = np.median(fingerprint.ceilings)
        facts.append(("Ceiling", f"median Dice {ceiling:.3f} for masks taken to the network's size and back"))
    return facts


def _choices(plan: Plan) -> list[tuple[str, str, str]]:
    """What was chosen, its value and why."""
    values = to_json(plan)
    network, recipe = plan.network, plan.recipe
    said = {
        "input_mode": f"{plan.input_mode} to {plan.input_size[0]} x {plan.input_size[1]} px",
        "normalisation": f"by {plan.normalisation.kind}",
        "network": f"{network.name}, width {network.width}, depth {network.depth}, {_plain(network.options)}",
        "recipe": f"{recipe.name}, {recipe.epochs} epochs, batch {recipe.batch_size}, lr {recipe.lr:g}",
        "inference": f"mirroring {'on' if plan.inference.mirroring else 'off'}",
        "split": plan.split,
    }
    fields = [*said, *(field for field in plan.why if field not in said)]
    return [
        (field.replace("_", " "), said.get(field) or _plain(values.get(field)), plan.why.get(field, "edited by hand"))
        for field in fields
    ]


def _plain(value: Any) -> str:
    """A plain value in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _ceiling_chart(ceilings: NDArray[np.float64]) -> Chart:
    low = min(0.9, math.floor(float(ceilings.min()) * 10) / 10)
    counts, edges = np.histogram(ceilings, N_BARS, (low, 1))

    def place(value: float) -> float:
        return round((value - low) / (1 - low) * CHART_WIDTH, 1)

    bars = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        height = round(CHART_HEIGHT * count / counts.max(), 1)
        text = f"{left:.3f} to {right:.3f}: {_count(int(count), 'case')}"
        bars.append((place(left) + 1, CHART_HEIGHT - height, CHART_WIDTH / N_BARS - 2, height, text))
    median = float(np.median(ceilings))
    return Chart(
        bars=tuple(bars),
        ticks=tuple((place(tick), f"{tick:.2f}") for tick in np.linspace(low, 1, 6)),
        median_x=place(median),
        median=median,
        lowest=float(ceilings.min()),
        total=len(ceilings),
    )


def _describe_splits(splits: Splits, dataset: Dataset, fingerprint: Fingerprint) -> list[dict[str, Any]]:
    """For each split its name, why it is inflated, and of each fold the cases, groups and median foreground."""
    shares = {case.name: case.foreground_share for case in fingerprint.cases}
    described = []
    for name, split in splits.splits.items():
        folds = []
        for fold in split.folds:
            n_groups = len({dataset.groups[case] for case in fold.validation if case in dataset.groups})
            share = np.median([shares.get(case, 0.0) for case in fold.validation])
            folds.append((len(fold.train), len(fold.validation), n_groups, f"{share:.1%}"))
        described.append({"name": name, "inflated": split.inflated, "folds": folds})
    return described


def _legend(labels: Sequence[str], has_ignored: bool) -> list[tuple[str, str]]:
    """Each label with its colour in CSS."""
    legend = [(name, _css(label_colour(i))) for i, name in enumerate(labels, start=1)]
    return [*legend, ("ignored", _css(IGNORED_COLOUR))] if has_ignored else legend


def _css(colour: Sequence[int]) -> str:
    return "#" + bytes(colour).hex()


def _spread(fingerprint: Fingerprint) -> list[Figure]:
    """Cases from the least foreground to the most: of each twelfth the one whose name has the smallest hash."""
    ranked = sorted(fingerprint.cases, key=lambda case: (case.foreground_share, case.name))
    parts = np.array_split(np.arange(len(ranked)), N_SPREAD)
    chosen = [min((ranked[i] for i in part), key=_name_hash) for part in parts if len(part)]
    return [Figure(name=case.name, says=(_say_share(case),)) for case in chosen]


def _name_hash(case: CaseFingerprint) -> bytes:
    return hashlib.sha256(case.name.encode()).digest()


def _find_strangest(fingerprint: Fingerprint) -> list[Group]:
    return [
        Group(title=respect.title, meaning=respect.meaning, figures=figures)
        for respect in _respects(fingerprint)
        if (figures := _strangest(respect, fingerprint.cases))
    ]


def _strangest(respect: Respect, cases: Sequence[CaseFingerprint]) -> tuple[Figure, ...]:
    """The cases furthest out, none that lie on the median."""
    measured = [(case, figure) for case in cases if (figure := respect.figure(case)) is not None]
    if not measured:
        return ()
    z = robust_z(np.array([figure for _, figure in measured]))
    strangeness = {"both": np.abs(z), "high": z, "low": -z}[respect.end]
    order = np.argsort(-strangeness, kind="stable")[:N_STRANGEST]
    return tuple(
        Figure(
            name=measured[i][0].name,
            says=(respect.say(measured[i][0]), f"robust z {z[i]:+.1f}"),
            marked=bool(strangeness[i] >= STRANGE_Z),
        )
        for i in order
        if strangeness[i] > 0
    )


def _respects(fingerprint: Fingerprint) -> list[Respect]:
    mean = np.array([channel.mean for channel in fingerprint.intensity])
    sd = np.maximum([channel.sd for channel in fingerprint.intensity], SD_FLOOR)

    def distance(case: CaseFingerprint) -> float:
        """Root mean square over the channels; a grey case counts in each."""
        own = np.array([channel.mean for channel in case.intensity])
        return float(np.sqrt(np.mean(((own - mean) / sd) ** 2)))

    def say_distance(case: CaseFingerprint) -> str:
        means = ", ".join(f"{channel.mean:.4g}" for channel in case.intensity)
        return f"mean {means}: {distance(case):.2f} sd from the data set's"

    usual = ", ".join(f"{value:.4g}" for value in mean)
    share = "share of the pixels that have a label, compared by its logarithm"
    return [
        Respect(
            title="Size",
            meaning="area in pixels, compared by its logarithm",
            figure=lambda case: math.log(case.size[0] * case.size[1]),
            say=lambda case: f"{case.size[0]} x {case.size[1]} px",
            end="both",
        ),
        Respect(
            title="Aspect",
            meaning="height divided by width, compared by its logarithm",
            figure=lambda case: math.log(case.size[0] / case.size[1]),
            say=lambda case: f"{case.size[0]} x {case.size[1]} px, aspect {case.size[0] / case.size[1]:.2f}",
            end="both",
        ),
        Respect(
            title="Colour or intensity",
            meaning=f"distance of the channels' means from the data set's ({usual}), in sd of its pixels",
            figure=distance,
            say=say_distance,
            end="high",
        ),
        Respect(title="Most foreground", meaning=share, figure=_log_share, say=_say_share, end="high"),
        Respect(title="Least foreground above none", meaning=share, figure=_log_share, say=_say_share, end="low"),
        Respect(
            title="Number of components",
            meaning="connected parts of all labels",
            figure=_components,
            say=lambda case: _count(_components(case), "component"),
            end="high",
        ),
        Respect(
            title="Lowest ceiling",
            meaning="Dice of the true mask at the network's size and back: without tiles no prediction can score more",
            figure=lambda case: case.ceiling,
            say=lambda case: f"ceiling {case.ceiling:.3f}",
            end="low",
        ),
    ]


def _log_share(case: CaseFingerprint) -> float | None:
    return math.log(case.foreground_share) if case.foreground_share > 0 else None


def _say_share(case: CaseFingerprint) -> str:
    return f"foreground {case.foreground_share:.2%}"


def _components(case: CaseFingerprint) -> int:
    return sum(label.components for label in case.labels if label)


def _duplicates(fingerprint: Fingerprint, group_of: Mapping[str, str]) -> list[Group]:
    """Equal images, then nearly equal ones; the first few of each group."""
    masks = {case.name: case.mask_sha256 for case in fingerprint.cases}
    exact = set(map(frozenset, fingerprint.exact_duplicates))
    near = [names for names in fingerprint.near_duplicates if frozenset(names) not in exact]
    groups = []
    for names in [*fingerprint.exact_duplicates, *near][:MOST_DUPLICATES]:
        is_exact = frozenset(names) in exact
        differ = is_exact and len({masks[name] for name in names}) > 1
        shown = names[:MOST_COPIES_SHOWN]
        how = "equal to the byte" if is_exact else "nearly equal"
        more = f" (the first {len(shown)} shown)" if len(shown) < len(names) else ""
        figures = tuple(
            Figure(name=name, says=(f"group {group_of[name]}",) if name in group_of else (), marked=differ)
            for name in shown
        )
        title = f"{len(names)} cases {how}{', but their mask files differ' if differ else ''}{more}"
        groups.append(Group(title=title, figures=figures))
    return groups


def _count_duplicates(fingerprint: Fingerprint | None) -> int:
    if fingerprint is None:
        return 0
    return len({*map(frozenset, fingerprint.exact_duplicates), *map(frozenset, fingerprint.near_duplicates)})


def _problem_kinds(
    level: str, problems: Sequence[Problem], found: Sequence[Case], dataset: Dataset, workers: int
) -> list[ProblemKind]:
    """The problems of a level kind by kind, the first of each with pictures."""
    kinds: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        if problem.level == level:
            kinds[_kind(problem)].append(problem)
    pictured = [problem for several in kinds.values() for problem in several[:MOST_PICTURED_A_KIND]][:MOST_PICTURED]
    files = _Files(found, dataset)
    tasks = {problem: files.tasks(problem) for problem in pictured}
    drawn = draw_files([task for several in tasks.values() for task in several], workers)
    shown = [
        Group(title=problem.what, figures=(_say_problem(problem, [drawn[task] for task in tasks[problem]]),))
        for problem in tasks
    ]
    figures = dict(zip(tasks, _within(PROBLEM_BYTES, shown), strict=False))
    return [
        ProblemKind(
            title=several[0].what,
            figures=tuple(figures[problem].figures[0] for problem in several if problem in figures),
            others=tuple(_say_problem(problem) for problem in several if problem not in figures),
        )
        for several in kinds.values()
    ]


def _kind(problem: Problem) -> str:
    """What a problem says without its numbers and file names."""
    return " ".join(word for word in problem.what.split() if not re.search(r"[\d/.]", word))


def _say_problem(problem: Problem, pictures: Sequence[Picture] = ()) -> Figure:
    if problem.what == "has no mask":
        pictures = [*pictures, Picture(alt=f"mask of {problem.file}", says="no mask")]
    return Figure(name=problem.file, says=(problem.what, problem.mend), pictures=tuple(pictures))


def _within(n_bytes: int, groups: Iterable[Group]) -> Iterator[Group]:
    """The groups until their pictures take more than ``n_bytes``."""
    for group in groups:
        n_bytes -= sum(picture.n_bytes for figure in group.figures for picture in figure.pictures)
        if n_bytes < 0:
            return
        yield group


class _Files:
    """Finds the raw files that a problem is about."""

    def __init__(self, found: Sequence[Case], dataset: Dataset) -> None:
        self._dataset = dataset
        self._examples = sorted(found, key=lambda case: hashlib.sha256(case.name.encode()).digest())
        self._case_of = {file: case for case in found for file in (case.name, *case.images, case.mask) if file}

    def tasks(self, problem: Problem) -> list[FileTask]:
        """The image and the mask of its case, else the file alone; some masks where it is about all of them."""
        if problem.file == ALL_MASKS:
            masks = [case for case in self._examples if case.mask][:MOST_COPIES_SHOWN]
            return [_file_tasks(case, self._dataset)[-1] for case in masks]
        first = re.sub(r" and \d+ more$", "", problem.file)  # how a note about several cases names them
        case = self._case_of.get(problem.file) or self._case_of.get(first)
        if case is not None:
            return _file_tasks(case, self._dataset)
        path = self._dataset.path(problem.file)
        if problem.file.startswith(TEST_SET) or not (is_image_file(path) or is_volume(path)):
            return []
        role: Role = "mask" if problem.what.startswith(("mask ", "is a second mask")) else "image"
        return [FileTask(path, role, f"{role} {problem.file}", self._dataset.slicing)]


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"
