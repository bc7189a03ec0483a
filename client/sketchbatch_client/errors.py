"""Errors of the client; each message is one line for a person.

SketchbatchError
├── FileRefused         an input is not a readable file of drawings: download or create it again
│   ├── FileChanged     an input was written, replaced or removed while it was read: run the same command again
│   └── DrawingRefused  one drawing of an input is malformed: correct it, or use an option that skips such drawings
├── OutputRefused       a file must not be written there: name another output
├── ExtraMissing        a command needs a package that is not installed: install the extra that the message names
├── DiskFull            a file cannot be written completely: free disk space, then run the same command again
├── JobRefused          a job cannot be resumed like this: use the same inputs and options again, or --restart
│   └── JobNotReady     another process has not finished yet: wait for it, then run the same command again
├── RequestRefused      the request is invalid: change it; a retry cannot succeed
├── ModelChanged        the server replaced the model during the work: run the same command again
├── ModelNotFound       the server does not serve this model: the message lists the served models
├── Overloaded          the server's queue stayed full until the timeout: retry later, or send fewer rows at once
├── Unavailable         no server responded: check that it runs, and that the address is right
├── DeadlineExceeded    no response within the timeout: allow more time, or send fewer rows at once
├── Unauthenticated     credentials are missing or wrong: pass a token or certificate that the server accepts
└── ServerFailed        the server or its model failed: search the log of the server for the request id
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

_PERMANENT_ERRNOS = (
    errno.EACCES,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)


def fails_again(error: BaseException) -> bool:
    """Return whether the same call would fail again until a user changes its arguments or its files.

    Other errors are temporary: the service or the disk was not available, or another process was not finished. A
    FileRefused is temporary, too, if a temporary error of the disk or network prevented the reading.
    """
    failed_read = error.__cause__ if isinstance(error, FileRefused) else error
    if isinstance(failed_read, OSError) and failed_read.errno is not None:
        return failed_read.errno in _PERMANENT_ERRNOS
    return isinstance(error, SketchbatchError) and error.is_permanent


def reason_of(error: OSError) -> str:
    """Return why a file cannot be read: the reason of the operating system, or else of Python."""
    return error.strerror or str(error)


def message_of(error: Exception) -> str:
    """Return the message of an error; that of the operating system without its number."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


class SketchbatchError(Exception):
    """Base class of all errors of the client."""

    is_permanent: ClassVar[bool] = False
    """Whether the same call fails again until a user changes its arguments or its files; see `fails_again`."""


class FileRefused(SketchbatchError):
    """A file or folder cannot be read as drawings."""

    is_permanent = True


class FileChanged(FileRefused):
    """A file was written, replaced or removed while it was read."""

    is_permanent = False


class DrawingRefused(FileRefused):
    """One drawing of a file is malformed: a line, a row, or the only picture of the file."""


class OutputRefused(SketchbatchError):
    """An output is one of the inputs, not a regular file, or a file that Sketchbatch did not write."""

    is_permanent = True


class ExtraMissing(SketchbatchError):
    """A package of an extra of this distribution is not installed."""

    is_permanent = True

    @classmethod
    def of(cls, user: str, extra: str, *packages: str) -> "ExtraMissing":
        """Return the error of `user`, such as an option, with the ways to install the packages of an extra."""
        names = " and ".join(packages)
        checkout = f".tools/bin/uv pip install --python {sys.executable} {' '.join(packages)}"
        return cls(f"{user} needs {names}: pip install 'sketchbatch-client[{extra}]', or in a checkout {checkout}")


class DiskFull(SketchbatchError):
    """The disk is full, or a quota or file size limit is reached. The partial file is removed."""


class JobRefused(SketchbatchError):
    """The job began with other inputs, another model or other options, or the shards do not belong to one job."""

    is_permanent = True


class JobNotReady(JobRefused):
    """Another process writes the output now, or has not finished it yet."""

    is_permanent = False


class RequestRefused(SketchbatchError):
    """The client or the server rejected bitmaps or options."""

    is_permanent = True


class ModelChanged(SketchbatchError):
    """The server replaced the model file under the same version, and the result needs one file."""


class ModelNotFound(SketchbatchError):
    """No model or version of that name is served."""

    is_permanent = True


class Overloaded(SketchbatchError):
    """The server's queue stayed full."""


class Unavailable(SketchbatchError):
    """No server could be reached, the server was draining, or the client was closed."""


class DeadlineExceeded(SketchbatchError):
    """The timeout passed without a response."""


class Unauthenticated(SketchbatchError):
    """Credentials are missing or wrong."""

    is_permanent = True


class ServerFailed(SketchbatchError):
    """The model call failed, its scores are not finite, or the server returned an unexpected status."""


@contextmanager
def naming_skip_malformed(is_set: bool) -> Iterator[None]:
    """Add the option `--skip-malformed` to the error about a malformed drawing, unless the option is set."""
    try:
        yield
    except DrawingRefused as exc:
        if is_set:
            raise
        raise FileRefused(f"{exc}; correct it, or skip malformed drawings with --skip-malformed") from exc
