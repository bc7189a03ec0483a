"""Draws strokes with the machine's own libcairo, as Google did: byte for byte the published bitmaps.

Plain ctypes: nothing to install, nothing loaded before the first drawing. The path of a whole drawing is built as one
NumPy array in the memory layout of `cairo_path_data_t`, so a stroke costs two calls.
Measured, against cairocffi too: docs/decisions/0005-rasterising-with-cairo.md.
"""

import ctypes
import threading
import weakref
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .geometry import MARGIN, PEN, SCALE, SIDE, Layout

_NAMES = ("libcairo.so.2", "libcairo.2.dylib", "libcairo-2.dll")
_POINTER, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_int, ctypes.c_double
_FUNCTIONS = {  # name: (result, arguments); https://www.cairographics.org/manual/
    "cairo_append_path": (None, _POINTER, _POINTER),
    "cairo_create": (_POINTER, _POINTER),
    "cairo_destroy": (None, _POINTER),
    "cairo_image_surface_create_for_data": (_POINTER, _POINTER, _INT, _INT, _INT, _INT),
    "cairo_scale": (None, _POINTER, _DOUBLE, _DOUBLE),
    "cairo_set_antialias": (None, _POINTER, _INT),
    "cairo_set_line_cap": (None, _POINTER, _INT),
    "cairo_set_line_join": (None, _POINTER, _INT),
    "cairo_set_line_width": (None, _POINTER, _DOUBLE),
    "cairo_set_source_rgb": (None, _POINTER, _DOUBLE, _DOUBLE, _DOUBLE),
    "cairo_status": (_INT, _POINTER),
    "cairo_status_to_string": (ctypes.c_char_p, _INT),
    "cairo_stroke": (None, _POINTER),
    "cairo_surface_destroy": (None, _POINTER),
    "cairo_surface_flush": (None, _POINTER),
    "cairo_surface_mark_dirty": (None, _POINTER),
    "cairo_translate": (None, _POINTER, _DOUBLE, _DOUBLE),
    "cairo_version_string": (ctypes.c_char_p,),
}
_ARGB32, _ROUND, _ANTIALIAS_BEST = 0, 1, 6
_BLACK = 0xFF000000

# cairo_path_data_t is 16 bytes: a header of two ints (what, how many), or x and y. A point takes one of each.
_MOVE_TO, _LINE_TO = np.array([[0, 2], [1, 2]], np.int32).view(np.float64).ravel()
_POINT_BYTES = 32


class _Path(ctypes.Structure):
    """`cairo_path_t`."""

    _fields_ = (("status", _INT), ("data", _POINTER), ("num_data", _INT))


@cache
def library() -> ctypes.PyDLL | None:
    """The machine's libcairo, or None where there is none."""
    for name in _NAMES:
        try:
            # PyDLL keeps the GIL during a call: CDLL, which drops it, drew no faster with two threads.
            found = ctypes.PyDLL(name)
        except OSError:
            continue
        for function, (result, *arguments) in _FUNCTIONS.items():
            getattr(found, function).restype = result
            getattr(found, function).argtypes = arguments
        return found
    return None


def draw(layout: Layout) -> NDArray[np.uint8]:
    """Draws what `library` must be there for: uint8, (28, 28), 0 = paper, 255 = ink. From any thread."""
    if not hasattr(_thread, "canvas"):
        _thread.canvas = _Canvas()
    bitmap: NDArray[np.uint8] = _thread.canvas.draw(layout)
    return bitmap


class _Canvas:
    """One surface and its context, used again for every drawing of one thread."""

    def __init__(self) -> None:
        cairo = library()
        assert cairo
        self._cairo = cairo
        self._path = _Path(0, 0, 0)
        self._pixels = np.zeros((SIDE, SIDE), np.uint32)  # ARGB
        place = self._pixels.ctypes.data
        self._surface = cairo.cairo_image_surface_create_for_data(place, _ARGB32, SIDE, SIDE, SIDE * 4)
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
        """Each stroke its own path, painted over the last."""
        cairo, context, path = self._cairo, self._context, self._path
        data = _path_data(layout)
        self._pixels[:] = _BLACK
        cairo.cairo_surface_mark_dirty(self._surface)
        place, reference = data.ctypes.data, ctypes.byref(path)
        for length in layout.lengths:
            path.data, path.num_data = place, 2 * length
            cairo.cairo_append_path(context, reference)
            cairo.cairo_stroke(context)
            place += length * _POINT_BYTES
        cairo.cairo_surface_flush(self._surface)
        if status := cairo.cairo_status(context):
            del _thread.canvas  # a context stays in its error for ever
            raise RuntimeError(f"cairo: {cairo.cairo_status_to_string(status).decode()}")
        return self._pixels.astype(np.uint8)  # the lowest byte, blue; all colours are equal


_thread = threading.local()


def _path_data(layout: Layout) -> NDArray[np.float64]:
    """The drawing as `cairo_path_data_t`s: (points, 4), each row the header of a point and the point."""
    data = np.empty((len(layout.points), 4))
    data[:, 0] = _LINE_TO
    data[np.cumsum([0, *layout.lengths[:-1]]), 0] = _MOVE_TO
    data[:, 2:] = layout.points
    return data


def _free(cairo: ctypes.PyDLL, context: int, surface: int, pixels: NDArray[np.uint32]) -> None:
    """Takes `pixels` so that they outlive the surface that draws on them."""
    cairo.cairo_destroy(context)
    cairo.cairo_surface_destroy(surface)
