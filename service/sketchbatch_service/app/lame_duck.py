"""Plan how a replica leaves after SIGTERM, so that no request is refused: decision 29.

gRPC resolves a name again only after one of its connections has closed, and at most once in 30 s. A client may
therefore need that long to learn of a replica that replaces this one. The lame duck time has two parts:

1. Admission: the service still accepts connections and calls. `Check` reports NOT_SERVING to balancers, which poll it.
   `Watch` reports SERVING to gRPC clients, because this replica may be the only one that they know.
2. Leaving: the listener is closed, and `Watch` reports NOT_SERVING. Each connection reaches its maximum age and closes,
   and its client cannot open another. At the end no connection is left.
"""

import structlog

log = structlog.get_logger()

RESOLUTION_S = 30.0
"""gRPC's least time between two resolutions of a name: the option grpc.dns_min_time_between_resolutions_ms."""

DNS_CACHE_S = 5.0
"""The time for which a DNS server of a cluster may return an old answer: the default TTL of CoreDNS."""

LEAST_MIN_READY_S = RESOLUTION_S + DNS_CACHE_S
"""The least `minReadySeconds` of a Deployment: a new replica must be known to all clients before an old one leaves."""

_AGE_JITTER = 1.1  # gRPC varies the maximum age of each connection by 10 %
_GOAWAY_S = 1.0  # for a client to read GOAWAY and finish its small calls


def leave_s(max_connection_age_s: float) -> float:
    """Return the seconds from the closing of the listener until no connection is left; 0 = connections do not age."""
    return _AGE_JITTER * max_connection_age_s + _GOAWAY_S if max_connection_age_s else 0.0


def least_lame_duck_s(max_connection_age_s: float) -> float:
    """Return the least lame duck time on Kubernetes, in seconds, for services whose connections age."""
    return LEAST_MIN_READY_S + leave_s(max_connection_age_s)


def admission_s(lame_duck_s: float, max_connection_age_s: float) -> float | None:
    """Return the seconds of admission, the first part of the lame duck time, in which connections are accepted.

    Return None if connections never reach their maximum age, or reach it only after the lame duck time. `Watch` must
    then report NOT_SERVING at once, because gRPC will not close the connections in time.
    """
    leaving_s = leave_s(max_connection_age_s)
    return lame_duck_s - leaving_s if 0 < leaving_s <= lame_duck_s else None


def warn_if_too_short(lame_duck_s: float, max_connection_age_s: float) -> None:
    """Log a warning if connections may outlive the lame duck time, although they age: a stop may refuse requests."""
    needed_s = leave_s(max_connection_age_s)
    if 0 < lame_duck_s < needed_s:
        log.warning("a stop may refuse requests: lame_duck_s is too short", lame_duck_s=lame_duck_s, needed_s=needed_s)
