"""The page of `sketchbatch demo` works in a real browser with a real pointer and a real service."""

import json
import shutil
import signal
from itertools import pairwise

import numpy as np
import pytest
from demo_process import ROOF, ZIGZAG, bitmap_of
from onnx_models import LABELS, write_model
from selenium import webdriver
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait
from sketchbatch.rejection import KEY, Rejection, RejectionThreshold, encode
from sketchbatch_client import Client
from sketchbatch_client.drawings.strokes import open_strokes
from stand_in_service import stand_in_service

pytestmark = pytest.mark.timeout(60)  # a browser starts slowly while every core is busy

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = [
    *("--headless=new", "--window-size=1100,900", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
TAIL = [[[250, 256, 262], [340, 360, 380]]]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Start Chromium without a window; the browser saves files to the folder `driver.downloads`."""
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("no browser: chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER)) as driver:
        driver.downloads = downloads
        yield driver


class Page:
    """Control the page of `sketchbatch demo` in the browser, and read what the page shows."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get(url)

    def draw(self, strokes, *, kind="mouse", lift=True):
        """Draw strokes with a mouse or touch pointer.

        Args:
            strokes: Coordinates in units of the drawing area, 0 to 512.
            kind: "mouse" or "touch".
            lift: Whether the pointer is lifted at the end of each stroke.
        """
        left, top, width = self.run(
            "const b = document.getElementById('paper').getBoundingClientRect(); return [b.left, b.top, b.width]"
        )
        pointer = PointerInput(kind, kind)
        for xs, ys in strokes:
            for step, (x, y) in enumerate(zip(xs, ys, strict=True)):
                place = {"x": left + x / 512 * width, "y": top + y / 512 * width}
                pointer.create_pointer_move(duration=10, **place)
                if not step:
                    pointer.create_pointer_down(button=0)
            if lift:
                pointer.create_pointer_up(0)
        ActionBuilder(self.driver, mouse=pointer).perform()

    def press(self, *keys):
        webdriver.ActionChains(self.driver).key_down(keys[0]).send_keys(*keys[1:]).key_up(keys[0]).perform()

    def click(self, name):
        self.driver.find_element("id", name).click()

    def run(self, script):
        return self.driver.execute_script(script)

    def text(self, name):
        return self.driver.find_element("id", name).text

    @property
    def strokes(self):
        return self.run("return strokes")

    @property
    def pixels(self):
        """The pixels of the bitmap that the page shows: uint8, (28, 28, 4), as red, green, blue and opacity."""
        pixels = "document.getElementById('bitmap').getContext('2d').getImageData(0, 0, 28, 28).data"
        return np.array(self.run(f"return [...{pixels}]"), np.uint8).reshape(28, 28, 4)

    @property
    def bitmap(self):
        """The bitmap that the page shows: uint8, (28, 28), 0 = paper, 255 = ink.

        The page shows each grey level as the opacity of the ink, because the theme of the page sets the ink's colour.
        """
        return self.pixels[:, :, 3]

    def settled(self):
        """Wait until the page shows the bitmap of its strokes; return the bitmap and the scores that the page shows."""
        self.until(lambda: np.array_equal(self.bitmap, bitmap_of(self.strokes)))
        return self.bitmap, self.text("top").split("\n")

    def until(self, is_true):
        WebDriverWait(self.driver, 30, poll_frequency=0.05).until(lambda _: is_true())


def shown_scores(server, bitmap):
    """Return the scores of a bitmap as the page shows them, best first: label, percentage, label, ..."""
    with Client(server) as client:
        scores = client.classify(bitmap).scores[0]
    return [text for index in scores.argsort()[::-1] for text in (LABELS[index], f"{100 * scores[index]:.1f} %")]


def test_the_scores_follow_the_pen(chromium, demo, tiny_service):
    """The page shows new scores while a stroke is being drawn, and finally the scores of the finished drawing.

    The page has at most one request in flight.
    """
    page = Page(chromium, demo.url)
    page.draw([[x[:2] for x in ROOF[0][:2]]], lift=False)
    first, first_scores = page.settled()
    assert first_scores == shown_scores(tiny_service.address, first)
    page.draw([stroke[:2] for stroke in ROOF])
    last, last_scores = page.settled()
    assert len(page.strokes) == 3
    assert last_scores == shown_scores(tiny_service.address, last) != first_scores
    assert [page.text("label"), page.text("score")] == last_scores[:2]
    page.until(
        lambda: page.run("return document.getElementById('announcement').textContent") == ", ".join(last_scores[:2])
    )
    spans = page.run(
        "return performance.getEntriesByType('resource').filter(each => each.name.includes('/classify'))"
        ".map(each => [each.startTime, each.responseEnd])"
    )
    assert len(spans) > 2
    assert all(begun >= ended for (_, ended), (begun, _) in pairwise(spans))
    assert not [
        entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"
    ]  # the browser logs each violation of the page's content policy as SEVERE


def test_strokes_can_be_undone_and_cleared(chromium, demo):
    """Keys and buttons undo the last stroke or clear the drawing; undo after clear restores the drawing."""
    page = Page(chromium, demo.url)
    page.draw([ROOF[0][:2]])
    one = page.settled()
    page.draw(TAIL)
    two = page.settled()
    page.press(Keys.CONTROL, "z")
    assert (page.settled()[1], len(page.strokes)) == (one[1], 1)
    for clear in (lambda: page.press(Keys.ESCAPE), lambda: page.press(Keys.DELETE), lambda: page.click("clear")):
        page.draw(TAIL)
        page.settled()
        clear()
        assert (page.text("label"), page.text("top"), page.bitmap.any()) == ("?", "", False)
        page.click("undo")
        assert np.array_equal(page.settled()[0], two[0])
        page.click("undo")
        page.settled()


def test_a_finger_draws_on_a_narrow_dark_page(chromium, demo):
    """On a narrow touch screen with a dark theme, a user can draw with a finger.

    The page fits the screen, does not scroll while the finger draws, and shows light ink.
    """
    narrow = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    chromium.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        page = Page(chromium, demo.url)
        page.draw([[[100, 110, 120, 130], [450, 300, 200, 60]]], kind="touch")
        page.settled()
        assert page.run("return [scrollY, document.documentElement.scrollWidth, paper.width]") == [0, 360, 2 * 310]
        assert page.pixels[page.bitmap == 255].min() > 200
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        chromium.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_saved_strokes_can_be_read_back(chromium, demo):
    """The file that the page saves contains raw strokes, whose bitmap is the bitmap that the page shows."""
    page = Page(chromium, demo.url)
    page.draw([ROOF[0][:2], *TAIL])
    bitmap, _ = page.settled()
    page.click("save")
    saved = chromium.downloads / "drawing.ndjson"
    page.until(lambda: saved.exists() and saved.stat().st_size)  # Chromium creates an empty file first
    (drawing,) = open_strokes(saved)
    assert [len(stroke) for stroke in drawing.strokes] == [3, 3]
    assert np.array_equal(bitmap_of(drawing.strokes), bitmap)


def test_a_rejected_drawing_shows_the_error_until_it_changes(chromium, demo):
    """If the server rejects a drawing, the page shows the server's message until the drawing changes.

    The page does not repeat the rejected request.
    """
    page = Page(chromium, demo.url)
    page.draw(TAIL)
    page.settled()
    page.run(f"past.push(strokes); strokes = {json.dumps(ZIGZAG)}; changed()")
    page.until(lambda: "times as long as the drawing" in page.text("error"))
    assert page.run("return [isClassifying, shownVersion === version]") == [False, True]
    page.click("clear")
    assert not page.text("error")


def test_an_unknown_drawing_has_a_note(chromium, start_demo, start_service, tmp_path):
    """Below the model's threshold for 95 %, the page and its announcement say so; an empty page lists the classes."""
    threshold = RejectionThreshold(coverage=0.95, score=1.0, accuracy=0.5, unknown_rejected=0.5)
    metadata = {KEY: encode(Rejection(rows=9, unknown_rows=9, auroc=0.5, thresholds=(threshold,)))}
    service = start_service(write_model(tmp_path / "model.onnx", metadata=metadata))
    page = Page(chromium, start_demo(service.address).url)
    page.draw([stroke[:2] for stroke in ROOF])
    page.settled()
    assert page.text("labels") == "Probably none of these classes."
    page.until(
        lambda: page.run("return document.getElementById('announcement').textContent").endswith(
            "%, Probably none of these classes."
        )
    )
    page.click("clear")
    page.until(lambda: page.text("labels") == "Classes: ant, bee, cow")
    chromium.get("about:blank")


def test_logits_have_bars_and_are_not_shown_in_percent(chromium, start_demo):
    """The page shows logits as they are; the bars show their softmax, and a note says so."""
    logits = np.float32([[-13.1, 2.5, 3.5]])
    with stand_in_service(lambda rows: logits.repeat(len(rows), axis=0), score_kind="logits") as (address, _):
        page = Page(chromium, start_demo(address).url)
        page.draw([stroke[:2] for stroke in ROOF])
        page.until(lambda: page.text("top").split("\n") == ["dog", "3.50", "cat", "2.50", "bear", "-13.10"])
        assert page.text("score") == "3.50"
        widths = page.run("return [...document.querySelectorAll('.bar')].map(each => each.style.width)")
        assert [round(float(width.removesuffix("%"))) for width in widths] == [73, 27, 0]
        page.until(lambda: "the numbers are logits, the bars their softmax" in page.text("facts"))
        chromium.get("about:blank")  # the page would log that the service has ended


def test_an_open_page_shows_the_scores_of_a_new_model_file(chromium, start_demo, start_service, tmp_path):
    """If the file of the shown version is replaced, an open page shows the new scores without a new stroke."""
    model = write_model(tmp_path / "farm" / "1" / "model.onnx", seed=1)
    service = start_service(tmp_path, "--watch-models-s", "0.1", "--provider", "cpu")
    page = Page(chromium, start_demo(service.address).url)
    page.draw(TAIL)
    bitmap, first = page.settled()
    write_model(tmp_path / ".ready" / "model.onnx", seed=2).rename(model)
    page.until(lambda: page.text("top").split("\n") != first)
    assert page.text("top").split("\n") == shown_scores(service.address, bitmap)


def test_the_page_waits_for_an_unreachable_service(chromium, start_demo, start_service, two_models, tiny_model):
    """While the service does not respond, the page shows an error and keeps the drawing.

    When a service with other models starts at the same address, the page classifies the drawing with these models.
    """
    service = start_service(tiny_model)
    page = Page(chromium, start_demo(service.address).url)
    page.draw(TAIL)
    page.settled()
    service.stop(signal.SIGKILL)
    page.until(lambda: "The service does not respond." in page.text("error"))  # the error appears without a new stroke
    page.draw([ROOF[0][:2]])
    assert len(page.strokes) == 2
    start_service(two_models, "--default-model", "insects", "--address", service.address)
    page.settled()
    page.until(lambda: page.driver.find_element("id", "model").is_displayed())
    assert not page.text("error")
    assert page.text("facts").startswith("insects, version 1")
    Select(page.driver.find_element("id", "model")).select_by_visible_text("shapes, version 1")
    page.until(lambda: page.text("facts").startswith("shapes, version 1"))
    assert page.text("label") in ("arc", "box", "cup")
