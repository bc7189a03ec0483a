"""Describe how a model expects its pixels: as `--scale` and `--invert` state it.

A pixel is 0 (paper) to 255 (ink). The value that the model receives is `(pixel / divisor - mean) / std`. A division by
255, not a multiplication by 1/255, gives float32 the value that programs of training compute.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.drawings.readers import Bitmaps

from ..errors import AdaptRefused

_FORMS = "a factor such as 1/255, a range such as 0..255 or -1..1, or MEAN,STD of pixels in 0..1 such as 0.1307,0.3081"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FACTOR = re.compile(rf"({_NUMBER})(?:/({_NUMBER}))?")
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})")
_MEAN_STD = re.compile(rf"({_NUMBER}),\s*({_NUMBER})")

_SMALLEST, _LARGEST = 1e-30, 1e30  # beyond them, float32 rounds a slope to 0 or to infinity


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How a pixel becomes the value that the model receives. The default is 1/255: paper is 0.0, ink is 1.0."""

    divisor: float = 255.0
    """Divides the pixel; not 0."""
    mean: float = 0.0
    """Subtracted from `pixel / divisor`."""
    std: float = 1.0
    """Divides the difference; not 0."""
    invert: bool = False
    """True = the model expects dark drawings on white paper: each pixel is replaced by `255 - pixel` first."""
    text: str = "1/255"
    """The value of `--scale` for this scaling."""

    @classmethod
    def parse(cls, text: str, *, invert: bool = False) -> Self:
        """Return the scaling that the value of `--scale` describes.

        Raises:
            AdaptRefused: `text` has none of the three forms, is not plausible, or maps all pixels to one value.
        """
        try:
            scaling = cls(**_numbers(text.strip()), invert=invert, text=text.strip())
            slope, offset = map(abs, scaling.affine)
        except ZeroDivisionError as exc:
            raise _refusal(text) from exc
        if not (_SMALLEST <= slope <= _LARGEST and offset <= _LARGEST):
            raise _refusal(text)
        return scaling

    @property
    def affine(self) -> tuple[float, float]:
        """Return `(slope, offset)`: the value of a pixel, before any rounding, is `pixel * slope + offset`."""
        slope, offset = 1 / self.divisor / self.std, -self.mean / self.std
        return (-slope, 255 * slope + offset) if self.invert else (slope, offset)

    @property
    def flags(self) -> str:
        """Return the flags of `sketchbatch-train adapt` that select this scaling."""
        return f"--scale {self.text}{' --invert' if self.invert else ''}"

    def inverted(self, invert: bool = True) -> Self:
        """Return the same scaling with `invert`."""
        return replace(self, invert=invert)

    @property
    def steps(self) -> tuple[tuple[str, float], ...]:
        """Return the arithmetic on a pixel, in order: names of ONNX operators, each with its second operand."""
        inversion = (("Mul", -1.0), ("Add", 255.0)) if self.invert else ()
        numbers = (("Div", self.divisor, 1.0), ("Sub", self.mean, 0.0), ("Div", self.std, 1.0))
        return *inversion, *((operator, number) for operator, number, neutral in numbers if number != neutral)

    def apply(self, bitmaps: Bitmaps, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the values of bitmaps, uint8 of any shape, computed by `steps` with numbers of the type `dtype`."""
        values: NDArray[Any] = bitmaps.astype(dtype)
        for operator, number in self.steps:
            values = _OPERATORS[operator](values, np.array(number, dtype))
        return values


_OPERATORS: Mapping[str, np.ufunc] = {"Mul": np.multiply, "Add": np.add, "Div": np.divide, "Sub": np.subtract}

AS_PIXELS = Scaling(divisor=1.0, text="0..255")
"""The model receives the pixels as they are, 0 to 255."""


def _numbers(text: str) -> dict[str, float]:
    """Return divisor, mean and std of the value of `--scale`; raise ZeroDivisionError for a divisor of 0."""
    if match := _MEAN_STD.fullmatch(text):
        mean, std = map(float, match.groups())
        if not (0 <= mean <= 1 and 0 <= std <= 1):
            raise AdaptRefused(
                f"--scale {text}: MEAN,STD must be those of pixels in 0..1, so 0 to 1 each: divide those of pixels in "
                "0..255 by 255"
            )
        return {"mean": mean, "std": _divisor(std)}
    if match := _RANGE.fullmatch(text):
        low, high = map(float, match.groups())
        return {"divisor": 255 / _divisor(high - low), "mean": -low}
    if match := _FACTOR.fullmatch(text):
        divisor = float(match[2] or 1) / _divisor(float(match[1]))
        if 0 < divisor < 1:
            raise AdaptRefused(
                f"--scale {text} would multiply the pixels by {1 / divisor:g}; to divide them, write 1/{text}"
            )
        return {"divisor": _divisor(divisor)}
    raise _refusal(text)


def _divisor(number: float) -> float:
    if number == 0:
        raise ZeroDivisionError
    return number


def _refusal(text: str) -> AdaptRefused:
    return AdaptRefused(f"--scale must be {_FORMS}, got {text!r}")


CANDIDATES = tuple(
    Scaling.parse(text, invert=invert)
    for text in ("1/255", "0..255", "-1..1", "0.1307,0.3081")
    for invert in (False, True)
)
"""The scalings that a model made elsewhere is likely to expect; 0.1307,0.3081 is the one of PyTorch's MNIST example."""
