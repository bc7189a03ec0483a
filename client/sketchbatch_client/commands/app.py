"""The command `sketchbatch` with its subcommands score, merge, evaluate, model, health and demo."""

from typing import Annotated

import typer
from sketchbatch import versions

from . import demo, evaluate, inspect, merge, score


def _reflowed(text: str) -> str:
    """Return a docstring with each paragraph on one line, because typer keeps the ends of lines."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Classify drawings in bulk with a Sketchbatch service, and measure how good its model is. "
    "Exit codes: 0 = success, 1 = an error after which the same command may succeed, 2 = invalid options, "
    "3 = finished, but rows were rejected or files not read, 4 = an error that a retry cannot repair. stderr has the "
    "message.",
)
for command in (score.score, merge.merge, evaluate.evaluate, inspect.model, inspect.health, demo.demo):
    app.command(help=_reflowed(command.__doc__ or ""))(command)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(versions.describe("sketchbatch", "sketchbatch-client", "grpcio", "numpy", "pyarrow"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Print the versions of the client, its libraries and Python, and exit.",
        ),
    ] = False,
) -> None:
    """Take the options that stand before a subcommand."""
