import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from iaunet.engines import ENGINES, find_engine
from iaunet.engines.options import add_engine_options, read_engine_options
from iaunet.engines.parts import Part
from iaunet.engines.ray_cluster import RayEngine, RayOptions, connected
from iaunet.engines.slurm import SlurmEngine, SlurmOptions
from iaunet.engines.tasks import EngineError
from iaunet.records import FieldError


def read(tmp_path, *options, device="auto"):
    parser = argparse.ArgumentParser()
    add_engine_options(parser, "images")
    given = parser.parse_args(options)
    return read_engine_options(given.engine, given.engine_option, given.part, tmp_path, device)


def test_without_options_the_work_is_done_here_and_whole(tmp_path):
    assert read(tmp_path) == (None, None)


def test_an_engine_gets_its_options_with_their_kinds(tmp_path):
    engine, _ = read(tmp_path, "--engine", "ray", "--engine_option", "gpus=0.5", "--engine_option", "address=a:1")
    jobs, _ = read(tmp_path, "--engine", "slurm", "--engine_option", "partition=gpu", "--engine_option", "minutes=60")

    assert isinstance(engine, RayEngine)
    assert engine.options == RayOptions(address="a:1", gpus=0.5)
    assert isinstance(jobs, SlurmEngine)
    assert jobs.options == SlurmOptions(partition="gpu", minutes=60)
    assert jobs.folder == tmp_path


def test_a_part_is_read(tmp_path):
    assert read(tmp_path, "--part", "3/8") == (None, Part(3, 8))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--engine", "ray", "--part", "1/2"], "--part leaves that to another launcher: give one"),
        (["--engine_option", "gpus=1"], "--engine_option gpus is for an engine: give --engine as well"),
        (["--part", "9/8"], "there is no part 9/8"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, line):
    with pytest.raises(EngineError, match=line):
        read(tmp_path, *options)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_device_of_several_is_refused_where_an_engine_gives_out_devices(tmp_path, engine):
    with pytest.raises(EngineError, match=r"--device cuda:1 is one device, and the engine .*: give auto or cuda"):
        read(tmp_path, "--engine", engine, device="cuda:1")

    assert read(tmp_path, "--part", "1/2", device="cuda:1") == (None, Part(1, 2))
    assert read(tmp_path, "--engine", engine, device="cuda")[0] is not None


@pytest.mark.parametrize(
    ("engine", "option", "line"),
    [
        ("ray", {"colour": "red"}, "colour is not known here: the fields are address, processors, gpus"),
        ("ray", {"processors": 0}, "processors is 0: give a number above 0"),
        ("ray", {"gpus": -1}, "gpus is -1.0: give a number of 0 or more"),
        ("ray", {"gpus": "all"}, "gpus is 'all': give a number"),
        ("slurm", {"minutes": 0}, "minutes is 0: give a number above 0"),
        ("slurm", {"gpus": -1}, "gpus is -1: give a whole number of 0 or more"),
        ("slurm", {"executor": "moon"}, "executor is 'moon': give one of 'slurm', 'local'"),
    ],
)
def test_an_option_of_an_engine_that_cannot_be_is_refused_by_name(tmp_path, engine, option, line):
    with pytest.raises(FieldError, match=line):
        find_engine(engine, option, tmp_path)


def test_an_unknown_engine_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(EngineError, match="there is no engine 'steam': choose among ray, slurm"):
        find_engine("steam", {}, tmp_path)


def test_each_engine_has_an_extra_of_its_name_that_tests_install_too():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]

    assert all({*extras[name]} <= {*extras["dev"]} for name in ENGINES)


def test_an_engine_without_its_package_names_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "submitit", None)

    missing = pytest.raises(EngineError, match=r"the engine ray needs a package .* pip install 'iaunet\[ray\]'")
    with missing, connected(None):
        pass
    with pytest.raises(EngineError, match=r"the engine slurm needs a package .* pip install 'iaunet\[slurm\]'"):
        next(find_engine("slurm", {}, tmp_path).run(print, [], on_gpu=False))


def test_naming_an_engine_imports_neither_it_nor_numpy(tmp_path):
    program = (
        "import sys; from pathlib import Path; from iaunet.engines.options import read_engine_options as read\n"
        f"read('ray', [], None, Path({str(tmp_path)!r})); read('slurm', [], None, Path({str(tmp_path)!r}))\n"
        "assert not {'ray', 'submitit', 'numpy', 'torch'} & {*sys.modules}, 'slow import'"
    )

    subprocess.run([sys.executable, "-c", program], check=True)
