"""A row whose scores are NaN or infinite never has a label: it is an error or a reject, and no file has a bare NaN."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from pyarrow import parquet
from sketchbatch_client import AsyncClient, Client, ServerFailed, SketchbatchError
from sketchbatch_client.scoring.manifest import manifest_path
from sketchbatch_client.strict_json import encode
from stand_in_service import row_norm, stand_in_service

ROWS, BLANK = 10, (0, 2, 7)
MESSAGE = "m version 1 returned scores that are not finite"


@pytest.fixture
def service() -> Iterator[str]:
    """Return the address of a service whose scores of a blank drawing are NaN."""
    with stand_in_service(row_norm) as (address, _):
        yield address


@pytest.fixture
def bitmaps() -> np.ndarray:
    """Return ten drawings of which three are blank."""
    drawings = np.random.default_rng(3).integers(1, 256, (ROWS, 784), np.uint8)
    drawings[list(BLANK)] = 0
    return drawings


def read_strictly(text: str) -> object:
    """Parse JSON as other programs do: NaN and infinity are errors."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"not JSON: {constant}")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("top_k", [0, 1, 3])
def test_classify_raises_instead_of_returning_nan(service, bitmaps, top_k):
    """`classify` and `score` of `Client` raise an error that names the model and the first such row."""
    with Client(service, rows_per_request=4) as client:
        with pytest.raises(ServerFailed, match=f"row 0: {MESSAGE}"):
            client.classify(bitmaps, top_k=top_k)
        with pytest.raises(ServerFailed, match=f"row 6: {MESSAGE}"):
            client.classify(bitmaps[[1] * 6 + [0]], top_k=top_k)
        with pytest.raises(ServerFailed, match=f"row 5: {MESSAGE}"):
            list(client.score([bitmaps[[1] * 5], bitmaps[:1]], top_k=top_k))
        assert len(client.classify(bitmaps[3:7], top_k=top_k)) == 4


async def test_classify_of_the_asyncio_client_raises(service, bitmaps):
    """`AsyncClient` raises the same error."""
    async with AsyncClient(service) as client:
        with pytest.raises(ServerFailed, match=f"row 0: {MESSAGE}"):
            await client.classify(bitmaps)
        with pytest.raises(ServerFailed, match=f"row 0: {MESSAGE}"):
            [each async for each in client.score([bitmaps])]


def test_score_returns_such_rows_on_request(service, bitmaps):
    """With `allow_non_finite`, `score` yields all rows, and `finite_rows` names those with a label."""
    with Client(service) as client:
        (result,) = client.score([bitmaps], allow_non_finite=True)
    assert np.flatnonzero(~result.finite_rows()).tolist() == list(BLANK)


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_infinity_is_not_a_score_either(bitmaps, infinite):
    """A row with an infinite score of any class is not finite."""

    def score(rows):
        scores = row_norm(rows)
        scores[np.isnan(scores[:, 0]), 1] = infinite
        return np.nan_to_num(scores, nan=0.0, posinf=np.inf, neginf=-np.inf)

    with stand_in_service(score) as (address, _), Client(address) as client:
        (result,) = client.score([bitmaps], allow_non_finite=True)
    assert np.flatnonzero(~result.finite_rows()).tolist() == list(BLANK)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "npy"])
@pytest.mark.parametrize("flags", [("--top-k", "2"), ("--all-scores",)])
def test_score_writes_a_reject_instead_of_a_label(sketchbatch, service, bitmaps, tmp_path, kind, flags):
    """`sketchbatch score` writes such rows to the rejects file, in the order of the rows, and exits with 3."""
    np.save(tmp_path / "d.npy", bitmaps)
    output = tmp_path / f"o.{kind}"
    flags = ("--all-scores",) if kind == "npy" else flags
    finished = sketchbatch("score", tmp_path / "d.npy", "--output", output, "--server", service, *flags)
    assert finished.code == 3, finished.err
    rejects = [json.loads(line) for line in (tmp_path / f"{output.name}.rejects.jsonl").read_text().splitlines()]
    assert [(reject["source"], reject["row"]) for reject in rejects] == [
        (str(tmp_path / "d.npy"), row) for row in BLANK
    ]
    assert {reject["reason"] for reject in rejects} == {MESSAGE}
    good = [row for row in range(ROWS) if row not in BLANK]
    if kind == "npy":
        assert np.flatnonzero(np.isnan(np.load(output)).any(axis=1)).tolist() == list(BLANK)
    elif kind == "parquet":
        assert parquet.read_table(output)["row"].to_pylist() == good
    elif kind == "jsonl":
        assert [read_strictly(line)["row"] for line in output.read_text().splitlines()] == good
    else:
        assert [int(line.split(",")[1]) for line in output.read_text().splitlines()[1:]] == good
        assert "nan" not in output.read_text()
    manifest = json.loads(manifest_path(output).read_text())
    assert (manifest["rows"], manifest["rejected"]) == (len(good), len(BLANK))


def test_rejects_of_the_model_and_of_the_file_keep_the_order_of_the_rows(sketchbatch, service, tmp_path):
    """A row that is no drawing and a row without finite scores are rejects in the order of the rows."""
    good, bad = '{"drawing": [[[0, 255], [0, 255]]]}', "{}"
    (tmp_path / "a.ndjson").write_text("\n".join([good, bad, good, bad, good]) + "\n")
    with stand_in_service(lambda rows: np.full((len(rows), 3), [[np.nan]], np.float32)) as (address, _):
        finished = sketchbatch("score", tmp_path, "--output", tmp_path / "o.csv", "--server", address)
    assert finished.code == 4
    assert "no row was scored, and 5 rejected" in finished.err

    def every_second(rows):
        scores = np.full((len(rows), 3), 0.25, np.float32)
        scores[::2] = np.nan
        return scores

    with stand_in_service(every_second) as (address, _):
        finished = sketchbatch("score", tmp_path, "--output", tmp_path / "o.csv", "--server", address)
    rejects = [json.loads(line) for line in (tmp_path / "o.csv.rejects.jsonl").read_text().splitlines()]
    assert [reject["row"] for reject in rejects] == [0, 1, 3, 4]
    assert [reject["reason"] == MESSAGE for reject in rejects] == [True, False, False, True]


def test_a_job_of_which_no_row_has_a_score_says_so(sketchbatch, service, tmp_path):
    """If no row has finite scores, the job is refused with the reason, and does not blame the drawings."""
    np.save(tmp_path / "d.npy", np.zeros((5, 784), np.uint8))
    finished = sketchbatch("score", tmp_path / "d.npy", "--output", tmp_path / "o.csv", "--server", service)
    assert (finished.code, finished.err.count("\n")) == (4, 1)
    assert f"no row was scored, and 5 rejected; the first: {MESSAGE}" in finished.err


@pytest.mark.parametrize("flags", [(), ("--skip-malformed",)])
def test_evaluate_stops_at_such_a_row_and_names_it(sketchbatch, service, bitmaps, tmp_path, flags):
    """`sketchbatch evaluate` names the drawing and writes nothing; --skip-malformed skips drawings, not failures."""
    np.save(tmp_path / "cat.npy", bitmaps)
    finished = sketchbatch("evaluate", tmp_path, "--json", tmp_path / "metrics.json", "--server", service, *flags)
    assert (finished.code, finished.err.count("\n")) == (1, 1)
    assert f"{tmp_path / 'cat.npy'}, row 0: {MESSAGE}" in finished.err
    assert not (tmp_path / "metrics.json").exists()


def test_a_stored_metric_that_is_not_finite_is_unknown(sketchbatch, bitmaps, tmp_path):
    """A model file may store NaN as a metric: the model is usable, and all JSON has null for this metric."""
    metrics = {"accuracy": float("nan"), "rows": 7.0}
    np.save(tmp_path / "cat.npy", bitmaps[3:7])
    with stand_in_service(row_norm, metrics=metrics) as (address, _):
        with Client(address) as client:
            assert client.model().metrics == {"accuracy": None, "rows": 7.0}
        shown = sketchbatch("model", "--json", "--server", address)
        assert read_strictly(shown.out)[0]["metrics"] == {"accuracy": None, "rows": 7.0}
        report = tmp_path / "metrics.json"
        finished = sketchbatch("evaluate", tmp_path, "--json", report, "--server", address, "--quiet")
        assert finished.code == 0, finished.err
        assert read_strictly(report.read_text())["drift"]["metrics"] == {}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_such_numbers(number):
    """The encoder names the place of a number that JSON does not have."""
    with pytest.raises(SketchbatchError, match=r"per_class\.cat\.recall\[1\] must be a finite number, got -?(nan|inf)"):
        encode({"rows": 3, "per_class": {"cat": {"recall": [1.0, number]}}})
    assert encode({"\u00e9": [1, 0.5]}) == '{"\u00e9": [1, 0.5]}'
