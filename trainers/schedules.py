"""What the learning rate does over the training: pure functions of the step."""

import math

from iaunet.planners.recipes import Recipe


def learning_rate(recipe: Recipe, step: int, steps_an_epoch: int, epochs: int) -> float:
    """The learning rate of a step.

    Args:
        recipe: Its schedule, warm-up and highest rate.
        step: Counted from 0 over the whole training.
        steps_an_epoch: Steps of an epoch.
        epochs: Epochs of the whole training.

    Returns:
        A rate in (0, recipe.lr]: rising linearly over the warm-up, then constant, or falling along half a cosine
        that would reach 0 one step after the last.
    """
    warmup = min(recipe.warmup_epochs * steps_an_epoch, epochs * steps_an_epoch // 10)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    if recipe.schedule == "constant":
        return recipe.lr
    progress = (step - warmup) / max(1, epochs * steps_an_epoch - warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
