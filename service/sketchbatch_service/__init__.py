"""Serve ONNX models of drawings over gRPC, and batch the rows of concurrent requests.

A request passes through `transport`, a servicer and its codec in `api`, `batching` and an engine of `engines`.
"""
