import re
import unicodedata

import pytest

from iaunet.errors import DatasetError
from iaunet.grouping import find_tables, propose_groups, resolve_groups

NAMES = ("P1/a_1", "P1/a_2", "P2/a_1")


def groups_of(wish, names=NAMES):
    return dict(resolve_groups(names, wish).groups)


@pytest.fixture
def table(tmp_path):
    def table(text, name="groups.csv"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return table


def test_folders_are_groups_when_asked():
    assert groups_of("folder") == {"P1/a_1": "P1", "P1/a_2": "P1", "P2/a_1": "P2"}


def test_none_is_no_groups_even_where_names_suggest_some():
    assert groups_of("none", [f"P{i // 3}_{i}" for i in range(60)]) == {}


@pytest.mark.parametrize(
    ("expression", "groups"),
    [(r"P\d", ["P1", "P1", "P2"]), (r"_(\d)$", ["1", "2", "1"]), (r"^(P1|P2)/(a)", ["P1", "P1", "P2"])],
)
def test_an_expressions_first_group_or_whole_match_is_the_group(expression, groups):
    assert list(groups_of(expression).values()) == groups


@pytest.mark.parametrize(
    "text",
    [
        "P1/a_1,x\nP1/a_2,x\nP2/a_1,y\n",
        "case,patient\nP1/a_1.png,x\nP1/a_2.png,x\nP2/a_1.tiff,y\n",
        "P1/a_1;x;65\n\nP1/a_2;x;65\nP2/a_1;y;70\n",
        "P1\\a_1\tx\nP1\\a_2\tx\nP2\\a_1\ty\n",
        '"P1/a_1", x \nP1/a_2,x\nP2/a_1,y\nunused,z',
    ],
)
def test_a_table_gives_groups_whatever_its_separator_header_and_endings(table, text):
    assert groups_of(table(text)) == {"P1/a_1": "x", "P1/a_2": "x", "P2/a_1": "y"}


def test_a_table_may_name_files_without_their_folder(table):
    assert groups_of(table("a,1\nb,2", "groups.TXT"), ["p/a", "p/b"]) == {"p/a": "1", "p/b": "2"}


def test_a_dot_in_a_cases_name_is_no_ending(table):
    assert groups_of(table("v1.2,1\nx.y2,2"), ["v1.2", "x.y2"]) == {"v1.2": "1", "x.y2": "2"}


@pytest.mark.parametrize(("here", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_may_be_written_in_two_ways(table, here, there):
    names = [unicodedata.normalize(here, name) for name in ("ä/é", "ü/ö")]

    groups = groups_of(table(unicodedata.normalize(there, "ä/é,1\nö,2")), names)

    assert groups == dict(zip(names, "12", strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("P1/a_1,x\n", r"names no group for 2 of 3 cases, the first is P1/a_2: add a line for each"),
        ("P1/a_1,\nP1/a_2,x\nP2/a_1,y", "names no group for 1 of 3 cases, the first is P1/a_1"),
        ("P1/a_1\nP1/a_2\n", "has lines with one column: give a case and its group a line"),
        ("P1/a_1,x\nP1/a_1,y\n", "gives P1/a_1 the groups x and y: keep one of the lines"),
        ("P1/a_1.png,x\nP1/a_1.jpg,y\n", "gives P1/a_1 the groups x and y"),
        ("a" * 200_000, r"is no CSV \(.*\): give a case and its group a line"),
    ],
)
def test_a_table_with_faults_is_named_with_the_first(table, text, message):
    path = table(text)

    with pytest.raises(DatasetError, match=f"^{re.escape(path)} {message}"):
        groups_of(path)


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.csv is missing: give a CSV with a case and its group a line"):
        groups_of(str(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(", r"--groups \( is neither a file nor a regular expression .*: give a CSV, an expression, 'folder' or"),
        ("P1", "--groups P1 finds no group in the case P2/a_1: widen it, or give a CSV"),
        ("(P1)?", r"finds no group in the case P2/a_1"),
    ],
)
def test_an_expression_that_leaves_cases_without_group_is_refused(expression, message):
    with pytest.raises(DatasetError, match=message):
        groups_of(expression)


def test_sixty_groups_of_fifteen_are_proposed_from_names():
    grouping = propose_groups([f"P{patient:03d}_{frame:04d}" for patient in range(60) for frame in range(15)])

    assert len(set(grouping.groups.values())) == 60
    assert grouping.groups["P012_0003"] == "P012"
    assert grouping.source == "proposed from names"


def test_folders_are_proposed_before_names():
    grouping = propose_groups([f"{patient}/img_{frame}" for patient in range(10) for frame in range(2)])

    assert grouping.groups["3/img_1"] == "3"
    assert grouping.source == "proposed from folders"


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        ([f"P{p:02d}/visit {v}/scan" for p in range(12) for v in range(2)], {f"P{p:02d}" for p in range(12)}),
        (
            [f"{'ab'[p % 2]}/P{p}/{v}/{i}" for p in range(12) for v in range(2) for i in range(2)],
            {f"{'ab'[p % 2]}/P{p}" for p in range(12)},
        ),
    ],
)
def test_of_folders_within_each_other_the_outermost_that_are_many_are_proposed(names, groups):
    """The visits of a patient must not be divided between training and validation."""
    grouping = propose_groups(names)

    assert set(grouping.groups.values()) == groups
    assert grouping.source == "proposed from folders"


@pytest.mark.parametrize(
    "names",
    [
        [str(number) for number in range(612)],
        [f"ISIC_{number:07d}" for number in range(100)],
        [f"P{patient}_{frame}" for patient in range(9) for frame in range(20)],
        [f"scan{number}" for number in range(100)],
        [],
    ],
)
def test_nothing_is_proposed_from_names_that_only_count(names):
    grouping = propose_groups(names)

    assert (grouping.groups, grouping.source) == ({}, "none found")


def test_tables_that_name_groups_are_found(tmp_path):
    names = [str(number) for number in range(30)]
    tables = {
        "groups.csv": [f"{name},P{int(name) // 3}" for name in names],
        "other.TSV": [f"{name}.png\tP{int(name) // 2}" for name in names],
        "classes.csv": [f"{name},{int(name) % 3}" for name in names],
        "ages.csv": [f"{name},{name}" for name in names],
        "some.csv": [f"{name},P{int(name) // 3}" for name in names[1:]],
        "notes.txt": ["made in 2019, with care", "and looked at twice"],
        "groups.json": [f"{name},P{int(name) // 3}" for name in names],
    }
    for file, lines in tables.items():
        (tmp_path / file).write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\x00,\xfe")
    (tmp_path / "folder.csv").mkdir()

    assert [path.name for path in find_tables(names, tmp_path)] == ["groups.csv", "other.TSV"]
