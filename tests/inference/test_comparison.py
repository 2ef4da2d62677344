import dataclasses
import json
import math

import pytest

from iaunet.errors import PredictionError, TrainingError
from iaunet.inference.comparison import collect_contests
from iaunet.inference.crossval import pool, summarise
from iaunet.inference.permutation import holm, sign_flip_test
from iaunet.inference.published import PAPER_METRICS
from iaunet.inference.runs import Run, RunRecord
from iaunet.inference.scores import CaseScore, LabelScore, write_scores
from iaunet.metrics import METRICS, Counts
from iaunet.planners.folds import load_splits
from iaunet.planners.plan import load_plan
from iaunet.records import to_json
from iaunet.storage import digest, file_digest, write_json
from iaunet.workspace import DatasetFolder


@pytest.fixture
def folder(workspace):
    return DatasetFolder(workspace / "toy")


@pytest.fixture
def names(folder):
    """The held-out cases of each fold of the split ``random``."""
    return [fold.validation for fold in load_splits(folder.splits_json).splits["random"].folds]


@pytest.fixture
def forge(folder):
    """Make a run as training leaves it, but for weights and masks: scores by fold, and what is unlike the plan."""

    def forge(name, scores, at_input=None, network=None, recipe=None, record=None, **plan):
        planned = load_plan(folder.plan_json)
        parts = {"network": network or {}, "recipe": recipe or {}}
        parts = {part: dataclasses.replace(getattr(planned, part), **fields) for part, fields in parts.items()}
        usual = {
            "plan": dataclasses.replace(planned, **parts, **plan),
            "split": "random",
            "split_digest": digest(to_json(load_splits(folder.splits_json).splits["random"].folds)),
            "seed": 0,
            "micro_batch": 4,
            "device": "cpu",
            "threads": 1,
        }
        run = Run(folder.runs / name)
        run.write_record(RunRecord(**(usual | (record or {}))))
        for fold, cases in scores.items():
            write_scores(run.fold(str(fold)).scores_csv, cases)
            write_json(run.fold(str(fold)).summary_json, {"weights_sha256": "", "scores": None})
        for fold, cases in (at_input or {}).items():
            write_scores(run.fold(str(fold)).input_scores_csv, cases)
        return run

    return forge


def score(name, tp, fp=10, fn=20, labels=("foreground",)):
    counts = Counts(tp=tp, fp=fp, fn=fn, tn=4096 - tp - fp - fn)
    metrics = dict.fromkeys(METRICS, math.nan) | counts.metrics()
    return CaseScore(name=name, labels=dict.fromkeys(labels, LabelScore(counts=counts, metrics=metrics)))


def fold_scores(names, folds=(0, 1, 2), plus=0):
    """Scores that differ from case to case, and with ``plus`` from run to run, not by the same for all."""
    return {
        fold: [score(name, 100 + 7 * i + 31 * fold + plus * (1 + i % 3)) for i, name in enumerate(names[fold])]
        for fold in folds
    }


def give_groups(folder, groups):
    content = json.loads(folder.dataset_json.read_text(encoding="utf-8"))
    folder.dataset_json.write_text(json.dumps(content | {"groups": groups}), encoding="utf-8")


def contests_of(folder, *runs, reference="iaunet"):
    return collect_contests(folder, runs, reference)


def dice(case):
    return case.labels["foreground"].metrics["dice"]


# Runs and folds -----------------------------------------------------------------------------------------------------


def test_folds_with_scores_count_in_the_order_of_their_numbers_with_or_without_weights(forge, names):
    run = forge("many", {10: [score("a", 1)], 2: [score("b", 1)], 1: [score("c", 1)], "all": [score("d", 1)]})
    run.fold("2").weights.write_bytes(b"weights")
    run.fold("1").summary_json.unlink()
    run.fold("3").validation.mkdir(parents=True)

    assert [fold.fold for fold in run.scored_folds()] == ["2", "10"]
    assert [fold.fold for fold in run.finished_folds()] == ["2"]
    assert run.fold("10").is_scored
    assert not run.fold("3").is_scored


def test_a_fold_trained_on_every_case_is_left_out(folder, forge, names):
    run = forge("run", {**fold_scores(names, (0,)), "all": [score("stranger", 1)]})

    [contest] = contests_of(folder, run)

    assert contest.contestants[0].folds == (0,)
    assert "stranger" not in contest.contestants[0].cases("native", range(3))


def test_without_a_scored_fold_the_user_hears_what_to_train(folder, forge):
    with pytest.raises(PredictionError, match="toy has no scored fold yet: run iaunet_train toy 0 first"):
        contests_of(folder, forge("begun", {}))


def test_scores_of_other_weights_are_refused_and_those_without_weights_taken(folder, forge, names):
    run = forge("run", fold_scores(names))
    assert len(contests_of(folder, run)) == 1
    weights = run.fold("1").weights
    weights.write_bytes(b"weights")

    with pytest.raises(PredictionError, match=r"fold_1.weights\.safetensors is not the file that was scored: run iaun"):
        contests_of(folder, run)

    write_json(run.fold("1").summary_json, {"weights_sha256": file_digest(weights)})
    assert contests_of(folder, run)[0].contestants[0].folds == (0, 1, 2)


def test_damaged_scores_and_records_are_named(folder, forge, names):
    run = forge("run", fold_scores(names))
    path = run.fold("2").scores_csv
    text = path.read_text(encoding="utf-8")

    path.write_text(text[:-30], encoding="utf-8")
    with pytest.raises(PredictionError, match=r"scores\.csv, line 7, holds no score"):
        contests_of(folder, run)

    path.write_text(text, encoding="utf-8")
    run.run_json.write_text("{", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"run\.json is no JSON"):
        contests_of(folder, Run(run.root))


@pytest.mark.parametrize("size", ["native", "at_input"])
def test_scores_that_lack_a_label_of_a_case_are_refused(folder, forge, names, size):
    whole = fold_scores(names)
    lacking = {**whole, 1: [*whole[1][:-1], score("case", 5, labels=("polyp",))]}
    run = forge("run", lacking if size == "native" else whole, lacking if size == "at_input" else None)

    message = "does not score foreground of case 'case': run iaunet_train with --val_only for this fold"
    with pytest.raises(PredictionError, match=message):
        contests_of(folder, run)


# Contests -----------------------------------------------------------------------------------------------------------


def test_runs_compete_within_recipe_split_folds_data_and_labels_those_with_most_runs_first(folder, forge, names):
    scores = fold_scores(names)
    of_lesions = {fold: [score(name, 9, labels=("lesion",)) for name in names[fold]] for fold in range(3)}
    runs = [
        forge("other-recipe", scores, recipe={"name": "paper"}),
        forge("other-split", scores, record={"split": "grouped"}),
        forge("other-folds", scores, record={"split_digest": "0"}),
        forge("other-data", scores, fingerprint="0"),
        forge("other-labels", of_lesions, labels=("lesion",)),
        forge("one", scores),
        forge("two", scores, network={"width": 8}),
    ]

    contests = contests_of(folder, *runs)

    members = [[each.run.name for each in contest.contestants] for contest in contests]
    assert members[0] == ["one", "two"]
    assert sorted(members[1:]) == [[f"other-{what}"] for what in ("data", "folds", "labels", "recipe", "split")]
    facts = {names[0]: contest for names, contest in zip(members, contests, strict=True)}
    assert [name for name, contest in facts.items() if not contest.is_current] == ["other-data"]
    assert [name for name, contest in facts.items() if not contest.knows_split] == ["other-folds"]
    assert facts["other-recipe"].recipe == "paper"
    assert facts["other-split"].split == "grouped"
    assert facts["other-labels"].labels == ("lesion",)
    assert {len(contest.contestants[0].cases("native", range(3))) for contest in contests} == {18}


def test_the_split_says_how_many_folds_it_has_and_whether_its_scores_are_inflated(folder, forge, names):
    content = json.loads(folder.splits_json.read_text(encoding="utf-8"))
    for split in content["splits"].values():  # without groups both have the same folds
        split["inflated"] = "inflated: 4 groups are spread"
    folder.splits_json.write_text(json.dumps(content), encoding="utf-8")

    [contest] = contests_of(folder, forge("run", fold_scores(names, (0,))))

    assert (contest.n_folds, contest.inflated, contest.knows_split) == (3, "inflated: 4 groups are spread", True)
    assert not contest.tables[0].standings[0].is_complete


def test_of_a_split_that_is_not_known_the_scored_folds_tell_what_they_can(folder, forge, names):
    run = forge("run", fold_scores(names, (0, 1)), record={"split_digest": "0"})
    write_json(run.fold("1").summary_json, {"weights_sha256": "", "inflated": "inflated: groups are spread"})

    [contest] = contests_of(folder, run)

    assert (contest.n_folds, contest.inflated, contest.knows_split) == (2, "inflated: groups are spread", False)


def test_runs_are_compared_without_the_plan_and_the_splits_of_today(folder, forge, names):
    runs = [forge("one", fold_scores(names)), forge("two", fold_scores(names), network={"name": "iaunet"})]
    folder.plan_json.unlink()
    folder.splits_json.write_text("{", encoding="utf-8")

    [contest] = contests_of(folder, *runs)

    assert (contest.is_current, contest.knows_split, contest.n_folds) == (False, False, 3)
    assert contest.reference.run.name == "two"


def test_rows_have_the_papers_order_then_strangers_then_settings(folder, forge, names):
    networks = ["my_package:net", "iaunet", "unext", "swin_unet", "resunet", "attention_unet", "unet"]
    runs = [forge(f"run-{i}", fold_scores(names), network={"name": name}) for i, name in enumerate(networks)]
    runs.append(forge("run-mean", fold_scores(names), network={"name": "iaunet", "options": {"max_keys": 256}}))

    [contest] = contests_of(folder, *runs)

    paper = ["U-Net", "Att-UNet", "ResUNet", "Swin-UNet", "UNeXt", "IAU-Net"]
    assert [each.title for each in contest.contestants] == [*paper, "IAU-Net (max_keys 256)", "my_package:net"]
    assert [each.contestant.title for each in contest.tables[0].standings] == [
        each.title for each in contest.contestants
    ]


def test_titles_tell_the_options_that_the_plan_has_not_and_the_run_where_that_is_not_enough(folder, forge, names):
    content = json.loads(folder.plan_json.read_text(encoding="utf-8"))
    content["network"] = {"name": "iaunet", "width": 4, "depth": 3, "options": {"max_keys": 256, "variant": "paper5"}}
    folder.plan_json.write_text(json.dumps(content), encoding="utf-8")
    scores = fold_scores(names)
    options = [{"max_keys": 256, "variant": "paper5"}, {"max_keys": 1024, "variant": "paper5"}, {"max_keys": 256}]
    runs = [forge(f"run{i}", scores, network={"options": each}) for i, each in enumerate(options)]
    runs += [forge("wide", scores, network={"width": 8, "options": options[1]})]

    [contest] = contests_of(folder, *runs)

    titles = {each.run.name: each.title for each in contest.contestants}
    assert titles == {
        "run0": "IAU-Net [run0]",
        "run1": "IAU-Net (max_keys 1024) [run1]",
        "run2": "IAU-Net [run2]",
        "wide": "IAU-Net (max_keys 1024) [wide]",
    }


def test_epochs_are_those_of_the_recipe_unless_hours_set_them(folder, forge, names):
    runs = [forge("recipe", fold_scores(names)), forge("hours", fold_scores(names), record={"epochs": 5})]

    [contest] = contests_of(folder, *runs)

    assert {each.run.name: each.epochs for each in contest.contestants} == {"recipe": 12, "hours": 5}


def test_the_reference_is_a_run_else_the_network_as_planned_else_that_network(folder, forge, names):
    scores = fold_scores(names)
    wide = forge("a-wide", scores, network={"width": 8})
    planned = forge("b-planned", scores)
    other = forge("unet", scores, network={"name": "unext"})

    def reference(wish, *runs):
        [contest] = contests_of(folder, *runs, reference=wish)
        return contest.reference and contest.reference.run.name

    assert reference("a-wide", wide, planned, other) == "a-wide"
    assert reference("unet", wide, planned, other) == "unet"
    assert reference("unet", wide, planned) == "b-planned"
    assert reference("unet", wide) == "a-wide"
    assert reference("iaunet", wide, planned, other) is None


# Tables -------------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_held_out_cases(folder, forge, names):
    groups = {name: f"video {i // 4}" for i, name in enumerate(sorted(sum(names, ())))}
    give_groups(folder, groups)
    scores = fold_scores(names)

    [contest] = contests_of(folder, forge("run", scores))

    [standing] = contest.tables[0].standings
    cases = [case for fold in range(3) for case in scores[fold]]
    of_folds = [fold for fold in range(3) for _ in scores[fold]]
    assert (standing.folds, standing.is_complete, standing.n_cases, standing.n_empty) == ((0, 1, 2), True, 18, 0)
    for metric in PAPER_METRICS:
        values = [case.labels["foreground"].metrics[metric] for case in cases]
        assert standing.means[metric] == summarise(values, [groups[case.name] for case in cases], of_folds)
        assert standing.means[metric] != summarise(values, None, of_folds)  # groups widen the interval
    assert standing.pooled == pool([case.labels["foreground"].counts for case in cases])
    fold_means = [sum(map(dice, scores[fold])) / 6 for fold in range(3)]
    assert standing.means["dice"].mean == pytest.approx(sum(fold_means) / 3)
    variance = sum((mean - sum(fold_means) / 3) ** 2 for mean in fold_means) / 2
    assert standing.means["dice"].sd == pytest.approx(math.sqrt(variance))


def test_figures_of_a_finished_run_are_those_of_its_cross_validation(trained):
    folder = DatasetFolder(trained / "toy")
    run = Run(folder.runs / "unet-best-random")

    [contest] = contests_of(folder, run)

    written = json.loads(run.crossval_json.read_text(encoding="utf-8"))["scores"]["labels"]["foreground"]
    native, *_ = contest.tables
    for metric in PAPER_METRICS:
        assert to_json(native.standings[0].means[metric]) == written["all_cases"][metric]
    assert {metric: native.standings[0].pooled[metric] for metric in PAPER_METRICS} == {
        metric: written["pooled"][metric] for metric in PAPER_METRICS
    }
    assert {table.size for table in contest.tables if table.standings} == {"native", "input"}


def test_a_table_each_label_size_and_set_of_folds(folder, forge, names):
    labels = ("disc", "cup")
    scores = {0: [score(name, 50, labels=labels) for name in names[0]], 1: [score("x", 20, labels=labels)]}
    coding = dataclasses.replace(load_plan(folder.plan_json).coding, kind="values", values=(1, 2), written=(1, 2))
    inference = dataclasses.replace(load_plan(folder.plan_json).inference, thresholds=(0.5, 0.5))
    run = forge("run", scores, {0: scores[0]}, labels=labels, coding=coding, inference=inference)

    [contest] = contests_of(folder, run)

    tables = {(table.label, table.size, table.folds): table.standings for table in contest.tables}
    assert [*tables] == [
        (label, size, folds) for label in labels for size in ("native", "input") for folds in ((0, 1, 2), (1, 2))
    ]
    assert [standing.n_cases for standing in tables["cup", "native", (0, 1, 2)]] == [7]
    assert [standing.n_cases for standing in tables["cup", "native", (1, 2)]] == [1]
    assert [standing.n_cases for standing in tables["disc", "input", (0, 1, 2)]] == [6]
    assert tables["disc", "input", (1, 2)] == ()


@pytest.mark.parametrize(
    ("scored", "fold_sets"),
    [((0,), [(0, 1, 2)]), ((1, 2), [(0, 1, 2)]), ((0, 2), [(0, 1, 2), (1, 2)]), ((0, 1, 2), [(0, 1, 2), (1, 2)])],
)
def test_folds_without_the_first_have_a_table_where_it_and_another_are_scored(folder, forge, names, scored, fold_sets):
    runs = [forge(f"run{fold}", fold_scores(names, (fold,)), network={"width": 4 + fold}) for fold in scored]

    [contest] = contests_of(folder, *runs)

    assert contest.fold_sets == fold_sets


def test_what_is_not_scored_is_left_out_and_said(folder, forge, names):
    runs = [
        forge("first", fold_scores(names, (0,)), network={"name": "unet"}),
        forge("whole", fold_scores(names), network={"name": "unext"}),
    ]

    [contest] = contests_of(folder, *runs)

    every, without_first = (table.standings for table in contest.tables if table.size == "native")
    assert [(row.contestant.run.name, row.folds, row.is_complete, row.n_cases) for row in every] == [
        ("first", (0,), False, 6),
        ("whole", (0, 1, 2), True, 18),
    ]
    assert [(row.contestant.run.name, row.folds, row.is_complete, row.n_cases) for row in without_first] == [
        ("whole", (1, 2), True, 12)
    ]


def test_runs_are_tested_on_the_cases_both_held_out_group_by_group(folder, forge, names):
    groups = {name: f"patient {i // 2}" for i, name in enumerate(sum(names, ()))}
    give_groups(folder, groups)
    reference, other = fold_scores(names, (0, 1)), fold_scores(names, (1, 2), plus=9)
    other[1] = other[1][::-1]

    [contest] = contests_of(
        folder, forge("unet", reference), forge("other", other, network={"name": "unext"}), reference="unet"
    )

    of_reference, of_other = contest.tables[0].standings
    assert (of_reference.tests, of_reference.adjusted) == ({}, {})
    theirs = {case.name: dice(case) for case in reference[1]}
    differences = [dice(case) - theirs[case.name] for case in other[1]]
    expected = sign_flip_test(differences, [groups[case.name] for case in other[1]])
    assert of_other.tests["dice"] == expected
    assert (expected.n_cases, expected.n_groups, expected.exact, expected.p) == (6, 3, True, 0.25)
    assert of_other.tests["dice"].mean_difference == pytest.approx(sum(differences) / 6)
    assert of_other.tests["dice"].mean_difference > 0


def test_runs_without_common_cases_are_not_tested_and_do_not_count_for_holm(folder, forge, names):
    runs = [
        forge("unet", fold_scores(names, (0, 1))),
        forge("apart", fold_scores(names, (2,), plus=5), network={"name": "resunet"}),
        forge("better", fold_scores(names, plus=9), network={"name": "unext"}),
    ]

    [contest] = contests_of(folder, *runs, reference="unet")

    rows = {row.contestant.run.name: row for row in contest.tables[0].standings}
    assert rows["apart"].tests["dice"].n_cases == 0
    assert math.isnan(rows["apart"].adjusted["dice"])
    assert rows["better"].adjusted["dice"] == rows["better"].tests["dice"].p == 2 / 2**12


def test_p_values_are_corrected_for_the_other_rows_metric_by_metric(folder, forge, names):
    mixed = fold_scores(names)
    mixed = {fold: [score(case.name, 100 + (-1) ** i * 9 * i) for i, case in enumerate(mixed[fold])] for fold in mixed}
    runs = [
        forge("unet", fold_scores(names)),
        forge("better", fold_scores(names, plus=9), network={"name": "unext"}),
        forge("mixed", mixed, network={"name": "resunet"}),
        forge("worse", fold_scores(names, plus=-4), network={"name": "swin_unet"}),
    ]

    [contest] = contests_of(folder, *runs, reference="unet")

    rows = {row.contestant.run.name: row for row in contest.tables[0].standings if row.tests}
    assert rows.keys() == {"better", "mixed", "worse"}
    for metric in PAPER_METRICS:
        expected = holm({name: row.tests[metric].p for name, row in rows.items()})
        assert {name: row.adjusted[metric] for name, row in rows.items()} == expected
    # 18 cases that each stand alone: more flips than are counted, so they are drawn, and none is as extreme
    assert rows["better"].tests["dice"].p <= 2 / 10_001
    assert rows["better"].adjusted["dice"] >= 2 * rows["better"].tests["dice"].p


def test_undefined_values_are_left_out_and_counted_and_empty_truth_as_well(folder, forge, names):
    scores = fold_scores(names)
    scores[0][0] = score(names[0][0], 0, fp=0, fn=30)  # nothing predicted: no precision
    scores[1][1] = score(names[1][1], 0, fp=0, fn=0)  # nothing there either: no precision, no sensitivity
    reference = fold_scores(names, plus=3)

    [contest] = contests_of(
        folder, forge("unet", reference), forge("other", scores, network={"name": "unext"}), reference="unet"
    )

    _, row = contest.tables[0].standings
    assert row.n_empty == 1
    assert [row.means[metric].n_left_out for metric in PAPER_METRICS] == [0, 0, 2, 1]
    assert [row.tests[metric].n_cases for metric in PAPER_METRICS] == [18, 18, 16, 17]
    defined = [case.labels["foreground"].metrics["precision"] for fold in scores.values() for case in fold]
    defined = [value for value in defined if not math.isnan(value)]
    assert row.means["precision"].mean == pytest.approx(sum(defined) / 16)
