"""Test `sketchbatch-train adapt` with Keras files and SavedModel folders.

TensorFlow's own scores are the reference. Importing TensorFlow takes seconds, so all models are made once.
"""

import json
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
from adapting import adapt as adapt_with_labels
from adapting import properties, run_adapt, served_scores
from sketchbatch_trainer.errors import AdaptRefused
from sketchbatch_trainer.synthetic import draw

pytestmark = [
    pytest.mark.timeout(300),  # TensorFlow itself takes 10 s to import on two cores
    pytest.mark.filterwarnings("ignore"),  # warnings of TensorFlow and Keras
]

BITMAPS = np.concatenate([draw(label, 6, seed=3) for label in ("bear", "cat", "dog")])


def adapt(source: Path, *flags: object) -> Path:
    """Adapt `source` with labels for which there are no sketches, because trying the scalings takes a second."""
    return adapt_with_labels(source, *flags, labels="a,b,c")


class Models:
    """Writes tiny models into one folder, each on first use, with the scores of the original for `BITMAPS`."""

    def __init__(self, folder: Path) -> None:
        import keras

        self.folder = folder
        self.keras = keras
        self.layers = keras.layers
        keras.utils.set_random_seed(0)

    def network(self, *first, shape=(28, 28, 1), last="softmax", **options):
        """Return a network with the given first layers, and a dense layer at its end."""
        layers = [self.keras.Input(shape, **options), *first, self.layers.Flatten()]
        return self.keras.Sequential([*layers, self.layers.Dense(3, activation=last)])

    def convolutional(self):
        """Return a network with scaling, batch normalisation and dropout inside; its statistics are not trivial."""
        layers = self.layers
        first = [layers.Rescaling(1 / 255), layers.Conv2D(4, 3, strides=2), layers.BatchNormalization(), layers.ReLU()]
        model = self.network(*first, layers.Dropout(0.5))
        for weight in model.layers[2].weights:
            weight.assign(np.linspace(0.5, 1.5, 4))
        return model

    def save(self, model, name: str) -> Path:
        """Save a model as a .keras or .h5 file."""
        model.save(self.folder / name)
        return self.folder / name


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    """Return the writer of models."""
    return Models(tmp_path_factory.mktemp("keras"))


def scores(model, bitmaps=BITMAPS, scale=1.0) -> np.ndarray:
    """Return the scores of a Keras model in inference mode, for pixels multiplied by `scale`."""
    shape = model.inputs[0].shape[1:]
    return np.asarray(model((bitmaps * np.float32(scale)).reshape(-1, *shape), training=False))


@pytest.mark.parametrize("name", ["whole.keras", "whole.h5"])
def test_a_keras_file_with_scaling_batch_normalisation_and_dropout_inside(models, name):
    """One command adapts the file; the served scores are those of Keras for pixels of 0 to 255."""
    model = models.convolutional()
    output = adapt(models.save(model, name))
    np.testing.assert_allclose(served_scores(output, BITMAPS), scores(model), atol=1e-5)
    assert json.loads(properties(output)["sketchbatch.config"])["adapted_from"] == "Keras model"
    operators = {node.op_type for node in onnx.load(output).graph.node}
    assert operators.isdisjoint({"Shape", "Gather", "Slice", "Concat"})  # of Flatten: they would run on the CPU


def test_a_file_of_keras_2(models):
    """Keras 2 describes the network in an .h5 file in other words than Keras 3."""
    model = models.network(models.layers.Conv2D(2, 3))
    path = models.save(model, "keras2.h5")
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            layer["config"] |= {"dtype": "float32"}
            if layer["class_name"] == "InputLayer":
                layer["config"] = {"batch_input_shape": [None, 28, 28, 1], "dtype": "float32", "name": "input_1"}
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.15.0"
    np.testing.assert_allclose(served_scores(adapt(path), BITMAPS), scores(model, scale=1 / 255), atol=1e-5)


def test_a_normalization_layer_whose_mean_is_a_constant(models):
    """TensorFlow captures such constants, and tf2onnx makes one more input of each: they are stored in the graph."""
    model = models.network(models.layers.Normalization(axis=None, mean=33.3, variance=6000.0), last=None)
    output = adapt(models.save(model, "normalized.keras"), "--softmax", "no")
    np.testing.assert_allclose(served_scores(output, BITMAPS), scores(model), atol=1e-5)


def test_folders_of_keras_export_and_of_tensorflow(models):
    """`model.export(FOLDER)` and `tf.saved_model.save` write a SavedModel; both are adapted."""
    import tensorflow as tf

    model = models.convolutional()
    model.export(models.folder / "exported", verbose=False)
    tf.saved_model.save(model, str(models.folder / "saved"))
    for name in ("exported", "saved"):
        output = adapt(models.folder / name)
        np.testing.assert_allclose(served_scores(output, BITMAPS), scores(model), atol=1e-5)


def test_a_saved_model_with_one_signature_of_another_name(models):
    """A function of TensorFlow without Keras, with uint8 input, is adapted by its only signature."""
    import tensorflow as tf

    weights = tf.constant(np.random.default_rng(0).normal(size=(784, 3)).astype(np.float32) / 100)
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None, 28, 28], tf.uint8, name="image")])
    def predict(image):
        return {"shares": tf.nn.softmax(tf.reshape(tf.cast(image, tf.float32), [-1, 784]) @ weights)}

    module.predict = predict
    tf.saved_model.save(module, str(models.folder / "predicting"), signatures={"predict": predict})
    output = adapt(models.folder / "predicting")
    np.testing.assert_allclose(served_scores(output, BITMAPS), predict(BITMAPS)["shares"], atol=1e-5)


def test_a_fixed_batch_is_opened(models):
    """A model for 4 rows per call is adapted to any number of rows, as a file and as a folder."""
    import tensorflow as tf

    model = models.network(models.layers.Reshape((784,)), shape=None, batch_shape=(4, 28, 28, 1))
    tf.saved_model.save(model, str(models.folder / "four"))
    expected = np.concatenate(
        [scores(model, BITMAPS[at : at + 2].repeat(2, 0), 1 / 255)[::2] for at in range(0, 18, 2)]
    )
    for source in (models.save(model, "four.keras"), models.folder / "four"):
        np.testing.assert_allclose(served_scores(adapt(source), BITMAPS), expected, atol=1e-5)


def test_a_batch_that_cannot_be_opened(models):
    """A stateful layer remembers each row of a call of fixed size."""
    layers = models.layers
    model = models.network(layers.LSTM(2, stateful=True), shape=None, batch_shape=(2, 28, 28))
    refuses(models.save(model, "stateful.keras"), r"any number of rows: .* or keras\.Input without batch_size")


def test_a_model_of_a_dictionary_with_two_outputs(models):
    """The number of labels, or --scores-output, chooses the output with the scores."""
    image = models.keras.Input((28, 28), name="image")
    flat = models.layers.Flatten()(image)
    heads = {name: models.layers.Dense(3, activation="softmax", name=name)(flat) for name in ("animal", "mood")}
    model = models.keras.Model({"image": image}, heads)
    path = models.save(model, "heads.keras")
    with pytest.raises(AdaptRefused, match=r"several outputs .*animal, mood; name one with --scores-output"):
        adapt(path)
    output = adapt(path, "--scores-output", "mood")
    expected = model({"image": BITMAPS / np.float32(255)})["mood"]
    np.testing.assert_allclose(served_scores(output, BITMAPS), expected, atol=1e-5)


def test_a_run_of_this_project(models):
    """The folder of a run and its model.keras are adapted: their custom layer is registered."""
    from sketchbatch_trainer.train.networks import StaticFlatten

    bitmaps = models.keras.Input((28, 28), dtype="uint8", name="bitmaps")
    x = StaticFlatten()(models.layers.Rescaling(1 / 255)(bitmaps))
    model = models.keras.Model(bitmaps, models.layers.Dense(3, activation="softmax", name="scores")(x))
    (models.folder / "run").mkdir()
    path = models.save(model, "run/model.keras")
    for source in (path, path.parent):
        np.testing.assert_allclose(served_scores(adapt(source), BITMAPS), scores(model), atol=1e-5)


def test_refusals_state_what_to_do(models):
    """A model that cannot be adapted is refused in one line, and no file is written."""
    keras, layers = models.keras, models.layers

    @keras.saving.register_keras_serializable("somewhere")
    class Doubled(layers.Layer):
        def call(self, x):
            return x * 2

    image, extra = keras.Input((28, 28), name="image"), keras.Input((3,), name="country")
    joined = layers.Concatenate()([layers.Flatten()(image), extra])
    cases = {
        "two.keras": (keras.Model([image, extra], layers.Dense(3)(joined)), "one input, .*got country, image: build"),
        "custom.keras": (models.network(Doubled()), r"needs Doubled, .* model\.export\(FOLDER\)"),
        "custom.h5": (models.network(Doubled()), r"needs Doubled, .* model\.export\(FOLDER\)"),
        "lambda.keras": (models.network(layers.Lambda(lambda x: x / 255)), "Lambda layer, .*use a Rescaling layer, or"),
        "unbuilt.keras": (keras.Sequential([layers.Flatten(), layers.Dense(3)]), r"no input shape: add keras\.Input"),
    }
    for name, (model, _) in cases.items():
        models.save(model, name)
    keras.saving.get_custom_objects().pop("somewhere>Doubled")  # as in a process without the program that defines it
    for name, (_, reason) in cases.items():
        refuses(models.folder / name, reason)


def test_files_that_are_no_whole_model_are_refused(models):
    """Weights without a network, a damaged file and other folders are named, with the remedy."""
    model = models.network()
    model.save_weights(models.folder / "only.weights.h5")
    whole = models.save(model, "right.keras").read_bytes()
    (models.folder / "cut.keras").write_bytes(whole[: len(whole) // 2])
    (models.folder / "cut.onnx").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (models.folder / "page.keras").write_bytes(b"<!DOCTYPE html><html></html>")
    (models.folder / "empty").mkdir()
    refuses(models.folder / "only.weights.h5", r"weights without the network: .*model\.load_weights\(FILE\)")
    refuses(models.folder / "cut.keras", "damaged or incomplete")
    refuses(models.folder / "cut.onnx", "damaged or incomplete")
    refuses(models.folder / "page.keras", "expected a model, got a web page")
    refuses(models.folder / "empty", r"must be a SavedModel folder, with a saved_model\.pb, or a run")


def test_a_wrong_suffix_does_not_matter(models):
    """The first bytes tell a Keras file, as in the message of the service, which proposes the command."""
    model = models.network(models.layers.Rescaling(1 / 255))
    for name in ("a.keras", "b.h5"):
        source = models.save(model, name)
        renamed = source.rename(source.with_suffix(".onnx"))
        np.testing.assert_allclose(served_scores(adapt(renamed), BITMAPS), scores(model), atol=1e-5)


def test_saved_models_that_cannot_be_adapted(models):
    """A folder without a signature, and one with a layer in training mode, are refused with the remedy."""
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(models.folder / "unsigned"))
    refuses(models.folder / "unsigned", r"signature serving_default, got no signature: .*signatures=")

    model = models.network(models.layers.BatchNormalization())
    signature = [tf.TensorSpec([None, 28, 28, 1], tf.float32)]
    serve = tf.function(lambda image: model(image, training=True), input_signature=signature)
    tf.saved_model.save(model, str(models.folder / "training"), signatures={"serving_default": serve})
    refuses(models.folder / "training", r"scores of a row depend on the other rows.*training=False in Keras")


def test_an_operation_without_onnx_form_is_named(models):
    """tf2onnx cannot convert every operation of TensorFlow."""
    import tensorflow as tf

    serve = tf.function(
        lambda image: tf.math.betainc(image, image, image)[:, :3],
        input_signature=[tf.TensorSpec([None, 784], tf.float32)],
    )
    tf.saved_model.save(tf.Module(), str(models.folder / "special"), signatures={"serving_default": serve})
    refuses(models.folder / "special", "tf2onnx cannot convert the model to ONNX: .*Betainc")


def test_the_default_scaling_of_a_saved_file_reaches_the_report(models):
    """A network with a Rescaling layer inside receives its pixels as they are, and the report says why."""
    path = models.save(models.convolutional(), "reported.keras")
    report = run_adapt(path, "--labels", "a,b,c", "--output", models.folder / "reported.onnx")
    assert "0..255 (the model scales pixels itself)" in report
    assert "not measured: give drawings of the labels" in report


def refuses(source: Path, reason: str) -> None:
    """Check that the command refuses `source` in one line that names it, and writes nothing."""
    with pytest.raises(AdaptRefused, match=reason) as caught:
        adapt(source)
    assert "\n" not in str(caught.value)
    assert not (source.parent / "out" / f"{source.stem}.onnx").exists()
