"""Test the figures for the quality and the cost of a model: intervals, calibration, FLOPs and speed."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sketchbatch_trainer.report import cost
from sketchbatch_trainer.report.quality import evaluate_scores
from sklearn.metrics import accuracy_score, balanced_accuracy_score

LABELS = ("ant", "bee", "cow", "doe")


def predictions(rows: int, accuracy: float, confidence: float, classes: int = 3):
    """Return random scores and true classes of `rows` drawings.

    The share `accuracy` of the predictions is correct, and the score of each predicted class is `confidence`.
    """
    random = np.random.default_rng(1)
    class_index = random.integers(0, classes, rows)
    predicted = np.where(random.random(rows) < accuracy, class_index, (class_index + 1) % classes)
    scores = np.full((rows, classes), (1 - confidence) / (classes - 1), np.float32)
    scores[np.arange(rows), predicted] = confidence
    return scores, class_index


def test_intervals_shrink_with_more_drawings():
    """With four times as many drawings, the interval of the accuracy is about half as wide."""
    widths = []
    for rows in (500, 2000):
        scores, class_index = predictions(rows, accuracy=0.8, confidence=0.8)
        measured = evaluate_scores(scores, class_index, LABELS[:3]).figures.measured
        accuracy = measured["accuracy"]
        assert accuracy.value == accuracy_score(class_index, scores.argmax(axis=1))
        balanced = balanced_accuracy_score(class_index, scores.argmax(axis=1))
        assert measured["balanced_accuracy"].value == pytest.approx(balanced)
        assert accuracy.low < accuracy.value < accuracy.high
        widths.append(accuracy.high - accuracy.low)
    expected = 2 * 1.96 * np.sqrt(0.8 * 0.2 / 2000)  # the width of the normal approximation
    assert widths[1] == pytest.approx(expected, rel=0.15)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize(("accuracy", "confidence", "error"), [(0.8, 0.8, 0.0), (0.6, 0.9, 0.3), (0.9, 0.5, 0.4)])
def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy(accuracy, confidence, error):
    """The calibration error is the absolute difference between the mean score of the predictions and the accuracy."""
    calibration = evaluate_scores(*predictions(20_000, accuracy, confidence), LABELS[:3]).calibration
    assert calibration.rows.sum() == 20_000
    assert calibration.expected_error == pytest.approx(error, abs=0.01)


def test_top_3_counts_the_three_highest_scores():
    """`top_3` is the share of drawings whose true label has one of the three highest scores.

    With three classes, the share is always 1. In the example with four classes and four drawings, the true label of one
    drawing has the lowest score, so the share is 0.75.
    """
    scores, class_index = predictions(100, accuracy=0.5, confidence=0.7)
    assert evaluate_scores(scores, class_index, LABELS[:3]).top_3 == 1
    ranked = np.tile(np.array([0.4, 0.3, 0.2, 0.1], np.float32), (4, 1))
    assert evaluate_scores(ranked, np.arange(4), LABELS).top_3 == 0.75


def graph(nodes, weights, out):
    """Return an ONNX model with the given nodes, the input x of shape (N, 2, 8, 8), and the output y."""
    values = [helper.make_tensor(n, TensorProto.FLOAT, w.shape, w.ravel().tolist()) for n, w in weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, out)
    made = helper.make_graph(nodes, "g", [x], [y], values)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])


def test_flops_and_parameters_are_counted_from_the_graph():
    """The FLOPs per row and the parameters are counted from the nodes of the graph.

    A multiplication by a weight and the addition of the product count as two FLOPs.
    """
    conv = helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2])
    flat = helper.make_node("Flatten", ["c"], ["f"])
    dense = helper.make_node("MatMul", ["f", "m"], ["y"])
    model = graph([conv, flat, dense], {"w": np.ones((5, 2, 3, 3)), "m": np.ones((80, 7))}, ["N", 7])
    onnx.checker.check_model(model)
    assert cost.flops(model) == 2 * (5 * 2 * 9 * 16 + 80 * 7)
    assert cost.parameters(model) == 5 * 2 * 9 + 80 * 7


def test_rows_per_second_are_measured_for_each_model(root):
    """`rows_per_s` measures the speed of each model file, in rows per second."""
    path = root / "models" / "bear-cat-dog" / "2" / "model.onnx"
    speeds = cost.rows_per_s([path, path], np.random.default_rng(0).integers(0, 256, (10, 28, 28), np.uint8))
    assert len(speeds) == 2
    assert min(speeds) > 10
