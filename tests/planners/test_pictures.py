"""Pictures that measuring keeps, and the arrays that are made of them."""

import os
import sys

import numpy as np
import pytest

from iaunet.planners.pictures import MOST_KEPT, MOST_PIXELS, KeptPicture, KeptPictures, keeping_pictures

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (3, 8, 10), dtype=np.uint8)
MASK = RNG.integers(0, 3, (8, 10), dtype=np.uint8)
WHOLE = RNG.integers(0, 3, (20, 30), dtype=np.uint8)
KEPT = KeptPicture(PICTURE, MASK, WHOLE)


def test_pictures_are_read_back_from_where_they_are_kept_one_after_the_other(tmp_path):
    pictures = KeptPictures(tmp_path)
    first = pictures.keep(KEPT)
    second = pictures.keep(KeptPicture(PICTURE[:, :4], MASK[:4], WHOLE.T))

    for place, (picture, mask, whole) in (
        (first, (PICTURE, MASK, WHOLE)),
        (second, (PICTURE[:, :4], MASK[:4], WHOLE.T)),
    ):
        found = place.read()
        np.testing.assert_array_equal(found.picture, picture)
        np.testing.assert_array_equal(found.mask, mask)
        np.testing.assert_array_equal(found.whole_mask, whole)
    assert [*tmp_path.iterdir()] == [tmp_path / str(os.getpid())]


def test_of_a_large_picture_all_is_kept_but_the_mask_at_its_own_size(tmp_path):
    large = np.ones((MOST_PIXELS // 1000 + 1, 1000), np.uint8)

    found = KeptPictures(tmp_path).keep(KeptPicture(PICTURE, MASK, large)).read()

    np.testing.assert_array_equal(found.picture, PICTURE)
    np.testing.assert_array_equal(found.mask, MASK)
    assert found.whole_mask is None


def test_a_picture_that_was_cut_off_or_is_gone_is_not_taken(tmp_path):
    place = KeptPictures(tmp_path).keep(KEPT)
    place.file.write_bytes(place.file.read_bytes()[:-1])
    assert place.read() is None
    place.file.unlink()
    assert place.read() is None


def test_what_cannot_be_written_is_kept_nowhere(tmp_path):
    assert KeptPictures(tmp_path / "gone").keep(KEPT) is None


@pytest.mark.skipif(sys.platform == "win32", reason="limits of the size of files are those of Unix")
def test_what_is_written_in_part_is_taken_away_again(tmp_path):
    import resource

    pictures = KeptPictures(tmp_path)
    first = pictures.keep(KEPT)
    size = first.file.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, before[1]))
    try:
        assert pictures.keep(KeptPicture(PICTURE, MASK, np.ones((100, 100), np.uint8))) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert first.file.stat().st_size == size
    np.testing.assert_array_equal(first.read().picture, PICTURE)


@pytest.mark.parametrize(("n_cases", "is_kept"), [(3, True), (MOST_KEPT + 1, False)])
def test_pictures_are_kept_of_as_many_as_the_disk_holds_well(tmp_path, n_cases, is_kept):
    with keeping_pictures(tmp_path / "kept") as pictures:
        assert (pictures.if_there_is_room(n_cases) is pictures) == is_kept


def test_the_folder_is_empty_at_first_and_gone_at_last(tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "left by a killed process").write_bytes(b"half")

    with keeping_pictures(folder):
        assert [*folder.iterdir()] == []

    assert not folder.exists()
