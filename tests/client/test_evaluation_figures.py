"""Intervals, calibration, McNemar's test and drift, by themselves; scipy and scikit-learn are the reference."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sketchbatch_client.evaluation.figures import MOST_WRITTEN, confusion_table, reliability_bars
from sketchbatch_client.evaluation.stats import intervals
from sketchbatch_client.evaluation.stats.calibration import BINS, are_shares, calibrate
from sketchbatch_client.evaluation.stats.drift import drift
from sketchbatch_client.evaluation.stats.intervals import Measured, wilson, with_intervals
from sketchbatch_client.evaluation.stats.mcnemar import count, mcnemar, pair
from sketchbatch_client.evaluation.stats.metrics import confused_pairs, measure
from sklearn import metrics as reference


def softmaxed(rows: int, classes: int):
    """Scores of random drawings, and what they are: as sure as they are right."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 2, (rows, classes))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = (scores.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    return scores.astype(np.float32), true


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch):
    """Of 60 folders drawn from one population, some 95 % of the intervals hold its figures (50: once in 1,000)."""
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
    assert sum(held.values()) < 4 * 60  # nor do they hold everything


def test_the_same_counts_give_the_same_intervals():
    """The bootstrap has a seed; values are those of the counts themselves."""
    confusion = np.array([[50, 10], [5, 35]])
    assert with_intervals(confusion) == with_intervals(confusion)
    assert with_intervals(confusion)["accuracy"].value == 0.85


def test_the_bootstrap_holds_one_matrix_at_a_time(monkeypatch):
    """A thousand of 345 classes, as floats or counts, would be a gigabyte."""
    monkeypatch.setattr(intervals, "RESAMPLES", 40)
    confusion = np.full((345, 345), 3)
    tracemalloc.start()
    try:
        with_intervals(confusion)
        assert tracemalloc.get_traced_memory()[1] < 10 * confusion.nbytes
    finally:
        tracemalloc.stop()


def test_a_share_of_few_drawings_has_room_for_doubt():
    """Wilson's interval, as scipy's; 25 of 25 is no certainty, and of no drawings nothing is known."""
    hits, rows = np.array([25.0, 3.0, 0.0]), np.array([25.0, 10.0, 7.0])
    low, high = wilson(hits / rows, rows)
    for index in range(3):
        expected = stats.binomtest(int(hits[index]), int(rows[index])).proportion_ci(method="wilson")
        assert (low[index], high[index]) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert low[0] < 0.9
    assert np.ravel(wilson(np.zeros(1), np.zeros(1))) == pytest.approx([0, 1], abs=1e-4)


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_log_loss_and_brier_score_are_scikit_learns(classes):
    """Over all rows, also when these were counted in parts."""
    scores, true = softmaxed(700, classes)
    found = calibrate(scores[:300], true[:300]) + calibrate(scores[300:], true[300:])
    exact = scores.astype(np.float64) / scores.sum(axis=1, keepdims=True, dtype=np.float64)
    assert found.log_loss == pytest.approx(reference.log_loss(true, exact, labels=range(classes)), rel=1e-5)
    assert found.brier == pytest.approx(((exact - np.eye(classes)[true]) ** 2).sum(axis=1).mean(), rel=1e-5)
    assert found.mean_confidence == pytest.approx(scores.max(axis=1).mean())


def test_the_calibration_error_is_that_of_the_bins():
    """Two bins: one 0.1 too sure with 1 row of 4, one 0.2 too modest with 3; a score of 1 falls into the last bin."""
    scores = np.array([[1.1, -0.1], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2]], np.float32).clip(0, 1)
    found = calibrate(scores, np.array([0, 0, 0, 0]))
    assert found.bin_rows.tolist() == [0] * 12 + [3, 0, 1]
    assert found.expected_error == pytest.approx(0.75 * 0.2)
    assert [(bar.rows, bar.height) for bar in reliability_bars(found)] == [(3, 1), (1, pytest.approx(1 / 3))]
    assert reliability_bars(found)[0].left == 12 / BINS


def test_a_true_label_scored_nothing_is_no_infinite_loss():
    """The least score counted is what float32 can tell from 1, as in scikit-learn."""
    assert calibrate(np.array([[1, 0]], np.float32), np.array([1])).log_loss == pytest.approx(15.942, abs=1e-3)


@pytest.mark.parametrize("row", [[2.0, -1.0], [0.4, 0.4], [float("nan"), 1.0]])
def test_scores_without_a_softmax_are_no_shares(row):
    """They are negative, or do not sum to 1, or are no numbers."""
    assert are_shares(np.array([[0.5, 0.5], [1, 0]], np.float32))
    assert not are_shares(np.array([[0.5, 0.5], row], np.float32))


@pytest.mark.parametrize(("one", "other"), [(10, 2), (0, 5), (7, 7), (86, 150), (480, 520), (1, 0)])
def test_mcnemar_is_exact_for_few(one, other):
    """The two-sided binomial test of a fair coin; both ways round."""
    expected = stats.binomtest(one, one + other, 0.5).pvalue
    assert mcnemar(one, other) == pytest.approx(expected)
    assert mcnemar(other, one) == mcnemar(one, other)


@pytest.mark.parametrize(("one", "other"), [(600, 500), (1000, 1000), (2_000_000, 2_005_000), (900, 3000)])
def test_mcnemar_is_chi_square_for_many(one, other):
    """With continuity correction, and so close to the exact one."""
    statistic = max(abs(one - other) - 1, 0) ** 2 / (one + other)
    assert mcnemar(one, other) == pytest.approx(stats.chi2.sf(statistic, 1), rel=1e-9)
    assert mcnemar(one, other) == pytest.approx(stats.binomtest(one, one + other, 0.5).pvalue, abs=1e-3)


def test_mcnemar_by_hand():
    """10 against 2: twice (1 + 12 + 66) of 4096; nobody alone right: no evidence at all."""
    assert mcnemar(10, 2) == 2 * 79 / 4096
    assert mcnemar(0, 0) == 1


def test_two_models_are_paired_row_by_row():
    """Rows of the table: is the first right; the difference of accuracies has the interval that the pairs allow."""
    first, second = np.arange(400) < 300, np.arange(400) % 8 < 5
    paired = pair(count(first, second))
    assert paired.table.tolist() == [[39, 61], [111, 189]]
    assert (paired.only_first, paired.only_second) == (111, 61)
    assert paired.difference.value == pytest.approx(first.mean() - second.mean())
    error = np.sqrt((111 + 61) / 400 - paired.difference.value**2) / 20
    assert paired.difference.high - paired.difference.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert paired.verdict("a", "b") == "a names these drawings better than b."
    assert pair(count(second, first)).verdict("a", "b") == "b names these drawings better than a."
    assert pair(count(first, first)).verdict("a", "b") == "Chance explains the difference between a and b."


def test_the_stored_figures_are_held_against_the_interval_and_against_chance():
    """Chance has part in the stored figure, too: of as many drawings, sqrt(2) of the interval; if not said, none."""
    here = {"accuracy": Measured(0.80, 0.78, 0.82)}

    def said(stored: float, **of: object) -> str:
        return str(drift({"accuracy": stored, **of}, here, 1000)["accuracy"])

    assert said(0.81, rows=1000) == "within the interval"
    assert said(0.828, rows=1000) == "outside the interval, but within chance"
    assert said(0.829, rows=1000) == "outside the interval, beyond chance"
    assert said(0.771, rows=1000) == "outside the interval, beyond chance"
    assert said(0.86, rows=100) == "outside the interval, but within chance"
    assert said(0.828) == "outside the interval, beyond chance"


def test_only_figures_that_are_stored_as_numbers_are_held_against():
    """A file of somebody's own may store anything."""
    here = {name: Measured(0.5, 0.4, 0.6) for name in ("accuracy", "jaccard", "specificity")}
    assert list(drift({"accuracy": "high", "jaccard": 0.5, "specificity": float("nan"), "rows": True}, here, 9)) == [
        "jaccard"
    ]


def test_confused_pairs_come_most_rows_first():
    """Hits are no confusion, and neither are pairs that never occurred."""
    confusion = np.array([[9, 1, 0], [4, 9, 2], [0, 0, 9]])
    assert confused_pairs(confusion, 9) == [(1, 0), (1, 2), (0, 1)]
    assert confused_pairs(confusion, 1) == [(1, 0)]


def test_a_matrix_too_large_to_be_written_shows_the_classes_most_confused():
    """At most MOST_WRITTEN of them, in the model's order; classes without drawings have no line."""
    labels = tuple(f"class {index}" for index in range(60))
    confusion = np.diag(np.full(60, 50))
    confusion[50, 3] = 30
    confusion[3, 59] = 20
    confusion[np.arange(20, 40), np.arange(21, 41)] = 1
    table = confusion_table(confusion, labels)
    assert {"class 3", "class 50", "class 59"} <= set(table["columns"])
    assert len(table["columns"]) <= MOST_WRITTEN
    assert table["columns"] == sorted(table["columns"], key=labels.index)
    small = confusion_table(np.array([[3, 1], [0, 0]]), ("a", "b"))
    assert [line["label"] for line in small["lines"]] == ["a"]
    assert [cell["share"] for cell in small["lines"][0]["cells"]] == [0.75, 0.25]
