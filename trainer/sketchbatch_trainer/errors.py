"""Everything the trainer can refuse or fail with.

TrainerError
├── DrawingsRefused    the drawings asked for are not there, or too few
├── FetchFailed        the bucket cannot be reached, or sent something else
├── RunIncomplete      a step needs the files of an earlier one; run that first
└── ExportRefused      ONNX and Keras disagree; no model file is left behind
"""


class TrainerError(Exception):
    """Base class; the message is one line, for a person."""


class DrawingsRefused(TrainerError):
    """The folder lacks a class, or a side of the split would be empty."""


class FetchFailed(TrainerError):
    """A download failed, or what came is not what was asked for."""


class RunIncomplete(TrainerError):
    """A file of an earlier step is missing from the run."""


class ExportRefused(TrainerError):
    """The exported graph does not compute what the Keras model does."""
