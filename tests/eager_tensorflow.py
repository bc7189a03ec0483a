"""Run TensorFlow without graphs, for trainings of a few steps."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_graphs() -> Iterator[None]:
    """Make TensorFlow run each step without a graph, because tracing a graph takes longer than a few steps."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)
