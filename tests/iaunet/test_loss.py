import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iaunet.loss import bce_dice_loss


def numpy_loss(logits, targets, valid):
    """Equations 9-11 image by image and label by label, in float64: (bce, dice)."""
    bce, dice = [], []
    for image, truth, kept in zip(logits, targets, valid, strict=True):
        for z, y in zip(image, truth, strict=True):
            z, y = z[kept[0] > 0], y[kept[0] > 0]
            p = 1 / (1 + np.exp(-z))
            cost = -(y * np.log(p) + (1 - y) * np.log(1 - p))
            bce.append(cost.mean() if z.size else 0.0)
            dice.append(1 - (2 * (p * y).sum() + 1) / ((p + y).sum() + 1))
    return np.mean(bce), np.mean(dice)


def drawn(seed, shape=(2, 3, 4, 5), kept=0.7):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, shape)
    targets = (rng.random(shape) < 0.4).astype(float)
    valid = (rng.random((shape[0], 1, *shape[2:])) < kept).astype(float)
    return logits, targets, valid


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    kept=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_the_loss_follows_its_equations(seed, shape, kept):
    logits, targets, valid = drawn(seed, shape, kept)
    bce, dice = numpy_loss(logits, targets, valid)

    parts = bce_dice_loss(*tensors(logits, targets, valid))

    assert parts.bce.item() == pytest.approx(bce, rel=1e-5, abs=1e-6)
    assert parts.dice.item() == pytest.approx(dice, rel=1e-5, abs=1e-6)
    assert parts.loss.item() == pytest.approx(bce + dice, rel=1e-5, abs=1e-6)


def test_without_a_mask_every_pixel_counts():
    logits, targets, valid = tensors(*drawn(0))

    assert bce_dice_loss(logits, targets) == bce_dice_loss(logits, targets, torch.ones_like(valid))


def test_ignored_pixels_change_neither_loss_nor_gradient():
    logits, targets, valid = tensors(*drawn(0))
    logits.requires_grad_()
    altered = torch.where(valid > 0, targets, 255)

    (gradient,) = torch.autograd.grad(bce_dice_loss(logits, altered, valid).loss, logits)

    assert bce_dice_loss(logits, altered, valid) == bce_dice_loss(logits, targets, valid)
    assert (gradient[(valid == 0).expand_as(gradient)] == 0).all()
    assert (gradient[(valid > 0).expand_as(gradient)] != 0).all()


def test_the_loss_of_a_batch_is_the_mean_over_its_images():
    logits, targets, valid = tensors(*drawn(0, shape=(4, 2, 5, 5)))
    whole = bce_dice_loss(logits, targets, valid).loss
    parts = [bce_dice_loss(logits[i : i + 1], targets[i : i + 1], valid[i : i + 1]).loss for i in range(4)]

    torch.testing.assert_close(torch.stack(parts).mean(), whole)


@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_a_perfect_prediction_costs_nothing(truth):
    targets = torch.full((2, 1, 16, 16), truth)

    parts = bce_dice_loss(torch.full_like(targets, 40.0 if truth else -40.0), targets)

    assert parts.loss.item() == pytest.approx(0, abs=1e-6)


def test_false_foreground_on_an_empty_mask_is_pushed_down_by_both_parts():
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    parts = bce_dice_loss(logits, torch.zeros(1, 1, 8, 8))

    for part in (parts.bce, parts.dice):
        (gradient,) = torch.autograd.grad(part, logits, retain_graph=True)
        assert (gradient > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_half_precision_logits_give_finite_values_and_gradients(dtype):
    logits = torch.tensor([60000.0, -60000.0]).to(dtype).repeat(2, 1, 256, 128).requires_grad_()
    targets = torch.zeros(2, 1, 256, 256, dtype=torch.uint8)
    targets[0, :, :128] = 1

    with torch.autocast("cpu", torch.bfloat16):
        parts = bce_dice_loss(logits, targets)
    parts.loss.backward()

    assert all(part.dtype == torch.float32 and part.isfinite() for part in parts)
    assert parts.bce.item() == pytest.approx(float(logits.detach().float().abs().mean()) / 2, rel=1e-3)
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() > 0


def test_gradients_are_those_of_a_finite_difference():
    logits, targets, valid = drawn(1, shape=(1, 2, 3, 3))
    step = 1e-6
    expected = np.empty_like(logits)
    for index in np.ndindex(*logits.shape):
        shift = np.zeros_like(logits)
        shift[index] = step
        above, below = (sum(numpy_loss(logits + sign * shift, targets, valid)) for sign in (1, -1))
        expected[index] = (above - below) / (2 * step)
    leaf = torch.from_numpy(logits).requires_grad_()

    bce_dice_loss(leaf, *tensors(targets, valid)).loss.backward()

    np.testing.assert_allclose(leaf.grad, expected, atol=1e-6)


def test_shapes_that_do_not_match_are_refused():
    logits = torch.zeros(2, 1, 4, 4)

    with pytest.raises(ValueError, match=r"\[2, 1, 4, 4\] and targets \[2, 4, 4\]: give both as \[batch, labels"):
        bce_dice_loss(logits, logits[:, 0])
    with pytest.raises(ValueError, match=r"valid \[2, 4, 4\]: give one plane an image, \[2, 1, 4, 4\]"):
        bce_dice_loss(logits, logits, logits[:, 0])
