"""From a folder of raw data to preprocessed arrays: the whole first stage."""

import contextlib
import csv
import dataclasses
import io
import logging
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iaunet.dataset import Case, Dataset, MaskCoding, Problem, Source
from iaunet.discovery import require_folder
from iaunet.errors import DatasetError, IaunetError, PlanError, WorkspaceError
from iaunet.grouping import NONE_FOUND, Grouping, find_tables, resolve_groups
from iaunet.planners.familiar import Familiar, keep_familiar
from iaunet.planners.fingerprint import Fingerprint, Reading, fingerprint_dataset
from iaunet.planners.folds import Splits, load_splits, save_splits
from iaunet.planners.pictures import KeptPlace, keeping_pictures
from iaunet.planners.plan import Plan, decisions, load_plan, save_plan, with_reasons
from iaunet.planners.planner import AutoPlanner, find_planner, plan_dataset
from iaunet.planners.suspicions import ALL_MASKS
from iaunet.preprocessing.arrays import Index, open_arrays
from iaunet.preprocessing.check import write_check
from iaunet.preprocessing.held_out import HeldOut, check_held_out
from iaunet.preprocessing.layout import Layout, understand
from iaunet.preprocessing.preprocess import preprocess
from iaunet.records import differences, load_record, to_json
from iaunet.storage import digest, read_json, remove_leftovers, write_json, write_text
from iaunet.workers import keeping_processes
from iaunet.workspace import DatasetFolder, Workspace, is_dataset_name, is_path, locked, open_workspace

logger = logging.getLogger(__name__)

MOST_PROBLEMS_SHOWN = 20

PICTURES = "pictures.partial"
"""The folder of what measuring keeps for preprocessing, while both run."""

UNKNOWN_CODING = MaskCoding(kind="binary", values=(), written=(255,))
"""Stands for the coding of masks that could not be understood."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How far to go, this time.

    ``planner`` decides instead of the one the source names. ``replan`` throws away what was edited in plan.json.
    ``verify_only`` ends after reading, ``dry_run`` after planning; neither writes more than problems.csv and
    check.html.
    """

    planner: AutoPlanner | None = None
    workers: int = 1
    replan: bool = False
    verify_only: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset; ``index`` is None after a dry run, ``plan`` and ``splits`` also after
    mere reading. ``held_out`` is the test set, if there is one."""

    folder: DatasetFolder
    dataset: Dataset
    fingerprint: Fingerprint
    plan: Plan | None = None
    splits: Splits | None = None
    index: Index | None = None
    held_out: HeldOut | None = None


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
        source = dataclasses.replace(folder.load_dataset().source, **said)
        if not Path(source.root).is_dir():
            folder.load_cases()  # refuses what was imported
            raise WorkspaceError(
                f"{source.root}, where the raw data of {folder.name} lay, is gone: bring it back, or give the folder "
                f"where they are now and --dataset_name {folder.name}"
            )
        return folder, source
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


def prepare(
    dataset: str | Path,
    workspace: str | Path | None = None,
    wish: Preparation | None = None,
    *,
    name: str | None = None,
    **said: Any,
) -> Prepared:
    """Read, check, fingerprint, plan and preprocess a dataset, as ``iaunet_plan_and_preprocess`` does.

    Args:
        dataset: A folder with raw data, or a name the workspace knows.
        workspace: See `iaunet.workspace.open_workspace`.
        wish: How to prepare it; None for all stages in this process.
        name: The dataset's name in the workspace, None for the folder's own.
        said: Fields of `iaunet.dataset.Source`, as ``groups="folder"`` or ``width=8``.

    Raises:
        TypeError: There is no such field.
        IaunetError: See `locate_dataset` and `prepare_dataset`.
    """
    root = open_workspace(None if workspace is None else Path(workspace), os.environ)
    folder, source = locate_dataset(root, os.fspath(dataset), said, name)
    return prepare_dataset(folder, source, wish or Preparation())


def prepare_dataset(
    folder: DatasetFolder,
    source: Source,
    wish: Preparation,
    when_found: Callable[[], None] = lambda: None,
    when_planned: Callable[[Plan], None] = lambda plan: None,
) -> Prepared:
    """Read, check, fingerprint, plan and preprocess a dataset.

    Args:
        folder: Where the results go.
        source: Where the raw data lie and how to read them.
        wish: How to prepare them.
        when_found: Called once it is known what images and masks there are, before they are read.
        when_planned: Called with the plan before the arrays are made.

    Raises:
        IaunetError: The raw data have faults (all of them are in problems.csv), a plan or split cannot be made, or
            the disk is full.
    """
    require_folder(Path(source.root))  # first, or a mistyped path would leave an empty folder in the workspace
    with (
        locked(folder.root, "preparing the data set"),
        keeping_pictures(folder.root / PICTURES) as kept,
        keeping_processes(),
    ):
        remove_leftovers(folder.root)
        layout = understand(source, folder.masks)
        logger.info("%s: %s", folder.name, layout.understood)
        is_first = not (wish.verify_only or wish.dry_run or folder.preprocessed.exists())
        pictures = kept.if_there_is_room(len(layout.cases)) if is_first else None
        when_found()
        reading = fingerprint_dataset(
            Path(source.root), layout.cases, wish.workers, source.skip_faulty, layout.slicing, layout.coding, pictures
        )
        dataset = _make_dataset(folder.name, source, layout, reading)
        problems = [*layout.problems, *reading.problems, *_tables_of_groups(dataset)]
        held_out = None
        if reading.fingerprint is not None:
            held_out, found = check_held_out(dataset, layout, reading, folder.masks, wish.workers)
            problems += found
        _write_problems(problems, folder.problems_csv)
        page = _Page(folder, dataset, layout.cases, problems, wish.workers)
        faults = [problem for problem in problems if problem.level == "fault"]
        if reading.fingerprint is None or (faults and not source.skip_faulty):
            _show_problems([p for p in problems if len(faults) > 1 or p.level != "fault"], folder.problems_csv)
            page.write(reading.fingerprint)
            raise _refusal(faults, source, folder)
        _show_problems(problems, folder.problems_csv)
        if faults:
            logger.info("%d cases are used, those with faults are left out", len(dataset.cases))
        prepared = Prepared(folder, dataset, reading.fingerprint, held_out=held_out)
        if not wish.verify_only:
            prepared = _plan_and_preprocess(prepared, reading.fingerprint, wish, reading.kept, when_planned)
        page.write(reading.fingerprint, prepared)
        return prepared


def _make_dataset(name: str, source: Source, layout: Layout, reading: Reading) -> Dataset:
    """What was understood; where the masks could not be, with a coding that stands for none."""
    cases = tuple(case for case in layout.cases if case.name not in reading.faulty)
    grouping = resolve_groups([case.name for case in cases], source.groups) if cases else Grouping({}, "none")
    found = reading.fingerprint
    return Dataset(
        name=name,
        source=source,
        understood=layout.understood,
        labels=layout.labels or (found.labels if found else ()),
        coding=reading.coding or UNKNOWN_CODING,
        slicing=layout.slicing,
        channel_kinds=layout.channel_kinds,
        channel_files=layout.channel_files,
        cases=cases,
        groups=dict(grouping.groups),
        groups_from=grouping.source,
    )


def _tables_of_groups(dataset: Dataset) -> list[Problem]:
    """Notes about tables in the folder that seem to name groups, where there are none."""
    if dataset.groups_from != NONE_FOUND:
        return []
    root = Path(dataset.source.root)
    return [
        Problem(
            level="note",
            file=path.name,
            what="names a group for each case, and is not used",
            mend=f"give --groups {shlex.quote(str(path))} if cases of a group share a patient or video",
        )
        for path in find_tables([case.name for case in dataset.cases], root)
    ]


@dataclass(frozen=True)
class _Page:
    """What check.html shows whether or not planning goes through."""

    folder: DatasetFolder
    dataset: Dataset
    found: Sequence[Case]
    problems: Sequence[Problem]
    workers: int

    def write(self, fingerprint: Fingerprint | None, prepared: Prepared | None = None) -> None:
        """Write the page with what was reached."""
        plan = prepared.plan if prepared else None
        arrays = None
        if plan is not None and prepared is not None and prepared.index is not None:
            arrays = open_arrays(self.folder.preprocessed, plan.arrays_digest)
        write_check(
            self.folder,
            dataset=self.dataset,
            found=self.found,
            problems=self.problems,
            fingerprint=fingerprint,
            plan=plan,
            splits=prepared.splits if prepared else None,
            arrays=arrays,
            workers=self.workers,
        )


def _plan_and_preprocess(
    prepared: Prepared,
    fingerprint: Fingerprint,
    wish: Preparation,
    kept: Mapping[str, KeptPlace],
    when_planned: Callable[[Plan], None],
) -> Prepared:
    folder, dataset, source = prepared.folder, prepared.dataset, prepared.dataset.source
    plan, splits = plan_dataset(
        dataset,
        fingerprint,
        wish.planner or find_planner(source.planner),
        width=source.width,
        n_folds=source.n_folds,
        known_folds=_known_folds(folder, dataset, source.n_folds),
        before=_plan_before(folder),
    )
    leakage = prepared.held_out.leakage if prepared.held_out else None
    if leakage:
        plan = dataclasses.replace(plan, warnings=(*plan.warnings, leakage))
    if not wish.replan:
        plan = _edited_plan(folder, dataset, fingerprint, plan) or plan
    _tell_changes(folder, plan)
    _tell_data_changes(folder, fingerprint)
    _tell_other_folds(folder, splits)
    when_planned(plan)
    prepared = dataclasses.replace(prepared, plan=plan, splits=splits)
    if wish.dry_run:
        return prepared
    write_json(folder.fingerprint_json, to_json(fingerprint))
    keep_familiar(folder, fingerprint.digest, Familiar.of(fingerprint))
    save_plan(plan, folder.plan_json)
    save_splits(splits, folder.splits_json)
    write_json(folder.dataset_json, to_json(dataset))
    if prepared.held_out is not None:
        write_json(folder.held_out_json, to_json(prepared.held_out))
    else:
        folder.held_out_json.unlink(missing_ok=True)
    index = preprocess(dataset, fingerprint, plan, folder.preprocessed, wish.workers, kept)
    return dataclasses.replace(prepared, index=index)


def _plan_before(folder: DatasetFolder) -> Plan | None:
    """The plan of an earlier planning, None if there is none that can be read."""
    try:
        return load_plan(folder.plan_json)
    except PlanError:
        return None


def _edited_plan(folder: DatasetFolder, dataset: Dataset, fingerprint: Fingerprint, planned: Plan) -> Plan | None:
    """The plan on disk if the user edited it: their work is kept, with the reasons of the new plan where it is that.

    Raises:
        PlanError: It was edited to what it cannot be, or made for data that have changed since.
    """
    if not folder.plan_json.exists():
        return None
    plan = load_plan(folder.plan_json)
    if not plan.is_edited:
        return None
    if plan.fingerprint != fingerprint.digest or _is_read_otherwise(folder, dataset):
        raise PlanError(
            f"{folder.plan_json} was edited by hand for data that have changed since: "
            "use --replan for a new plan, then edit it again"
        )
    if _is_planned_otherwise(folder, dataset.source):
        raise PlanError(
            f"{folder.plan_json} was edited by hand, and --width and --planner are for a new plan: "
            "edit it again, or use --replan with them"
        )
    logger.info("plan.json was edited by hand and is kept (--replan makes a new one)")
    return with_reasons(plan, planned) if plan.planned == planned.planned else plan


def _is_planned_otherwise(folder: DatasetFolder, source: Source) -> bool:
    """Whether the user asks now for another plan than before."""
    before = _source_before(folder)
    return before is not None and (before.width, before.planner) != (source.width, source.planner)


def _is_read_otherwise(folder: DatasetFolder, dataset: Dataset) -> bool:
    """Whether the same files now stand for something else, as by another dataset.json: no fingerprint tells that."""
    try:
        before = folder.load_dataset()
    except WorkspaceError:
        return False
    fields = ("labels", "coding", "slicing", "channel_kinds", "channel_files")
    return any(getattr(before, field) != getattr(dataset, field) for field in fields)


def _tell_changes(folder: DatasetFolder, plan: Plan) -> None:
    """Say what becomes different when a plan is replaced; its runs will not be gone on with."""
    before = _plan_before(folder)
    if before is None:
        return
    old, new = (
        {name: value for name, value in decisions(one).items() if name != "fingerprint"} for one in (before, plan)
    )
    changed = differences(old, new)
    if changed:
        logger.info("the plan changes: %s", "; ".join(changed))


def _tell_data_changes(folder: DatasetFolder, fingerprint: Fingerprint) -> None:
    """Say which cases were added, changed or went since the planning before, and that runs do not know of it."""
    try:
        before = load_record(Fingerprint, folder.fingerprint_json, PlanError, "")
    except PlanError:
        return
    if before.digest == fingerprint.digest:
        return
    old = {case.name: (case.image_sha256, case.mask_sha256) for case in before.cases}
    new = {case.name: (case.image_sha256, case.mask_sha256) for case in fingerprint.cases}
    both = old.keys() & new.keys()
    numbers = {
        "added": len(new.keys() - old.keys()),
        "with another image": sum(old[name][0] != new[name][0] for name in both),
        "with another mask": sum(old[name][1] != new[name][1] for name in both),
        "gone": len(old.keys() - new.keys()),
    }
    told = ", ".join(f"{n} {what}" for what, n in numbers.items() if n) or "measured otherwise"
    logger.info("data       cases changed since the planning before: %s", told)
    if runs := _runs(folder):
        logger.info("data       trained on the older state: %s", ", ".join(runs))


def _tell_other_folds(folder: DatasetFolder, splits: Splits) -> None:
    """Name the runs that were begun with other folds, which cannot be gone on with."""
    folds = {name: digest(to_json(split.folds)) for name, split in splits.splits.items()}
    others = []
    for run in _runs(folder):
        with contextlib.suppress(PlanError):
            record = read_json(folder.runs / run / "run.json", PlanError, "")
            split = str(record.get("split")) if isinstance(record, dict) else ""
            if split in folds and record.get("split_digest") != folds[split]:  # else it has folds of its own
                others.append(run)
    if others:
        logger.info(
            "folds      runs of other folds, to be begun anew with iaunet_train --restart: %s", ", ".join(others)
        )


def _runs(folder: DatasetFolder) -> list[str]:
    """The names of the runs."""
    return sorted(path.parent.name for path in folder.runs.glob("*/run.json"))


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
    if not is_dataset_name(name):
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


def _refusal(faults: Sequence[Problem], source: Source, folder: DatasetFolder) -> DatasetError:
    """The one line that ends the command; a lone fault is that line itself."""
    worst = next((fault for fault in faults if fault.file == ALL_MASKS), faults[0])
    can_be_skipped = worst.file != ALL_MASKS and not source.skip_faulty
    skip = "leave such cases out with --skip_faulty"
    if len(faults) == 1:
        said = f"{worst.file}: {worst.what}: {worst.mend}"
        return DatasetError(f"{said} (or {skip})" if can_be_skipped else said)
    mend = f"mend them, or {skip}" if can_be_skipped else "mend them"
    return DatasetError(f"{len(faults)} faults, all in {folder.problems_csv} and shown in {folder.check_html}: {mend}")
