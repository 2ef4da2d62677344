import dataclasses
import json

import pytest

from iaunet.errors import PlanError
from iaunet.networks import NETWORKS
from iaunet.planners.recipes import NEEDS, RECIPES, Augmentation, Recipe, adapt_recipe, find_recipe
from iaunet.records import FieldError, from_json, to_json


def test_the_papers_recipe_is_the_papers():
    paper = find_recipe("paper")

    assert (paper.optimiser, paper.lr, paper.weight_decay) == ("adam", 1e-4, 1e-5)
    assert (paper.batch_size, paper.epochs, paper.schedule, paper.average_weights) == (16, 500, "constant", False)
    used = {name for name, value in vars(paper.augmentation).items() if name.endswith("_probability") and value}
    assert used == {"mirror_probability", "brightness_probability"}


def test_a_network_that_needs_it_is_warmed_up_under_best_and_under_paper_like_all():
    swin, usual = find_recipe("best", "swin_unet"), find_recipe("best", "unet")
    changed = {name for name, value in vars(swin).items() if value != getattr(usual, name)}

    assert usual == RECIPES["best"]
    assert (swin.optimiser, swin.lr, swin.weight_decay, swin.clip_gradient_norm) == ("adamw", 5e-4, 0.05, 1.0)
    assert swin.warmup_epochs == 20
    assert changed == {"optimiser", "lr", "weight_decay", "warmup_epochs", "clip_gradient_norm"}
    assert find_recipe("paper", "swin_unet") == RECIPES["paper"]


def test_needs_give_way_to_those_of_another_network_and_edits_stay():
    edited = dataclasses.replace(RECIPES["best"], lr=3e-4, epochs=7)

    swin = adapt_recipe(edited, "swin_unet")

    assert (swin.lr, swin.epochs, swin.optimiser, swin.warmup_epochs) == (3e-4, 7, "adamw", 20)
    assert adapt_recipe(swin, "unet", "swin_unet") == edited
    assert adapt_recipe(RECIPES["paper"], "swin_unet") == RECIPES["paper"]
    own = dataclasses.replace(RECIPES["best"], name="own")
    assert adapt_recipe(own, "swin_unet") == own


def test_what_recipes_do_otherwise_is_for_networks_that_exist():
    assert {(recipe in RECIPES, network in NETWORKS) for recipe, network in NEEDS} == {(True, True)}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_bears_its_name_and_survives_its_json(name):
    recipe = find_recipe(name)

    assert recipe.name == name
    assert from_json(Recipe, json.loads(json.dumps(to_json(recipe)))) == recipe


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(PlanError, match="recipe 'fast' is not known: choose one of paper, best"):
        find_recipe("fast")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("lr", 0.0, "a number above 0, 1 at most"),
        ("lr", 2.0, "a number above 0, 1 at most"),
        ("weight_decay", -1.0, "0 or more"),
        ("warmup_epochs", -1, "0 or more"),
        ("average_decay", 1.0, "0 or more, below 1"),
        ("batch_size", 0, "1 or more"),
        ("epochs", 0, "1 or more"),
        ("most_steps_an_epoch", 0, "1 or more"),
        ("foreground_rows", 1.5, "a share from 0 to 1"),
        ("clip_gradient_norm", 0.0, "a number above 0, or null"),
    ],
)
def test_a_number_no_training_can_have_is_refused(field, value, allowed):
    with pytest.raises(FieldError) as caught:
        Recipe(name="x", **{field: value})

    assert str(caught.value) == f"{field} is {value!r}: give {allowed}"


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Augmentation)])
def test_every_number_of_an_augmentation_has_its_bounds(name):
    nonsense = (
        [-0.5, 1.5] if name.endswith("_probability") else [-1, 6] if name == "interpolation_order" else [(2.0, 1.0)]
    )
    if name in ("brightness", "scaling", "gamma", "contrast", "elastic_sigma"):
        nonsense.append((0.0, 1.0))
    if name in ("noise_sd", "blur_sigma", "elastic_alpha"):
        nonsense.append((-0.1, 1.0))

    for value in nonsense:
        with pytest.raises(FieldError) as caught:
            Augmentation(**{name: value})
        assert str(caught.value).startswith(f"{name} is {value!r}: give ")


@pytest.mark.parametrize(
    ("field", "span", "message"),
    [
        ("scaling", (1.2, 2.0), "a range that begins at 1 or below"),
        ("contrast", (0.3, 0.8), "a range that ends at 1 or above"),
        ("gamma", (0.3, 0.8), "a range that ends at 1 or above"),
    ],
)
def test_ranges_that_batchgenerators_would_widen_to_1_are_refused(field, span, message):
    with pytest.raises(FieldError, match=rf"{field} is .*: give {message}"):
        Augmentation(**{field: span})
