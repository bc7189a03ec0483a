"""Convert a picture of a drawing (a photo, a scan, a screenshot) to a bitmap like the training data.

Flow: picture -> grey levels -> ink on even paper -> cropped -> `tracing` renders the lines with Google's pen.
Lines may be dark on light or light on dark, of any size and width; light shadows are allowed. Photographs of objects
are not supported.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import DrawingRefused, FileRefused, reason_of
from ..file_kind import HEAD_BYTES, describe, got
from .readers import PICTURE_SUFFIXES, PICTURES
from .rendering.geometry import SIDE
from .rendering.tracing import WORK, Floats, trace

# An A4 page scanned at 600 dpi has 34.8 million pixels. Reading takes 10 to 20 bytes of memory per pixel.
_MAX_PIXELS = 36_000_000
_PIXEL_LIMIT = f"{_MAX_PIXELS // 1_000_000} million pixels"
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # of Pillow; of several pictures in a file, the first is read
_MAX_SIDE = 640  # pixels; larger pictures are first reduced to this size, at which a thin pen is still visible
_MAX_SCANS = 100  # most scans of a progressive JPEG; encoders write ten, and each takes a pass over all pixels
# The two bytes at the start of a JPEG scan. Compressed pixels never contain them: after ff they have 00 or a restart
# marker.
_SCAN = b"\xff\xda"
_ROUNDING = 1e-3  # grey levels; smaller differences are rounding errors
_MIN_CONTRAST = 24.0  # grey levels between ink and paper
_FIT_ROUNDS = 4  # each round separates ink from paper, then fits the shade of the paper to the paper's pixels
_FIT_PIXELS = 100  # pixels sampled along the shorter side; enough to fit a shade
# An ink pixel belongs to a speck if a square that reaches 8 pixels in each direction has at most 8 ink pixels. At the
# end of a line that is one pixel wide, the square has 9.
_NEAR = 8


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Read a picture: uint8, (28, 28), 0 = paper, 255 = ink; transparent pixels are paper.

    The picture is a PNG, JPEG, WebP, BMP, GIF or TIFF, whatever the ending of its name.

    Raises FileRefused if the file cannot be opened, and DrawingRefused if it is not a picture or has no ink that
    differs from its paper.
    """
    try:
        return decode_image(Path(path).read_bytes(), str(path))
    except OSError as exc:
        raise FileRefused(f"{path}: cannot be read as a picture of a drawing: {reason_of(exc)}") from exc


def decode_image(contents: bytes, name: str) -> NDArray[np.uint8]:
    """Decode the contents of a picture as `read_image` does; error messages begin with `name`."""
    kind = describe(contents[:HEAD_BYTES])
    if not kind or kind.suffix not in PICTURE_SUFFIXES:
        raise DrawingRefused(f"{name}: expected {PICTURES}, got {got(contents, name)}")
    try:
        return normalize_image(_decoded(contents))
    except ValueError as exc:
        raise DrawingRefused(f"{name}: cannot be read as a picture of a drawing: {exc}") from exc


def _decoded(contents: bytes) -> NDArray[np.uint8]:
    """Return the grey levels of a picture, (height, width). Raises ValueError if it is damaged or too large."""
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(io.BytesIO(contents), formats=_FORMATS) as image,
        ):
            excess = _excess(image, contents)
            if not excess:
                return _grey(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as exc:
        raise ValueError(f"expected at most {_PIXEL_LIMIT}, got more") from exc
    except Exception as exc:  # damaged chunks and EXIF make Pillow raise TypeError, struct.error and others
        raise ValueError("damaged or cut off; copy or download it again") from exc
    raise ValueError(excess)


def _excess(image: Image.Image, contents: bytes) -> str:
    """Return why a picture would take too much time or memory; empty = it would not."""
    if image.format == "JPEG" and (scans := contents.count(_SCAN)) > _MAX_SCANS:
        return f"expected at most {_MAX_SCANS} scans, got {scans}"
    image.draft("L", (_MAX_SIDE, _MAX_SIDE))  # decodes a JPEG at reduced size
    if image.width * image.height > _MAX_PIXELS:  # a small file can encode very many pixels
        return f"expected at most {_PIXEL_LIMIT}, got {image.width} x {image.height}"
    return ""


def normalize_image(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Render the lines of a picture as Quick, Draw! does: centred, 255 units large, with a pen of 16 units.

    The picture is uint8, (height, width), with ink darker or lighter than the paper, and a border of paper. A 28 x 28
    picture counts as a bitmap: it is inverted if its paper is light, and otherwise returned unchanged.

    Return uint8, (28, 28), 0 = paper, 255 = ink. Raises ValueError if the array is not a grey picture or has no ink.
    """
    if grey.dtype != np.uint8 or grey.ndim != 2 or not grey.size:
        raise ValueError(f"expected uint8 (height, width), got {grey.dtype} {grey.shape}")
    if grey.shape == (SIDE, SIDE):
        return ~grey if _border_level(grey) > 127 else grey
    ink = _cropped(_ink(_resized(grey.astype(np.float32), _MAX_SIDE, enlarge=False)))
    ink = _resized(ink, WORK, enlarge=True)
    return trace(ink > _otsu(ink))


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    image = ImageOps.exif_transpose(image)  # for a phone held sideways
    if image.mode.startswith(("I", "F")):  # a 16-bit scan
        levels: NDArray[np.float64] = np.array(image, np.float64)
        is_bitmap = image.size == (SIDE, SIDE) and levels.max() > 255
        white = 65535.0 if is_bitmap else max(float(levels.max()), 1.0)  # scanners use 12 of 16 bits
        levels *= 255 / white
        return levels.clip(0, 255).astype(np.uint8)
    if image.has_transparency_data:
        image = _on_paper(image.convert("RGBA"))
    return np.asarray(image.convert("L"))


def _on_paper(image: Image.Image) -> Image.Image:
    """Put a transparent picture on white, or on black if all of its visible pixels are light."""
    visible = np.asarray(image.convert("L"))[np.asarray(image.getchannel("A")) > 127]
    is_light = visible.size and np.percentile(visible, 5) > 127
    return Image.alpha_composite(Image.new("RGBA", image.size, "black" if is_light else "white"), image)


def _ink(grey: Floats) -> Floats:
    """Return how much each pixel is ink, 0 to 1, on paper whose shade changes slowly."""
    levels = -grey if _border_level(grey) > _otsu(grey) else grey  # now ink has high levels
    above = levels - _paper(levels)
    is_ink = above > _otsu(above)
    contrast = float(np.median(above[is_ink])) if is_ink.any() else 0.0
    if contrast < _MIN_CONTRAST:
        raise ValueError(
            f"ink must differ from paper by {_MIN_CONTRAST:g} grey levels or more, got {abs(contrast):.0f}"
        )
    return (above / contrast).clip(0, 1)


def _paper(levels: Floats) -> Floats:
    """Return the level of the paper at each pixel: a fitted quadratic surface, since a lamp or a bend shades paper."""
    terms = _quadratic(levels.shape)
    step = max(1, min(levels.shape) // _FIT_PIXELS)
    sample = levels[::step, ::step]
    sampled_terms = np.stack([np.broadcast_to(term, levels.shape)[::step, ::step] for term in terms])
    is_paper = sample <= _otsu(sample)
    for _ in range(_FIT_ROUNDS):
        paper = sampled_terms[:, is_paper]  # (6, pixels)
        fit = np.linalg.lstsq(paper @ paper.T, paper @ sample[is_paper], rcond=None)[0]
        above = sample - np.tensordot(fit, sampled_terms, 1)
        is_paper = above <= _otsu(above)
    return sum((factor * term for factor, term in zip(fit, terms, strict=True)), np.zeros((1, 1), np.float32))


def _quadratic(shape: tuple[int, ...]) -> list[Floats]:
    """Return 1, x, y, xy, x^2, y^2 over a picture; each can be broadcast to (height, width)."""
    y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    y = y[:, None]
    return [np.ones((1, 1), np.float32), x[None], y, x * y, x[None] ** 2, y**2]


def _cropped(ink: Floats) -> Floats:
    """Crop to the lines with one pixel of paper around them; remove specks far from any line."""
    is_ink = ink > 0.5
    sums = np.pad(is_ink, ((_NEAR + 1, _NEAR), (_NEAR + 1, _NEAR))).cumsum(axis=0).cumsum(axis=1)
    width = 2 * _NEAR + 1
    near = sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width] + sums[:-width, :-width]
    is_line = is_ink & (near > _NEAR)
    if not is_line.any():
        raise ValueError("ink must be larger than a speck, got specks only")
    rows, columns = np.flatnonzero(is_line.any(axis=1)), np.flatnonzero(is_line.any(axis=0))
    lines = np.where(is_line | ~is_ink, ink, 0)
    return np.pad(lines[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)


def _resized(levels: Floats, longest: int, *, enlarge: bool) -> Floats:
    """Resize so that the longer side has `longest` pixels; a smaller picture grows only if `enlarge`."""
    factor = longest / max(levels.shape)
    if factor >= 1 and not enlarge:
        return levels
    height, width = (max(1, round(size * factor)) for size in levels.shape)
    return np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC))


def _border_level(levels: NDArray[np.uint8] | Floats) -> float:
    """Return the median level of the outermost pixels."""
    return float(np.median(np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])))


def _otsu(levels: Floats) -> float:
    """Divide levels in two by Otsu's method (IEEE Trans. SMC 9 (1979) 62-66); return the middle of the two means."""
    least, most = float(levels.min()), float(levels.max())
    if most - least < _ROUNDING:
        return most
    counts = np.bincount(((levels - least) * (255 / (most - least))).astype(np.uint8).ravel(), minlength=256)
    sums = (counts * np.arange(256)).cumsum()
    below = counts.cumsum()
    above = below[-1] - below
    low, high = sums / below, (sums[-1] - sums) / np.maximum(above, 1)
    best = int((below * above * (high - low) ** 2).argmax())
    return least + float(low[best] + high[best]) / 2 * (most - least) / 255
