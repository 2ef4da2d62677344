"""What the paper published: names, order and figures of its networks on its two data sets."""

import re
from collections.abc import Mapping

TITLES: Mapping[str, str] = {
    "unet": "U-Net",
    "attention_unet": "Att-UNet",
    "resunet": "ResUNet",
    "swin_unet": "Swin-UNet",
    "unext": "UNeXt",
    "iaunet": "IAU-Net",
}
"""The networks in the order of the paper's tables; what it calls its own is IAU-Net here."""

PAPER_SIZE = (256, 256)

PAPER_METRICS = ("dice", "iou", "precision", "sensitivity")

PUBLISHED: Mapping[str, Mapping[str, tuple[float, float, float, float]]] = {
    "ISIC2018": {
        "unet": (87.92, 80.52, 87.49, 88.35),
        "attention_unet": (88.01, 80.82, 87.64, 89.34),
        "resunet": (88.42, 81.25, 88.57, 89.28),
        "swin_unet": (88.73, 81.96, 89.24, 89.87),
        "unext": (86.19, 78.36, 88.35, 89.65),
        "iaunet": (89.72, 82.93, 90.52, 90.81),
    },
    "CVC-ClinicDB": {
        "unet": (87.61, 80.25, 89.46, 87.65),
        "attention_unet": (88.32, 81.13, 89.23, 88.50),
        "resunet": (88.12, 80.82, 88.32, 87.43),
        "swin_unet": (88.64, 81.03, 88.97, 89.72),
        "unext": (88.83, 81.74, 89.21, 90.21),
        "iaunet": (89.86, 82.05, 90.73, 91.03),
    },
}
"""Tables 1 and 2: Dice, IoU, precision and sensitivity in percent, by data set and network. They are means of
per-image scores on images of 256x256, since IoU = Dice / (2 - Dice) does not hold for them; neither the split nor the
seed is given."""


def find_published(dataset: str) -> str | None:
    """The published data set that a dataset's name speaks of, such as ``isic_2018_task1``; None if it is neither."""
    plain = re.sub(r"[^a-z0-9]", "", dataset.lower())
    known = {"isic2018": "ISIC2018", "clinicdb": "CVC-ClinicDB"}
    return next((name for part, name in known.items() if part in plain), None)
