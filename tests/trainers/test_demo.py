import pytest

from iaunet.files import read_image, read_mask
from iaunet.trainers.demo_command import main


@pytest.fixture(scope="module")
def quick_demo(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo with a space") / "out"
    assert main(["--output", str(output), "--images", "10", "--epochs", "1", "--workers", "1"]) == 0
    return output


def test_the_demo_leaves_masks_of_every_unseen_image_and_a_picture(quick_demo):
    images = sorted((quick_demo / "new_images").iterdir())

    assert len(images) == 12
    for image in images:
        mask = read_mask(quick_demo / "predicted_masks" / f"{image.stem}.png")
        assert mask.shape == read_image(image).size
        assert set(mask.flat) <= {0, 255}
    sheet = read_image(quick_demo / "overlays.png")
    assert sheet.pixels.shape[0] == 3
    assert sheet.pixels.std() > 10


def test_the_demo_trains_two_folds_that_hold_out_different_images(quick_demo):
    run = quick_demo / "workspace" / "demo" / "runs" / "iaunet-demo-random"

    held_out = [{path.stem for path in (run / fold / "validation").glob("*.png")} for fold in ("fold_0", "fold_1")]

    assert held_out[0] and held_out[1]
    assert not held_out[0] & held_out[1]


def test_the_demo_replaces_an_earlier_demo(quick_demo):
    stray = quick_demo / "dataset" / "images" / "stray.png"
    stray.touch()

    assert main(["--output", str(quick_demo), "--images", "10", "--epochs", "1", "--workers", "1"]) == 0

    assert not stray.exists()


def test_the_demo_touches_no_folder_that_is_not_its_own(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious", encoding="utf-8")

    assert main(["--output", str(tmp_path)]) == 2

    assert "no demo made it: give another folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "precious"


def test_the_demo_needs_a_few_images(tmp_path, capsys):
    assert main(["--output", str(tmp_path / "out"), "--images", "3"]) == 2

    assert "--images 3 is too few: give 10 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_demo_is_refused_a_file_as_its_folder(tmp_path, capsys):
    (tmp_path / "out").touch()

    assert main(["--output", str(tmp_path / "out")]) == 2

    assert "is a file: give a folder with --output" in capsys.readouterr().err
