"""The integrated attention network: a U-Net whose skips pass scale feature, spatial and channel attention."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

from torch import nn

from iaunet.errors import NetworkError
from iaunet.networks.attention import ChannelAttention, ScaleFeatureAttention, SpatialAttention
from iaunet.networks.blocks import DoubleConv, Up, UShape, check_sizes, head, pooled_stages, upsample, widths
from iaunet.networks.options import AttentionOrder, ScalePlace, SigmoidScale, SpatialMode, Variant


def build_iaunet(
    *,
    channels: int,
    labels: int,
    width: int = 64,
    depth: int = 5,
    variant: Variant = "fullres",
    scale_attention: ScalePlace = "first",
    spatial_attention: SpatialMode | Literal["none"] = "mean",
    channel_attention: bool = True,
    attention_order: AttentionOrder = "spatial_first",
    max_keys: int | None = 1024,
    gamma_init: float = 1.0,
    sigmoid_scale: SigmoidScale = "bias",
    separate_mlps: bool = False,
) -> nn.Module:
    """Build the paper's network: SFA on the first skip, SA then CA on the others.

    Args:
        channels: Planes of the input.
        labels: Foreground labels, each one logit map of the output.
        width: Feature maps of the first stage; each further one has twice as many.
        depth: Number of stages, 3 to 6.
        variant: ``fullres`` takes the skips before pooling; ``paper5`` takes them after it, and its decoder
            ends with one more transposed convolution.
        scale_attention: Which skips pass SFA: the ``first``, ``SFA(f1)``, as in the paper; the ``last``, that is the
            deepest, before its other modules, ``CA(SA(SFA(f)))``; ``every`` skip, the first without others; ``none``.
        spatial_attention: Mode of `SpatialAttention`, or ``none`` to leave it out.
        channel_attention: Whether the other skips pass CA.
        attention_order: ``spatial_first``, ``CA(SA(f))``, as in the paper, or ``channel_first``, ``SA(CA(f))``.
        max_keys: See `SpatialAttention`.
        gamma_init: See `SpatialAttention`.
        sigmoid_scale: See `SpatialAttention`; it counts in its mode ``scaled`` only.
        separate_mlps: See `ChannelAttention`.

    Raises:
        NetworkError: A number is out of its range, or a value of an option unknown.
    """
    check_sizes(channels, labels, width, depth)
    _check_choice("variant", variant, Variant)
    _check_choice("scale_attention", scale_attention, ScalePlace)
    _check_choice("attention_order", attention_order, AttentionOrder)
    maps = widths(width, depth)
    attentions: list[Callable[[int], nn.Module]] = []
    if spatial_attention != "none":
        attentions.append(
            partial(
                SpatialAttention,
                mode=spatial_attention,
                max_keys=max_keys,
                gamma_init=gamma_init,
                sigmoid_scale=sigmoid_scale,
            )
        )
    if channel_attention:
        attentions.append(partial(ChannelAttention, separate_mlps=separate_mlps))
    if attention_order == "channel_first":
        attentions.reverse()
    first: nn.Module = ScaleFeatureAttention(width) if scale_attention in ("first", "every") else nn.Identity()
    deeper = maps[1:-1]
    scaled = {"last": deeper[-1:], "every": deeper}.get(scale_attention, [])
    others = [_skip(features, features in scaled, attentions) for features in deeper]
    halves = variant == "paper5"
    return UShape(
        channels=channels,
        stages=_halving_stages(channels, maps) if halves else pooled_stages(channels, maps),
        skips=[first, *others],
        ups=[Up(deep, shallow) for shallow, deep in pairwise(maps)],
        last=_last_up(width, labels) if halves else head(width, labels),
        multiple=2**depth if halves else 2 ** (depth - 1),
    )


def _skip(features: int, is_scaled: bool, attentions: Sequence[Callable[[int], nn.Module]]) -> nn.Sequential:
    """What the features of a deeper stage pass on their way across: SFA or not, then the other attentions."""
    scale = [ScaleFeatureAttention(features)] if is_scaled else []
    return nn.Sequential(*scale, *(make(features) for make in attentions))


def _check_choice(option: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise NetworkError(f"{option} {value!r}: choose one of {', '.join(get_args(choices))}")


def _halving_stages(channels: int, maps: list[int]) -> list[nn.Module]:
    """Encoder of ``paper5``: a stage's output is taken after it is halved."""
    pairs = zip([channels, *maps], maps, strict=False)
    return [nn.Sequential(DoubleConv(*pair), nn.MaxPool2d(2)) for pair in pairs]


def _last_up(width: int, labels: int) -> nn.Sequential:
    """The step of ``paper5`` back to full size, which no skip joins."""
    half = max(width // 2, 1)
    return nn.Sequential(upsample(width, half), DoubleConv(half, half), head(half, labels))
