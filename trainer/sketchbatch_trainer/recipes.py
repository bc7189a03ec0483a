"""The named recipes: each a frozen set of values, with the reason for each."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to build and fit a network."""

    name: str
    """What to ask for it by."""

    conv_filters: tuple[int, int]
    """Filters of the two 3x3 convolutions."""

    dense_units: tuple[int, int]
    """Units of the two dense layers."""

    l2: float
    """Weight penalty on the dense layers."""

    dropout: tuple[float, float]
    """Share of units dropped after each dense layer."""

    learning_rate: float
    """Of Adam."""

    batch_rows: int
    """Rows in one step."""

    max_epochs: int
    """Most passes over the training drawings."""

    patience: int
    """Epochs without a lower validation loss before stopping; the best epoch's weights are kept."""


ARTICLE = Recipe(
    name="article",
    conv_filters=(32, 64),  # the article's: 24 MFLOP a row, nearly all in the second convolution
    dense_units=(128, 64),  # 128 on 9,216 features holds 1.2 of the 1.2 million parameters
    l2=1e-3,
    dropout=(0.5, 0.5),
    learning_rate=1e-3,  # Adam's own default
    batch_rows=128,
    max_epochs=12,
    patience=3,
)
"""The CNN of the article that this project began with: the baseline."""

RECIPES = {recipe.name: recipe for recipe in (ARTICLE,)}
