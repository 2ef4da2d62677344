"""Puts the results of benchmarks into a page as tables.

    python benchmarks/render.py RESULTS [--into PAGE]

RESULTS is a folder of the JSON files that benchmarks write. The tables of PAGE stand between the comments
`<!-- table NAME -->` and `<!-- end -->`, where NAME is that of the JSON file, a dot and that of the table in it (of a
file that is a list of rows its name alone). Tables without results stay as they are. Without PAGE all are printed.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from measuring import markdown_table

_PLACE = re.compile(r"(?P<begin><!-- table (?P<name>\S+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)

_TOLD = {"data", "rounds", "nnunet", "device"}


def main() -> None:
    """Print the tables or put them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS")
    parser.add_argument("--into", type=Path, metavar="PAGE")
    arguments = parser.parse_args()
    tables: dict[str, str] = {}
    for file in sorted(arguments.results.glob("*.json")):
        tables |= read_tables(file)
    if arguments.into is None:
        print("\n\n".join(f"## {name}\n\n{table}" for name, table in tables.items()))
        return
    page = arguments.into.read_text(encoding="utf-8")
    arguments.into.write_text(fill(page, tables), encoding="utf-8")


def read_tables(file: Path) -> dict[str, str]:
    """The tables of a file as Markdown, each with a line on how it was taken; a bare list of rows is one table."""
    facts = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(facts, list):
        return {file.stem: markdown_table(facts)}
    taken = describe(facts)
    return {f"{file.stem}.{name}": f"{markdown_table(rows)}\n\n{taken}" for name, rows in facts["tables"].items()}


def fill(page: str, tables: dict[str, str]) -> str:
    """A page with the tables that there are in their places."""

    def put(place: re.Match[str]) -> str:
        table = tables.get(place["name"])
        return place[0] if table is None else f"{place['begin']}{table}\n{place['end']}"

    return _PLACE.sub(put, page)


def format_setting(value: object) -> str:
    """The value of an option as one gives it; nothing for one that is only named."""
    if value is True:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def describe(facts: dict[str, Any]) -> str:
    """On what a benchmark was run, and with which settings."""
    machine, settings = facts["machine"], facts["settings"]
    parts = [
        settings["data"],
        *([f"median (lowest to highest) of {settings['rounds']} rounds"] if "rounds" in settings else []),
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gb']} GB",
        *([machine["gpu"]] if machine["gpu"] else []),
        f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}",
        *([f"commit {machine['commit']}"] if machine["commit"] else []),
    ]
    further = (
        f"--{name} {format_setting(value)}".rstrip()
        for name, value in settings.items()
        if name not in _TOLD and value is not None and value is not False
    )
    return f"{'; '.join([*parts, *further])}."


if __name__ == "__main__":
    main()
