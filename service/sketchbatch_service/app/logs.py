"""Sets up the log: one event, one JSON line on stderr, whoever it is from."""

import logging
import sys
import threading
from typing import Any

import structlog


def set_up(level: str, **always: object) -> None:
    """Writes events of `level` (debug, info, warning, error) and above; `always` stands in each."""
    number = logging.getLevelNamesMapping()[level.upper()]
    described: list[Any] = [
        lambda _, __, event: {**always, **event},
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    written: list[Any] = [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[*described, *written],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _adopt_others(number, described, written)


def _adopt_others(level: int, described: list[Any], written: list[Any]) -> None:
    """Has what libraries log, Python's warnings and what nobody caught written in the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*described, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *written],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    log = structlog.get_logger()
    sys.excepthook = lambda kind, error, trace: log.error("the process broke", exc_info=(kind, error, trace))
    threading.excepthook = lambda broken: log.error("a thread broke", exc_info=broken[:3])
