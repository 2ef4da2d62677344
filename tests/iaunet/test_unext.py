import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from iaunet.errors import NetworkError
from iaunet.loss import bce_dice_loss
from iaunet.networks import build_network, check_network
from iaunet.networks.counting import count_multiply_adds, count_parameters
from iaunet.networks.unext import AddingUp, PatchEmbedding, TokenMLP, build_unext, shift_groups


def randomised(module):
    """The module with every weight and running statistic drawn anew, so that none of them can be left out unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.2)
    return module


def rolled(tokens, axis, shifts):
    """`shift_groups` by rolling a map with a border of zeros, feature by feature; tokens are [B, H, W, C]."""
    border = [(0, 0)] * 4
    border[axis] = (2, 2)
    out = np.pad(tokens, border)
    for feature, shift in enumerate(shifts):
        out[..., feature] = np.roll(out[..., feature], shift, axis)
    return out[:, 2:-2] if axis == 1 else out[:, :, 2:-2]


# Shifts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(
    ("n_features", "sizes", "shifts"),
    [
        (256, (52, 52, 52, 52, 48), (-2, -1, 0, 1, 2)),
        (160, (32, 32, 32, 32, 32), (-2, -1, 0, 1, 2)),
        (10, (2, 2, 2, 2, 2), (-2, -1, 0, 1, 2)),
        (8, (2, 2, 2, 2), (-2, -1, 0, 1)),
        (2, (1, 1), (-1, 0)),
        (1, (1,), (0,)),
    ],
)
def test_groups_of_features_are_shifted_with_zeros_from_the_border(axis, n_features, sizes, shifts):
    tokens = np.random.default_rng(0).normal(size=(2, 6, 5, n_features)).astype(np.float32)

    shifted = shift_groups(torch.from_numpy(tokens), axis)

    np.testing.assert_array_equal(shifted.numpy(), rolled(tokens, axis, np.repeat(shifts, sizes)))


def test_what_is_shifted_over_the_border_does_not_come_back():
    tokens = torch.ones(1, 2, 1, 5)

    assert shift_groups(tokens, 1)[0, :, 0].T.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]
    assert shift_groups(tokens, 2)[0, 0, 0].tolist() == [0, 0, 1, 0, 0]


# Parts --------------------------------------------------------------------------------------------------------------


def test_the_token_mlp_is_its_formula():
    block = randomised(TokenMLP(7)).double()
    x = torch.randn(2, 7, 5, 4, dtype=torch.float64)
    weights = {name: value.detach().numpy() for name, value in block.named_parameters()}
    shifts = np.repeat([-2, -1, 0, 1], [2, 2, 2, 1])

    def normalised(tokens, name):
        centred = tokens - tokens.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(tokens.var(-1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(tokens, name):
        return np.einsum("bhwc,oc->bhwo", tokens, weights[f"{name}.weight"]) + weights[f"{name}.bias"]

    tokens = x.numpy().transpose(0, 2, 3, 1)
    hidden = linear(rolled(normalised(tokens, "norm_in"), 1, shifts), "along_height")
    padded = np.pad(hidden, [(0, 0), (1, 1), (1, 1), (0, 0)])
    kernel = weights["depthwise.weight"][:, 0]
    hidden = weights["depthwise.bias"] + sum(
        padded[:, i : i + 5, j : j + 4] * kernel[:, i, j] for i in range(3) for j in range(3)
    )
    hidden = hidden * (1 + torch.erf(torch.from_numpy(hidden) / 2**0.5).numpy()) / 2
    expected = normalised(tokens + linear(rolled(hidden, 2, shifts), "along_width"), "norm_out")

    np.testing.assert_allclose(block(x).detach().numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-10)


def test_a_single_feature_is_not_normalised_away():
    block = randomised(TokenMLP(1))
    x = torch.randn(2, 1, 5, 4)
    first, second = block.along_height, block.along_width
    hidden = F.gelu(F.conv2d(x * first.weight + first.bias, block.depthwise.weight, block.depthwise.bias, padding=1))

    torch.testing.assert_close(block(x), x + hidden * second.weight + second.bias)


def test_a_patch_embedding_is_a_convolution_of_every_second_pixel_normalised_over_its_features():
    embedding = randomised(PatchEmbedding(3, 6))
    x = torch.randn(2, 3, 8, 10)
    everywhere = F.conv2d(x, embedding.convolution.weight, embedding.convolution.bias, padding=1)[..., ::2, ::2]
    centred = everywhere - everywhere.mean(1, keepdim=True)
    scaled = centred / (everywhere.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = scaled * embedding.norm.weight[:, None, None] + embedding.norm.bias[:, None, None]

    torch.testing.assert_close(embedding(x), expected, rtol=1e-4, atol=1e-5)


def test_a_step_of_the_decoder_enlarges_before_it_cuts_negatives_and_adds_the_skip():
    up = randomised(AddingUp(4, 3, tokenised=False)).eval()
    convolution, norm = up.enlarge[:2]
    x, skip = torch.randn(2, 4, 5, 6), torch.randn(2, 3, 10, 12)
    convolved = F.conv2d(x, convolution.weight, padding=1)
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    normalised = (convolved - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    large = F.interpolate(normalised, size=(10, 12), mode="bilinear", align_corners=False)

    torch.testing.assert_close(up(x, skip), large.clamp(min=0) + skip, rtol=1e-4, atol=1e-4)


def test_the_sum_passes_the_tokens_of_a_tokenised_step():
    up = randomised(AddingUp(4, 6, tokenised=True)).eval()
    x, skip = torch.randn(2, 4, 5, 6), torch.randn(2, 6, 10, 12)

    torch.testing.assert_close(up(x, skip), up.tokens(up.enlarge(x) + skip))
    assert isinstance(up.tokens, TokenMLP)


def test_linear_layers_and_convolutions_start_as_documented():
    torch.manual_seed(0)
    block, embedding = TokenMLP(256), PatchEmbedding(64, 128)

    assert block.along_height.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert embedding.convolution.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    biases = (block.along_width.bias, block.depthwise.bias, embedding.convolution.bias)
    assert not any(bias.any() for bias in biases)


# The whole ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "doubling", "maps"),
    [
        (3, False, [2, 4, 16]),
        (4, False, [2, 4, 16, 20]),
        (5, False, [2, 4, 16, 20, 32]),
        (6, False, [2, 4, 16, 20, 32, 64]),
        (5, True, [2, 4, 8, 16, 32]),
    ],
)
def test_each_stage_halves_and_the_two_deepest_work_on_tokens(depth, doubling, maps):
    network = build_unext(channels=3, labels=1, width=2, depth=depth, doubling=doubling)
    x = torch.randn(2, 3, 64, 128)
    shapes = []
    for stage in network.stages:
        x = stage(x)
        shapes.append(x.shape[1:])

    assert shapes == [(n, 64 // 2**i, 128 // 2**i) for i, n in enumerate(maps, 1)]
    tokenised = [any(isinstance(part, TokenMLP) for part in stage.modules()) for stage in network.stages]
    assert tokenised == [False] * (depth - 2) + [True] * 2
    assert [isinstance(up.tokens, TokenMLP) for up in network.ups] == [False] * (depth - 3) + [True] * 2
    assert network.multiple == 2**depth


def test_the_whole_is_the_chain_of_its_parts():
    network = randomised(build_unext(channels=3, labels=2, width=2)).eval()
    images = torch.randn(1, 3, 64, 96)
    features = [images]
    for stage in network.stages[:3]:
        convolution, norm = stage[0][:2]
        features.append(F.max_pool2d(norm(convolution(features[-1])), 2).clamp(min=0))
    for embedding, tokens in network.stages[3:]:
        features.append(tokens(embedding(features[-1])))
    x = features[5]
    for skip, up in zip(features[4:0:-1], reversed(network.ups), strict=True):
        x = up(x, skip)
    convolution, head = network.last[0], network.last[-1]
    large = F.interpolate(convolution(x), size=(64, 96), mode="bilinear", align_corners=False)

    torch.testing.assert_close(network(images), head(large.clamp(min=0)), rtol=1e-4, atol=1e-4)


# The authors' program has a bias in each of the seven convolutions before a batch normalisation as well:
# 16 + 32 + 128 in the encoder, 160 + 128 + 32 + 16 in the decoder. With these 512 it is 1,471,921: 1.47 M both ways.
@pytest.mark.parametrize(
    ("options", "parameters", "multiply_adds"),
    [
        ({}, 1_471_409, 562_003_968),
        ({"width": 8, "doubling": True}, 253_385, 99_229_696),
        ({"depth": 3}, 127_025, 244_973_568),
        ({"depth": 4}, 581_617, 423_862_272),
        ({"depth": 6}, 4_411_665, 710_098_944),
    ],
)
def test_it_is_as_large_as_published(options, parameters, multiply_adds):
    network = build_unext(channels=3, labels=1, **options)

    assert count_parameters(network) == parameters
    assert count_multiply_adds(network, 3, (256, 256)) == multiply_adds


def test_the_count_is_the_sum_of_its_parts():
    convolutions = 3 * 16 + 16 * 32 + 32 * 128 + 128 * 160 + 160 * 256  # encoder
    convolutions += 256 * 160 + 160 * 128 + 128 * 32 + 32 * 16 + 16 * 16  # decoder
    biases = 160 + 256 + 16  # where no batch normalisation follows
    batch_norms = 2 * (16 + 32 + 128 + 160 + 128 + 32 + 16)
    embedding_norms = 2 * (160 + 256)
    tokens = sum(2 * (n * n + n) + 9 * n + n + 4 * n for n in (160, 256, 160, 128))
    head = 16 + 1

    assert 9 * convolutions + biases + batch_norms + embedding_norms + tokens + head == 1_471_409


def test_the_memory_format_changes_nothing():
    torch.manual_seed(0)
    network = build_unext(channels=3, labels=2, width=4).eval()
    images = torch.randn(2, 3, 64, 96)
    expected = network(images)

    logits = network.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))

    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_last_convolution_gives_the_logits():
    """Training sets its bias to the data's share of foreground."""
    network = build_unext(channels=3, labels=2, width=4)
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]

    assert (last.kernel_size, last.out_channels) == ((1, 1), 2)
    assert last.bias is not None


def test_it_learns_ellipses(toy):
    torch.manual_seed(0)
    images, masks = (
        np.stack([np.asarray(Image.open(path)) for path in sorted((toy / part).iterdir())])
        for part in ("images", "masks")
    )
    images = torch.from_numpy(images).permute(0, 3, 1, 2) / 64 - 1.5
    targets = torch.from_numpy(masks)[:, None] / 255
    network = build_unext(channels=3, labels=1, width=4, depth=4)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = bce_dice_loss(network(images), targets).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert losses[0] > 1
    assert losses[-1] < 0.25


def test_its_options_are_checked():
    check_network("unext", {"doubling": True})
    with pytest.raises(NetworkError, match="option 'doubling' of network 'unext' is 2: give bool"):
        build_network("unext", channels=3, labels=1, width=8, depth=5, doubling=2)
    with pytest.raises(NetworkError, match="'unext' has no option 'variant': its options are doubling"):
        check_network("unext", {"variant": "small"})


def test_numbers_beyond_its_range_are_refused():
    with pytest.raises(NetworkError, match="depth is 7: plan 3 to 6 stages"):
        build_unext(channels=3, labels=1, depth=7)
    with pytest.raises(NetworkError, match="width is 0: give 1 or more"):
        build_unext(channels=3, labels=1, width=0)
