"""Write the source of the site into a folder: `python -m tools.references FOLDER`.

Flow: `guides` copies docs/, with links to files outside docs/ rewritten to the repository -> `python_api`, `commands`
and `metrics` make the reference -> mkdocs.yml lists all pages. mkdocs reads the Python code of the client itself and
does not run it. The script needs the distributions of the project, but not mkdocs.
"""

import json
import shutil
import sys
from pathlib import Path

from .commands import command_pages
from .guides import ROOT, copy_docs, index, navigation
from .metrics import metrics_page
from .python_api import python_pages

HERE = Path(__file__).parent


def main() -> None:
    """Write the source of the site into the folder that is the only argument, and replace an earlier one."""
    if len(sys.argv) != 2:
        sys.exit(f"references: must get one folder, got {len(sys.argv) - 1} arguments")
    target = Path(sys.argv[1]).resolve()
    pages = target / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    (pages / "reference").mkdir(parents=True)
    copy_docs(pages)
    shutil.copyfile(HERE / "site.css", pages / "site.css")
    generated = [*python_pages(), *command_pages(), metrics_page()]
    for page in generated:
        (pages / "reference" / f"{page.name}.md").write_text(f"# {page.title}\n\n{page.body}\n")
    with (pages / "README.md").open("a") as start:
        start.write(index(generated))
    settings = {
        "INHERIT": str(HERE / "site.yml"),
        "docs_dir": str(pages),
        "site_dir": str(ROOT / "site"),
        "nav": navigation(generated),
        "plugins": {"mkdocstrings": {"handlers": {"python": {"paths": [str(ROOT / "client"), str(ROOT / "protos")]}}}},
    }
    (target / "mkdocs.yml").write_text(json.dumps(settings, indent=2))


main()
