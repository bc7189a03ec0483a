"""The command `sketchbatch`: score, merge, evaluate, model, health, demo."""

import os
import sys

import typer

from .atomic import unwind_on_signals
from .commands import demo, evaluate, inspect, merge, score
from .errors import SketchbatchError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Classifies drawings in bulk through a Sketchbatch service, and says how good its model is.",
)
for verb in (score.score, merge.merge, evaluate.evaluate, inspect.model, inspect.health, demo.demo):
    app.command()(verb)


def main() -> None:
    """Runs the command; what a person can put right ends as one line on stderr and exit code 1."""
    unwind_on_signals()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is said once, by us
    try:
        app()
    except (SketchbatchError, OSError) as exc:
        sys.exit(f"sketchbatch: {exc}")
