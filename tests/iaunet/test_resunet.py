import numpy as np
import pytest
import torch
from torch import nn

from iaunet.errors import NetworkError
from iaunet.networks.counting import count_multiply_adds, count_parameters
from iaunet.networks.resunet import Residual, ResidualUp, build_resunet


def randomised(module):
    """The module in float64 and evaluation mode, every value drawn anew so that no default hides a fault."""
    for name, tensor in module.double().state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5 if "running_var" in name else -1, 1.5)
    return module.eval()


def values_of(module):
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def numpy_convolve(x, values, name, stride=1):
    """A 3x3 convolution with zeros around the image, of every pixel or of every other one."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bihwkl,oikl->bohw", windows, values[f"{name}.weight"])


def numpy_norm(x, values, name):
    mean, variance, scale, shift = (
        values[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift


def numpy_unit(x, values, prefix="", stride=1):
    rectified = np.maximum(numpy_norm(x, values, f"{prefix}body.0"), 0)
    inner = numpy_norm(numpy_convolve(rectified, values, f"{prefix}body.2", stride), values, f"{prefix}body.3")
    body = numpy_convolve(np.maximum(inner, 0), values, f"{prefix}body.5")
    shortcut = numpy_convolve(x, values, f"{prefix}shortcut.0", stride)
    return body + numpy_norm(shortcut, values, f"{prefix}shortcut.1")


def numpy_enlarge(x, weight, bias):
    """Each pixel becomes the 2x2 square of the transposed convolution."""
    batch, _, height, width = x.shape
    squares = np.einsum("bihw,iokl->bohkwl", x, weight)
    return squares.reshape(batch, weight.shape[1], 2 * height, 2 * width) + bias[:, None, None]


def built(**sizes):
    torch.manual_seed(0)
    return build_resunet(**{"channels": 3, "labels": 2, "width": 4, "depth": 3} | sizes)


def test_a_residual_module_adds_its_branches():
    module = Residual(nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3))
    x = torch.randn(1, 2, 5, 6)

    assert torch.equal(module(x), module.body(x) + module.shortcut(x))


@pytest.mark.parametrize("size", [(6, 8), (2, 4)])
def test_a_unit_of_the_encoder_halves_in_both_branches(size):
    unit = randomised(built().stages[1])
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    before = x.clone()

    halved = unit(x).detach().numpy()

    assert halved.shape == (2, 8, size[0] // 2, size[1] // 2)
    np.testing.assert_allclose(halved, numpy_unit(x.numpy(), values_of(unit), stride=2), atol=1e-11)
    assert torch.equal(x, before)  # the shortcut and the skip need it as it was


def test_the_stem_takes_the_image_unnormalised_in_both_branches():
    stem = randomised(built().stages[0])
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    values = values_of(stem)

    inner = np.maximum(numpy_norm(numpy_convolve(x.numpy(), values, "body.0"), values, "body.1"), 0)
    expected = numpy_convolve(inner, values, "body.3") + numpy_convolve(x.numpy(), values, "shortcut")

    np.testing.assert_allclose(stem(x).detach().numpy(), expected, atol=1e-11)


def test_a_step_of_the_decoder_joins_the_enlarged_map_first_and_keeps_its_width():
    torch.manual_seed(0)
    up = randomised(ResidualUp(4, 2))
    deep, skip = torch.randn(1, 4, 3, 5, dtype=torch.float64), torch.randn(1, 2, 6, 10, dtype=torch.float64)
    values = values_of(up)

    enlarged = numpy_enlarge(deep.numpy(), values["upsample.weight"], values["upsample.bias"])
    expected = numpy_unit(np.concatenate([enlarged, skip.numpy()], axis=1), values, "unit.")

    assert enlarged.shape == (1, 4, 6, 10)
    np.testing.assert_allclose(up(deep, skip).detach().numpy(), expected, atol=1e-11)


def test_the_published_stages_are_64_128_256_and_a_bridge_of_512():
    with torch.device("meta"):
        network = build_resunet(channels=3, labels=1)

    assert [stage.body[-1].out_channels for stage in network.stages] == [64, 128, 256, 512]
    assert network.multiple == 8


# The published counts are 13.04 M and 71.10 G.
def test_the_network_is_as_large_as_published():
    with torch.device("meta"):
        network = build_resunet(channels=3, labels=1)

    assert count_parameters(network) == 13_038_785
    assert count_multiply_adds(network, 3, (256, 256)) == 71_097_647_104


def test_convolutions_of_both_branches_are_drawn_by_their_fan_out():
    unit = built(width=64).stages[1]

    for convolution in (unit.body[2], unit.body[5], unit.shortcut[0]):
        assert convolution.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.05)


def test_every_bias_is_learned_from_beyond_the_last_digits():
    """A bias that a normalisation subtracts again would have a gradient of rounding errors."""
    network = built().double()

    network(torch.randn(2, 3, 16, 16, dtype=torch.float64)).square().mean().backward()

    assert min(value.grad.abs().max().item() for value in network.parameters()) > 1e-6


def test_what_it_computes_is_the_same_with_the_channels_last_in_memory():
    network = built().double()
    images = torch.randn(1, 3, 24, 20, dtype=torch.float64)
    expected = network(images)

    turned = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))

    torch.testing.assert_close(turned, expected)


@pytest.mark.parametrize("number", [{"channels": 0}, {"labels": 0}, {"width": 0}])
def test_numbers_below_1_are_refused(number):
    with pytest.raises(NetworkError, match=r"is 0: give 1 or more"):
        built(**number)


@pytest.mark.parametrize("depth", [2, 7])
def test_a_depth_that_no_network_has_is_refused(depth):
    with pytest.raises(NetworkError, match=f"depth is {depth}: plan 3 to 6 stages"):
        built(depth=depth)
