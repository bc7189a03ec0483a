"""Groups rows of concurrent requests into model calls; independent of gRPC and ONNX Runtime."""
