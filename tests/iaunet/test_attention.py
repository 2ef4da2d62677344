import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from iaunet.errors import NetworkError
from iaunet.networks.attention import (
    ChannelAttention,
    ScaleFeatureAttention,
    SpatialAttention,
    key_kernel,
    pool_keys,
    sigmoid_attention,
)

MODES = ["mean", "scaled", "literal", "channel", "softmax"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def values_of(module):
    """Every parameter and buffer as a float64 array."""
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def randomised(module):
    """The module in float64 and evaluation mode, every value drawn anew so that no default hides a fault."""
    for name, tensor in module.double().state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5 if "running_var" in name else -1, 1.5)
    return module.eval()


def numpy_conv_norm_relu(x, values, prefix):
    weight = values[f"{prefix}.0.weight"]
    border = weight.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (border, border), (border, border)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[-2:], axis=(2, 3))
    convolved = np.einsum("bihwkl,oikl->bohw", windows, weight)
    mean, variance, scale, shift = (
        values[f"{prefix}.1.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return np.maximum((convolved - mean) / np.sqrt(variance + 1e-5) * scale + shift, 0)


def numpy_mlp(x, values, prefix):
    hidden = np.maximum(x @ values[f"{prefix}.0.weight"].T + values[f"{prefix}.0.bias"], 0)
    return hidden @ values[f"{prefix}.2.weight"].T + values[f"{prefix}.2.bias"]


def numpy_pool(x, max_keys):
    """Averages over squares of the smallest side that leaves no more than max_keys, by plain loops."""
    height, length = x.shape[2:]
    side = 1
    while max_keys is not None and np.ceil(height / side) * np.ceil(length / side) > max_keys:
        side += 1
    squares = [
        x[:, :, row : row + side, column : column + side].mean((2, 3))
        for row in range(0, height, side)
        for column in range(0, length, side)
    ]
    return np.stack(squares, axis=1)


def numpy_spatial_attention(x, mode, max_keys, values, sigmoid_scale="bias"):
    """Equations 5-6 as the modes read them, on tokens [B, N, C]."""
    batch, width = x.shape[:2]
    q = x.reshape(batch, width, -1).transpose(0, 2, 1)
    k = v = numpy_pool(x, max_keys)
    if mode == "mean":
        out = q + sigmoid(q @ k.transpose(0, 2, 1) / np.sqrt(width)) / k.shape[1] @ v
    elif mode == "scaled":

        def normal(t):
            return (t - t.mean(-1, keepdims=True)) / np.sqrt(t.var(-1, keepdims=True) + 1e-5)

        products = normal(q) @ normal(k).transpose(0, 2, 1) / np.sqrt(width)
        scores = np.exp(values["log_tau"]) * products + values["bias"]
        alpha = sigmoid(scores - np.log(k.shape[1])) if sigmoid_scale == "bias" else sigmoid(scores) / k.shape[1]
        out = q + values["gamma"] * (alpha @ v)
    elif mode == "literal":
        out = q + sigmoid(q @ q.transpose(0, 2, 1)) @ q
    elif mode == "channel":
        out = q + q @ (sigmoid(q.transpose(0, 2, 1) @ q / q.shape[1]) / width)
    else:
        scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(width))
        out = q + scores / scores.sum(-1, keepdims=True) @ v
    return out.transpose(0, 2, 1).reshape(x.shape)


def test_scale_attention_is_the_sum_of_three_branches():
    torch.manual_seed(0)
    module = randomised(ScaleFeatureAttention(3))
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7))
    values = values_of(module)
    expected = 0
    for branch, n_convolutions in enumerate((3, 2, 1)):
        y = x
        for position in range(n_convolutions):
            y = numpy_conv_norm_relu(y, values, f"branches.{branch}.{position}")
        expected = expected + y

    assert [values[f"branches.{b}.0.0.weight"].shape[-1] for b in range(3)] == [1, 1, 1]
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach(), expected, rtol=1e-10)


@pytest.mark.parametrize("separate", [False, True])
def test_channel_attention_weighs_each_map_by_its_maximum_and_average(separate):
    torch.manual_seed(0)
    module = randomised(ChannelAttention(32, separate_mlps=separate))
    x = np.random.default_rng(0).normal(size=(2, 32, 4, 5))
    values = values_of(module)
    average = "average_mlp" if separate else "mlp"
    score = numpy_mlp(x.max((2, 3)), values, "mlp") + numpy_mlp(x.mean((2, 3)), values, average)
    expected = x * (1 + sigmoid(score)[:, :, None, None])

    np.testing.assert_allclose(module(torch.from_numpy(x)).detach(), expected, rtol=1e-10)


@pytest.mark.parametrize(("width", "hidden"), [(16, 8), (128, 8), (256, 16), (512, 32)])
def test_the_mlp_of_channel_attention_is_a_sixteenth_wide_and_at_least_eight(width, hidden):
    assert ChannelAttention(width).mlp[0].out_features == hidden


@pytest.mark.parametrize("max_keys", [None, 20, 6, 1])
@pytest.mark.parametrize("mode", MODES)
def test_spatial_attention_follows_its_equation(mode, max_keys):
    torch.manual_seed(0)
    module = randomised(SpatialAttention(6, mode, max_keys=max_keys))
    x = np.random.default_rng(0).normal(size=(3, 6, 7, 10))
    expected = numpy_spatial_attention(x, mode, max_keys, values_of(module))

    np.testing.assert_allclose(module(torch.from_numpy(x)).detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("max_keys", [None, 6])
def test_scaled_attention_may_divide_by_the_number_of_keys(max_keys):
    torch.manual_seed(0)
    module = randomised(SpatialAttention(6, "scaled", max_keys=max_keys, sigmoid_scale="count"))
    x = np.random.default_rng(0).normal(size=(3, 6, 7, 10))
    expected = numpy_spatial_attention(x, "scaled", max_keys, values_of(module), "count")

    np.testing.assert_allclose(module(torch.from_numpy(x)).detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_spatial_attention_is_that_of_its_equation(mode):
    torch.manual_seed(0)
    module = randomised(SpatialAttention(3, mode, max_keys=6))
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(module, x)


@pytest.mark.parametrize(("sigmoid_scale", "least", "most"), [("bias", 1, 4), ("count", 0.4, 0.8)])
@pytest.mark.parametrize(("width", "side"), [(16, 8), (128, 16), (128, 48)])
def test_the_weights_of_a_position_sum_to_about_one_whatever_the_size(width, side, sigmoid_scale, least, most):
    torch.manual_seed(0)
    module = SpatialAttention(width, "scaled", max_keys=None, sigmoid_scale=sigmoid_scale)
    x = torch.randn(2, width, side, side).relu() + 1e-3 * torch.randn(2, width, side, side)
    x[:, 0] = 1  # a feature that is 1 everywhere is given the sums of the weights

    sums = (module(x) - x)[:, 0].detach()

    assert least < sums.min()
    assert sums.max() < most


def added_term(mode, **options):
    """The size of what attention adds, of its input, and how much that differs from position to position."""
    torch.manual_seed(0)
    x = torch.randn(1, 128, 64, 64).relu()
    term = (SpatialAttention(128, mode, max_keys=None, **options)(x) - x).detach().flatten(2)
    return (term.norm() / x.norm()).item(), (term.std(2).mean() / term.abs().mean()).item()


def test_the_printed_equation_adds_thousands_of_times_the_same_mean_to_every_position():
    size, spread = added_term("literal")

    assert size > 2000
    assert spread < 1e-4


@pytest.mark.parametrize(
    ("mode", "options", "size", "spread"),
    [
        ("mean", {}, 0.48, 0.032),
        ("scaled", {}, 1.76, 0.62),
        ("scaled", {"sigmoid_scale": "count"}, 0.28, 0.055),
        ("softmax", {}, 0.58, 0.077),
    ],
)
def test_the_other_modes_add_a_term_of_the_size_of_their_input(mode, options, size, spread):
    assert added_term(mode, **options) == pytest.approx((size, spread), rel=0.1)


def test_scaled_attention_starts_from_neutral_values_and_the_gamma_asked_for():
    values = values_of(SpatialAttention(4, "scaled", gamma_init=0.1))

    assert values["log_tau"] == 0
    assert values["bias"] == 0
    np.testing.assert_allclose(values["gamma"], [0.1] * 4, rtol=1e-6)
    assert (values_of(SpatialAttention(4, "scaled"))["gamma"] == 1).all()


@pytest.mark.parametrize("mode", MODES)
def test_spatial_attention_takes_channels_last_maps(mode):
    x = torch.rand(2, 4, 6, 5)
    module = SpatialAttention(4, mode, max_keys=8)

    torch.testing.assert_close(module(x.contiguous(memory_format=torch.channels_last)), module(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_spatial_attention_in_half_precision_is_near_the_exact_one(mode, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 12, 12).relu()
    module = SpatialAttention(8, mode, max_keys=40)
    exact = module(x).detach()

    under_autocast = torch.autocast("cpu", dtype)
    with under_autocast:
        mixed = module(x)
    module.to(dtype)
    rounded = module(x.to(dtype))

    assert rounded.dtype == dtype
    torch.testing.assert_close(mixed.float(), exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 2000))
def test_the_pooling_kernel_is_the_smallest_that_leaves_few_enough_keys(height, width, max_keys):
    def keys(kernel):
        return -(-height // kernel) * -(-width // kernel)

    kernel = key_kernel(height, width, max_keys)

    assert keys(kernel) <= max_keys
    assert kernel == 1 or keys(kernel - 1) > max_keys


@pytest.mark.parametrize(("size", "kernel"), [((128, 128), 4), ((64, 64), 2), ((32, 32), 1), ((16, 16), 1)])
def test_the_features_of_a_256_image_are_pooled_to_1024_keys(size, kernel):
    assert key_kernel(*size, 1024) == kernel
    assert key_kernel(*size, None) == 1


@pytest.mark.parametrize("max_keys", [None, 35, 34, 8, 3, 1])
def test_keys_average_squares_and_what_the_border_leaves_of_them(max_keys):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7))
    keys = pool_keys(torch.from_numpy(x), max_keys)

    np.testing.assert_allclose(keys.mT, numpy_pool(x, max_keys), rtol=1e-12)


@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.3, 0.01)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("images", "queries", "keys"), [(2, 3000, 1000), (5, 600, 700), (3, 7, 5), (2, 1100, 2100)])
def test_attention_in_blocks_equals_the_whole_in_values_and_gradients(images, queries, keys, biased, factors):
    torch.manual_seed(0)
    q, k, v = (torch.randn(images, 4, n, requires_grad=True) for n in (queries, keys, keys))
    bias = torch.tensor(-1.5, requires_grad=True) if biased else None
    inputs = [q, k, v, bias] if biased else [q, k, v]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    weights = torch.randn(images, 4, queries)

    out = sigmoid_attention(q, k, v, bias, score_factor=factors[0], sum_factor=factors[1])
    scores = factors[0] * exact[1].mT @ exact[0] + (exact[3] if biased else 0)
    whole = factors[1] * exact[2] @ torch.sigmoid(scores)
    gradients = torch.autograd.grad(out, inputs, weights)
    expected = torch.autograd.grad(whole, exact, weights.double())

    for one, true in zip((out, *gradients), (whole, *expected), strict=True):
        assert (one - true).abs().max() < 5e-6 * true.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_many_blocks_of_keys_keep_the_precision_of_one(dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 16, n, requires_grad=True) for n in (300, 9000, 9000))
    v.data += 1  # a sum that grows, so that small terms would be lost beside it
    exact = v @ torch.sigmoid(k.mT @ q / 4) / 9000
    expected = torch.autograd.grad(exact, [q, k, v], torch.ones_like(exact))

    with torch.autocast("cpu", dtype):
        out = sigmoid_attention(q, k, v, score_factor=1 / 4, sum_factor=1 / 9000)
    gradients = torch.autograd.grad(out, [q, k, v], torch.ones_like(out))

    assert out.dtype == dtype
    for one, true in zip((out, *gradients), (exact, *expected), strict=True):
        assert (one - true).norm() < 0.01 * true.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_the_same_whether_a_bias_has_their_sigmoid_taken_in_float32_or_not(dtype):
    """For every score that there is: that of a query is its only feature."""
    scores = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    scores = scores[scores.isfinite()][None, None]
    one = torch.ones(1, 1, 1, dtype=dtype)

    weights = sigmoid_attention(scores, one, one)

    assert torch.equal(weights, sigmoid_attention(scores, one, one, torch.zeros(())))
    torch.testing.assert_close(weights, scores.float().sigmoid().to(dtype), rtol=0, atol=torch.finfo(dtype).tiny)


def test_the_gradients_of_attention_are_those_of_its_values():
    torch.manual_seed(0)
    shapes = ((2, 3, 5), (2, 3, 4), (2, 3, 4), ())
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    assert torch.autograd.gradcheck(sigmoid_attention, inputs)


def test_attention_keeps_no_scores_for_the_backward_pass():
    x = torch.rand(1, 4, 64, 64, requires_grad=True)
    sizes = []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        SpatialAttention(4, max_keys=None)(x)

    assert max(sizes) <= x.numel()


def test_an_exported_module_holds_the_plain_formula_for_any_batch():
    module = SpatialAttention(4, "scaled", max_keys=1024).eval()
    batch = {"x": {0: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(module, (torch.rand(2, 4, 64, 64),), dynamic_shapes=batch)
    x = torch.rand(3, 4, 64, 64)

    products = [node for node in exported.graph.nodes if "bmm" in str(node.target) or "matmul" in str(node.target)]
    assert len(products) == 2
    torch.testing.assert_close(exported.module()(x), module(x))


def test_literal_attention_refuses_more_positions_than_it_can_hold():
    module = SpatialAttention(2, "literal")

    assert module(torch.rand(1, 2, 64, 64)).shape == (1, 2, 64, 64)
    with pytest.raises(NetworkError, match="65x64 positions, more than 4096: use 'mean', or smaller images"):
        module(torch.rand(1, 2, 65, 64))


def test_an_unknown_mode_is_answered_with_the_known_ones():
    with pytest.raises(NetworkError, match="'row': choose one of mean, scaled, literal, channel, softmax"):
        SpatialAttention(2, "row")


def test_an_unknown_sigmoid_scale_is_answered_with_the_known_ones():
    with pytest.raises(NetworkError, match="sigmoid_scale 'keys': choose one of bias, count"):
        SpatialAttention(2, "scaled", sigmoid_scale="keys")


def test_attention_needs_a_key():
    with pytest.raises(NetworkError, match="max_keys is 0: give 1 or more, or null"):
        SpatialAttention(2, max_keys=0)


def test_attention_has_no_parameters_but_in_the_scaled_mode():
    counts = {mode: sum(p.numel() for p in SpatialAttention(8, mode).parameters()) for mode in MODES}

    assert counts == {"mean": 0, "scaled": 10, "literal": 0, "channel": 0, "softmax": 0}
    assert isinstance(SpatialAttention(8, "scaled").gamma, nn.Parameter)


def test_the_benchmark_compares_methods_that_agree(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "spatial_attention.py"
    sizes = ["--sizes", "1024", "--features", "8", "--batch", "2", "--device", "cpu", "--types", "float32"]
    command = [
        sys.executable,
        script,
        *sizes,
        "--repetitions",
        "1",
        "--passes",
        "1",
        "--json",
        tmp_path / "result.json",
    ]

    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads((tmp_path / "result.json").read_text())

    assert [row["method"] for row in result["rows"]] == ["blocks", "plain", "checkpoint"]
    assert all(row["median"]["seconds"] > 0 for row in result["rows"])
    peaks = {row["method"]: row["median"]["peak_mib"] for row in result["rows"]}
    assert peaks["plain"] > 2 * 1024**2 * 4 / 2**20  # at least alpha, 8 MiB of two images
    assert max(result["largest_difference"].values()) < 5e-6
    assert "| 2 | 1024 | float32 | blocks |" in printed
