"""What a folder of predictions holds besides its masks."""

RECORD, TABLE = "predictions.json", "predictions.csv"
OVERLAYS, PROBABILITIES, SEGMENTATIONS = "overlays", "probabilities", "dicom_seg"
