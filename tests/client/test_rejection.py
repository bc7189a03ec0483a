"""Rejection thresholds: fitted, encoded, and the risk-coverage curve of any number of rows."""

import json
import math

import numpy as np
import pytest
from sketchbatch_client.evaluation.stats.rejection import (
    COVERAGES,
    KEY,
    auroc,
    decode,
    encode,
    fit,
    risk_coverage,
)
from sketchbatch_client.evaluation.stats.score_histogram import ScoreHistogram
from sklearn.metrics import roc_auc_score


def scored(rows: int, seed: int, *, step: float = 0.0):
    """Return the highest scores of some rows, with many ties if `step` is given, and which rows are correct."""
    random = np.random.default_rng(seed)
    scores = random.beta(4, 2, rows)
    scores = np.round(scores / step) * step if step else scores
    return scores.astype(np.float32), random.random(rows) < scores


@pytest.mark.parametrize("step", [0.0, 0.1])
def test_the_area_under_the_roc_curve_is_the_share_of_ordered_pairs(step):
    """The AUROC is the share of pairs in which the known drawing scores higher, ties half, as in scikit-learn."""
    known, unknown = scored(300, 1, step=step)[0], scored(200, 2, step=step)[0] ** 2
    pairs = known[:, None].astype(float) - unknown
    expected = ((pairs > 0).sum() + 0.5 * (pairs == 0).sum()) / pairs.size
    assert auroc(known, unknown) == pytest.approx(expected, abs=1e-12)
    truth = np.repeat([1, 0], [len(known), len(unknown)])
    assert auroc(known, unknown) == pytest.approx(roc_auc_score(truth, np.concatenate([known, unknown])), abs=1e-12)
    assert auroc(known, known) == 0.5


@pytest.mark.parametrize("step", [0.0, 0.1])
def test_the_risk_coverage_curve_has_one_point_per_score(step):
    """Each point is the accuracy of the rows whose score is at least a score; equal scores enter together."""
    scores, is_correct = scored(400, 3, step=step)
    curve = risk_coverage(scores, is_correct)
    thresholds = np.unique(scores)[::-1]
    assert np.array_equal(curve.score, thresholds)
    kept = [scores >= threshold for threshold in thresholds]
    assert curve.coverage == pytest.approx([each.mean() for each in kept])
    assert curve.accuracy == pytest.approx([is_correct[each].mean() for each in kept])
    risks = [1 - is_correct[scores >= score].mean() for score in scores]
    assert curve.area == pytest.approx(np.mean(risks))
    point = curve.index_at(0.8)
    assert curve.coverage[point] >= 0.8 > curve.coverage[point - 1]
    assert curve.index_at(1.0) == len(thresholds) - 1


@pytest.mark.parametrize("step", [0.0, 0.1])
def test_a_threshold_is_the_highest_that_keeps_its_coverage(step):
    """At least the coverage is kept, and a higher threshold would keep less; the values are those of a plain count."""
    (known, is_correct), (unknown, _) = scored(333, 4, step=step), scored(500, 5)
    unknown = unknown**3
    found = fit(known, is_correct, unknown)
    assert (found.rows, found.unknown_rows, found.auroc) == (333, 500, auroc(known, unknown))
    assert tuple(each.coverage for each in found.thresholds) == COVERAGES
    for each in found.thresholds:
        assert (known >= each.score).mean() >= each.coverage > (known > each.score).mean()
        assert each.accuracy == is_correct[known >= each.score].mean()
        assert each.unknown_rejected == (unknown < each.score).mean()
    assert found.at(0.95).coverage == 0.95


def test_a_threshold_of_a_whole_number_of_rows_keeps_exactly_these():
    """55 % of 100 rows are 55 rows, although 0.55 * 100 is above 55 in floating point."""
    known = np.arange(100) / 100
    assert fit(known, known > 0, known, [0.55]).thresholds[0].score == 0.45
    assert fit(known, known > 0, known, [1.0]).thresholds[0].score == 0.0


def test_thresholds_are_the_same_after_they_were_stored():
    """JSON keeps every digit of the scores, and readers ignore keys of later versions."""
    (known, is_correct), (unknown, _) = scored(300, 6), scored(100, 7)
    found = fit(known, is_correct, unknown, (0.5, 0.9))
    assert [each.coverage for each in found.thresholds] == [0.9, 0.5]
    assert decode(encode(found)) == found
    assert decode(json.dumps({**json.loads(encode(found)), "later": 1})) == found
    assert KEY == "sketchbatch.rejection"
    with pytest.raises(ValueError, match=r"must be one of the model's coverages 0.9, 0.5, got 0.95$"):
        found.at(0.95)


GOOD = {
    "rows": 9,
    "unknown_rows": 8,
    "auroc": 0.9,
    "thresholds": [
        {"coverage": 0.9, "score": 0.4, "accuracy": 0.8, "unknown_rejected": 0.3},
        {"coverage": 0.5, "score": 0.4, "accuracy": 1, "unknown_rejected": 0.3},
    ],
}


def changed(**values: object) -> str:
    """Return the JSON text of `GOOD` with other values; names that a threshold has are those of its first one."""
    first = GOOD["thresholds"][0]
    own = {name: value for name, value in values.items() if name in first}
    rest = {name: value for name, value in values.items() if name not in first}
    return json.dumps({**GOOD, "thresholds": [first | own, GOOD["thresholds"][1]], **rest})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON, got '{'"),
        ("[" * 100_000, "must be JSON"),
        ('{"rows": ' + "9" * 5000 + "}", "must be JSON"),
        ("[]", "must be a JSON object, got '[]'"),
        ("{}", "thresholds must be a list of 1 to 100 thresholds, got none"),
        (changed(thresholds=[]), "thresholds must be a list of 1 to 100 thresholds, got 0"),
        (changed(thresholds=[1] * 101), "got 101"),
        (changed(thresholds=[1]), "a threshold must be a JSON object, got 1"),
        (changed(rows=0), "rows must be a whole number from 1, got 0"),
        (changed(rows=True), "rows must be a whole number from 1, got True"),
        (changed(unknown_rows=1.0), "unknown_rows must be a whole number from 1, got 1.0"),
        (changed(unknown_rows=10**4000), "unknown_rows must be a whole number from 1, got a larger number"),
        (changed(auroc=1.1), "auroc must be a number from 0 to 1, got 1.1"),
        (changed(auroc="0.9"), "auroc must be a number from 0 to 1, got '0.9'"),
        (changed(coverage=0), "coverage must be above 0, got 0"),
        (changed(coverage=None), "coverage must be a number from 0 to 1, got none"),
        (changed(score=math.nan), "score must be a finite number, got nan"),
        (changed(score=math.inf), "score must be a finite number, got inf"),
        (changed(score=10**400), "score must be a finite number, got a larger number"),
        (changed(accuracy=-1), "accuracy must be a number from 0 to 1, got -1"),
        (changed(unknown_rejected=[]), "unknown_rejected must be a number from 0 to 1, got a list"),
        (changed(coverage=0.5), "thresholds must have falling coverages and rising scores"),
        (changed(score=0.41), "got coverage 0.9 score 0.41 before coverage 0.5 score 0.4"),
    ],
)
def test_a_text_that_is_no_set_of_thresholds_is_refused(text, message):
    """The error names the value, what was expected and what was found, in one line."""
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared below
        decode(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200
    assert decode(json.dumps(GOOD)).thresholds[1].accuracy == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], [1.0]), "known scores must have the shape"),
        (([1.0], [True], []), "unknown scores must have the shape"),
        (([[1.0]], [True], [1.0]), "known scores must have the shape"),
        (([1.0, math.nan], [True, True], [1.0]), "known scores must be finite, got nan"),
        (([1.0], [1], [1.0]), "is_correct must be bool"),
        (([1.0], [True, False], [1.0]), "is_correct must be bool of shape"),
        (([1.0], [True], [1.0], [0.0]), "coverages must be above 0 and at most 1, got"),
        (([1.0], [True], [1.0], []), "coverages must be above 0 and at most 1, got none"),
    ],
)
def test_scores_that_cannot_be_fitted_are_refused(arguments, message):
    """Empty, misshapen or non-finite arrays and impossible coverages raise an error that says what is wrong."""
    with pytest.raises(ValueError, match=message):
        fit(*arguments)


@pytest.mark.parametrize(
    "scores",
    [
        pytest.param(scored(5000, 8)[0], id="probabilities"),
        pytest.param(np.log(scored(5000, 9)[0]), id="log-probabilities"),
        pytest.param(np.random.default_rng(10).normal(0, 30, 5000).astype(np.float32), id="logits"),
        pytest.param(np.float32([0.0, -0.0, 1e-40, -3e38, 3e38, 1.0, 1.0, -1.0]), id="extremes"),
    ],
)
def test_the_curve_of_a_histogram_is_that_of_the_rounded_scores(scores):
    """Rows that are counted in blocks have the curve of all rows, but scores that differ by less than 1/2048 tie."""
    is_correct = np.random.default_rng(11).random(len(scores)) < 0.7
    thresholds = [float(np.median(scores)), float(scores.max())]
    histogram = ScoreHistogram(thresholds)
    for start in range(0, len(scores), 700):
        histogram.add(scores[start : start + 700], is_correct[start : start + 700])
    curve = histogram.curve()
    assert (np.diff(curve.score) < 0).all()
    for score, coverage, accuracy in zip(curve.score, curve.coverage, curve.accuracy, strict=True):
        is_kept = scores >= score
        assert coverage == pytest.approx(is_kept.mean())
        assert accuracy == pytest.approx(is_correct[is_kept].mean())
    exact = risk_coverage(scores, is_correct)
    assert len(curve.score) > 0.7 * len(np.unique(scores + 0)) or len(curve.score) > 1000
    assert curve.area == pytest.approx(exact.area, abs=0.005)
    assert histogram.kept == [
        (int((scores >= each).sum()), int(is_correct[scores >= each].sum())) for each in thresholds
    ]
