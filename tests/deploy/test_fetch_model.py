"""Test the script of the init container, which downloads a model and stores it only if it has the expected digest."""

import hashlib
import os
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml

SCRIPT = "deploy/components/model-fetch/fetch_model.py"
DIGEST = hashlib.sha256(b"a model").hexdigest()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Serve one file, model.onnx, over HTTP; yield the address of the server."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "model.onnx").write_bytes(b"a model")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def fetch(root, tmp_path):
    """Return a function that runs the script as the container does.

    The function returns the finished process and the names of the files that the script has stored.
    """

    def run(url: str, digest: str = DIGEST) -> tuple[subprocess.CompletedProcess, list[str]]:
        path = tmp_path / "bear" / "1" / "model.onnx"
        environment = {"MODEL_URL": url, "MODEL_SHA256": digest, "MODEL_PATH": str(path), "PATH": os.environ["PATH"]}
        command = [sys.executable, root / SCRIPT]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return finished, [each.name for each in path.parent.glob("*")] if path.parent.exists() else []

    return run


@pytest.mark.parametrize("digest", [DIGEST, DIGEST.upper()])
def test_a_model_with_the_expected_digest_is_stored(store, fetch, digest):
    """A model with the expected digest is stored under its name, and replaces the file of an earlier start."""
    for _ in range(2):
        finished, files = fetch(f"{store}/model.onnx", digest)
        assert (finished.returncode, files) == (0, ["model.onnx"]), finished.stderr


@pytest.mark.parametrize(
    ("url", "digest", "message"),
    [
        ("{store}/model.onnx", "0" * 64, f"expected SHA-256 {'0' * 64}, got {DIGEST}"),
        ("{store}/missing.onnx", DIGEST, "HTTP Error 404"),
        ("http://127.0.0.1:9/model.onnx", DIGEST, "refused"),
        ("file:///etc/hostname", DIGEST, "MODEL_URL must be https://"),
    ],
)
def test_any_other_download_fails_with_one_line_and_no_file(store, fetch, url, digest, message):
    """A download with another digest, a failed download and a file:// address leave no file and print one line.

    The line is in the pod's log and has the reason. The exit code is 1, so that the pod does not start.
    """
    finished, files = fetch(url.format(store=store), digest)
    assert finished.returncode == 1
    assert finished.stderr.startswith("fetch_model: ")
    assert message in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert files == []


def test_the_example_names_the_digest_of_the_model_that_ships(root):
    """The digest in the example kustomization.yaml is the digest of the model in models/bear-cat-dog."""
    kustomization = yaml.safe_load((root / SCRIPT).with_name("kustomization.yaml").read_text())
    shipped = hashlib.sha256((root / "models/bear-cat-dog/2/model.onnx").read_bytes()).hexdigest()
    assert f"sha256={shipped}" in kustomization["configMapGenerator"][0]["literals"]
