"""Classify one drawing, given as strokes, and print its three best classes."""

import os
import sys

from sketchbatch_client import Client, RetryPolicy, SketchbatchError, Unavailable, rasterize

SERVER = os.environ.get("SKETCHBATCH_SERVER", "localhost:50051")

CAT = [  # strokes [[x, ...], [y, ...]] in units of 0 to 255, y downwards
    [[60, 20, 50, 128, 205, 235, 195, 128, 60], [200, 110, 55, 75, 55, 110, 200, 235, 200]],  # head
    [[50, 40, 85], [58, 0, 60]],  # ears
    [[170, 215, 205], [60, 0, 58]],
    [[90, 94], [115, 119]],  # eyes
    [[165, 169], [115, 119]],
    [[0, 90], [150, 160]],  # whiskers
    [[0, 90], [185, 172]],
    [[255, 165], [150, 160]],
    [[255, 165], [185, 172]],
]


def main() -> int:
    """Return 0, or 1 if the drawing was not classified."""
    bitmap = rasterize(CAT)  # uint8, (28, 28), 0 = paper, 255 = ink
    # timeout_s is the deadline of a request with its retries. The client retries UNAVAILABLE and a full queue.
    # max_attempts applies while no server has responded yet, for example because the address is wrong.
    try:
        with Client(SERVER, timeout_s=10, retry=RetryPolicy(max_attempts=5)) as client:
            best = client.classify(bitmap, top_k=3)
    except Unavailable as error:
        print(f"error: {error}; start the service with `make serve`", file=sys.stderr)
        return 1
    except SketchbatchError as error:  # every other error of the client, with a message of one line
        print(f"error: {error}", file=sys.stderr)
        return 1
    for index, score in zip(best.class_index[0], best.score[0], strict=True):
        print(f"{best.labels[index]} {score:.3f}")
    print(f"{best.queue_us + best.inference_us} us in {best.model_name} version {best.model_version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
