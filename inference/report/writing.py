"""Writes the report of a dataset: a page, the words for a paper, tables and figures."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from iaunet.errors import FileError, PredictionError, PreprocessingError, WorkspaceError
from iaunet.inference.report.facts import ReportFacts
from iaunet.inference.report.figures import FIGURES, draw_figures
from iaunet.inference.report.gathering import Gathering
from iaunet.inference.report.masks import HeldOutMasks
from iaunet.inference.report.methods import PREFACE, write_methods
from iaunet.inference.report.page import GENERATOR, PAGE, render_page, shown_cases
from iaunet.inference.report.pictures import CasePicture, picture_case
from iaunet.inference.report.tables import TABLE_NAMES, write_tables
from iaunet.storage import make_folder, naming_disk_faults, remove_leftovers, write_text
from iaunet.workspace import DatasetFolder, locked

logger = logging.getLogger(__name__)

REPORT, ANONYMOUS_REPORT = "report", "report_anonymous"
METHODS, TABLES_FOLDER, FIGURES_FOLDER = "methods.md", "tables", "figures"

LONGEST_HEAD = 4000
"""In bytes: so near to its beginning a file says whose it is."""

PICTURE_CHARACTERS = 8_000_000
"""Of all pictures on the page: with all else less than 15 MB."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report says, and the files that were written: the page, methods.md, tables and figures."""

    facts: ReportFacts
    page: Path
    files: tuple[Path, ...]


def write_report(folder: DatasetFolder, anonymous: bool = False, output: Path | None = None) -> Report:
    """Write the report of a dataset; each file appears whole, after those of an earlier report were removed.

    No file is touched that an earlier report did not write.

    Args:
        folder: The dataset's folder in the workspace.
        anonymous: Replace the names of cases and groups by numbers, and show no pixels and no paths. The dataset's
            name and those of runs and labels stay.
        output: The folder to write to, None for ``report/`` in the dataset's, ``report_anonymous/`` for an anonymous
            one: no picture or name of the one is ever beside the other.

    Raises:
        PredictionError: No fold was scored yet, or what was written of a run or of the choice is damaged.
        PlanError: The plan or the folds are missing or damaged.
        TrainingError: The record of a run is damaged.
        WorkspaceError: The dataset's files are missing or damaged, the folder cannot be written, or files in it that
            no report wrote are in the way, or another process is writing there.
    """
    target = output or folder.root / (ANONYMOUS_REPORT if anonymous else REPORT)
    earlier = _earlier_files(target, is_ours=output is None)
    gathering = Gathering(folder, anonymous)
    facts = gathering.gather()
    pictures = {} if anonymous else _draw_pictures(facts, gathering)
    page, methods = render_page(facts, pictures), write_methods(facts)
    with locked(target, "writing a report"):
        with naming_disk_faults(target):
            for path in earlier:
                path.unlink(missing_ok=True)
        for part in (target, target / TABLES_FOLDER, target / FIGURES_FOLDER):
            remove_leftovers(make_folder(part))
        write_text(target / PAGE, page)  # first: it says whose the files beside it are
        write_text(target / METHODS, methods)
        files = [*write_tables(target / TABLES_FOLDER, facts), *draw_figures(target / FIGURES_FOLDER, facts)]
    return Report(facts=facts, page=target / PAGE, files=(target / PAGE, target / METHODS, *files))


def _draw_pictures(facts: ReportFacts, gathering: Gathering) -> Mapping[str, CasePicture | str]:
    """The pictures of the cases that are shown, or why there is none."""
    masks = gathering.shown_masks
    if masks is None:
        return {}
    pictures: dict[str, CasePicture | str] = {}
    room = PICTURE_CHARACTERS
    for name in shown_cases(facts):
        drawn = _draw(name, masks, gathering)
        room -= drawn.n_bytes if isinstance(drawn, CasePicture) else 0
        pictures[name] = drawn if room >= 0 else "left out: the page would be too large"
    return pictures


def _draw(name: str, masks: HeldOutMasks, gathering: Gathering) -> CasePicture | str:
    try:
        return picture_case(name, masks, gathering.dataset)
    except FileError as fault:
        return fault.what
    except (PredictionError, PreprocessingError) as fault:
        return str(fault)


def _earlier_files(target: Path, is_ours: bool) -> list[Path]:
    """The files of an earlier report, its page last: while it is there, what is left of them is known to be ours.

    Args:
        target: The folder.
        is_ours: Whether it is ours even without a page; methods.md is not ours for that, which authors write as well.

    Raises:
        WorkspaceError: A file that no report wrote has a name that this one needs.
    """
    names = [f"{TABLES_FOLDER}/{table}.{ending}" for table in TABLE_NAMES for ending in ("csv", "tex")]
    names += [f"{FIGURES_FOLDER}/{figure}.png" for figure in FIGURES]
    found = [target / name for name in (*names, METHODS, PAGE) if (target / name).exists()]
    is_ours = is_ours or _begins_with(target / PAGE, f'content="{GENERATOR}"')
    for path in found:
        if not is_ours or (path.name == METHODS and not _begins_with(path, PREFACE)):
            raise WorkspaceError(
                f"{path} was not written by iaunet_report: move it away, or choose another folder with --output"
            )
    return found


def _begins_with(path: Path, mark: str) -> bool:
    """Whether a mark of ours is near the beginning of a file."""
    try:
        with path.open("rb") as file:
            return mark.encode() in file.read(LONGEST_HEAD)
    except OSError:
        return False
