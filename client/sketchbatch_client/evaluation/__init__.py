"""Measure how good served models are on labelled drawings.

For example:

    from sketchbatch_client import Client
    from sketchbatch_client.evaluation import evaluate, open_labelled
    with Client("localhost:50051") as client:
        model = client.model()
        print(evaluate(client, model, open_labelled(folder, model.labels)).figures)
"""

from .evaluating import Comparison, Evaluation, common_labels, compare, evaluate
from .evaluation_json import as_json, write_json
from .evaluation_page import write_page
from .evaluation_plot import write_plot
from .labelled import LabelledDrawings, open_labelled
from .predictions import ServedModel

__all__ = [
    "Comparison",
    "Evaluation",
    "LabelledDrawings",
    "ServedModel",
    "as_json",
    "common_labels",
    "compare",
    "evaluate",
    "open_labelled",
    "write_json",
    "write_page",
    "write_plot",
]
