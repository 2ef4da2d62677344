"""Predicts and scores the held-out test set of a dataset."""

from collections.abc import Sequence
from pathlib import Path

from iaunet.dataset import Case, Problem
from iaunet.errors import FileError, PredictionError
from iaunet.grouping import Grouping
from iaunet.inference.evaluation import Evaluation, MaskPair, MaskReading, evaluate_pairs
from iaunet.inference.inputs import InputCase
from iaunet.inference.outcomes import Outcome
from iaunet.planners.plan import Plan
from iaunet.preprocessing.held_out import HeldOut
from iaunet.records import load_record
from iaunet.stacks import hash_files
from iaunet.workspace import DatasetFolder


def load_held_out(folder: DatasetFolder) -> HeldOut:
    """The test set of a dataset.

    Raises:
        PredictionError: There is none, or its file holds something else.
        WorkspaceError: The dataset is a model that was imported without data.
    """
    mend = f"run iaunet_plan_and_preprocess {folder.name} --test DIR"
    if not folder.held_out_json.exists():
        folder.load_cases()  # refuses what was imported
        raise PredictionError(f"{folder.name} has no held-out test set: {mend}")
    return load_record(HeldOut, folder.held_out_json, PredictionError, mend)


def input_cases(held_out: HeldOut) -> list[InputCase]:
    """The images of a test set, to be predicted."""
    root = Path(held_out.root)
    return [InputCase(case.name, case.name, tuple(root / image for image in case.images)) for case in held_out.cases]


def require_usable(held_out: HeldOut, plan: Plan, folder: DatasetFolder) -> None:
    """Refuse a test set that cannot be scored with a run, before anything is predicted.

    Args:
        held_out: The test set.
        plan: The run's.
        folder: The dataset's.

    Raises:
        PredictionError: The run has other labels than the test set was checked with, or a file has changed or gone.
    """
    again = f"run iaunet_plan_and_preprocess {folder.name} again"
    if not Path(held_out.root).is_dir():
        raise PredictionError(f"the test set {held_out.root} is gone: bring it back, or {again} with --test DIR")
    if (plan.labels, plan.coding) != (held_out.labels, held_out.training_coding):
        raise PredictionError(
            f"the run was trained with labels {', '.join(plan.labels)} as they were coded then, the test set was "
            f"checked with {', '.join(held_out.labels)} as they are coded now: train a run on the present data"
        )
    for case in held_out.cases:
        image, mask = held_out.sha256[case.name]
        files = tuple(Path(held_out.root) / file for file in case.images)
        try:
            found = hash_files(files), hash_files([_truth(case, held_out, folder)])
        except FileError as fault:
            raise PredictionError(f"the test case {case.name} cannot be read ({fault.what}): {again}") from fault
        if found != (image, mask):
            raise PredictionError(f"the test case {case.name} has changed since it was checked: {again}")


def score_held_out(
    held_out: HeldOut, plan: Plan, folder: DatasetFolder, output: Path, outcomes: Sequence[Outcome], workers: int
) -> Evaluation:
    """Score the predicted masks of a test set that is usable.

    Args:
        held_out: The test set.
        plan: Tells how masks are coded.
        folder: The dataset's.
        output: The folder of the predicted masks.
        outcomes: What came of each image.
        workers: Processes at most.

    Raises:
        PredictionError: None can be scored.
    """
    truths = {case.name: _truth(case, held_out, folder) for case in held_out.cases}
    pairs, problems = [], []
    for outcome in outcomes:
        if outcome.status == "failed":
            what = Problem(level="fault", file=outcome.image, what="has no prediction", mend=outcome.problem)
            problems.append(what)
        else:
            truth = truths[outcome.image]
            mask = output / outcome.mask
            pairs.append(MaskPair(name=outcome.image, prediction=mask, truth=truth, axes=plan.slicing.axes))
    if not pairs:
        raise PredictionError(f"no image of the test set could be predicted: see {output}/predictions.csv")
    reading = MaskReading(
        prediction=plan.coding.of_written,
        truth=held_out.coding,
        labels=plan.labels,
        outputs=plan.coding.outputs,
        understood=f"the held-out test set, {held_out.understood}",
    )
    groups = held_out.groups
    return evaluate_pairs(
        pairs,
        Grouping(groups, "the data set's" if groups else "none"),
        predictions=str(output),
        truth=held_out.root,
        problems=problems,
        reading=reading,
        workers=workers,
    )


def _truth(case: Case, held_out: HeldOut, folder: DatasetFolder) -> Path:
    """The true mask of a case; one that was drawn lies in the workspace, wherever that is now."""
    path = Path(held_out.root) / str(case.mask)
    drawn = Path(held_out.masks)
    return folder.masks / path.relative_to(drawn) if path.is_relative_to(drawn) else path
