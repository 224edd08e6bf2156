"""From a checkpoint to a folder that ONNX Runtime reads: what clip-koa export-onnx does."""
