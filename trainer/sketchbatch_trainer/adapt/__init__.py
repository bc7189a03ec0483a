"""Turn a model that was made elsewhere into one self-describing ONNX file."""
