"""Decide how the page shows scores: the width of each bar, and the number next to the bar."""

import numpy as np
from numpy.typing import NDArray

_ARE_SHARES = ("probabilities", "independent")  # kinds of scores that lie between 0 and 1


def score_bars(scores: NDArray[np.float32], score_kind: str) -> tuple[NDArray[np.float64], list[str]]:
    """Return widths, (classes,), from 0 to 1, and texts for the scores of one row, (classes,).

    Scores between 0 and 1 are their own widths and shown in percent. Other scores are shown as they are, and their
    widths are their softmax; for log-probabilities these are the probabilities. `score_kind` is that of `ModelInfo`; if
    it is empty, the scores themselves show whether they lie between 0 and 1.
    """
    exact = scores.astype(np.float64)
    is_share = score_kind in _ARE_SHARES if score_kind else bool((exact >= 0).all() and (exact <= 1).all())
    if is_share:
        return exact.clip(0, 1), [f"{100 * score:.1f} %" for score in exact]
    powers = np.exp(exact - exact.max())
    return powers / powers.sum(), [f"{score:.2f}" for score in exact]
