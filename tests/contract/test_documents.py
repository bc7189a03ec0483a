"""Test the Markdown pages of the repository: links lead to files and headings, and the index has every page."""

import re
from pathlib import Path

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
CODE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def pages(root: Path) -> list[Path]:
    """Return the Markdown pages of the repository, without those of installed packages and of runs."""
    folders = [each for each in root.iterdir() if each.is_dir() and each.name not in ("runs", "dist")]
    ours = [each for each in folders if not each.name.startswith(".") or each.name == ".github"]
    found = [*root.glob("*.md"), *(page for folder in ours for page in folder.rglob("*.md"))]
    return [page for page in found if "node_modules" not in page.parts]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    texts = HEADING.findall(CODE.sub("", page.read_text()))
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).lower() for text in texts]
    return {re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-") for text in plain}


def test_every_link_leads_to_a_file_and_a_heading(root):
    """Each relative link of a page names an existing file, and a heading of it if the link has an anchor."""
    broken, checked = [], 0
    for page in pages(root):
        for link in LINK.findall(CODE.sub("", page.read_text())):
            if re.match(r"[a-z]+:", link):
                continue
            checked += 1
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            is_found = target.exists() and (not anchor or target.suffix != ".md" or anchor in anchors(target))
            broken += [] if is_found else [f"{page.relative_to(root)}: {link}"]
    assert checked > 300
    assert broken == []


def test_the_index_of_documents_has_every_guide(root):
    """docs/README.md links to each page of docs/."""
    links = set(LINK.findall((root / "docs/README.md").read_text()))
    guides = {page.name for page in (root / "docs").glob("*.md")} - {"README.md"}
    assert sorted(guides - links) == []
