from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from iaunet.errors import DatasetError, PredictionError
from iaunet.inference.evaluation import judge_sets
from iaunet.inference.mask_sets import TRUTH, join_sets, parse_set, parse_sets, score_sets


def disc(radius, centre=(24, 30)):
    rows, columns = np.ogrid[:48, :64]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2


@pytest.fixture
def write(tmp_path):
    """Writes a set of masks, a disc a case; gives its folder."""

    def write(name, radii, value=255, first=0):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number, radius in enumerate(radii, start=first):
            Image.fromarray((disc(radius) * value).astype(np.uint8)).save(folder / f"case_{number}.png")
        return folder

    return write


def on_truth(sets, **options):
    """Each set scored on the one called `TRUTH`."""
    names = [name for name in sets if name != TRUTH]
    return score_sets(sets, [TRUTH], [(name, TRUTH) for name in names], "none", **options)


def among(raters, **models):
    sets = {**raters, **models}
    first, *others = raters
    pairings = [(first, other) for other in others] + [(model, rater) for model in models for rater in raters]
    return score_sets(sets, [*raters], pairings, "none")


def dice_of(scored, first, second=TRUTH):
    return [score.labels["foreground"].metrics["dice"] for score in scored.scores[first, second]]


def dice(left, right):
    return 2 * (disc(left) & disc(right)).sum() / (disc(left).sum() + disc(right).sum())


def told(problems, level):
    return [(problem.file, problem.what) for problem in problems if problem.level == level]


# Names --------------------------------------------------------------------------------------------------------------


def test_a_folder_is_named_or_called_by_its_last_part(tmp_path):
    sets = parse_sets([f"U-Net={tmp_path}", str(tmp_path / "fold 1" / "v1.2"), "our net+post=masks"])

    assert [*sets.items()] == [
        ("U-Net", tmp_path),
        ("v1.2", tmp_path / "fold 1" / "v1.2"),
        ("our net+post", Path("masks")),
    ]


def test_a_folder_with_an_equals_sign_in_its_path_is_taken_as_it_is(tmp_path, monkeypatch):
    there = tmp_path / "lr=0.1" / "masks"
    there.mkdir(parents=True)
    (tmp_path / "epochs=5").mkdir()
    monkeypatch.chdir(tmp_path)

    assert parse_set(str(there)) == ("masks", there)
    assert parse_set(f"net={there}") == ("net", there)
    assert [str(folder) for _, folder in map(parse_set, ("lr=0.1/masks", "epochs=5", "epochs=6"))] == [
        "lr=0.1/masks",
        "epochs=5",
        "6",
    ]


@pytest.mark.parametrize(
    "text", ["=dir", "../a=dir", "a/b=dir", "a\tb=dir", "_a=dir", f"{'x' * 101}=dir", "a\x1b[0m=d"]
)
def test_what_cannot_be_a_file_name_or_is_not_printable_is_no_name(text):
    with pytest.raises(PredictionError, match="cannot be the name of a set of masks: give NAME=DIR with a name of"):
        parse_sets([text])


@pytest.mark.parametrize("texts", [["a=x", "a=y"], ["net=x", "NET=y"], ["x/masks", "y/masks"]])
def test_names_are_unique_on_disks_that_do_not_tell_case(texts):
    with pytest.raises(PredictionError, match=r"two sets of masks are called '(a|NET|masks)': give each"):
        parse_sets(texts)


def test_a_set_of_predictions_cannot_be_called_as_the_truth(tmp_path):
    with pytest.raises(PredictionError, match="two sets of masks are called 'true masks'"):
        join_sets([("True masks", tmp_path), (TRUTH, tmp_path)])


# Values -------------------------------------------------------------------------------------------------------------


def test_each_set_may_write_its_one_label_in_its_own_way(write):
    sets = {"a": write("a", [12, 13], value=1), "b": write("b", [14, 12]), TRUTH: write("t", [12, 12], value=1)}

    scored = on_truth(sets)

    assert scored.understood == "one label: masks of a 0 and 1, true masks 0 and 1, masks of b 0 and 255"
    assert dice_of(scored, "a") == pytest.approx([1, dice(13, 12)])
    assert dice_of(scored, "b") == pytest.approx([dice(14, 12), 1])


def test_a_set_that_lacks_labels_is_read_as_the_others_are():
    """A model that never found label 1 would by itself look like one with a single label."""
    values = {"masks of a": {0: 9, 2: 1}, "masks of b": {0: 9}, "true masks": {0: 9, 1: 1, 2: 1}}

    reading = judge_sets(values, [("masks of a", "true masks"), ("masks of b", "true masks")])

    assert reading.labels == ("label_1", "label_2")
    assert {coding.values for coding in reading.codings.values()} == {(1, 2)}
    assert reading.between("masks of a", "true masks").understood == "labels by value: 1, 2"


def test_only_sets_that_are_scored_on_each_other_must_share_a_label():
    values = {"masks of a": {0: 9, 1: 1}, "masks of b": {0: 9, 2: 1}, "true masks": {0: 9, 1: 1, 2: 1}}

    assert judge_sets(values, [("masks of a", "true masks"), ("masks of b", "true masks")]).labels
    with pytest.raises(PredictionError, match="masks of a hold the labels 1, masks of b 2: write the same values"):
        judge_sets(values, [("masks of a", "masks of b")])


def test_values_that_are_no_labels_name_the_set():
    with pytest.raises(PredictionError, match="masks of b hold 2 values from 0 to 70000, which cannot be labels"):
        judge_sets({"masks of a": {0: 9, 1: 1}, "masks of b": {0: 9, 70000: 1}}, [])


# Cases --------------------------------------------------------------------------------------------------------------


def test_what_a_set_lacks_is_told_and_what_is_common_is_named(write):
    truth = write("t", [12] * 12)
    sets = {"a": write("a", [11] * 12), "b": write("b", [13] * 11), TRUTH: truth}
    write("b", [13], first=20)
    (sets["a"] / "case_2.png").unlink()

    scored = on_truth(sets)

    assert scored.common == tuple(f"case_{number}" for number in (0, 1, *range(3, 11)))  # in natural order
    assert [len(scored.scores[name, TRUTH]) for name in ("a", "b")] == [11, 11]
    assert told(scored.problems, "fault") == [
        (str(truth / "case_2.png"), "has no mask in a"),
        (str(truth / "case_11.png"), "has no mask in b"),
    ]
    assert told(scored.problems, "note") == [
        (str(sets["b"] / "case_20.png"), "is not among all of true masks and is left out")
    ]


def test_a_broken_mask_leaves_its_case_to_the_other_pairings(write):
    raters = {"a": write("a", [12] * 3), "b": write("b", [13] * 3)}
    model = write("m", [14] * 3)
    (model / "case_1.png").write_bytes(b"")

    scored = among(raters, model=model)

    assert scored.common == ("case_0", "case_2")
    assert len(scored.scores["a", "b"]) == 3
    [(file, what)] = told(scored.problems, "fault")  # once, though the model was scored on both
    assert (file, what) == (str(model / "case_1.png"), "file is empty")


def test_cases_are_those_that_every_rater_has(write):
    raters = {"a": write("a", [12] * 3), "b": write("b", [13] * 3, first=1)}

    scored = among(raters, model=write("m", [14] * 2))

    assert scored.common == ("case_1",)
    assert told(scored.problems, "fault") == [(str(raters["a"] / "case_2.png"), "has no mask in model")]
    assert {what for _, what in told(scored.problems, "note")} == {"is not among all of a, b and is left out"}


def test_sets_without_a_common_name_are_refused(write):
    sets = {"a": write("a", [12]), "b": write("b", [12], first=5), TRUTH: write("t", [12, 12])}

    with pytest.raises(PredictionError, match=r"b \(1 masks, the first is case_5\) has none of the cases that all of"):
        on_truth(sets)


def test_sets_that_have_each_some_but_no_case_together_are_refused(write):
    sets = {"a": write("a", [12]), "b": write("b", [12], first=1), TRUTH: write("t", [12, 12])}

    with pytest.raises(PredictionError, match="no case can be scored in all of a, b, true masks: evaluate them one by"):
        on_truth(sets)


def test_a_set_of_which_nothing_can_be_read_is_refused(write):
    sets = {"a": write("a", [12]), "b": write("b", [12]), TRUTH: write("t", [12])}
    (sets["b"] / "case_0.png").write_bytes(b"x")

    with pytest.raises(PredictionError, match=r"none of the 1 pairs of masks can be scored; the first: .*case_0\.png"):
        on_truth(sets)


def test_a_folder_that_does_not_exist_is_named(write, tmp_path):
    with pytest.raises(DatasetError, match="nowhere"):
        on_truth({"a": tmp_path / "nowhere", TRUTH: write("t", [12])})


@pytest.mark.parametrize(("n_spaced", "unit"), [(2, "mm"), (1, "px")])
def test_distances_are_in_mm_where_every_mask_tells_its_spacing(tmp_path, n_spaced, unit):
    block = np.zeros((20, 24, 8), np.uint8)
    block[5:13, 6:16, 2:5] = 1
    spaced = np.diag([0.5, 0.75, 4.0, 1.0])
    for name in ("a", "b", "t"):
        (tmp_path / name).mkdir()
        for number in range(n_spaced):
            moved = np.roll(block, 3 if name == "b" else 0, axis=0)
            nib.save(nib.Nifti1Image(moved, spaced), tmp_path / name / f"{number}.nii.gz")
        for number in range(n_spaced, 2):
            Image.fromarray(disc(9).astype(np.uint8)).save(tmp_path / name / f"{number}.png")

    scored = on_truth({"a": tmp_path / "a", "b": tmp_path / "b", TRUTH: tmp_path / "t"})

    assert scored.unit == unit
    assert scored.scores["b", TRUTH][0].labels["foreground"].metrics["hd95"] == {"mm": 1.5, "px": 3.0}[unit]


def test_the_number_of_workers_changes_nothing(write):
    sets = {"a": write("a", range(3, 20)), "b": write("b", range(4, 21)), TRUTH: write("t", range(5, 22))}

    assert repr(on_truth(sets, workers=2)) == repr(on_truth(sets, workers=1))
