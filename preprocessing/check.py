"""The page ``check.html``: a dataset's faults, its strangest cases and what the network gets, to be seen."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from iaunet.contours import label_colour
from iaunet.dataset import Case, Dataset, Problem
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.folds import Splits
from iaunet.planners.plan import Plan
from iaunet.preprocessing.arrays import Arrays
from iaunet.preprocessing.check_cases import (
    STRANGE_Z,
    count_duplicates,
    find_duplicates,
    find_strangest,
    spread_cases,
)
from iaunet.preprocessing.check_facts import (
    ceiling_chart,
    describe_choices,
    describe_data,
    describe_splits,
    describe_state,
)
from iaunet.preprocessing.check_figures import Gallery, within
from iaunet.preprocessing.check_pictures import IGNORED_COLOUR
from iaunet.preprocessing.check_problems import find_problem_kinds
from iaunet.storage import write_text
from iaunet.workspace import DatasetFolder

PAGE = "check.html"
TEMPLATES = Path(__file__).parent / "templates"

MOST_GROUPS = 60
DUPLICATE_BYTES = 2_500_000
"""What the pictures of duplicates may take: with those of problems and all else the page has less than 15 MB."""


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

    gallery = Gallery(dataset, arrays, workers)
    strange = find_strangest(fingerprint) if fingerprint else ()
    spread = spread_cases(fingerprint) if fingerprint and arrays else ()
    duplicates = find_duplicates(fingerprint, dataset.groups) if fingerprint else ()
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
        state=describe_state(dataset, problems, plan, arrays),
        facts=describe_data(dataset, fingerprint) if fingerprint else (),
        plan=plan,
        choices=describe_choices(plan) if plan else (),
        chart=ceiling_chart(fingerprint.ceilings) if fingerprint and len(fingerprint.ceilings) else None,
        splits=describe_splits(splits, dataset, fingerprint) if splits and fingerprint else (),
        missing_splits=splits.missing if splits else {},
        groups=Counter(dataset.groups.values()).most_common(),
        most_groups=MOST_GROUPS,
        legend=_legend(dataset.labels, gallery.has_ignored),
        spread=gallery.fill(spread),
        strange=[gallery.fill_group(group) for group in strange],
        strange_z=STRANGE_Z,
        faults=find_problem_kinds("fault", problems, found, dataset, workers),
        notes=find_problem_kinds("note", problems, found, dataset, workers),
        duplicates=[*within(DUPLICATE_BYTES, map(gallery.fill_group, duplicates))],
        n_duplicates=count_duplicates(fingerprint),
        empty=[case.name for case in fingerprint.cases if not any(case.labels)] if fingerprint else [],
    )
    path = folder.root / PAGE
    write_text(path, page)
    return path


def _legend(labels: Sequence[str], has_ignored: bool) -> list[tuple[str, str]]:
    """Each label with its colour in CSS."""
    legend = [(name, _css(label_colour(i))) for i, name in enumerate(labels, start=1)]
    return [*legend, ("ignored", _css(IGNORED_COLOUR))] if has_ignored else legend


def _css(colour: Sequence[int]) -> str:
    return "#" + bytes(colour).hex()
