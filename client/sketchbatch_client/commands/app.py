"""The command `sketchbatch` with its subcommands score, merge, evaluate, model, health and demo."""

import typer

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
