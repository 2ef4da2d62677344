import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iaunet.errors import PlanError
from iaunet.planners.folds import Fold, Split, Splits, find_split, load_splits, make_splits, save_splits
from iaunet.records import from_json, to_json

NAMES = [f"c{i:03d}" for i in range(100)]


def held_out(split):
    return {name: fold for fold, cases in enumerate(split.folds) for name in cases.validation}


def assert_is_a_division(split, names):
    """Every case is held out once, and trained on in every other fold."""
    assert sorted(name for fold in split.folds for name in fold.validation) == sorted(names)
    for fold in split.folds:
        assert fold.validation
        assert not {*fold.train} & {*fold.validation}
        assert {*fold.train, *fold.validation} == {*names}


@st.composite
def datasets(draw):
    """Names with foreground shares, groups or none, byte-identical and nearly equal cases, and a number of folds."""
    names = NAMES[: draw(st.integers(10, 40))]
    shares = draw(st.lists(st.sampled_from([0, 0.01, 0.1, 0.3]), min_size=len(names), max_size=len(names)))
    patients = draw(st.lists(st.integers(0, 12), min_size=len(names), max_size=len(names)))
    sets = st.lists(st.sampled_from(names), min_size=2, max_size=4, unique=True).map(tuple)
    exact, near = draw(st.lists(sets, max_size=2)), draw(st.lists(sets, max_size=3))
    groups = {name: f"p{patient}" for name, patient in zip(names, patients, strict=True)}
    return names, shares, draw(st.sampled_from([groups, {}])), exact, near, draw(st.integers(2, 5))


@given(datasets(), st.data())
def test_folds_hold_each_case_out_once_and_keep_together_what_belongs_together(case, fingerprint, drawn, data):
    names, shares, groups, exact, near, n_folds = drawn
    cases = [case(name, share=share) for name, share in zip(names, shares, strict=True)]
    measured = fingerprint(cases, exact_duplicates=tuple(exact), near_duplicates=tuple(near))
    try:
        splits = make_splits(measured, groups, n_folds)
    except PlanError as fault:
        assert f"too few for {n_folds} folds" in str(fault)
        return

    for split in splits.splits.values():
        assert len(split.folds) == n_folds
        assert_is_a_division(split, names)
        for group in exact:
            assert len({held_out(split)[name] for name in group}) == 1
    if "grouped" in splits.splits:
        fold_of = held_out(splits.splits["grouped"])
        for group in near:
            assert len({fold_of[name] for name in group}) == 1
        for patient in set(groups.values()):
            assert len({fold_of[name] for name, group in groups.items() if group == patient}) == 1
    assert make_splits(measured, groups, n_folds) == splits
    assert from_json(Splits, json.loads(json.dumps(to_json(splits)))) == splits


def test_each_fold_has_its_share_of_small_large_and_empty_masks(case, fingerprint):
    rng = np.random.default_rng(0)
    shares = {name: 0 if i % 10 == 0 else float(rng.lognormal(-2.5, 0.8)) for i, name in enumerate(NAMES)}

    split = make_splits(fingerprint([case(name, share=shares[name]) for name in NAMES]), {}).splits["random"]

    means = [np.mean([shares[name] for name in fold.validation]) for fold in split.folds]
    assert [len(fold.validation) for fold in split.folds] == [20] * 5
    assert max(means) / min(means) < 1.5
    assert [sum(shares[name] == 0 for name in fold.validation) for fold in split.folds] == [2] * 5


def test_labels_are_spread_over_the_folds(case, fingerprint):
    rare = {*NAMES[:10]}
    label = case("x").labels[0]
    cases = [dataclasses.replace(case(name), labels=(label, label if name in rare else None)) for name in NAMES]

    split = make_splits(fingerprint(cases, labels=("disc", "cup")), {}).splits["random"]

    assert [len(rare & {*fold.validation}) for fold in split.folds] == [2] * 5


def test_groups_of_unlike_size_make_folds_of_like_size(case, fingerprint):
    patients = np.repeat(np.arange(14), [25, 20, 12, 10, 8, 5, 5, 4, 3, 3, 2, 1, 1, 1])
    groups = {name: str(patient) for name, patient in zip(NAMES, patients, strict=True)}

    splits = make_splits(fingerprint([case(name) for name in NAMES]), groups).splits

    assert max(len(fold.validation) for fold in splits["grouped"].folds) <= 25
    assert min(len(fold.validation) for fold in splits["grouped"].folds) >= 17
    assert splits["grouped"].inflated == ""
    assert splits["random"].inflated == "inflated: 11 of 14 groups are spread over training and validation"


def test_groups_of_one_case_each_inflate_nothing(case, fingerprint):
    splits = make_splits(fingerprint([case(name) for name in NAMES]), {name: name for name in NAMES}).splits

    assert [split.inflated for split in splits.values()] == ["", ""]


def test_folds_do_not_follow_the_order_of_names(case, fingerprint):
    split = make_splits(fingerprint([case(name) for name in NAMES]), {}).splits["random"]

    assert all({*fold.validation} & {*NAMES[:30]} and {*fold.validation} & {*NAMES[70:]} for fold in split.folds)


def test_near_duplicates_mark_random_as_inflated_and_byte_identical_images_do_not(case, fingerprint):
    cases = [case(name) for name in NAMES[:20]]
    near = make_splits(fingerprint(cases, near_duplicates=(("c000", "c001"),)), {}).splits
    exact = make_splits(fingerprint(cases, exact_duplicates=(("c000", "c001"),)), {}).splits

    assert near["random"].inflated == "inflated: near duplicates leave 19 of 20 cases independent"
    assert exact["random"].inflated == ""


@pytest.mark.parametrize(
    ("n_cases", "n_folds", "groups", "exact", "message"),
    [
        (3, 5, {}, (), "3 cases are too few for 5 folds: use --folds 3, or add 2 more"),
        (1, 5, {}, (), "1 cases are too few for 5 folds: add 4 more"),
        (10, 1, {}, (), "--folds 1 is too few: give 2 or more"),
        (6, 5, {}, (("c000", "c001", "c002"),), "4 different images are too few for 5 folds: use --folds 4, or add 1"),
        (
            10,
            5,
            {name: name[-1] in "02468" for name in NAMES[:10]},
            (),
            "2 groups are too few for 5 folds: use --folds 2",
        ),
    ],
)
def test_too_little_for_the_folds_says_what_is_possible(case, fingerprint, n_cases, n_folds, groups, exact, message):
    measured = fingerprint([case(name) for name in NAMES[:n_cases]], exact_duplicates=exact)

    with pytest.raises(PlanError, match=message):
        make_splits(measured, {name: str(group) for name, group in groups.items()}, n_folds)


def test_near_duplicates_that_leave_too_few_parts_leave_out_only_the_grouped_split(case, fingerprint):
    measured = fingerprint([case(name) for name in NAMES[:6]], near_duplicates=(("c000", "c001", "c002"),))

    splits = make_splits(measured, {}, 5)

    assert [*splits.splits] == ["random"]
    with pytest.raises(
        PlanError, match=r"split 'grouped' could not be made: groups and near duplicates leave 4 ind.* "
    ):
        find_split(splits, "grouped", NAMES[:6], {})


@settings(max_examples=40)
@given(st.sets(st.sampled_from(NAMES), min_size=20), st.sets(st.sampled_from(NAMES), min_size=20))
def test_known_cases_keep_their_fold_when_cases_come_and_go(case, fingerprint, before, after):
    def splits_of(names, known=None):
        groups = {name: str(int(name[1:]) // 3) for name in names}
        return make_splits(fingerprint([case(name) for name in sorted(names)]), groups, 5, known).splits

    old = splits_of(before)
    known = {name: [fold.validation for fold in split.folds] for name, split in old.items()}
    new = splits_of(after, known)

    for name, split in new.items():
        assert_is_a_division(split, after)
        kept = {case for case in before & after if held_out(old[name])[case] == held_out(split)[case]}
        a_fold_is_gone = any(not {*fold.validation} & after for fold in old[name].folds)
        assert a_fold_is_gone or kept == before & after


def test_folds_are_made_anew_when_all_cases_of_one_are_gone(case, fingerprint):
    known = {"random": [NAMES[:2], NAMES[2:4], NAMES[4:6], NAMES[6:8], NAMES[8:10]]}

    split = make_splits(fingerprint([case(name) for name in NAMES[:8]]), {}, 5, known).splits["random"]

    assert_is_a_division(split, NAMES[:8])


def test_a_case_that_joins_two_known_groups_takes_them_to_the_fold_of_most(case, fingerprint):
    measured = fingerprint([case(name) for name in NAMES[:20]], near_duplicates=(("c000", "c001", "c002", "c019"),))
    known = {"grouped": [NAMES[:2], NAMES[2:6], NAMES[6:10], NAMES[10:14], NAMES[14:19]]}

    split = make_splits(measured, {}, 5, known).splits["grouped"]

    assert {held_out(split)[name] for name in ("c000", "c001", "c002", "c019")} == {0}
    assert held_out(split)["c018"] == 4


@pytest.fixture
def splits(case, fingerprint):
    return make_splits(fingerprint([case(name) for name in NAMES[:20]]), {name: name[-1] for name in NAMES[:20]})


def test_splits_survive_their_file_and_are_found_by_name(splits, tmp_path):
    save_splits(splits, tmp_path / "splits.json")

    assert load_splits(tmp_path / "splits.json") == splits
    assert find_split(splits, "grouped", NAMES[:20], {}) == splits.splits["grouped"]
    with pytest.raises(PlanError, match=r"is missing: run iaunet_plan_and_preprocess again"):
        load_splits(tmp_path / "nowhere.json")


def test_an_unknown_split_is_answered_with_the_known_ones(splits):
    with pytest.raises(PlanError, match=r"split 'mine' is not known: give random, grouped or a JSON file with a list"):
        find_split(splits, "mine", NAMES[:20], {})


@pytest.fixture
def find_in_file(splits, tmp_path):
    def find_in_file(content):
        path = tmp_path / "splits final.json"
        path.write_text(json.dumps(content))
        return find_split(splits, str(path), NAMES[:4], {})

    return find_in_file


def test_a_file_of_nnunet_is_a_split_by_the_name_of_the_file(find_in_file):
    split = find_in_file([{"train": ["c000", "c001"], "val": ["c002"]}, {"train": ["c002"], "val": ["c000", "c003"]}])

    assert (split.name, split.inflated) == ("splits final", "")
    assert held_out(split) == {"c002": 0, "c000": 1, "c003": 1}
    assert split.folds[0].train == ("c000", "c001")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"holds no list of folds: give a list of \{\"train\": \[names\], \"val\": \[names\]\}"),
        ([], "holds no list of folds"),
        ([3], "fold 0 lacks train or val: give a list of"),
        ([{"train": ["c000"]}], "fold 0 lacks train or val"),
        ([{"train": "c000", "val": ["c001"]}], "fold 0: train is 'c000': give a list in brackets: give a list of"),
        ([{"train": ["c000"], "val": [1]}], r"fold 0: validation\[0\] is 1: give a text in quotes"),
        ([{"train": ["c000"], "val": ["c001", "x"]}], "fold 0 names x, which is no case of the data set: correct it"),
        ([{"train": ["c000", "c001"], "val": ["c001"]}], "fold 0 trains on c001 and holds it out: correct it"),
        ([{"train": [], "val": ["c001"]}], "fold 0 has nothing to train on or to hold out"),
        ([{"train": ["c001"], "val": []}], "fold 0 has nothing to train on or to hold out"),
        (
            [{"train": ["c000"], "val": ["c001"]}, {"train": ["c000"], "val": ["c002", "c001"]}],
            "fold 1 holds c001 out a second time: hold each case out once",
        ),
    ],
)
def test_each_fault_of_a_split_file_is_named(find_in_file, content, message):
    with pytest.raises(PlanError, match=rf"splits final\.json:? {message}"):
        find_in_file(content)


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (Fold(train=("c000",), validation=("x",)), "names x, which is no case of the data set"),
        (Fold(train=("c000",), validation=("c000",)), "trains on c000 and holds it out"),
        (Fold(train=(), validation=("c000",)), "has nothing to train on or to hold out"),
    ],
)
def test_each_fault_of_an_own_split_is_named(fold, message):
    splits = Splits(splits={"random": Split(name="random", inflated="", folds=(fold,))})

    with pytest.raises(PlanError, match=f"split 'random': fold 0 {message}: run iaunet_plan_and_preprocess again"):
        find_split(splits, "random", NAMES, {})


def test_a_split_file_that_is_not_there_is_named(splits):
    with pytest.raises(PlanError, match=r"nowhere\.json is missing: check the path"):
        find_split(splits, "nowhere.json", NAMES, {})


def test_a_split_file_that_shares_groups_is_marked_inflated(splits, tmp_path):
    path = tmp_path / "mine.json"
    fold = {"train": list(NAMES[:10]), "val": list(NAMES[10:20])}
    path.write_text(json.dumps([fold]), encoding="utf-8")
    shared = {name: str(i % 5) for i, name in enumerate(NAMES[:20])}
    apart = {name: str(i // 10) for i, name in enumerate(NAMES[:20])}

    assert find_split(splits, str(path), NAMES[:20], shared).inflated.startswith("inflated: 5 groups are spread")
    assert find_split(splits, str(path), NAMES[:20], apart).inflated == ""
