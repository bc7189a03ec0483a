"""Run `sketchbatch demo` as a process, and provide drawings to send to the process."""

import json
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from sketchbatch_client import rasterize
from sketchbatch_client.drawings.simplify import simplify

COMMAND = str(Path(sys.executable).parent / "sketchbatch")
JSON = {"Content-Type": "application/json"}

ROOF = [
    [[40.5, 200, 390], [300, 80.2, 310], [0, 150, 320]],
    [[60, 60, 370, 370], [310, 480, 480, 310], [600, 700, 800, 900]],
]
ZIGZAG = [[[0, 500] * 500, list(range(1000))]]  # refused, because the path is longer than 500 times the drawing's size


def bitmap_of(strokes):
    """Return the bitmap of strokes that may have any size."""
    return rasterize(simplify(strokes))


class Demo:
    """Run a `sketchbatch demo` process on a free port."""

    def __init__(self, server, *flags, **options):
        words = [COMMAND, "demo", "--server", server, "--address", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        self.url = self.process.stdout.readline().split()[2]
        self.address = urlsplit(self.url).netloc

    def request(self, method, path, body=None, headers=JSON):
        connection = HTTPConnection(self.address, timeout=10)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response, json.loads(text) if response.getheader("Content-Type") == "application/json" else text

    def classify(self, strokes, query=""):
        return self.request("POST", f"/classify{query}", json.dumps({"drawing": strokes}))

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
        return *self.process.communicate(timeout=10), self.process.returncode
