"""Define the named recipes, with the reason for each value. docs/training.md has the results of each recipe."""

import math
from dataclasses import dataclass, replace
from typing import Any

from ..run import value_differences


@dataclass(frozen=True, slots=True, kw_only=True)
class ArticleNetwork:
    """Two 3x3 convolutions and a max-pool, then dense layers with L2, batch normalisation and dropout."""

    conv_filters: tuple[int, int]
    dense_units: tuple[int, int]
    l2: float
    """L2 penalty on the weights of the dense layers."""
    dropout: tuple[float, float]
    """Share of units dropped after each dense layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualNetwork:
    """A small residual CNN: a strided stem, then stages that each halve the side and add filters."""

    stem_filters: int
    stem_strides: int
    """2 = the stem reduces 28x28 to 14x14; 1 = the stem keeps 28x28, at four times the cost."""
    stage_filters: tuple[int, ...]
    """Filters of each stage. A stage is a strided 3x3 convolution and a residual block of two convolutions."""
    head_units: int
    """Units of the dense layer on the flattened output of the last stage."""
    dropout: float
    """Share of units dropped before each of the last two layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNetwork:
    """The layers of a model file that another tool made, except its last layer, and a new last layer."""

    file_digest: str
    """SHA-256 of the model file."""
    dropout: float
    """Share of features dropped before the last layer."""


Network = ArticleNetwork | ResidualNetwork | GraphNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Limits of the uniformly random transformations of each training drawing around its centre."""

    flips: bool
    """True = mirror left and right with probability one half."""
    rotate_rad: float
    scale: float
    """Limit of the size: factors from exp(-scale) to exp(scale)."""
    stretch: float
    """Limit of the height relative to the width: factors from exp(-stretch) to exp(stretch)."""
    shear: float
    """Largest horizontal shift in pixels per pixel of height."""
    shift_px: float
    """Largest shift along each axis, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to build and train a network."""

    name: str
    network: Network
    augmentation: Augmentation | None = None
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    teacher_share: float = 0.0
    """Share of each label that the teachers' scores replace, if there are teachers (arXiv 1503.02531)."""
    class_balance: float
    """Exponent b of the class weight, rows ** -b. 0 = all drawings have equal weight; 1 = all classes have."""
    learning_rate: float
    """Highest learning rate of AdamW."""
    is_cosine: bool = False
    """True = the learning rate warms up and falls to zero along a cosine; False = it is constant."""
    weight_decay: float = 0.0
    """Weight decay of AdamW, except for biases and batch normalisation."""
    average_decay: float = 0.0
    """Decay of the moving average of the weights, which becomes the model; 0 = the last weights become the model."""
    batch_rows: int
    max_epochs: int
    patience: int | None
    """Epochs without a lower validation loss before training stops with the best weights; None = run all epochs."""
    min_epoch_steps: int = 1
    """Steps of an epoch below which `fit_rows` makes the batches smaller, down to about 32 rows."""
    min_steps: int = 0
    """Steps of a training below which `fit_rows` raises `max_epochs`."""
    needs_start: bool = False
    """True = the recipe is useless with random initial weights."""


ARTICLE = Recipe(
    name="article",
    network=ArticleNetwork(
        conv_filters=(32, 64),  # filters as published: 24 MFLOP per row, nearly all in the second convolution
        dense_units=(128, 64),  # 128 units on 9,216 features hold nearly all of the 1.2 million parameters
        l2=1e-3,
        dropout=(0.5, 0.5),
    ),
    class_balance=1.0,  # the article's classes differ in size: 1,000 bears, 4,000 cats and 4,000 dogs
    learning_rate=1e-3,  # Adam's default rate
    batch_rows=128,
    max_epochs=12,
    patience=3,
)
"""The baseline: the CNN of the article "Animal Sketches" (Andrew Bergman, 2019), with which this project began."""

_MIN_BATCH_ROWS = 32  # batch normalisation needs statistics of more than a few rows

_LIGHT = Augmentation(
    flips=True,  # animals face left or right
    rotate_rad=0.14,  # 0.14 rad = 8 degrees
    scale=0.12,
    stretch=0.08,
    shear=0.1,
    shift_px=1.5,
)

_COMPACT = ResidualNetwork(
    stem_filters=32,  # the stem costs only 0.1 MFLOP per row, because the input has one channel
    stem_strides=2,
    stage_filters=(48, 80),  # multiples of 16, the block width of ONNX Runtime's convolutions on AVX-512
    head_units=256,
    dropout=0.2,
)

NETWORKS = {"compact": _COMPACT, "light": replace(_COMPACT, stem_filters=16, stage_filters=(48, 64))}
"""The residual networks by name: `compact` has 11.0 MFLOP per row, `light` 8.6. `light` is 2.5 times as fast as the
network of recipe `article` on every CPU measured. Compared with `compact`, `light` is as accurate on three classes, and
loses one point of accuracy on 345 classes and two points on ten (docs/training.md)."""

COMPACT = Recipe(
    name="compact",
    network=_COMPACT,
    augmentation=_LIGHT,
    label_smoothing=0.1,  # about a tenth of the labels are wrong
    teacher_share=0.8,
    class_balance=0.5,
    learning_rate=4e-3,
    is_cosine=True,
    weight_decay=0.02,
    average_decay=0.999,
    batch_rows=256,
    max_epochs=30,
    min_epoch_steps=8,  # one step per epoch, as 200 drawings would make, learns nothing in 30 epochs
    min_steps=150,
    patience=None,  # no early stopping: the learning rate reaches zero only in the last epoch
)
"""The default recipe: a residual network on the full 28x28 bitmaps."""

AGAIN = replace(
    COMPACT,
    name="again",
    needs_start=True,
    learning_rate=2e-3,  # half of COMPACT's rate: enough to leave the initial weights without losing their accuracy
    max_epochs=20,  # an epoch takes as long as 1.7 of COMPACT: the teacher scores each drawing and its mirror image
)
"""A second training like COMPACT, which starts from the first model and has it as teacher (arXiv 1805.04770)."""

FINETUNE = replace(
    COMPACT,
    name="finetune",
    needs_start=True,
    network=replace(_COMPACT, dropout=0.3),  # more than COMPACT: pretrained weights overfit few drawings quickly
    class_balance=1.0,  # equal weight per class; whole files have similar numbers of drawings
    learning_rate=1e-3,
    average_decay=0.998,  # averages the weights of 1 / (1 - 0.998) = 500 steps, which are 9 epochs of bear, cat and dog
    batch_rows=128,
    max_epochs=24,
)
"""A training on a few classes that starts from a network trained on many classes."""


def with_network(recipe: Recipe, network: str | Network) -> Recipe:
    """Return the recipe with another network, which may be a name of NETWORKS.

    Any network but that of `article` receives the dropout of the recipe's network.
    """
    assert isinstance(recipe.network, ResidualNetwork)
    chosen: Network = NETWORKS[network] if isinstance(network, str) else network
    if not isinstance(chosen, ArticleNetwork):
        chosen = replace(chosen, dropout=recipe.network.dropout)
    return replace(recipe, network=chosen)


def fit_rows(recipe: Recipe, rows: int) -> Recipe:
    """Return the recipe with smaller batches and more epochs for few training drawings, as its limits require.

    The batches of few drawings have almost equal sizes: a last batch of a few rows would have no useful statistics for
    batch normalisation.
    """
    batch_rows = recipe.batch_rows
    if rows < batch_rows * recipe.min_epoch_steps:
        steps = math.ceil(rows / max(_MIN_BATCH_ROWS, math.ceil(rows / recipe.min_epoch_steps)))
        batch_rows = min(batch_rows, math.ceil(rows / steps))
    epochs = math.ceil(recipe.min_steps / math.ceil(rows / batch_rows))
    return replace(recipe, batch_rows=batch_rows, max_epochs=max(recipe.max_epochs, epochs))


def recipe_differences(own: dict[str, Any], other: dict[str, Any], *, is_same_rows: bool = True) -> list[str]:
    """Return the values of the recipe that differ between the configs of two runs, such as `max_epochs 5 and 12`.

    With `is_same_rows` false, the runs have other numbers of training drawings. The values that `fit_rows` derives
    from this number may then differ: `batch_rows`, and `max_epochs` of runs that were trained without another limit.
    """
    first, second = own["recipe"], other["recipe"]
    derived: set[str] = set()
    if not is_same_rows:
        derived = {"batch_rows", "max_epochs"} if _has_own_epochs(own) and _has_own_epochs(other) else {"batch_rows"}
    return [text for key in first | second if key not in derived for text in value_differences(key, first, second)]


def _has_own_epochs(config: dict[str, Any]) -> bool:
    """Return whether a run has the number of epochs that `fit_rows` derives for its training drawings."""
    recipe, rows = config["recipe"], config["rows"]["train"]
    named = RECIPES.get(recipe["name"])
    epochs = math.ceil(recipe.get("min_steps", 0) / math.ceil(rows / recipe["batch_rows"]))
    return named is not None and recipe["max_epochs"] == max(named.max_epochs, epochs)


def network_from(values: dict[str, Any]) -> Network:
    """Return the network with the values that the config of a run states, where tuples are lists."""
    arguments: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    if "file_digest" in arguments:
        return GraphNetwork(**arguments)
    return ResidualNetwork(**arguments) if "stem_filters" in arguments else ArticleNetwork(**arguments)


RECIPES = {recipe.name: recipe for recipe in (ARTICLE, COMPACT, AGAIN, FINETUNE)}
