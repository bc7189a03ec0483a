"""Classify 200 drawings concurrently with asyncio: one task per drawing, as in a web server."""

import asyncio
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from sketchbatch_client import AsyncClient, SketchbatchError

SERVER = os.environ.get("SKETCHBATCH_SERVER", "localhost:50051")
CAT = np.frombuffer((Path(__file__).parent.parent / "cat.bitmap").read_bytes(), np.uint8).reshape(28, 28)


async def classify(client: AsyncClient, bitmap: np.ndarray) -> str | SketchbatchError:
    """Return the label of one drawing, or the error, which thus does not end the other tasks."""
    try:
        return str((await client.classify(bitmap, top_k=1)).label[0])
    except SketchbatchError as error:
        return error


async def main() -> int:
    """Return 0, or 1 if a drawing was not classified."""
    shifts = [(y, x) for y in range(-2, 3) for x in range(-2, 3)] * 8
    bitmaps = [np.roll(CAT, shift, axis=(0, 1)) for shift in shifts]
    # One client serves all tasks. It merges their rows into few requests, and retries UNAVAILABLE until timeout_s.
    async with AsyncClient(SERVER, timeout_s=10) as client:
        results = await asyncio.gather(*(classify(client, bitmap) for bitmap in bitmaps))
    errors = [str(result) for result in results if isinstance(result, SketchbatchError)]
    for label, count in Counter(result for result in results if isinstance(result, str)).most_common():
        print(f"{count} of {len(results)}: {label}")
    if errors:
        print(f"error: {len(errors)} drawings were not classified; the first error: {errors[0]}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
