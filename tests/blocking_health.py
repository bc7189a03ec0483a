"""Provide the health servicer of test servers that are built on grpcio's public API."""

from grpc_health.v1.health import HealthServicer


class BlockingHealthServicer(HealthServicer):
    """Answer `Check` and `Watch`; every open `Watch` occupies one thread of its server.

    The default of grpcio-health-checking occupies no thread, but two calls of `Watch`, of which one begins while the
    other ends, can wait for each other for ever: one holds the servicer's lock and waits for gRPC's thread, which waits
    for that lock.
    """

    def __init__(self) -> None:
        super().__init__(experimental_non_blocking=False)
