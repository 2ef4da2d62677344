import dataclasses
import errno
import os
import shutil

import numpy as np
import pytest

from iaunet.errors import PreprocessingError, WorkspaceError
from iaunet.files import read_mask
from iaunet.preprocessing.arrays import (
    ArrayCase,
    Index,
    PartialArrays,
    Row,
    RowWriter,
    open_arrays,
    remove_old_arrays,
    truth_path,
    write_truth,
)
from iaunet.preprocessing.geometry import Geometry
from iaunet.records import FieldError, from_json, to_json

SIDE = 32


@pytest.fixture
def index():
    return make_index({f"c{i}": 1 for i in range(5)})


def make_index(cases, made_from="digest", prepared="how"):
    """The index of cases with so many slices each; a case's name and slices are what it is made of."""
    geometry = Geometry.of("resize", (40, 50), (SIDE, SIDE))
    array_cases, rows = [], []
    for name, n in cases.items():
        array_cases.append(
            ArrayCase(
                name=name,
                shape=(n, 40, 50),
                spacing_mm=(3.0, 0.5, 0.5) if n > 1 else None,
                image_sha256=f"image of {name}",
                mask_sha256=f"mask of {name}",
                first_row=len(rows),
                n_rows=n,
            )
        )
        rows += (Row(case=name, slice=i, geometry=geometry) for i in range(n))
    return Index(
        made_from=made_from,
        prepared=prepared,
        channels=2,
        input_size=(SIDE, SIDE),
        cases=tuple(array_cases),
        rows=tuple(rows),
    )


@pytest.fixture
def target(tmp_path):
    return tmp_path / "toy" / "preprocessed"


def fill(arrays, rows):
    with RowWriter(arrays.folder, arrays.index.image_shape) as writer:
        for row in rows:
            writer.write(row, *content(row))
            case = next(case for case in arrays.index.cases if row in case.rows)
            write_truth(arrays.folder, case.name, truth_of(case.name, case.shape[0]))
    arrays.mark_done({row: row > 0 for row in rows})


def content(row):
    rng = np.random.default_rng(row)
    image = rng.normal(size=(2, SIDE, SIDE)).astype(np.float32)
    return image, rng.integers(0, 3, (SIDE, SIDE)).astype(np.uint8)


def assert_is_whole(target, index):
    arrays = open_arrays(target, index.made_from)
    assert arrays.index == index
    for row in range(len(index.rows)):
        image, mask = content(row)
        np.testing.assert_array_equal(arrays.images[row], image.astype(np.float16))
        np.testing.assert_array_equal(arrays.masks[row], mask)
    np.testing.assert_array_equal(arrays.foreground, [False, True, True, True, True])
    files = ["done.npy", "images.npy", "index.json", "masks.npy", "truth"]
    assert sorted(path.name for path in target.iterdir()) == files
    assert [path.name for path in target.parent.iterdir()] == ["preprocessed"]
    with pytest.raises(ValueError, match="read-only"):
        arrays.images[0] = 0


def test_filled_arrays_are_opened_as_they_were_written(target, index):
    arrays = PartialArrays(target, index)
    fill(arrays, [3, 0])
    assert not target.exists()
    fill(arrays, [1, 2, 4])
    arrays.finish()

    assert_is_whole(target, index)


def test_a_true_mask_that_a_killed_worker_left_half_written_is_written_again(target, index):
    half = truth_path(PartialArrays(target, index).folder, "c3")
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")

    make_whole(target, index)

    np.testing.assert_array_equal(open_arrays(target, "digest").truth("c3"), truth_of("c3", 1))


def test_rows_of_an_earlier_process_are_kept_and_the_others_are_missing(target, index):
    fill(PartialArrays(target, index), [1, 3])

    again = PartialArrays(target, index)

    assert again.missing_rows() == [0, 2, 4]
    fill(again, [0, 2, 4])
    again.finish()
    assert_is_whole(target, index)


@pytest.mark.parametrize("lost", ["images.npy", "masks.npy", "index.json", "done.npy"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_partial_arrays_that_were_being_made_or_removed_when_killed_are_begun_anew(target, index, lost, how):
    file = PartialArrays(target, index).folder / lost
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    arrays = PartialArrays(target, index)

    assert arrays.missing_rows() == [0, 1, 2, 3, 4]
    fill(arrays, range(5))
    arrays.finish()
    assert_is_whole(target, index)


def test_partial_arrays_of_other_data_are_begun_anew(target, index):
    fill(PartialArrays(target, index), [0, 1])

    for other in (
        dataclasses.replace(index, made_from="other"),
        make_index({f"c{i}": 1 for i in range(4)}),
        make_index({f"c{i}": 1 for i in reversed(range(5))}),
    ):
        assert len(PartialArrays(target, other).missing_rows()) == len(other.rows)


def moments_of_the_last_step(target, index):
    """The folders as a process leaves them that is killed between any two steps of `finish`."""
    whole, partial, old = target, target.with_name("preprocessed.partial"), target.with_name("preprocessed.old")
    arrays = PartialArrays(target, index)
    fill(arrays, range(5))
    yield
    whole.rename(old)
    yield
    partial.rename(whole)
    yield
    shutil.rmtree(old)
    yield


@pytest.mark.parametrize("moment", range(4))
def test_killed_while_the_folders_change_places_the_next_run_ends_with_the_new_arrays(target, index, moment):
    before = dataclasses.replace(index, made_from="earlier")
    first = PartialArrays(target, before)
    fill(first, range(5))
    first.finish()
    steps = moments_of_the_last_step(target, index)
    for _ in range(moment + 1):
        next(steps)

    try:
        open_arrays(target, index.made_from)
        remove_old_arrays(target)
    except PreprocessingError:
        arrays = PartialArrays(target, index)
        assert arrays.missing_rows() == []
        arrays.finish()

    assert_is_whole(target, index)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "preprocessed is missing"),
        (lambda folder: (folder / "index.json").unlink(), r"index\.json is missing"),
        (lambda folder: (folder / "index.json").write_text("{}"), r"index\.json: made_from is missing;"),
        (lambda folder: (folder / "masks.npy").unlink(), "preprocessed cannot be read"),
        (lambda folder: (folder / "images.npy").write_bytes(b"text"), "preprocessed cannot be read"),
        (lambda folder: (folder / "done.npy").unlink(), "preprocessed cannot be read"),
        (lambda folder: np.save(folder / "done.npy", np.zeros(4, np.uint8)), "of another shape or type than its"),
        (lambda folder: np.save(folder / "masks.npy", np.zeros((5, 9, 9), np.uint8)), "of another shape or type"),
        (lambda folder: np.save(folder / "masks.npy", np.array([{}]), allow_pickle=True), "cannot be read"),
        (lambda folder: (folder / "masks.npy").write_bytes(b"PK\3\4" + bytes(99)), "cannot be read"),
        (lambda folder: np.save(folder / "masks.npy", np.zeros((5, SIDE, SIDE), np.int8)), "of another shape or type"),
    ],
)
def test_arrays_that_are_spoiled_are_named_with_the_command_that_makes_them(target, index, spoil, message):
    arrays = PartialArrays(target, index)
    fill(arrays, range(5))
    arrays.finish()
    spoil(target)

    with pytest.raises(PreprocessingError, match=rf"{message}.*run iaunet_plan_and_preprocess toy again"):
        open_arrays(target, "digest")


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("cases", {"first_row": 1}, "cases is 'a'"),
        ("cases", {"n_rows": -1}, "cases is 'a'"),
        ("cases", {"shape": [1, 9, 9]}, "cases is 'a'"),
        ("cases", {"name": "b"}, "cases is 'b'"),
        ("rows", {"slice": -1}, "cases is 'a'"),
        ("rows", {"slice": 9}, "cases is 'a'"),
        ("rows", {"case": "x"}, "cases is 'a'"),
    ],
)
def test_rows_that_are_not_those_of_their_cases_are_refused(part, fields, message):
    content = to_json(make_index({"a": 2, "b": 3}))
    content[part][0] |= fields

    with pytest.raises(FieldError, match=f"{message}: give cases whose rows follow each other and lie in them"):
        from_json(Index, content)


def test_rows_of_no_case_and_cases_of_one_name_are_refused(index):
    with pytest.raises(FieldError, match=rf"rows is {len(index.rows)}: give the 0 rows of the cases"):
        dataclasses.replace(index, cases=())
    twice = make_index({"a": 1})
    again = dataclasses.replace(twice.cases[0], first_row=1)
    with pytest.raises(FieldError, match="cases is 2: give cases of different names"):
        dataclasses.replace(twice, cases=(twice.cases[0], again), rows=twice.rows * 2)


def test_arrays_of_other_data_or_another_plan_are_refused(target, index):
    arrays = PartialArrays(target, index)
    fill(arrays, range(5))
    arrays.finish()

    with pytest.raises(PreprocessingError, match="was made from other data or another plan: run iaunet_plan"):
        open_arrays(target, "other")


def truth_of(name, slices):
    return np.random.default_rng(len(name) + slices).integers(0, 3, (slices, 40, 50)).astype(np.uint8)


def make_whole(target, index, rows=None):
    """Fill and finish the arrays of an index; ``rows`` are those that must be missing, None for all."""
    arrays = PartialArrays(target, index)
    missing = arrays.missing_rows()
    assert missing == (list(range(len(index.rows))) if rows is None else rows)
    fill(arrays, missing)
    arrays.finish()


def test_a_case_is_given_with_its_rows_and_its_truth(target):
    index = make_index({"a": 2, "p 1/ä": 3})
    make_whole(target, index)

    arrays = open_arrays(target, "digest")

    case = arrays.case_input("p 1/ä")
    assert arrays.cases["p 1/ä"].rows == range(2, 5)
    assert case.shape == (3, 40, 50)
    assert [(place.slice, place.geometry.native_size) for place in case.places] == [(i, (40, 50)) for i in range(3)]
    for row, image in zip(range(2, 5), case.rows(), strict=True):
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, content(row)[0].astype(np.float16))
    np.testing.assert_array_equal(arrays.truth("p 1/ä"), truth_of("p 1/ä", 3))
    np.testing.assert_array_equal(arrays.truth("a"), truth_of("a", 2))
    assert arrays.truth("a").dtype == np.uint8


def test_which_rows_have_foreground_is_kept(target, index):
    arrays = PartialArrays(target, index)
    fill(arrays, range(5))
    arrays.mark_done({0: True, 3: False})
    arrays.finish()

    np.testing.assert_array_equal(open_arrays(target, "digest").foreground, [True, True, True, False, True])


def test_cases_that_have_not_changed_are_taken_from_the_arrays_that_are_replaced(target):
    make_whole(target, make_index({"a": 1, "b": 2, "c": 1, "d": 1}))
    before = open_arrays(target, "digest")
    kept = [np.array(before.images[row]) for row in (4, 1, 2)]
    foreground = [bool(before.foreground[row]) for row in (4, 1, 2)]
    del before

    # d and b lie elsewhere, a is another length, c is gone, x is new
    make_whole(target, make_index({"d": 1, "x": 1, "b": 2, "a": 3}, made_from="new"), rows=[1, 4, 5, 6])

    after = open_arrays(target, "new")
    np.testing.assert_array_equal(after.images[[0, 2, 3]], kept)
    np.testing.assert_array_equal(after.foreground[[0, 2, 3]], foreground)
    for name, slices in (("d", 1), ("b", 2), ("x", 1), ("a", 3)):
        np.testing.assert_array_equal(after.truth(name), truth_of(name, slices))
    assert not truth_path(target, "c").exists()


@pytest.mark.parametrize(
    "fields",
    [{"image_sha256": "other"}, {"mask_sha256": None}, {"spacing_mm": (1.0, 1.0, 2.0)}, {"shape": (1, 50, 40)}],
)
def test_a_case_of_other_files_is_prepared_again(target, index, fields):
    make_whole(target, index)
    changed = dataclasses.replace(index.cases[2], **fields)
    cases = (*index.cases[:2], changed, *index.cases[3:])
    row = dataclasses.replace(index.rows[2], geometry=Geometry.of("resize", changed.shape[1:], (SIDE, SIDE)))
    rows = (*index.rows[:2], row, *index.rows[3:])

    make_whole(target, dataclasses.replace(index, made_from="new", cases=cases, rows=rows), rows=[2])


def test_nothing_is_taken_from_arrays_prepared_otherwise(target, index):
    make_whole(target, index)

    make_whole(target, dataclasses.replace(index, made_from="new", prepared="otherwise"))


@pytest.mark.parametrize("lost", ["images.npy", "index.json", "done.npy"])
def test_nothing_is_taken_from_arrays_that_are_spoiled(target, index, lost):
    make_whole(target, index)
    (target / lost).write_bytes(b"text")

    make_whole(target, dataclasses.replace(index, made_from="new"))


def test_killed_while_unchanged_cases_were_taken_over_the_next_run_takes_them_over(target, index):
    partial, aside = target.with_name("preprocessed.partial"), target.with_name("aside")
    new = make_index({"c3": 1, "x": 1, "c1": 1, "c0": 1}, made_from="new")
    fill(PartialArrays(target, new), [3])  # without old arrays, nothing is taken over
    partial.rename(aside)
    make_whole(target, index)
    aside.rename(partial)

    make_whole(target, new, rows=[1])

    arrays = open_arrays(target, "new")
    for row, there in [(0, 3), (1, 1), (2, 1), (3, 3)]:
        np.testing.assert_array_equal(arrays.images[row], content(there)[0].astype(np.float16))
    assert truth_path(target, "c3").exists()


def test_a_case_whose_true_mask_is_gone_is_prepared_again(target, index):
    make_whole(target, index)
    truth_path(target, "c3").unlink()

    make_whole(target, dataclasses.replace(index, made_from="new"), rows=[3])

    np.testing.assert_array_equal(open_arrays(target, "new").truth("c3"), truth_of("c3", 1))


def refuse(code):
    def posix_fallocate(*_):
        raise OSError(code, os.strerror(code))

    return posix_fallocate


@pytest.mark.parametrize("refusal", [None, "unknown", errno.EINVAL, errno.EOPNOTSUPP])
def test_the_space_is_taken_before_the_first_row(target, index, monkeypatch, refusal):
    if refusal == "unknown":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    elif refusal:
        monkeypatch.setattr(os, "posix_fallocate", refuse(refusal), raising=False)
    folder = PartialArrays(target, index).folder

    assert (folder / "images.npy").stat().st_size == 128 + 5 * 2 * SIDE * SIDE * 2
    assert (folder / "masks.npy").stat().st_size == 128 + 5 * SIDE * SIDE
    assert index.n_bytes == 5 * SIDE * SIDE * (2 * 2 + 1)
    images = np.load(folder / "images.npy")
    assert images.shape == index.image_shape
    assert not images.any()


def test_a_disk_that_is_full_when_the_space_is_taken_is_named(target, index, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC), raising=False)

    with pytest.raises(WorkspaceError, match=r"no space left for .*preprocessed\.partial"):
        PartialArrays(target, index)


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced on this system")
def test_the_new_arrays_are_safe_from_a_power_cut_before_the_old_ones_go(target, index, monkeypatch):
    def finish():
        arrays = PartialArrays(target, index)
        fill(arrays, range(5))
        arrays.finish()

    def fsync(descriptor):
        if os.path.samestat(os.fstat(descriptor), target.parent.stat()):
            synced.append(sorted(path.name for path in target.parent.iterdir()))

    synced = []
    finish()
    monkeypatch.setattr(os, "fsync", fsync)
    finish()

    assert synced == [["preprocessed", "preprocessed.old"]]


def test_a_disk_with_too_little_room_is_told_before_anything_is_written(target, index):
    sides = 2**30, 2**30
    rows = [dataclasses.replace(row, geometry=Geometry.of("resize", (40, 50), sides)) for row in index.rows]
    huge = dataclasses.replace(index, input_size=sides, rows=tuple(rows))

    with pytest.raises(WorkspaceError, match=r"no space left for .*preprocessed\.partial: 2[\d,]+ MB are needed and "):
        PartialArrays(target, huge)

    assert not target.exists()
    assert list(target.parent.iterdir()) == []


def test_a_file_in_the_place_of_the_arrays_is_named(tmp_path, index):
    (tmp_path / "file").touch()

    with pytest.raises(WorkspaceError, match=r"file.* cannot be written"):
        PartialArrays(tmp_path / "file" / "preprocessed", index)


@pytest.mark.parametrize("values", [[0], [0, 1], [0, 1, 2, 3, 4], [0, 7, 254, 255]])
def test_true_masks_come_back_as_they_were_written(tmp_path, values):
    labels = np.random.default_rng(0).choice(np.array(values, np.uint8), (3, 9, 13))

    write_truth(tmp_path, "a/b", labels)

    np.testing.assert_array_equal(read_mask(truth_path(tmp_path, "a/b")), labels.reshape(27, 13))
