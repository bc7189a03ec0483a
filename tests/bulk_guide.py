"""Run the commands of docs/bulk-scoring.md for bulk jobs on Kubernetes, with `bulk_cluster` in place of a cluster."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_HEADING = "## Bulk jobs on Kubernetes"
_BLOCK = re.compile(r"^ *```(text)?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Step:
    """A block of commands, and the output that the page shows below it; "" if the page shows none."""

    commands: str
    output: str


def steps(root: Path, heading: str) -> list[Step]:
    """Return the steps below a heading of the section on Kubernetes, in order."""
    section = (root / "docs" / "bulk-scoring.md").read_text().partition(_HEADING)[2]
    blocks = _BLOCK.findall(re.split(r"^#{2,3} ", section.partition(f"### {heading}\n")[2], flags=re.MULTILINE)[0])
    found: list[Step] = []
    for kind, text in blocks:
        lines = "".join(f"{line.strip()}\n" for line in text.splitlines())
        if kind:
            found[-1] = Step(found[-1].commands, lines)
        else:
            found.append(Step(lines, ""))
    return found


class Guide:
    """Run the commands in a folder with a copy of deploy/, the overlays of docs/operations.md, and drawings."""

    def __init__(self, root: Path, folder: Path, environment: dict[str, str]) -> None:
        self.root, self.folder, self._environment = root, folder, environment
        shutil.copytree(root / "deploy", folder / "deploy")
        overlays = (root / "docs" / "operations.md").read_text()
        self.shell(re.search(r"^ +for part in .*?^ +done$", overlays, re.MULTILINE | re.DOTALL)[0])
        self.shell(steps(root, "Preparation")[0].commands)

    def shell(self, commands: str) -> str:
        """Run shell commands; return their output, and fail if the last command fails."""
        words = ["sh", "-c", commands]
        options = {"cwd": self.folder, "env": self._environment, "capture_output": True, "text": True}
        finished = subprocess.run(words, check=False, **options)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    def run(self, name: str, heading: str = "Run", first: int = 0, last: int = 6) -> list[tuple[Step, str]]:
        """Run the steps `first` to `last` - 1 below a heading for the bulk run `name`; return each step and its output.

        The first step below a heading has the index 0.
        """
        done = []
        for step in steps(self.root, heading)[first:last]:
            step = Step(step.commands.replace("2026-11-30", name), step.output.replace("2026-11-30", name))
            done.append((step, self.shell(f"RUN={name}\n{step.commands}")))
        return done
