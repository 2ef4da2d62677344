import csv
import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from iaunet.errors import PredictionError
from iaunet.inference.crossval import summarise
from iaunet.inference.evaluate_command import main
from iaunet.inference.evaluation import evaluate_folders
from iaunet.inference.permutation import holm, sign_flip_test
from iaunet.inference.scores import read_scores
from iaunet.inference.set_comparison import (
    AMONG_RATERS,
    RATER_METRICS,
    SYMMETRIC,
    compare_predictions,
    compare_raters,
    kappa,
)
from iaunet.inference.set_tables import CSV_COLUMNS, describe_comparison, format_comparison, format_figures
from iaunet.metrics import METRICS, Counts
from iaunet.workspace import LOCK

GROUPS = r"(\d+)_"


def disc(radius, centre=(24, 30)):
    rows, columns = np.ogrid[:48, :64]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2


@pytest.fixture
def write(tmp_path):
    """Writes a set of masks of twelve groups of two cases, discs off the middle by ``seed``; gives its folder."""

    def write(name, seed, grow=0.0, value=255):
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(seed)
        for group in range(12):
            for frame in range(2):
                mask = disc(10 + grow + rng.uniform(-2, 2), centre=(24 + rng.uniform(-2, 2), 30))
                Image.fromarray((mask * value).astype(np.uint8)).save(folder / f"{group}_{frame}.png")
        return folder

    return write


@pytest.fixture
def models(write):
    return {"good": write("good", 1), "fair": write("fair", 2, grow=2), "poor": write("poor", 3, grow=6)}


@pytest.fixture
def truth(write):
    return write("truth", 0, value=1)


@pytest.fixture
def raters(write):
    return {"Anna": write("Anna", 4), "Ben": write("Ben", 5, grow=1, value=1), "Cem": write("Cem", 6, grow=-1)}


def dice(folder, truth):
    return [score.labels["foreground"].metrics["dice"] for score in evaluate_folders(folder, truth, GROUPS).scores]


def difference(comparison, first, second, metric="dice"):
    [found] = [d for d in comparison.differences if (d.first, d.second, d.metric) == (first, second, metric)]
    return found


def match(comparison, first, second):
    [found] = [m for m in comparison.matches if (m.first, m.second) == (first, second)]
    return found


GROUP_OF_CASE = [group for group in range(12) for _ in range(2)]


# Several models on one truth ----------------------------------------------------------------------------------------


def test_each_set_scores_what_it_scores_alone(models, truth):
    comparison = compare_predictions(models, truth, GROUPS)

    for name, folder in models.items():
        alone = evaluate_folders(folder, truth, GROUPS).summary.labels["foreground"]
        together = match(comparison, name, "true masks")
        assert repr(together.means["foreground"]) == repr(alone.all_cases)
        assert together.pooled["foreground"] == alone.pooled
    assert comparison.n_groups == 12
    assert (comparison.failures, comparison.raters) == ([], ())


def test_every_two_sets_are_tested_by_case_and_group_and_corrected_together(models, truth):
    comparison = compare_predictions(models, truth, GROUPS)

    scores = {name: np.array(dice(folder, truth)) for name, folder in models.items()}
    pairs = [("good", "fair"), ("good", "poor"), ("fair", "poor")]
    tests = {pair: sign_flip_test(scores[pair[0]] - scores[pair[1]], GROUP_OF_CASE) for pair in pairs}
    adjusted = holm({" ".join(pair): test.p for pair, test in tests.items()})
    for pair in pairs:
        found = difference(comparison, *pair)
        assert found.test == tests[pair]
        assert found.adjusted == adjusted[" ".join(pair)]
        assert found.summary.mean == pytest.approx(found.test.mean_difference)
        interval = summarise(scores[pair[0]] - scores[pair[1]], GROUP_OF_CASE)
        assert (found.summary.low, found.summary.high) == (interval.low, interval.high)
    assert difference(comparison, "good", "poor").adjusted < 0.01
    assert {d.metric for d in comparison.differences} == set(METRICS)
    assert len(comparison.differences) == 3 * len(METRICS)


def test_a_set_does_not_differ_from_itself(models, truth):
    comparison = compare_predictions({"a": models["good"], "b": models["good"]}, truth, GROUPS)

    found = difference(comparison, "a", "b")
    assert (found.summary.mean, found.summary.low, found.summary.high) == (0, 0, 0)
    assert (found.test.p, found.adjusted) == (1, 1)


def test_only_cases_that_all_have_are_compared_and_the_scores_of_the_others_kept(models, truth):
    (models["fair"] / "3_1.png").unlink()

    comparison = compare_predictions(models, truth, GROUPS)

    assert "3_1" not in comparison.cases
    assert len(comparison.cases) == 23
    assert len(comparison.scores["good", "true masks"]) == 24
    assert match(comparison, "good", "true masks").means["foreground"]["dice"].n_defined == 23
    assert difference(comparison, "good", "poor").test.n_cases == 23


def test_the_order_of_cases_does_not_depend_on_what_a_set_lacks(models, truth):
    """The scores of two sets are matched by name, not by place."""
    (models["good"] / "0_0.png").unlink()
    (models["poor"] / "11_1.png").unlink()

    comparison = compare_predictions(models, truth, GROUPS)

    expected = np.subtract(dice(models["fair"], truth)[1:-1], dice(models["poor"], truth)[1:])
    assert difference(comparison, "fair", "poor").summary.mean == pytest.approx(expected.mean())


def test_without_groups_each_case_is_its_own(models, truth):
    comparison = compare_predictions(models, truth, "none")

    assert (comparison.n_groups, difference(comparison, "good", "fair").test.n_groups) == (0, 24)
    assert "no groups: optimistic" in "\n".join(describe_comparison(comparison))


# Raters -------------------------------------------------------------------------------------------------------------


def test_agreement_of_every_two_raters_is_their_score_on_each_other(raters):
    comparison = compare_raters(raters, {}, GROUPS)

    assert [(m.first, m.second) for m in comparison.matches] == [("Anna", "Ben"), ("Anna", "Cem"), ("Ben", "Cem")]
    expected = evaluate_folders(raters["Anna"], raters["Ben"], GROUPS).summary.labels["foreground"].all_cases
    found = match(comparison, "Anna", "Ben").means["foreground"]
    assert repr({name: found[name] for name in METRICS}) == repr(expected)
    assert comparison.differences == ()


def test_symmetric_metrics_are_and_precision_and_sensitivity_change_places(raters):
    names = ["Anna", "Ben"]
    there = compare_raters({name: raters[name] for name in names}, {}, GROUPS)
    back = compare_raters({name: raters[name] for name in reversed(names)}, {}, GROUPS)

    means = {name: there.matches[0].means["foreground"][name].mean for name in RATER_METRICS}
    swapped = {name: back.matches[0].means["foreground"][name].mean for name in RATER_METRICS}
    for name in SYMMETRIC:
        assert means[name] == pytest.approx(swapped[name])
    assert means["precision"] == pytest.approx(swapped["sensitivity"])
    assert means["precision"] != pytest.approx(means["sensitivity"])
    assert means["specificity"] != pytest.approx(swapped["specificity"])


def test_models_are_tested_against_what_raters_reach_among_themselves(raters, models):
    comparison = compare_raters(raters, {name: models[name] for name in ("good", "poor")}, GROUPS)

    people = [*raters.values()]
    among = np.mean([dice(people[0], people[1]), dice(people[0], people[2]), dice(people[1], people[2])], axis=0)
    tests = {}
    for name in ("good", "poor"):
        with_raters = np.mean([dice(models[name], folder) for folder in people], axis=0)
        tests[name] = sign_flip_test(with_raters - among, GROUP_OF_CASE)
        found = difference(comparison, f"{name} with raters", AMONG_RATERS)
        assert found.test.p == tests[name].p
        assert found.summary.mean == pytest.approx(tests[name].mean_difference)
    adjusted = holm({name: test.p for name, test in tests.items()})
    assert difference(comparison, "poor with raters", AMONG_RATERS).adjusted == adjusted["poor"] < 0.01
    assert {d.metric for d in comparison.differences} == set(SYMMETRIC)
    assert len(comparison.matches) == 3 + 2 * 3


def test_a_further_rater_who_is_one_of_them_again_does_not_differ(raters):
    pair = {name: raters[name] for name in ("Anna", "Ben")}

    found = difference(compare_raters(pair, {"again": raters["Anna"]}, GROUPS), "again with raters", AMONG_RATERS)

    among = np.array(dice(raters["Anna"], raters["Ben"]))
    assert found.summary.mean == pytest.approx(np.mean((1 + among) / 2 - among))


def test_a_case_where_a_distance_is_undefined_leaves_the_test_of_distances_alone(raters, models):
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(models["good"] / "0_0.png")

    comparison = compare_raters(raters, {"good": models["good"]}, GROUPS)

    assert difference(comparison, "good with raters", AMONG_RATERS, "hd95").test.n_cases == 23
    assert difference(comparison, "good with raters", AMONG_RATERS, "dice").test.n_cases == 24


@pytest.mark.parametrize(
    ("counts", "value"),
    [
        (Counts(tp=20, fp=5, fn=10, tn=15), 0.4),  # Cohen's own kind of table: 0.7 seen, 0.5 by chance
        (Counts(tp=10, tn=30), 1.0),
        (Counts(fp=10, fn=10), -1.0),
        (Counts(tp=4, fp=4, fn=4, tn=4), 0.0),
        (Counts(fp=5, tn=20), 0.0),
    ],
)
def test_kappa_is_agreement_beyond_chance(counts, value):
    assert kappa(counts) == pytest.approx(value)


@pytest.mark.parametrize("counts", [Counts(tn=9), Counts(tp=9), Counts()])
def test_kappa_is_undefined_where_chance_alone_agrees(counts):
    assert math.isnan(kappa(counts))


def test_one_rater_is_refused(raters):
    with pytest.raises(PredictionError, match="agreement takes two people at least: give --raters the folders of two"):
        compare_raters({"Anna": raters["Anna"]}, {}, GROUPS)


def test_a_model_called_like_a_rater_is_refused(raters, models):
    with pytest.raises(PredictionError, match="two sets of masks are called 'anna': give each a name of its own"):
        compare_raters(raters, {"anna": models["good"]}, GROUPS)


# Tables and files ---------------------------------------------------------------------------------------------------


def figures(comparison):
    return list(csv.DictReader(io.StringIO(format_figures(comparison))))


def test_the_csv_holds_every_figure_to_the_last_digit(raters, models):
    comparison = compare_raters(raters, {"good": models["good"]}, GROUPS)

    rows = figures(comparison)

    assert tuple(rows[0]) == CSV_COLUMNS
    assert len(rows) == 6 * len(RATER_METRICS) + len(SYMMETRIC)
    agreement = rows[list(RATER_METRICS).index("kappa")]
    found = match(comparison, "Anna", "Ben")
    assert float(agreement["mean"]) == found.means["foreground"]["kappa"].mean
    assert float(agreement["pooled"]) == found.pooled["foreground"]["kappa"]
    [tested] = [row for row in rows if row["what"] == "difference" and row["metric"] == "dice"]
    expected = difference(comparison, "good with raters", AMONG_RATERS)
    assert (float(tested["p"]), float(tested["p_holm"])) == (expected.test.p, expected.adjusted)
    assert (tested["cases"], tested["groups"]) == ("24", "12")


def test_the_screen_shows_three_matches_abreast_and_every_difference(raters, models):
    lines = describe_comparison(compare_raters(raters, {"good": models["good"]}, GROUPS))

    heads = [line for line in lines if line.startswith("foreground: mean")]
    assert [head.split(maxsplit=5)[-1].split("  ")[-1].strip() for head in heads] == ["Ben and Cem", "good on Cem"]
    assert "24 cases that all sets have, in 12 groups" in lines[0]
    assert lines[1].endswith("the second set; the others are symmetric")
    tested = [line for line in lines if line.startswith("good with raters less raters among themselves")]
    assert len(tested) == len(SYMMETRIC)


def test_markdown_tables_have_equal_columns_and_tell_what_is_symmetric(raters, models):
    (models["good"] / "0_0.png").unlink()

    text = format_comparison(compare_raters(raters, {"good": models["good"]}, GROUPS))

    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [2 + len(RATER_METRICS) + 1, 2 + len(SYMMETRIC)]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert "Precision, sensitivity and specificity are of the first set with the second as truth" in text
    assert "has no mask in good: add it" in text


def command(*options):
    return main([*map(str, options), "--groups", GROUPS, "--workers", "1"])


def test_the_command_compares_several_sets_and_writes_all_of_it(models, truth, tmp_path, capsys):
    named = [f"{name}={folder}" for name, folder in models.items()]

    assert command("--pred", *named[:2], "--pred", named[2], "--truth", truth, "--output", tmp_path / "out") == 0

    out = tmp_path / "out"
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        LOCK,
        "comparison.csv",
        "comparison.md",
        "scores/fair.csv",
        "scores/good.csv",
        "scores/poor.csv",
        "summary.json",
    ]
    comparison = compare_predictions(models, truth, GROUPS)
    assert repr(tuple(read_scores(out / "scores/fair.csv"))) == repr(comparison.scores["fair", "true masks"])
    assert (out / "comparison.csv").read_text() == format_figures(comparison)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sets"] == {**{name: str(folder) for name, folder in models.items()}, "true masks": str(truth)}
    assert summary["differences"][0]["test"]["n_groups"] == 12
    assert "scores" not in summary
    printed = capsys.readouterr().out
    assert "good less fair" in printed
    assert f"written    {out}" in printed


def test_scores_of_other_sets_in_the_output_folder_are_never_mixed_with_these(models, truth, tmp_path, capsys):
    named = [f"{name}={folder}" for name, folder in models.items()]
    given = "--truth", truth, "--output", tmp_path / "out"
    assert command("--pred", *named, *given) == 0

    assert command("--pred", *named[:2], *given) == 2

    assert "scores/poor.csv is of another comparison: remove it, or give another folder with --output" in (
        capsys.readouterr().err
    )
    assert command("--pred", *named, *given) == 0


def test_the_command_compares_raters_without_a_truth(raters, models, tmp_path, capsys):
    (models["good"] / "5_0.png").write_bytes(b"")
    people = [f"{name}={folder}" for name, folder in raters.items()]

    assert command("--raters", *people, "--pred", models["good"], "--output", tmp_path / "out") == 1

    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.csv")) == [
        "comparison.csv",
        "scores/Anna/Ben.csv",
        "scores/Anna/Cem.csv",
        "scores/Ben/Cem.csv",
        *(f"scores/good/{name}.csv" for name in ("Anna", "Ben", "Cem")),
    ]
    printed = capsys.readouterr().out
    assert f"failed     {models['good'] / '5_0.png'}: file is empty" in printed
    assert "compared   23 cases" in printed


def test_one_named_set_is_evaluated_as_one_without_a_name(models, truth, tmp_path):
    assert command("--pred", f"x={models['good']}", "--truth", truth, "--output", tmp_path / "named") == 0
    assert command("--pred", models["good"], "--truth", truth, "--output", tmp_path / "plain") == 0

    for name in ("scores.csv", "summary.json"):
        assert (tmp_path / "named" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_one_folder_may_have_any_name(models, truth, tmp_path):
    odd = models["good"].rename(tmp_path / "_masks (2)=new")

    assert command("--pred", odd, "--truth", truth) == 0


def test_nothing_to_score_is_refused(truth, capsys):
    assert command("--truth", truth) == 2

    assert "there is nothing to score on the truth: give the predicted masks with --pred" in capsys.readouterr().err


def test_a_truth_beside_raters_is_refused(raters, truth, capsys):
    with pytest.raises(SystemExit, match="2"):
        command("--raters", *raters.values(), "--truth", truth)

    assert "not allowed with argument" in capsys.readouterr().err


def test_comparing_imports_no_torch():
    code = "import sys, iaunet.inference.set_tables; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
