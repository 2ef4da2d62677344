import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from iaunet.errors import FileError, IaunetError
from iaunet.inference.predict_command import main as predict
from iaunet.planners.familiar import FAMILIAR, Familiar, find_familiar, keep_familiar
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.plan import load_plan
from iaunet.records import FieldError, load_record
from iaunet.stacks import Stack
from iaunet.storage import write_json
from iaunet.workspace import DatasetFolder

COLOUR = Familiar(channels=3, smallest=(40, 50), largest=(80, 60), means=((90, 110), (50, 60), (0, 10)))


def stack_of(size=(60, 55), means=(100, 55, 5)):
    return Stack(np.stack([np.full((1, *size), mean, np.uint8) for mean in means]))


@pytest.fixture
def folder(trained):
    return DatasetFolder(trained / "toy")


def test_an_image_like_the_training_images_does_not_differ():
    assert [*COLOUR.differences(stack_of())] == []


@pytest.mark.parametrize(
    ("image", "differences"),
    [
        (stack_of(size=(30, 55)), ["size 30 x 55, trained on 40 x 50 to 80 x 60"]),
        (stack_of(size=(60, 61)), ["size 60 x 61, trained on 40 x 50 to 80 x 60"]),
        (stack_of(means=(111, 55, 5)), ["mean intensity of channel 1 111, trained on 90 to 110"]),
        (
            stack_of(means=(55,)),
            [
                "1 channel made 3",
                "mean intensity of channel 1 55, trained on 90 to 110",
                "mean intensity of channel 3 55, trained on 0 to 10",
            ],
        ),
    ],
)
def test_what_is_beyond_the_training_images_is_told(image, differences):
    assert [*COLOUR.differences(image)] == differences


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(FieldError, match=r"means is \(\(1, 2\),\): give two numbers for each of 3 channels"):
        dataclasses.replace(COLOUR, means=((1, 2),))


def test_channels_that_cannot_be_brought_to_those_of_the_data_are_a_fault():
    with pytest.raises(FileError, match="has 2 channels, the data set has 3"):
        list(COLOUR.differences(stack_of(means=(1, 2))))


def test_training_images_are_familiar_up_to_their_extreme_hundredths(folder):
    fingerprint = load_record(Fingerprint, folder.fingerprint_json, Exception, "")
    first = fingerprint.cases[0]

    def with_mean(number):
        intensity = tuple(dataclasses.replace(channel, mean=float(number)) for channel in first.intensity)
        return dataclasses.replace(first, intensity=intensity)

    few = dataclasses.replace(fingerprint, cases=tuple(map(with_mean, range(50))))
    many = dataclasses.replace(fingerprint, cases=tuple(map(with_mean, range(1000))))

    assert Familiar.of(few).means == ((0.0, 49.0),) * fingerprint.channels
    assert Familiar.of(many).means == ((9.0, 990.0),) * fingerprint.channels
    assert Familiar.of(few).smallest == Familiar.of(few).largest == first.size


def test_grey_images_among_colour_count_in_every_channel(folder):
    fingerprint = load_record(Fingerprint, folder.fingerprint_json, IaunetError, "")
    grey = dataclasses.replace(fingerprint.cases[0], channels=1, intensity=fingerprint.cases[0].intensity[:1])

    familiar = Familiar.of(dataclasses.replace(fingerprint, cases=(grey, *fingerprint.cases[1:])))

    means = np.array([[channel.mean for channel in case.intensity] for case in fingerprint.cases])
    means[0] = means[0, 0]
    assert familiar.means == tuple(zip(means.min(0).tolist(), means.max(0).tolist(), strict=True))


def test_what_is_familiar_is_kept_for_each_state_of_the_data(folder):
    plan = load_plan(folder.plan_json)
    found = Familiar.of(load_record(Fingerprint, folder.fingerprint_json, Exception, ""))
    assert find_familiar(folder, plan) == found

    folder.fingerprint_json.unlink()
    keep_familiar(folder, "other", COLOUR)  # as planning does when the data have changed

    assert find_familiar(folder, plan) == found
    assert find_familiar(folder, dataclasses.replace(plan, fingerprint="other")) == COLOUR
    assert find_familiar(folder, dataclasses.replace(plan, fingerprint="never seen")) is None


@pytest.mark.parametrize("spoil", ["damaged", "another rule", "gone"])
def test_what_is_not_kept_any_more_comes_from_the_fingerprint_while_that_is_the_plans(folder, spoil):
    plan, path = load_plan(folder.plan_json), folder.root / FAMILIAR
    found = find_familiar(folder, plan)
    if spoil == "another rule":
        keep_familiar(folder, plan.fingerprint, COLOUR)
        assert find_familiar(folder, plan) == COLOUR
        write_json(path, {**json.loads(path.read_text()), "made_by": "other"})
    else:
        path.write_text("damaged") if spoil == "damaged" else path.unlink()

    assert find_familiar(folder, plan) == found
    assert find_familiar(folder, dataclasses.replace(plan, fingerprint="other")) is None


def test_of_a_fingerprint_that_cannot_be_read_nothing_is_known(folder):
    plan = load_plan(folder.plan_json)
    (folder.root / FAMILIAR).unlink()
    folder.fingerprint_json.unlink()
    folder.fingerprint_json.mkdir()

    assert find_familiar(folder, plan) is None


def test_a_prediction_that_cannot_tell_unlike_images_says_so(trained, tmp_path, capsys):
    folder = DatasetFolder(trained / "toy")
    image = next((Path(folder.load_dataset().source.root) / "images").iterdir())
    arguments = ["-i", str(image), "-o", str(tmp_path / "out"), "-d", "toy", "-f", "0", "--workspace", str(trained)]
    note = "note       no flags of images unlike the training images: what these were like is not known any more"

    assert predict(arguments) == 0
    assert note not in capsys.readouterr().out
    (folder.root / FAMILIAR).unlink()
    content = json.loads(folder.fingerprint_json.read_text(encoding="utf-8"))
    content["cases"][0]["local_width"] = 7.0  # as if planned again of other data
    folder.fingerprint_json.write_text(json.dumps(content), encoding="utf-8")

    assert predict(arguments) == 0
    assert note in capsys.readouterr().out
