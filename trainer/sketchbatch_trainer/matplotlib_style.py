"""How matplotlib draws here, and how a picture goes into a page that is one file."""

import io
from typing import Any

from matplotlib.figure import Figure
from sketchbatch_client.html_page import data_url

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "text.parse_math": False,  # a name is a name, also with dollars in it
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "svg.fonttype": "path",
    "svg.hashsalt": "sketchbatch",  # the same picture gives the same bytes
}


def embedded(figure: Figure) -> str:
    """The figure as an <img> source."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return data_url(file.getvalue(), "image/svg+xml")
