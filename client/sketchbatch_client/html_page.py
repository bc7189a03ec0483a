"""Writes pages that are one file, in the house's look (page.html.j2), so that they can be mailed."""

import base64
from pathlib import Path
from typing import Any

from .atomic import replacing


def write_page(output: Path, template: str, /, **values: Any) -> None:
    """Renders a template, PACKAGE/PATH, which may extend page.html.j2; the page is written whole or not at all."""
    import jinja2  # which only a page needs

    package, _, path = template.partition("/")
    places = [jinja2.PackageLoader(each, ".") for each in (package, "sketchbatch_client")]
    environment = jinja2.Environment(loader=jinja2.ChoiceLoader(places), autoescape=True)
    page = environment.get_template(path).render(**values)
    with replacing(output) as partial:
        partial.write_text(page, encoding="utf-8")


def data_url(content: bytes, kind: str) -> str:
    """A file of that media type as an <img> source."""
    return f"data:{kind};base64," + base64.b64encode(content).decode()
