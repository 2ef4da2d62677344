import csv
import json
import shutil
from pathlib import Path

import pytest

from iaunet.engines.parts import Part
from iaunet.errors import PredictionError, WorkspaceError
from iaunet.inference.folder import predict_folder
from iaunet.inference.output import FolderOptions
from iaunet.inference.parts import Share
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run
from iaunet.storage import TEMPORARY_SUFFIX
from iaunet.workspace import DatasetFolder, locked


@pytest.fixture(scope="module")
def predictor(trained_toy):
    run = Run(trained_toy / "toy" / "runs" / "unet-best-random")
    return Predictor.from_runs([run], ["0"], "cpu", mirroring=False)


@pytest.fixture
def images(trained_toy, tmp_path):
    raw = Path(DatasetFolder(trained_toy / "toy").load_dataset().source.root) / "images"
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        shutil.copyfile(raw / f"case_{i:02d}.png", folder / f"case_{i:02d}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def predict(predictor, images):
    def act(to, part=None, **options):
        outcomes = predict_folder(predictor, images, to, FolderOptions(**options), part and Part.parse(part))
        return {outcome.image: outcome.status for outcome in outcomes}

    return act


def audited(output):
    files = [output / "audit.jsonl", *output.glob("parts/*/*/audit.jsonl")]
    lines = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    return sorted(line["image"] for line in lines if line["outcome"] == "done")


def test_parts_make_what_one_call_makes_and_the_last_one_writes_the_whole_table(predict, tmp_path):
    predict(tmp_path / "whole")
    done = [predict(tmp_path / "parts", part) for part in ("2/3", "3/3")]
    assert not (tmp_path / "parts" / "predictions.csv").exists()
    done.append(predict(tmp_path / "parts", "1/3"))

    assert sorted(name for part in done for name in part) == ["broken.png", *(f"case_{i:02d}.png" for i in range(5))]
    masks = sorted((tmp_path / "whole").glob("*.png"))
    assert len(masks) == 5
    for file in [*masks, tmp_path / "whole" / "predictions.csv", tmp_path / "whole" / "predictions.json"]:
        assert (tmp_path / "parts" / file.name).read_bytes() == file.read_bytes()
    assert audited(tmp_path / "parts") == audited(tmp_path / "whole")


def test_parts_have_tables_of_their_own(predict, tmp_path):
    part = predict(tmp_path, "1/2")

    [table] = tmp_path.glob("parts/*/*/predictions.csv")
    with table.open(encoding="utf-8") as file:
        assert [row["image"] for row in csv.DictReader(file)] == sorted(part)


def test_a_part_and_the_whole_keep_masks_of_other_parts(predict, tmp_path):
    predict(tmp_path, "1/2")
    predict(tmp_path, "2/2")
    again, whole = predict(tmp_path, "1/2"), predict(tmp_path)

    assert set(again.values()) == {"failed", "kept"}
    assert sorted(whole.values()) == ["failed", *["kept"] * 5]
    assert len(audited(tmp_path)) == 5


def test_parts_of_another_number_share_the_folder_and_repeat_nothing(predict, tmp_path):
    predict(tmp_path, "1/2")
    thirds = [predict(tmp_path, f"{i}/3") for i in (1, 2, 3)]

    assert sum(status == "kept" for part in thirds for status in part.values()) == 2
    assert audited(tmp_path) == [f"case_{i:02d}.png" for i in range(5)]
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8").count("\n") == 7


def test_a_part_without_images_counts(predict, tmp_path):
    parts = [predict(tmp_path, f"{i}/7") for i in range(1, 8)]

    assert parts[-1] == {}
    assert (tmp_path / "predictions.csv").exists()


def test_what_killed_parts_left_goes_once_no_part_is_at_work(predict, tmp_path):
    left = tmp_path / f".killed{TEMPORARY_SUFFIX}"
    predict(tmp_path, "1/2")
    left.write_bytes(b"half")
    predict(tmp_path, "1/2")
    assert left.exists()
    [other] = tmp_path.glob("parts/*/1")
    with locked(other, "predicting"):
        predict(tmp_path, "2/2")
    assert left.exists()
    predict(tmp_path, "2/2")

    assert not left.exists()


def test_one_part_is_made_by_one_process(predict, tmp_path):
    predict(tmp_path, "1/2")
    [folder] = tmp_path.glob("parts/*/1")

    with locked(folder, "predicting"):
        with pytest.raises(WorkspaceError, match="another process is predicting part 1/2 in"):
            predict(tmp_path, "1/2")
        with pytest.raises(WorkspaceError, match="another process is predicting a part in"):
            predict(tmp_path)
        assert predict(tmp_path, "2/2")


def test_parts_of_another_model_are_refused(predict, predictor, images, tmp_path):
    predict(tmp_path, "1/2")
    mirrored = Predictor(predictor.plan, [*predictor.ensemble.networks], predictor.device, mirroring=True)

    with pytest.raises(PredictionError, match="holds masks of another model: use --overwrite"):
        predict_folder(mirrored, images, tmp_path, FolderOptions(), Part(2, 2))


def test_parts_of_another_key_are_refused_while_one_is_at_work(predict, predictor, images, tmp_path):
    predict(tmp_path, "1/2")
    [folder] = tmp_path.glob("parts/*/1")
    mirrored = Predictor(predictor.plan, [*predictor.ensemble.networks], predictor.device, mirroring=True)
    before = (tmp_path / "predictions.json").read_bytes()

    with locked(folder, "predicting"):
        with pytest.raises(WorkspaceError, match="another process is predicting a part in"):
            predict_folder(mirrored, images, tmp_path, FolderOptions(overwrite=True), Part(1, 2))
        with pytest.raises(WorkspaceError, match="another process is predicting a part in"):
            predict(tmp_path, "1/3")
    assert (tmp_path / "predictions.json").read_bytes() == before


def test_parts_of_images_that_changed_since_do_not_count(predict, images, tmp_path):
    for part in ("1/2", "2/2"):
        predict(tmp_path, part)
    (tmp_path / "predictions.csv").unlink()
    shutil.copyfile(images / "case_00.png", images / "case_01.png")

    predict(tmp_path, "1/2")
    assert not (tmp_path / "predictions.csv").exists()
    predict(tmp_path, "2/2")
    assert (tmp_path / "predictions.csv").exists()


def test_a_part_that_is_begun_again_does_not_count_until_it_ends(tmp_path):
    share = Share(tmp_path, Part(1, 2), "key")
    left = share.folder / f".killed{TEMPORARY_SUFFIX}"
    share.write([], [])
    Share(tmp_path, Part(2, 2), "key").write([], [])
    left.write_bytes(b"half")

    with share.claimed(lambda: None):
        assert not left.exists()
    assert not share.unite([], [])
    share.write([], [])
    assert share.unite([], [])


@pytest.mark.parametrize("text", ["{}", '[{"image": "a.png"}]'])
def test_outcomes_that_are_none_are_told_with_their_file(tmp_path, text):
    share = Share(tmp_path, Part(1, 1), "key")
    share.write([], [])
    (share.folder / "outcomes.json").write_text(text)

    with pytest.raises(PredictionError, match=r"outcomes\.json.*: .*run the command of its part again"):
        share.unite([], [])
    (share.folder / "outcomes.json").write_text("{}")
    with pytest.raises(PredictionError, match=r"outcomes\.json holds no list of outcomes: run the command"):
        share.unite([], [])
