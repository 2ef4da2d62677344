import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from iaunet.planners.duplicates import exact_duplicates, join, near_duplicates

RNG = np.random.default_rng(0)


def picture():
    return RNG.integers(0, 256, (32, 32), dtype=np.uint8)


def test_equal_hashes_are_exact_duplicates():
    assert exact_duplicates("abcde", ["1", "2", "1", "3", "2"]) == (("a", "c"), ("b", "e"))
    assert exact_duplicates([], []) == ()


def test_brighter_darker_and_slightly_noisy_copies_are_near_duplicates_and_others_are_not():
    first, other = picture() // 2, picture()
    noisy = (first + RNG.normal(0, 3, first.shape)).clip(0, 255).astype(np.uint8)

    assert near_duplicates("abcd", [first, other, first + 50, noisy]) == (("a", "c", "d"),)


def test_a_flipped_or_inverted_picture_is_another():
    first = picture()

    assert near_duplicates("abc", [first, first[::-1].copy(), 255 - first]) == ()


def test_blank_pictures_are_no_duplicates_of_each_other():
    blank = np.zeros((32, 32), np.uint8)

    assert near_duplicates("ab", [blank, blank + 3]) == ()


def test_duplicates_are_found_far_apart_in_a_large_dataset():
    pictures = [picture() for _ in range(2500)]
    pictures[2400] = pictures[3]

    assert near_duplicates([str(i) for i in range(2500)], pictures) == (("3", "2400"),)


def test_a_long_chain_is_one_group_and_its_neighbours_stay_apart():
    names = [f"n{i}" for i in range(1000)]
    chain = [(i + 1, i) for i in range(800) if i != 399]

    assert join(names, [*reversed(chain), (999, 990)]) == (
        tuple(names[:400]),
        tuple(names[400:801]),
        ("n990", "n999"),
    )


@given(st.integers(2, 12), st.data())
def test_joined_groups_hold_every_pair_and_no_name_twice(n, data):
    names = [f"n{i}" for i in range(n)]
    pairs = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=8))

    groups = join(names, pairs)

    members = [name for group in groups for name in group]
    assert len(set(members)) == len(members)
    assert all(len(group) >= 2 for group in groups)
    for first, second in pairs:
        assert first == second or any({names[first], names[second]} <= {*group} for group in groups)
