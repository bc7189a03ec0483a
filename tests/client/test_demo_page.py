"""Test the HTTP server of `sketchbatch demo`, which sends the requests of its page to a real service."""

import hashlib
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
from contextlib import closing, contextmanager, suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import pytest
from demo_process import JSON, ROOF, ZIGZAG, bitmap_of
from finished import Finished
from onnx_models import LABELS, write_model
from polling import wait_until
from sketchbatch_client import AsyncClient, Client
from sketchbatch_client.commands import demo as demo_command
from sketchbatch_client.commands.app import app
from sketchbatch_client.demo.application import MAX_BODY_BYTES
from sketchbatch_client.demo.classification_api import MAX_POINTS, ClassificationApi
from sketchbatch_client.demo.server import PageServer
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy
from typer.testing import CliRunner

CHUNKED = {"Transfer-Encoding": "chunked"}

pytestmark = pytest.mark.timeout(60)  # a test starts up to two processes


def digest_of(model: Path) -> str:
    return hashlib.sha256(model.read_bytes()).hexdigest()


def test_the_scores_of_a_drawing_are_those_of_client(demo, tiny_service):
    """The demo's response has the scores that `Client` receives for the same drawing, sorted from high to low.

    Its bitmap is `rasterize(simplify(strokes))`.
    """
    response, answer = demo.classify(ROOF)
    assert response.status == 200
    assert answer["bitmap"] == bitmap_of(ROOF).ravel().tolist()
    with Client(tiny_service.address) as client:
        scores = client.classify(bitmap_of(ROOF)).scores[0]
    assert [label for label, _ in answer["top"]] == [LABELS[index] for index in scores.argsort()[::-1]]
    assert [score for _, score in answer["top"]] == sorted(scores.tolist(), reverse=True)


def test_the_page_may_select_a_model(start_demo, start_service, two_models):
    """The path /models returns all models with their labels, and the default model of the demo.

    A request to /classify can name another model.
    """
    service = start_service(two_models, "--default-model", "insects")
    demo = start_demo(service.address, "--model", "shapes")
    insects, shapes = (
        {"name": name, "version": "1", "digest": digest_of(two_models / name / "1" / "model.onnx"), "labels": labels}
        for name, labels in (("insects", list(LABELS)), ("shapes", ["arc", "box", "cup"]))
    )
    assert demo.request("GET", "/models")[1] == {"models": [insects, shapes], "chosen": shapes}
    assert demo.classify(ROOF)[1]["model_name"] == "shapes"
    assert demo.classify(ROOF, "?model_name=insects&model_version=1")[1]["model_name"] == "insects"


@pytest.mark.parametrize("labels", [LABELS, LABELS[::-1]])
def test_the_description_of_a_model_changes_with_its_file(start_demo, start_service, tmp_path, labels):
    """If the file of a version is replaced, the description of the model has another digest and the new labels.

    The page requests the scores of its drawing again if the description of the model changes.
    """
    model = write_model(tmp_path / "farm" / "1" / "model.onnx", seed=1)
    service = start_service(tmp_path, "--watch-models-s", "0.1", "--provider", "cpu", "--allow-label-changes")
    demo = start_demo(service.address)
    before, first = demo.request("GET", "/models")[1], demo.classify(ROOF)[1]["top"]
    write_model(tmp_path / ".ready" / "model.onnx", seed=2, labels=list(labels)).rename(model)
    wait_until(lambda: demo.classify(ROOF)[1]["top"] != first)
    after = demo.request("GET", "/models")[1]
    assert after["chosen"]["digest"] == digest_of(model) != before["chosen"]["digest"]
    assert (before["chosen"]["labels"], after["chosen"]["labels"]) == (list(LABELS), list(labels))


def test_the_page_loads_nothing_from_other_origins(demo):
    """The page contains no address of another origin, and its content security policy forbids to load other files.

    The policy allows only the style and the script of the page itself. The policy also forbids other pages to show this
    page in a frame.
    """
    response, page = demo.request("GET", "/")
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(|https?://(?!www\.w3\.org)""", page)
    policy = response.getheader("Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert response.getheader("X-Content-Type-Options") == "nosniff"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[::1"])
def test_a_foreign_host_name_is_rejected(demo, host):
    """A request whose Host header has a foreign name is rejected.

    Otherwise a foreign page could use the server through DNS rebinding: its own host name resolves to this machine.
    """
    response, answer = demo.request("GET", "/models", headers={"Host": host})
    assert (response.status, answer) == (421, {"error": f"Host must be localhost or an IP address, got {host!r}"})


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "192.0.2.7:8080", "[::1]:8080"])
def test_addresses_and_localhost_are_accepted(demo, host):
    """IP addresses and localhost are accepted with any port, because a port may be forwarded."""
    assert demo.request("GET", "/models", headers={"Host": host})[0].status == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (json.dumps({"drawing": []}), 400, "a drawing must have at least one stroke, got none"),
        ('{"drawing": [[[1,', 400, "not JSON: Expecting value at character 18"),
        (b"\xff\xfe\x00", 400, "not JSON"),
        ("[" * 100_000, 400, "not JSON: nested too deep"),
        ('{"drawing": [[[NaN], [1]]]}', 400, "stroke 0 must be within 1e+06 units, got [NaN]"),
        (json.dumps({"drawing": [[[1] * (MAX_POINTS + 1)] * 2]}), 400, "at most 10,000 points, got 10,001"),
        (json.dumps({"drawing": ZIGZAG}), 400, "strokes must together be at most 500 times as long as the drawing"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "a drawing must have at most 1,048,576 bytes, got 1,048,577"),
        (b" " * (8 << 20), 413, "got 8,388,608"),
        (None, 411, "Content-Length must be the number of bytes in the body"),
    ],
    ids=range(10),
)
def test_an_invalid_drawing_is_rejected_in_one_line(demo, body, status, message):
    """The response to an invalid drawing is JSON with an error of one line, which has the expected and the given value.

    The browser receives the response even if the server does not read the whole body of the request.
    """
    response, answer = demo.request("POST", "/classify", body)
    assert response.status == status
    assert message in answer["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize(
    ("request_parts", "status", "message"),
    [
        (("POST", "/classify", "{}", {"Content-Type": "text/plain"}), 415, "must be application/json, got text/plain"),
        (("POST", "/classify?model_name=zebra", json.dumps({"drawing": ROOF})), 404, "there are: tiny (version 1)"),
        (("GET", "/favicon.ico"), 404, "GET must be for /, /models, got /favicon.ico"),
        (("GET", "/classify"), 404, "GET must be for /, /models, got /classify"),
        (("DELETE", "/"), 501, "DELETE"),
    ],
)
def test_other_requests_are_rejected_in_one_line(demo, request_parts, status, message):
    """Requests with another content type, model, path or method are rejected with an error of one line.

    A form on a page of another site cannot send JSON without a cross-origin permission, which the server never gives.
    """
    response, answer = demo.request(*request_parts)
    assert response.status == status
    assert message in answer["error"]


@contextmanager
def served(address, **options):
    """Run the HTTP server of the demo in this process, with the service at `address`; yield the server's address."""
    with PageServer(
        "127.0.0.1:0", ClassificationApi(partial(AsyncClient, address, retry=RetryPolicy(max_attempts=1))), **options
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address
        finally:
            server.shutdown()
            thread.join()


def test_a_malformed_body_is_rejected_without_a_traceback(tiny_service, capfd):
    """A body that is not HTTP receives status 400 from the HTTP server, and the terminal shows nothing."""
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with served(tiny_service.address) as address, socket.create_connection(address, timeout=5) as peer:
        peer.sendall(head + b"no chunk\r\n")
        assert peer.makefile("rb").read().startswith(b"HTTP/1.1 400 ")
    assert capfd.readouterr() == ("", "")


def test_a_body_without_a_length_is_rejected(demo):
    """A body in chunks is rejected, also with a Content-Length, since its size is known only at its end."""
    for length in ({}, {"Content-Length": "2"}):
        response, answer = demo.request("POST", "/classify", b"2\r\n{}\r\n0\r\n\r\n", JSON | CHUNKED | length)
        assert (response.status, answer["error"]) == (411, "Content-Length must be the number of bytes in the body")


def test_responses_are_sent_without_delay(tiny_service):
    """The server's end of a connection has TCP_NODELAY: otherwise the body of each response waits for 40 ms."""
    with served(tiny_service.address) as address, closing(HTTPConnection(*address, timeout=10)) as connection:
        connection.request("GET", "/")
        connection.getresponse().read()
        assert server_option(connection.sock, socket.TCP_NODELAY)


def server_option(connection: socket.socket, option: int) -> int:
    """Return a TCP option of the other end of a connection, which is open in this process, too."""
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # other kinds of files, and sockets without a connection
            end = socket.socket(fileno=int(file.name))
            try:
                if end.getpeername() == connection.getsockname():
                    return end.getsockopt(socket.IPPROTO_TCP, option)
            finally:
                end.detach()
    raise LookupError(connection)


def test_an_internal_error_gets_a_response(capfd):
    """If the server fails, the client receives status 500, and the terminal of the demo shows the traceback."""
    with served(None) as address:
        connection = HTTPConnection(*address, timeout=10)
        connection.request("GET", "/models")
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())) == (
            500,
            {"error": "internal error: the terminal of `sketchbatch demo` shows the cause"},
        )
        connection.close()
    assert "Traceback" in capfd.readouterr().err


def test_an_incomplete_body_is_rejected(tiny_service):
    """If the body of a request is incomplete, the client receives status 408 with the time limit.

    The server then closes the connection.
    """
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    with served(tiny_service.address, request_s=0.3) as address, socket.create_connection(address, timeout=5) as peer:
        peer.sendall(head)
        answer = peer.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b'{"error": "a request must arrive completely within 0.3 s"}')


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_demo_starts_without_a_service_and_stops_on_a_signal(start_demo, how, tmp_path):
    """The demo starts although no service runs, and stops with exit code 0 after SIGTERM or Ctrl-C.

    Each request for models or scores receives an error of one line. With --open, the demo opens its page in a browser.
    """
    # if the tests run as a background job, SIGINT is ignored, and the process of the demo would inherit this setting
    signal.signal(signal.SIGINT, signal.default_int_handler)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >{tmp_path}/opened\n')
    browser.chmod(0o700)
    demo = start_demo("127.0.0.1:1", "--open", env=os.environ | {"BROWSER": f"{browser} %s"})
    assert demo.request("GET", "/")[0].status == 200
    for response, answer in (demo.request("GET", "/models"), demo.classify(ROOF)):
        assert response.status == 503
        assert answer["error"].startswith("no response from 127.0.0.1:1 in 1 attempts: ")
    with socket.create_connection(demo.address.split(":")) as peer:  # closes the connection with a reset
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.sendall(b"GET / HT")
    assert demo.request("GET", "/")[0].status == 200
    assert demo.stop(how) == ("", "", 0)
    assert (tmp_path / "opened").read_text() == f"{demo.url}\n"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_demo_stops_although_the_service_does_not_answer(start_demo, start_server, servicer, how):
    """A request without a time limit, to a service that does not answer, delays the end by less than 10 s."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    demo = start_demo(start_server(servicer), "--timeout-s", "inf")
    servicer.hold()
    with closing(HTTPConnection(demo.address, timeout=20)) as connection:
        connection.request("POST", "/classify", json.dumps({"drawing": ROOF}), JSON)
        servicer.wait_for_rows(1)
        assert demo.stop(how) == ("", "", 0)


def test_without_its_extra_the_demo_names_the_way_to_install_it(sketchbatch, monkeypatch):
    """Without Starlette or uvicorn, the command ends with one line."""
    monkeypatch.setattr(demo_command, "find_spec", lambda name: name != "uvicorn")
    checkout = f".tools/bin/uv pip install --python {sys.executable} starlette uvicorn"
    way = f"pip install 'sketchbatch-client[demo]', or in a checkout {checkout}"
    assert sketchbatch("demo") == Finished(4, "", f"sketchbatch: demo needs starlette and uvicorn: {way}\n")


def test_a_used_port_is_an_error_in_one_line(run_command, demo):
    """If the port is in use, the command prints one line with the error and no address of a page."""
    finished = run_command("sketchbatch", "demo", "--address", demo.address)
    assert (finished.returncode, finished.stdout) == (1, "")
    reason = "Address already in use; choose another with --address"
    assert finished.stderr == f"sketchbatch: cannot listen on {demo.address}: {reason}\n"


def test_an_address_of_another_machine_is_refused():
    """An address that this machine does not have is refused with a message that has the reason."""
    with pytest.raises(OSError, match=r"192\.0\.2\.1:80: Cannot assign requested address"):
        PageServer("192.0.2.1:80", ClassificationApi(partial(AsyncClient, "127.0.0.1:1")))


@pytest.mark.parametrize("address", ["8080", "localhost:99999"])
def test_an_invalid_address_is_an_invalid_option(address):
    """An address without a host, or with a port above 65535, ends the command with exit code 2."""
    result = CliRunner().invoke(app, ["demo", "--address", address])
    assert result.exit_code == 2
    assert f"must be HOST:PORT, got '{address}'" in " ".join(result.stderr.replace("│", "").split())


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--server", "http://localhost:1"], 2, "target must be HOST:PORT or [IPV6]:PORT, without SCHEME:// and path"),
        (["--server", ""], 2, "target must be HOST:PORT"),
        (["--ca", "none.pem"], 4, "none.pem: No such file"),
    ],
)
def test_invalid_options_of_the_connection_end_the_start(run_command, tmp_path, options, code, message):
    """A service that can never be reached is an error of the command, and not of each drawing."""
    finished = run_command("sketchbatch", "demo", "--address", "127.0.0.1:0", *options, cwd=tmp_path)
    assert finished.returncode == code
    assert message in " ".join(finished.stderr.replace("\u2502", "").split())
    assert "draw at" not in finished.stdout


@pytest.mark.parametrize(("address", "url"), [("0.0.0.0:0", "http://localhost:{}/"), ("[::1]:0", "http://[::1]:{}/")])
def test_the_url_opens_on_this_machine(address, url):
    """The URL that the demo prints can be opened on the same machine, even if the server listens on all addresses."""
    with PageServer(address, ClassificationApi(partial(AsyncClient, "127.0.0.1:1"))) as server:
        assert server.url == url.format(server.server_address[1])
