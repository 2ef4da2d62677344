"""What an exported model runs with, away from iaunet: copied beside the model by `iaunet.inference.onnx_export`."""
