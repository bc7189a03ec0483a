"""Everything the trainer can refuse or fail with.

TrainerError
├── DrawingsRefused    the drawings asked for are not there, or too few
├── FetchFailed        the bucket has no such class, or sent something else; the message says what to do
│   └── BucketUnreachable  nobody answers: offline, or a proxy in between
├── RunIncomplete      a step needs the files of an earlier one; run that first
├── RunRefused         an earlier run does not fit what is asked of it
└── ExportRefused      ONNX and Keras, or a variant and float32, disagree; no file of it is left behind
"""


class TrainerError(Exception):
    """Base class; the message is one line, for a person."""


class DrawingsRefused(TrainerError):
    """The folder lacks a class, or a side of the split would be empty."""


class FetchFailed(TrainerError):
    """A download failed, or what came is not what was asked for."""


class BucketUnreachable(FetchFailed):
    """No connection to the bucket; no other class of it can be fetched either."""


class RunIncomplete(TrainerError):
    """A file of an earlier step is missing from the run."""


class RunRefused(TrainerError):
    """The run named is of another kind than the step needs."""


class ExportRefused(TrainerError):
    """The exported graph does not compute what the Keras model does, or a variant not what float32 does."""
