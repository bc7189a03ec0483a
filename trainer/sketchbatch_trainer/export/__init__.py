"""A Keras model to ONNX files that describe themselves: `exporting` (float32), `variants` (float16, int8)."""
