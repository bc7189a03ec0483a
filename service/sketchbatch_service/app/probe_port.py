"""Answers health checks, and nothing else, in plain text on an address of their own.

Kubernetes' gRPC probes speak no TLS: where the service does, they need another way in. A server of its own, as nobody
could tell through which port of one server a call came; of ours, since `grpc.aio`'s ends for good at the first call
whose path is no UTF-8.
"""

import threading

from grpc_health.v1 import health_pb2_grpc

from ..api.health import HealthServicer
from ..errors import AddressUnusable
from ..transport.core_server import CoreServer

_LIMITS = [
    ("grpc.max_receive_message_length", 4096),  # a health request is a name
    ("grpc.max_concurrent_streams", 16),
    ("grpc.max_allowed_incoming_connections", 64),
    ("grpc.server_handshake_timeout_ms", 5_000),
]
"""A kubelet makes one connection for each probe, a few at a time; anybody who can reach the pod can make them, too."""


class ProbePort:
    """Where probes are answered; `address` is empty where they have no address of their own."""

    def __init__(self, health: HealthServicer, address: str, *, is_shared: bool) -> None:
        """Binds the port (shared with other processes, or not).

        Raises:
            AddressUnusable: The address cannot be had.
        """
        self.address = address
        self._server: CoreServer | None = None
        if not address:
            return
        self._server = CoreServer([*_LIMITS, ("grpc.so_reuseport", int(is_shared))])
        health_pb2_grpc.add_HealthServicer_to_server(health, self._server)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as exc:
            raise AddressUnusable(
                f"cannot listen for probes on {address}: the port is in use, or the address is not this machine's"
            ) from exc
        self.address = f"{address.rpartition(':')[0]}:{port}"
        self._watching = threading.Thread(target=self._watch, name="probes", daemon=True)

    async def start(self) -> None:
        """Answers from now on."""
        if self._server:
            await self._server.start()
            self._watching.start()

    async def stop(self) -> None:
        """Answers no more, at once."""
        if self._server:
            await self._server.stop(0)
            self._server.close()
            self._watching.join()

    def _watch(self) -> None:
        while self._server and self._server.poll(blocks=True):
            pass
