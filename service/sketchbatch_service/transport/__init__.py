"""Accept gRPC calls and authenticate them: server, calls, status codes, TLS and tokens."""
