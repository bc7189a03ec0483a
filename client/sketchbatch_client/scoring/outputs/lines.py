"""Encode scored rows as lines of JSON or CSV.

Arrow encodes many cells at once, in a tenth of the time of encoding each row. The text of a part may take many times
the memory of its scores, so a slice of about `_SLICE_CELLS` cells is encoded at once.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import JobRefused
from ...strict_json import encode
from .columns import CLASS_INDEX, SCORES

_SLICE_CELLS = 1 << 18  # 8 MB of text, if a cell with its name takes 32 bytes


def json_lines(rows: pa.Table, labels: Sequence[str]) -> Iterator[list[bytes]]:
    """Yield the lines of some rows of a part, slice by slice; `labels` are those of the plan.

    Raises JobRefused if a score is not finite: JSON has no such numbers.
    """
    for batch in _slices(rows):
        pieces: list[object] = []
        for number, name in enumerate(batch.schema.names):
            if name in (CLASS_INDEX, SCORES):
                continue
            opening = f"{', ' if number else '{'}{encode(name)}: "
            pieces += [opening, _json_cells(batch.column(number))]
        if SCORES in batch.schema.names:
            pieces.append(_wide_json(batch, labels))
        yield _joined(pieces, "}\n", null="null")


def wide_csv_lines(rows: pa.Table, labels: Sequence[str]) -> Iterator[list[bytes]]:
    """Yield the lines of some rows of a wide part, slice by slice, as pyarrow's writer would write their columns."""
    for batch in _slices(rows):
        pieces: list[object] = []
        for number, name in enumerate(batch.schema.names):
            if name in (CLASS_INDEX, SCORES):
                continue
            pieces += ["," if number else "", _csv_cells(batch.column(number))]
        yield _joined([*pieces, _wide_csv(batch, labels)], "\n", null="")


def _slices(rows: pa.Table) -> list[pa.RecordBatch]:
    is_wide = SCORES in rows.schema.names
    cells = rows.schema.field(SCORES).type.list_size if is_wide else len(rows.schema)
    batches: list[pa.RecordBatch] = rows.to_batches(max_chunksize=max(1, _SLICE_CELLS // cells))
    return batches


def _joined(pieces: list[object], end: str, *, null: str) -> list[bytes]:
    lines = pc.binary_join_element_wise(*pieces, end, "", null_handling="replace", null_replacement=null)
    encoded: list[bytes] = lines.cast(pa.large_binary()).to_pylist()
    return encoded


def _wide_json(batch: pa.RecordBatch, labels: Sequence[str]) -> pa.Array:
    """Return the text of all scores of each row; with top_k, that of the best class is left out."""
    scores = _flat(batch, SCORES)
    if CLASS_INDEX not in batch.schema.names:
        names = pa.array([f", {encode(f'score_{label}')}: " for label in labels])
        return _per_row(batch, _repeated(names, batch.num_rows), _json_cells(scores))
    ranks = range(2, _width(batch) + 1)
    label_names = pa.array([f', "label_{rank}": ' for rank in ranks])
    score_names = pa.array([f', "score_{rank}": ' for rank in ranks])
    texts = pa.array(map(encode, labels)).take(_others(batch, CLASS_INDEX))
    return _per_row(
        batch,
        _repeated(label_names, batch.num_rows),
        texts,
        _repeated(score_names, batch.num_rows),
        _json_cells(_others(batch, SCORES)),
    )


def _wide_csv(batch: pa.RecordBatch, labels: Sequence[str]) -> pa.Array:
    if CLASS_INDEX not in batch.schema.names:
        return _per_row(batch, ",", _csv_cells(_flat(batch, SCORES)))
    texts = _csv_cells(pa.array(labels, pa.string())).take(_others(batch, CLASS_INDEX))
    return _per_row(batch, ",", texts, ",", _csv_cells(_others(batch, SCORES)))


def _flat(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return the entries of a list column: all of the first row, then all of the second row, and so on."""
    return batch.column(name).flatten()


def _others(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return the entries of a list column without the first entry of each row."""
    entries = _flat(batch, name).to_numpy().reshape(batch.num_rows, -1)
    return pa.array(entries[:, 1:].ravel())


def _width(batch: pa.RecordBatch) -> int:
    width: int = batch.schema.field(SCORES).type.list_size
    return width


def _repeated(texts: pa.Array, times: int) -> pa.Array:
    return texts.take(pa.array(np.tile(np.arange(len(texts)), times)))


def _per_row(batch: pa.RecordBatch, *pieces: object) -> pa.Array:
    """Join the pieces of each cell, then the cells of each row; every row has the same number of cells."""
    cells = pc.binary_join_element_wise(*pieces, "")
    offsets = np.linspace(0, len(cells), batch.num_rows + 1, dtype=np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(offsets, cells), "")


def _json_cells(column: pa.Array) -> pa.Array:
    if not pa.types.is_string(column.type):
        if pa.types.is_floating(column.type) and not pc.all(pc.is_finite(column)).as_py():
            raise JobRefused("the parts of an earlier version have scores that are not finite; --restart begins anew")
        return column.cast(pa.string())
    encoded = column.dictionary_encode()
    values = [encode(value) for value in encoded.dictionary.to_pylist()]
    return pa.array(values, pa.string()).take(encoded.indices)


def _csv_cells(column: pa.Array) -> pa.Array:
    if not pa.types.is_string(column.type):
        return column.cast(pa.string())
    return pc.binary_join_element_wise('"', pc.replace_substring(column, '"', '""'), '"', "")
