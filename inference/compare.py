"""Writes the comparison of a dataset's runs: tables, chart, and grids of cases."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet.dataset import Dataset
from iaunet.errors import FileError, PredictionError, PreprocessingError
from iaunet.files import read_mask
from iaunet.inference.case_grid import MOST_COLUMNS, GridColumn, choose_cases, save_grid
from iaunet.inference.comparison import Contest, Contestant, collect_contests
from iaunet.inference.comparison_chart import save_chart
from iaunet.inference.comparison_tables import format_csv, format_markdown
from iaunet.inference.costs import Cost, measure_costs
from iaunet.inference.published import PUBLISHED, find_published
from iaunet.inference.runs import Run, list_runs
from iaunet.preprocessing.arrays import Arrays, open_arrays
from iaunet.records import require
from iaunet.resample import resize_image
from iaunet.stacks import read_stack
from iaunet.storage import write_text
from iaunet.workspace import DatasetFolder

logger = logging.getLogger(__name__)

COMPARISON = "comparison"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What a user may decide.

    ``runs`` names those to compare, none for all. ``results`` is a folder of runs to take instead of the
    dataset's own. ``reference`` is the run or
    network that the others are tested against. ``published`` is a data set of the paper, ``none``, or None to go by
    the dataset's name. ``cases`` are to be shown, with so many random, best and worst ones. ``device`` is where
    networks are timed, None for nowhere. ``output`` is the folder to write to, None for the dataset's own.
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
        each contest. Where images or masks can no longer be read, a warning is logged instead of a grid.

    Raises:
        PredictionError: There is nothing to compare, or a run or case is unknown.
        WorkspaceError: The folder cannot be written.
    """
    contests = collect_contests(folder, _find_runs(folder, options), options.reference)
    output = options.output or folder.root / COMPARISON
    wish = find_published(folder.name) if options.published is None else options.published
    published = wish if wish in PUBLISHED else None
    costs, timed_on = _costs(contests, options.device)
    files = [output / "comparison.md", output / "comparison.csv"]
    write_text(files[0], format_markdown(folder.name, contests, costs, timed_on, published))
    write_text(files[1], format_csv(contests))
    for contest in contests:
        files.append(output / f"chart_{_file_name(contest, contests)}.png")
        save_chart(files[-1], contest, contest.tables[0], published)
    for contest in contests:
        path = output / f"cases_{_file_name(contest, contests)}.png"
        try:
            save_grid(path, [*_columns(folder, contest, options)], [each.title for each in contest.contestants])
        except (FileError, PreprocessingError) as fault:
            logger.warning("warning    no cases are shown of recipe %s: %s", contest.recipe, fault)
        else:
            files.append(path)
    return Comparison(contests=tuple(contests), files=tuple(files))


def _find_runs(folder: DatasetFolder, options: CompareOptions) -> list[Run]:
    if options.results is not None and not options.results.is_dir():
        raise PredictionError(f"{options.results} is no folder: give one that holds runs")
    found = list_runs(options.results or folder.runs)
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


def _columns(folder: DatasetFolder, contest: Contest, options: CompareOptions) -> Iterator[GridColumn]:
    """The cases of a grid, chosen by their mean Dice over all runs that were scored on them, so that none is favoured.

    Raises:
        PredictionError: A case that is to be shown was not scored.
        FileError: Its image or a predicted mask cannot be read.
        PreprocessingError: Its true mask cannot be read, or the arrays are of other data.
    """
    dice = _dice_by_case(contest)
    chosen = choose_cases(
        {name: float(np.mean([*of_case.values()])) for name, of_case in dice.items()},
        chosen=options.cases,
        n_random=options.n_random,
        n_best=options.n_best,
        n_worst=options.n_worst,
        seed=options.seed,
    )
    dataset = folder.load_dataset()
    arrays = open_arrays(folder.preprocessed, contest.contestants[0].record.plan.arrays_digest)
    for name, why in chosen:
        truth = arrays.truth(name)
        fullest = int(np.argmax(np.count_nonzero(truth, axis=(1, 2))))  # the slice that is shown of a volume
        yield GridColumn(
            title=f"{name}\n{why}" if len(truth) == 1 else f"{name}, slice {fullest + 1}\n{why}",
            image=_image(dataset, arrays, name)[:, fullest],
            truth=truth[fullest],
            predictions={each.title: _prediction(each, name, truth.shape, fullest) for each in contest.contestants},
            scores=dice[name],
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
    [case] = [case for case in dataset.cases if case.name == name]
    files = [dataset.path(file) for file in case.images]
    if all(file.exists() for file in files):
        return read_stack(files, dataset.slicing).pixels
    shape = arrays.cases[name].shape
    prepared = arrays.case_input(name)
    if not all(place.geometry.is_whole for place in prepared.places):
        raise FileError("is missing, and a case cut into tiles is not put together again", "bring the raw data back")
    rows = [place.geometry.crop(row) for place, row in zip(prepared.places, prepared.rows(), strict=True)]
    return np.stack([resize_image(row, shape[1:]) for row in rows], axis=1)


def _prediction(contestant: Contestant, name: str, shape: tuple[int, ...], number: int) -> NDArray[np.uint8] | None:
    """The predicted labels of a slice of a case, None where its fold was not trained or its mask was not kept."""
    fold = contestant.fold_of("native", contestant.folds).get(name)
    path = contestant.run.fold(str(fold)).validation / f"{name}.png"
    if fold is None or not path.exists():
        return None
    return contestant.record.plan.coding.of_written.encode(read_mask(path).reshape(shape)[number])
