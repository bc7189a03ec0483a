"""Make the pages of the Python client: a directive of mkdocstrings for each public name."""

import ast
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType

import sketchbatch_client

from .page import Page


def python_pages() -> Iterator[Page]:
    """Return the pages of the client, its errors, and the submodules for drawings, evaluation and Ray."""
    names = sketchbatch_client.__all__
    errors = [name for name in names if _is_error(getattr(sketchbatch_client, name))]
    base, tree = "SketchbatchError", (sketchbatch_client.errors.__doc__ or "").partition("\n\n")[2]
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
        f"Import these names from `sketchbatch_client`.\n\n```text\n{tree.strip()}\n```\n\n"
        + _entries("sketchbatch_client", [base])
        + "".join(_error(name) for name in errors if name != base),
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
        _module("sketchbatch_client.evaluation"),
    )
    yield Page("ray", "Ray", "`sketchbatch_client.ray`: scores for a Ray dataset", _module("sketchbatch_client.ray"))


def _is_error(member: object) -> bool:
    return isinstance(member, type) and issubclass(member, Exception) and not issubclass(member, Warning)


def _error(name: str) -> str:
    entry = _entries("sketchbatch_client", [name], 'filters: ["!^_", "!^is_permanent$"]')
    return f"{entry}`is_permanent = {getattr(sketchbatch_client, name).is_permanent}`\n\n"


def _entries(module: str, names: Iterable[str], *options: str, level: int = 2) -> str:
    shown = "\n".join(f"      {each}" for each in (f"heading_level: {level}", *options))
    return "".join(f"::: {module}.{name}\n    options:\n{shown}\n\n" for name in names)


def _module(name: str, *options: str) -> str:
    """Return the section of a module: its docstring, then its public names."""
    head = f"## `{name}`\n\n::: {name}\n    options:\n      members: false\n      show_root_heading: false\n\n"
    return head + _entries(name, public_names(name), *options, level=3)


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
