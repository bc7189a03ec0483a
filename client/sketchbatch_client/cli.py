"""Run the command `sketchbatch`: set up the process, and report errors and warnings in one line."""

import errno
import io
import os
import signal
import sys
import warnings
from pathlib import Path

from .atomic import room_for, unwind_on_signals
from .errors import SketchbatchError, fails_again, message_of

_TEMPORARY = 1  # exit code of an error after which the same command may succeed
_PERMANENT = 4  # exit code of an error that remains until a user changes the command or a file


def main() -> None:
    """Run the command; report an expected error as one line on stderr and an exit code."""
    unwind_on_signals()
    _replace_closed_streams()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else gRPC also logs the failures that the command reports
    warnings.showwarning = _show_warning
    try:
        from .commands.app import app  # imports gRPC, which then reads the environment

        with room_for(Path("standard output")):  # each other file has its own
            app()
    except KeyboardInterrupt:  # during the imports; later, typer handles it
        sys.exit(128 + signal.SIGINT)
    except (SketchbatchError, OSError) as exc:
        print(f"sketchbatch: {message_of(exc)}", file=sys.stderr)
        sys.exit(_PERMANENT if fails_again(exc) else _TEMPORARY)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"sketchbatch: warning: {message}", file=sys.stderr)


def _replace_closed_streams() -> None:
    """Replace standard streams that were closed at the start, as by some service managers: Python sets them to None."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115 - stays open
    sys.stdin = sys.stdin or io.TextIOWrapper(_ClosedStream("standard input"))
    sys.stdout = sys.stdout or io.TextIOWrapper(_ClosedStream("standard output"), write_through=True)


class _ClosedStream(io.RawIOBase):
    """A standard stream that the caller has closed; to read or write it is an error with its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        raise OSError(errno.EBADF, "closed; open it, or use a file", self._name)

    def write(self, data: object) -> int:
        raise OSError(errno.EBADF, "closed; open it, or use a file", self._name)
