"""Convert the scored rows of a batch into the columns of a stored part."""

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...rpc.classification import Classification
from ...strict_json import encode
from ..block_reader import Batch
from ..inputs import Block, Reject, Source
from ..plan import Plan

OFFSET = "offset"  # column with the position of a row in its part; parts have this column, outputs do not
CLASS_INDEX = "class_index"  # column of a wide job with top_k: the classes of `SCORES`, as positions in `Plan.labels`
SCORES = "scores"  # column of a wide job: a list of the scores of all classes, or of the best top_k classes


def schema(plan: Plan, *, has_key_ids: bool) -> pa.Schema:
    """Return the columns of a stored part: OFFSET, then the columns of an output."""
    fields = [(OFFSET, pa.int32()), ("source", pa.string()), ("row", pa.int64())]
    if has_key_ids:
        fields.append(("key_id", pa.uint64()))
    if plan.is_wide:
        fields += [("label", pa.string()), ("score", pa.float32())]
        if not plan.with_all_scores:
            fields.append((CLASS_INDEX, list_of(pa.int32(), plan)))
        return pa.schema([*fields, (SCORES, list_of(pa.float32(), plan))])
    return pa.schema([*fields, *score_columns(plan)])


def list_of(kind: pa.DataType, plan: Plan) -> pa.DataType:
    """Return the type of a list with an entry for each score of a row, named as Parquet's readers name the entries."""
    return pa.list_(pa.field("element", kind), plan.scores_per_row)


def score_columns(plan: Plan) -> list[tuple[str, pa.DataType]]:
    """Return the columns for labels and scores if each score has a column of its own."""
    fields: list[tuple[str, pa.DataType]] = []
    for rank in range(1 if plan.with_all_scores else plan.top_k):
        suffix = f"_{rank + 1}" if rank else ""
        fields += [(f"label{suffix}", pa.string()), (f"score{suffix}", pa.float32())]
    if plan.with_all_scores:
        fields += [(f"score_{label}", pa.float32()) for label in plan.labels]
    return fields


def table(
    schema: pa.Schema,
    batch: Batch,
    result: Classification,
    sources: Sequence[Source],
    *,
    reject_below: float | None = None,
) -> pa.RecordBatch:
    """Return a line of output for each good row of a batch; the batch has at least one good row.

    The label of a row is empty if its highest score is below `reject_below`; the other columns stay as they are.
    """
    blocks = [(rows, block) for rows, block in batch.blocks if len(block.rows)]
    names, numbers = zip(*(sources[rows.source].locate(block.rows) for rows, block in blocks), strict=True)
    columns = [
        pa.array(np.concatenate([block.rows - rows.start + rows.offset for rows, block in blocks]), pa.int32()),
        pa.concat_arrays(
            pa.array(map(text, name)) if isinstance(name, list) else pa.repeat(text(name), len(rows))
            for name, rows in zip(names, numbers, strict=True)
        ),
        pa.array(np.concatenate(numbers)),
    ]
    if "key_id" in schema.names:
        columns.append(pa.concat_arrays(_key_ids(block) for _, block in blocks))
    columns += _wide_scores(schema, result) if SCORES in schema.names else _scores(result)
    if reject_below is not None:
        label = schema.get_field_index("label")
        is_kept = pa.array(result.score[:, 0].astype(np.float64) >= reject_below)  # as exact as the threshold
        columns[label] = pc.if_else(is_kept, columns[label], "")
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def text(file_name: str) -> str:
    r"""Return a file name as Unicode, with a byte that is not UTF-8 as `\xe9`: names that differ stay different."""
    return os.fsencode(file_name).decode(errors="backslashreplace")


def reject_line(reject: Reject) -> str:
    """Return a line of the rejects file; the reason may name a file whose name is not UTF-8."""
    try:
        reason = text(reject.reason)
    except UnicodeEncodeError:  # half of a character of JSON, which is no byte of a name
        reason = reject.reason.encode(errors="backslashreplace").decode()
    return encode({"source": text(reject.source), "row": reject.row, "reason": reason}) + "\n"


def _scores(result: Classification) -> list[pa.Array]:
    labels, columns = pa.array(result.labels), []
    for rank in range(result.class_index.shape[1]):
        columns += [labels.take(pa.array(result.class_index[:, rank])), pa.array(result.score[:, rank])]
    if result.scores is not None:
        columns += [pa.array(result.scores[:, index]) for index in range(len(result.labels))]
    return columns


def _wide_scores(schema: pa.Schema, result: Classification) -> list[pa.Array]:
    columns = [pa.array(result.labels).take(pa.array(result.class_index[:, 0])), pa.array(result.score[:, 0])]
    if CLASS_INDEX in schema.names:
        index = pa.array(result.class_index.astype(np.int32).ravel())
        columns.append(pa.FixedSizeListArray.from_arrays(index, type=schema.field(CLASS_INDEX).type))
    scores = pa.array((result.score if result.scores is None else result.scores).ravel())
    return [*columns, pa.FixedSizeListArray.from_arrays(scores, type=schema.field(SCORES).type)]


def _key_ids(block: Block) -> pa.Array:
    keys = block.key_ids
    return pa.nulls(len(block.rows), pa.uint64()) if keys is None else pa.array(keys, mask=keys == 0)
