"""Define a generated page, and write plain text as Markdown."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """A generated page of the reference."""

    name: str  # of the file in reference/, without its ending
    title: str
    content: str  # one line for the index
    body: str  # Markdown


def escaped(text: str) -> str:
    """Return plain text as Markdown for a paragraph or a cell of a table.

    Names of options and variables become code; what is in backticks stays code.
    """
    parts = re.split(r"(`[^`]*`|(?<![\w-])--[a-z][\w-]*|\$?SKETCHBATCH_[A-Z_]+)", text)
    return "".join(f"`{part.strip('`')}`" if number % 2 else _plain(part) for number, part in enumerate(parts))


def name(text: str) -> str:
    """Return a name as code that site.css keeps on one line, also in a narrow column of a table."""
    return f"`{text}`{{.name}}"


def _plain(text: str) -> str:
    return re.sub(r"([\\*_<>\[\]|])", r"\\\1", text)
