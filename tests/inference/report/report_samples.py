"""The facts of a report made without a workspace: four cases of two groups in two folds, everything filled in."""

import dataclasses
import math

from iaunet.detection import Detection, DetectionSummary, SizeClass
from iaunet.inference.best import Candidate
from iaunet.inference.calibration import Calibration, Reliability
from iaunet.inference.crossval import summarise
from iaunet.inference.expected_dice import DiceModel, ExpectedDice
from iaunet.inference.report.facts import (
    CaseFacts,
    ChosenFacts,
    DataFacts,
    HeldOutFacts,
    LeakageFacts,
    ReportFacts,
    ScoredFacts,
)
from iaunet.inference.report.runs import Curve, FoldScore, RunFacts
from iaunet.inference.report.suspects import Suspect
from iaunet.inference.scores import CaseScore, LabelScore, summarise_scores
from iaunet.metrics import Counts

RUN = "unet-best-grouped"
GROUPS = {"a": "x", "b": "x", "c": "y", "d": "y"}
FOLDS = {"a": 0, "b": 0, "c": 1, "d": 1}
COUNTS = {"a": (8, 0, 2), "b": (5, 5, 5), "c": (0, 4, 6), "d": (0, 0, 0)}
"""True positives, false positives and false negatives of 100 pixels."""


def score_case(name, labels):
    tp, fp, fn = COUNTS[name]
    counts = Counts(tp=tp, fp=fp, fn=fn, tn=100 - tp - fp - fn)
    metrics = {**counts.metrics(), "hd95": 3.5 if tp else math.nan, "surface_dice": 0.5 if tp else math.nan}
    return CaseScore(name=name, labels=dict.fromkeys(labels, LabelScore(counts=counts, metrics=metrics)))


def make_run(plan, labels, name=RUN, **fields):
    scores = {case: score_case(case, labels) for case in COUNTS}
    dice = {case: score.labels[labels[0]].metrics["dice"] for case, score in scores.items()}
    means = [sum(dice[case] for case, of in FOLDS.items() if of == fold) / 2 for fold in (0, 1)]
    curve = {
        "loss": (1.0, 0.5),
        "validation_loss": (1.1, math.nan),
        "validation_dice": (0.2, 0.4),
        "lr": (0.1, 0.05),
        "seconds": (1.0, 1.0),
    }
    usual = {
        "title": "U-Net",
        "plan": plan,
        "split": "grouped",
        "inflated": "",
        "seed": 3,
        "epochs": 2,
        "device": "cpu (2 threads)",
        "versions": {"torch": "2.9.0"},
        "overrides": {},
        "n_folds": 2,
        "is_current": True,
        "stale": "",
        "curves": tuple(Curve(fold=str(fold), epoch=(1.0, 2.0), **curve) for fold in (0, 1)),
        "folds": tuple(
            FoldScore(fold=fold, n_cases=2, labels=dict.fromkeys(labels, mean), dice=mean)
            for fold, mean in enumerate(means)
        ),
        "cases": scores,
        "fold_of": FOLDS,
        "summary": summarise_scores([*scores.values()], GROUPS, FOLDS),
        "overall": summarise([*dice.values()], [*GROUPS.values()], [*FOLDS.values()]),
    }
    return RunFacts(name=name, **(usual | fields))


def make_facts(make_plan, labels=("polyp",), **fields):
    plan = make_plan(labels=labels, dataset="toy") if len(labels) == 1 else make_plan(dataset="toy")
    run = make_run(plan, labels)
    dice = run.overall
    pixels, middles = (90, 0, 10), (1 / 6, None, 5 / 6)
    usual = {
        "dataset": "toy",
        "anonymous": False,
        "iaunet": "0.1.0",
        "data": DataFacts(
            n_cases=4,
            n_volumes=0,
            n_slices=4,
            n_empty=1,
            n_groups=2,
            groups_from="names",
            group_sizes=(("x", 2), ("y", 2)),
            labels=labels,
            channels=1,
            depth="uint8",
            smallest=(60, 60),
            largest=(64, 80),
            usual=(64, 64),
            n_usual=3,
            n_sizes=2,
            spacing_mm=None,
            foreground_share=0.083,
            n_copies=1,
            n_near=2,
            ceiling=0.99,
            fingerprint="0123456789abcdef0123",
            understood="",
        ),
        "plan": plan,
        "choices": (),
        "splits": (),
        "missing_splits": {},
        "runs": (run,),
        "shown": run,
        "chosen": ChosenFacts(
            runs=(RUN,),
            candidates=(Candidate(runs=(RUN,), dice=0.5, low=None, high=None),) * 3,
            why="Dice 0.5, the best of 3 runs",
            masks="polyp from 0.4 on",
            masks_why="kept: it helps",
        ),
        "scored": ScoredFacts(
            of="model",
            title=RUN,
            split="grouped",
            inflated="",
            folds=(0, 1),
            n_folds=2,
            summary=run.summary,
            overall=run.overall,
        ),
        "leakage": (
            LeakageFacts(
                network="U-Net",
                recipe="best",
                random_run="r",
                grouped_run=RUN,
                n_cases=4,
                random=dataclasses.replace(dice, mean=0.75, low=0.7, high=0.8),
                grouped=dataclasses.replace(dice, mean=0.5, low=0.4, high=0.6),
                difference=dataclasses.replace(dice, mean=0.25, low=0.1, high=0.3),
            ),
        ),
        "cases": tuple(
            CaseFacts(
                name=name,
                fold=FOLDS[name],
                group=GROUPS[name],
                shape=(1, 10, 10),
                labels=score.labels,
                of_runs={},
                expected_dice=0.25,
                flagged=name == "c",
                suspect="not marked" if name == "d" else "",
            )
            for name, score in run.cases.items()
        ),
        "detection": dict.fromkeys(
            labels,
            DetectionSummary(
                overall=Detection(lesions=4, found=3, false_alarms=1),
                sizes=(
                    SizeClass(name="small", above=0, most=5, detection=Detection(lesions=2, found=1, false_alarms=1)),
                    SizeClass(name="large", above=5, most=None, detection=Detection(lesions=2, found=2)),
                ),
                n_cases=4,
                n_empty=1,
                n_empty_with_alarms=1,
            ),
        ),
        "suspects": (Suspect(name="d", fold=1, kind="not marked", score=0.75, not_marked=9, without_sign=0, marked=3),),
        "calibration": Calibration(
            temperatures={RUN: {"0": 1.5, "1": 1.25}},
            before=Reliability(
                pixels=pixels, probability=middles, frequency=(0.1, None, 0.6), ece=0.0833, brier=0.02, log_loss=0.3
            ),
            after=Reliability(
                pixels=pixels, probability=middles, frequency=(0.16, None, 0.8), ece=0.0094, brier=0.01, log_loss=0.2
            ),
        ),
        "expected_dice": ExpectedDice(
            flag_below=0.3,
            rank_correlation=0.71,
            low=0.6,
            high=0.8,
            n_flagged=1,
            dice_flagged=0.1,
            dice_unflagged=0.7,
            models={RUN: {"0": DiceModel(intercept=0.0, coefficients=(0.0,) * 5)}},
        ),
        "held_out": HeldOutFacts(n_cases=7, leakage="", summary=run.summary, n_times=1, model=RUN),
    }
    return ReportFacts(**(usual | fields))


BARE = {
    "chosen": None,
    "leakage": (),
    "detection": {},
    "suspects": (),
    "calibration": None,
    "expected_dice": None,
    "held_out": None,
}
"""What a report lacks before ``iaunet_find_best`` ran and without logits and masks."""
