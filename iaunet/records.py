"""Frozen dataclasses to JSON and back, every field checked by its type on the way in."""

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from iaunet.errors import IaunetError
from iaunet.storage import read_json

Record = TypeVar("Record")

_IN_WORDS = {str: "a text in quotes", int: "a whole number", float: "a number", bool: "true or false"}


class FieldError(IaunetError):
    """A field holds a value it cannot have.

    Args:
        field: The field, with dots where records are nested.
        problem: What it holds and what is allowed, to follow the field's name.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type["FieldError"], tuple[str, str]]:
        return type(self), (self.field, self.problem)

    def inside(self, outer: str) -> "FieldError":
        """The same fault, seen from the record that holds this one in its field ``outer``."""
        return FieldError(f"{outer}.{self.field}", self.problem)


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Refuse the value of a field.

    Raises:
        FieldError: The condition does not hold; the message tells the value and what is allowed.
    """
    if not condition:
        raise FieldError(field, f"is {value!r}: give {allowed}")


def to_json(value: Any) -> Any:
    """Plain dicts, lists, numbers and texts for a record; nan and infinity become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):  # most values, so they are told apart first
        return value
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    return value


def from_json(kind: type[Record], data: Any) -> Record:
    """Build a record from what `to_json` gave.

    Args:
        kind: A frozen dataclass whose fields are numbers, texts, literals, tuples, dicts or such dataclasses.
        data: The parsed JSON.

    Raises:
        FieldError: A field is missing, unknown or holds a value it cannot have.
    """
    if not isinstance(data, dict):
        raise FieldError(kind.__name__.lower(), f"is {_shortened(data)}: give an object in braces")
    hints = _field_types(kind)  # type: ignore[arg-type]
    for name in data:
        if name not in hints:
            raise FieldError(name, f"is not known here: the fields are {', '.join(hints)}")
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in data:
            values[field.name] = _parse(hints[field.name], data[field.name], field.name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise FieldError(field.name, "is missing")
    return kind(**values)


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """The fields in which two nested values differ, as ``field: before -> now``."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found = []
        for key in dict.fromkeys((*before, *now)):
            found += differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        return found
    return [] if before == now else [f"{name}: {before} -> {now}"]


def load_record(kind: type[Record], path: Path, error: type[IaunetError], mend: str) -> Record:
    """Read a record's file.

    Args:
        kind: The dataclass it holds.
        path: A JSON file.
        error: What to raise when the file does not hold such a record.
        mend: What the user can do about it; ends the message.
    """
    data = read_json(path, error, mend)
    try:
        return from_json(kind, data)
    except FieldError as fault:
        raise error(f"{path}: {fault}; {mend}") from fault


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _shortened(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:  # it could just be parsed
        text = f"nested too deep in a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _is_text(value: str) -> bool:
    """Whether it can be written to a file: JSON can hold halves of characters."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse(hint: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        try:
            return from_json(typing.cast(type, hint), value)
        except FieldError as fault:
            raise fault.inside(name) from None
    if origin in (types.UnionType, typing.Union):
        return _parse_union(hint, value, name)
    if origin is Literal:
        choices = typing.get_args(hint)
        require(value in choices, name, value, "one of " + ", ".join(map(repr, choices)))
        return value
    if origin is tuple:
        return _parse_tuple(typing.get_args(hint), value, name)
    if origin in (dict, Mapping):
        _require_kind(isinstance(value, dict), name, value, "an object in braces")
        for key in value:
            _require_kind(_is_text(key), name, key, "names of whole characters")
        item_hint = typing.get_args(hint)[1]
        return {key: _parse(item_hint, item, f"{name}.{key}") for key, item in value.items()}
    return _parse_plain(hint, value, name)


def _parse_union(hint: Any, value: Any, name: str) -> Any:
    choices = typing.get_args(hint)
    if value is None and type(None) in choices:
        return None
    if type(value) in choices:
        return _parse(type(value), value, name)
    structured = [choice for choice in choices if choice not in (*_IN_WORDS, type(None))]
    plain = [choice for choice in choices if choice in _IN_WORDS]
    if structured or len(plain) == 1:
        return _parse((structured or plain)[-1], value, name)
    raise FieldError(name, f"is {_shortened(value)}: give {' or '.join(map(_IN_WORDS.__getitem__, plain))}")


def _parse_tuple(hints: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    _require_kind(isinstance(value, list), name, value, "a list in brackets")
    if hints[-1] is Ellipsis:
        return tuple(_parse(hints[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    _require_kind(len(value) == len(hints), name, value, f"a list of {len(hints)}")
    pairs = zip(hints, value, strict=True)
    return tuple(_parse(hint, item, f"{name}[{i}]") for i, (hint, item) in enumerate(pairs))


def _parse_plain(hint: Any, value: Any, name: str) -> Any:
    if hint is float and value is None:
        return math.nan
    fits = type(value) is hint
    if hint is float:
        fits = type(value) in (int, float) and abs(value) <= sys.float_info.max  # not nan either
    if hint is int:
        fits = fits or (type(value) is float and value.is_integer())
    if hint is str:
        fits = fits and _is_text(value)
    _require_kind(fits, name, value, _IN_WORDS[hint])
    return hint(value)


def _require_kind(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise FieldError(name, f"is {_shortened(value)}: give {allowed}")
