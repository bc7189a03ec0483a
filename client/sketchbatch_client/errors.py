"""Errors of the client; each message is one line for a person.

SketchbatchError
├── FileRefused         an input is not a readable file of drawings: download or create it again
├── DiskFull            a file cannot be written completely: free disk space, then run the same command again
├── JobRefused          a job cannot be resumed like this: use the same inputs and options again, or --restart
├── RequestRefused      the request is invalid: change it; a retry cannot succeed
├── ModelNotFound       the server does not serve this model: the message lists the served models
├── Overloaded          the server's queue stayed full until the timeout: retry later, or send fewer rows at once
├── Unavailable         no server responded: check that it runs, and that the address is right
├── DeadlineExceeded    no response within the timeout: allow more time, or send fewer rows at once
├── Unauthenticated     credentials are missing or wrong: pass a token or certificate that the server accepts
└── ServerFailed        the server failed: search its log for the request id to find the cause
"""


class SketchbatchError(Exception):
    """Base class of all errors of the client."""


class FileRefused(SketchbatchError):
    """A file or folder cannot be read as drawings."""


class DiskFull(SketchbatchError):
    """The disk is full, or a quota or file size limit is reached. The partial file is removed."""


class JobRefused(SketchbatchError):
    """The job was begun with other inputs, another model or other options, or another process runs it now."""


class RequestRefused(SketchbatchError):
    """The client or the server rejected bitmaps or options."""


class ModelNotFound(SketchbatchError):
    """No model or version of that name is served."""


class Overloaded(SketchbatchError):
    """The server's queue stayed full."""


class Unavailable(SketchbatchError):
    """No server could be reached, or the server was draining."""


class DeadlineExceeded(SketchbatchError):
    """The timeout passed without a response."""


class Unauthenticated(SketchbatchError):
    """Credentials are missing or wrong."""


class ServerFailed(SketchbatchError):
    """The model call failed, or the server returned an unexpected status."""
