"""Answer DNS queries for any name with a list of addresses that a test changes."""

from dnslib import QTYPE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSLogger, DNSServer


class DnsServer(BaseResolver):
    """Run a real DNS server on 127.0.0.1; its only records are A records of the current addresses, with a TTL of 0.

    gRPC queries this server if a client's target is `dns://ADDRESS/NAME:PORT`.
    """

    def __init__(self, *addresses: str) -> None:
        self.queries = 0  # number of queries for A records
        self._addresses = addresses
        self._server = DNSServer(self, address="127.0.0.1", port=0, logger=DNSLogger("-request,-reply"))
        self.address = f"127.0.0.1:{self._server.server.server_address[1]}"

    def set_addresses(self, addresses: list[str]) -> None:
        """Answer later queries with these addresses."""
        self._addresses = tuple(addresses)

    def start(self) -> None:
        """Start a thread that answers queries."""
        self._server.start_thread()

    def stop(self) -> None:
        """Close the port of the server."""
        self._server.stop()
        self._server.server.server_close()

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        """Return the answer to one query; dnslib calls this method."""
        reply = request.reply()
        if request.q.qtype == QTYPE.A:
            self.queries += 1
            for address in self._addresses:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=0))
        return reply
