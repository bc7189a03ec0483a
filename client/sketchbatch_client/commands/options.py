"""The options that several verbs share, and where they write."""

from typing import Annotated

import typer
from rich.console import Console

out = Console(soft_wrap=True, markup=False)
err = Console(stderr=True, soft_wrap=True, markup=False)

LOCAL = "localhost:50051"

Server = Annotated[
    str, typer.Option(envvar="SKETCHBATCH_SERVER", help="Where the service listens.", metavar="HOST:PORT")
]
ModelName = Annotated[str, typer.Option("--model", help="Model to ask for.", show_default="the service's default")]
ModelVersion = Annotated[str, typer.Option("--model-version", help="Its version.", show_default="the newest")]
TimeoutS = Annotated[float, typer.Option(min=0.1, help="Longest one request may take, retries included, in seconds.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Write errors only.")]
