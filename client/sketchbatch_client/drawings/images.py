"""Turns a picture of a drawing (a photo, a scan, a screenshot) into a bitmap that looks like the data.

Flow: picture -> grey levels -> ink on even paper -> cropped -> `tracing` draws its lines again with the data's pen.
Dark on light or light on dark, any size, any pen, light shadows. Lines are what it knows: a grey photograph of the
thing itself is no drawing.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import FileRefused
from .geometry import SIDE
from .tracing import WORK, trace

_MOST_PIXELS = 36_000_000  # a page of A4 scanned at 600 dots an inch has 34.8; reading takes 10 to 20 bytes for each
_LARGEST = 640  # pixels: larger pictures are reduced first; a thin pen still leaves a mark
_MOST_SCANS = 100  # of a progressive JPEG; encoders make ten, and each goes over all pixels again
_SAME = 1e-3  # grey levels: rounding, no difference
_LEAST_CONTRAST = 24.0  # grey levels between ink and paper
_SCAN = b"\xff\xda"  # begins one; not among packed pixels, where 0 or a restart follows 255
_ROUNDS = 4  # of telling ink from paper and fitting the paper's shade to what is not ink
_FITTED = 100  # pixels of the shorter side are enough to see a shade
_NEAR = 8  # pixels: within this reach even the end of a line one pixel thin has more pixels of ink than a speck

Floats = NDArray[np.float32]


def read_image(path: Path) -> NDArray[np.uint8]:
    """Reads a PNG or JPEG file: uint8, (28, 28), 0 = paper, 255 = ink; transparent is white.

    Raises:
        FileRefused: There is no such file, it is no picture, or no drawing can be told from its paper.
    """
    try:
        return decode_image(path.read_bytes(), str(path))
    except OSError as exc:
        raise FileRefused(f"{path}: cannot be read as a picture of a drawing: {exc.strerror}") from exc


def decode_image(contents: bytes, name: str) -> NDArray[np.uint8]:
    """Likewise from the contents of such a file; `name` is for the error."""
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(io.BytesIO(contents), formats=("PNG", "JPEG")) as image,
        ):
            if image.format == "JPEG" and contents.count(_SCAN) > _MOST_SCANS:
                raise ValueError(f"expected at most {_MOST_SCANS} scans, got {contents.count(_SCAN)}")
            return normalize_image(_grey(image))
    except Exception as exc:  # Pillow lets through whatever damaged chunks and EXIF raise: TypeError, struct.error, ...
        reason = str(exc).partition("\n")[0]
        raise FileRefused(f"{name}: cannot be read as a picture of a drawing: {reason}") from exc


def normalize_image(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draws a picture's lines again as Quick, Draw! would have: centred, 255 units large, with a pen of 16 units.

    Args:
        grey: uint8, (height, width), ink darker or lighter than the paper; the paper is what the border shows. A
            picture of 28 x 28 is taken to be a bitmap already, and turned light on dark at most.

    Returns:
        uint8, (28, 28), 0 = paper, 255 = ink.

    Raises:
        ValueError: It is no grey picture, or nothing in it stands out from the paper.
    """
    if grey.dtype != np.uint8 or grey.ndim != 2 or not grey.size:
        raise ValueError(f"expected uint8 (height, width), got {grey.dtype} {grey.shape}")
    if grey.shape == (SIDE, SIDE):
        return ~grey if _border_level(grey) > 127 else grey
    ink = _cropped(_ink(_resized(grey.astype(np.float32), _LARGEST, enlarge=False)))
    ink = _resized(ink, WORK, enlarge=True)
    return trace(ink > _otsu(ink))


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    image.draft("L", (_LARGEST, _LARGEST))  # JPEG can be decoded at a fraction of its size
    if image.width * image.height > _MOST_PIXELS:  # a small file may hold very many
        most = f"{_MOST_PIXELS // 1_000_000} million pixels"
        raise ValueError(f"expected at most {most}, got {image.width} x {image.height}")
    image = ImageOps.exif_transpose(image)  # a phone held sideways
    if image.mode.startswith(("I", "F")):  # 16-bit scans
        levels: NDArray[np.float64] = np.array(image, np.float64)
        full = 65535.0 if image.size == (SIDE, SIDE) else max(float(levels.max()), 1.0)  # scanners use 12 of 16 bits
        levels *= 255 / full
        return levels.clip(0, 255).astype(np.uint8)
    if image.has_transparency_data:
        image = _on_paper(image.convert("RGBA"))
    return np.asarray(image.convert("L"))


def _on_paper(image: Image.Image) -> Image.Image:
    """On white; on black where all that can be seen is light."""
    seen = np.asarray(image.convert("L"))[np.asarray(image.getchannel("A")) > 127]
    is_light = seen.size and np.percentile(seen, 5) > 127
    return Image.alpha_composite(Image.new("RGBA", image.size, "black" if is_light else "white"), image)


def _ink(grey: Floats) -> Floats:
    """How much each pixel is ink, 0 to 1, on paper whose shade changes slowly."""
    levels = -grey if _border_level(grey) > _otsu(grey) else grey  # ink is high
    above = levels - _paper(levels)
    is_ink = above > _otsu(above)
    contrast = float(np.median(above[is_ink])) if is_ink.any() else 0.0
    if contrast < _LEAST_CONTRAST:
        raise ValueError(
            f"ink must differ from paper by {_LEAST_CONTRAST:g} grey levels or more, got {abs(contrast):.0f}"
        )
    return (above / contrast).clip(0, 1)


def _paper(levels: Floats) -> Floats:
    """The quadratic surface nearest to the paper's levels, as a lamp and a bent page shade it."""
    terms = _quadratic(levels.shape)
    step = max(1, min(levels.shape) // _FITTED)
    some = levels[::step, ::step]
    few = np.stack([np.broadcast_to(term, levels.shape)[::step, ::step] for term in terms])
    is_paper = some <= _otsu(some)
    for _ in range(_ROUNDS):
        seen = few[:, is_paper]  # (6, pixels)
        fit = np.linalg.lstsq(seen @ seen.T, seen @ some[is_paper], rcond=None)[0]
        above = some - np.tensordot(fit, few, 1)
        is_paper = above <= _otsu(above)
    return sum((factor * term for factor, term in zip(fit, terms, strict=True)), np.zeros((1, 1), np.float32))


def _quadratic(shape: tuple[int, ...]) -> list[Floats]:
    """1, x, y, xy, x^2, y^2 over a picture, each fit to be broadcast to (height, width)."""
    y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    y = y[:, None]
    return [np.ones((1, 1), np.float32), x[None], y, x * y, x[None] ** 2, y**2]


def _cropped(ink: Floats) -> Floats:
    """With a pixel of paper around it, and without specks far from any line."""
    is_ink = ink > 0.5
    reach = np.pad(is_ink, ((_NEAR + 1, _NEAR), (_NEAR + 1, _NEAR))).cumsum(axis=0).cumsum(axis=1)
    width = 2 * _NEAR + 1
    near = reach[width:, width:] - reach[:-width, width:] - reach[width:, :-width] + reach[:-width, :-width]
    is_line = is_ink & (near > _NEAR)
    if not is_line.any():
        raise ValueError("nothing in it is larger than a speck")
    rows, columns = np.flatnonzero(is_line.any(axis=1)), np.flatnonzero(is_line.any(axis=0))
    lines = np.where(is_line | ~is_ink, ink, 0)
    return np.pad(lines[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)


def _resized(levels: Floats, longest: int, *, enlarge: bool) -> Floats:
    """So that the longer side has `longest` pixels."""
    factor = longest / max(levels.shape)
    if factor >= 1 and not enlarge:
        return levels
    height, width = (max(1, round(size * factor)) for size in levels.shape)
    return np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC))


def _border_level(levels: NDArray[np.uint8] | Floats) -> float:
    """The median of the outermost pixels."""
    return float(np.median(np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])))


def _otsu(levels: Floats) -> float:
    """The level that parts two groups best (Otsu, IEEE Trans. SMC 9 (1979) 62-66), halfway between their means."""
    least, most = float(levels.min()), float(levels.max())
    if most - least < _SAME:
        return most
    counts = np.bincount(((levels - least) * (255 / (most - least))).astype(np.uint8).ravel(), minlength=256)
    sums = (counts * np.arange(256)).cumsum()
    below = counts.cumsum()
    above = below[-1] - below
    low, high = sums / below, (sums[-1] - sums) / np.maximum(above, 1)
    best = int((below * above * (high - low) ** 2).argmax())
    return least + float(low[best] + high[best]) / 2 * (most - least) / 255
