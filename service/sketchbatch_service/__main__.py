"""The command `sketchbatch-serve`: reads the settings and runs the server."""

import asyncio
import sys
from typing import Any

import click

from .app import process
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
    process.prepare(settings.log_level)
    # ONNX Runtime and gRPC take a while to load: --help and a wrong flag need not wait, nor the workers' parent.
    if settings.workers > 1:
        from .app.supervisor import supervise as serve
    else:
        from .app.server import serve
    try:
        asyncio.run(serve(settings))
    except StartError as exc:
        sys.exit(f"sketchbatch-serve: {exc}")


if __name__ == "__main__":
    main()
