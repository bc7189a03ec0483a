"""The verb `demo`."""

import signal
import webbrowser
from contextlib import suppress
from functools import partial
from typing import Annotated

import typer

from ..demo.classification_api import Answers
from ..demo.server import PageServer
from ..rpc.retries.retry_policy import RetryPolicy
from .options import Connection, ModelName, ModelVersion, TimeoutS, connecting


@connecting
def demo(
    connection: Connection,
    model: ModelName = "",
    model_version: ModelVersion = "",
    address: Annotated[
        str, typer.Option(help="Where to serve the page; 0.0.0.0:PORT lets other machines in.", metavar="HOST:PORT")
    ] = "127.0.0.1:8080",
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Serves a page to draw on: mouse or finger, the bitmap that the model sees, live scores.

    Runs until Ctrl-C or SIGTERM. The service need not be up: the page waits for it.
    """
    connect = partial(connection.open, timeout_s=timeout_s, retry=RetryPolicy(max_attempts=1))
    with suppress(KeyboardInterrupt), PageServer(address, Answers(connect, model, model_version)) as pages:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to end, it has done its work
        print(f"draw at {pages.url} (Ctrl-C ends it)", flush=True)
        if open_page:
            webbrowser.open(pages.url)
        pages.serve_forever()
