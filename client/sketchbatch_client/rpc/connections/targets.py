"""Says which servers a target names, and how a channel to one of them is set up."""

import json
from collections.abc import Sequence
from ipaddress import ip_address

Options = list[tuple[str, int | str]]
"""Of a gRPC channel."""

_SERVERS_OF_A_NAME = 4  # nobody says how many stand behind `dns:///name`; too many requests are pushed back

_LISTS = ("ipv4:", "ipv6:")  # gRPC's own lists: https://github.com/grpc/grpc/blob/master/doc/naming.md

_SERVICE_CONFIG = json.dumps(
    # gRPC watches the health of each server, "" = as a whole, and leaves alone those that do not say SERVING. A server
    # without grpc.health.v1 counts as healthy: https://github.com/grpc/proposal/blob/master/A17-client-side-health-checking.md
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
)


def targets_of(target: str | Sequence[str]) -> tuple[str, ...]:
    """Each server, or name of servers, once: of a sequence, of text with commas, or of one gRPC target."""
    if isinstance(target, str) and not target.startswith(_LISTS):
        return targets_of(target.split(","))
    named = [target] if isinstance(target, str) else target
    targets = tuple(dict.fromkeys(each.strip() for each in named))
    if not targets or not all(targets):
        raise ValueError(f"expected HOST:PORT, several with commas between, or gRPC targets, got {target!r}")
    return targets


def servers_behind(target: str) -> int:
    """How many servers a channel to `target` spreads its requests over, as far as can be said."""
    return _SERVERS_OF_A_NAME if target.startswith("dns:") else len(_addresses(target))


def is_local(target: str) -> bool:
    """Whether it names this machine and no other: loopback addresses, or a socket's path."""
    return target.startswith(("unix:", "unix-abstract:")) or all(map(_is_loopback, _addresses(target)))


def channel_options(target: str, *, watches_health: bool = True) -> Options:
    """The channel reconnects within a second of a server's return, and notices within 40 s one that is silent."""
    options: Options = [
        ("grpc.max_receive_message_length", -1),  # all scores of a large request exceed the default 4 MiB
        ("grpc.use_local_subchannel_pool", 1),  # or channels to one target would share a connection
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.inhibit_health_checking", int(not watches_health)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.min_reconnect_backoff_ms", 5_000),  # in fact the longest that one attempt to connect may take
        ("grpc.keepalive_time_ms", 20_000),  # our service allows a ping every 10 s
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.ping_timeout_ms", 20_000),  # tried: gRPC 1.85 goes by this one, whose default is a minute
        ("grpc.http2.max_pings_without_data", 0),  # 0 = no limit: a request may wait long for its answer
    ]
    if is_local(target):
        options.append(("grpc.enable_http_proxy", 0))  # an office's https_proxy knows no way back to this machine
    return options


def _addresses(target: str) -> list[str]:
    """HOST:PORT of each server that the target spells out."""
    if target.startswith(_LISTS):
        return target.partition(":")[2].split(",")
    if target.startswith("dns:"):  # dns:[//authority/]HOST:PORT
        return [target.removeprefix("dns:").rpartition("/")[2]]
    return [target]


def _is_loopback(address: str) -> bool:
    host = (address.rpartition(":")[0] or address).strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # some other name
        return False
