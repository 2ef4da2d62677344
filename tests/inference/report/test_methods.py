import dataclasses
import re

import numpy as np
import pytest

from iaunet.detection import detect
from iaunet.inference.expected_dice import ExpectedDice
from iaunet.inference.report.citations import CITATIONS, cited_keys
from iaunet.inference.report.methods import write_methods
from iaunet.networks import NETWORKS
from iaunet.planners.plan import NetworkPlan, Normalisation
from iaunet.planners.recipes import find_recipe


def section(text, title):
    """The paragraph under a heading."""
    return re.search(rf"## {re.escape(title)}\n\n(.*)\n", text)[1]


def with_run(facts, **fields):
    """The facts of a run that differs."""
    run = dataclasses.replace(facts.shown, **fields)
    return dataclasses.replace(facts, runs=(run,), shown=run)


def with_plan(facts, **fields):
    return with_run(facts, plan=dataclasses.replace(facts.shown.plan, **fields))


def test_scores_are_told_with_their_intervals_as_the_facts_hold_them(facts):
    results = section(write_methods(facts), "Results: segmentation")

    dice = facts.scored.summary.labels["polyp"].all_cases["dice"]
    assert f"the mean Dice was {dice.mean:.3f} (95 % CI {dice.low:.3f} to {dice.high:.3f})" in results
    assert results.startswith("4 cases in 2 groups were scored, all 2 folds.")
    assert "HD95 in px 3.50 (95 % CI" not in results  # of one group alone, where there is no interval
    assert "HD95 in px 3.50 (no interval: fewer than two groups)" in results
    assert (
        "(undefined and left out: Precision in 1, Sensitivity in 1, HD95 in 2 and Surface Dice in 2 cases)" in results
    )
    assert "Without the 1 case that had none of it, Dice was 0.463" in results


def test_the_data_are_described_with_their_numbers(facts):
    data = section(write_methods(facts), "Methods: data")

    assert "The data set toy held 4 images (1 channel (grey), uint8)." in data
    assert "2 sizes from 60 x 60 to 64 x 80 pixels (height x width), most often 64 x 64 (3 of 4)" in data
    assert "2 groups" in data
    assert "8.3 % of its pixels marked; 1 had none" in data
    assert "1 case was an exact copy of another. 2 cases were nearly the same as another." in data
    assert re.search(r"\[Where the data come from, .* the citation of the data set\.\]", data)


def test_training_is_described_as_the_plan_of_the_run_has_it(facts):
    recipe = find_recipe("best")
    text = write_methods(with_plan(facts, recipe=recipe))

    training = section(text, "Methods: networks and training")
    assert "a U-Net [@unet], of 3 stages and 4 channels in the first" in training
    assert "trained for 2 epochs on batches of 16 with Adam [@adam] (L2 coefficient 1e-05)" in training
    assert "a learning rate of 0.001 that followed a cosine to zero [@cosine]" in training
    assert "clipped to 12" in training
    assert "moving average of the weights (decay 0.999)" in training
    assert "rotation -180 to 180 degrees (0.5)" in training
    assert "from random weights (seed 3) on cpu (2 threads)" in training


def test_detection_calibration_expected_dice_leakage_and_test_are_told(facts):
    text = write_methods(facts)

    detection = section(text, "Results: detection of lesions")
    assert (
        "Of 4 lesions of polyp, 3 were found (sensitivity 0.750), with 1 false alarm (precision 0.750, F1" in detection
    )
    assert "by thirds of lesion area: small 0.500 and large 1.000" in detection
    assert "Of 1 case without it, 1 had a false alarm." in detection
    reliability = section(text, "Results: calibration and expected Dice")
    assert "calibration error from 0.0833 to 0.0094 and the Brier score from 0.0200 to 0.0100" in reliability
    assert "expected and true Dice of held-out cases was 0.710 (95 % CI 0.600 to 0.800)" in reliability
    assert "1 case was flagged for review: of these the mean Dice was 0.100, that of the others 0.700" in reliability
    assert "a difference of +0.250 (95 % CI +0.100 to +0.300)" in section(text, "Results: random against grouped folds")
    assert "ridge regression" in section(text, "Methods: evaluation and statistics")
    test = section(text, "Results: held-out test")
    assert "A test set of 7 cases" in test
    assert "It was scored once with unet-best-grouped." in test
    prediction = section(text, "Methods: prediction and postprocessing")
    assert "(1.25 to 1.50)" in prediction
    assert "Of 3 candidates" in prediction
    assert "unet-best-grouped was chosen: Dice 0.5, the best of 3 runs. Labels count" in prediction


def test_lesions_are_matched_as_the_methods_say_the_most_pairs_first(facts):
    truth, prediction = np.zeros((2, 1, 120), np.uint8)
    truth[0, :100] = truth[0, 102:114] = 1
    prediction[0, :11] = prediction[0, 12:114] = 1  # the long one: IoU 0.77 with the first lesion

    [summary] = detect([(prediction, truth)], [(1,)])

    assert "the most pairs first, then the highest sum" in write_methods(facts)
    assert (summary.overall.lesions, summary.overall.found, summary.overall.false_alarms) == (2, 2, 0)


def test_what_is_not_known_is_said_or_left_out_and_nothing_is_invented(facts, samples):
    bare = dataclasses.replace(
        facts, **samples.BARE, data=dataclasses.replace(facts.data, n_groups=0, groups_from="none")
    )

    text = write_methods(bare)

    assert "Results: detection" not in text
    assert "Results: calibration" not in text
    assert "random against grouped" not in text
    assert "held-out test" not in text
    assert "temperature" not in text
    assert "nnDetection" not in text
    assert "masks were not postprocessed" in section(text, "Methods: prediction and postprocessing")
    assert "Groups (patients, videos) were not known" in section(text, "Methods: data")
    assert "Groups were not known" in section(text, "Limits")
    assert "Nothing was tested on data of other sites" in section(text, "Limits")
    assert "nan" not in text.lower()
    assert "None" not in text


def test_limits_tell_of_inflated_incomplete_stale_and_shortened_runs(facts):
    scored = dataclasses.replace(facts.scored, inflated="inflated: 2 groups are spread", n_folds=5)
    facts = with_run(
        dataclasses.replace(facts, scored=scored, plan=dataclasses.replace(facts.plan, recipe=find_recipe("paper"))),
        stale="the weights of fold 1 are not those that were scored",
        is_current=False,
    )

    limits = section(write_methods(facts), "Limits")

    assert limits.startswith("The scores are inflated: 2 groups are spread.")
    assert "incomplete: folds 0 and 1 of 5 only" in limits
    assert "not those of its present weights: the weights of fold 1" in limits
    assert "another state of the data" in limits
    assert "was trained for 2 of the 500 epochs" in limits
    assert "chosen among 3 candidates" in limits


def test_groups_are_said_to_be_apart_only_if_the_scores_are_of_grouped_folds_as_they_are_now(facts):
    apart = "cases of one group were never in both"
    inflated = dataclasses.replace(facts, scored=dataclasses.replace(facts.scored, inflated="inflated: 2 groups"))
    random = dataclasses.replace(facts, scored=dataclasses.replace(facts.scored, split="random"))

    said = [
        apart in section(write_methods(each), "Methods: evaluation and statistics")
        for each in (facts, with_run(facts, is_current=False), inflated, random)
    ]

    assert said == [True, False, False, False]


def test_runs_of_an_ensemble_are_each_described(facts, samples):
    plan = dataclasses.replace(facts.plan, network=NetworkPlan(name="resunet", width=8, depth=4))
    other = samples.make_run(plan, ("polyp",), name="other", title="ResUNet", epochs=9)
    chosen = dataclasses.replace(facts.chosen, runs=(facts.shown.name, "other"))
    unused = dataclasses.replace(other, name="unused")

    training = section(
        write_methods(dataclasses.replace(facts, runs=(facts.shown, other, unused), chosen=chosen)),
        "Methods: networks and training",
    )

    assert "Run unet-best-grouped: a U-Net [@unet], of 3 stages and 4 channels" in training
    assert "Run other: a ResUNet [@resunet], of 4 stages and 8 channels" in training
    assert "Of other: It was trained for 9 epochs" in training
    assert "unused" not in training


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"input_mode": "letterbox"}, "brought to 64 x 64 pixels with their aspect kept"),
        ({"input_mode": "resize"}, "stretched to 64 x 64 pixels"),
        ({"input_mode": "tiles", "tile_scale": 0.5}, "resized to 0.5 of their size and cut into overlapping tiles"),
        ({"equal_spacing": True}, "Pixels were made square in mm first."),
        (
            {"normalisation": Normalisation(kind="case", percentiles=(0.5, 99.5))},
            "Each case was clipped to its 0.5 and 99.5 % percentiles and normalised by its own mean",
        ),
        (
            {"normalisation": Normalisation(kind="dataset", mean=(40.0,), sd=(9.5,), windows=((-100.0, 240.0),))},
            "clipped to -100 to 240, and normalised by mean (40) and standard deviation (9.5)",
        ),
    ],
)
def test_preprocessing_is_told_for_every_kind_of_plan(facts, fields, says):
    assert says in section(write_methods(with_plan(facts, **fields)), "Methods: preprocessing")


def test_volumes_are_told_as_volumes_in_mm(facts):
    data = dataclasses.replace(facts.data, n_volumes=4, n_slices=90, spacing_mm=(5.0, 0.7, 0.7))

    text = write_methods(dataclasses.replace(facts, data=data))

    assert "held 4 cases, all of them volumes, with 90 slices" in section(text, "Methods: data")
    assert "spacing of slices, rows and columns was 5, 0.7 and 0.7 mm" in section(text, "Methods: data")
    assert "Volumes were cut into axial slices" in section(text, "Methods: preprocessing")


@pytest.mark.parametrize("network", [*NETWORKS])
def test_every_network_has_words_and_every_citation_an_entry(facts, network):
    text = write_methods(with_plan(facts, network=NetworkPlan(name=network, width=4, depth=3)))

    assert "not part of iaunet" not in text
    prose, bibtex = text.split("## BibTeX")
    cited = cited_keys(prose.replace("`[@key]`", ""))
    assert re.findall(r"^@\w+\{(\w+),", bibtex, re.MULTILINE) == cited
    assert cited


def test_a_strangers_network_is_left_to_the_authors(facts):
    text = write_methods(with_plan(facts, network=NetworkPlan(name="package.module:build", width=4, depth=3)))

    assert r"package.module:build, a network that is not part of iaunet [describe it]" in text


def test_names_are_text_for_markdown(facts):
    label = "<b>*polyp_1*</b> [x](y)"
    summary = dataclasses.replace(facts.scored.summary, labels={label: facts.scored.summary.labels["polyp"]})

    text = write_methods(dataclasses.replace(facts, scored=dataclasses.replace(facts.scored, summary=summary)))

    assert r"\<b\>\*polyp\_1\*\</b\> \[x\](y)" in text
    assert label not in text


def test_an_entry_of_bibtex_has_its_key_and_balanced_braces():
    for key, entry in CITATIONS.items():
        assert re.match(rf"@\w+\{{{key},\n", entry)
        assert entry.count("{") == entry.count("}")
        assert re.search(r"year = \{\d{4}\}", entry)
        assert not re.search(r"[^\\]&", entry)


def test_keys_are_found_once_and_in_order():
    assert cited_keys("a [@b; @a] and [@b], [not], mail@c [@d]") == ["b", "a", "d"]


def test_a_test_set_tells_when_it_was_not_scored_or_not_by_the_present_model(facts):
    unscored = dataclasses.replace(facts.held_out, summary=None, leakage="2 cases are copies of training cases")
    stale = dataclasses.replace(facts.held_out, n_times=2, stale="the model was chosen anew", n_unscored=1)

    told = [
        section(write_methods(dataclasses.replace(facts, held_out=each)), "Results: held-out test")
        for each in (unscored, stale)
    ]

    assert "It has not been scored." in told[0]
    assert "These scores may be too good: 2 cases are copies of training cases." in told[0]
    assert "It was scored 2 times with unet-best-grouped." in told[1]
    assert "1 case of it could not be scored. That is not the present model: the model was chosen anew." in told[1]


def test_a_dice_that_could_not_be_expected_tells_why(facts):
    skipped = dataclasses.replace(facts, expected_dice=ExpectedDice(skipped="under 100 cases"), calibration=None)

    text = write_methods(skipped)

    assert section(text, "Results: calibration and expected Dice") == (
        "The Dice of single images was not predicted: under 100 cases."
    )
    assert "ridge regression" not in text
