"""Test that rows whose scores are not finite are found, in small and in large batches."""

import numpy as np
import pytest
from sketchbatch_service.batching.finite_rows import finite_rows


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (1024, 3), (1024, 345)])
@pytest.mark.parametrize("size", [0.0, 1.0, -3e38, 1e-45])
def test_finite_scores_are_finite(shape, size):
    """Scores of any size are finite, also if the sum of their squares is not."""
    assert finite_rows(np.full(shape, size, np.float32)) is None


@pytest.mark.parametrize("shape", [(2, 1), (5, 3), (1024, 3), (1024, 345)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_with_one_score_that_is_not_finite_is_found(shape, bad):
    """One score in the first or in the last column decides about its row, and about no other row."""
    for row in (0, shape[0] - 1):
        for column in (0, -1):
            scores = np.full(shape, 1e38, np.float32)
            scores[row, column] = bad
            assert np.flatnonzero(~finite_rows(scores)).tolist() == [row]
