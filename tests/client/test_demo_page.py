"""What the server of the verb `demo` answers over HTTP, with a real service behind."""

import json
import re
import signal
import socket
import struct
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection

import pytest
from demo_process import ROOF, ZIGZAG, seen_in
from onnx_models import LABELS
from sketchbatch_client import Client
from sketchbatch_client.demo.classification_api import MAX_CROSSINGS, MAX_POINTS, Answers
from sketchbatch_client.demo.http_handler import MAX_BODY_BYTES
from sketchbatch_client.demo.server import PageServer
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy


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
        (b" " * (8 << 20), 413, "got 8,388,608"),
        (None, 411, "Content-Length must say how many bytes come"),
    ],
    ids=range(10),
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
    with PageServer(
        "127.0.0.1:0", Answers(partial(Client, address, retry=RetryPolicy(max_attempts=1))), **options
    ) as server:
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
        PageServer(address, Answers(partial(Client, "127.0.0.1:1")))


@pytest.mark.parametrize(("address", "url"), [("0.0.0.0:0", "http://localhost:{}/"), ("[::1]:0", "http://[::1]:{}/")])
def test_the_url_opens_on_this_machine(address, url):
    """Also where every address is listened on, and in IPv6."""
    with PageServer(address, Answers(partial(Client, "127.0.0.1:1"))) as server:
        assert server.url == url.format(server.server_address[1])
