"""What a folder of predictions holds besides its masks."""

RECORD, TABLE, AUDIT, PARTS = "predictions.json", "predictions.csv", "audit.jsonl", "parts"
OVERLAYS, PROBABILITIES, UNCERTAINTY, SEGMENTATIONS = "overlays", "probabilities", "uncertainty", "dicom_seg"
ENGINE = "engine"
