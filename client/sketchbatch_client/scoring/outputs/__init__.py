"""Write one line per scored row, as Parquet, CSV, JSON lines or .npy, to any binary file.

Columns: source (the file), row (its index there, from 0), key_id if an input has identifiers, label, score; with
top_k > 1 also label_2, score_2 and so on; with all scores also one score_LABEL per class. A picture is a source of its
own with row 0. The label of a row below the threshold of the job is empty. A .npy has only the scores: float32
(rows, classes), NaN for a rejected row.

With more than `plan.MAX_SCORE_COLUMNS` scores per row, a job is wide: its parts and a Parquet output have the scores of
a row as one list, because Parquet needs about a kilobyte of memory per column and part until the file is complete.
"""

from .columns import reject_line, schema, table
from .formats import KINDS, is_named_by_kind, kind_of, parquet_writer, write_npy_header, writing

__all__ = [
    "KINDS",
    "is_named_by_kind",
    "kind_of",
    "parquet_writer",
    "reject_line",
    "schema",
    "table",
    "write_npy_header",
    "writing",
]
