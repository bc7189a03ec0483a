"""Write self-contained HTML pages from Jinja2 templates that extend page.html.j2."""

import base64
from pathlib import Path
from typing import Any

from .atomic import replacing


def write_page(output: Path, template: str, /, **values: Any) -> None:
    """Render the template PACKAGE/PATH and replace `output` with the result atomically.

    A template may extend or import the templates of its own package and of `sketchbatch_client`.
    """
    import jinja2  # imported late: only pages need it

    package, _, path = template.partition("/")
    loaders = [jinja2.PackageLoader(each, ".") for each in (package, "sketchbatch_client")]
    environment = jinja2.Environment(loader=jinja2.ChoiceLoader(loaders), autoescape=True)
    page = environment.get_template(path).render(**values)
    with replacing(output) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")  # names of files need not be UTF-8


def data_url(content: bytes, media_type: str) -> str:
    """Return a file's content as the source of an <img> element."""
    return f"data:{media_type};base64," + base64.b64encode(content).decode()


def enumerated(names: list[str]) -> str:
    """Join names, such as "bear, cat and dog"; of more than five names, show four and the number of the others."""
    shown = names if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
