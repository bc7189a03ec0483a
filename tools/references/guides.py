"""Copy the pages of docs/, and make the navigation of the site from their index, docs/README.md."""

import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

from .page import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
_MARKER = re.compile(r"(?:[-*]|\d+\.) +(?=\S)")
_CODE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def copy_docs(pages: Path) -> None:
    """Copy the pages and pictures of docs/ into the folder `pages`, and rewrite links to files outside docs/.

    These links lead to the address of the repository. A picture from outside docs/ is copied, too.
    """
    repository = tomllib.loads((ROOT / "client/pyproject.toml").read_text())["project"]["urls"]["Source"]
    for source in sorted(DOCS.rglob("*")):
        copy = pages / source.relative_to(DOCS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            copy.write_text(_with_site_links(source, pages, repository))
        elif source.suffix == ".png":
            shutil.copyfile(source, copy)


def _with_site_links(page: Path, pages: Path, repository: str) -> str:
    def site_link(link: re.Match[str]) -> str:
        name, hash_sign, anchor = link[2].partition("#")
        if not name or re.match(r"[a-z]+:", name):
            return link[0]
        file = (page.parent / name).resolve()
        if file.is_relative_to(DOCS):
            name = f"{name.rstrip('/')}/README.md" if file.is_dir() else name
        elif link[1].startswith("!"):
            copy = pages / "pictures" / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            name = os.path.relpath(copy, (pages / page.relative_to(DOCS)).parent)
        else:
            name = f"{repository}/{'tree' if file.is_dir() else 'blob'}/main/{file.relative_to(ROOT)}"
        return f"{link[1]}{name}{hash_sign}{anchor}{link[3]}"

    parts = _CODE.split(page.read_text())  # every second part is a block of code
    text = "".join(part if number % 2 else _LINK.sub(site_link, part) for number, part in enumerate(parts))
    return "\n".join(_with_wide_lists(text.split("\n")))


def _with_wide_lists(lines: list[str]) -> list[str]:
    """Indent the content of list items by four columns, and put an empty line before each list.

    GitHub indents by the width of the marker and needs no empty line, but Python-Markdown would end the list.
    """
    wide: list[str] = []
    is_code, is_list, number = False, False, 0
    while number < len(lines):
        line = lines[number]
        number += 1
        is_code ^= line.lstrip().startswith("```")
        marker = None if is_code else _MARKER.match(line)
        is_in_paragraph = bool(wide) and bool(wide[-1].strip()) and not is_list
        if not marker or (is_in_paragraph and not marker[0].startswith(("-", "*", "1."))):
            is_list &= not line.strip()
            wide.append(line)
            continue
        width, item = marker.end(), [line[marker.end() :]]
        while number < len(lines) and (not lines[number].strip() or lines[number].startswith(" " * width)):
            item.append(lines[number][width:])
            number += 1
        if is_in_paragraph:
            wide.append("")
        first, *rest = _with_wide_lists(item)
        wide += [marker[0] + first, *(f"    {each}" if each else "" for each in rest)]
        is_list = True
    return wide


def index(generated: list[Page]) -> str:
    """Return the section of the start page that lists the generated pages."""
    rows = "".join(f"| [{page.title}](reference/{page.name}.md) | {page.content} |\n" for page in generated)
    return f"\n## Reference\n\n| reference | content |\n|---|---|\n{rows}"


def navigation(generated: list[Page]) -> list[dict[str, Any]]:
    """Return the navigation: the sections of docs/README.md with their pages, and the reference."""
    sections: list[dict[str, Any]] = [{"Overview": "README.md"}]
    for section in re.split(r"^## ", (DOCS / "README.md").read_text(), flags=re.MULTILINE)[1:]:
        links = [link[1] for link in re.findall(r"^\| \[([^\]]*)\]\(([^)]*)\)", section, re.MULTILINE)]
        guides: list[Any] = [link for link in links if (DOCS / link).is_file() and not link.startswith("..")]
        decisions = sorted(f"decisions/{page.name}" for page in (DOCS / "decisions").glob("0*.md"))
        guides = [{"Decisions": [each, *decisions]} if each == "decisions/README.md" else each for each in guides]
        sections.append({section.splitlines()[0]: guides})
    return [*sections, {"Reference": [{page.title: f"reference/{page.name}.md"} for page in generated]}]
