"""The command `sketchbatch-serve`: reads the settings and runs the server."""

import asyncio
import os
import sys
from typing import Any

import click

from . import logs, memory
from .errors import StartError
from .settings import Settings, options


@click.command(context_settings={"max_content_width": 110})
@options
def main(**values: Any) -> None:
    """Serves ONNX models of 28x28 drawings over gRPC.

    Loads the model (or every model of a repository), warms it up, listens, and then says SERVING, in its log and
    over grpc.health.v1. SIGTERM finishes what was accepted and exits with 0.

    Try: sketchbatch-serve --model models, and in another terminal: sketchbatch model --server localhost:50051
    """
    settings = Settings(**values)
    logs.set_up(settings.log_level)
    memory.keep_freed()
    # gRPC then reads its sockets on the thread that watches, instead of handing each message on from one of its own.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a failed bind is said once, by us
    from .server import serve  # ONNX Runtime and gRPC take a while: --help and a wrong flag need not wait

    try:
        asyncio.run(serve(settings))
    except StartError as exc:
        sys.exit(f"sketchbatch-serve: {exc}")


if __name__ == "__main__":
    main()
