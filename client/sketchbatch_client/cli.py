"""The command `sketchbatch` with its subcommands score, merge, evaluate, model, health and demo."""

import os
import sys

import typer

from .atomic import unwind_on_signals
from .commands import demo, evaluate, inspect, merge, score
from .errors import SketchbatchError, fails_again

_TEMPORARY = 1  # exit code of an error after which the same command may succeed
_PERMANENT = 4  # exit code of an error that remains until a user changes the command or a file

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Classify drawings in bulk with a Sketchbatch service, and measure how good its model is. "
    "Exit codes: 0 = success, 1 = an error after which the same command may succeed, 2 = invalid options, "
    "4 = an error that a retry cannot repair. stderr has the message.",
)
for command in (score.score, merge.merge, evaluate.evaluate, inspect.model, inspect.health, demo.demo):
    app.command()(command)


def main() -> None:
    """Run the command; report an expected error as one line on stderr and an exit code."""
    unwind_on_signals()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else gRPC also logs the failures that the command reports
    try:
        app()
    except (SketchbatchError, OSError) as exc:
        print(f"sketchbatch: {exc}", file=sys.stderr)
        sys.exit(_PERMANENT if fails_again(exc) else _TEMPORARY)
