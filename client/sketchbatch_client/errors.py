"""Everything the client can refuse or fail with.

SketchbatchError
├── FileRefused         a file is not what it should be; fetch or make it again
├── DiskFull            a file cannot be written to its end; make room, then give the same command again
├── JobRefused          what was begun cannot go on like this; begin anew, or put things as they were
├── RequestRefused      the request can never succeed as sent; change it
├── ModelNotFound       the server has no such model; the message lists those it has
├── Overloaded          the server stayed full until the time was up; try later, or send less at once
├── Unavailable         no server answered; is it running, and is the address right?
├── DeadlineExceeded    no answer in time; allow more time, or send less at once
├── Unauthenticated     the server wants credentials, or others; give it a token or certificate that it knows
└── ServerFailed        the server broke; its log has the cause under the request id
"""


class SketchbatchError(Exception):
    """Base class; the message is one line, for a person."""


class FileRefused(SketchbatchError):
    """A file or folder cannot be read as drawings."""


class DiskFull(SketchbatchError):
    """There is no room for a file: the disk is full, or a quota or limit is reached. Nothing of it is left."""


class JobRefused(SketchbatchError):
    """A job was begun with other inputs, another model or other options, or another process is at it."""


class RequestRefused(SketchbatchError):
    """The bitmaps or options are wrong, said by the client or by the server."""


class ModelNotFound(SketchbatchError):
    """No model or version of that name is being served."""


class Overloaded(SketchbatchError):
    """The server's queue stayed full."""


class Unavailable(SketchbatchError):
    """No server could be reached, or it was draining."""


class DeadlineExceeded(SketchbatchError):
    """The time allowed passed without an answer."""


class Unauthenticated(SketchbatchError):
    """Credentials are missing or wrong."""


class ServerFailed(SketchbatchError):
    """The model call broke, or the server answered with an error we do not know."""
