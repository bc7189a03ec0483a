"""Run models with ONNX Runtime, on CPU and CUDA."""
