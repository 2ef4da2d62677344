"""A model's file unpacked to a dataset that predicts."""

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from iaunet.dataset import Dataset, Source
from iaunet.errors import WorkspaceError
from iaunet.inference.best import CROSSVAL, BestFolder, BestModel, Member
from iaunet.inference.model_file import ModelArchive, one_line, opened_archive
from iaunet.inference.model_manifest import ModelFacts, ModelRun, ModelScores, TrainingFacts, weights_file
from iaunet.inference.postprocessing import NO_CLEANING, Postprocessing
from iaunet.inference.runs import Run, RunRecord
from iaunet.inference.tuning import NetworkName, Tuning
from iaunet.planners.familiar import keep_familiar
from iaunet.planners.plan import Plan, save_plan
from iaunet.records import to_json
from iaunet.storage import digest, naming_disk_faults, sync_folder, write_bytes, write_json
from iaunet.workspace import DatasetFolder, Workspace, is_dataset_name, locked

NO_DATA = "not imported"
"""Stands for the raw data's folder where there is none."""

_STAGING = ".importing"


def import_model(path: Path, workspace: Workspace, name: str | None = None) -> DatasetFolder:
    """Make a dataset of a model's file, to predict with; it has runs and scores but no cases.

    Args:
        path: What `iaunet.inference.model_export.export_model` wrote.
        workspace: Gets a new dataset, whole or not at all.
        name: The dataset's name, None for that of the data the model was trained on.

    Raises:
        PredictionError: The file is none of ours, damaged or changed.
        WorkspaceError: The name cannot be used or is taken, or the disk is full.
    """
    with opened_archive(path) as archive:
        folder = workspace.folder(_valid_name(name or archive.facts.dataset))
        archive.verify()
        _require_new(folder)
        with locked(workspace.root, "importing a model"), naming_disk_faults(folder.root):
            _require_new(folder)
            staging = workspace.root / _STAGING  # two levels deep, where no command looks for datasets
            shutil.rmtree(staging, ignore_errors=True)  # what a killed import left
            try:
                _unpack(archive, DatasetFolder(staging / folder.name), folder)
                (staging / folder.name).rename(folder.root)
                sync_folder(workspace.root)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return folder


def _valid_name(name: str) -> str:
    if not is_dataset_name(name):
        raise WorkspaceError(
            f"{one_line(ascii(name))} cannot be a data set's name: "
            "give --dataset_name with letters, digits, '_', '-', '.', '+'"
        )
    return name


def _require_new(folder: DatasetFolder) -> None:
    if folder.root.exists():
        raise WorkspaceError(f"{folder.root} is there already: give the model another name with --dataset_name")


def _unpack(archive: ModelArchive, staged: DatasetFolder, folder: DatasetFolder) -> None:
    """Write a dataset's folder to ``staged`` that will lie at ``folder``."""
    facts = archive.facts
    plan = archive.plans[facts.runs[0].name]
    scores = {(each.of, each.run, each.fold): each for each in archive.read_scores()}
    save_plan(plan, staged.plan_json)
    for run in facts.runs:
        target = Run(staged.runs / run.name)
        training = {field.name: getattr(run.training, field.name) for field in fields(TrainingFacts)}
        record = RunRecord(plan=archive.plans[run.name], **training)
        target.write_record(record)
        for fold, sha256 in run.folds.items():
            member = NetworkName(run=run.name, fold=fold, weights_sha256=sha256)
            write_bytes(target.fold(fold).weights, archive.read(weights_file(member)))
            made_from = {"weights_sha256": sha256, "settings_sha256": digest(record.settings)}
            summary = {**made_from, "run": run.name, "fold": fold}
            write_json(target.fold(fold).summary_json, summary | _scored(scores.get(("fold", run.name, fold)), run))
        if of_run := scores.get(("run", run.name, "")):
            crossval = {"run": run.name, "weights_sha256": run.held_out_sha256, **_scored(of_run, run)}
            write_json(target.crossval_json, crossval)
    if facts.familiar is not None:
        keep_familiar(staged, plan.fingerprint, facts.familiar)
    _unpack_choice(facts, plan, scores.get(("model", "", "")), staged, folder.name)
    dataset = Dataset(
        name=folder.name,
        source=Source(root=str(folder.root / NO_DATA)),
        understood="a model that was imported without the data it was trained on",
        labels=plan.labels,
        coding=plan.coding,
        cases=(),
        slicing=plan.slicing,
        channel_files=plan.channel_files,
    )
    write_json(staged.dataset_json, to_json(dataset))


def _scored(scores: ModelScores | None, run: ModelRun) -> dict[str, Any]:
    """Scores as the files of a run hold them."""
    if scores is None:
        return {"split": run.training.split, "inflated": "", "scores": None}
    return {"split": scores.split, "inflated": scores.inflated, "scores": to_json(scores.scores)}


def _unpack_choice(facts: ModelFacts, plan: Plan, scores: ModelScores | None, staged: DatasetFolder, name: str) -> None:
    """Make the model the dataset's best one, where that decides what is predicted with."""
    best = BestFolder.of(staged)
    if facts.chosen is not None and facts.postprocessing is not None:
        if scores is not None:
            members = {"members": to_json(facts.chosen.members)}
            write_json(best.root / CROSSVAL, _scored(scores, facts.runs[0]) | members)
        best.write(replace(facts.chosen, dataset=name), facts.tuning)
    elif len(facts.runs) > 1:
        together = BestModel(
            dataset=name,
            split=facts.runs[0].training.split,
            members=tuple(Member(run=run.name, weights_sha256=run.held_out_sha256) for run in facts.runs),
            candidates=(),
            why="these runs were exported together",
            postprocessing_why="none was exported",
        )
        cleaning = (NO_CLEANING,) * len(plan.coding.written)
        nothing = Postprocessing(thresholds=plan.inference.thresholds, cleaning=cleaning)
        best.write(together, Tuning(postprocessing=nothing))
