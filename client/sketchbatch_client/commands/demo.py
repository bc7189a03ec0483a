"""The subcommand `demo`."""

import signal
import webbrowser
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from typing import Annotated

import typer

from ..errors import ExtraMissing
from ..rpc.async_client import AsyncClient
from ..rpc.retries.retry_policy import RetryPolicy
from .options import ConnectionOptions, ModelName, ModelVersion, TimeoutS, connecting


@connecting
def demo(
    connection: ConnectionOptions,
    model: ModelName = "",
    model_version: ModelVersion = "",
    address: Annotated[
        str, typer.Option(help="Address of the page; 0.0.0.0:PORT admits other machines.", metavar="HOST:PORT")
    ] = "127.0.0.1:8080",
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Serve a web page for drawing; it shows the bitmap that the model receives, and live scores.

    Example: sketchbatch demo --open

    The service may start after this command. Exit codes: 0 = ended by Ctrl-C or SIGTERM, 1 = ended by an error.
    """
    if not (find_spec("starlette") and find_spec("uvicorn")):
        raise ExtraMissing.of("demo", "demo", "starlette", "uvicorn")
    from ..demo.classification_api import ClassificationApi
    from ..demo.server import PageServer  # needs the extra

    retry = RetryPolicy(max_attempts=1)
    connection.open(timeout_s=timeout_s, retry=retry).close()  # an invalid option is an error now, not of each drawing
    connect = partial(connection.open_as, AsyncClient, timeout_s=timeout_s, retry=retry)
    try:
        listening = PageServer(address, ClassificationApi(connect, model, model_version))
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--address") from exc
    with suppress(KeyboardInterrupt), listening as server:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM is the regular end: exit code 0
        print(f"draw at {server.url} (Ctrl-C stops the server)", flush=True)
        if open_page:
            webbrowser.open(server.url)
        server.serve_forever()
