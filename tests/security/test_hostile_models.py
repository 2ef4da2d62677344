"""Models, runs and plans of somebody who means harm: refused in one line, nothing run and nothing written."""

import ast
import dataclasses
import functools
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iaunet.__main__ import COMMANDS
from iaunet.errors import FileError, IaunetError
from iaunet.files import read_image, read_mask
from iaunet.inference.folder import predict_folder
from iaunet.inference.model_export import export_model
from iaunet.inference.model_file import open_model
from iaunet.inference.model_import import import_model
from iaunet.inference.out_of_fold import read_logits
from iaunet.inference.output import FolderOptions
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run, RunRecord
from iaunet.inference.validation import write_summary
from iaunet.networks import NETWORKS
from iaunet.planners.plan import build_planned_network, load_plan, parse_plan
from iaunet.preprocessing.arrays import open_arrays
from iaunet.records import FieldError, to_json
from iaunet.trainers.checkpoint import load_checkpoint
from iaunet.volumes import read_volume
from iaunet.weights import load_weights, save_weights
from iaunet.workspace import DatasetFolder, Workspace
from model_zips import pack, packed, seal

ROOT = Path(__file__).parents[2]
COMPONENTS = ("iaunet", "planners", "preprocessing", "inference", "trainers")
CPU = torch.device("cpu")
RUN = "unet-best-random"
WEIGHTS = f"{RUN}/fold_0.safetensors"


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (os.fspath(self.marker),)


@dataclasses.dataclass(frozen=True)
class Victim:
    """A dataset with arrays and a run, its model's file, and an empty workspace; `marker` appears when code ran."""

    root: Path
    dataset: DatasetFolder
    model: Path
    elsewhere: Workspace
    marker: Path

    @property
    def run(self) -> Run:
        """The run, read anew."""
        return Run(self.dataset.runs / RUN)

    def files(self) -> dict[str, bytes]:
        """What the model's file holds."""
        with zipfile.ZipFile(self.model) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def listing(self) -> dict[Path, tuple[int, int]]:
        """All files below, with sizes and times."""
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def victim(toy_workspace: Path, tmp_path: Path) -> Victim:
    """See `Victim`; the network is as small as networks get, with random weights."""
    dataset = DatasetFolder(shutil.copytree(toy_workspace / "toy", tmp_path / "here" / "workspace" / "toy"))
    content = json.loads(dataset.plan_json.read_text(encoding="utf-8"))
    content["network"] = {"name": "unet", "width": 2, "depth": 3}
    dataset.plan_json.write_text(json.dumps(content), encoding="utf-8")
    plan = load_plan(dataset.plan_json)
    run = Run(dataset.runs / RUN)
    run.write_record(
        RunRecord(plan=plan, split="random", split_digest="0", seed=0, micro_batch=4, device="cpu", threads=1)
    )
    save_weights(run.fold("0").weights, build_planned_network(plan).state_dict())
    write_summary(run.fold("0"), {"split": "random", "inflated": "", "scores": None})
    export_model(dataset, tmp_path / "here" / "m.zip")
    return Victim(
        tmp_path / "here", dataset, tmp_path / "here" / "m.zip", Workspace(tmp_path / "elsewhere"), tmp_path / "marker"
    )


def assert_refused(victim: Victim, read: Callable[[], object], match: str = ".") -> None:
    """Assert that something is refused in one line, that no code has run and that no file appeared or changed."""
    before = victim.listing()
    with pytest.raises(IaunetError, match=match) as caught:
        read()
    assert str(caught.value).isprintable()
    assert not victim.marker.exists()
    assert victim.listing() == before
    assert not victim.elsewhere.root.exists()


# Pickles ------------------------------------------------------------------------------------------------------------


def npy(marker: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Malicious(marker)], object), allow_pickle=True)
    return file.getvalue()


def npz(marker: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, weights=np.array([Malicious(marker)], object))
    return file.getvalue()


def saved(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"network": Malicious(marker)}, file)
    return file.getvalue()


def saved_as_before(marker: Path) -> bytes:
    """In the format of torch before 1.6."""
    file = io.BytesIO()
    torch.save({"network": Malicious(marker)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda marker: pickle.dumps(Malicious(marker)),
    "torch": saved,
    "old torch": saved_as_before,
    "npy": npy,
    "npz": npz,
}


def in_model(victim: Victim, data: bytes) -> None:
    pack(victim.model, seal(victim.files() | {WEIGHTS: data}))


def in_run(victim: Victim, data: bytes) -> None:
    victim.run.fold("0").weights.write_bytes(data)
    summary = {"weights_sha256": hashlib.sha256(data).hexdigest(), "split": "random", "inflated": "", "scores": None}
    victim.run.fold("0").summary_json.write_text(json.dumps(summary), encoding="utf-8")


def in_arrays(name: str) -> Callable[[Victim, bytes], None]:
    return lambda victim, data: (victim.dataset.preprocessed / name).write_bytes(data) and None


def beside(name: str) -> Callable[[Victim, bytes], None]:
    return lambda victim, data: (victim.root / name).write_bytes(data) and None


def open_own_arrays(victim: Victim) -> object:
    return open_arrays(victim.dataset.preprocessed, victim.run.record.plan.arrays_digest)


PLACES: dict[str, tuple[Callable[[Victim, bytes], None], Callable[[Victim], object]]] = {
    "weights of a model": (in_model, lambda victim: open_model(victim.model)),
    "weights of a model to import": (in_model, lambda victim: import_model(victim.model, victim.elsewhere)),
    "the model itself": (beside("m.zip"), lambda victim: open_model(victim.model)),
    "the model itself to import": (beside("m.zip"), lambda victim: import_model(victim.model, victim.elsewhere)),
    "weights of a run": (in_run, lambda victim: Predictor.from_runs([victim.run], device="cpu")),
    "weights of a run to export": (in_run, lambda victim: Predictor.from_dataset(victim.dataset, device="cpu")),
    "weights to begin with": (
        beside("w.safetensors"),
        lambda victim: load_weights(
            victim.root / "w.safetensors", build_planned_network(load_plan(victim.dataset.plan_json))
        ),
    ),
    "checkpoint": (beside("checkpoint.pt"), lambda victim: load_checkpoint(victim.root / "checkpoint.pt")),
    "images.npy": (in_arrays("images.npy"), open_own_arrays),
    "masks.npy": (in_arrays("masks.npy"), open_own_arrays),
    "done.npy": (in_arrays("done.npy"), open_own_arrays),
    "logits": (beside("case.npy"), lambda victim: read_logits(victim.root, "case")),
    "picture": (beside("a.png"), lambda victim: read_image(victim.root / "a.png")),
    "TIFF": (beside("a.tif"), lambda victim: read_image(victim.root / "a.tif")),
    "mask": (beside("a.png"), lambda victim: read_mask(victim.root / "a.png")),
    "volume": (beside("a.nii.gz"), lambda victim: read_volume(victim.root / "a.nii.gz")),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_no_pickle_runs_wherever_it_lies(victim, kind):
    data = PICKLES[kind](victim.marker)
    kept = victim.root.with_name("kept")
    shutil.copytree(victim.root, kept)

    for place, (put, read) in PLACES.items():
        put(victim, data)
        assert_refused(victim, lambda read=read: read(victim))
        assert not victim.marker.exists(), place
        shutil.rmtree(victim.root)
        shutil.copytree(kept, victim.root)


def test_the_pickles_would_run_if_they_were_read_as_such(tmp_path):
    pickle.loads(PICKLES["pickle"](tmp_path / "one"))
    torch.load(io.BytesIO(PICKLES["torch"](tmp_path / "two")), weights_only=False)
    np.load(io.BytesIO(PICKLES["npy"](tmp_path / "three")), allow_pickle=True)

    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "three"}


# Zips ---------------------------------------------------------------------------------------------------------------


def entry(name: str, **fields: Any) -> zipfile.ZipInfo:
    """An entry of a zip whose name is kept as it is."""
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def overlapping(files: dict[str, bytes]) -> bytes:
    """A zip whose entries share their data, so that it holds more than its size."""
    data = bytearray(packed(files))
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        first = archive.getinfo(WEIGHTS)
        start = archive.start_dir
    names = [f"{RUN}/fold_{number}.safetensors".encode() for number in range(10, 100)]
    record = struct.pack(
        "<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 0, first.CRC, first.file_size, first.file_size,
        len(names[0]), 0, 0, 0, 0, 0, first.header_offset,
    )  # fmt: skip
    directory = b"".join(record + name for name in names)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(names), len(names), len(directory), start, 0)
    return bytes(data[:start]) + directory + end


def renamed_inside(files: dict[str, bytes]) -> bytes:
    """A zip whose local headers name other files than its list."""
    return packed(files).replace(b"README.md", b"../../x.y", 1)


def nested(files: dict[str, bytes]) -> bytes:
    """A zip of zips that would be two gigabytes."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 24))
    return packed(seal(files | {"README.md": inner.getvalue()} | {"more.zip": inner.getvalue()}))


HOSTILE_ZIPS: dict[str, tuple[Callable[[dict[str, bytes]], bytes], str]] = {
    "a path upwards": (lambda files: packed(files | {entry("../escaped"): b""}), "outside of a folder"),
    "an absolute path": (lambda files: packed(files | {entry("/tmp/escaped"): b""}), "outside of a folder"),
    "a drive": (lambda files: packed(files | {entry("C:escaped"): b""}), "outside of a folder"),
    "a share": (lambda files: packed(files | {entry("\\\\host\\share"): b""}), "outside of a folder"),
    "a link": (
        lambda files: packed(files | {entry("link", external_attr=(stat.S_IFLNK | 0o777) << 16): b"/etc"}),
        "has a link or folder",
    ),
    "a device": (
        lambda files: packed(files | {entry("device", external_attr=(stat.S_IFCHR | 0o777) << 16): b""}),
        "has a link or folder",
    ),
    "names that differ in case": (lambda files: packed(files | {entry("README.MD"): b""}), "two files of one name"),
    "names that differ in composition": (
        lambda files: packed(files | {entry("\u00e4"): b"", entry("a\u0308"): b""}),
        "two files of one name",
    ),
    "shared data": (overlapping, r"says that it holds \d+ bytes, more than there are"),
    "names that disagree": (renamed_inside, "is no model's file or damaged"),
    "zips in zips": (nested, "more.zip"),
    "compressed zeros": (
        lambda files: packed(
            {name: data for name, data in files.items() if name != "README.md"}
            | {entry("README.md", compress_type=zipfile.ZIP_DEFLATED): bytes(1 << 24)}
        ),
        "was packed by another program",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE_ZIPS)
def test_a_zip_that_would_escape_overwrite_or_explode_is_refused(victim, kind):
    make, message = HOSTILE_ZIPS[kind]
    victim.model.write_bytes(make(victim.files()))

    assert_refused(victim, lambda: open_model(victim.model), message)
    assert_refused(victim, lambda: import_model(victim.model, victim.elsewhere), message)


@pytest.mark.parametrize("name", ["..", "../x", "/x", "a/b", "a\\b", "C:x", ".hidden", "x" * 101, "a\x1b[31mb", "a\nb"])
def test_a_model_names_no_folder_outside_of_the_workspace(victim, name):
    files = victim.files()
    manifest = json.loads(files["model.json"])
    manifest["model"]["dataset"] = name
    pack(victim.model, files | {"model.json": json.dumps(manifest).encode()})

    assert_refused(victim, lambda: import_model(victim.model, victim.elsewhere), "cannot be a data set's name")
    assert_refused(victim, lambda: import_model(victim.model, victim.elsewhere, name), "cannot be a data set's name")


def test_runs_whose_folders_are_one_on_some_systems_are_refused(victim):
    files = victim.files()
    manifest = json.loads(files["model.json"])
    [run] = manifest["model"]["runs"]
    manifest["model"]["runs"] = [run | {"name": "\u00e4"}, run | {"name": "a\u0308"}]

    pack(victim.model, files | {"model.json": json.dumps(manifest).encode()})

    assert_refused(victim, lambda: open_model(victim.model), "runs whose names differ by more than capitals")


def test_importing_replaces_nothing_that_is_there(victim):
    workspace = Workspace(victim.dataset.root.parent)
    before = victim.listing()

    with pytest.raises(IaunetError, match="is there already: give the model another name with --dataset_name"):
        import_model(victim.model, workspace)

    assert victim.listing() == before


# A copied workspace -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/../../b", "", "a\0b"])
def test_no_case_is_written_outside_of_its_folder(victim, name):
    for path in (victim.dataset.dataset_json, victim.dataset.preprocessed / "index.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        before, content["cases"][0]["name"] = content["cases"][0]["name"], name
        for row in content.get("rows", ()):
            row["case"] = name if row["case"] == before else row["case"]
        path.write_text(json.dumps(content), encoding="utf-8")

    assert_refused(victim, victim.dataset.load_dataset, r"cases\[0\]\.name is .*: give a path below a folder")
    assert_refused(victim, lambda: open_own_arrays(victim), r"cases\[0\]\.name is .*: give a path below a folder")


@pytest.mark.parametrize("labels", [("../../escaped", "b"), ("a/b", "c"), ("x" * 300, "b"), ("one", "ONE")])
def test_labels_that_cannot_name_files_are_numbered_in_them(victim, tmp_path, labels):
    coding = {"kind": "values", "values": [1, 2], "written": [1, 2]}
    content = to_json(load_plan(victim.dataset.plan_json)) | {"labels": list(labels), "coding": coding}
    content["inference"]["thresholds"] = [0.5, 0.5]
    plan = parse_plan(content)
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(images / "a.png")

    predict_folder(
        Predictor(plan, [build_planned_network(plan)], CPU), images, tmp_path / "out", FolderOptions(probabilities=True)
    )

    assert {path.name for path in (tmp_path / "out" / "probabilities").iterdir()} == {"a_1.png", "a_2.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out", "here"}


@pytest.mark.parametrize("name", ["/etc/passwd", "../voxels.raw", "a/../../voxels.raw"])
@pytest.mark.parametrize("ending", [".mhd", ".nrrd"])
def test_the_header_of_a_volume_names_no_file_outside_of_its_folder(tmp_path, name, ending):
    (tmp_path / "voxels.raw").write_bytes(bytes(8))
    (tmp_path / "a" / "a").mkdir(parents=True)
    mhd = f"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = {name}\n"
    nrrd = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: {name}\n\n"
    (tmp_path / "a" / f"volume{ending}").write_text(mhd if ending == ".mhd" else nrrd, encoding="utf-8")

    with pytest.raises(FileError, match="outside of its folder: copy that file beside it"):
        read_volume(tmp_path / "a" / f"volume{ending}")


# Functions by name --------------------------------------------------------------------------------------------------

FOREIGN = "foreign_network:build"


@pytest.fixture
def foreign(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """A module that makes the marker when it is imported; gives what puts its network into a JSON file's plan."""
    module = victim.marker.with_name("modules") / "foreign_network.py"
    module.parent.mkdir()
    text = f"import os\nos.mkdir({os.fspath(victim.marker)!r})\n\ndef build(**sizes):\n    raise RuntimeError\n"
    module.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(module.parent)

    def name_it(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.get("plan", content)["network"]["name"] = FOREIGN
        path.write_text(json.dumps(content), encoding="utf-8")

    yield name_it
    import sys

    sys.modules.pop("foreign_network", None)


def call(command: str, *arguments: str) -> int:
    """Run a command in this process; its exit code."""
    module = COMMANDS[command][0]
    return int(import_module(module).main([*arguments]))


def test_no_command_runs_a_function_that_a_file_names(victim, foreign, tmp_path, capsys):
    foreign(victim.dataset.plan_json)
    foreign(victim.run.run_json)
    files = victim.files()
    plan = json.loads(files[f"plan_{RUN}.json"])
    plan["network"]["name"] = FOREIGN
    pack(victim.model, seal(files | {f"plan_{RUN}.json": json.dumps(plan).encode()}))
    known = ("--workspace", str(victim.dataset.root.parent))
    raw = victim.dataset.load_dataset().source.root
    images, out = ("-i", f"{raw}/images"), ("-o", str(tmp_path / "out"))

    calls = {
        "plan_and_preprocess": ("toy", *known, "--workers", "1"),
        "train": ("toy", "0", *known),
        "predict": ("-d", "toy", *images, *out, *known),
        "find_best": ("toy", *known),
        "compare": ("toy", *known),
        "report": ("toy", *known),
        "export_model": ("toy", "-o", str(tmp_path / "out.zip"), *known),
        "import_model": (str(victim.model), "--workspace", str(victim.elsewhere.root)),
    }
    codes = {command: call(command, *arguments) for command, arguments in calls.items()}
    codes["train --val_only"] = call("train", "toy", "0", *known, "--val_only", "--name", RUN)
    codes["predict --model"] = call("predict", "--model", str(victim.model), *images, *out)
    codes["export_model --onnx"] = call("export_model", "toy", "--onnx", *out, *known)

    assert not victim.marker.exists()
    assert {command for command, code in codes.items() if code == 0} == {
        "plan_and_preprocess",
        "export_model",
        "import_model",
    }
    assert capsys.readouterr().err.count("whose code would be run: give") >= 4


def test_it_is_run_once_the_user_names_it(victim, foreign):
    foreign(victim.run.run_json)

    with pytest.raises(RuntimeError):
        Predictor.from_runs([victim.run], device="cpu", trusted_network=FOREIGN)

    assert victim.marker.exists()


@pytest.mark.parametrize("name", ["os.system", "os", "../network", "iaunet.networks.unet", "", "foreign_network.build"])
def test_a_name_without_colon_is_one_of_the_table(victim, name):
    content = to_json(load_plan(victim.dataset.plan_json))
    content["network"]["name"] = name

    with pytest.raises(FieldError, match=f"unknown network {name!r}: choose one of {', '.join(NETWORKS)}"):
        parse_plan(content)


# The source ---------------------------------------------------------------------------------------------------------

WATCHED = re.compile(
    r"^(eval|exec|compile|__import__|open_memmap)$"
    r"|(^|\.)(import_module|extractall|extract|unpack_archive|run_path|run_module|system|popen|memmap|fromfile|Unpickler"
    r"|CDLL|PyDLL|unsafe_load|fromstring|Environment|Markup|register_custom_ops_library|execv\w*|spawn\w*|startfile)$"
    r"|^(torch|np|numpy|pickle|marshal|shelve|yaml|dill|joblib)\.\w*(load|open)\w*$"
    r"|^(subprocess|runpy|ctypes)\."
)
"""Calls that may run code or name it, or map what others wrote."""

WATCHED_MODULES = (
    "pickle",
    "marshal",
    "shelve",
    "subprocess",
    "ctypes",
    "yaml",
    "runpy",
    "code",
    "dill",
    "joblib",
    "xml",
)

ALLOWED = {
    ("iaunet/__init__.py", "import_module"): (2, "names of the literal table STAGES"),
    ("iaunet/__main__.py", "import_module"): (1, "names of the literal table COMMANDS"),
    ("iaunet/allocation.py", "import ctypes"): (1, "see there"),
    ("iaunet/allocation.py", "ctypes.CDLL"): (1, "the C library that is loaded already"),
    ("iaunet/dicom_frames.py", "np.fromfile"): (1, "numbers"),
    ("iaunet/engines/__init__.py", "import_module"): (1, "names of the literal table ENGINES"),
    ("iaunet/engines/ray_cluster.py", "import_module"): (1, "ray"),
    ("iaunet/engines/slurm.py", "import_module"): (1, "submitit"),
    ("iaunet/engines/tasks.py", "import pickle"): (1, "see there"),
    ("iaunet/engines/tasks.py", "pickle.loads"): (1, "a call of this program, brought by the user's own cluster"),
    ("iaunet/networks/__init__.py", "import_module"): (1, "NETWORKS, or a name that the user gave"),
    ("iaunet/tiffs.py", "import xml.etree.ElementTree"): (1, "see there"),
    ("iaunet/tiffs.py", "np.memmap"): (1, "numbers, read only"),
    ("iaunet/tiffs.py", "ElementTree.fromstring"): (1, "fetches nothing, and expat limits how far entities grow"),
    ("preprocessing/arrays.py", "open_memmap"): (2, "numbers, read only: it refuses objects"),
    ("preprocessing/check.py", "jinja2.Environment"): (1, "templates of our own"),
    ("inference/onnx_export.py", "jinja2.Environment"): (1, "a template of our own, for Markdown"),
    ("inference/out_of_fold.py", "open_memmap"): (1, "numbers, read only: it refuses objects"),
    ("inference/report/page.py", "jinja2.Environment"): (1, "templates of our own"),
    ("trainers/checkpoint.py", "import pickle"): (1, "for the name of its error"),
    ("trainers/checkpoint.py", "torch.load"): (1, "a checkpoint of our own"),
    ("trainers/metrics_log.py", "import_module"): (1, "names of the literal table LOGS"),
}
"""All uses of what may run code, in which file, how often, and why they do not."""


@functools.cache
def calls_in_source() -> tuple[tuple[str, str, ast.AST], ...]:
    """Each watched call or import: its file, what it is, and the node."""
    return tuple(_calls_in_source())


def _calls_in_source() -> Iterator[tuple[str, str, ast.AST]]:
    for component in COMPONENTS:
        for path in sorted((ROOT / component).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                file = path.relative_to(ROOT).as_posix()
                if isinstance(node, ast.Call) and WATCHED.search(name := dotted(node.func)):
                    yield file, name, node
                elif isinstance(node, ast.Import | ast.ImportFrom):
                    before = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                    names = [before + alias.name for alias in node.names]
                    yield from ((file, f"import {n}", node) for n in names if n.split(".")[0] in WATCHED_MODULES)


def dotted(node: ast.expr) -> str:
    """What is called, as far as it has names."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def keyword(node: ast.AST, name: str) -> object:
    """The constant that a call gives to a keyword, None without."""
    assert isinstance(node, ast.Call)
    return next((ast.literal_eval(each.value) for each in node.keywords if each.arg == name), None)


def test_what_may_run_code_is_used_where_it_is_known_why():
    found = Counter((file, name) for file, name, _ in calls_in_source())

    assert found == {where: number for where, (number, _) in ALLOWED.items()}


def test_nothing_that_is_loaded_may_be_a_pickle():
    nodes = [(name, node) for _, name, node in calls_in_source()]

    assert [keyword(node, "weights_only") for name, node in nodes if name == "torch.load"] == [True]
    assert not [node for name, node in nodes if name == "np.load"]  # it reads pickles and zips as well


def test_pages_escape_what_files_hold():
    pages = {file: keyword(node, "autoescape") for file, name, node in calls_in_source() if "Environment" in name}
    templates = [path for component in COMPONENTS for path in (ROOT / component).rglob("*.j2")]

    assert pages == {
        "preprocessing/check.py": True,
        "inference/report/page.py": True,
        "inference/onnx_export.py": False,  # Markdown
    }
    assert len(templates) >= 3
    assert not [
        path.name for path in templates if re.search(r"\|\s*safe\b|autoescape", path.read_text(encoding="utf-8"))
    ]


def test_every_check_that_the_security_page_names_is_there():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)

    assert len(named) > 10
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
