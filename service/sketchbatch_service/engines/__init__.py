"""Model execution with ONNX Runtime on CPU and CUDA."""
