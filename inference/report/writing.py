"""Writes the report of a dataset: a page, the words for a paper, tables and figures."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from iaunet.errors import FileError, PredictionError, PreprocessingError
from iaunet.inference.report.facts import ReportFacts
from iaunet.inference.report.gathering import Gathering
from iaunet.inference.report.masks import HeldOutMasks
from iaunet.inference.report.page import GENERATOR, PAGE, render_page, shown_cases
from iaunet.inference.report.pictures import CasePicture, picture_case
from iaunet.storage import make_folder, write_text
from iaunet.workspace import DatasetFolder

logger = logging.getLogger(__name__)

REPORT, METHODS, TABLES, FIGURES = "report", "methods.md", "tables", "figures"

PICTURE_CHARACTERS = 8_000_000
"""Of all pictures on the page: with all else less than 15 MB."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report says, and the files that were written: the page, methods.md, tables and figures."""

    facts: ReportFacts
    page: Path
    files: tuple[Path, ...]


def write_report(folder: DatasetFolder, anonymous: bool = False, output: Path | None = None) -> Report:
    """Write the report of a dataset; each file appears whole, and those of an earlier report that are not made any
    more are removed.

    Args:
        folder: The dataset's folder in the workspace.
        anonymous: Replace the names of cases and groups by numbers, and show no pixels and no paths. The dataset's
            name and those of runs and labels stay.
        output: The folder to write to, None for ``report/`` in the dataset's.

    Raises:
        PredictionError: No fold was scored yet, or what was written of a run or of the choice is damaged.
        PlanError: The plan or the folds are missing or damaged.
        TrainingError: The record of a run is damaged.
        WorkspaceError: The dataset's files are missing or damaged, or the folder cannot be written.
    """
    from iaunet.inference.report.figures import draw_figures
    from iaunet.inference.report.methods import write_methods
    from iaunet.inference.report.tables import write_tables

    gathering = Gathering(folder, anonymous)
    facts = gathering.gather()
    pictures = {} if anonymous else _draw_pictures(facts, gathering)
    target = make_folder(output or folder.root / REPORT)
    is_ours = output is None or _is_report(target / PAGE)
    write_text(target / PAGE, render_page(facts, pictures))
    write_text(target / METHODS, write_methods(facts))
    files = [*write_tables(make_folder(target / TABLES), facts), *draw_figures(make_folder(target / FIGURES), facts)]
    if is_ours:
        _remove_others(target, files)
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


def _is_report(page: Path) -> bool:
    """Whether a page is that of an earlier report: only then are the files beside it ours to remove."""
    try:
        with page.open("rb") as file:
            return f'content="{GENERATOR}"'.encode() in file.read(2000)
    except OSError:
        return False


def _remove_others(target: Path, files: list[Path]) -> None:
    """Remove what an earlier report wrote and this one does not."""
    earlier = {
        *(target / TABLES).glob("*.csv"),
        *(target / TABLES).glob("*.tex"),
        *(target / FIGURES).glob("*.png"),
    }
    for path in earlier - {*files}:
        path.unlink()
