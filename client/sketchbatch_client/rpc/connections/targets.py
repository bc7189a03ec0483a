"""Parse the targets of a client and choose the gRPC options of the channel to each of them."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from socket import gethostname

ChannelOptions = list[tuple[str, int | str]]

_SERVERS_PER_NAME = 4  # assumed for `dns:///NAME`, whose servers cannot be counted; servers push back excess requests

_ADDRESS_LISTS = ("ipv4:", "ipv6:")  # https://github.com/grpc/grpc/blob/master/doc/naming.md
_SOCKETS = ("unix:", "unix-abstract:")
_OTHER_SCHEMES = (*_ADDRESS_LISTS, *_SOCKETS, "vsock:", "xds:")  # gRPC resolves other targets by DNS

_MAX_PATH_BYTES = 107  # Linux: sockaddr_un.sun_path, without its last or first zero byte

_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # in the order in which gRPC reads them

_MAX_PORT = 65535
_HOST_AND_PORT = re.compile(r"(\[[^\[\]\s]+\]|[^\[\]\s:/?#]+)(:(?P<port>[0-9]{1,5}))?")
_DNS = re.compile(r"dns:(//[^/]*/|/)?(?P<address>.*)")  # dns:[//authority/]HOST:PORT

CONNECT_TIMEOUT_S = 5.0
"""Longest time for one attempt to connect to an address."""

_SERVICE_CONFIG = json.dumps(
    # gRPC watches the health of each server ("" = the server as a whole) and sends requests to SERVING servers only. A
    # server without grpc.health.v1 counts as healthy: https://github.com/grpc/proposal/blob/master/A17-client-side-health-checking.md
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
)


def parse_targets(target: str | Sequence[str]) -> tuple[str, ...]:
    """Return the distinct targets in a sequence, in a text with commas, or in one gRPC target.

    Raises ValueError if there is no target, an empty one, or one that gRPC could never reach.
    """
    if isinstance(target, str) and not target.startswith(_ADDRESS_LISTS):
        return parse_targets(target.split(","))
    named = [target] if isinstance(target, str) else target
    if (
        not isinstance(named, Sequence)
        or not named
        or not all(isinstance(each, str) and each.strip() for each in named)
    ):
        raise ValueError(f"target must be HOST:PORT, several separated by commas, or gRPC targets, got {target!r}")
    targets = tuple(dict.fromkeys(each.strip() for each in named))
    for each in targets:
        _check(each)
    return targets


def server_count(target: str) -> int:
    """Return how many servers a channel to `target` uses; for a DNS name, return an assumed number."""
    return _SERVERS_PER_NAME if target.startswith("dns:") else len(_addresses(target))


def is_name(target: str) -> bool:
    """Return whether `target` is a DNS name, which may resolve to other servers later.

    A DNS name is `dns:...` or HOST:PORT, where HOST is neither an IP address nor localhost.
    """
    host = _host(_addresses(target)[0])
    return not target.startswith(_OTHER_SCHEMES) and host != "localhost" and not _is_ip_address(host)


def is_local(target: str) -> bool:
    """Return whether `target` names only this machine: loopback addresses, or a socket's path."""
    return target.startswith(_SOCKETS) or all(map(_is_loopback, _addresses(target)))


def split_address(address: str) -> tuple[str, str]:
    """Return host and port of HOST:PORT or [IPV6]:PORT; either may be empty."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port


def channel_options(
    target: str, *, watches_health: bool = True, connect_timeout_s: float = CONNECT_TIMEOUT_S
) -> ChannelOptions:
    """Return the options of a channel that finds lost and restarted servers soon.

    The channel reconnects within 0.6 s after a server is back. It drops a silent server within 40 s: 20 s until a ping
    is sent, and 20 s without a response to it. When a connection closes or cannot be opened, a channel to a DNS name
    resolves the name again, at most once in 1 s.
    """
    options: ChannelOptions = [
        ("grpc.max_receive_message_length", -1),  # all scores of a large request exceed the default of 4 MiB
        ("grpc.use_local_subchannel_pool", 1),  # by default, channels to one target share a connection
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.inhibit_health_checking", int(not watches_health)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.min_reconnect_backoff_ms", round(connect_timeout_s * 1000)),  # in effect the connect timeout
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # the default of 30 s exceeds the time of a rollout
        ("grpc.keepalive_time_ms", 20_000),  # our service allows a ping every 10 s
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.ping_timeout_ms", 20_000),  # tested: gRPC 1.85 uses this option, whose default is a minute
        ("grpc.http2.max_pings_without_data", 0),  # 0 = no limit: a request may wait long for its response
    ]
    if not proxy_of([target]):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def first_without_port(targets: Iterable[str]) -> str:
    """Return the first target with a host but without a port, for which gRPC uses port 443; empty = none."""
    names = (target for target in targets if not target.startswith(_OTHER_SCHEMES))
    return next((name for name in names if not _port(_addresses(name)[0])), "")


def proxy_of(targets: Iterable[str]) -> str:
    """Return the environment variable and the address of the proxy that gRPC uses for a target; empty = none."""
    name = next(filter(os.environ.get, _PROXY_VARIABLES), "")
    if not name or all(map(_needs_no_proxy, targets)):
        return ""
    address = os.environ[name].rpartition("@")[2].rpartition("//")[2]  # without user and password
    return f"{name} ({address})"


def _needs_no_proxy(target: str) -> bool:
    """Return True for this machine, which a proxy cannot reach, and for a host in `no_proxy` or `NO_PROXY`.

    gRPC itself reads `no_proxy` only, and does not know `*`.
    """
    from urllib.request import proxy_bypass  # imports many modules that clients without a proxy do not need

    hosts = [_host(address) for address in _addresses(target)]
    return is_local(target) or any(host == gethostname() or proxy_bypass(host) for host in hosts)


def _check(target: str) -> None:
    """Raise ValueError if gRPC could never reach `target`; gRPC would report an unreachable server at each request."""
    if target.startswith(_SOCKETS):
        _check_socket(target)
    elif target.startswith(_ADDRESS_LISTS):
        version = 4 if target.startswith("ipv4:") else 6
        if not all(_is_address(each, version) for each in _addresses(target)):
            raise ValueError(f"target must be ipv{version}:IP:PORT, more IP:PORT after commas, got {target!r}")
    elif target.startswith("dns:"):
        if not _is_host_and_port(_addresses(target)[0]):
            raise ValueError(f"target must be dns:///HOST:PORT, without a path, PORT 1..65535, got {target!r}")
    elif not target.startswith(_OTHER_SCHEMES) and not _is_host_and_port(target):
        scheme = ", without SCHEME:// and path" if "/" in target else ""
        raise ValueError(f"target must be HOST:PORT or [IPV6]:PORT{scheme}, PORT 1..65535, got {target!r}")


def _check_socket(target: str) -> None:
    scheme, _, path = target.partition(":")
    if scheme == "unix":
        path = path.removeprefix("//") if path.startswith("///") else path
        is_usable = bool(path) and path[-1] != "/" and not path.startswith("//")
    else:
        is_usable = bool(path)
    if not is_usable or len(path.encode()) > _MAX_PATH_BYTES or set(path) & {"?", "#"}:  # gRPC cuts the path at ? and #
        raise ValueError(
            f"target must be {scheme}:PATH, PATH of 1..{_MAX_PATH_BYTES} bytes without ? and #, and not a folder, "
            f"got {target!r}"
        )


def _is_host_and_port(address: str) -> bool:
    """Return whether `address` is HOST:PORT, [IPV6]:PORT, HOST or [IPV6]; without a port, gRPC uses 443."""
    match = _HOST_AND_PORT.fullmatch(address)
    return match is not None and (match["port"] is None or 1 <= int(match["port"]) <= _MAX_PORT)


def _port(address: str) -> str | None:
    match = _HOST_AND_PORT.fullmatch(address)
    return match and match["port"]


def _is_address(address: str, version: int) -> bool:
    """Return whether `address` is IP:PORT with an IP address of this version."""
    host, port = split_address(address)
    is_port = port.isdecimal() and 1 <= int(port) <= _MAX_PORT
    return is_port and _is_ip_address(host) and ip_address(host).version == version


def _addresses(target: str) -> list[str]:
    """Return HOST:PORT of each server that the target names."""
    if target.startswith(_ADDRESS_LISTS):
        return target.partition(":")[2].split(",")
    match = _DNS.fullmatch(target)
    return [match["address"] if match else target]


def _host(address: str) -> str:
    return split_address(address)[0] or address


def _is_ip_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    host = _host(address)
    return host == "localhost" or (_is_ip_address(host) and ip_address(host).is_loopback)
