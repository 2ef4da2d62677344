"""Recipes: how to train, as values. Nothing is left to a library's default."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from iaunet.errors import PlanError
from iaunet.records import require

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of a training row, each with its probability a row and the range it is drawn from.

    ``brightness`` multiplies intensities before normalisation. ``mirror`` is the probability of each axis.
    ``rotation`` is in degrees, ``scaling`` the factor of the shown size, ``elastic`` displaces by fields of noise
    whose strength is in ``elastic_alpha`` and whose smoothness, in pixels, in ``elastic_sigma``. ``noise_sd`` and
    ``gamma``, ``contrast`` act on normalised intensities, ``blur_sigma`` is in pixels. ``interpolation_order`` is
    that of the splines that images are sampled with (1: linear).
    """

    mirror_probability: float = 0.5
    brightness_probability: float = 0.0
    brightness: Range = (0.75, 1.25)
    rotation_probability: float = 0.0
    rotation_degrees: Range = (-180.0, 180.0)
    scaling_probability: float = 0.0
    scaling: Range = (0.7, 1.4)
    elastic_probability: float = 0.0
    elastic_alpha: Range = (0.0, 400.0)
    elastic_sigma: Range = (9.0, 13.0)
    interpolation_order: int = 1
    contrast_probability: float = 0.0
    contrast: Range = (0.65, 1.5)
    gamma_probability: float = 0.0
    gamma: Range = (0.7, 1.5)
    noise_probability: float = 0.0
    noise_sd: Range = (0.0, 0.1)
    blur_probability: float = 0.0
    blur_sigma: Range = (0.5, 1.0)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_probability"):
                require(0 <= value <= 1, name, value, "a probability from 0 to 1")
            elif isinstance(value, tuple):
                require(value[0] <= value[1], name, value, "a lower and an upper end, in this order")
        for name in ("brightness", "scaling", "gamma", "contrast", "elastic_sigma"):
            low = getattr(self, name)[0]
            require(low > 0, name, getattr(self, name), "values above 0")
        # batchgenerators would widen the others to 1
        require(self.scaling[0] <= 1, "scaling", self.scaling, "a range that begins at 1 or below")
        for name in ("gamma", "contrast"):
            require(getattr(self, name)[1] >= 1, name, getattr(self, name), "a range that ends at 1 or above")
        for name in ("noise_sd", "blur_sigma", "elastic_alpha"):
            require(getattr(self, name)[0] >= 0, name, getattr(self, name), "values of 0 or more")
        mirror = self.mirror_probability
        require(mirror <= 0.5, "mirror_probability", mirror, "a probability from 0 to 0.5")
        order = self.interpolation_order
        require(0 <= order <= 5, "interpolation_order", order, "a whole number from 0 to 5")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    ``weight_decay`` is the L2 coefficient (Adam: added to the gradient; AdamW: decoupled). ``schedule`` is what the
    learning rate ``lr`` does over the epochs, after ``warmup_epochs`` of linear rise, or a tenth of all epochs where
    that is less. ``average_weights`` keeps an
    exponential moving average, decay min(``average_decay``, (1 + t) / (10 + t)), that becomes the result. An epoch
    is each case ``draws_a_case`` times, or ``most_steps_an_epoch`` if that is less. ``foreground_rows`` is the least
    probability of drawing a row with foreground from a case that has several rows. ``start_at_prior`` begins with
    predictions of the data's own share of foreground instead of one half.
    """

    name: str
    optimiser: Literal["adam", "adamw"] = "adam"
    lr: float = 1e-4
    weight_decay: float = 1e-5
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: int = 0
    start_at_prior: bool = False
    average_weights: bool = False
    average_decay: float = 0.999
    clip_gradient_norm: float | None = None
    batch_size: int = 16
    epochs: int = 500
    draws_a_case: int = 1
    most_steps_an_epoch: int = 250
    foreground_rows: float = 1 / 3
    loss: Literal["bce_dice"] = "bce_dice"
    augmentation: Augmentation = Augmentation()

    def __post_init__(self) -> None:
        require(0 < self.lr <= 1, "lr", self.lr, "a number above 0, 1 at most")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "0 or more")
        require(0 <= self.average_decay < 1, "average_decay", self.average_decay, "0 or more, below 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(self.draws_a_case >= 1, "draws_a_case", self.draws_a_case, "1 or more")
        require(self.most_steps_an_epoch >= 1, "most_steps_an_epoch", self.most_steps_an_epoch, "1 or more")
        require(0 <= self.foreground_rows <= 1, "foreground_rows", self.foreground_rows, "a share from 0 to 1")
        clip = self.clip_gradient_norm
        require(clip is None or clip > 0, "clip_gradient_norm", clip, "a number above 0, or null")


RECIPES = {
    "paper": Recipe(name="paper", augmentation=Augmentation(brightness_probability=1.0)),
    "best": Recipe(
        name="best",
        lr=1e-3,
        schedule="cosine",
        start_at_prior=True,
        average_weights=True,
        clip_gradient_norm=12.0,
        augmentation=Augmentation(
            brightness_probability=0.5,
            rotation_probability=0.5,
            scaling_probability=0.5,
            elastic_probability=0.2,
            contrast_probability=0.2,
            gamma_probability=0.3,
            noise_probability=0.15,
            blur_probability=0.15,
        ),
    ),
}
"""``paper``: to the letter of the paper. ``best``: the best we know."""

NEEDS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("best", "swin_unet"): {
        "optimiser": "adamw",
        "lr": 5e-4,
        "weight_decay": 0.05,
        "warmup_epochs": 20,
        "clip_gradient_norm": 1.0,
    },
}
"""What a recipe does otherwise for a network that would not train well with it. ``paper`` is the same for all."""


USUAL_NETWORK = "iaunet"
"""The network that planners plan, and that `RECIPES` are for."""


def find_recipe(name: str, network: str = USUAL_NETWORK) -> Recipe:
    """The recipe of a name, as a network needs it.

    Raises:
        PlanError: There is none; the message lists the known ones.
    """
    if name not in RECIPES:
        raise PlanError(f"recipe {name!r} is not known: choose one of {', '.join(RECIPES)}")
    return dataclasses.replace(RECIPES[name], **NEEDS.get((name, network), {}))


def adapt_recipe(recipe: Recipe, network: str, before: str = USUAL_NETWORK) -> Recipe:
    """The recipe as a network needs it.

    Args:
        recipe: Made for the network ``before``; what was edited by hand stays, and so does all of a recipe that is not
            among `RECIPES`.
        network: The network it is for now.
        before: The network whose needs give way.
    """
    if recipe.name not in RECIPES:
        return recipe
    usual, wanted = vars(find_recipe(recipe.name, before)), vars(find_recipe(recipe.name, network))
    changed = {name for name, value in wanted.items() if value != usual[name] and getattr(recipe, name) == usual[name]}
    return dataclasses.replace(recipe, **{name: wanted[name] for name in changed})
