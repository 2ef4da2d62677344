import inspect
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from iaunet.errors import NetworkError
from iaunet.loss import bce_dice_loss
from iaunet.networks import DEPTHS, NETWORKS, SIZES, build_network, check_network, default_sizes
from iaunet.networks.blocks import conv_norm_relu, head, pad_to_multiple
from iaunet.networks.counting import count_multiply_adds, count_parameters
from iaunet.networks.options import OPTIONS as DECLARED

OPTIONS = {  # without drop path, whose draws leave some parameters without a gradient
    "swin_unet": [{"drop_path": 0.0}, {"drop_path": 0.0, "window": 3}],
    "unext": [{}, {"doubling": True}],
    "iaunet": [
        {"variant": "fullres"},
        {"variant": "paper5"},
        {"spatial_attention": "scaled", "separate_mlps": True},
        {"spatial_attention": "softmax", "max_keys": None},
        {"spatial_attention": "none", "scale_attention": "none", "channel_attention": False},
        {"scale_attention": "every", "attention_order": "channel_first"},
        {"scale_attention": "last", "spatial_attention": "scaled", "sigmoid_scale": "count"},
    ],
}
CASES = [(name, options) for name in NETWORKS for options in OPTIONS.get(name, [{}])]
every_network = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=["-".join([name, *map(str, options.values())]) for name, options in CASES]
)


def tiny(name, options, *, seed=0, channels=3, labels=2, width=4, depth=4):
    torch.manual_seed(seed)
    return build_network(name, channels=channels, labels=labels, width=width, depth=depth, **options)


@every_network
def test_logits_have_the_size_of_the_input_whatever_it_is(name, options):
    network = tiny(name, options).eval()

    for size in [(32, 32), (33, 47), (5, 70), (1, 1)]:
        assert network(torch.rand(1, 3, *size)).shape == (1, 2, *size)


@every_network
def test_the_gradient_reaches_every_parameter(name, options):
    network = tiny(name, options)
    targets = (torch.rand(2, 2, 32, 32) < 0.5).float()

    bce_dice_loss(network(torch.randn(2, 3, 32, 32)), targets).loss.backward()

    assert [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


@every_network
def test_an_image_is_segmented_alike_alone_and_in_a_batch(name, options):
    network = tiny(name, options).eval()
    images = torch.randn(3, 3, 40, 32)

    alone, together = torch.cat([network(image[None]) for image in images]), network(images)

    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5 * together.abs().max().item())


@every_network
def test_padding_is_what_a_reflected_image_would_give(name, options):
    network = tiny(name, options).eval()
    height, width = network.multiple - 3, 2 * network.multiple - 5
    image = np.random.default_rng(0).normal(size=(1, 3, height, width)).astype(np.float32)
    missing = [(0, -side % network.multiple) for side in image.shape[2:]]
    padded = np.pad(image, [(0, 0), (0, 0), *missing], mode="reflect")

    expected = network(torch.from_numpy(padded))[..., :height, :width]

    torch.testing.assert_close(network(torch.from_numpy(image)), expected)


@every_network
def test_a_bfloat16_forward_is_near_the_exact_one_and_can_be_learned_from(name, options):
    network = tiny(name, options)
    images = torch.randn(2, 3, 32, 32)
    exact = network(images).detach()

    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    logits.float().square().mean().backward()

    assert logits.dtype == torch.bfloat16
    assert (logits - exact).abs().mean() < 0.1 * exact.abs().mean() + 0.02  # gates amplify: 0.09 in attention_unet
    assert all(value.grad.isfinite().all() for value in network.parameters())


@every_network
def test_half_precision_weights_give_finite_logits(name, options):
    network = tiny(name, options).eval()
    images = torch.randn(1, 3, 32, 32)
    exact = network(images).detach()

    logits = network.half()(images.half())

    assert logits.dtype == torch.float16
    assert (logits - exact).abs().mean() < 0.05 * exact.abs().mean()


@every_network
def test_a_seed_fixes_the_weights_and_the_logits(name, options):
    images = torch.randn(1, 3, 32, 32)
    first, again, other = (tiny(name, options, seed=seed).eval() for seed in (1, 1, 2))

    assert torch.equal(first(images), again(images))
    assert not torch.equal(first(images), other(images))


@every_network
def test_weights_survive_their_file(name, options, tmp_path):
    network, other = tiny(name, options, seed=1), tiny(name, options, seed=2)
    images = torch.randn(2, 3, 32, 32)
    network(images)  # moves the running means as well

    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))

    assert torch.equal(other.eval()(images), network.eval()(images))


@every_network
@pytest.mark.parametrize("depth", [3, 6])
def test_every_depth_and_width_works(name, options, depth):
    for width in (1, 3):
        network = tiny(name, options, width=width, depth=depth, channels=1, labels=1).eval()

        logits = network(torch.randn(1, 1, 64, 64))
        assert logits.isfinite().all()
        assert logits.std() > 1e-6  # an image is told from nothing


@every_network
def test_an_exported_network_gives_the_same_logits_for_any_batch(name, options):
    network = tiny(name, options, depth=3, width=2).eval()
    batch = {"x": {0: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(network, (torch.randn(2, 3, 32, 32),), dynamic_shapes=batch).module()
    images = torch.randn(3, 3, 32, 32)

    torch.testing.assert_close(exported(images), network(images), rtol=1e-4, atol=1e-5)


@every_network
def test_an_input_of_another_shape_is_refused(name, options):
    network = tiny(name, options)

    for shape in [(1, 4, 32, 32), (3, 32, 32)]:
        with pytest.raises(ValueError, match=r"give \[batch, 3, height, width\]"):
            network(torch.rand(shape))


@every_network
def test_numbers_that_no_network_has_are_refused(name, options):
    for key, number in {"channels": 0, "labels": 0, "width": 0}.items():
        with pytest.raises(NetworkError, match=f"{key} is {number}: give 1 or more"):
            tiny(name, options, **{key: number})
    for depth in (DEPTHS[0] - 1, DEPTHS[-1] + 1):
        with pytest.raises(NetworkError, match=f"depth is {depth}: plan 3 to 6 stages"):
            tiny(name, options, depth=depth)


NO_ATTENTION = {"scale_attention": "none", "spatial_attention": "none", "channel_attention": False}


# The sizes are the published ones. The paper's counts of its own network, 31.206 M and 31.233 M, are those of the mode
# `scaled`, which has 902 parameters of its own: gamma (128 + 256 + 512) and, three times, tau and b0. Att-UNet's
# 34.88 M hold biases that batch normalisation cancels, its 66.43 G the gates' products with the skips, 7.9 M.
@pytest.mark.parametrize(
    ("name", "options", "parameters", "multiply_adds"),
    [
        ("unet", {}, 31_037_633, 48_167_387_136),
        ("iaunet", NO_ATTENTION, 31_037_633, 48_167_387_136),
        ("iaunet", {"variant": "paper5", **NO_ATTENTION}, 31_064_385, 26_153_582_592),
        ("iaunet", {"spatial_attention": "scaled"}, 31_206_143, 63_736_729_600),
        ("iaunet", {"variant": "paper5", "spatial_attention": "scaled"}, 31_232_895, 29_844_656_128),
        ("iaunet", {}, 31_205_241, 63_736_729_600),
        ("iaunet", {"variant": "paper5"}, 31_231_993, 29_844_656_128),
        ("attention_unet", {}, 34_870_761, 66_424_930_304),
        ("attention_unet", {"biases": True}, 34_878_573, 66_424_930_304),
        ("resunet", {}, 13_038_785, 71_097_647_104),
        ("swin_unet", {}, 27_175_524, 8_015_314_944),
        ("unext", {}, 1_471_409, 562_003_968),
    ],
)
def test_networks_are_as_large_as_published(name, options, parameters, multiply_adds):
    with torch.device("meta"):
        network = build_network(name, channels=3, labels=1, **default_sizes(name), **options)

    assert count_parameters(network) == parameters
    assert count_multiply_adds(network, 3, (256, 256)) == multiply_adds


def test_counting_is_right_for_one_convolution_and_leaves_the_network_as_it_is():
    network = nn.Conv2d(3, 5, 3, padding=1).train()

    assert count_parameters(network) == 3 * 5 * 9 + 5
    assert count_multiply_adds(network, 3, (8, 10)) == 3 * 5 * 9 * 8 * 10
    assert network.training
    assert network.weight.device.type == "cpu"


def skip_modules(options):
    """The names of the modules on each skip, from shallow to deep."""
    return [
        [type(module).__name__ for module in (skip if isinstance(skip, nn.Sequential) else [skip])]
        for skip in tiny("iaunet", options, depth=5).skips
    ]


def test_only_the_deeper_skips_pass_spatial_and_channel_attention():
    assert skip_modules({}) == [["ScaleFeatureAttention"], *[["SpatialAttention", "ChannelAttention"]] * 3]


def test_channel_attention_may_come_first():
    deeper = skip_modules({"attention_order": "channel_first"})[1:]

    assert deeper == [["ChannelAttention", "SpatialAttention"]] * 3


@pytest.mark.parametrize("variant", ["fullres", "paper5"])
@pytest.mark.parametrize(("place", "skips"), [("first", [0]), ("last", [3]), ("every", [0, 1, 2, 3]), ("none", [])])
def test_scale_attention_stands_where_it_is_asked_for_and_before_the_others(place, skips, variant):
    modules = skip_modules({"variant": variant, "scale_attention": place})

    assert [skip for skip, names in enumerate(modules) if "ScaleFeatureAttention" in names] == skips
    assert all(modules[skip][0] == "ScaleFeatureAttention" for skip in skips)
    assert [names[-2:] for names in modules[1:]] == [["SpatialAttention", "ChannelAttention"]] * 3


def test_scale_attention_is_as_wide_as_its_skip():
    counts = {
        place: count_parameters(tiny("iaunet", {"scale_attention": place}, depth=5))
        for place in ("none", "first", "last", "every")
    }

    # three 1x1 and three 3x3 convolutions and six normalisations of scale and shift
    of_width = [30 * width**2 + 12 * width for width in (4, 8, 16, 32)]
    assert counts["first"] - counts["none"] == of_width[0]
    assert counts["last"] - counts["none"] == of_width[-1]
    assert counts["every"] - counts["none"] == sum(of_width)


def test_the_sigmoid_scale_reaches_every_spatial_attention():
    network = tiny("iaunet", {"spatial_attention": "scaled", "sigmoid_scale": "count"}, depth=5)

    assert [skip[0].sigmoid_scale for skip in network.skips[1:]] == ["count"] * 3


def test_convolutions_are_drawn_by_their_fan_out_and_the_head_by_its_fan_in():
    torch.manual_seed(0)

    assert conv_norm_relu(16, 64, 3)[0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert head(4096, 1).weight.std().item() == pytest.approx(1 / 64, rel=0.05)
    assert not head(8, 1).bias.any()


@pytest.mark.parametrize(("size", "modes"), [((9, 6), ("reflect", "reflect")), ((3, 13), ("edge", "reflect"))])
def test_short_sides_are_padded_with_their_edge(size, modes):
    image = np.random.default_rng(0).normal(size=(2, 1, *size))
    expected = image
    for axis, mode in enumerate(modes):
        missing = [(0, 0)] * 4
        missing[axis + 2] = (0, -size[axis] % 8)
        expected = np.pad(expected, missing, mode=mode)

    np.testing.assert_array_equal(pad_to_multiple(torch.from_numpy(image), 8), expected)


def test_an_image_that_fits_is_not_copied():
    image = torch.rand(1, 1, 16, 8)

    assert pad_to_multiple(image, 8) is image


@every_network
def test_a_batch_of_one_can_be_learned_from(name, options):
    network = tiny(name, options)

    loss = bce_dice_loss(network(torch.randn(1, 3, 64, 64)), torch.ones(1, 2, 64, 64)).loss
    loss.backward()

    assert loss.isfinite()
    assert all(value.grad.isfinite().all() for value in network.parameters())


def test_default_sizes_are_those_of_the_builder(tmp_path, monkeypatch):
    (tmp_path / "sized.py").write_text("def build(*, channels, labels, width=7, depth): ...\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert default_sizes("swin_unet") == {"width": 96, "depth": 4}
    assert default_sizes("unext") == {"width": 16, "depth": 5}
    assert default_sizes("sized:build") == {"width": 7}


def test_listing_and_checking_names_imports_no_torch():
    check = (
        "import sys, iaunet.networks as n; [n.check_network(name, {}) for name in n.NETWORKS]; n.DEPTHS[-1]; "
        "n.check_network('iaunet', {'variant': 'fullres', 'max_keys': None})"
    )

    subprocess.run([sys.executable, "-c", f"{check}; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_options_of_a_network_are_those_that_its_builder_declares(name):
    module, function = NETWORKS[name].split(":")
    parameters = inspect.signature(getattr(import_module(module), function), eval_str=True).parameters

    assert DECLARED[name] == {key: one.annotation for key, one in parameters.items() if key not in SIZES}


def test_a_strangers_network_is_found_by_module_and_function(tmp_path, monkeypatch):
    (tmp_path / "strange.py").write_text(
        "from torch import nn\n"
        "def build(*, channels, labels, width, depth, kernel: int = 1, **others):\n"
        "    return nn.Conv2d(channels, labels, kernel)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    network = tiny("strange:build", {"kernel": 3, "colour": "red"})

    assert network.kernel_size == (3, 3)
    with pytest.raises(NetworkError, match="option 'kernel' of network 'strange:build' is '3': give int"):
        check_network("strange:build", {"kernel": "3"})


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(NetworkError, match=r"'resnet': choose one of iaunet, unet, attention_unet, .*, or name"):
        check_network("resnet", {})


@pytest.mark.parametrize("name", ["no_such_package:build", "iaunet.networks.unet:build", ":build"])
def test_a_builder_that_cannot_be_found_is_named(name):
    with pytest.raises(NetworkError, match=f"network '{name}' cannot be found .*: install its package"):
        check_network(name, {})


def test_an_unknown_option_is_answered_with_the_known_ones():
    with pytest.raises(NetworkError, match="'iaunet' has no option 'variants': its options are variant, scale_att"):
        build_network("iaunet", channels=1, labels=1, width=4, depth=3, variants="paper5")
    with pytest.raises(NetworkError, match="'unet' has no option 'width': its options are none"):
        check_network("unet", {"width": 8})


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("variant", "full", "one of 'fullres', 'paper5'"),
        (
            "spatial_attention",
            "row",
            "one of 'mean', 'scaled', 'literal', 'channel', 'softmax' or one of 'none'",
        ),
        ("scale_attention", True, "one of 'first', 'last', 'every', 'none'"),
        ("attention_order", "both", "one of 'spatial_first', 'channel_first'"),
        ("sigmoid_scale", 2, "one of 'bias', 'count'"),
        ("max_keys", 10.5, "int or null"),
        ("max_keys", True, "int or null"),
        ("gamma_init", "1", "float"),
        ("gamma_init", False, "float"),
        ("separate_mlps", 1, "bool"),
    ],
)
def test_a_value_of_the_wrong_kind_is_answered_with_the_right_one(option, value, wanted):
    with pytest.raises(NetworkError, match=f"option '{option}' of network 'iaunet' is {value!r}: give {wanted}"):
        check_network("iaunet", {option: value})


def test_values_of_the_right_kind_are_taken():
    check_network("iaunet", {"variant": "paper5", "max_keys": None, "gamma_init": 1, "separate_mlps": True})
    check_network("iaunet", {"max_keys": 256, "spatial_attention": "none", "gamma_init": 0.1})


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("variant", "full", "fullres, paper5"),
        ("scale_attention", True, "first, last, every, none"),
        ("attention_order", "both", "spatial_first, channel_first"),
    ],
)
def test_an_unknown_choice_is_refused_by_the_builder_as_well(option, value, known):
    from iaunet.networks.iaunet import build_iaunet

    with pytest.raises(NetworkError, match=f"{option} {value!r}: choose one of {known}"):
        build_iaunet(channels=1, labels=1, **{option: value})
