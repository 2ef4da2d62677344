"""Predicts and scores the held-out test set of a dataset."""

from collections.abc import Sequence
from pathlib import Path

from iaunet.dataset import MaskCoding, Problem
from iaunet.errors import PredictionError
from iaunet.grouping import Grouping
from iaunet.inference.evaluation import Evaluation, MaskPair, MaskReading, evaluate_pairs
from iaunet.inference.folder import InputCase, Outcome
from iaunet.planners.plan import Plan
from iaunet.preprocessing.held_out import HeldOut
from iaunet.records import load_record
from iaunet.stacks import hash_files
from iaunet.workspace import DatasetFolder


def load_held_out(folder: DatasetFolder) -> HeldOut:
    """The test set of a dataset.

    Raises:
        PredictionError: There is none, or its file holds something else.
    """
    mend = f"run iaunet_plan_and_preprocess {folder.name} --test DIR"
    if not folder.held_out_json.exists():
        raise PredictionError(f"{folder.name} has no held-out test set: {mend}")
    return load_record(HeldOut, folder.held_out_json, PredictionError, mend)


def input_cases(held_out: HeldOut) -> list[InputCase]:
    """The images of a test set, to be predicted."""
    root = Path(held_out.root)
    return [InputCase(case.name, case.name, tuple(root / image for image in case.images)) for case in held_out.cases]


def score_held_out(
    held_out: HeldOut, plan: Plan, output: Path, outcomes: Sequence[Outcome], workers: int
) -> Evaluation:
    """Score the predicted masks of a test set.

    Args:
        held_out: The test set; its true masks must be those that were checked.
        plan: Tells how masks are coded.
        output: The folder of the predicted masks.
        outcomes: What came of each image.
        workers: Processes at most.

    Raises:
        PredictionError: None can be scored, or a file of the test set has changed since it was checked.
    """
    root = Path(held_out.root)
    truths = {case.name: root / case.mask for case in held_out.cases if case.mask is not None}
    _require_unchanged(held_out, truths)
    pairs, problems = [], []
    for outcome in outcomes:
        if outcome.status == "failed":
            what = Problem(level="fault", file=outcome.image, what="has no prediction", mend=outcome.problem)
            problems.append(what)
        else:
            truth = truths[outcome.image]
            pairs.append(MaskPair(name=outcome.image, prediction=output / outcome.mask, truth=truth))
    if not pairs:
        raise PredictionError(f"no image of the test set in {root} could be predicted: see {output}/predictions.csv")
    written = MaskCoding(kind="values", values=plan.coding.written, written=plan.coding.written)
    reading = MaskReading(
        prediction=written,
        truth=plan.coding,
        labels=plan.labels,
        outputs=plan.coding.outputs,
        understood=f"the held-out test set, {held_out.understood}",
    )
    groups = held_out.groups
    return evaluate_pairs(
        pairs,
        Grouping(groups, "the data set's" if groups else "none"),
        predictions=str(output),
        truth=str(root),
        problems=problems,
        reading=reading,
        workers=workers,
    )


def _require_unchanged(held_out: HeldOut, truths: dict[str, Path]) -> None:
    for case in held_out.cases:
        image, mask = held_out.sha256[case.name]
        files = tuple(Path(held_out.root) / file for file in case.images)
        if hash_files(files) != image or hash_files([truths[case.name]]) != mask:
            raise PredictionError(
                f"the test case {case.name} has changed since it was checked: run iaunet_plan_and_preprocess again"
            )
