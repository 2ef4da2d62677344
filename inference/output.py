"""What a folder of predictions holds besides its masks, and what can be wished of it."""

from dataclasses import dataclass

RECORD, TABLE, AUDIT, PARTS = "predictions.json", "predictions.csv", "audit.jsonl", "parts"
OVERLAYS, PROBABILITIES, UNCERTAINTY, SEGMENTATIONS = "overlays", "probabilities", "uncertainty", "dicom_seg"
ENGINE = "engine"


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """What to write, and over what.

    ``overlay``, ``probabilities``, ``uncertainty`` and ``dicom_seg`` write further files, the last for DICOM input;
    ``overwrite`` replaces masks of another model and makes those of this one again, but for those made since
    ``made_since``, see `iaunet.inference.audit.audit_time`: what a killed process had done is not done twice.
    """

    overlay: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    dicom_seg: bool = False
    overwrite: bool = False
    made_since: str | None = None
