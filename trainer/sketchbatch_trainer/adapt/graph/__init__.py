"""Find out what an ONNX graph takes and returns, open its batch, and wrap it into our signature."""
