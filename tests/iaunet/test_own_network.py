"""What docs/own-network.md says, done with the example it gives."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from iaunet.errors import NetworkError, TrainingError
from iaunet.inference.predict_command import main as predict
from iaunet.inference.runs import Run
from iaunet.loss import bce_dice_loss
from iaunet.networks import build_network, check_network
from iaunet.planners.plan import load_plan
from iaunet.trainers.command import main as train
from iaunet.trainers.training import TrainingOptions, resolve_plan
from iaunet.workspace import DatasetFolder

PAGE = (Path(__file__).parents[2] / "docs" / "own-network.md").read_text(encoding="utf-8")
NAME = "my_package.my_module:build_dilated"
RUN = "build_dilated-best-random"
every_norm = pytest.mark.parametrize("norm", ["batch", "group"])


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def my_package(tmp_path_factory):
    """The page's example, where Python finds it."""
    [example] = blocks("python")
    folder = tmp_path_factory.mktemp("own network")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "my_module.py").write_text(example, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def build(seed=0, **options):
    torch.manual_seed(seed)
    return build_network(NAME, **{"channels": 3, "labels": 2, "width": 4, "depth": 4, **options})


# The network --------------------------------------------------------------------------------------------------------


@every_norm
def test_logits_have_the_size_of_the_input_alone_and_in_a_batch(norm):
    network = build(norm=norm, dropout=0.5).eval()
    images = torch.randn(3, 3, 48, 32)

    logits = network(images)

    assert logits.shape == (3, 2, 48, 32)
    torch.testing.assert_close(torch.cat([network(image[None]) for image in images]), logits, rtol=1e-4, atol=1e-5)


@every_norm
def test_the_gradient_reaches_every_parameter(norm):
    network = build(norm=norm)
    targets = (torch.rand(2, 2, 32, 32) < 0.5).float()

    bce_dice_loss(network(torch.randn(2, 3, 32, 32)), targets).loss.backward()

    assert [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


@every_norm
def test_weights_survive_their_file_and_a_seed_fixes_them(norm, tmp_path):
    network, same, other = build(1, norm=norm).eval(), build(1, norm=norm).eval(), build(2, norm=norm).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(same(images), network(images))
    assert not torch.equal(other(images), network(images))

    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))

    assert torch.equal(other(images), network(images))


def test_options_that_do_not_fit_are_refused_as_the_page_says():
    wrong = [{"norm": "instance"}, {"dropout": True}, {"kernel": 3}, {"dropout": 1.5}]
    told = []
    for options in wrong:
        with pytest.raises(NetworkError) as caught:
            build(**options)
        told.append(str(caught.value))

    assert blocks("text")[0].splitlines() == told


@pytest.mark.parametrize(
    ("annotation", "fitting", "other"),
    [
        ("bool", [True, False], [1, "true", None]),
        ("int", [3], [True, 3.5, "3"]),
        ("str", ["3"], [3, None]),
        ("float", [3, 0.5], [True, "3"]),
        ("Literal['batch', 'group']", ["group"], ["instance", None]),
        ("int | None", [3, None], [True, "3"]),
        ("object", ["3", 3, 0.5, True, None], []),
        (None, ["3", 3, 0.5, True, None], []),
    ],
)
def test_annotations_take_what_the_page_says(tmp_path, monkeypatch, request, annotation, fitting, other):
    module = f"annotated_{request.node.callspec.indices['annotation']}"
    option = "option" if annotation is None else f"option: {annotation}"
    text = f"from typing import Literal\ndef build(*, channels, labels, width, depth, {option} = ...): pass\n"
    (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    for value in fitting:
        check_network(f"{module}:build", {"option": value})
    for value in other:
        with pytest.raises(NetworkError, match=f"option 'option' of network '{module}:build' is {value!r}: give "):
            check_network(f"{module}:build", {"option": value})


# The commands -------------------------------------------------------------------------------------------------------


def test_the_commands_train_it_and_predict_with_it_once_it_is_named(workspace, tmp_path, capsys):
    known = ("--workspace", str(workspace))
    options = ("--network_option", "norm=group", "--network_option", "dropout=0.1", "--epochs", "1")
    raw = Path(DatasetFolder(workspace / "toy").load_dataset().source.root)
    images = ("-i", str(raw / "images"), "-o", str(tmp_path / "out"), "-d", "toy", "--fast")

    assert train(["toy", "0", *known, "--network", NAME, *options]) == 0

    run = Run(workspace / "toy" / "runs" / RUN)
    assert run.fold("0").is_finished
    planned = run.record.plan.network
    assert (planned.name, planned.options) == (NAME, {"norm": "group", "dropout": 0.1})
    assert (planned.width, planned.depth) == (2, 3)  # 32 and 5, as the plan's U-Net of width 4, depth 3 is to 64 and 5
    capsys.readouterr()
    assert predict([*images, *known]) == 2
    assert capsys.readouterr().err == f"error: {blocks('text')[1].splitlines()[0]}\n"
    assert not (tmp_path / "out").exists()
    assert predict([*images, *known, "--network", NAME]) == 0
    masks = sorted((tmp_path / "out").glob("*.png"))
    assert [path.name for path in masks] == [f"case_{i:02d}.png" for i in range(18)]
    assert all(np.asarray(Image.open(path)).shape == (64, 64) for path in masks)


def test_a_value_that_the_builder_refuses_is_one_line(workspace, capsys):
    options = ("--network", NAME, "--network_option", "dropout=1.5")

    assert train(["toy", "0", "--workspace", str(workspace), *options]) == 2

    assert capsys.readouterr().err == "error: dropout is 1.5: give a number from 0 to below 1\n"
    assert not (workspace / "toy" / "runs" / RUN).exists()


def test_a_plan_that_names_it_holds_its_sizes_and_options_and_is_refused_until_it_is_named(workspace):
    [edit] = blocks("json")
    path = workspace / "toy" / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | json.loads(edit)), encoding="utf-8")
    plan = load_plan(path)

    with pytest.raises(TrainingError) as caught:
        resolve_plan(plan, TrainingOptions())
    assert str(caught.value) == blocks("text")[1].splitlines()[1]
    network = resolve_plan(plan, TrainingOptions(network=NAME)).network
    assert (network.width, network.depth, network.options) == (16, 4, {"norm": "group", "dropout": 0.1})
    other = resolve_plan(plan, TrainingOptions(network=NAME, width=8, network_options={"dropout": 0.2})).network
    assert (other.width, other.depth, other.options) == (8, 4, {"norm": "group", "dropout": 0.2})
