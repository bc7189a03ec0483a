"""Errors of the trainer: the cause of each error class, and the remedy.

TrainerError
├── DrawingsRefused    the requested drawings are missing or too few: fetch more, or name other classes
├── FetchFailed        the server lacks the requested file or sent other content: the message states the remedy
│   └── BucketUnreachable  no connection: the machine is offline, or a proxy blocks Google's storage
├── RunIncomplete      the run lacks a file of an earlier step: first run the command in the message
├── RunRefused         the named run does not fit the request: name another run, or discard it with --restart
├── OutputRefused      an output is a file that the trainer did not write, or an input: name another file
├── ExportRefused      the scores of an exported model and of its original differ: no file is written
├── AdaptRefused       a model made elsewhere cannot be adapted as requested: the message states the remedy
└── ExtraMissing       the command needs packages that are not installed: the message has the pip command
"""


class TrainerError(Exception):
    """Base class of the trainer's errors; the message is one line for the user."""


class DrawingsRefused(TrainerError):
    """A class has no drawings, or too few for three splits."""


class FetchFailed(TrainerError):
    """A download failed, or the downloaded content is not the requested file."""


class BucketUnreachable(FetchFailed):
    """Google's storage bucket accepts no connection, so that fetching any other class would fail, too."""


class RunIncomplete(TrainerError):
    """The run lacks a file that an earlier step writes."""


class RunRefused(TrainerError):
    """The named run has the wrong network, labels or seed for the step, or holds the results of another training."""


class OutputRefused(TrainerError):
    """An output would destroy a file that no command of the trainer wrote, or an input."""


class ExportRefused(TrainerError):
    """The scores of ONNX and Keras, or of a variant and float32, differ by more than the limit."""


class AdaptRefused(TrainerError):
    """A model made elsewhere is not readable, does not classify 28x28 bitmaps, or does not fit the given flags."""


class ExtraMissing(TrainerError):
    """A package of an extra of this distribution is not installed."""
