"""Write a small folder in Google's layout, explore folders, and write their pages.

The folder has so few drawings that the expected values can be counted by hand.
"""

import json
import struct

from sketchbatch_trainer.dataset import write_bitmaps
from sketchbatch_trainer.explore.explore_page import write_page
from sketchbatch_trainer.explore.exploring import find_files, gather

SIMPLE = [[[0, 255], [0, 0]], [[0, 0, 0], [0, 100, 255]]]  # two strokes, five points
RAW = [[[10, 20], [5, 6], [0, 400]], [[30], [7], [2500]]]  # 2.5 s
BINARY = 2 * (
    struct.pack("<Q2sbIHH", 7, b"US", 1, 1_488_497_110, 1, 2) + bytes([0, 255, 0, 90])
)  # one stroke, two points


def line(strokes, country="US", recognized=True, timestamp="2017-03-02 23:25:10.07453 UTC") -> str:
    """Return a line of a simplified or raw file, with one drawing."""
    fields = {"key_id": "7", "word": "ant", "countrycode": country, "timestamp": timestamp, "recognized": recognized}
    return json.dumps({**fields, "drawing": strokes}) + "\n"


def write_folder(data, noise):
    """Write files of the class `ant` in three formats (simplified, raw, npy), and of the class `bee` as npy only."""
    for name in ("simplified", "raw"):
        (data / name).mkdir(parents=True)
    simplified = [
        line(SIMPLE),
        line(SIMPLE[:1], "SE", recognized=False),
        line(SIMPLE[:1], timestamp="2017-01-31 04:00:00 UTC"),
        line(SIMPLE * 3, "SE"),
    ]
    (data / "simplified" / "ant.ndjson").write_text("".join(simplified))
    (data / "raw" / "ant.ndjson").write_text(line(RAW) + line(RAW[:1], recognized=False))
    write_bitmaps(data / "numpy_bitmap" / "ant.npy", noise(6))
    write_bitmaps(data / "numpy_bitmap" / "bee.npy", noise(7))
    return data


def explored(folder, labels=None, **options):
    """Return the statistics of a folder."""
    found = find_files(folder)
    return gather(folder, {label: found[label] for label in labels or found}, **options)


def page_of(statistics, tmp_path) -> str:
    """Write the page of statistics, and return its text on one line."""
    return " ".join(write_page(statistics, tmp_path / "out" / "page.html").read_text(encoding="utf-8").split())
