import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from iaunet.dataset import MaskCoding
from iaunet.errors import PredictionError, WorkspaceError
from iaunet.inference.calibration import Calibration, Reliability
from iaunet.inference.export_command import main as export_main
from iaunet.inference.model_export import export_model
from iaunet.inference.onnx_export import LARGEST_DIFFERENCE, export_onnx
from iaunet.inference.postprocessing import LabelCleaning, Postprocessing
from iaunet.inference.predict_command import main as predict_main
from iaunet.inference.predictor import Predictor
from iaunet.inference.runtime.iaunet_runtime import open_session
from iaunet.inference.tuning import NetworkName, Tuning
from iaunet.networks import NETWORKS
from iaunet.planners.plan import InferencePlan, NetworkPlan, build_planned_network
from iaunet.storage import digest
from iaunet.workspace import DatasetFolder

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))), reason="needs iaunet[onnx]"
)

CPU = torch.device("cpu")
UNKNOWN = Reliability(pixels=(0,), probability=(None,), frequency=(None,), ece=0.0, brier=0.0, log_loss=0.0)


def export(predictor, output, card="# The card\n"):
    return export_onnx(predictor, card, output)


def run_onnx(folder, inputs):
    return open_session(folder / "model.onnx", threads=1).run(["probabilities"], {"images": inputs})[0]


def noise(*shape):
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


@pytest.fixture
def build(make_plan):
    """A predictor of ``n`` networks with random weights."""

    def build(n=1, tuning=None, members=None, **fields):
        usual = {"input_size": (32, 32), "network": NetworkPlan(name="unet", width=4, depth=3)}
        plan = make_plan(**(usual | fields))
        torch.manual_seed(5)
        networks = [build_planned_network(plan) for _ in range(n)]
        return Predictor(plan, networks, CPU, tuning=tuning, members=members)

    return build


@pytest.fixture
def build_of(make_plan):
    """A predictor of one network that is given."""

    def build_of(network):
        return Predictor(make_plan(input_size=(32, 32)), [network], CPU)

    return build_of


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_in_onnxruntime_what_it_gives_in_torch(name, build, tmp_path):
    predictor = build(channels=3, network=NetworkPlan(name=name, width=8, depth=3))

    facts = export(predictor, tmp_path / "model")

    assert facts.max_difference < LARGEST_DIFFERENCE
    inputs = noise(5, 3, 32, 32)
    np.testing.assert_allclose(run_onnx(tmp_path / "model", inputs), predictor.predict_inputs(inputs), atol=1e-4)


def test_networks_flips_and_temperatures_are_inside(build, tmp_path):
    calibration = Calibration(temperatures={"r": {"0": 0.5, "1": 2.0}}, before=UNKNOWN, after=UNKNOWN)
    predictor = build(
        n=2,
        tuning=Tuning(calibration=calibration),
        members=[NetworkName(run="r", fold="0"), NetworkName(run="r", fold="1")],
        network=NetworkPlan(name="iaunet", width=4, depth=3, options={"spatial_attention": "scaled"}),
        labels=("one", "two"),
        coding=MaskCoding(kind="values", values=(1, 2), written=(1, 2)),
        inference=InferencePlan(mirroring=True, thresholds=(0.5, 0.4)),
    )

    facts = export(predictor, tmp_path / "model")

    inputs = noise(3, 1, 32, 32)
    given = run_onnx(tmp_path / "model", inputs)
    assert given.shape == (3, 2, 32, 32)
    np.testing.assert_allclose(given, predictor.predict_inputs(inputs), atol=1e-4)
    np.testing.assert_allclose(given[..., ::-1], run_onnx(tmp_path / "model", inputs[..., ::-1].copy()), atol=1e-4)
    assert facts.temperatures == (0.5, 2.0)
    assert facts.mirroring
    for networks in ([predictor.ensemble.networks[0]], [predictor.ensemble.networks[1]]):
        alone = Predictor(predictor.plan, networks, CPU).predict_inputs(inputs)
        assert np.abs(given - alone).max() > 1e-3


def test_the_folder_says_what_is_in_it(build, tmp_path):
    cleaning = (LabelCleaning(smallest=7, fill_holes=True),)
    predictor = build(tuning=Tuning(postprocessing=Postprocessing(thresholds=(0.35,), cleaning=cleaning)))
    output = tmp_path / "to be made" / "model ü"

    facts = export(predictor, output, card="# What it is for\n")

    assert sorted(path.name for path in output.iterdir()) == [
        "Dockerfile",
        "MODEL_CARD.md",
        "README.md",
        "iaunet_runtime.py",
        "model.onnx",
        "requirements.txt",
        "runtime.json",
    ]
    written = json.loads((output / "runtime.json").read_text(encoding="utf-8"))
    assert written["settings"]["thresholds"] == [0.35]
    assert written["settings"]["cleaning"] == [{"smallest": 7, "largest_only": False, "fill_holes": True}]
    assert written["settings"]["written"] == [255]
    assert written["facts"]["max_difference"] == facts.max_difference
    assert written["facts"]["model_digest"] == digest(predictor.describe())
    assert written["facts"]["versions"]["torch"] == torch.__version__
    readme = (output / "README.md").read_text(encoding="utf-8")
    assert "foreground from 0.35 on, without components under 7 px, holes filled" in readme
    assert "0 for background, 255 for foreground" in readme
    assert f"{facts.max_difference:.1e} at most" in readme
    assert (output / "MODEL_CARD.md").read_text(encoding="utf-8") == "# What it is for\n"
    assert [path.name for path in output.parent.iterdir()] == ["model ü"]


def test_the_container_is_pinned_not_root_and_holds_no_secrets():
    import iaunet.inference.runtime

    folder = Path(iaunet.inference.runtime.__file__).parent
    lines = (folder / "Dockerfile").read_text(encoding="utf-8").splitlines()
    instructions = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    of = dict(instructions)

    assert [name for name, _ in instructions][-2:] == ["USER", "ENTRYPOINT"]
    assert of["USER"] not in ("root", "0", "0:0")
    assert of["FROM"].startswith("python:3.")
    assert of["FROM"].split(":")[1].split("-")[0].count(".") == 2
    assert not {"ADD", "ARG", "EXPOSE"} & of.keys()
    copied = {name for instruction, rest in instructions if instruction == "COPY" for name in rest.split()[:-1]}
    assert copied == {"requirements.txt", "runtime.json", "model.onnx", "iaunet_runtime.py"}
    requirements = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    assert [line.split(">=")[0] for line in requirements] == ["numpy", "Pillow", "onnxruntime"]


class Drawing(nn.Module):
    """Another logit each time."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, rows):
        return self.layer(rows) + torch.rand_like(rows)


class Deciding(nn.Module):
    """Does one thing or another as the data are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, rows):
        return self.layer(rows) if rows.sum() > 0 else rows


class Huge(nn.Module):
    """Says that it has 4 GiB of weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.zeros(1).expand(2**30))


def test_a_network_that_differs_in_onnxruntime_is_refused(build_of, tmp_path):
    with pytest.raises(PredictionError, match=r"differ from those of torch by .* more than 1e-04: export with the ver"):
        export(build_of(Drawing()), tmp_path / "model")

    assert not list(tmp_path.iterdir())
    assert LARGEST_DIFFERENCE == 1e-4


def test_a_network_that_cannot_be_exported_is_told_in_one_line(build_of, tmp_path):
    with pytest.raises(PredictionError, match=r"unet cannot be exported to ONNX \(.*\): predict with") as caught:
        export(build_of(Deciding()), tmp_path / "model")

    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_weights_beyond_an_onnx_file_are_refused(build_of, tmp_path):
    with pytest.raises(PredictionError, match=r"1 networks have 4\.0 GiB of weights.*choose fewer with --folds"):
        export(build_of(Huge()), tmp_path / "model")


def test_a_folder_that_is_there_is_refused(build, tmp_path):
    (tmp_path / "model").mkdir()

    with pytest.raises(WorkspaceError, match="is there already: give another folder, or remove it"):
        export(build(), tmp_path / "model")


def test_a_zip_is_no_folder(build, tmp_path):
    with pytest.raises(PredictionError, match=r"give a name without \.zip"):
        export(build(), tmp_path / "model.zip")


def test_a_place_that_takes_no_folders_is_named(build, tmp_path):
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(WorkspaceError, match=r"cannot be written .*choose another folder"):
        export(build(), tmp_path / "file" / "model")


def test_without_the_extra_it_is_named(build, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)

    with pytest.raises(
        PredictionError, match=r"needs onnxscript, which is not installed: pip install 'iaunet\[onnx\]'"
    ):
        export(build(), tmp_path / "model")


def test_what_a_killed_export_left_goes_and_a_full_disk_leaves_nothing(build, tmp_path):
    resource = pytest.importorskip("resource", reason="no limits on file sizes on this system")
    left = tmp_path / ".model.iaunet-tmp"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(WorkspaceError, match=r"no space left for .*model"):
            export(build(), tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert not list(tmp_path.iterdir())


def test_the_command_exports_what_predicts_the_same_masks_without_torch(trained_toy, tmp_path, capsys):
    inputs = Path(DatasetFolder(trained_toy / "toy").load_dataset().source.root) / "images"
    common = ["--workspace", str(trained_toy)]
    assert export_main(["toy", "--onnx", "-o", str(tmp_path / "onnx"), "--folds", "0", "2", *common]) == 0
    shown = capsys.readouterr().out
    assert "model      run unet-best-random, fold 2" in shown
    assert "checked    probabilities of onnxruntime differ by " in shown
    assert shown.splitlines()[-1] == f"next       python {tmp_path / 'onnx' / 'iaunet_runtime.py'} -i FOLDER -o FOLDER"
    here, there = tmp_path / "here", tmp_path / "there"
    assert predict_main(["-i", str(inputs), "-o", str(here), "-d", "toy", "-f", "0", "2", *common]) == 0

    program = (
        "import runpy, sys\n"
        "for name in ('torch', 'scipy', 'iaunet'): sys.modules[name] = None\n"
        f"sys.argv = ['iaunet_runtime.py', '-i', {str(inputs)!r}, '-o', {str(there)!r}, '--threads', '1']\n"
        f"runpy.run_path({str(tmp_path / 'onnx' / 'iaunet_runtime.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"masks: 18 done, 0 kept, 0 failed: {there}\n"
    names = sorted(path.name for path in here.glob("*.png"))
    assert len(names) == 18
    assert sorted(path.name for path in there.glob("*.png")) == names
    for name in names:
        np.testing.assert_array_equal(np.asarray(Image.open(there / name)), np.asarray(Image.open(here / name)))


def test_a_models_file_is_exported_as_well(trained_toy, tmp_path, capsys):
    export_model(DatasetFolder(trained_toy / "toy"), tmp_path / "toy.zip", folds=["1"])

    assert export_main([str(tmp_path / "toy.zip"), "--onnx", "-o", str(tmp_path / "onnx")]) == 0

    assert "workspace" not in capsys.readouterr().out
    facts = json.loads((tmp_path / "onnx" / "runtime.json").read_text(encoding="utf-8"))["facts"]
    assert [member["fold"] for member in facts["members"]] == ["1"]
    assert "# Model for toy" in (tmp_path / "onnx" / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_runs_and_folds_do_not_go_with_a_models_file(tmp_path, capsys):
    (tmp_path / "toy.zip").write_bytes(b"")

    assert export_main([str(tmp_path / "toy.zip"), "--onnx", "-o", str(tmp_path / "onnx"), "--folds", "1"]) == 2

    assert (
        capsys.readouterr().err
        == "error: --run, --folds and --notes are for a data set: leave them out with a model's file\n"
    )
