"""What every process of the service sets up before it loads gRPC and ONNX Runtime."""

import os

from . import logs, memory


def prepare(log_level: str, **always: object) -> None:
    """Sets up the log (`always` stands in each of its lines), the memory and gRPC."""
    logs.set_up(log_level, **always)
    memory.keep_freed_memory()
    # gRPC then reads its sockets on the thread that watches, instead of handing each message on from one of its own.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime's wheels report to Microsoft unless told not to
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a failed bind is said once, by us
