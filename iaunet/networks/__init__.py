"""The networks a plan can name; each maps images to one logit map a label, at the size of its input."""

import inspect
from collections.abc import Callable
from importlib import import_module
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from iaunet.errors import NetworkError
from iaunet.networks.options import OPTIONS

if TYPE_CHECKING:
    from torch import nn

NETWORKS = {
    "iaunet": "iaunet.networks.iaunet:build_iaunet",
    "unet": "iaunet.networks.unet:build_unet",
    "attention_unet": "iaunet.networks.attention_unet:build_attention_unet",
    "resunet": "iaunet.networks.resunet:build_resunet",
    "swin_unet": "iaunet.networks.swin_unet:build_swin_unet",
    "unext": "iaunet.networks.unext:build_unext",
}
DEPTHS = range(3, 7)  # the numbers of stages a network can have
SIZES = ("channels", "labels", "width", "depth")  # what every builder takes; all else is an option of its own


def build_network(name: str, *, channels: int, labels: int, width: int, depth: int, **options: object) -> "nn.Module":
    """Build a network with fresh weights, drawn from torch's global generator.

    Args:
        name: A name in `NETWORKS`, or a stranger's builder as ``package.module:function``.
        channels: Planes of the input.
        labels: Foreground labels, each one logit map of the output.
        width: Feature maps of the first stage.
        depth: Number of stages.
        options: Further arguments of the builder.

    Returns:
        A module that maps ``[B, channels, H, W]`` to logits ``[B, labels, H, W]``.

    Raises:
        NetworkError: The name, an option or a number does not fit; the message says what would.
    """
    check_network(name, options)
    network: nn.Module = _find_builder(name)(channels=channels, labels=labels, width=width, depth=depth, **options)
    return network


def default_sizes(name: str) -> dict[str, int]:
    """The width and depth a network has unless told otherwise: for those of `NETWORKS` what it was published with.

    Returns:
        ``width`` and ``depth``, as far as the builder has defaults.

    Raises:
        NetworkError: The name is unknown.
    """
    parameters = inspect.signature(_find_builder(name)).parameters
    return {
        size: parameters[size].default
        for size in ("width", "depth")
        if size in parameters and isinstance(parameters[size].default, int)
    }


def check_network(name: str, options: dict[str, object]) -> None:
    """Refuse a network that `build_network` does not know or that does not take these options.

    A name of `NETWORKS` is checked without importing torch.

    Raises:
        NetworkError: An unknown name, an unknown option, or a value unlike what the builder declares.
    """
    accepted, takes_any = (OPTIONS[name], False) if name in OPTIONS else _declared_options(name)
    for option, value in options.items():
        if option not in accepted and (option in SIZES or not takes_any):
            choices = ", ".join(accepted) or "none"
            raise NetworkError(f"network {name!r} has no option {option!r}: its options are {choices}")
        if not _fits(value, accepted.get(option, Any)):
            wanted = _in_words(accepted[option])
            raise NetworkError(f"option {option!r} of network {name!r} is {value!r}: give {wanted}")


def _declared_options(name: str) -> tuple[dict[str, Any], bool]:
    """The options that a builder declares, with their types, and whether it takes others besides."""
    parameters = inspect.signature(_find_builder(name), eval_str=True).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    declared = {
        key: parameter.annotation
        for key, parameter in parameters.items()
        if key not in SIZES and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    return declared, takes_any


def _find_builder(name: str) -> Callable[..., Any]:
    module, colon, function = NETWORKS.get(name, name).partition(":")
    if not colon:
        raise NetworkError(
            f"unknown network {name!r}: choose one of {', '.join(NETWORKS)}, "
            f"or name a builder of your own as package.module:function"
        )
    try:
        builder: Callable[..., Any] = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise NetworkError(
            f"network {name!r} cannot be found ({error}): "
            f"install its package in this environment, or correct package.module:function"
        ) from error
    return builder


def _fits(value: object, annotation: object) -> bool:
    """Whether a plain value is of the annotated kind; kinds that JSON does not have fit everything."""
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return any(_fits(value, kind) for kind in get_args(annotation))
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    return value is None if annotation in (None, NoneType) else True


def _in_words(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(repr, get_args(annotation)))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(map(_in_words, get_args(annotation)))
    return "null" if annotation is NoneType else str(getattr(annotation, "__name__", annotation))
