from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from iaunet.errors import NetworkError
from iaunet.networks.attention_unet import AttentionGate, GatedUp, build_attention_unet
from iaunet.networks.counting import count_multiply_adds, count_parameters


def randomised(module):
    """The module in float64 and evaluation mode, every value drawn anew so that no default hides a fault."""
    for name, tensor in module.double().state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5 if "running_var" in name else -1, 1.5)
    return module.eval()


def values_of(module):
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def numpy_conv_norm(x, values, convolution, norm):
    """A convolution of odd side with zeros around the image, and the normalisation by running statistics."""
    weight = values[f"{convolution}.weight"]
    border = weight.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (border, border), (border, border)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[-2:], axis=(2, 3))
    convolved = np.einsum("bihwkl,oikl->bohw", windows, weight)
    mean, variance, scale, shift = (
        values[f"{norm}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (convolved - mean) / np.sqrt(variance + 1e-5) * scale + shift


def numpy_gate(skip, gate, values, prefix=""):
    branches = {"from_gate": gate, "from_skip": skip}
    summed = sum(numpy_conv_norm(x, values, f"{prefix}{name}.0", f"{prefix}{name}.1") for name, x in branches.items())
    score = numpy_conv_norm(np.maximum(summed, 0), values, f"{prefix}psi.0", f"{prefix}psi.1")
    return skip / (1 + np.exp(-score))


@pytest.mark.parametrize("width", [1, 2, 6])
def test_a_gate_weighs_the_skip_by_the_printed_formula(width):
    torch.manual_seed(width)
    gate = randomised(AttentionGate(width))
    skip, signal = torch.randn(2, 2, width, 5, 7, dtype=torch.float64)

    expected = numpy_gate(skip.numpy(), signal.numpy(), values_of(gate))

    np.testing.assert_allclose(gate(skip, signal).detach().numpy(), expected, atol=1e-12)


def test_all_maps_of_a_pixel_share_one_weight_between_0_and_1():
    torch.manual_seed(0)
    gate = randomised(AttentionGate(4))
    skip, signal = torch.rand(2, 1, 4, 6, 6, dtype=torch.float64) + 0.1

    alpha = gate(skip, signal) / skip

    torch.testing.assert_close(alpha, alpha[:, :1].expand_as(alpha))
    assert alpha.min() > 0
    assert alpha.max() < 1
    assert alpha[0, 0].std() > 0.01


@pytest.mark.parametrize(("shift", "alpha"), [(0.0, 0.5), (-200.0, 0.0), (200.0, 1.0), (np.log(3), 0.75)])
def test_a_gate_whose_score_is_the_same_everywhere_scales_the_skip(shift, alpha):
    gate = AttentionGate(4)
    nn.init.zeros_(gate.psi[1].weight)
    nn.init.constant_(gate.psi[1].bias, shift)
    skip, signal = torch.randn(2, 3, 4, 8, 8)

    torch.testing.assert_close(gate(skip, signal), alpha * skip)


def test_a_step_of_the_decoder_repeats_pixels_and_joins_the_gated_skip_first():
    torch.manual_seed(0)
    up = randomised(GatedUp(4, 2))
    deep, skip = torch.randn(1, 4, 3, 5, dtype=torch.float64), torch.randn(1, 2, 6, 10, dtype=torch.float64)
    values = values_of(up)

    repeated = deep.numpy().repeat(2, axis=2).repeat(2, axis=3)
    enlarged = np.maximum(numpy_conv_norm(repeated, values, "enlarge.1.0", "enlarge.1.1"), 0)
    joined = np.concatenate([numpy_gate(skip.numpy(), enlarged, values, "gate."), enlarged], axis=1)
    for step in ("convolve.0", "convolve.1"):
        joined = np.maximum(numpy_conv_norm(joined, values, f"{step}.0", f"{step}.1"), 0)

    np.testing.assert_allclose(up(deep, skip).detach().numpy(), joined, atol=1e-11)


def test_every_skip_is_gated_at_half_its_width():
    network = build_attention_unet(channels=3, labels=1, width=6, depth=5)

    assert [up.gate.from_skip[0].in_channels for up in network.ups] == [6, 12, 24, 48]
    assert [up.gate.psi[0].in_channels for up in network.ups] == [3, 6, 12, 24]


def test_closed_gates_leave_a_network_without_skips():
    torch.manual_seed(0)
    closed = build_attention_unet(channels=1, labels=1, width=4, depth=3).eval()
    without_skips = deepcopy(closed)
    for up in closed.ups:
        nn.init.zeros_(up.gate.psi[1].weight)
        nn.init.constant_(up.gate.psi[1].bias, -1000.0)
    for up, width in zip(without_skips.ups, (4, 8), strict=True):
        nn.init.zeros_(up.convolve[0][0].weight[:, :width])
    images = torch.randn(1, 1, 16, 16)

    torch.testing.assert_close(closed(images), without_skips(images))


# The published counts, 34.88 M and 66.43 G. The first includes 7812 biases that batch normalisation subtracts again:
# two a stage of the encoder (3968), three a step of the decoder (2880), and those of the gates (964). The second holds
# if the gates' products, one for each value of a skip, are counted as well; the convolutions alone make 66.42 G.
def test_the_network_is_as_large_as_published():
    with torch.device("meta"):
        published = build_attention_unet(channels=3, labels=1, biases=True)
        network = build_attention_unet(channels=3, labels=1)
    values_of_skips = sum(64 * 2**stage * (256 >> stage) ** 2 for stage in range(4))

    assert count_parameters(published) == 34_878_573
    assert count_parameters(network) == 34_878_573 - (3968 + 2880 + 964)
    for variant in (network, published):
        assert count_multiply_adds(variant, 3, (256, 256)) == 66_424_930_304
    assert 66_424_930_304 + values_of_skips == 66_432_794_624


def test_biases_ahead_of_a_normalisation_change_nothing_that_is_learned():
    torch.manual_seed(0)
    plain = build_attention_unet(channels=2, labels=1, width=3, depth=3).double()
    torch.manual_seed(0)
    biased = build_attention_unet(channels=2, labels=1, width=3, depth=3, biases=True).double()
    added = set(biased.state_dict()) - set(plain.state_dict())
    for name in added:
        assert not biased.get_parameter(name).any()
        nn.init.normal_(biased.get_parameter(name))
    images = torch.randn(2, 2, 16, 16, dtype=torch.float64)

    torch.testing.assert_close(biased(images), plain(images))
    assert len(added) == 6 + 2 * (3 + 3)


def test_what_it_computes_is_the_same_with_the_channels_last_in_memory():
    torch.manual_seed(0)
    network = build_attention_unet(channels=3, labels=2, width=4, depth=3).double()
    images = torch.randn(1, 3, 24, 20, dtype=torch.float64)
    expected = network(images)

    turned = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))

    torch.testing.assert_close(turned, expected)


@pytest.mark.parametrize("number", [{"channels": 0}, {"labels": 0}, {"width": 0}])
def test_numbers_below_1_are_refused(number):
    with pytest.raises(NetworkError, match=r"is 0: give 1 or more"):
        build_attention_unet(**{"channels": 1, "labels": 1, "width": 1} | number)


@pytest.mark.parametrize("depth", [2, 7])
def test_a_depth_that_no_network_has_is_refused(depth):
    with pytest.raises(NetworkError, match=f"depth is {depth}: plan 3 to 6 stages"):
        build_attention_unet(channels=1, labels=1, depth=depth)
