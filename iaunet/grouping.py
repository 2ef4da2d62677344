"""Which cases come from one patient or video: given by the user, or proposed from names and folders."""

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from iaunet.discovery import composed
from iaunet.errors import DatasetError
from iaunet.storage import read_text

FEWEST_GROUPS = 10
"""A proposal is used if at least this many groups have two cases or more."""

NONE_FOUND = "none found"
"""Where groups come from if nothing was said and nothing suggests any."""

TABLES = (".csv", ".tsv", ".txt")

LARGEST_TABLE = 2**24
"""Bytes of a table that is looked at unasked."""

_NUMBERED = re.compile(r"^(?P<group>.*[^\W_].*?)[_\-. ]+\D{0,8}\d+$")


@dataclass(frozen=True)
class Grouping:
    """The group of each case by name, empty when there are none, and where they come from."""

    groups: Mapping[str, str]
    source: str


def resolve_groups(names: Sequence[str], wish: str | None) -> Grouping:
    """Find the group of every case.

    Args:
        names: The cases' names.
        wish: A CSV file with a case and a group a line; a regular expression whose first group (or whole match)
            in a case's name is the group; ``folder``; ``none``; or None for a proposal.

    Raises:
        DatasetError: The file or expression leaves cases without a group, or cannot be used.
    """
    if wish is None:
        return propose_groups(names)
    if wish == "none":
        return Grouping({}, "none, as asked")
    if wish == "folder":
        return Grouping(_by_folder(names), "folders")
    if Path(wish).suffix.lower() in TABLES:
        return Grouping(_by_table(names, Path(wish)), f"table {Path(wish).name}")
    return Grouping(_by_expression(names, wish), f"expression {wish}")


def propose_groups(names: Sequence[str]) -> Grouping:
    """Groups that folders or numbered names suggest, if at least ten of them have two cases or more.

    Of folders within each other the outermost count that do: the visits of a patient belong together.
    """
    deepest = max((name.count("/") for name in names), default=0)
    for depth in range(1, deepest + 1):
        groups = _by_folder(names, depth)
        if _are_convincing(groups):
            return Grouping(groups, "proposed from folders")
    groups = _by_numbered_name(names)
    return Grouping(groups, "proposed from names") if _are_convincing(groups) else Grouping({}, NONE_FOUND)


def find_tables(names: Sequence[str], folder: Path) -> list[Path]:
    """Tables in a folder that name a group for each case, as convincing as a proposal.

    They are not used unasked: what stands in their second column may be anything.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in TABLES and path.is_file() and path.stat().st_size <= LARGEST_TABLE:
            with contextlib.suppress(DatasetError):
                if _are_convincing(_by_table(names, path)):
                    found.append(path)
    return found


def _are_convincing(groups: Mapping[str, str]) -> bool:
    return sum(size >= 2 for size in Counter(groups.values()).values()) >= FEWEST_GROUPS


def _by_folder(names: Sequence[str], depth: int | None = None) -> dict[str, str]:
    """The folder of each, or that of so many folders within each other."""
    parents = {name: PurePosixPath(name).parent for name in names}
    return {name: str(PurePosixPath(*parent.parts[:depth])) for name, parent in parents.items()}


def _by_numbered_name(names: Sequence[str]) -> dict[str, str]:
    matches = {name: _NUMBERED.match(name) for name in names}
    return {name: match["group"] if match else name for name, match in matches.items()}


def _by_expression(names: Sequence[str], expression: str) -> dict[str, str]:
    try:
        pattern = re.compile(expression)
    except re.error as fault:
        raise DatasetError(
            f"--groups {expression} is neither a file nor a regular expression ({fault}): "
            "give a CSV, an expression, 'folder' or 'none'"
        ) from fault
    found = {}
    for name in names:
        match = pattern.search(name)
        group = match and match[1 if pattern.groups else 0]
        if not group:
            raise DatasetError(f"--groups {expression} finds no group in the case {name}: widen it, or give a CSV")
        found[name] = group
    return found


def _by_table(names: Sequence[str], path: Path) -> dict[str, str]:
    lines = composed(read_text(path, DatasetError, "give a CSV with a case and its group a line")).splitlines()
    separator = "\t" if lines and "\t" in lines[0] else ";" if lines and ";" in lines[0] else ","
    try:
        rows = [row for row in csv.reader(lines, delimiter=separator) if any(cell.strip() for cell in row)]
    except csv.Error as fault:
        raise DatasetError(f"{path} is no CSV ({fault}): give a case and its group a line") from fault
    if any(len(row) < 2 for row in rows):
        raise DatasetError(f"{path} has lines with one column: give a case and its group a line")
    table: dict[str, str] = {}
    for case, group, *_ in rows:
        for name in {case.strip(), _without_ending(case.strip())}:
            if table.setdefault(name, group.strip()) != group.strip():
                raise DatasetError(
                    f"{path} gives {name} the groups {table[name]} and {group.strip()}: keep one of the lines"
                )
    keys = {name: composed(name) for name in names}
    found = {name: table.get(key, table.get(PurePosixPath(key).name)) for name, key in keys.items()}
    missing = [name for name, group in found.items() if not group]
    if missing:
        raise DatasetError(
            f"{path} names no group for {len(missing)} of {len(names)} cases, the first is {missing[0]}: "
            "add a line for each"
        )
    return {name: group for name, group in found.items() if group}


def _without_ending(name: str) -> str:
    """The case's name when a table holds the file's; only endings of letters count, so ``v1.2`` stays."""
    return re.sub(r"\.(?=[^.]*[A-Za-z])[A-Za-z0-9]{2,5}$", "", name.replace("\\", "/"))
