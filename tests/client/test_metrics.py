"""Test that the metrics are equal to those of scikit-learn, or stated as not defined where scikit-learn returns 0."""

import math

import numpy as np
import pytest
from sketchbatch_client.evaluation.stats.metrics import confuse, measure, measure_each, reasons
from sklearn import metrics as reference


def cases():
    """Yield arrays of true and predicted classes.

    The classes have equal or unequal numbers of rows, or some classes do not occur. The predictions are mostly correct,
    all correct, all wrong, or all the same class.
    """
    rng = np.random.default_rng(3)
    for classes in (2, 3, 10):
        true = rng.integers(0, classes, 500)
        yield pytest.param(true, np.where(rng.random(500) < 0.7, true, rng.integers(0, classes, 500)), id=f"{classes}")
    yield pytest.param(rng.choice(3, 400, p=[0.02, 0.1, 0.88]), rng.integers(0, 3, 400), id="uneven")
    yield pytest.param(np.array([0, 0, 1, 1, 3]), np.array([0, 1, 1, 2, 1]), id="never true or never predicted")
    yield pytest.param(np.arange(30) % 3, np.arange(30) % 3, id="all correct")
    yield pytest.param(np.arange(30) % 3, (np.arange(30) + 1) % 3, id="all wrong")
    yield pytest.param(np.arange(30) % 3, np.zeros(30, int), id="one prediction")
    yield pytest.param(np.zeros(20, int), np.zeros(20, int), id="one class, all correct")
    yield pytest.param(np.zeros(20, int), np.arange(20) % 4, id="one class, some correct")
    yield pytest.param(np.zeros(1, int), np.ones(1, int), id="one drawing, wrong")


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@pytest.mark.parametrize(("true", "predicted"), list(cases()))
def test_the_five_metrics_agree_with_scikit_learn(true, predicted):
    """The five metrics agree with scikit-learn, for the classes that have drawings; else they are not defined.

    The specificity of a class is the share of the rows of other classes that are not predicted as this class.
    """
    confusion = confuse(true, predicted, 10)
    ours, classes = measure(confusion), np.unique(true)
    specificity = [reference.recall_score(true != each, predicted != each, zero_division=math.nan) for each in classes]
    assert ours.accuracy == pytest.approx(reference.accuracy_score(true, predicted))
    assert ours.balanced_accuracy == pytest.approx(reference.balanced_accuracy_score(true, predicted))
    assert ours.specificity == pytest.approx(np.mean(specificity), nan_ok=True)
    if min(len(classes), len(np.unique(predicted))) > 1:
        assert ours.matthews_corrcoef == pytest.approx(reference.matthews_corrcoef(true, predicted))
    assert ours.jaccard == pytest.approx(reference.jaccard_score(true, predicted, labels=classes, average="macro"))
    assert set(reasons(confusion)) == set(vars_of(ours)) - set(ours.defined)


def vars_of(metrics):
    """Return the names of all metrics."""
    return metrics.__slots__


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        ([0, 0], [0, 0], {"specificity", "matthews_corrcoef"}),
        ([0, 0], [0, 1], {"specificity", "matthews_corrcoef"}),
        ([0, 1], [2, 2], {"matthews_corrcoef"}),
        ([0, 1], [1, 0], set()),
    ],
)
def test_a_metric_without_a_denominator_has_a_reason_instead_of_a_value(true, predicted, expected):
    """With drawings of one class only, or with one prediction only, a metric has no value, but a reason."""
    confusion = confuse(np.array(true), np.array(predicted), 3)
    assert set(reasons(confusion)) == expected
    assert {name for name in vars_of(measure(confusion)) if math.isnan(getattr(measure(confusion), name))} == expected


@pytest.mark.parametrize(("true", "predicted"), list(cases()))
def test_the_figures_of_each_class_agree_with_scikit_learn(true, predicted):
    """Precision, recall and rows of each class agree with scikit-learn; an undefined one is None with a reason."""
    ours = measure_each(confuse(true, predicted, 10))
    precision, recall, _, rows = reference.precision_recall_fscore_support(
        true, predicted, labels=range(10), zero_division=math.nan
    )
    for name, expected in (("precision", precision), ("recall", recall)):
        assert [math.nan if own[name] is None else own[name] for own in ours] == pytest.approx(expected, nan_ok=True)
        assert [own[name] is None for own in ours] == [name in own["not_defined"] for own in ours]
    assert [own["rows"] for own in ours] == rows.tolist()


def test_rows_of_the_confusion_matrix_are_true_classes():
    """Rows of the confusion matrix are true classes, and its columns are predicted classes."""
    confusion = confuse(np.array([0, 0, 2]), np.array([0, 1, 0]), 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
