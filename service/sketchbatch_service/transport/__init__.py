"""The gRPC server, its calls, status codes, TLS and tokens."""
