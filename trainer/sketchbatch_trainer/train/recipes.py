"""The named recipes: each a frozen set of values, with the reason for each. What each gave: docs/training.md."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class ArticleNetwork:
    """Two 3x3 convolutions and a max-pool, then dense layers with L2, batch normalisation and dropout."""

    conv_filters: tuple[int, int]
    """Filters of the two 3x3 convolutions."""

    dense_units: tuple[int, int]
    """Units of the two dense layers."""

    l2: float
    """Weight penalty on the dense layers."""

    dropout: tuple[float, float]
    """Share of units dropped after each dense layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualNetwork:
    """A small residual CNN: a strided stem, then stages that each halve the side, add width and refine it once."""

    stem_filters: int
    """Filters of the 3x3 stem."""

    stem_strides: int
    """2 = the stem takes 28x28 to 14x14 at once; 1 = it keeps every pixel, at four times the cost."""

    stage_filters: tuple[int, ...]
    """Filters of each stage: a strided 3x3 convolution, then one residual block of two."""

    head_units: int
    """Units of the dense layer on all that the last stage says, place by place."""

    dropout: float
    """Share of units dropped before each of the last two layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far a drawing may be moved each time it is seen: uniform, around the middle."""

    flips: bool
    """Mirror left and right, half of the time."""

    rotate_rad: float
    """Turn by at most this."""

    scale: float
    """Grow or shrink by at most this exponent: by exp(-scale) to exp(scale)."""

    stretch: float
    """Likewise, of the height alone."""

    shear: float
    """Slant by at most this, in widths a height."""

    shift_px: float
    """Move by at most this along each axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to build and fit a network."""

    name: str
    """What to ask for it by."""

    network: ArticleNetwork | ResidualNetwork
    """What to fit."""

    augmentation: Augmentation | None
    """How drawings are moved; None = as they are."""

    label_smoothing: float
    """Share of each label that is spread over all classes."""

    teacher_share: float
    """Share of each label that the teachers' scores stand in for, where there are teachers (arXiv 1503.02531)."""

    class_balance: float
    """0 = every drawing counts the same, 1 = every class does: weight of a class = rows to the power of minus this."""

    learning_rate: float
    """Of AdamW, at its highest."""

    is_cosine: bool
    """Whether the learning rate warms up and then falls to zero along a cosine; otherwise it stays."""

    weight_decay: float
    """Of AdamW; biases and batch normalisation are spared."""

    average_decay: float
    """Of the moving average of the weights, which is what is kept; 0 = the last weights themselves."""

    batch_rows: int
    """Rows in one step."""

    max_epochs: int
    """Most passes over the training drawings."""

    patience: int | None
    """Epochs without a lower validation loss before stopping, the best epoch's weights kept; None = all epochs."""


ARTICLE = Recipe(
    name="article",
    network=ArticleNetwork(
        conv_filters=(32, 64),  # the article's: 24 MFLOP a row, nearly all in the second convolution
        dense_units=(128, 64),  # 128 on 9,216 features holds 1.2 of the 1.2 million parameters
        l2=1e-3,
        dropout=(0.5, 0.5),
    ),
    augmentation=None,
    label_smoothing=0.0,
    teacher_share=0.0,
    class_balance=1.0,  # bears are 1,000, cats and dogs 4,000 each
    learning_rate=1e-3,  # Adam's own default
    is_cosine=False,
    weight_decay=0.0,
    average_decay=0.0,
    batch_rows=128,
    max_epochs=12,
    patience=3,
)
"""The CNN of the article that this project began with: the baseline."""

_LIGHT = Augmentation(
    flips=True,  # animals look either way
    rotate_rad=0.14,  # 8 degrees
    scale=0.12,
    stretch=0.08,
    shear=0.1,
    shift_px=1.5,
)

_COMPACT = ResidualNetwork(
    stem_filters=32,  # 0.1 MFLOP a row: one input channel costs next to nothing
    stem_strides=2,
    stage_filters=(48, 80),  # multiples of 16, the width of ONNX Runtime's blocked convolutions on AVX-512
    head_units=256,
    dropout=0.2,
)

_LIGHT_COMPACT = replace(_COMPACT, stem_filters=16, stage_filters=(48, 64))

NETWORKS = {"compact": _COMPACT, "light": _LIGHT_COMPACT}
"""Ours, by what to ask for them by: 11.0 and 8.6 MFLOP a row. `light` is as good on three classes, and 2.5 times as
fast as the article's on every CPU seen; with 345 classes it loses a point, with ten two (docs/training.md)."""

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
    patience=None,  # the cosine ends where it should
)
"""Ours, at native 28x28."""

AGAIN = replace(
    COMPACT,
    name="again",
    learning_rate=2e-3,  # half: far enough to leave where it stands, not so far as to lose it
    max_epochs=20,  # each costs as much as 1.7 of `compact`: the teacher sees every drawing and its mirror image
)
"""The same network once more, from its own weights and with them as its teacher (arXiv 1805.04770)."""

FINETUNE = replace(
    COMPACT,
    name="finetune",
    network=replace(_COMPACT, dropout=0.3),  # few drawings, and weights that fit them quickly
    class_balance=1.0,  # the whole files have about as many drawings of each class: no rare one is to lose
    learning_rate=1e-3,
    average_decay=0.998,  # 500 steps, 9 epochs of bear, cat and dog: what is kept stands between many good weights
    batch_rows=128,
    max_epochs=24,
)
"""The same network for a few classes, from weights that know many."""


def with_network(recipe: Recipe, name: str) -> Recipe:
    """The same recipe for another of NETWORKS."""
    assert isinstance(recipe.network, ResidualNetwork)
    return replace(recipe, network=replace(NETWORKS[name], dropout=recipe.network.dropout))


RECIPES = {recipe.name: recipe for recipe in (ARTICLE, COMPACT, AGAIN, FINETUNE)}
