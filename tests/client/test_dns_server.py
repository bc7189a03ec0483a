"""Test the DNS server that other tests use: gRPC can resolve names with it."""

from collections.abc import Iterator

import grpc
import pytest
from dns_server import DnsServer


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    """Run a DNS server that knows no address yet."""
    server = DnsServer()
    server.start()
    yield server
    server.stop()


def test_grpc_connects_to_the_address_that_the_dns_server_returns(dns, start_server, servicer):
    """A channel to a `dns:` target reaches the server whose address the DNS server returns at that moment."""
    port = start_server(servicer).rpartition(":")[2]
    dns.set_addresses(["127.0.0.1"])
    with grpc.insecure_channel(f"dns://{dns.address}/drawings.test:{port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=15)
    assert dns.queries >= 1
