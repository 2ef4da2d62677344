"""From a folder of raw data to preprocessed arrays: the whole first stage."""

import csv
import dataclasses
import io
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iaunet.dataset import Dataset, Problem, Source
from iaunet.errors import DatasetError, IaunetError, PlanError, WorkspaceError
from iaunet.grouping import resolve_groups
from iaunet.planners.fingerprint import Fingerprint, fingerprint_dataset
from iaunet.planners.folds import Splits, load_splits, make_splits, save_splits
from iaunet.planners.plan import Plan, decisions, load_plan, save_plan
from iaunet.planners.planner import AutoPlanner, find_planner
from iaunet.planners.suspicions import ALL_MASKS
from iaunet.preprocessing.arrays import Index
from iaunet.preprocessing.layout import understand
from iaunet.preprocessing.preprocess import preprocess
from iaunet.records import differences, to_json
from iaunet.storage import remove_leftovers, write_json, write_text
from iaunet.workspace import DatasetFolder, Workspace, is_path, locked

logger = logging.getLogger(__name__)

MOST_PROBLEMS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How far to go, this time.

    ``planner`` decides instead of the one the source names. ``replan`` throws away what was edited in plan.json.
    ``verify_only`` ends after reading, ``dry_run`` after planning; neither writes more than problems.csv.
    """

    planner: AutoPlanner | None = None
    workers: int = 1
    replan: bool = False
    verify_only: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset; ``index`` is None after a dry run, ``plan`` and ``splits`` also after mere reading."""

    folder: DatasetFolder
    dataset: Dataset
    fingerprint: Fingerprint
    plan: Plan | None = None
    splits: Splits | None = None
    index: Index | None = None


def locate_dataset(
    workspace: Workspace, dataset: str, said: Mapping[str, Any], name: str | None
) -> tuple[DatasetFolder, Source]:
    """Find where a dataset is kept and where its raw data lie.

    Args:
        workspace: Where datasets are kept.
        dataset: A folder with raw data, or a name the workspace knows.
        said: Fields of `Source` that the user gives now; those given when it was planned before are remembered.
        name: The dataset's name in the workspace, None for the folder's own.

    Raises:
        DatasetError: The name cannot be used.
        WorkspaceError: The name is taken by another folder's data, or unknown.
    """
    if not is_path(dataset) and (dataset in workspace.names() or not Path(dataset).is_dir()):
        folder = workspace.find(dataset)
        return folder, dataclasses.replace(folder.load_dataset().source, **said)
    root = Path(dataset).resolve()
    folder = workspace.folder(_valid_name(name or root.name))
    before = _source_before(folder)
    if before is None:
        return folder, Source(root=str(root), **said)
    if before.root != str(root) and Path(before.root).exists():
        raise WorkspaceError(
            f"the workspace already has a data set {folder.name} from {before.root}: "
            "give this one another name with --dataset_name"
        )
    return folder, dataclasses.replace(before, root=str(root), **said)


def _source_before(folder: DatasetFolder) -> Source | None:
    """What the user said when the dataset was planned before, None if it was not or cannot be read any more."""
    try:
        return folder.load_dataset().source if folder.dataset_json.exists() else None
    except WorkspaceError as fault:
        logger.info("planned anew: %s", fault)
        return None


def prepare_dataset(folder: DatasetFolder, source: Source, wish: Preparation) -> Prepared:
    """Read, check, fingerprint, plan and preprocess a dataset.

    Args:
        folder: Where the results go.
        source: Where the raw data lie and how to read them.
        wish: How to prepare them.

    Raises:
        IaunetError: The raw data have faults (all of them are in problems.csv), a plan or split cannot be made, or
            the disk is full.
    """
    with locked(folder.root, "preparing the data set"):
        remove_leftovers(folder.root)
        layout = understand(source, folder.masks)
        logger.info("%s: %s", folder.name, layout.understood)
        root = Path(source.root)
        reading = fingerprint_dataset(
            root, layout.cases, wish.workers, source.skip_faulty, layout.slicing, layout.coding
        )
        problems = [*layout.problems, *reading.problems]
        _write_problems(problems, folder.problems_csv)
        cases = tuple(case for case in layout.cases if case.name not in reading.faulty)
        faults = [problem for problem in problems if problem.level == "fault"]
        if reading.fingerprint is None or reading.coding is None or (faults and not source.skip_faulty):
            _show_problems([p for p in problems if len(faults) > 1 or p.level != "fault"], folder.problems_csv)
            raise _refusal(faults, source, folder.problems_csv)
        _show_problems(problems, folder.problems_csv)
        if faults:
            logger.info("%d cases are used, those with faults are left out", len(cases))
        grouping = resolve_groups([case.name for case in cases], source.groups)
        dataset = Dataset(
            name=folder.name,
            source=source,
            understood=layout.understood,
            labels=layout.labels or reading.fingerprint.labels,
            coding=reading.coding,
            slicing=layout.slicing,
            channel_kinds=layout.channel_kinds,
            channel_files=layout.channel_files,
            cases=cases,
            groups=dict(grouping.groups),
            groups_from=grouping.source,
        )
        if wish.verify_only:
            return Prepared(folder, dataset, reading.fingerprint)
        return _plan_and_preprocess(folder, dataset, reading.fingerprint, wish)


def _plan_and_preprocess(
    folder: DatasetFolder, dataset: Dataset, fingerprint: Fingerprint, wish: Preparation
) -> Prepared:
    source = dataset.source
    splits = make_splits(fingerprint, dataset.groups, source.n_folds, _known_folds(folder, dataset, source.n_folds))
    planner = wish.planner or find_planner(source.planner)
    plan = planner.plan(dataset, fingerprint, source.width, splits.missing, _plan_before(folder))
    if not wish.replan:
        plan = _edited_plan(folder, fingerprint) or plan
    _tell_changes(folder, plan)
    if wish.dry_run:
        return Prepared(folder, dataset, fingerprint, plan, splits, None)
    write_json(folder.fingerprint_json, to_json(fingerprint))
    save_plan(plan, folder.plan_json)
    save_splits(splits, folder.splits_json)
    write_json(folder.dataset_json, to_json(dataset))
    index = preprocess(dataset, fingerprint, plan, folder.preprocessed, wish.workers)
    return Prepared(folder, dataset, fingerprint, plan, splits, index)


def _plan_before(folder: DatasetFolder) -> Plan | None:
    """The plan of an earlier planning, None if there is none that can be read."""
    try:
        return load_plan(folder.plan_json)
    except PlanError:
        return None


def _edited_plan(folder: DatasetFolder, fingerprint: Fingerprint) -> Plan | None:
    """The plan on disk if the user edited it: their work is kept.

    Raises:
        PlanError: It was edited to what it cannot be, or made for data that have changed since.
    """
    if not folder.plan_json.exists():
        return None
    plan = load_plan(folder.plan_json)
    if not plan.is_edited:
        return None
    if plan.fingerprint != fingerprint.digest:
        raise PlanError(
            f"{folder.plan_json} was edited by hand for data that have changed since: "
            "use --replan for a new plan, then edit it again"
        )
    logger.info("plan.json was edited by hand and is kept (--replan makes a new one)")
    return plan


def _tell_changes(folder: DatasetFolder, plan: Plan) -> None:
    """Say what becomes different when a plan is replaced; its runs will not be gone on with."""
    before = _plan_before(folder)
    if before is None:
        return
    changed = differences(decisions(before), decisions(plan))
    if changed:
        logger.info("the plan changes: %s", "; ".join(changed))


def _known_folds(folder: DatasetFolder, dataset: Dataset, n_folds: int) -> dict[str, list[tuple[str, ...]]] | None:
    """The folds of an earlier planning, so that known cases keep theirs; not if their groups have changed."""
    if not (folder.splits_json.exists() and folder.dataset_json.exists()):
        return None
    try:
        before = folder.load_dataset()
        splits = load_splits(folder.splits_json)
    except IaunetError as fault:
        logger.info("the folds are made anew: %s", fault)
        return None
    known = {case.name for case in before.cases} & {case.name for case in dataset.cases}
    kept = all(dataset.groups.get(name) == before.groups.get(name) for name in known)
    if not kept:
        logger.info("the groups have changed: the folds of the split grouped are made anew")
    return {
        name: [fold.validation for fold in split.folds]
        for name, split in splits.splits.items()
        if len(split.folds) == n_folds and (kept or name == "random")
    }


def _valid_name(name: str) -> str:
    if not re.fullmatch(r"[^\W_][\w .+-]{0,99}", name):
        raise DatasetError(
            f"{name!r} cannot be a data set's name: give --dataset_name with letters, digits, '_', '-', '.', '+'"
        )
    return name


def _write_problems(problems: Sequence[Problem], path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["level", "file", "what is wrong", "what to do"])
    writer.writerows([p.level, p.file, p.what, p.mend] for p in problems)
    write_text(path, text.getvalue())


def _show_problems(problems: Sequence[Problem], path: Path) -> None:
    for problem in problems[:MOST_PROBLEMS_SHOWN]:
        logger.info("%s: %s: %s: %s", problem.level, problem.file, problem.what, problem.mend)
    if len(problems) > MOST_PROBLEMS_SHOWN:
        logger.info("... %d more in %s", len(problems) - MOST_PROBLEMS_SHOWN, path)


def _refusal(faults: Sequence[Problem], source: Source, path: Path) -> DatasetError:
    """The one line that ends the command; a lone fault is that line itself."""
    worst = next((fault for fault in faults if fault.file == ALL_MASKS), faults[0])
    can_be_skipped = worst.file != ALL_MASKS and not source.skip_faulty
    skip = "leave such cases out with --skip_faulty"
    if len(faults) == 1:
        said = f"{worst.file}: {worst.what}: {worst.mend}"
        return DatasetError(f"{said} (or {skip})" if can_be_skipped else said)
    return DatasetError(f"{len(faults)} faults, all in {path}: mend them{f', or {skip}' if can_be_skipped else ''}")
