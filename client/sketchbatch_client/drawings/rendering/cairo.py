"""Render strokes with the system's libcairo, byte-identical to the bitmaps that Google published.

ctypes needs no installation and loads libcairo at the first drawing. The path of a whole drawing is built as one NumPy
array in the memory layout of `cairo_path_data_t`, so each stroke costs two calls.
Measurements, also of cairocffi: docs/decisions/0005-rasterising-with-cairo.md.
"""

import ctypes
import threading
import weakref
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .geometry import MARGIN, PEN, SCALE, SIDE, Layout

_FILE_NAMES = ("libcairo.so.2", "libcairo.2.dylib", "libcairo-2.dll")
_POINTER, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_int, ctypes.c_double
_TEXT = ctypes.c_char_p
# The functions of cairo that this module calls. The key is a signature: type of the result, then types of arguments.
# Each value has the names of the functions with this signature, without the prefix cairo_. Their descriptions:
# https://www.cairographics.org/manual/
_FUNCTIONS = {
    (None, _POINTER): ("destroy", "stroke", "surface_destroy", "surface_flush", "surface_mark_dirty"),
    (None, _POINTER, _POINTER): ("append_path",),
    (None, _POINTER, _INT): ("set_antialias", "set_line_cap", "set_line_join"),
    (None, _POINTER, _DOUBLE): ("set_line_width",),
    (None, _POINTER, _DOUBLE, _DOUBLE): ("scale", "translate"),
    (None, _POINTER, _DOUBLE, _DOUBLE, _DOUBLE): ("set_source_rgb",),
    (_INT, _POINTER): ("status",),
    (_POINTER, _POINTER): ("create",),
    (_POINTER, _POINTER, _INT, _INT, _INT, _INT): ("image_surface_create_for_data",),
    (_TEXT, _INT): ("status_to_string",),
    (_TEXT,): ("version_string",),
}
_ARGB32, _ROUND, _ANTIALIAS_BEST = 0, 1, 6
_BLACK = 0xFF000000

# A cairo_path_data_t has 16 bytes. It holds a header of two ints (operation, length) or a pair of doubles (x, y). A
# point of a path takes one header and one pair.
_MOVE_TO, _LINE_TO = np.array([[0, 2], [1, 2]], np.int32).view(np.float64).ravel()
_POINT_BYTES = 32


class _Path(ctypes.Structure):
    """The C structure `cairo_path_t`: a path of `num_data` elements at the address `data`."""

    _fields_ = (("status", _INT), ("data", _POINTER), ("num_data", _INT))


@cache
def library() -> ctypes.PyDLL | None:
    """Load the system's libcairo; return None if it is not installed."""
    for file_name in _FILE_NAMES:
        try:
            # PyDLL holds the GIL during a call. CDLL releases it, but two threads then rendered no faster.
            cairo = ctypes.PyDLL(file_name)
        except OSError:
            continue
        for (result, *arguments), names in _FUNCTIONS.items():
            for function in (getattr(cairo, f"cairo_{name}") for name in names):
                function.restype, function.argtypes = result, arguments
        return cairo
    return None


def draw(layout: Layout) -> NDArray[np.uint8]:
    """Render one drawing on any thread, if libcairo is installed: uint8, (28, 28), 0 = paper, 255 = ink."""
    if not hasattr(_thread, "canvas"):
        _thread.canvas = _Canvas()
    bitmap: NDArray[np.uint8] = _thread.canvas.draw(layout)
    return bitmap


class _Canvas:
    """One cairo surface and its context, reused for every drawing of one thread."""

    def __init__(self) -> None:
        cairo = library()
        assert cairo
        self._cairo = cairo
        self._path = _Path(0, 0, 0)
        self._pixels = np.zeros((SIDE, SIDE), np.uint32)  # ARGB
        address = self._pixels.ctypes.data
        self._surface = cairo.cairo_image_surface_create_for_data(address, _ARGB32, SIDE, SIDE, SIDE * 4)
        self._context = context = cairo.cairo_create(self._surface)
        weakref.finalize(self, _free, cairo, context, self._surface, self._pixels)
        cairo.cairo_set_antialias(context, _ANTIALIAS_BEST)
        cairo.cairo_set_line_cap(context, _ROUND)
        cairo.cairo_set_line_join(context, _ROUND)
        cairo.cairo_set_line_width(context, PEN)
        cairo.cairo_scale(context, SCALE, SCALE)
        cairo.cairo_translate(context, MARGIN, MARGIN)
        cairo.cairo_set_source_rgb(context, 1.0, 1.0, 1.0)

    def draw(self, layout: Layout) -> NDArray[np.uint8]:
        """Render each stroke as a path of its own, over the strokes before it."""
        cairo, context, path = self._cairo, self._context, self._path
        data = _path_data(layout)
        self._pixels[:] = _BLACK
        cairo.cairo_surface_mark_dirty(self._surface)
        address, reference = data.ctypes.data, ctypes.byref(path)
        for length in layout.lengths:
            path.data, path.num_data = address, 2 * length
            cairo.cairo_append_path(context, reference)
            cairo.cairo_stroke(context)
            address += length * _POINT_BYTES
        cairo.cairo_surface_flush(self._surface)
        if status := cairo.cairo_status(context):
            del _thread.canvas  # a cairo context never leaves its error state
            raise RuntimeError(f"cairo: {cairo.cairo_status_to_string(status).decode()}")
        return self._pixels.astype(np.uint8)  # keeps the lowest byte, blue; red, green and blue are equal


_thread = threading.local()


def _path_data(layout: Layout) -> NDArray[np.float64]:
    """Return a drawing as `cairo_path_data_t`: (points, 4); each row holds the header of a point, then x and y."""
    data = np.empty((len(layout.points), 4))
    data[:, 0] = _LINE_TO
    data[np.cumsum([0, *layout.lengths[:-1]]), 0] = _MOVE_TO
    data[:, 2:] = layout.points
    return data


def _free(cairo: ctypes.PyDLL, context: int, surface: int, pixels: NDArray[np.uint32]) -> None:
    """Release context and surface; the `pixels` argument keeps the surface's memory alive until then."""
    cairo.cairo_destroy(context)
    cairo.cairo_surface_destroy(surface)
