"""Pictures that measuring keeps, and the arrays that are made of them."""

import numpy as np
import pytest

from iaunet.planners.pictures import MOST_KEPT, MOST_PIXELS, KeptPicture, KeptPictures, keeping_pictures

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (3, 8, 10), dtype=np.uint8)
MASK = RNG.integers(0, 3, (8, 10), dtype=np.uint8)
WHOLE = RNG.integers(0, 3, (20, 30), dtype=np.uint8)
KEPT = KeptPicture(PICTURE, MASK, WHOLE)


def test_a_picture_is_found_by_the_files_it_was_made_of(tmp_path):
    pictures = KeptPictures(tmp_path)
    pictures.keep("a" * 64, None, KEPT)
    pictures.keep("a" * 64, "b" * 64, KeptPicture(PICTURE[::-1], MASK, WHOLE))

    found = pictures.find("a" * 64, None, PICTURE.shape, WHOLE.shape)

    np.testing.assert_array_equal(found.picture, PICTURE)
    np.testing.assert_array_equal(found.mask, MASK)
    np.testing.assert_array_equal(found.whole_mask, WHOLE)
    assert pictures.find("b" * 64, None, PICTURE.shape, WHOLE.shape) is None


def test_of_a_large_picture_all_is_kept_but_the_mask_at_its_own_size(tmp_path):
    pictures = KeptPictures(tmp_path)
    large = np.ones((MOST_PIXELS // 1000 + 1, 1000), np.uint8)
    pictures.keep("a" * 64, None, KeptPicture(PICTURE, MASK, large))

    found = pictures.find("a" * 64, None, PICTURE.shape, large.shape)

    np.testing.assert_array_equal(found.picture, PICTURE)
    np.testing.assert_array_equal(found.mask, MASK)
    assert found.whole_mask is None


@pytest.mark.parametrize(
    ("shape", "native_size"),
    [((1, 8, 10), (20, 30)), ((3, 10, 8), (20, 30)), ((3, 4, 20), (20, 30)), ((3, 8, 10), (20, 31))],
)
def test_a_picture_of_other_channels_or_size_is_not_taken(tmp_path, shape, native_size):
    pictures = KeptPictures(tmp_path)
    pictures.keep("a" * 64, None, KEPT)

    assert pictures.find("a" * 64, None, shape, native_size) is None


def test_a_picture_that_was_cut_off_is_not_taken(tmp_path):
    pictures = KeptPictures(tmp_path)
    pictures.keep("a" * 64, None, KEPT)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])

    assert pictures.find("a" * 64, None, PICTURE.shape, WHOLE.shape) is None


def test_what_cannot_be_written_is_not_there(tmp_path):
    pictures = KeptPictures(tmp_path / "gone")

    pictures.keep("a" * 64, None, KEPT)

    assert pictures.find("a" * 64, None, PICTURE.shape, WHOLE.shape) is None


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
