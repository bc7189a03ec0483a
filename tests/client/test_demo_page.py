"""The verb `demo`: what its server answers over HTTP, and the page in a real browser, with a real service behind."""

import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from onnx_models import LABELS, write_model
from selenium import webdriver
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait
from sketchbatch_client import Client, rasterize
from sketchbatch_client.demo.answers import MAX_CROSSINGS, MAX_POINTS, Answers
from sketchbatch_client.demo.exchange import MAX_BODY_BYTES
from sketchbatch_client.demo.server import PageServer
from sketchbatch_client.drawings.simplify import simplify
from sketchbatch_client.drawings.strokes import open_strokes

pytestmark = pytest.mark.timeout(60)  # a browser takes its time to start where every core is busy

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
COMMAND = str(Path(sys.executable).parent / "sketchbatch")
JSON = {"Content-Type": "application/json"}
ROOF = [
    [[40.5, 200, 390], [300, 80.2, 310], [0, 150, 320]],
    [[60, 60, 370, 370], [310, 480, 480, 310], [600, 700, 800, 900]],
]


class Demo:
    """A `sketchbatch demo` process on a free port, and what it answers."""

    def __init__(self, server, *flags, **options):
        words = [COMMAND, "demo", "--server", server, "--address", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        self.url = self.process.stdout.readline().split()[2]
        self.address = urlsplit(self.url).netloc

    def ask(self, method, path, body=None, headers=JSON):
        connection = HTTPConnection(self.address, timeout=10)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response, json.loads(text) if response.getheader("Content-Type") == "application/json" else text

    def classify(self, strokes, query=""):
        return self.ask("POST", f"/classify{query}", json.dumps({"drawing": strokes}))

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
        return *self.process.communicate(timeout=10), self.process.returncode


@pytest.fixture(scope="module")
def start_demo():
    """Starts demos, and stops those that a test left running."""
    started = []

    def start(*arguments, **options):
        started.append(Demo(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.process.terminate()
    for each in started:
        each.stop()


@pytest.fixture(scope="module")
def demo(start_demo, tiny_service):
    """One demo of the tiny service."""
    return start_demo(tiny_service.address)


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    """A folder of two models that know other things."""
    folder = tmp_path_factory.mktemp("two")
    for name, labels in (("insects", LABELS), ("shapes", ("arc", "box", "cup"))):
        write_model(folder / name / "1" / "model.onnx", labels=labels)
    return folder


def seen_in(strokes):
    """What the model sees in strokes of any size."""
    return rasterize(simplify(strokes))


# --- over HTTP -------------------------------------------------------------------------------------------------------


def test_a_drawing_is_answered_as_everywhere_else(demo, tiny_service):
    """The bitmap of `rasterize(simplify(strokes))` to the byte, and the scores of `Client.classify`, best first."""
    response, answer = demo.classify(ROOF)
    assert response.status == 200
    assert answer["bitmap"] == seen_in(ROOF).ravel().tolist()
    with Client(tiny_service.address) as client:
        scores = client.classify(seen_in(ROOF)).scores[0]
    assert [label for label, _ in answer["top"]] == [LABELS[index] for index in scores.argsort()[::-1]]
    assert [score for _, score in answer["top"]] == sorted(scores.tolist(), reverse=True)


def test_the_page_may_choose_among_the_models(start_demo, start_service, two_models):
    """It is told their labels and which to begin with; a drawing says which it is for."""
    service = start_service(two_models, "--default-model", "insects")
    demo = start_demo(service.address, "--model", "shapes")
    assert demo.ask("GET", "/models")[1] == {
        "models": [
            {"name": "insects", "version": "1", "labels": list(LABELS)},
            {"name": "shapes", "version": "1", "labels": ["arc", "box", "cup"]},
        ],
        "chosen": {"name": "shapes", "version": "1", "labels": ["arc", "box", "cup"]},
    }
    assert demo.classify(ROOF)[1]["model_name"] == "shapes"
    assert demo.classify(ROOF, "?model_name=insects&model_version=1")[1]["model_name"] == "insects"


def test_nothing_from_elsewhere_gets_into_the_page(demo):
    """One file, whose policy allows its own style and script by their digests; nobody may frame it or guess kinds."""
    response, page = demo.ask("GET", "/")
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(|https?://(?!www\.w3\.org)""", page)
    policy = response.getheader("Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert response.getheader("X-Content-Type-Options") == "nosniff"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[::1"])
def test_a_name_that_a_stranger_points_here_is_refused(demo, host):
    """DNS rebinding would let any page that is open in the browser draw and look."""
    response, answer = demo.ask("GET", "/models", headers={"Host": host})
    assert (response.status, answer) == (421, {"error": f"Host must be localhost or an IP address, got {host!r}"})


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "192.0.2.7:8080", "[::1]:8080"])
def test_addresses_and_localhost_are_not(demo, host):
    """They are no stranger's to point anywhere; a port may be forwarded."""
    assert demo.ask("GET", "/models", headers={"Host": host})[0].status == 200


ZIGZAG = [[[0, 500] * MAX_CROSSINGS, list(range(2 * MAX_CROSSINGS))]]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (json.dumps({"drawing": []}), 400, "drawing must be a list of strokes, got []"),
        ('{"drawing": [[[1,', 400, "not JSON: Expecting value at character 18"),
        (b"\xff\xfe\x00", 400, "codec can't decode"),
        ("[" * 100_000, 400, "not JSON: nested too deep"),
        ('{"drawing": [[[NaN], [1]]]}', 400, "stroke 0 must keep within 1e+06 units, got [NaN]"),
        (json.dumps({"drawing": [[[1] * (MAX_POINTS + 1)] * 2]}), 400, "at most 10,000 points, got 10,001"),
        (json.dumps({"drawing": ZIGZAG}), 400, f"lines must be at most {MAX_CROSSINGS} times as long as the drawing"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "a drawing must have at most 1,048,576 bytes, got 1,048,577"),
        (None, 411, "Content-Length must say how many bytes come"),
    ],
)
def test_what_is_no_drawing_is_refused_in_one_line(demo, body, status, message):
    """As JSON, with what was expected and what came; also where all that was sent has not been read."""
    response, answer = demo.ask("POST", "/classify", body)
    assert response.status == status
    assert message in answer["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        (("POST", "/classify", "{}", {"Content-Type": "text/plain"}), 415, "must be application/json, got text/plain"),
        (("POST", "/classify?model_name=zebra", json.dumps({"drawing": ROOF})), 404, "there are: tiny (version 1)"),
        (("GET", "/favicon.ico"), 404, "GET takes /, /models, got /favicon.ico"),
        (("GET", "/classify"), 404, "GET takes /, /models, got /classify"),
        (("DELETE", "/"), 501, "DELETE"),
    ],
)
def test_other_questions_are_refused_as_clearly(demo, asked, status, message):
    """Another page may send a form here, but JSON only if we agreed to it, which we never do."""
    response, answer = demo.ask(*asked)
    assert response.status == status
    assert message in answer["error"]


@contextmanager
def served(address, **options):
    """A server within this process."""
    with PageServer("127.0.0.1:0", Answers(address), **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address
        finally:
            server.shutdown()
            thread.join()


def test_a_peer_that_dawdles_is_cut_off(tiny_service):
    """A byte now and then does not buy time: a request comes whole within `request_s`, or not at all."""
    with served(tiny_service.address, request_s=0.3) as address, socket.create_connection(address) as peer:
        peer.settimeout(0.02)
        started_at = time.monotonic()
        is_open = True
        while is_open and time.monotonic() - started_at < 5:
            try:
                peer.send(b"x")
                is_open = bool(peer.recv(1))
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert 0.2 < time.monotonic() - started_at < 3


def test_what_breaks_is_answered_too(capfd):
    """The page hears that something broke, and the terminal has what."""
    with served(None) as address:
        connection = HTTPConnection(*address, timeout=10)
        connection.request("GET", "/models")
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())) == (
            500,
            {"error": "this broke; the terminal of `sketchbatch demo` has why"},
        )
        connection.close()
    assert "Traceback" in capfd.readouterr().err


def test_a_body_that_does_not_come_is_asked_for_in_words(tiny_service):
    """What was promised and what the limit is; then the connection ends."""
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    with served(tiny_service.address, request_s=0.3) as address, socket.create_connection(address, timeout=5) as peer:
        peer.sendall(head)
        answer = peer.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b'{"error": "a request must come whole within 0.3 s"}')


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_begins_without_a_service_and_ends_when_told_to(start_demo, how, tmp_path):
    """--open opens the page; each question is told in one line what is wrong; exit code 0, and not a word."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would inherit that it is ignored
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >{tmp_path}/opened\n')
    browser.chmod(0o700)
    demo = start_demo("127.0.0.1:1", "--open", env={"BROWSER": f"{browser} %s"})
    assert demo.ask("GET", "/")[0].status == 200
    for response, answer in (demo.ask("GET", "/models"), demo.classify(ROOF)):
        assert response.status == 503
        assert answer["error"].startswith("no answer from 127.0.0.1:1 in 1 attempts: ")
    with socket.create_connection(demo.address.split(":")) as rude:  # leaves in the middle, with a reset
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        rude.sendall(b"GET / HT")
    assert demo.ask("GET", "/")[0].status == 200
    assert demo.stop(how) == ("", "", 0)
    assert (tmp_path / "opened").read_text() == f"{demo.url}\n"


def test_a_port_that_is_taken_is_said_so_in_one_line(run_command, demo):
    """Before anything is said to be served."""
    finished = run_command("sketchbatch", "demo", "--address", demo.address)
    assert (finished.returncode, finished.stdout) == (1, "")
    reason = "Address already in use; choose another with --address"
    assert finished.stderr == f"sketchbatch: cannot listen on {demo.address}: {reason}\n"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("192.0.2.1:80", "cannot listen on 192.0.2.1:80: Cannot assign requested address"),
        ("8080", "--address must be HOST:PORT, got '8080'"),
        ("localhost:99999", "--address must be HOST:PORT, got 'localhost:99999'"),
    ],
)
def test_an_address_that_will_not_do_is_refused(address, message):
    """With what was expected and what came."""
    with pytest.raises(OSError, match=re.escape(message)):
        PageServer(address, Answers("127.0.0.1:1"))


@pytest.mark.parametrize(("address", "url"), [("0.0.0.0:0", "http://localhost:{}/"), ("[::1]:0", "http://[::1]:{}/")])
def test_the_url_opens_on_this_machine(address, url):
    """Also where every address is listened on, and in IPv6."""
    with PageServer(address, Answers("127.0.0.1:1")) as server:
        assert server.url == url.format(server.server_address[1])


# --- in a browser ----------------------------------------------------------------------------------------------------

FLAGS = [
    *("--headless=new", "--window-size=1100,900", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
TAIL = [[[250, 256, 262], [340, 360, 380]]]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A headless Chromium; what the page saves goes to its `downloads`."""
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
    """The page as a person meets it."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get(url)

    def draw(self, strokes, *, kind="mouse", lift=True):
        """Moves a real pointer, which `lift` takes off the paper in the end; units are the drawing's own, 0 to 512."""
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
        """What is shown: uint8, (28, 28, 4)."""
        pixels = "document.getElementById('bitmap').getContext('2d').getImageData(0, 0, 28, 28).data"
        return np.array(self.run(f"return [...{pixels}]"), np.uint8).reshape(28, 28, 4)

    @property
    def bitmap(self):
        """The levels shown: the ink's colour is the theme's, its level how opaque it is."""
        return self.pixels[:, :, 3]

    def settled(self):
        """Returns what is shown once it is what the model sees in the strokes, and the scores shown with it."""
        self.until(lambda: np.array_equal(self.bitmap, seen_in(self.strokes)))
        return self.bitmap, self.text("top").split("\n")

    def until(self, is_so):
        WebDriverWait(self.driver, 10, poll_frequency=0.05).until(lambda _: is_so())


def shown_scores(server, bitmap):
    """As the page writes the scores of a bitmap, best first: label, percentage, label, ..."""
    with Client(server) as client:
        scores = client.classify(bitmap).scores[0]
    return [text for index in scores.argsort()[::-1] for text in (LABELS[index], f"{100 * scores[index]:.1f} %")]


def test_the_scores_follow_the_pen(chromium, demo, tiny_service):
    """Also before it is lifted; at most one request is under way, and the last is about the last drawing."""
    page = Page(chromium, demo.url)
    page.draw([[x[:2] for x in ROOF[0][:2]]], lift=False)
    first, first_scores = page.settled()
    assert first_scores == shown_scores(tiny_service.address, first)
    page.draw([stroke[:2] for stroke in ROOF])
    last, last_scores = page.settled()
    assert len(page.strokes) == 3
    assert last_scores == shown_scores(tiny_service.address, last) != first_scores
    assert [page.text("label"), page.text("score")] == last_scores[:2]
    page.until(lambda: page.run("return document.getElementById('said').textContent") == ", ".join(last_scores[:2]))
    spans = page.run(
        "return performance.getEntriesByType('resource').filter(each => each.name.includes('/classify'))"
        ".map(each => [each.startTime, each.responseEnd])"
    )
    assert len(spans) > 2
    assert all(begun >= ended for (_, ended), (begun, _) in pairwise(spans))
    assert not [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]  # as what the policy bars


def test_what_was_drawn_can_be_taken_back(chromium, demo):
    """Stroke by stroke or all of it, by key or by button; and what was cleared comes back."""
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
    """The page neither scrolls under it nor is wider than the screen, and the ink is light."""
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


def test_saved_strokes_are_a_file_that_we_read(chromium, demo):
    """As raw strokes, which come to the bitmap that was shown."""
    page = Page(chromium, demo.url)
    page.draw([ROOF[0][:2], *TAIL])
    bitmap, _ = page.settled()
    page.click("save")
    saved = chromium.downloads / "drawing.ndjson"
    page.until(saved.exists)
    (drawing,) = open_strokes(saved)
    assert [len(stroke) for stroke in drawing.strokes] == [3, 3]
    assert np.array_equal(seen_in(drawing.strokes), bitmap)


def test_a_drawing_that_is_refused_is_said_so_until_it_changes(chromium, demo):
    """In the server's words, and without asking again and again."""
    page = Page(chromium, demo.url)
    page.draw(TAIL)
    page.settled()
    page.run(f"past.push(strokes); strokes = {json.dumps(ZIGZAG)}; changed()")
    page.until(lambda: "times as long as the drawing" in page.text("trouble"))
    page.click("undo")
    page.settled()
    assert not page.text("trouble")


def test_the_page_waits_for_a_service_that_is_down(chromium, start_demo, start_service, two_models, tiny_model):
    """It says so, keeps the drawing, and goes on by itself when a service is back, with the models of that one."""
    service = start_service(tiny_model)
    page = Page(chromium, start_demo(service.address).url)
    page.draw(TAIL)
    page.settled()
    service.stop(signal.SIGKILL)
    page.until(lambda: "The service does not answer." in page.text("trouble"))  # also without a stroke
    page.draw([ROOF[0][:2]])
    assert len(page.strokes) == 2
    start_service(two_models, "--default-model", "insects", "--address", service.address)
    page.settled()
    page.until(lambda: page.driver.find_element("id", "model").is_displayed())
    assert not page.text("trouble")
    assert page.text("facts").startswith("insects, version 1")
    Select(page.driver.find_element("id", "model")).select_by_visible_text("shapes, version 1")
    page.until(lambda: page.text("facts").startswith("shapes, version 1"))
    assert page.text("label") in ("arc", "box", "cup")
