"""Find the rows of a batch whose scores are not finite, at a cost that does not matter while there are none."""

import math

import numpy as np
from numpy.typing import NDArray

from ..arrays import Scores

_SMALL = 4096  # scores; for more of them, BLAS might start threads to compute a product


def finite_rows(scores: Scores) -> NDArray[np.bool_] | None:
    """Return whether all scores of each row are finite, bool (rows,); None if those of every row are.

    The check takes 0.8 us for a few scores and 0.06 ms for 1,024 x 345: 0.04 % of the model call of quickdraw-345.
    """
    # The sum of squares is finite only if every score is. It may overflow for large scores, which the next line allows.
    if scores.size <= _SMALL and math.isfinite(np.vdot(scores, scores)):
        return None
    is_finite = np.isfinite(scores)
    return None if is_finite.all() else np.asarray(is_finite.all(axis=1))
