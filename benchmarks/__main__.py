"""Run a benchmark by name: `python -m benchmarks NAME [FLAGS]`; without a name, list them.

Each benchmark is a script of this folder; `python -m benchmarks NAME --help` lists the flags of the script.
"""

import ast
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = (
    "bench",
    "scoring",
    "steady",
    "model-swaps",
    "perf-analyzer",
    "raw-session",
    "counting",
    "rasterize",
    "variants",
    "int8-settings",
    "ablations",
    "cross-validation",
    "own-classes",
    "gpu",
)


def main() -> None:
    """Run the script that the first argument names, and pass the other arguments to the script."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in NAMES:
        print(f"usage: python -m benchmarks NAME [FLAGS]\n\n{listing()}")
        sys.exit(0 if name in ("", "-h", "--help") else f"no benchmark {name!r}")
    script = script_of(name)
    sys.argv[:2] = [str(script)]
    sys.path.insert(0, str(FOLDER))
    runpy.run_path(str(script), run_name="__main__")


def listing() -> str:
    """Return a line per benchmark: its name and the first line of its docstring."""
    docs = {name: ast.get_docstring(ast.parse(script_of(name).read_text())) or "" for name in NAMES}
    return "\n".join(f"  {name:16} {text.splitlines()[0]}" for name, text in docs.items())


def script_of(name: str) -> Path:
    """Return the script of a benchmark."""
    return FOLDER / f"{name.replace('-', '_')}.py"


if __name__ == "__main__":
    main()
