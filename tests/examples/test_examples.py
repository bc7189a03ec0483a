"""Run every example against a real service, through a relay that fails calls as a draining server does."""

import re

import numpy as np
import pytest
from sketchbatch_client import rasterize

from .conftest import COMMANDS, EXAMPLES, UNUSED, run
from .relay import CLASSIFY, STREAM, relaying

pytestmark = pytest.mark.timeout(60)

PAGE = (EXAMPLES / "README.md").read_text()
ROWS = dict(re.findall(r"^\| \[(.*?)\].*\|(.*)\|$", PAGE, re.MULTILINE))
OPTIONS = {"Python": "python/stream.py", "Node": "node/classify.js", "C++": "cpp/classify.cc", "grpcurl": "grpcurl.sh"}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_prints_its_prediction_although_calls_fail(name, wide_service, cats, tmp_path):
    """An example repeats each call that ends with UNAVAILABLE, and prints what the README says.

    The model has 345 classes, so the scores of 4,096 rows in the examples of Node and C++ exceed gRPC's default limit.
    """
    words = COMMANDS[name]()
    if name == "python/bulk.py":
        words += [str(cats), str(tmp_path / "labels.csv")]
    with relaying(wide_service.address) as relay:
        finished = run(words, relay.address)
    assert finished.returncode == 0, finished.stderr
    expected = re.findall("`(.*?)`", ROWS[name])
    assert expected
    assert [text for text in expected if text not in finished.stdout] == []
    if name == "python/stream.py":
        assert relay.attempts[STREAM] == 2
        assert "1 responses, then UNAVAILABLE" in finished.stderr
    else:
        assert relay.attempts[CLASSIFY] >= (4 if name in ("node/classify.js", "cpp/classify.cc") else 2)
    if name == "python/bulk.py":
        header, *lines = (tmp_path / "labels.csv").read_text().splitlines()
        assert header == "row,label,score,margin"
        assert [line.split(",")[:2] for line in lines] == [[str(row), "cat"] for row in range(5000)]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "notebook.ipynb"])
def test_an_example_ends_with_one_clear_line_if_no_server_responds(name, cats, tmp_path):
    """An example that reaches no server prints a line that names the address, no traceback, and exits with 1."""
    words = COMMANDS[name]()
    if name == "python/bulk.py":
        words += [str(cats), str(tmp_path / "labels.csv")]
    finished = run(words, UNUSED)
    assert finished.returncode == 1
    assert finished.stdout == ""
    [line] = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert UNUSED in line
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "labels.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["python/unary.py", "python/many.py", "node/classify.js", "cpp/classify.cc", "grpcurl.sh"]
)
def test_an_example_ends_at_its_deadline(name, wide_service):
    """An example whose rows receive no response ends with an error after its deadline of 10 s, instead of waiting."""
    words = COMMANDS[name]()
    with relaying(wide_service.address) as relay:
        relay.holds_rows = True
        finished = run(words, relay.address)
    assert finished.returncode != 0
    assert re.search("^error: ", finished.stderr, re.MULTILINE)
    assert "Traceback" not in finished.stderr


def test_the_readme_has_a_row_for_every_example():
    """The table of the README lists each example, and links to existing files."""
    assert set(ROWS) == {*COMMANDS, "nightly.sh", "deploy/bulk"}
    assert [name for name in ROWS if not (EXAMPLES / name).exists()] == ["deploy/bulk"]


def test_the_examples_use_the_service_config_of_the_guide(root):
    """The file retry.json equals the service config of docs/grpc-api.md."""
    [config] = re.findall(r"^```json\n(.*?)^```$", (root / "docs/grpc-api.md").read_text(), re.MULTILINE | re.DOTALL)
    assert (EXAMPLES / "retry.json").read_text() == config


@pytest.mark.parametrize("language", OPTIONS)
def test_an_example_sets_the_channel_options_of_the_guide(root, language):
    """Each channel option that docs/grpc-api.md lists for a language is in the example of this language."""
    [row] = re.findall(rf"^\| {re.escape(language)} \|(.*)\|$", (root / "docs/grpc-api.md").read_text(), re.MULTILINE)
    options = re.findall("`(.*?)`", row)
    text = (EXAMPLES / OPTIONS[language]).read_text()
    assert len(options) >= 2
    assert [option for option in options if option not in text] == []


def test_the_bitmap_is_the_drawing_of_the_unary_example():
    """The file cat.bitmap has the strokes of unary.py as `rasterize` renders them, with or without libcairo."""
    text = (EXAMPLES / "python/unary.py").read_text()
    strokes = eval(re.search(r"^CAT = (\[.*?^\])", text, re.MULTILINE | re.DOTALL)[1])
    bitmap = np.frombuffer((EXAMPLES / "cat.bitmap").read_bytes(), np.uint8).reshape(28, 28)
    assert np.abs(bitmap.astype(int) - rasterize(strokes)).mean() < 0.5


def test_the_lock_file_of_the_node_example_pins_every_package_and_names_no_registry(root):
    """Each package has a version and a checksum, and no address of a registry other than npm's own."""
    text = (EXAMPLES / "node/package-lock.json").read_text()
    assert text.count('"integrity": "sha512-') == text.count('"node_modules/') > 10
    assert set(re.findall(r'"resolved": "(https?://[^/]*)', text)) <= {"https://registry.npmjs.org"}
    versions = re.findall(r'"@grpc/.*?": "(.*?)"', (EXAMPLES / "node/package.json").read_text())
    assert [version for version in versions if not re.fullmatch(r"\d+\.\d+\.\d+", version)] == []
