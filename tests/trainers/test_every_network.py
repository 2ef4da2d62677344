"""Every network trains, is scored and predicts under every recipe, in the pipeline as it is."""

import csv
import json
import math

import pytest

from iaunet.inference.predict_command import main as predict
from iaunet.inference.runs import Run
from iaunet.inference.scores import read_scores
from iaunet.networks import NETWORKS, default_sizes
from iaunet.planners.recipes import RECIPES, adapt_recipe
from iaunet.trainers.command import main as train

SMALL = {"swin_unet": ("--network_option", "window=2")}
"""Options for the toy's 64 px, which a window of 8 would pad to 256."""


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_trains_and_is_scored_under_every_recipe(workspace, toy, tmp_path, network, recipe):
    options = ("--network", network, "--recipe", recipe, "--epochs", "1", *SMALL.get(network, ()))

    assert train(["toy", "0", *options, "--width", "4", "--workspace", str(workspace)]) == 0

    run = Run(workspace / "toy" / "runs" / f"{network}-{recipe}-random")
    plan, fold = run.record.plan, run.fold("0")
    assert plan.recipe.name == recipe
    assert plan.recipe == adapt_recipe(plan.recipe, network)
    assert (plan.network.width, plan.network.depth) == (4, max(3, default_sizes(network)["depth"] - 2))
    with fold.metrics_csv.open(newline="") as file:
        [epoch] = csv.DictReader(file)
    assert 0 < float(epoch["loss"]) < math.inf
    assert json.loads(fold.summary_json.read_text())["scores"]["n_cases"] == len(read_scores(fold.scores_csv)) == 6

    images = ("-i", str(toy / "images"), "-o", str(tmp_path / "out"), "--no_mirroring")
    assert predict([*images, "-d", "toy", "--run", run.name, "--workspace", str(workspace)]) == 0
    assert len([*(tmp_path / "out").glob("case_*.png")]) == 12
