"""The U-Net the attention network is compared with (Ronneberger et al. 2015), with batch normalisation."""

from itertools import pairwise

from torch import nn

from iaunet.networks.blocks import Up, UShape, check_sizes, head, pooled_stages, widths


def build_unet(*, channels: int, labels: int, width: int = 64, depth: int = 5) -> nn.Module:
    """Build a U-Net with transposed convolutions.

    Args:
        channels: Planes of the input.
        labels: Foreground labels, each one logit map of the output.
        width: Feature maps of the first stage; each further one has twice as many.
        depth: Number of stages, 3 to 6.

    Raises:
        NetworkError: A number is out of its range.
    """
    check_sizes(channels, labels, width, depth)
    maps = widths(width, depth)
    return UShape(
        channels=channels,
        stages=pooled_stages(channels, maps),
        skips=[nn.Identity() for _ in maps[1:]],
        ups=[Up(deep, shallow) for shallow, deep in pairwise(maps)],
        last=head(width, labels),
        multiple=2 ** (depth - 1),
    )
