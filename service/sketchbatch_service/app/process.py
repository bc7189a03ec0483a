"""Set up a process of the service before it loads gRPC and ONNX Runtime."""

import os

from . import logs, memory


def prepare(log_level: str, **context: object) -> None:
    """Set up the log, malloc and gRPC's environment; every log event contains `context`."""
    logs.set_up(log_level, **context)
    memory.keep_freed_memory()
    # With this value gRPC reads its sockets on the polling thread, and passes no message to another thread.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime's wheels report to Microsoft by default
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the service reports a failed bind itself
