import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.engines.parts import Part
from iaunet.engines.tasks import EngineError


@given(items=st.lists(st.integers()), count=st.integers(1, 20))
def test_parts_hold_each_item_once_and_none_is_larger_than_another_by_more_than_one(items, count):
    parts = [Part(number, count).of(items) for number in range(1, count + 1)]

    assert sorted(item for part in parts for item in part) == sorted(items)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_parts_take_turns():
    assert list(Part(2, 3).of("abcdefgh")) == ["b", "e", "h"]


@given(count=st.integers(1, 999_999_999), data=st.data())
def test_a_part_is_read_as_it_is_written(count, data):
    part = Part(data.draw(st.integers(1, count)), count)

    assert Part.parse(str(part)) == part


@pytest.mark.parametrize("text", ["", "3", "3/", "/8", "-1/8", "3/8/2", "a/b", "1.5/2", " 1/2", "1/2\n", "1/0", "³/8"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(EngineError, match=r"is no part: give K/N, such as 3/8 for the third of eight"):
        Part.parse(text)


@pytest.mark.parametrize("text", ["0/8", "9/8"])
def test_a_part_that_is_not_there_is_refused(text):
    with pytest.raises(EngineError, match=rf"there is no part {text}: give one from 1/8 to 8/8"):
        Part.parse(text)
