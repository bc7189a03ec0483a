"""Test intervals, calibration, McNemar's test and drift, mostly against the results of scipy and scikit-learn."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sketchbatch_client.evaluation.figures import MAX_WRITTEN_CLASSES, Matrix, shown_classes
from sketchbatch_client.evaluation.stats import intervals
from sketchbatch_client.evaluation.stats.calibration import are_probabilities, calibrate
from sketchbatch_client.evaluation.stats.drift import drift
from sketchbatch_client.evaluation.stats.intervals import Measured, wilson, with_intervals
from sketchbatch_client.evaluation.stats.mcnemar import count_pairs, format_p_value, mcnemar, pair
from sketchbatch_client.evaluation.stats.metrics import confused_pairs, measure
from sklearn import metrics as reference


def softmaxed(rows: int, classes: int):
    """Return random scores with perfect calibration, and true classes that are drawn with these probabilities."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 2, (rows, classes))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = (scores.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    return scores.astype(np.float32), true


@pytest.mark.parametrize("classes", [3, 4, 5, 6])
@pytest.mark.parametrize("letters", [3, 8, 11, 14, 20])
def test_a_matrix_of_few_classes_fits_next_to_its_text(classes, letters):
    """The page has 640 pixels for it, which are 6.6 inches; a wider one would be cut off."""
    names = [f"{index}".ljust(letters, "m") for index in range(classes)]
    assert Matrix.of_confusion(np.eye(classes, dtype=int), names).size[0] <= 6.6


def test_95_percent_of_the_intervals_contain_the_true_figure(monkeypatch):
    """About 95 % of the intervals of 60 random samples contain the figure of the population.

    The test demands 51 of 60. With a true coverage of 95 %, fewer would occur by chance only once in 1,000 tests.
    """
    monkeypatch.setattr(intervals, "RESAMPLES", 100)
    population = np.array([[30, 5, 2], [6, 25, 4], [3, 9, 16]])
    truth = measure(population)
    rng = np.random.default_rng(11)
    held = dict.fromkeys(("accuracy", "balanced_accuracy", "matthews_corrcoef", "jaccard"), 0)
    for _ in range(60):
        found = with_intervals(rng.multinomial(400, population.ravel() / population.sum()).reshape(3, 3))
        for name in held:
            held[name] += found[name].low <= getattr(truth, name) <= found[name].high
    assert min(held.values()) >= 51
    assert sum(held.values()) < 4 * 60  # too wide intervals of the four metrics would contain every true figure


@pytest.mark.parametrize(("hits", "rows"), [(1, 1), (0, 1), (20, 20), (0, 20)])
def test_no_interval_promises_certainty(hits, rows):
    """If all predictions are right or all wrong, the accuracy has Wilson's interval and the other metrics have none."""
    found = with_intervals(np.array([[hits, rows - hits], [0, 0]]))
    expected = stats.binomtest(hits, rows).proportion_ci(method="wilson")
    assert found["accuracy"].interval == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert [str(found[name]) for name in ("balanced_accuracy", "jaccard")] == [
        f"{hits / rows:.4f}   no interval: all resamples of these drawings are equal"
    ] * 2
    for name in ("specificity", "matthews_corrcoef"):
        assert (found[name].is_defined, found[name].interval) == (False, None)
        assert str(found[name]) == "not defined: no drawing of another class"


def test_a_metric_that_few_drawings_define_by_chance_has_no_interval():
    """If many resamples have no value, because a class has one drawing, the metric has a value, but no interval."""
    found = with_intervals(np.array([[1, 0], [1, 2]]))
    assert str(found["specificity"]) == "0.8333   no interval: too few drawings"


def test_the_ends_of_an_interval_are_told_apart():
    """An interval is written with more digits if its ends would look equal."""
    assert Measured(0.99999, 0.99998, 0.999991).interval_text() == "0.99998 to 0.99999"
    assert Measured(-0.25, -0.5, 0.0).text("+.2f") == "-0.25   -0.50 to +0.00"


@pytest.mark.parametrize(("only_first", "only_second", "rows"), [(0, 0, 1), (0, 0, 50), (1, 0, 1), (3, 5, 40)])
def test_the_difference_of_two_models_has_an_interval_with_a_width(only_first, only_second, rows):
    """The interval of a difference of accuracies contains the difference, even if the models never differ."""
    found = pair(np.array([[0, only_second], [only_first, rows - only_first - only_second]])).difference
    assert -1 <= found.low < found.value <= found.high <= 1
    assert found.high - found.low > 1 / rows


def test_the_same_counts_give_the_same_intervals():
    """The same counts give the same intervals, because the bootstrap has a fixed seed."""
    confusion = np.array([[50, 10], [5, 35]])
    assert with_intervals(confusion) == with_intervals(confusion)
    assert with_intervals(confusion)["accuracy"].value == 0.85


def test_the_bootstrap_keeps_one_resample_in_memory(monkeypatch):
    """The bootstrap keeps only one resample in memory at a time.

    All 1,000 resamples of a confusion matrix of 345 classes would take a gigabyte.
    """
    monkeypatch.setattr(intervals, "RESAMPLES", 40)
    confusion = np.full((345, 345), 3)
    tracemalloc.start()
    try:
        with_intervals(confusion)
        assert tracemalloc.get_traced_memory()[1] < 10 * confusion.nbytes
    finally:
        tracemalloc.stop()


def test_wilsons_interval_of_few_drawings_is_wide():
    """Wilson's interval is equal to scipy's, and is wide even if all of 25 drawings are correct.

    Without drawings, the interval is 0 to 1.
    """
    hits, rows = np.array([25.0, 3.0, 0.0]), np.array([25.0, 10.0, 7.0])
    low, high = wilson(hits / rows, rows)
    for index in range(3):
        expected = stats.binomtest(int(hits[index]), int(rows[index])).proportion_ci(method="wilson")
        assert (low[index], high[index]) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert low[0] < 0.9
    assert np.ravel(wilson(np.zeros(1), np.zeros(1))) == pytest.approx([0, 1], abs=1e-4)


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_log_loss_and_brier_score_agree_with_scikit_learn(classes):
    """Log loss and Brier score agree with scikit-learn.

    They are computed from the sum of two calibrations, one of the first 300 rows and one of the other rows.
    """
    scores, true = softmaxed(700, classes)
    found = calibrate(scores[:300], true[:300]) + calibrate(scores[300:], true[300:])
    exact = scores.astype(np.float64) / scores.sum(axis=1, keepdims=True, dtype=np.float64)
    assert found.log_loss == pytest.approx(reference.log_loss(true, exact, labels=range(classes)), rel=1e-5)
    assert found.brier == pytest.approx(((exact - np.eye(classes)[true]) ** 2).sum(axis=1).mean(), rel=1e-5)
    assert found.mean_confidence == pytest.approx(scores.max(axis=1).mean())


def test_the_calibration_error_is_the_mean_error_of_the_bins():
    """The calibration error weights the error of each bin by its rows; a score of 1 is in the last bin."""
    scores = np.array([[1.1, -0.1], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2]], np.float32).clip(0, 1)
    found = calibrate(scores, np.array([0, 0, 0, 0]))
    assert found.bin_rows.tolist() == [0] * 12 + [3, 0, 1]
    assert found.expected_error == pytest.approx(0.75 * 0.2)
    assert found.rows.tolist() == [3, 1]
    assert found.confidence == pytest.approx([0.8, 1])


def test_a_score_of_0_for_the_true_label_has_a_finite_loss():
    """If the score of the true label is 0, the log loss uses the float32 epsilon in its place, as scikit-learn does."""
    assert calibrate(np.array([[1, 0]], np.float32), np.array([1])).log_loss == pytest.approx(15.942, abs=1e-3)


@pytest.mark.parametrize("row", [[2.0, -1.0], [0.4, 0.4], [float("nan"), 1.0]])
def test_scores_without_a_softmax_are_no_probabilities(row):
    """A row with a negative or NaN score, or with a sum other than 1, has no probabilities."""
    assert are_probabilities(np.array([[0.5, 0.5], [1, 0]], np.float32))
    assert not are_probabilities(np.array([[0.5, 0.5], row], np.float32))


@pytest.mark.parametrize(("one", "other"), [(10, 2), (0, 5), (7, 7), (86, 150), (480, 520), (1, 0)])
def test_mcnemar_is_exact_for_few_drawings(one, other):
    """For few drawings that only one of two models classifies correctly, McNemar's test is an exact binomial test.

    The test is two-sided with probability 0.5. The p value is the same for both orders of the models.
    """
    expected = stats.binomtest(one, one + other, 0.5).pvalue
    assert mcnemar(one, other) == pytest.approx(expected)
    assert mcnemar(other, one) == mcnemar(one, other)


@pytest.mark.parametrize(("one", "other"), [(600, 500), (1000, 1000), (2_000_000, 2_005_000), (900, 3000)])
def test_mcnemar_is_chi_square_for_many_drawings(one, other):
    """For many drawings that only one of two models classifies correctly, McNemar's test is a chi-square test.

    The test has the continuity correction. Its p value differs from that of the exact test by at most 0.001.
    """
    statistic = max(abs(one - other) - 1, 0) ** 2 / (one + other)
    assert mcnemar(one, other) == pytest.approx(stats.chi2.sf(statistic, 1), rel=1e-9)
    assert mcnemar(one, other) == pytest.approx(stats.binomtest(one, one + other, 0.5).pvalue, abs=1e-3)


def test_mcnemar_agrees_with_a_calculation_by_hand():
    """The p values agree with a calculation by hand.

    Of 12 drawings that only one of the two models classifies correctly, let the second model be right on 2. Then p is
    2 * (1 + 12 + 66) / 4096: the numbers of ways to choose 0, 1 or 2 of 12, of 2 ** 12 ways. Without drawings, p is 1.
    """
    assert mcnemar(10, 2) == 2 * 79 / 4096
    assert mcnemar(0, 0) == 1


def test_two_models_are_compared_row_by_row():
    """The interval of the difference of two accuracies takes into account that both models score the same rows.

    The verdict names the better model, or states that chance explains the difference.
    """
    first, second = np.arange(400) < 300, np.arange(400) % 8 < 5
    paired = pair(count_pairs(first, second))
    assert paired.table.tolist() == [[39, 61], [111, 189]]
    assert (paired.only_first, paired.only_second) == (111, 61)
    assert paired.difference.value == pytest.approx(first.mean() - second.mean())
    error = np.sqrt((111 + 61) / 400 - paired.difference.value**2) / 20
    assert paired.difference.high - paired.difference.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert paired.verdict("a", "b") == "a classifies these drawings better than b."
    assert pair(count_pairs(second, first)).verdict("a", "b") == "b classifies these drawings better than a."
    chance = pair(count_pairs(first[::9], second[::9]))
    assert chance.verdict("a", "b") == "Chance explains the difference between a and b."
    assert pair(count_pairs(first, first)).verdict("a", "b") == "a and b are right about the same drawings."


def test_drift_is_compared_with_the_interval_and_with_chance():
    """A stored figure is compared with the interval of the measured figure, and with a wider range for chance.

    The range is wider because the stored figure varies by chance, too. If both figures come from equally many drawings,
    the range is sqrt(2) times as wide as the interval. If the number of drawings behind the stored figure is unknown,
    the range is the interval.
    """
    here = {"accuracy": Measured(0.80, 0.78, 0.82)}

    def drift_of(stored: float, **of: object) -> str:
        return str(drift({"accuracy": stored, **of}, here, 1000)["accuracy"])

    assert drift_of(0.81, rows=1000) == "within the interval"
    assert drift_of(0.828, rows=1000) == "outside the interval, but within chance"
    assert drift_of(0.829, rows=1000) == "outside the interval, beyond chance"
    assert drift_of(0.771, rows=1000) == "outside the interval, beyond chance"
    assert drift_of(0.86, rows=100) == "outside the interval, but within chance"
    assert drift_of(0.828) == "outside the interval, beyond chance"
    missing = {"accuracy": Measured(1.0, note="why"), "jaccard": Measured(float("nan"), note="why")}
    drifts = drift({"accuracy": 0.9, "jaccard": 0.8}, missing, 9)
    assert [*map(str, drifts.values())] == ["not compared: the measured value has no interval"]


def test_only_stored_numbers_are_compared():
    """Stored figures that are not numbers are ignored, because model metadata may contain any JSON."""
    here = {name: Measured(0.5, 0.4, 0.6) for name in ("accuracy", "jaccard", "specificity")}
    assert list(drift({"accuracy": "high", "jaccard": 0.5, "specificity": float("nan"), "rows": True}, here, 9)) == [
        "jaccard"
    ]


def test_the_most_confused_pairs_are_first():
    """Pairs of a true and a predicted class are sorted by their number of drawings, the largest number first.

    Correct predictions and pairs without drawings are not listed.
    """
    confusion = np.array([[9, 1, 0], [4, 9, 2], [0, 0, 9]])
    assert confused_pairs(confusion, 9) == [(1, 0), (1, 2), (0, 1)]
    assert confused_pairs(confusion, 1) == [(1, 0)]


def test_a_large_matrix_shows_the_most_confused_classes():
    """The page shows the counts of a large confusion matrix for its most confused classes only.

    It shows at most MAX_WRITTEN_CLASSES classes, in the order of the labels. If the matrix is small, the page shows
    every class that occurs.
    """
    confusion = np.diag(np.full(60, 50))
    confusion[50, 3] = 30
    confusion[3, 59] = 20
    confusion[np.arange(20, 40), np.arange(21, 41)] = 1
    shown = shown_classes(confusion)
    assert {3, 50, 59} <= set(shown)
    assert len(shown) <= MAX_WRITTEN_CLASSES
    assert shown == sorted(shown)
    assert shown_classes(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])) == [0, 1]
    matrix = Matrix.of_confusion(confusion, list(map(str, range(60))))
    left_out = confusion[shown].sum() - confusion[np.ix_(shown, shown)].sum()
    assert left_out > 0
    assert matrix.axis_titles[1] == f"predicted (without other classes: {left_out})"
    assert Matrix.of_confusion(np.eye(3, dtype=int), "abc").axis_titles[1] == "predicted"


def test_a_p_value_has_two_digits_or_a_bound():
    """A p value is written with two digits; a value below 0.0001 is written as "less than 0.0001"."""
    assert [format_p_value(p) for p in (1.0, 0.01234, 0.00001)] == ["1", "0.012", "less than 0.0001"]
