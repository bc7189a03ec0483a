"""Measure a model under each plausible scaling, so that a wrong `--scale` or `--invert` shows.

Only labelled drawings can show it: a model that receives its pixels at the wrong scale still returns scores. The
accuracy shows a wrong offset and a wrong inversion. It often does not show a wrong factor: a network of ReLU layers
with small biases ranks the classes alike at 0..1 and at 0..255. But then almost every score is 0 or 1, or all are
alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from sketchbatch_client.evaluation.stats.mcnemar import SIGNIFICANT, mcnemar

from ..export.held_out import onnx_scores
from .scaling import AS_PIXELS, CANDIDATES, Scaling
from .trial_drawings import TrialDrawings

# The three limits separate small networks (linear, dense, convolutional, with and without batch normalisation) at the
# scaling of their training from the same networks at 255 times or 1/255 of its factor, on bear, cat and dog.
_SATURATED = 1e-30
"""Second-highest score of a typical drawing below which scores are saturated. At 255 times the factor it was 0."""
_FLAT = 0.3
"""Limit of `hesitation`: above it, scores are flat. At the factor of the training it was 0.17 at most."""
_FITTING = 0.05
"""Limit of `hesitation`: one scaling must be below it, or no other is proposed instead of a saturated or flat one."""

_SHARE_TOLERANCE = 1e-2  # for the sum of a row of probabilities
_MIN_SKETCH_ACCURACY = 2 / 3
"""Accuracy below which a model was not trained on drawings like the synthetic sketches, so that they prove nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingResult:
    """How a model scores the drawings under one scaling."""

    scaling: Scaling
    is_correct: NDArray[np.bool_]
    """(rows,): whether the highest score of each drawing is that of its class; false if one of its scores is NaN."""
    not_finite: int
    """Number of drawings with a score that is NaN or infinite."""
    mean_top_score: float
    """Mean of the highest score of each drawing; NaN if the scores are not shares that sum to 1."""
    second_score: float
    """Median of the second-highest score of each drawing; NaN if the scores are not shares that sum to 1."""

    @property
    def accuracy(self) -> float:
        """Return the share of drawings whose highest score is that of their class."""
        return float(self.is_correct.mean())

    @property
    def hesitation(self) -> float:
        """Return the accuracy minus the mean highest score: 0 = calibrated, above = the scores are too equal."""
        return self.accuracy - self.mean_top_score

    @property
    def is_saturated(self) -> bool:
        """Return whether almost every score is 0 or 1."""
        return self.second_score < _SATURATED

    @property
    def is_flat(self) -> bool:
        """Return whether the scores of all classes are nearly equal although the highest one is often right."""
        return self.hesitation > _FLAT

    @property
    def fits(self) -> bool:
        """Return whether the scores are neither saturated nor flat; true if they are not shares that sum to 1."""
        return not (self.hesitation >= _FITTING or self.is_saturated)  # a comparison with NaN is false


def candidates(chosen: Scaling, is_float: bool) -> list[Scaling]:
    """Return the scalings to compare, `chosen` included; a model that takes integers can only be inverted."""
    likely = CANDIDATES if is_float else (AS_PIXELS, AS_PIXELS.inverted())
    return [chosen, *(each for each in likely if not np.allclose(each.affine, chosen.affine))]


def compare(
    build: Callable[[Scaling], onnx.ModelProto], drawings: TrialDrawings, scalings: Sequence[Scaling]
) -> list[ScalingResult]:
    """Return the result of each scaling; `build` returns the model, bitmaps -> scores, for a scaling."""
    return [_measure(onnx_scores(build(scaling), drawings.bitmaps), drawings, scaling) for scaling in scalings]


def table(results: Sequence[ScalingResult], chosen: Scaling) -> list[str]:
    """Return the lines of a table of the results, the highest accuracy first; the chosen scaling is marked."""
    width = max(len(each.scaling.flags) for each in results)
    lines = [f"{'':{width}}  accuracy  mean highest score"]
    for each in sorted(results, key=lambda result: -result.accuracy):
        highest = "" if np.isnan(each.mean_top_score) else f"{each.mean_top_score:.3f}"
        mark = "  <- chosen" if each.scaling == chosen else ""
        lines.append(f"{each.scaling.flags:{width}}  {each.accuracy:>8.1%}  {highest:>18}{mark}".rstrip())
    return lines


def are_conclusive(results: Sequence[ScalingResult], drawings: TrialDrawings) -> bool:
    """Return whether the drawings are like those that the model was trained on; those of the user always count."""
    return not drawings.are_sketches or max(each.accuracy for each in results) >= _MIN_SKETCH_ACCURACY


def warning(results: Sequence[ScalingResult], chosen: Scaling) -> str:
    """Return one line that says why another scaling is likely to be the right one, and its flags; empty if none is."""
    used = next(each for each in results if each.scaling == chosen)
    best = max(results, key=lambda result: result.accuracy)
    if _is_better(best, used, comparisons=len(results) - 1):
        # of scalings that are as good as the best one, the most common one: chance decides their order
        better = next((each for each in results if each.fits and not _is_better(best, each)), best)
        return (
            f"{better.scaling.flags} is right on {better.accuracy:.1%} of the drawings, {chosen.flags} on "
            f"{used.accuracy:.1%}: {_retry(better)}"
        )
    if not (used.is_saturated or used.is_flat):
        return ""
    others = [each for each in results if not (each.is_saturated or each.is_flat or _is_better(used, each))]
    if not any(each.fits for each in others):
        return ""
    problem = "almost every score is 0 or 1" if used.is_saturated else "the scores of all classes are nearly equal"
    flags = " or ".join(each.scaling.flags for each in others)
    return f"with {chosen.flags} {problem}, with {flags} they are not: {_retry(*others)}"


def _retry(*results: ScalingResult) -> str:
    flags = " or ".join(each.scaling.flags for each in results)
    return f"run again with {flags}, unless you know how the model was trained"


def _measure(scores: NDArray[np.float32], drawings: TrialDrawings, scaling: Scaling) -> ScalingResult:
    is_finite = np.isfinite(scores).all(axis=1)
    ordered = np.sort(scores, axis=1)
    are_shares = scores.shape[1] > 1 and scores.min() >= 0 and np.abs(scores.sum(axis=1) - 1).max() <= _SHARE_TOLERANCE
    return ScalingResult(
        scaling=scaling,
        is_correct=(scores.argmax(axis=1) == drawings.class_index) & is_finite,
        not_finite=int((~is_finite).sum()),
        mean_top_score=float(ordered[:, -1].mean()) if are_shares else np.nan,
        second_score=float(np.median(ordered[:, -2])) if are_shares else np.nan,
    )


def _is_better(first: ScalingResult, second: ScalingResult, comparisons: int = 1) -> bool:
    """Return whether more than chance makes `first` right more often (McNemar's test, Bonferroni's correction)."""
    only_first = int((first.is_correct & ~second.is_correct).sum())
    only_second = int((second.is_correct & ~first.is_correct).sum())
    return only_first > only_second and mcnemar(only_first, only_second) * comparisons < SIGNIFICANT
