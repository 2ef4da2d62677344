import logging
import multiprocessing
from importlib import import_module
from pathlib import Path

import pytest

from iaunet.dataset import Dataset, MaskCoding, Source
from iaunet.errors import WorkspaceError
from iaunet.records import to_json
from iaunet.storage import write_json
from iaunet.workspace import WORKSPACE_NAME, Workspace, is_path, locked, open_workspace


@pytest.fixture
def workspace(tmp_path):
    """Knows the datasets `clinic` and `Große Studie`."""
    workspace = Workspace(tmp_path / "workspace")
    for name in ("clinic", "Große Studie"):
        dataset = Dataset(
            name=name,
            source=Source(root=str(tmp_path / f"raw {name}")),
            understood="",
            labels=("foreground",),
            coding=MaskCoding(kind="values", values=(255,), written=(255,)),
            cases=(),
        )
        write_json(workspace.folder(name).dataset_json, to_json(dataset))
    return workspace


def test_the_given_folder_comes_before_the_environment_and_the_nearest(tmp_path, monkeypatch):
    (tmp_path / WORKSPACE_NAME).mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    environment = {"IAUNET_WORKSPACE": str(tmp_path / "from environment")}

    assert open_workspace(Path("given"), environment).root == tmp_path / "a" / "b" / "given"
    assert open_workspace(None, environment).root == tmp_path / "from environment"
    assert open_workspace(None, {"IAUNET_WORKSPACE": ""}).root == tmp_path / WORKSPACE_NAME


def test_without_any_the_workspace_is_a_new_one_here_which_opening_does_not_make(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert open_workspace(None, {}).root == tmp_path / WORKSPACE_NAME
    assert list(tmp_path.iterdir()) == []


def test_opening_says_which_it_is(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "iaunet"):
        open_workspace(tmp_path, {})

    assert caplog.messages == [f"workspace {tmp_path}"]


def test_a_file_is_no_workspace(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(WorkspaceError, match="file is a file: give a folder as --workspace"):
        open_workspace(tmp_path / "file", {})


def test_known_datasets_are_found_by_name_and_by_the_path_of_their_raw_data(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert workspace.names() == ["Große Studie", "clinic"]
    assert workspace.find("Große Studie").root == workspace.root / "Große Studie"
    assert workspace.find(str(tmp_path / "raw clinic")).name == "clinic"
    assert workspace.find("./raw clinic/").name == "clinic"


def test_an_unknown_dataset_is_answered_with_the_known_ones(workspace, tmp_path):
    with pytest.raises(WorkspaceError, match=r"has no data set 'x', it knows: Große Studie, clinic; run iaunet_plan"):
        workspace.find("x")
    with pytest.raises(WorkspaceError, match=r"has no data set 'x', it knows: none yet"):
        Workspace(tmp_path / "nowhere").find("x")
    with pytest.raises(
        WorkspaceError, match=r"\./raw has not been planned in .*: run iaunet_plan_and_preprocess \./raw"
    ):
        workspace.find("./raw")


def test_a_damaged_dataset_file_is_named_with_its_mend(workspace):
    workspace.folder("clinic").dataset_json.write_text('{"name": "clinic"}')

    with pytest.raises(WorkspaceError, match=r"dataset\.json: source is missing; run iaunet_plan_and_preprocess with"):
        workspace.folder("clinic").load_dataset()


@pytest.mark.parametrize(
    ("text", "expected"), [("a/b", True), ("./a", True), ("..", True), (".", True), ("a\\b", True), ("a", False)]
)
def test_a_separator_makes_a_path(text, expected):
    assert is_path(text) is expected


def test_the_files_of_a_dataset_lie_in_its_folder(workspace):
    folder = workspace.folder("clinic")
    files = (folder.problems_csv, folder.fingerprint_json, folder.plan_json, folder.splits_json)

    assert {path.parent for path in (*files, folder.preprocessed, folder.runs)} == {folder.root}
    assert [path.name for path in files] == ["problems.csv", "fingerprint.json", "plan.json", "splits.json"]


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_ended(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    hold_lock = import_module("jobs_for_workers").hold_lock_and_be_killed
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    first = context.Process(target=hold_lock, args=(tmp_path / "new", theirs))
    first.start()
    ours.recv()

    with (
        pytest.raises(WorkspaceError, match=r"another process is training in .*new: wait until it ends, or stop it"),
        locked(tmp_path / "new", "training"),
    ):
        pass
    ours.send("die")
    first.join()
    with locked(tmp_path / "new", "training"):
        assert (tmp_path / "new").is_dir()


def test_a_folder_that_cannot_be_made_cannot_be_locked(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(WorkspaceError, match="cannot be written"), locked(tmp_path / "file" / "data", "training"):
        pass
