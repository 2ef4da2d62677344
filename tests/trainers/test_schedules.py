import dataclasses
import math
from itertools import pairwise

import pytest

from iaunet.planners.recipes import RECIPES
from iaunet.trainers.schedules import learning_rate

RECIPE = dataclasses.replace(RECIPES["best"], lr=0.01, warmup_epochs=0, schedule="cosine")


def rates(epochs=10, steps=7, **changes):
    recipe = dataclasses.replace(RECIPE, **changes)
    return [learning_rate(recipe, step, steps, epochs) for step in range(epochs * steps)]


def test_a_constant_rate_stays():
    assert set(rates(schedule="constant")) == {0.01}


def test_the_cosine_falls_along_half_a_wave_that_ends_one_step_after_the_last():
    found = rates()

    assert found == pytest.approx([0.01 * (1 + math.cos(math.pi * step / 70)) / 2 for step in range(70)])
    assert found[0] == 0.01
    assert found[35] == pytest.approx(0.005)
    assert all(before > after > 0 for before, after in pairwise(found))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_rises_linearly_over_the_warm_up(schedule):
    found = rates(epochs=20, schedule=schedule, warmup_epochs=2)

    assert found[:14] == pytest.approx([0.01 * (step + 1) / 14 for step in range(14)])
    assert max(found) == found[13] == found[14] == 0.01
    assert found[-1] == 0.01 if schedule == "constant" else found[-1] < 1e-4


@pytest.mark.parametrize(("epochs", "rising"), [(1, 0), (3, 2), (10, 7), (40, 28)])
def test_the_warm_up_of_a_short_training_is_a_tenth_of_it(epochs, rising):
    found = rates(epochs=epochs, warmup_epochs=20, schedule="constant")

    assert found[:rising] == pytest.approx([0.01 * (step + 1) / rising for step in range(rising)])
    assert set(found[rising:]) == {0.01}


def test_steps_after_the_planned_end_keep_the_last_rate():
    assert learning_rate(RECIPE, 1000, steps_an_epoch=7, epochs=10) == 0
