"""Tell what a file is by its first bytes; the trainer, which does not import `sketchbatch`, imports it from here."""

from sketchbatch.file_kind import HEAD_BYTES as HEAD_BYTES
from sketchbatch.file_kind import FileKind as FileKind
from sketchbatch.file_kind import describe as describe
from sketchbatch.file_kind import describe_path as describe_path
