"""From a checkpoint to a folder that ONNX Runtime reads: what export_onnx.py does."""
