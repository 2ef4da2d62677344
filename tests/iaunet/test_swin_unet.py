import math
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from iaunet.errors import NetworkError
from iaunet.loss import bce_dice_loss
from iaunet.networks import build_network
from iaunet.networks.counting import count_multiply_adds, count_parameters
from iaunet.networks.swin_unet import (
    KEPT_TABLES,
    DropPath,
    PatchEmbedding,
    PatchExpanding,
    PatchMerging,
    SwinBlock,
    SwinUp,
    WindowAttention,
    _kept_tables,
    build_swin_unet,
    count_heads,
    neighbours,
    window_offsets,
)

CPU = torch.device("cpu")


def tiny(*, seed=0, channels=3, labels=2, width=8, depth=3, window=2, drop_path=0.0):
    torch.manual_seed(seed)
    return build_swin_unet(
        channels=channels, labels=labels, width=width, depth=depth, window=window, drop_path=drop_path
    )


def randomised(module):
    """The module in float64 and evaluation mode, every value drawn anew so that no default hides a fault."""
    torch.manual_seed(0)
    for tensor in module.double().state_dict().values():
        tensor.uniform_(-1, 1)
    return module.eval()


def values_of(module):
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def numpy_layer_norm(x, values, prefix):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * values[f"{prefix}.weight"] + values[f"{prefix}.bias"]


def numpy_window(position, side, window, shifted):
    """The window that holds a position of an axis: shifted ones are cut at half a window, and at the image's ends."""
    shift = window // 2 if shifted and side > window else 0
    return (position - shift) // window


def numpy_window_attention(x, values, heads, window, shifted):
    """One image [H, W, C], position by position, head by head."""
    height, width, features = x.shape
    size = features // heads
    projected = x @ values["query_key_value.weight"].T + values["query_key_value.bias"]
    query, key, value = (part.reshape(height, width, heads, size) for part in np.split(projected, 3, axis=-1))
    attended = np.zeros((height, width, heads, size))
    positions = [*product(range(height), range(width))]

    def window_of(row, column):
        return numpy_window(row, height, window, shifted), numpy_window(column, width, window, shifted)

    for (row, column), head in product(positions, range(heads)):
        seen = [other for other in positions if window_of(*other) == window_of(row, column)]
        scores = [
            query[row, column, head] @ key[other_row, other_column, head] / math.sqrt(size)
            + values["offset_bias"][head, row - other_row + window - 1, column - other_column + window - 1]
            for other_row, other_column in seen
        ]
        weights = np.exp(scores) / np.exp(scores).sum()
        attended[row, column, head] = sum(w * value[*other, head] for w, other in zip(weights, seen, strict=True))
    return attended.reshape(height, width, features) @ values["project.weight"].T + values["project.bias"]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("size", "window", "heads"), [((4, 6), 2, 1), ((6, 9), 3, 2), ((8, 4), 4, 2), ((4, 4), 4, 1), ((10, 5), 5, 3)]
)
def test_window_attention_is_what_plain_loops_over_the_image_give(size, window, heads, shifted):
    attention = randomised(WindowAttention(6, heads, window, shifted=shifted))
    images = torch.randn(2, *size, 6, dtype=torch.float64)

    expected = [numpy_window_attention(image, values_of(attention), heads, window, shifted) for image in images.numpy()]

    np.testing.assert_allclose(attention(images).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((16, 8), 8, (4, 0)), ((8, 16), 8, (0, 4)), ((16, 24), 8, (4, 4)), ((9, 6), 3, (1, 1)), ((4, 6), 2, (0, 0))],
)
def test_positions_attend_each_other_if_and_only_if_they_are_close_in_the_image(size, window, shift):
    allowed = neighbours(size, window, shift, CPU)
    places = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"), -1).roll(
        (-shift[0], -shift[1]), (0, 1)
    )
    windows = [
        places[row : row + window, column : column + window].reshape(-1, 2)
        for row in range(0, size[0], window)
        for column in range(0, size[1], window)
    ]

    for mask, inside in zip(allowed, windows, strict=True):
        distances = (inside[:, None] - inside).abs().amax(-1)
        assert torch.equal(mask, distances < window)


def test_an_offset_says_how_far_a_query_lies_below_and_right_of_its_key():
    rows, columns = window_offsets(2, CPU)

    assert rows.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [2, 2, 1, 1], [2, 2, 1, 1]]
    assert columns.tolist() == [[1, 0, 1, 0], [2, 1, 2, 1], [1, 0, 1, 0], [2, 1, 2, 1]]


@pytest.fixture
def no_tables():
    """Tables of earlier tests are forgotten, so that it does not depend on them which are there."""
    _kept_tables.cache_clear()


class Ranges(TorchDispatchMode):
    """Counts the ranges of numbers that are made, which tables begin with."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func.overloadpacket is torch.ops.aten.arange
        return func(*args, **(kwargs or {}))


def test_tables_are_made_once_for_all_blocks_of_a_size_and_not_again(no_tables):
    network, images = tiny().eval(), torch.randn(2, 3, 32, 32)
    made = []
    for _ in range(2):
        with Ranges() as ranges, torch.no_grad():
            network(images)
        made.append(ranges.n)

    # offsets of windows in maps of 8, 4 and 2 patches, shifted and not; neighbours in the shifted ones of 8 and 4
    assert made == [5 + 2 * 2, 0]
    assert not any("table" in name for name in network.state_dict())


def test_a_network_trains_with_the_tables_of_a_prediction(no_tables):
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for predicts_first in (False, True):
        network = tiny()
        _kept_tables.cache_clear()
        if predicts_first:
            with torch.inference_mode():
                network(images)
        network(images).square().sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))

    assert torch.equal(*gradients)
    assert gradients[0].any()


def test_threads_that_begin_at_once_get_the_logits_of_one(no_tables):
    network = tiny().eval()
    images = [torch.randn(1, 3, *size) for size in ((32, 32), (32, 48), (64, 32))] * 8

    @torch.inference_mode()
    def predict(image):
        return network(image)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(predict, images))

    assert all(torch.equal(logits, predict(image)) for logits, image in zip(found, images, strict=True))


def test_what_stands_for_numbers_while_a_network_is_traced_is_not_kept(no_tables):
    network, images = tiny().eval(), torch.randn(2, 3, 32, 32)

    torch.export.export(network, (images,))
    with FakeTensorMode(allow_non_fake_inputs=True):
        network(torch.randn(2, 3, 32, 32))

    assert _kept_tables.cache_info().currsize == 0
    logits = network(images)
    assert type(logits) is torch.Tensor
    torch.testing.assert_close(torch.export.export(network, (images,)).module()(images), logits, rtol=1e-4, atol=1e-5)


def test_the_tables_of_few_sizes_are_kept(no_tables):
    attention = WindowAttention(4, 1, 2, shifted=True)
    for side in range(2, 2 * KEPT_TABLES + 6, 2):
        attention(torch.rand(1, side, 2, 4))

    assert _kept_tables.cache_info().currsize == KEPT_TABLES


def test_only_shifted_windows_carry_something_over_the_border_of_a_window():
    reached = {}
    for shifted in (False, True):
        x = torch.zeros(1, 8, 8, 4, dtype=torch.float64, requires_grad=True)
        randomised(WindowAttention(4, 1, 4, shifted=shifted))(x)[0, 3, 3].sum().backward()
        reached[shifted] = x.grad[0].any(-1).nonzero()

    assert {*map(tuple, reached[False].tolist())} == {*product(range(4), range(4))}
    assert {*map(tuple, reached[True].tolist())} == {*product(range(2, 6), range(2, 6))}


def test_a_patch_of_an_image_is_described_by_its_own_pixels():
    embedding = randomised(PatchEmbedding(2, 5))
    values = values_of(embedding)
    image = torch.randn(1, 2, 8, 12, dtype=torch.float64)

    features = embedding(image)[0].detach().numpy()

    for row, column in product(range(2), range(3)):
        patch = image[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].numpy()
        projected = np.einsum("ihw,oihw->o", patch, values["project.weight"]) + values["project.bias"]
        np.testing.assert_allclose(features[row, column], numpy_layer_norm(projected, values, "norm"))


def test_merging_joins_the_four_patches_of_a_square():
    merging = randomised(PatchMerging(3))
    values = values_of(merging)
    x = torch.randn(2, 4, 6, 3, dtype=torch.float64)

    merged = merging(x).detach().numpy()

    assert merged.shape == (2, 2, 3, 6)
    for image, row, column in product(range(2), range(2), range(3)):
        square = x[image, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].numpy().ravel()
        expected = values["reduce.weight"] @ numpy_layer_norm(square, values, "norm")
        np.testing.assert_allclose(merged[image, row, column], expected)


@pytest.mark.parametrize("scale", [2, 4])
def test_expanding_turns_a_patch_into_a_square_of_patches(scale):
    expanding = randomised(PatchExpanding(6, 3, scale))
    values = values_of(expanding)
    x = torch.randn(2, 2, 3, 6, dtype=torch.float64)

    expanded = expanding(x).detach().numpy()

    assert expanded.shape == (2, 2 * scale, 3 * scale, 3)
    for image, row, column in product(range(2), range(2), range(3)):
        square = expanded[image, scale * row : scale * (row + 1), scale * column : scale * (column + 1)]
        expected = (values["expand.weight"] @ x[image, row, column].numpy()).reshape(scale, scale, 3)
        np.testing.assert_allclose(square, numpy_layer_norm(expected, values, "norm"))


def test_a_block_adds_attention_and_then_an_mlp_to_its_input():
    block = randomised(SwinBlock(6, 2, 2, shifted=True, drop_path=0.3))
    norm, attention, _ = block.attend
    mlp_norm, widen, _, narrow, _ = block.mlp
    x = torch.randn(2, 4, 4, 6, dtype=torch.float64)

    middle = x + attention(F.layer_norm(x, (6,), norm.weight, norm.bias))
    hidden = F.linear(F.layer_norm(middle, (6,), mlp_norm.weight, mlp_norm.bias), widen.weight, widen.bias)
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2

    assert hidden.shape[-1] == 24
    torch.testing.assert_close(block(x), middle + F.linear(hidden, narrow.weight, narrow.bias))


def test_the_decoder_joins_expanded_features_with_the_skip():
    up = randomised(SwinUp(8, 4, nn.Identity()))
    x, skip = torch.randn(1, 2, 3, 8, dtype=torch.float64), torch.randn(1, 4, 6, 4, dtype=torch.float64)

    expected = up.expand(x) @ up.join.weight[:, :4].T + skip @ up.join.weight[:, 4:].T + up.join.bias

    torch.testing.assert_close(up(x, skip), expected)


def test_drop_path_drops_whole_images_at_its_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    out = DropPath(0.2)(torch.ones(20_000, 2, 3))

    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert out.unique().tolist() == [0, 1.25]
    assert (out[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert out.mean().item() == pytest.approx(1, abs=0.01)


def test_drop_path_drops_nothing_in_evaluation_or_at_rate_zero():
    x = torch.rand(50, 2)

    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_drop_path_is_drawn_from_the_global_generator_in_training_only():
    network = tiny(drop_path=0.5)
    images = torch.randn(4, 3, 32, 32)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(network(images))

    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    network.eval()
    before = torch.get_rng_state()
    assert torch.equal(network(images), network(images))
    assert torch.equal(before, torch.get_rng_state())


def rates_of(module):
    return [part.rate for part in module.modules() if isinstance(part, DropPath)][::2]


def test_the_rate_of_drop_path_rises_over_the_encoder_and_is_mirrored_in_the_decoder():
    network = tiny(depth=4, drop_path=0.7)

    assert [rates_of(stage) for stage in network.stages] == [
        pytest.approx(pair) for pair in ([0, 0.1], [0.2, 0.3], [0.4, 0.5], [0.6, 0.7])
    ]
    assert [rates_of(up) for up in network.ups] == [rates_of(stage) for stage in network.stages[:3]]


@pytest.mark.parametrize(
    ("width", "heads"), [(1, 1), (31, 1), (32, 1), (48, 1), (64, 2), (96, 3), (97, 1), (100, 2), (128, 4), (192, 6)]
)
def test_heads_divide_the_width_and_have_32_features_or_more(width, heads):
    assert count_heads(width) == heads


def test_heads_and_shifts_are_those_published():
    with torch.device("meta"):
        network = build_swin_unet(channels=3, labels=1)
    attentions = [
        [(part.heads, part.shifted) for part in stage.modules() if isinstance(part, WindowAttention)]
        for stage in [*network.stages, *network.ups]
    ]

    assert attentions == [[(heads, False), (heads, True)] for heads in (3, 6, 12, 24, 3, 6, 12)]


def test_the_published_network_has_the_published_size():
    with torch.device("meta"):
        network = build_swin_unet(channels=3, labels=1)

    assert count_parameters(network) == 27_175_524
    assert count_multiply_adds(network, 3, (256, 256)) == 8_015_314_944


def test_products_of_attention_are_counted():
    with torch.device("meta"):
        network = build_swin_unet(channels=3, labels=1).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 256, 256, device="meta"))

    # positions x keys of a window x features, twice; the last stage has blocks in the encoder only
    products = sum(2 * blocks * (64 // 2**stage) ** 2 * 64 * 96 * 2**stage for stage, blocks in enumerate([4, 4, 4, 2]))
    assert counter.get_flop_counts()["Global"][torch.ops.aten.bmm] == 2 * products
    assert products == 364_904_448


def test_the_window_changes_nothing_but_the_offsets_and_the_sizes_that_fit():
    with torch.device("meta"):
        eight, seven = (build_swin_unet(channels=3, labels=1, window=window) for window in (8, 7))
    heads = 2 * (3 + 6 + 12) * 2 + 2 * 24

    assert count_parameters(eight) - count_parameters(seven) == heads * (15**2 - 13**2)
    assert (eight.multiple, seven.multiple) == (256, 224)
    assert tiny(depth=5, window=3).multiple == 192


def test_one_network_takes_images_of_any_size_one_after_the_other():
    network = tiny(labels=1).eval()
    sizes = [(32, 32), (16, 48), (50, 7), (32, 32)]
    images = [torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)) for size in sizes]

    logits = [network(image) for image in images]

    assert [out.shape[2:] for out in logits] == sizes
    assert torch.equal(logits[0], logits[-1])
    assert [*network.buffers()] == []


def test_the_order_in_memory_does_not_change_the_logits():
    network = tiny().eval()
    images = torch.randn(2, 3, 32, 48)

    reordered = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))

    torch.testing.assert_close(reordered, network(images), rtol=1e-5, atol=1e-5)


def test_weights_start_small_and_biases_at_zero():
    network = tiny(width=96)
    linears = [part for part in network.modules() if isinstance(part, nn.Linear)]
    offsets = torch.cat([part.offset_bias.flatten() for part in network.modules() if isinstance(part, WindowAttention)])

    assert [layer.weight.std().item() for layer in linears] == pytest.approx([0.02] * len(linears), rel=0.05)
    assert not any(layer.bias.any() for layer in linears if layer.bias is not None)
    assert offsets.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_head_is_a_convolution_of_one_pixel_without_bias():
    head = tiny(width=8, labels=5).last[-1]

    assert head.weight.shape == (5, 8, 1, 1)
    assert head.bias is None


def test_it_learns_to_segment_discs():
    network = tiny(width=16, labels=1, drop_path=0.2)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    centres = torch.rand(8, 2, 1, 1) * 16 + 8
    discs = ((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < 36).float()[:, None]
    images = discs + 0.3 * torch.randn(8, 3, 32, 32)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)

    losses = []
    for _ in range(40):
        loss = bce_dice_loss(network(images), discs).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert losses[0] > 1
    assert losses[-1] < 0.3


@pytest.mark.parametrize("window", [1, 0, -8])
def test_a_window_of_one_patch_is_refused(window):
    with pytest.raises(NetworkError, match=f"window is {window}: give 2 or more"):
        build_swin_unet(channels=1, labels=1, window=window)


@pytest.mark.parametrize("rate", [-0.1, 1, math.nan])
def test_a_rate_that_drops_everything_or_makes_no_sense_is_refused(rate):
    with pytest.raises(NetworkError, match=f"drop_path is {rate}: give 0 or more, and less than 1"):
        build_swin_unet(channels=1, labels=1, drop_path=rate)


def test_options_are_taken_by_name_and_their_kinds_are_checked():
    network = build_network("swin_unet", channels=1, labels=1, width=4, depth=3, window=4, drop_path=0)

    assert network.multiple == 64
    with pytest.raises(NetworkError, match="option 'window' of network 'swin_unet' is '8': give int"):
        build_network("swin_unet", channels=1, labels=1, width=4, depth=3, window="8")
    with pytest.raises(NetworkError, match="'swin_unet' has no option 'heads': its options are window, drop_path"):
        build_network("swin_unet", channels=1, labels=1, width=4, depth=3, heads=3)
