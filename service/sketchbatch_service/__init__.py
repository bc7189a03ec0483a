"""Serves ONNX models of drawings over gRPC, batching requests by rows.

A request travels servicer -> codec -> batcher -> engine and back; `server` holds the port, `models` the files.
"""
