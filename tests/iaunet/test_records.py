import json
import math
import pickle
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.errors import PlanError
from iaunet.records import FieldError, from_json, load_record, require, to_json

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@dataclass(frozen=True, kw_only=True)
class Part:
    size: tuple[int, int]
    weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    kind: Literal["big", "small"]
    count: int
    share: float
    is_new: bool
    parts: tuple[Part, ...]
    by_name: dict[str, tuple[float, ...]] = field(default_factory=dict)
    option: str | int | float | bool | None = None

    def __post_init__(self) -> None:
        require(self.count >= 0, "count", self.count, "0 or more")


PARTS = st.builds(Part, size=st.tuples(st.integers(), st.integers()), weight=st.one_of(st.none(), NUMBERS))
WHOLES = st.builds(
    Whole,
    name=st.text(),
    kind=st.sampled_from(["big", "small"]),
    count=st.integers(min_value=0),
    share=NUMBERS,
    is_new=st.booleans(),
    parts=st.lists(PARTS, max_size=3).map(tuple),
    by_name=st.dictionaries(st.text(), st.lists(NUMBERS, max_size=3).map(tuple), max_size=3),
    option=st.one_of(st.none(), st.text(), st.integers(), NUMBERS, st.booleans()),
)
GOOD = to_json(
    Whole(name="a", kind="big", count=1, share=0.5, is_new=True, parts=(Part(size=(3, 4)),), by_name={"x": (1.0,)})
)


@given(WHOLES)
def test_a_record_survives_its_json_with_its_types(record):
    restored = from_json(Whole, json.loads(json.dumps(to_json(record))))

    assert restored == record
    assert type(restored.option) is type(record.option)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists))
def test_any_value_in_any_field_is_a_record_or_a_fault_that_names_the_field(value):
    for name in GOOD:
        try:
            from_json(Whole, GOOD | {name: value})
        except FieldError as fault:
            assert fault.field.split("[")[0].split(".")[0] == name
            assert ": give " in fault.problem


def test_nan_and_infinity_become_null_and_null_becomes_nan():
    @dataclass(frozen=True)
    class Numbers:
        values: tuple[float, ...]

    written = to_json(Numbers((math.nan, math.inf, 1.5)))

    assert written == {"values": [None, None, 1.5]}
    assert math.isnan(from_json(Numbers, written).values[0])


def test_a_number_written_without_a_point_is_read_as_the_float_it_was():
    assert repr(from_json(Whole, GOOD | {"share": 2, "count": 3.0})) == repr(
        from_json(Whole, GOOD | {"share": 2.0, "count": 3})
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "name is 3: give a text in quotes"),
        ({"kind": "huge"}, "kind is 'huge': give one of 'big', 'small'"),
        ({"count": 1.5}, "count is 1.5: give a whole number"),
        ({"count": True}, "count is True: give a whole number"),
        ({"count": math.inf}, "count is inf: give a whole number"),
        ({"count": math.nan}, "count is nan: give a whole number"),
        ({"count": None}, "count is None: give a whole number"),
        ({"count": -1}, "count is -1: give 0 or more"),
        ({"share": "half"}, "share is 'half': give a number"),
        ({"share": math.inf}, "share is inf: give a number"),
        ({"share": 10**400}, "share is 1000000000000000000000000000000000000...: give a number"),
        ({"is_new": 1}, "is_new is 1: give true or false"),
        ({"parts": {}}, "parts is {}: give a list in brackets"),
        ({"name": "\ud800"}, r"name is '\ud800': give a text in quotes"),
        ({"by_name": {"\udc80": [1]}}, r"by_name is '\udc80': give names of whole characters"),
        ({"parts": [3]}, "parts[0].part is 3: give an object in braces"),
        ({"parts": [{"size": [1]}]}, "parts[0].size is [1]: give a list of 2"),
        ({"parts": [{"size": [1, "2"]}]}, "parts[0].size[1] is '2': give a whole number"),
        ({"parts": [{"size": [1, 2], "weight": "x"}]}, "parts[0].weight is 'x': give a number"),
        ({"parts": [{}]}, "parts[0].size is missing"),
        ({"by_name": []}, "by_name is []: give an object in braces"),
        ({"by_name": {"y": ["z"]}}, "by_name.y[0] is 'z': give a number"),
        ({"option": [1]}, "option is [1]: give a text in quotes or a whole number or a number or true or false"),
        (
            {"colour": 1},
            "colour is not known here: the fields are name, kind, count, share, is_new, parts, by_name, option",
        ),
    ],
)
def test_a_value_that_cannot_be_is_answered_with_its_field_and_what_may_be(changes, message):
    with pytest.raises(FieldError) as caught:
        from_json(Whole, GOOD | changes)

    assert str(caught.value) == message


def test_what_could_just_be_parsed_is_not_shown_to_its_depth():
    def at_depth(frames):
        return at_depth(frames - 1) if frames else from_json(Whole, GOOD | {"parts": deep})

    deep: object = {}
    for _ in range(400):
        deep = {"a": [deep]}
    frames = sys.getrecursionlimit() - 700

    with pytest.raises(FieldError, match=r"parts is nested too deep in a dict: give a list in brackets"):
        at_depth(frames)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_what_is_no_object_is_refused(data):
    with pytest.raises(FieldError, match=r"whole is .*: give an object in braces"):
        from_json(Whole, data)


def test_a_missing_field_is_named_unless_it_has_a_default():
    assert from_json(Whole, {key: GOOD[key] for key in GOOD if key not in ("by_name", "option")}).by_name == {}
    with pytest.raises(FieldError, match=r"^share is missing$"):
        from_json(Whole, {key: GOOD[key] for key in GOOD if key != "share"})


def test_a_record_file_is_answered_with_path_field_and_mend(tmp_path):
    path = tmp_path / "whole.json"
    path.write_text(json.dumps(GOOD | {"share": "x"}))

    with pytest.raises(PlanError) as caught:
        load_record(Whole, path, PlanError, "make it again")

    assert str(caught.value) == f"{path}: share is 'x': give a number; make it again"


def test_a_field_fault_comes_back_whole_from_a_worker():
    fault = pickle.loads(pickle.dumps(FieldError("size", "is missing").inside("parts")))

    assert (str(fault), fault.field) == ("parts.size is missing", "parts.size")
