"""Errors of the trainer: the fault of each class, and the remedy.

TrainerError
├── DrawingsRefused    the requested drawings are missing or too few: fetch more, or name other classes
├── FetchFailed        the server has no such class or sent other content: the message states the remedy
│   └── BucketUnreachable  no connection: the machine is offline, or a proxy blocks the bucket
├── RunIncomplete      a file of an earlier step is missing: run the command in the message first
├── RunRefused         the named run does not fit the request: name another run
└── ExportRefused      an exported model scores differently from its original: no file is written
"""


class TrainerError(Exception):
    """Base class; the message is one line for the user."""


class DrawingsRefused(TrainerError):
    """A class has no drawings, or too few for three splits."""


class FetchFailed(TrainerError):
    """A download failed, or the content is not the requested file."""


class BucketUnreachable(FetchFailed):
    """The bucket accepts no connection, so no other class can be fetched either."""


class RunIncomplete(TrainerError):
    """A file of an earlier step is missing from the run."""


class RunRefused(TrainerError):
    """The step needs a run of another network, other labels or another seed."""


class ExportRefused(TrainerError):
    """ONNX and Keras disagree, or a variant and float32 disagree."""
