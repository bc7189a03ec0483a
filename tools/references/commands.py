"""Make the pages of the commands from their definitions in typer and click, as `--help` shows them.

typer may have its own copy of click. Therefore the types of commands and options are `Any`.
"""

import re
from collections.abc import Iterator
from typing import Any

import typer
from sketchbatch_client.commands.app import app as client_app
from sketchbatch_service.__main__ import main as serve_command
from sketchbatch_trainer.cli import app as train_app

from .page import Page, escaped, name

_EXTRAS = re.compile(r"^(?P<text>.*?)(?:  \[(?P<extras>[^\[]*(?:\[[^\]]*\][^\[]*)*)\])?$", re.DOTALL)


def command_pages() -> Iterator[Page]:
    """Return a page for each of the three commands, with all subcommands and options."""
    yield _command_page("sketchbatch", typer.main.get_command(client_app), "bulk scoring, evaluation, model, health")
    yield _command_page("sketchbatch-serve", serve_command, "the service: every flag and environment variable")
    yield _command_page("sketchbatch-train", typer.main.get_command(train_app), "drawings, training, export, report")


def _command_page(program: str, command: Any, content: str) -> Page:
    """Return the page of a command and its subcommands."""
    parts = [_command(program, command)]
    for subcommand, each in getattr(command, "commands", {}).items():
        parts.append(f"## `{program} {subcommand}`\n\n{_command(f'{program} {subcommand}', each)}")
    return Page(program, program, content, "\n\n".join(parts))


def _command(path: str, command: Any) -> str:
    context = command.make_context(path, [], resilient_parsing=True)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    rows = [_option(each, context) for each in command.get_params(context) if not getattr(each, "hidden", False)]
    used = [number for number in range(len(_COLUMNS)) if any(row[number] for row in rows)]
    table = [
        [_COLUMNS[number] for number in used],
        ["---"] * len(used),
        *([row[number] for number in used] for row in rows),
    ]
    return "\n\n".join(
        [
            f"```text\n{usage}\n```",
            _help_text(command.help or ""),
            "\n".join(f"| {' | '.join(row)} |" for row in table),
        ]
    )


_COLUMNS = ("option", "meaning", "default")


def _option(option: Any, context: Any) -> list[str]:
    """Return the row of an option or an argument, from the text that `--help` shows."""
    names, text = option.get_help_record(context)
    found = _EXTRAS.fullmatch(text)
    assert found
    extras = found["extras"].split("; ") if found["extras"] else []
    default = next((each.removeprefix("default: ") for each in extras if each.startswith("default: ")), "")
    variable = next((each.removeprefix("env var: ") for each in extras if each.startswith("env var: ")), "")
    allowed = [each for each in extras if each != "required" and not each.startswith(("default: ", "env var: "))]
    shown = "required" if "required" in extras else _default(default, option)
    return [
        "<br>".join(name(each) for each in [*_typed(names).split(" / "), variable] if each),
        escaped(" ".join(found["text"].split())),
        "<br>".join(each for each in (shown, *(_range(each) for each in allowed)) if each),
    ]


def _typed(names: str) -> str:
    """Return the names of an option with its type as one word: `--top-k INT` for `--top-k <int range>`."""
    names = re.sub(r"(\.\.\.|[A-Z]) <.*>$", r"\1", names)  # the name of an argument needs no type
    names = re.sub(r"<([^>]*\|[^>]*)>$", r"[\1]", names)  # a choice
    return re.sub(r"<(\w+).*>$|(?<= )(\w+) RANGE$", lambda kind: (kind[1] or kind[2]).upper(), names)


def _range(shown: str) -> str:
    bounds = re.fullmatch(r"(?:([-\d.]+)<=)?x(?:<=([-\d.]+))?|x>=([-\d.]+)", shown)
    if not bounds:
        return escaped(shown)
    least, most = bounds[1] or bounds[3], bounds[2]
    if not (least and most):
        return f"at least {least}" if least else f"at most {most}"
    return f"{least} to {most.removesuffix('.0')}"


def _default(shown: str, option: Any) -> str:
    """Return the default as Markdown; `shown` is a value, or words in brackets, or the name of a flag."""
    if option.secondary_opts:
        return "on" if option.default else "off"
    if shown.startswith("("):
        return escaped(shown[1:-1])
    shown = re.sub(r"^(\d+)\.0$", r"\1", shown)
    return f"`{shown}`" if shown and shown != '""' else ""


def _help_text(text: str) -> str:
    """Return the help text of a command as Markdown; an example becomes a block of code."""
    paragraphs = re.split(r"\n\s*\n", text.replace("\b\n", ""))
    return "\n\n".join(_paragraph(" ".join(each.split())) for each in paragraphs)


def _paragraph(text: str) -> str:
    example = re.fullmatch(r"(Examples?:) (.*)", text)
    return f"{example[1]}\n\n```sh\n{example[2]}\n```" if example else escaped(text)
