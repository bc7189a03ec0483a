"""Write small inputs, and read which rows an output has."""

import json
from pathlib import Path

from PIL import Image
from pyarrow import csv, parquet

LINE = '{"key_id": "%d", "drawing": [[[0, %d, 255], [0, 255, 9]]]}\n'


def strokes(first: int, last: int) -> str:
    return "".join(LINE % (number + 1, number % 250) for number in range(first, last))


def rows_of(output: Path) -> list[tuple[str, int]]:
    """Return the file name and the row number of each line of an output."""
    if output.suffix.lower() == ".parquet":
        table = parquet.read_table(output)
    elif output.suffix.lower() == ".csv":
        table = csv.read_csv(output)
    else:
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        return [(Path(line["source"]).name, line["row"]) for line in lines]
    return [
        (Path(source).name, row)
        for source, row in zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True)
    ]


def save_picture(path: Path, left: int) -> None:
    """Write a PNG with a dark rectangle that begins at column `left`."""
    image = Image.new("L", (140, 60), 255)
    image.paste(0, (left, 10, left + 30, 20))
    image.save(path, "png")
