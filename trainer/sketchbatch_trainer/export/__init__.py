"""Export a Keras model to self-describing ONNX files: `exporting` (float32), `variants` (float16, int8)."""
