"""What a folder of predictions holds besides its masks."""

RECORD, TABLE, AUDIT = "predictions.json", "predictions.csv", "audit.jsonl"
OVERLAYS, PROBABILITIES, UNCERTAINTY, SEGMENTATIONS = "overlays", "probabilities", "uncertainty", "dicom_seg"
