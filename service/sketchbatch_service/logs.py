"""Sets up the log: one event, one JSON line on stderr."""

import logging
import sys

import structlog


def set_up(level: str, **always: object) -> None:
    """Writes events of `level` (debug, info, warning, error) and above; `always` stands in each."""
    structlog.configure(
        processors=[
            lambda _, __, event: {**always, **event},
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
