"""Writes the comparison of a dataset's runs: tables, chart, and grids of cases."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet.dataset import IGNORED, Dataset
from iaunet.errors import FileError, PredictionError, PreprocessingError
from iaunet.files import read_mask
from iaunet.inference.case_grid import MOST_COLUMNS, GridColumn, choose_cases, save_grid
from iaunet.inference.comparison import Contest, Contestant, Table, collect_contests
from iaunet.inference.comparison_chart import save_chart
from iaunet.inference.comparison_tables import format_csv, format_markdown
from iaunet.inference.costs import Cost, measure_costs
from iaunet.inference.published import PUBLISHED, find_published
from iaunet.inference.runs import Run, list_runs
from iaunet.networks import NETWORKS
from iaunet.preprocessing.arrays import Arrays, open_arrays
from iaunet.records import require
from iaunet.resample import resize_image
from iaunet.stacks import read_stack
from iaunet.storage import write_text
from iaunet.workspace import DatasetFolder, locked

logger = logging.getLogger(__name__)

COMPARISON = "comparison"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What a user may decide.

    ``runs`` names those to compare, none for all. ``results`` is a folder of runs to take instead of the dataset's own.
    ``reference`` is the run or network that the others are tested against. ``published`` is a data set of the paper,
    ``none``, or None to go by the dataset's name. ``cases`` are to be shown, with so many random, best and worst ones.
    ``device`` is where networks are timed, None for nowhere. ``output`` is the folder to write to, None for the
    dataset's own.
    """

    runs: tuple[str, ...] = ()
    results: Path | None = None
    reference: str = "iaunet"
    published: str | None = None
    cases: tuple[str, ...] = ()
    n_random: int = 3
    n_best: int = 2
    n_worst: int = 3
    seed: int = 0
    device: str | None = "auto"
    output: Path | None = None

    def __post_init__(self) -> None:
        known = (*PUBLISHED, "none")
        require(self.published in (None, *known), "published", self.published, f"one of {', '.join(known)}")
        for name in ("n_random", "n_best", "n_worst"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        n_cases = len({*self.cases}) + self.n_random + self.n_best + self.n_worst
        require(n_cases <= MOST_COLUMNS, "the number of cases shown", n_cases, f"{MOST_COLUMNS} at most")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was compared, and the files that were written."""

    contests: tuple[Contest, ...]
    files: tuple[Path, ...]


def compare_runs(folder: DatasetFolder, options: CompareOptions) -> Comparison:
    """Compare the runs of a dataset and write what comes of it.

    Args:
        folder: The dataset's folder in the workspace.
        options: What to compare with what, and what to show.

    Returns:
        The contests, and the paths of ``comparison.md`` and ``comparison.csv``, and of a chart and a grid of cases for
        each contest. Where images or masks can no longer be read, a warning is logged instead of a grid; none is drawn
        where no case is to be shown.

    Raises:
        PredictionError: There is nothing to compare, a run, a case or the reference is unknown, or weights are not
            those that were scored.
        TrainingError: The record of a run is damaged.
        WorkspaceError: The folder cannot be written, or another process is writing there.
    """
    contests = collect_contests(folder, _find_runs(folder, options), options.reference)
    _check_reference(options.reference, contests)
    _check_cases(options.cases, contests)
    output = options.output or folder.root / COMPARISON
    wish = find_published(folder.name) if options.published is None else options.published
    published = wish if wish in PUBLISHED else None
    text = format_markdown(folder.name, contests, *_costs(contests, options.device), published)
    with locked(output, "writing a comparison"):
        write_text(output / "comparison.md", text)
        files = [output / "comparison.md", *_write(folder, options, contests, published, output)]
    return Comparison(contests=tuple(contests), files=tuple(files))


def _write(
    folder: DatasetFolder, options: CompareOptions, contests: Sequence[Contest], published: str | None, output: Path
) -> list[Path]:
    """Write the figures of contests and the pictures of them; returns the files."""
    files = [output / "comparison.csv"]
    write_text(files[0], format_csv(contests))
    for contest in contests:
        files.append(output / f"chart_{_file_name(contest, contests)}.png")
        save_chart(files[-1], contest, choose_table(contest, published), published)
    for contest in contests:
        path = output / f"cases_{_file_name(contest, contests)}.png"
        try:
            columns = [*collect_columns(folder, contest, options)]
        except (FileError, PreprocessingError) as fault:
            about = f"recipe {contest.recipe}, split {contest.split}"
            logger.warning("warning    no cases are shown of %s: %s", about, fault)
            continue
        if columns:
            save_grid(path, columns, [each.title for each in contest.contestants])
            files.append(path)
    if options.output is None:  # a folder of the user's may hold pictures of the user's
        for path in {*output.glob("chart_*.png"), *output.glob("cases_*.png")} - {*files}:
            path.unlink()  # of runs that are no longer compared so
    return files


def _check_reference(wish: str, contests: Sequence[Contest]) -> None:
    """A network may not have been trained yet, but a name that is no network is a run's or a mistake."""
    names = {each.run.name for contest in contests for each in contest.contestants}
    if wish not in (*names, *NETWORKS) and ":" not in wish:
        known = ", ".join([*sorted(names), *NETWORKS])
        raise PredictionError(f"no run or network {wish!r} to test against: choose among {known}")


def _check_cases(cases: Sequence[str], contests: Sequence[Contest]) -> None:
    """Refuse a case that no run was scored on, before anything is written."""
    choose_cases({name: 0.0 for contest in contests for name in _dice_by_case(contest)}, chosen=cases)


def choose_table(contest: Contest, published: str | None) -> Table:
    """The table to draw: beside published figures one at the size they are of, if there is one."""
    at_input = (table for table in contest.tables if table.size == "input" and table.standings)
    first = contest.tables[0]
    return first if published is None else next(at_input, first)


def _find_runs(folder: DatasetFolder, options: CompareOptions) -> list[Run]:
    if options.results is not None and not options.results.is_dir():
        raise PredictionError(f"{options.results} is no folder: give one that holds runs")
    found = list_runs(options.results or folder.runs)
    if options.results is not None and not found:
        raise PredictionError(f"{options.results} holds no runs: give a folder with RUN/run.json")
    if not options.runs:
        return found
    by_name = {run.name: run for run in found}
    unknown = [name for name in options.runs if name not in by_name]
    if unknown:
        raise PredictionError(f"no run {unknown[0]!r}: choose among {', '.join(by_name) or 'none'}")
    return [by_name[name] for name in dict.fromkeys(options.runs)]


def _costs(contests: Sequence[Contest], device: str | None) -> tuple[dict[str, Cost], str]:
    """The cost of each run's network, and the device they were timed on; a stranger's code is not run for that."""
    from iaunet.device import choose_device, describe_device

    plans = {
        contestant.run.name: contestant.record.plan
        for contest in contests
        for contestant in contest.contestants
        if ":" not in contestant.record.plan.network.name
    }
    if device is None:
        return measure_costs(plans, None), ""
    chosen = choose_device(device)
    return measure_costs(plans, chosen), describe_device(chosen)


def _file_name(contest: Contest, contests: Sequence[Contest]) -> str:
    """Tells the contest's files from those of the others."""
    name = f"{contest.recipe}-{contest.split}"
    same = [other for other in contests if f"{other.recipe}-{other.split}" == name]
    return name if len(same) == 1 else f"{name}-{same.index(contest) + 1}"


def collect_columns(folder: DatasetFolder, contest: Contest, options: CompareOptions) -> Iterator[GridColumn]:
    """The cases of a grid, chosen by their mean Dice over all runs that were scored on them, so that none is favoured.

    Raises:
        FileError: The image or a predicted mask of a case cannot be read, or is of another size than its true mask.
        PreprocessingError: Its true mask cannot be read, or the arrays are of other data.
    """
    dice = _dice_by_case(contest)
    chosen = choose_cases(
        {name: float(np.mean([*of_case.values()])) for name, of_case in dice.items()},
        chosen=[name for name in options.cases if name in dice],
        n_random=options.n_random,
        n_best=options.n_best,
        n_worst=options.n_worst,
        seed=options.seed,
    )
    dataset = folder.load_dataset()
    arrays = open_arrays(folder.preprocessed, contest.contestants[0].record.plan.arrays_digest)
    for name, why in chosen:
        try:
            column = _column(name, why, contest, dataset, arrays, dice[name])
        except FileError as fault:
            raise FileError(f"case {name}: {fault.what}", fault.mend) from fault
        yield column


def _column(
    name: str, why: str, contest: Contest, dataset: Dataset, arrays: Arrays, scores: Mapping[str, float]
) -> GridColumn:
    """A case as it is shown; of a volume the slice with the most of its labels."""
    truth = arrays.truth(name)
    labelled = (truth > 0) & (truth != IGNORED)
    fullest = int(np.argmax(np.count_nonzero(labelled, axis=(1, 2))))
    return GridColumn(
        title=f"{name}\n{why}" if len(truth) == 1 else f"{name}, slice {fullest + 1}\n{why}",
        image=_image(dataset, arrays, name)[:, fullest],
        truth=truth[fullest],
        predictions={each.title: _prediction(each, name, truth.shape, fullest) for each in contest.contestants},
        scores=scores,
    )


def _dice_by_case(contest: Contest) -> dict[str, dict[str, float]]:
    """The Dice of each case, the mean over its labels, by the title of the run."""
    dice: dict[str, dict[str, float]] = {}
    for contestant in contest.contestants:
        for name, case in contestant.cases("native", contestant.folds).items():
            mean = float(np.mean([label.metrics["dice"] for label in case.labels.values()]))
            dice.setdefault(name, {})[contestant.title] = mean
    return dice


def _image(dataset: Dataset, arrays: Arrays, name: str) -> NDArray[np.generic]:
    """The image [C, slices, H, W]: as its files have it, or from the arrays where these are elsewhere."""
    files = [dataset.path(file) for case in dataset.cases if case.name == name for file in case.images]
    shape = arrays.cases[name].shape
    if files and all(file.exists() for file in files):
        stack = read_stack(files, dataset.slicing)
        if stack.shape != shape:
            raise FileError("the image is not as large as when it was prepared", "run iaunet_plan_and_preprocess again")
        return stack.pixels
    prepared = arrays.case_input(name)
    if not all(place.geometry.is_whole for place in prepared.places):
        raise FileError("the image is missing, and tiles are not put together again", "bring the raw data back")
    rows = [place.geometry.crop(row) for place, row in zip(prepared.places, prepared.rows(), strict=True)]
    return np.stack([resize_image(row, shape[1:]) for row in rows], axis=1)


def _prediction(contestant: Contestant, name: str, shape: tuple[int, ...], number: int) -> NDArray[np.uint8] | None:
    """The predicted labels of a slice of a case, None where its fold was not trained."""
    fold = contestant.fold_of("native", contestant.folds).get(name)
    if fold is None:
        return None
    path = contestant.run.fold(str(fold)).validation / f"{name}.png"
    mend = "run iaunet_train with --val_only for this fold"
    try:
        labels = contestant.record.plan.coding.of_written.encode(read_mask(path))
    except FileError as fault:
        raise FileError(f"{path}: {fault.what}", mend) from fault
    if labels.size != math.prod(shape):
        raise FileError(f"{path} is not as large as the image", mend)
    shown: NDArray[np.uint8] = labels.reshape(shape)[number]
    return shown
