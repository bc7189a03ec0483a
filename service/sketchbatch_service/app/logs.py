"""Set up the log: each event is one JSON line on stderr, whichever library wrote it."""

import logging
import sys
import threading
from typing import Any

import structlog

from ..background import ComponentName, count_error


def set_up(level: str, **context: object) -> None:
    """Log events of `level` (debug, info, warning, error) and above; every event contains `context`."""
    number = logging.getLevelNamesMapping()[level.upper()]
    enrich: list[Any] = [
        lambda _, __, event: {**context, **event},
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    render: list[Any] = [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[*enrich, *render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _capture_standard_logging(number, enrich, render)


def _capture_standard_logging(level: int, enrich: list[Any], render: list[Any]) -> None:
    """Log the records of libraries, Python's warnings and unhandled exceptions in the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*enrich, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    log = structlog.get_logger()
    sys.excepthook = lambda *exc_info: log.error("unhandled exception", exc_info=exc_info)

    def on_thread_exception(args: Any) -> None:
        count_error(ComponentName.OTHER)
        log.error("unhandled exception in a thread", exc_info=args[:3])

    threading.excepthook = on_thread_exception
