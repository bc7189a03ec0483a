"""Make the pages of the Python client: a directive of mkdocstrings for each public name."""

import ast
import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType
from typing import get_args, get_type_hints

import sketchbatch_client

from .page import Page, escaped

_ERROR_OPTIONS = ("show_bases: true", 'filters: ["!^_", "!^is_permanent$"]')


def python_pages() -> Iterator[Page]:
    """Return the pages of the client, its errors, and the submodules for drawings, evaluation and Ray."""
    names = sketchbatch_client.__all__
    errors = [name for name in names if _is_error(getattr(sketchbatch_client, name))]
    yield Page(
        "client",
        "Client",
        "`sketchbatch_client`: `Client`, `AsyncClient` and what they take and return",
        "Import these names from `sketchbatch_client`.\n\n"
        + _entries("sketchbatch_client", ["Client", *(name for name in names if name not in ["Client", *errors])]),
    )
    yield Page(
        "errors",
        "Errors",
        "`sketchbatch_client`: the errors of the client, and what to do about each",
        "Import these names from `sketchbatch_client`. An error is permanent if the same call fails again until a user "
        "changes its arguments or its files.\n\n"
        f"{_error_table()}\n\n" + _entries("sketchbatch_client", errors, *_ERROR_OPTIONS),
    )
    modules = [
        f"sketchbatch_client.drawings.{name}" for name in ("readers", "strokes", "images", "rasterize", "simplify")
    ]
    yield Page(
        "drawings",
        "Drawings",
        "`sketchbatch_client.drawings`: readers of files, rasteriser, pictures",
        "\n".join(_module(name, "show_if_no_docstring: false") for name in modules),
    )
    yield Page(
        "evaluation",
        "Evaluation",
        "`sketchbatch_client.evaluation`: metrics of a served model",
        _module("sketchbatch_client.evaluation")
        + "## Types of the results\n\nThe results have attributes of these types.\n\n"
        + _result_types("sketchbatch_client.evaluation"),
    )
    yield Page("ray", "Ray", "`sketchbatch_client.ray`: scores for a Ray dataset", _module("sketchbatch_client.ray"))


def _is_error(member: object) -> bool:
    return isinstance(member, type) and issubclass(member, Exception) and not issubclass(member, Warning)


def _error_table() -> str:
    """Return the tree at the top of the module `errors` as a table."""
    tree = re.findall(r"^[│├└─ ]+(\w+) {2,}([^:\n]+): (.+)$", sketchbatch_client.errors.__doc__ or "", re.MULTILINE)
    rows = ["| error | cause | what to do | permanent |", "|---|---|---|---|"]
    for name, cause, cure in tree:
        is_permanent = getattr(sketchbatch_client, name).is_permanent
        link = f"[`{name}`][sketchbatch_client.{name}]"
        rows.append(f"| {link} | {escaped(cause)} | {escaped(cure)} | {'yes' if is_permanent else 'no'} |")
    return "\n".join(rows)


def _entries(module: str, names: Iterable[str], *options: str, level: int = 2) -> str:
    shown = "\n".join(f"      {each}" for each in (f"heading_level: {level}", *options))
    return "".join(f"::: {module}.{name}\n    options:\n{shown}\n\n" for name in names)


def _module(name: str, *options: str) -> str:
    """Return the section of a module: its docstring, then its public names."""
    head = f"## `{name}`\n\n::: {name}\n    options:\n"
    head += "".join(f"      {each}: false\n" for each in ("members", "show_root_heading", "show_root_toc_entry"))
    return head + "\n" + _entries(name, public_names(name), *options, level=3)


def _result_types(module: str) -> str:
    """Return entries of the classes that fields of the public classes of a module have, and of the fields of these."""
    loaded = importlib.import_module(module)
    known = {getattr(loaded, name) for name in public_names(module)}
    known |= {getattr(sketchbatch_client, name) for name in sketchbatch_client.__all__}
    found: list[type] = []
    pending = [getattr(loaded, name) for name in public_names(module)]
    while pending:
        for each in _field_types(pending.pop(0)):
            if each not in known and each.__module__.startswith("sketchbatch_client."):
                known.add(each)
                found.append(each)
                pending.append(each)
    return "".join(_entries(each.__module__, [each.__name__], level=3) for each in found)


def _field_types(owner: object) -> Iterator[type]:
    """Yield the classes in the annotations of a class: `Figures` for `dict[str, Figures] | None`."""
    pending = list(get_type_hints(owner).values()) if isinstance(owner, type) else []
    while pending:
        hint = pending.pop(0)
        pending += get_args(hint)
        if isinstance(hint, type) and not get_args(hint):
            yield hint


def public_names(module: str) -> list[str]:
    """Return the names in `__all__` of a module; without `__all__`, the public functions and classes of the module.

    A name that is imported as itself (`from x import y as y`) belongs to the module. A constant or type alias needs
    a docstring.
    """
    loaded = importlib.import_module(module)
    if hasattr(loaded, "__all__"):
        return list(loaded.__all__)
    body = ast.parse(Path(str(loaded.__file__)).read_text()).body
    names: list[str] = []
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.ImportFrom):
            imported = [each.name for each in statement.names if each.asname == each.name]
            names += [name for name in imported if isinstance(getattr(loaded, name), FunctionType | type)]
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.append(statement.name)
        elif isinstance(statement, ast.Assign) and _is_text(following):
            names += [each.id for each in statement.targets if isinstance(each, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def _is_text(statement: ast.stmt | None) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
