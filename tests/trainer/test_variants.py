"""Test the variants float16 and int8 of a model.

A variant has the signature and the metadata of the float32 model, and metrics of its own. A variant whose accuracy is
too low is refused.
"""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx_models import LABELS, write_model
from sketchbatch_service.engines.cpu import Engine, open_session
from sketchbatch_service.models.artifact import read_artifact
from sketchbatch_trainer.errors import ExportRefused, RunIncomplete
from sketchbatch_trainer.export.held_out import HeldOut
from sketchbatch_trainer.export.variants import compare, export_variant, lost_limit
from sketchbatch_trainer.run import Run, Variant
from sketchbatch_trainer.synthetic import draw
from typer.testing import CliRunner

pytestmark = [
    pytest.mark.timeout(300),  # TensorFlow itself takes 10 s to import on two cores
    pytest.mark.filterwarnings("ignore"),  # warnings of TensorFlow and Keras
]

SMALLER = (Variant.FLOAT16, Variant.INT8)


def sketches(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Return synthetic sketches in Google's layout, by label."""
    return {label: draw(label, rows, seed).reshape(rows, 784) for label in ("bear", "cat", "dog")}


def fitted(labels):
    """Return a small residual CNN with the kinds of layers of the recipe `compact`, trained for some seconds."""
    import keras
    from keras import layers
    from sketchbatch_trainer.train.networks import StaticFlatten

    keras.utils.set_random_seed(0)
    bitmaps = keras.Input((28, 28), dtype="uint8", name="bitmaps")
    x = layers.Reshape((28, 28, 1))(layers.Rescaling(1 / 255)(bitmaps))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.5)(x))
    inner = layers.BatchNormalization(momentum=0.5)(layers.Conv2D(16, 3, padding="same", use_bias=False)(x))
    x = layers.MaxPooling2D(2)(layers.ReLU()(layers.Add()([x, inner])))
    x = layers.Dense(3, activation="softmax", name="scores")(StaticFlatten()(x))
    model = keras.Model(bitmaps, x)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)  # XLA compilation takes longer
    by_label = sketches(seed=0, rows=200)
    model.fit(np.concatenate([by_label[label] for label in labels]).reshape(-1, 28, 28), np.repeat([0, 1, 2], 200),
              epochs=4, verbose=0)  # fmt: skip
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Return a run whose model the command `export` has exported in every variant."""
    from sketchbatch_trainer.cli import app

    run = Run(tmp_path_factory.mktemp("run"))
    run.test.mkdir()
    for label, bitmaps in sketches(seed=1, rows=100).items():
        np.save(run.test / f"{label}.npy", bitmaps)
    np.save(run.calibration, np.concatenate(list(sketches(seed=2, rows=40).values())))
    run.write_config({"name": "tiny", "labels": ["bear", "cat", "dog"], "data_digest": "00", "source": "synthetic"})
    fitted(["bear", "cat", "dog"]).save(run.keras)
    words = ["export", "--run", str(run.folder), "--licence", "CC0", "--variant", "int8", "--variant", "float16"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "int8 accuracy" in result.output
    assert "float16 accuracy" in result.output
    return run


@pytest.fixture
def tiny_run(tmp_path) -> Run:
    """Return an exported run of a model whose model calls take microseconds; its held-out drawings are random noise."""
    run = Run(tmp_path)
    write_model(run.onnx)
    run.test.mkdir()
    for seed, label in enumerate(LABELS):
        np.save(run.test / f"{label}.npy", np.random.default_rng(seed).integers(0, 256, (20, 784), np.uint8))
    return run


def scores_of(run: Run, variant: Variant) -> np.ndarray:
    """Score the held-out drawings of bear, cat and dog, in this order, with the engine of the service."""
    session = open_session(run.exported(variant))
    bitmaps = np.concatenate([np.load(run.test / f"{label}.npy") for label in ("bear", "cat", "dog")])
    return Engine(session, classes=3, max_batch_rows=512).predict(bitmaps.reshape(-1, 28, 28))


@pytest.mark.parametrize("variant", SMALLER)
def test_a_variant_has_the_signature_and_metadata_of_float32(run, variant):
    """A variant has the labels, the licence and all other metadata of the float32 model, except for the metrics.

    The service can load the variant, and the scores of a row sum to 1.
    """
    artifacts = {
        each: read_artifact(run.exported(each), open_session(run.exported(each))) for each in (Variant.FLOAT32, variant)
    }
    expected = artifacts[Variant.FLOAT32]
    assert (expected.labels, expected.licence) == (("bear", "cat", "dog"), "CC0")
    assert replace(artifacts[variant], metrics={}, digest="") == replace(expected, metrics={}, digest="")
    assert [artifacts[each].metrics["variant"] for each in artifacts] == ["float32", variant]
    scores = scores_of(run, variant)
    assert scores.dtype == np.float32
    assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert np.unique(scores).size > 256  # the scores themselves are not int8, which would give at most 256 values


def metrics_of(run: Run, variant: Variant) -> dict:
    """Return the metrics that the model file of a variant contains."""
    properties = {each.key: each.value for each in onnx.load(run.exported(variant)).metadata_props}
    return json.loads(properties["sketchbatch.metrics"])


def test_the_int8_file_contains_its_comparison_with_float32(run):
    """The metrics in the int8 file compare the int8 model with the float32 model on the held-out drawings.

    They contain both accuracies, the share of equal predictions, and the differences of the scores.
    """
    expected, scores = scores_of(run, Variant.FLOAT32), scores_of(run, Variant.INT8)
    true = np.repeat([0, 1, 2], 100)
    metrics = metrics_of(run, Variant.INT8)
    assert metrics["rows"] == 300
    assert metrics["accuracy"] == pytest.approx((scores.argmax(axis=1) == true).mean())
    assert metrics["float32_accuracy"] == pytest.approx((expected.argmax(axis=1) == true).mean())
    assert metrics["agreement"] == pytest.approx((scores.argmax(axis=1) == expected.argmax(axis=1)).mean())
    assert metrics["parity_max_difference"] == pytest.approx(np.abs(scores - expected).max(), abs=1e-6)
    assert metrics["parity_mean_difference"] == pytest.approx(np.abs(scores - expected).mean(), abs=1e-6)
    assert set(metrics) >= {"balanced_accuracy", "specificity", "matthews_corrcoef", "jaccard"}
    assert metrics["float32_accuracy"] > 0.8  # a model that is wrong anyway would not show the effect of rounding


def test_float16_metrics_include_the_rounding_of_cuda(run):
    """The float16 metrics include CUDA's rounding between nodes, which the CPU does not do."""
    metrics = metrics_of(run, Variant.FLOAT16)
    here = np.abs(scores_of(run, Variant.FLOAT16) - scores_of(run, Variant.FLOAT32)).max()
    assert 0 < here < 1e-2
    assert 0 < metrics["parity_max_difference"] < 1e-2
    assert metrics["parity_max_difference"] != pytest.approx(here, rel=1e-3)
    assert metrics["accuracy"] == pytest.approx(metrics_of(run, Variant.FLOAT32)["accuracy"], abs=0.01)


def test_variants_store_their_weights_in_fewer_bits(run):
    """Each variant stores every weight matrix in its own number format, float16 or int8, in a valid ONNX file."""
    widths = {Variant.FLOAT32: onnx.TensorProto.FLOAT, Variant.FLOAT16: onnx.TensorProto.FLOAT16,
              Variant.INT8: onnx.TensorProto.INT8}  # fmt: skip
    for variant, width in widths.items():
        graph = onnx.load(run.exported(variant))
        onnx.checker.check_model(graph)
        matrices = [each.data_type for each in graph.graph.initializer if len(each.dims) > 1 and max(each.dims) > 3]
        assert matrices == [width] * 3
        assert {each.domain for each in graph.opset_import} <= {"", "ai.onnx.ml"}  # tf2onnx adds ai.onnx.ml


def test_int8_with_a_lower_accuracy_is_refused(run):
    """If the int8 model has a much lower accuracy than the float32 model, its export is refused.

    The int8 file of an earlier export stays, because a service may load it.
    """
    calibration, before = run.calibration.read_bytes(), run.exported(Variant.INT8).read_bytes()
    np.save(run.calibration, np.zeros((8, 784), np.uint8))
    with pytest.raises(ExportRefused, match=r"export refused: int8 accuracy .* drawings lost, limit 5"):
        export_variant(run, Variant.INT8)
    assert run.exported(Variant.INT8).read_bytes() == before
    run.calibration.write_bytes(calibration)
    export_variant(run, Variant.INT8)


def test_float16_that_overflows_is_refused(tiny_run):
    """The export as float16 is refused if a value of the model is above 65,504, because the scores are then NaN."""
    graph = onnx.load(tiny_run.onnx)
    weights = next(each for each in graph.graph.initializer if each.name == "weights")
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * 1e5, "weights"))
    onnx.save(graph, tiny_run.onnx)
    with pytest.raises(ExportRefused, match="nan at most"):
        export_variant(tiny_run, Variant.FLOAT16)
    assert not tiny_run.exported(Variant.FLOAT16).exists()


def test_float16_scores_that_differ_too_much_are_refused():
    """Float16 scores that differ too much are refused even if all predicted labels are equal."""
    held_out = HeldOut(np.zeros((2, 28, 28), np.uint8), np.array([0, 1]), 2)
    expected = np.array([[0.8, 0.2], [0.3, 0.7]], np.float32)
    moved = np.array([[0.8, 0.2], [0.32, 0.68]], np.float32)
    with pytest.raises(ExportRefused, match=r"limit 1e-02"):
        compare(Variant.FLOAT16, held_out, expected, moved)
    assert compare(Variant.INT8, held_out, expected, moved).agreement == 1


@pytest.mark.parametrize(("rows", "limit"), [(100, 5), (1_000, 5), (10_000, 50)])
def test_a_variant_may_lose_half_a_point_or_five_drawings(rows, limit):
    """A variant may have fewer correct predictions than float32: by 0.5 % of the rows or by 5, whichever is more.

    The limit applies to the difference of the two counts. A drawing that only the variant predicts correctly thus
    compensates for a drawing that only float32 predicts correctly.
    """
    held_out = HeldOut(np.zeros((rows, 28, 28), np.uint8), np.zeros(rows, np.int64), 2)
    right, wrong = np.array([0.6, 0.4], np.float32), np.array([0.4, 0.6], np.float32)
    expected = np.tile(right, (rows, 1))
    assert lost_limit(rows) == limit
    scores = expected.copy()
    scores[:limit] = wrong
    assert compare(Variant.INT8, held_out, expected, scores).agreement == pytest.approx(1 - limit / rows)
    scores[limit] = wrong
    with pytest.raises(ExportRefused, match=f"{limit + 1} drawings lost, limit {limit}"):
        compare(Variant.INT8, held_out, expected, scores)
    expected[-1] = wrong
    compare(Variant.INT8, held_out, expected, scores)


def test_a_variant_without_its_inputs_names_the_missing_step(tmp_path, tiny_run):
    """If the float32 file or the calibration drawings are missing, the error names the command to run first."""
    with pytest.raises(RunIncomplete, match="first run: sketchbatch-train export"):
        export_variant(Run(tmp_path / "nothing"), Variant.FLOAT16)
    with pytest.raises(RunIncomplete, match=r"calibration\.npy does not exist yet; first run: sketchbatch-train train"):
        export_variant(tiny_run, Variant.INT8)


def test_variants_of_an_earlier_training_are_passed_over(run):
    """The variants of an earlier training stay in the run, because a service may load them, but no step uses them."""
    assert all(map(run.has_export, Variant))
    run.write_config(run.read_config() | {"data_digest": "01"})
    assert not any(map(run.has_export, Variant))
    assert all(run.exported(variant).exists() for variant in Variant)
    with pytest.raises(RunIncomplete, match=r"model\.onnx is of an earlier training or export; first run: .* export"):
        export_variant(run, Variant.INT8)
