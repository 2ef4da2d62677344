import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from iaunet.engines.ray_cluster import RayEngine
from iaunet.engines.slurm import SlurmEngine
from iaunet.engines.tasks import pack, work
from iaunet.errors import PredictionError
from iaunet.inference.folder import predict_folder
from iaunet.inference.jobs import ModelChoice, predict_on_engine
from iaunet.inference.model_export import export_model
from iaunet.inference.output import FolderOptions
from iaunet.inference.predict_command import main
from iaunet.workspace import DatasetFolder, locked


class NextDoor:
    """An engine that makes each call in this process."""

    def run(self, function, tasks, on_gpu):
        for task in tasks:
            yield task, work(*pack(function, task, None))


@pytest.fixture
def images(trained_toy, tmp_path):
    raw = Path(DatasetFolder(trained_toy / "toy").load_dataset().source.root) / "images"
    folder = tmp_path / "images"
    folder.mkdir()
    for file in sorted(raw.iterdir())[:6]:
        shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture
def choice(trained_toy):
    return ModelChoice(dataset=DatasetFolder(trained_toy / "toy"), device="cpu", mirroring=False)


@pytest.fixture
def whole(choice, images, tmp_path):
    """The folder as one process predicts it."""
    predict_folder(choice.load(), images, tmp_path / "whole", FolderOptions())
    return tmp_path / "whole"


def require_equal(output, whole):
    files = [*sorted(whole.glob("*.png")), whole / "predictions.csv", whole / "predictions.json"]
    assert len(files) == 8
    for file in files:
        assert (output / file.name).read_bytes() == file.read_bytes()


def test_an_engine_makes_what_one_process_makes(choice, images, whole, tmp_path):
    outcomes = predict_on_engine(NextDoor(), choice, images, tmp_path / "out", FolderOptions(), 4)

    assert [outcome.image for outcome in outcomes] == [file.name for file in sorted(images.iterdir())]
    require_equal(tmp_path / "out", whole)


def test_a_part_that_fails_is_told_and_made_by_the_next_call(choice, images, whole, tmp_path):
    predict_on_engine(NextDoor(), choice, images, tmp_path / "out", FolderOptions(), 2)
    [part] = tmp_path.glob("out/parts/*/2")
    (tmp_path / "out" / "case_01.png").unlink()

    with (
        locked(part, "predicting"),
        pytest.raises(PredictionError, match=r"1 of 2 parts .* same command again; part 2/2"),
    ):
        predict_on_engine(NextDoor(), choice, images, tmp_path / "out", FolderOptions(), 2)
    predict_on_engine(NextDoor(), choice, images, tmp_path / "out", FolderOptions(), 2)

    assert (tmp_path / "out" / "case_01.png").read_bytes() == (whole / "case_01.png").read_bytes()


def test_overwriting_on_an_engine_makes_every_mask_again_once_though_a_part_is_begun_again(choice, images, tmp_path):
    class Twice(NextDoor):
        def run(self, function, tasks, on_gpu):
            first.extend(result for _, result in super().run(function, tasks, on_gpu))
            return super().run(function, tasks, on_gpu)

    first = []
    predict_on_engine(NextDoor(), choice, images, tmp_path / "out", FolderOptions(), 2)
    again = predict_on_engine(Twice(), choice, images, tmp_path / "out", FolderOptions(overwrite=True), 2)

    assert {outcome.status for part in first for outcome in part} == {"done"}
    assert {outcome.status for outcome in again} == {"kept"}


def test_a_model_s_file_is_loaded_as_a_data_set_is(choice, trained_toy, tmp_path):
    model = tmp_path / "model.zip"
    export_model(choice.dataset, model)

    assert ModelChoice(model=model, device="cpu").load().plan == choice.load().plan
    with pytest.raises(ValueError, match="of a dataset or of a model's file: give one"):
        ModelChoice().load()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--parts", "3"], "--parts is a number of 1 or more for --engine: give both"),
        (["--engine", "ray", "--parts", "0"], "--parts is a number of 1 or more"),
        (["--engine", "ray", "--part", "1/2"], "--engine shares the work out by itself"),
        (["--part", "3/2"], "there is no part 3/2"),
    ],
)
def test_the_command_refuses_what_cannot_be_shared_out(trained_toy, images, tmp_path, capsys, options, told):
    given = ["-i", str(images), "-o", str(tmp_path / "out"), "-d", "toy", "--workspace", str(trained_toy)]

    assert main([*given, *options]) == 2
    assert told in capsys.readouterr().err


def test_the_test_set_is_not_shared_out(trained_toy, tmp_path, capsys):
    given = ["--test", "-o", str(tmp_path / "out"), "-d", "toy", "--workspace", str(trained_toy), "--part", "1/2"]

    assert main(given) == 2
    assert "--engine and --part are for -i" in capsys.readouterr().err


def test_the_command_predicts_a_part_and_tells_when_all_are_there(trained_toy, images, whole, tmp_path, capsys):
    given = ["-i", str(images), "-o", str(tmp_path / "out"), "-d", "toy", "--workspace", str(trained_toy)]
    told = []
    for part in ("1/2", "2/2"):
        assert main([*given, "--no_mirroring", "--device", "cpu", "--part", part]) == 0
        told.append(capsys.readouterr().out)

    assert "3 done in" in told[0]
    assert "all 2 parts are there" not in told[0]
    assert "all 2 parts are there" in told[1]
    require_equal(tmp_path / "out", whole)


@pytest.mark.slow
def test_ray_predicts_beside_each_other_and_a_killed_worker_is_replaced(choice, images, whole, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    output = tmp_path / "out"
    killed = []

    def kill_one():
        while not killed:
            for file in output.glob("parts/*/*/audit.jsonl"):
                killed.extend(_kill_who_holds(file))
            time.sleep(0.02)

    threading.Thread(target=kill_one, daemon=True).start()
    outcomes = predict_on_engine(
        RayEngine({"processors": 1}, tmp_path), choice, images, output, FolderOptions(), n_parts=2
    )

    assert killed
    assert len(outcomes) == 6
    require_equal_masks(output, whole)


@pytest.mark.slow
def test_slurm_s_local_executor_predicts_the_same(choice, images, whole, tmp_path):
    engine = SlurmEngine({"executor": "local"}, tmp_path / "engine")
    predict_on_engine(engine, choice, images, tmp_path / "out", FolderOptions(), 2)

    require_equal(tmp_path / "out", whole)


def require_equal_masks(output, whole):
    """What a killed worker had made is kept, which the table says."""
    for file in whole.glob("*.png"):
        assert (output / file.name).read_bytes() == file.read_bytes()


def _kill_who_holds(file):
    """Kill a process that has a file open; the processes killed."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            holds = any(link.readlink() == file for link in folder.iterdir())
        except OSError:
            continue
        if holds and int(folder.parent.name) != os.getpid():
            os.kill(int(folder.parent.name), signal.SIGKILL)
            return [int(folder.parent.name)]
    return []
