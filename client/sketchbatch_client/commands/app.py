"""The command `sketchbatch` with its subcommands score, merge, evaluate, model, health and demo."""

import typer

from . import demo, evaluate, inspect, merge, score

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
