"""Run the command `sketchbatch`: set up the process, and report errors and warnings in one line."""

import os
import sys
import warnings

from .atomic import unwind_on_signals
from .errors import SketchbatchError, fails_again

_TEMPORARY = 1  # exit code of an error after which the same command may succeed
_PERMANENT = 4  # exit code of an error that remains until a user changes the command or a file


def main() -> None:
    """Run the command; report an expected error as one line on stderr and an exit code."""
    unwind_on_signals()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else gRPC also logs the failures that the command reports
    warnings.showwarning = _show_warning
    from .commands.app import app  # imports gRPC, which then reads the environment

    try:
        app()
    except (SketchbatchError, OSError) as exc:
        print(f"sketchbatch: {exc}", file=sys.stderr)
        sys.exit(_PERMANENT if fails_again(exc) else _TEMPORARY)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"sketchbatch: warning: {message}", file=sys.stderr)
