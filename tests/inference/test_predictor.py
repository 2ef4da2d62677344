import dataclasses
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iaunet.dataset import MaskCoding
from iaunet.errors import FileError, NetworkError, PredictionError
from iaunet.inference.expected_dice import DiceModel, ExpectedDice
from iaunet.inference.postprocessing import LabelCleaning, Postprocessing
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run
from iaunet.inference.tuning import NetworkName, Tuning
from iaunet.inference.validation import write_summary
from iaunet.planners.plan import InferencePlan, NetworkPlan
from iaunet.stacks import Stack
from iaunet.weights import save_weights
from iaunet.workspace import DatasetFolder

CPU = torch.device("cpu")


@pytest.fixture
def strange(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "trainers")
    return import_module("strange_networks")


@pytest.fixture(scope="module")
def run(trained_toy):
    return Run(trained_toy / "toy" / "runs" / "unet-best-random")


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor.from_runs([run], device="cpu")


@pytest.fixture(scope="module")
def images(trained_toy):
    folder = Path(DatasetFolder(trained_toy / "toy").load_dataset().source.root) / "images"
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


@pytest.fixture
def inputs():
    return np.random.default_rng(0).normal(0, 1, (7, 3, 64, 64)).astype(np.float32)


@torch.no_grad()
def probabilities(network, inputs):
    return network.eval()(torch.from_numpy(inputs)).sigmoid().numpy()


def test_mirroring_is_the_mean_over_the_four_flips(run, inputs):
    plain = Predictor.from_runs([run], ["0"], "cpu", mirroring=False)
    mirrored = Predictor.from_runs([run], ["0"], "cpu", mirroring=True)

    expected = np.zeros((7, 1, 64, 64))
    for axes in ((), (2,), (3,), (2, 3)):
        flipped = np.ascontiguousarray(np.flip(inputs, axes))
        expected += np.flip(plain.predict_inputs(flipped), axes) / 4

    np.testing.assert_allclose(mirrored.predict_inputs(inputs), expected, atol=1e-6)
    assert not np.allclose(mirrored.predict_inputs(inputs), plain.predict_inputs(inputs), atol=1e-3)


def test_products_in_bfloat16_change_probabilities_a_little(run, inputs):
    usual, other, same = (
        Predictor.from_runs([run], ["0"], "cpu", mirroring=False, precision=precision)
        for precision in (None, "bfloat16", "float32")
    )

    expected, found = usual.predict_inputs(inputs), other.predict_inputs(inputs)

    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.05
    np.testing.assert_array_equal(same.predict_inputs(inputs), expected)


def test_a_model_is_told_apart_by_its_precision_only_where_one_was_asked_for(run):
    usual, other = (Predictor.from_runs([run], ["0"], "cpu", precision=precision) for precision in (None, "bfloat16"))

    assert "precision" not in usual.describe()
    assert other.describe() == usual.describe() | {"precision": "bfloat16"}


def test_mirroring_makes_the_prediction_symmetric(predictor, inputs):
    assert len(predictor.flips) == 4  # the plan's own choice

    there = predictor.predict_inputs(inputs)
    back = predictor.predict_inputs(np.ascontiguousarray(inputs[..., ::-1]))[..., ::-1]

    np.testing.assert_allclose(there, back, atol=1e-5)


def test_an_ensemble_is_the_mean_of_its_networks_probabilities(run, inputs):
    members = [Predictor.from_runs([run], [fold], "cpu", mirroring=False) for fold in ("0", "1", "2")]
    ensemble = Predictor.from_runs([run], None, "cpu", mirroring=False)

    expected = np.mean([member.predict_inputs(inputs) for member in members], axis=0)

    assert len(ensemble.ensemble.networks) == 3
    np.testing.assert_allclose(ensemble.predict_inputs(inputs), expected, atol=1e-6)


def test_a_single_network_gives_its_own_probabilities(run, inputs):
    predictor = Predictor.from_runs([run], ["1"], "cpu", mirroring=False)

    np.testing.assert_allclose(
        predictor.predict_inputs(inputs), probabilities(predictor.ensemble.networks[0], inputs), atol=1e-5
    )


def test_the_batch_size_does_not_change_the_result(predictor, inputs, monkeypatch):
    results = []
    for size in (1, 2, 7, 16):
        monkeypatch.setattr(predictor, "batch_size", size)
        results.append(predictor.predict_inputs(inputs))

    assert all(result.shape == (7, 1, 64, 64) and result.dtype == np.float32 for result in results)
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (31, 200), (1, 1), (257, 90)])
def test_a_mask_has_the_size_of_its_image_and_the_values_of_the_training_masks(predictor, size):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)

    mask = predictor.predict(image)

    assert mask.shape == size
    assert mask.dtype == np.uint8
    assert {*np.unique(mask)} <= {0, 255}


def test_ellipses_are_found_at_native_size_whatever_it_is(predictor, images):
    for image in images[:4]:
        small = predictor.predict(image) > 0
        large = predictor.predict(np.asarray(Image.fromarray(image).resize((150, 150), Image.Resampling.BICUBIC))) > 0
        shrunk = np.asarray(Image.fromarray(large).resize((64, 64)))
        assert 2 * (small & shrunk).sum() / (small.sum() + shrunk.sum()) > 0.9


def test_grey_images_are_promoted_to_the_channels_of_training(predictor, images):
    grey = images[0][..., 1]

    expected = predictor.predict(np.stack([grey] * 3, axis=-1))

    np.testing.assert_array_equal(predictor.predict(grey), expected)
    np.testing.assert_array_equal(predictor.predict(grey[..., None]), expected)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint16, np.int32])
def test_images_of_another_type_are_refused(predictor, images, dtype):
    with pytest.raises(FileError, match=f"pixels are {np.dtype(dtype)}, those of the data set uint8: convert it"):
        predictor.predict(images[0].astype(dtype))


def test_images_that_are_views_are_predicted_like_copies(predictor, images):
    view = images[0][::-1, ::-1]
    view.flags.writeable = False

    np.testing.assert_array_equal(predictor.predict(view), predictor.predict(view.copy()))


@pytest.mark.parametrize("shape", [(64,), (2, 64, 64, 3), ()])
def test_arrays_with_other_axes_are_a_programmers_fault(predictor, shape):
    with pytest.raises(ValueError, match=r"an image is \[H, W\] or \[H, W, C\], not"):
        predictor.predict(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_channels_that_cannot_be_brought_to_those_of_training_are_refused(predictor, channels):
    with pytest.raises(FileError, match=f"has {channels} channels, the data set has 3: give images with 3 channels"):
        predictor.predict(np.zeros((64, 64, channels), np.uint8))


def constant_network(*logits):
    """Gives each label the same logit everywhere."""

    class Constant(torch.nn.Module):
        def forward(self, rows):
            values = torch.tensor(logits, dtype=torch.float32)[None, :, None, None]
            return values.expand(len(rows), -1, *rows.shape[2:])

    return Constant()


def with_labels(plan, written, thresholds):
    n = len(written)
    return dataclasses.replace(
        plan,
        labels=tuple(f"label {i}" for i in range(n)),
        coding=MaskCoding(kind="values", values=written, written=written),
        inference=InferencePlan(mirroring=True, thresholds=thresholds),
    )


@pytest.mark.parametrize(
    ("thresholds", "value"), [((0.5, 0.5, 0.5), 7), ((0.5, 0.9, 0.5), 300), ((0.9, 0.9, 0.9), 0), ((0.5, 0.9, 0.7), 2)]
)
def test_several_labels_are_decided_by_their_thresholds_and_written_with_their_values(predictor, thresholds, value):
    plan = with_labels(predictor.plan, (2, 7, 300), thresholds)
    three = Predictor(plan, [constant_network(0.2, 1.0, 0.5)], CPU)

    mask = three.predict(np.zeros((20, 30, 3), np.uint8))

    assert mask.dtype == np.uint16
    assert {*np.unique(mask)} == {value}


def test_a_letterbox_is_undone(predictor):
    plan = dataclasses.replace(predictor.plan, input_mode="letterbox")

    class Left(torch.nn.Module):
        def forward(self, rows):
            return torch.where(torch.arange(64) < 32, 9.0, -9.0).expand(len(rows), 1, 64, 64)

    mask = Predictor(plan, [Left()], CPU, mirroring=False).predict(np.zeros((40, 80, 3), np.uint8))

    assert (mask[:, :40] == 255).all()
    assert (mask[:, 40:] == 0).all()


def test_probabilities_are_restored_before_they_are_decided(predictor):
    stack = Stack(np.zeros((3, 1, 3, 5), np.uint8))
    constant = Predictor(predictor.plan, [constant_network(np.log(0.7 / 0.3))], CPU)

    prediction = constant.predict_case(stack, keep_probabilities=True)

    np.testing.assert_allclose(prediction.probabilities, np.full((1, 1, 3, 5), 0.7), atol=1e-6)
    np.testing.assert_array_equal(prediction.labels, np.ones((1, 3, 5)))
    assert constant.predict_case(stack).probabilities is None


def test_the_slices_of_a_volume_are_predicted_like_pictures(predictor, images):
    stack = Stack(np.stack([np.moveaxis(image, 2, 0) for image in images[:7]], axis=1))

    labels = predictor.predict_case(stack).labels

    assert labels.shape == (7, 64, 64)
    for image, slice_labels in zip(images, labels, strict=False):
        np.testing.assert_array_equal(slice_labels * 255, predictor.predict(image))


# Memory -------------------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_halved_until_it_does(predictor, inputs, strange, caplog):
    greedy = strange.Greedy(3, 1, 4, 3)
    tight = Predictor(predictor.plan, [greedy], CPU, mirroring=False)
    tight.batch_size = 8

    result = tight.predict_inputs(inputs)

    assert caplog.messages == [
        "memory ran out on cpu: going on with batches of 4",
        "memory ran out on cpu: going on with batches of 2",
    ]
    np.testing.assert_allclose(result, probabilities(greedy.network, inputs), atol=1e-5)
    tight.predict_inputs(inputs)
    assert len(caplog.messages) == 2


def test_an_image_that_never_fits_is_refused_in_one_line(predictor, inputs, strange):
    tight = Predictor(predictor.plan, [strange.Insatiable(3, 1, 4, 3)], CPU)

    with pytest.raises(PredictionError, match="not enough memory for one image: close other programs"):
        tight.predict_inputs(inputs)


def test_other_faults_of_a_network_keep_their_traceback(predictor, inputs):
    broken = Predictor(predictor.plan, [torch.nn.Conv2d(5, 1, 1)], CPU)

    with pytest.raises(RuntimeError, match="to have 5 channels, but got 3"):
        broken.predict_inputs(inputs)


# Making one ---------------------------------------------------------------------------------------------------------


def test_a_predictor_needs_a_network(predictor):
    with pytest.raises(ValueError, match="a predictor needs at least one network"):
        Predictor(predictor.plan, [], CPU)


def test_networks_are_put_into_evaluation_mode(predictor, strange):
    network = strange.Dropping(3, 1, 4, 3)
    rows = np.ones((1, 3, 64, 64), np.float32)
    dropping = Predictor(predictor.plan, [network.train()], CPU)

    np.testing.assert_array_equal(dropping.predict_inputs(rows), dropping.predict_inputs(rows))


def copy_with_plan(run, folder, **changes):
    """A run whose record has another plan, with the weights of its fold 0."""
    copy = Run(folder / "toy" / "runs" / "copy")
    fold = copy.fold("0")
    fold.root.mkdir(parents=True)
    fold.weights.write_bytes(run.fold("0").weights.read_bytes())
    fold.summary_json.write_bytes(run.fold("0").summary_json.read_bytes())
    copy.write_record(dataclasses.replace(run.record, plan=dataclasses.replace(run.record.plan, **changes)))
    return copy


def test_runs_on_other_arrays_do_not_go_together(run, tmp_path):
    other = copy_with_plan(run, tmp_path, fingerprint="0" * 64)

    with pytest.raises(PredictionError, match="copy and unet-best-random were trained on other data or arrays"):
        Predictor.from_runs([run, other], device="cpu")


def test_runs_on_the_same_arrays_are_one_ensemble(run, tmp_path, inputs):
    both = Predictor.from_runs([run, copy_with_plan(run, tmp_path)], ["0"], "cpu")

    assert len(both.ensemble.networks) == 2
    np.testing.assert_allclose(
        both.predict_inputs(inputs), Predictor.from_runs([run], ["0"], "cpu").predict_inputs(inputs), atol=1e-6
    )


def test_a_strangers_network_is_built_only_when_it_is_trusted(run, tmp_path, strange, inputs):
    name = "strange_networks:Strange"
    other = copy_with_plan(run, tmp_path, network=NetworkPlan(name=name, width=4, depth=3))
    network = strange.Strange(3, 1, 4, 3)
    save_weights(other.fold("0").weights, network.state_dict())
    write_summary(other.fold("0"), {})

    for trusted in (None, "strange_networks:Greedy"):
        with pytest.raises(PredictionError, match=f"was trained with {name}, whose code .* give --network {name} if"):
            Predictor.from_runs([other], device="cpu", trusted_network=trusted)
    predictor = Predictor.from_runs([other], None, "cpu", mirroring=False, trusted_network=name)
    np.testing.assert_allclose(predictor.predict_inputs(inputs), probabilities(network, inputs), atol=1e-5)


def test_weights_of_another_network_are_refused(run, tmp_path):
    other = copy_with_plan(run, tmp_path, network=NetworkPlan(name="unet", width=5, depth=3))

    with pytest.raises(NetworkError, match="holds weights of another network"):
        Predictor.from_runs([other], device="cpu")


def test_a_file_that_cannot_be_read_is_named(predictor, tmp_path):
    (tmp_path / "half.png").write_bytes(b"no image")

    with pytest.raises(PredictionError, match=r"half\.png "):
        predictor.predict([tmp_path / "half.png"])
    with pytest.raises(PredictionError, match=r"nowhere\.png "):
        predictor.predict(str(tmp_path / "nowhere.png"))


def test_one_of_several_channel_files_is_no_image(make_plan, tmp_path):
    plan = make_plan(channels=3, channel_files=3)
    several = Predictor(plan, [torch.nn.Conv2d(3, 1, 1)], CPU)
    Image.new("L", (64, 64)).save(tmp_path / "a_0000.png")

    with pytest.raises(PredictionError, match=r"a_0000\.png is one of 3 channel files: use predict_folder"):
        several.predict(tmp_path / "a_0000.png")
    assert several.predict(np.zeros((64, 64, 3), np.uint8)).shape == (64, 64)


def test_paths_and_pixels_give_the_same_masks(predictor, trained_toy):
    folder = Path(DatasetFolder(trained_toy / "toy").load_dataset().source.root) / "images"
    paths = sorted(folder.glob("*.png"))[:2]

    by_path = predictor.predict([*map(str, paths)])

    for mask, path in zip(by_path, paths, strict=True):
        np.testing.assert_array_equal(mask, predictor.predict(np.asarray(Image.open(path))))


def test_what_was_learnt_of_postprocessed_masks_is_left_out_without_postprocessing(make_plan):
    plan = make_plan()
    numbers = {"rank_correlation": 0.7, "low": 0.6, "high": 0.8, "dice_unflagged": 0.9}
    models = {"r": {"0": DiceModel(intercept=0.5, coefficients=(0.0,) * 5)}}
    learnt = ExpectedDice(flag_below=0.4, models=models, **numbers)
    cleaned = Tuning(
        postprocessing=Postprocessing(thresholds=(0.5,), cleaning=(LabelCleaning(smallest=9),)), expected_dice=learnt
    )
    as_it_comes = Tuning(
        postprocessing=Postprocessing(thresholds=(0.5,), cleaning=(LabelCleaning(),)), expected_dice=learnt
    )

    assert cleaned.without_postprocessing(plan) == Tuning()
    assert as_it_comes.without_postprocessing(plan) == Tuning(expected_dice=learnt)


def test_names_and_networks_belong_together(make_plan):
    with pytest.raises(ValueError, match="2 names for 1 networks"):
        Predictor(make_plan(), [torch.nn.Conv2d(1, 1, 1)], CPU, members=[NetworkName(run="a"), NetworkName(run="b")])
