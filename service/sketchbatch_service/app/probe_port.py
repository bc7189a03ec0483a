"""Answer health checks, and no other calls, in plain text on a separate address.

Kubernetes' gRPC probes do not support TLS, so a service with TLS needs this second port. The port has a server of its
own, because one server cannot tell through which of its ports a call arrived.
"""

import threading
from functools import partial

from grpc_health.v1 import health_pb2_grpc

from ..api.health import HealthServicer
from ..background import Component, ComponentName, keep_running
from ..transport.interface import Server
from ..transport.selection import Transport, create_server

_LIMITS = [
    ("grpc.max_receive_message_length", 4096),  # a health request contains only a name
    ("grpc.max_concurrent_streams", 16),
    ("grpc.max_allowed_incoming_connections", 64),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.enable_channelz", 0),
]
"""gRPC options that limit the use of the port, because any host that reaches the pod can connect to it. A kubelet needs
little: it opens one connection per probe, a few concurrently."""


class ProbePort:
    """Server for health checks, as a context manager; without an address it does nothing, and `address` is empty."""

    def __init__(self, health: HealthServicer, address: str, transport: Transport, *, is_shared: bool) -> None:
        """Bind the port, or raise AddressUnusable; `is_shared` allows other processes to bind it, too."""
        self.address = address
        self._server: Server | None = None
        if not address:
            return
        self._server = create_server(transport, [*_LIMITS, ("grpc.so_reuseport", int(is_shared))])
        health_pb2_grpc.add_HealthServicer_to_server(health.for_probes(), self._server)
        self.address = self._server.listen(address, purpose="for probes ")
        self._source = self._server.source
        self._component = Component(ComponentName.PROBE_PORT)
        self._stopping = threading.Event()
        work = partial(keep_running, self._component, self._poll, self._stopping)
        self._thread = threading.Thread(target=work, name="probes", daemon=True)

    async def __aenter__(self) -> "ProbePort":
        """Start to answer health checks."""
        if self._server:
            await self._server.start()
            if self._source:
                self._thread.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop at once."""
        if self._server:
            await self._server.stop(0)
            if self._source:
                self._stopping.set()
                self._source.close()
                self._thread.join()

    def _poll(self) -> None:
        while self._source and self._source.poll(blocks=True):
            self._component.record_success()
