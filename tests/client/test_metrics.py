"""Test that the five metrics, and the metrics of each class, are equal to those of scikit-learn."""

import numpy as np
import pytest
from sketchbatch_client.evaluation.stats.metrics import confuse, measure, measure_each
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


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize(("true", "predicted"), list(cases()))
def test_the_five_metrics_agree_with_scikit_learn(true, predicted):
    """The five metrics agree with scikit-learn, for the classes that occur among the true or the predicted classes.

    The specificity of a class is the share of the rows of other classes that are not predicted as this class.
    """
    ours = measure(confuse(true, predicted, 10))
    occurring = np.union1d(true, predicted)
    specificity = [reference.recall_score(true != label, predicted != label, zero_division=0.0) for label in occurring]
    assert ours.accuracy == pytest.approx(reference.accuracy_score(true, predicted))
    assert ours.balanced_accuracy == pytest.approx(reference.balanced_accuracy_score(true, predicted))
    assert ours.specificity == pytest.approx(np.mean(specificity))
    assert ours.matthews_corrcoef == pytest.approx(reference.matthews_corrcoef(true, predicted))
    assert ours.jaccard == pytest.approx(reference.jaccard_score(true, predicted, average="macro"))


@pytest.mark.parametrize(("true", "predicted"), list(cases()))
def test_the_figures_of_each_class_agree_with_scikit_learn(true, predicted):
    """Precision, recall and rows of each class agree with scikit-learn; an undefined precision or recall is 0."""
    ours = measure_each(confuse(true, predicted, 10))
    precision, recall, _, rows = reference.precision_recall_fscore_support(
        true, predicted, labels=range(10), zero_division=0.0
    )
    assert [own["precision"] for own in ours] == pytest.approx(precision)
    assert [own["recall"] for own in ours] == pytest.approx(recall)
    assert [own["rows"] for own in ours] == rows.tolist()


def test_rows_of_the_confusion_matrix_are_true_classes():
    """Rows of the confusion matrix are true classes, and its columns are predicted classes."""
    confusion = confuse(np.array([0, 0, 2]), np.array([0, 1, 0]), 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
