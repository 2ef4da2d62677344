"""The options of the networks that a plan can name, here so that a plan can be checked without importing torch."""

from typing import Any, Literal

SpatialMode = Literal["mean", "scaled", "literal", "channel", "softmax"]
SigmoidScale = Literal["bias", "count"]
Variant = Literal["fullres", "paper5"]
ScalePlace = Literal["first", "last", "every", "none"]
AttentionOrder = Literal["spatial_first", "channel_first"]

OPTIONS: dict[str, dict[str, Any]] = {
    "iaunet": {
        "variant": Variant,
        "scale_attention": ScalePlace,
        "spatial_attention": SpatialMode | Literal["none"],
        "channel_attention": bool,
        "attention_order": AttentionOrder,
        "max_keys": int | None,
        "gamma_init": float,
        "sigmoid_scale": SigmoidScale,
        "separate_mlps": bool,
    },
    "unet": {},
    "attention_unet": {"biases": bool},
    "resunet": {},
    "swin_unet": {"window": int, "drop_path": float},
    "unext": {"doubling": bool},
}
"""What the builder of each network takes besides its sizes, with the types it declares."""
