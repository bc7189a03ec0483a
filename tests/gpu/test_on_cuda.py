"""Test the CUDA engine and the service on a real GPU; machines without a GPU skip the tests with a reason.

The tests run with a plain Python and no plugins, as docs/gpu.md describes, so they use no fixtures of other folders.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from onnx_models import write_model
from sketchbatch_client import Client
from sketchbatch_service.engines.cpu import CPU
from sketchbatch_service.engines.cuda import CudaEngine, CudaOptions, open_on_cuda
from sketchbatch_service.engines.cuda_device import CUDA, Device
from sketchbatch_service.engines.parity import COARSE_TOLERANCE, FLOAT32_TOLERANCE, Reference
from sketchbatch_service.errors import ProviderMissing
from sketchbatch_service.models.loader import LoadOptions, load_models
from sketchbatch_trainer.export.float16 import to_float16

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "bear-cat-dog" / "2" / "model.onnx"
TOLERANCES = {"float32": FLOAT32_TOLERANCE, "float16": COARSE_TOLERANCE}
ROWS = 256


def cuda_missing() -> str:
    """Return why CUDA does not work, or an empty text if CUDA works."""
    try:
        Device.cuda()
    except ProviderMissing as exc:
        return str(exc)
    return ""


REASON = cuda_missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=f"no CUDA: {REASON}")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files of the shipped model in float32 and in float16."""
    half = tmp_path_factory.mktemp("half") / "model.onnx"
    model = to_float16(onnx.load(MODEL))
    metadata = {"sketchbatch.labels": '["bear", "cat", "dog"]', "sketchbatch.metrics": '{"variant": "float16"}'}
    helper.set_model_props(model, metadata)
    onnx.save(model, half)
    return {"float32": MODEL, "float16": half}


@pytest.fixture(scope="module")
def opened(files: dict[str, Path]) -> Callable[..., CudaEngine]:
    """Return a function that opens an engine for a variant of the model, with CUDA graphs "on" or "off".

    A second call with the same arguments returns the engine of the first call.
    """
    engines: dict[tuple[str, str], CudaEngine] = {}

    def engine(variant: str, graphs: str) -> CudaEngine:
        if (variant, graphs) not in engines:
            engines[variant, graphs] = on_cuda(files[variant], ROWS, graphs=graphs)
        return engines[variant, graphs]

    return engine


def on_cpu(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # this level hides a warning for each node that the CPU computes in float32
    return ort.InferenceSession(str(path), options, providers=[CPU])


def on_cuda(path: Path, rows: int, **options: object) -> CudaEngine:
    return open_on_cuda(path, Reference(on_cpu(path), 3), max_batch_rows=rows, options=CudaOptions(**options))


def noise(rows: int, seed: int) -> np.ndarray:
    """Return random bitmaps with different amounts of ink, unlike the bitmaps of an engine's warm-up."""
    random = np.random.default_rng(seed)
    grey = random.integers(0, 256, (rows, 28, 28), np.uint8)
    return np.where(random.random((rows, 28, 28)) < random.random((rows, 1, 1)), grey, 0).astype(np.uint8)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("graphs", ["on", "off"])
@pytest.mark.parametrize("variant", ["float32", "float16"])
def test_every_bucket_scores_as_the_cpu_does(files, opened, variant, graphs):
    """In every bucket, full and padded batches receive the scores of the CPU.

    The test would fail if a CUDA graph returned the scores of the batch with which it was captured.
    """
    engine, reference = opened(variant, graphs), on_cpu(files[variant])
    assert engine.provider == CUDA
    assert engine.has_graphs == (graphs == "on")
    sizes = sorted({rows for bucket in engine.buckets for rows in (bucket, bucket // 2 + 1)})
    for seed, rows in enumerate([*sizes, *reversed(sizes)]):
        bitmaps = noise(rows, seed)
        expected = reference.run(["scores"], {"bitmaps": bitmaps})[0]
        assert np.abs(engine.predict(bitmaps) - expected).max() <= TOLERANCES[variant], rows


@pytest.mark.timeout(180)
@pytest.mark.parametrize("variant", ["float32", "float16"])
def test_graphs_change_no_score(opened, variant):
    """An engine with CUDA graphs returns the same scores as an engine without CUDA graphs."""
    for rows in (1, 3, 64, 200, ROWS):
        scores = [opened(variant, graphs).predict(noise(rows, rows)) for graphs in ("on", "off")]
        assert np.allclose(*scores, atol=TOLERANCES[variant] / 10), rows


@pytest.mark.timeout(60)
@pytest.mark.parametrize("graphs", ["on", "off"])
def test_two_slots_keep_their_rows(files, opened, graphs):
    """With two execution slots, each of several concurrent batches receives the scores of its own rows.

    One slot copies a batch while the other slot computes another batch.
    """
    engine, reference = opened("float32", graphs), on_cpu(files["float32"])
    batches = [noise(1 + 37 * n % ROWS, n) for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.predict, batches * 5))
    expected = [reference.run(["scores"], {"bitmaps": bitmaps})[0] for bitmaps in batches] * 5
    assert max(np.abs(mine - its).max() for mine, its in zip(found, expected, strict=True)) <= FLOAT32_TOLERANCE


@pytest.mark.timeout(120)
def test_a_model_is_loaded_while_another_serves(files):
    """While one model serves requests, other models can be loaded, and all scores are correct.

    A capture of a CUDA graph never runs at the same time as a model call.
    """
    engine, bitmaps = on_cuda(files["float32"], 64), noise(33, 1)
    expected = on_cpu(files["float32"]).run(["scores"], {"bitmaps": bitmaps})[0]
    loaded = threading.Event()

    def largest_difference() -> float:
        worst = 0.0
        while not loaded.is_set():
            worst = max(worst, np.abs(engine.predict(bitmaps) - expected).max())
        return worst

    with ThreadPoolExecutor(2) as pool:
        callers = [pool.submit(largest_difference) for _ in range(2)]
        try:
            others = [on_cuda(files["float32"], 64) for _ in range(3)]
        finally:
            loaded.set()
        assert max(each.result() for each in callers) <= FLOAT32_TOLERANCE
    assert all(other.has_graphs for other in others)


@pytest.mark.timeout(60)
def test_a_difference_from_the_cpu_is_refused(files, tmp_path):
    """A model is not served on CUDA if its scores differ from the scores on the CPU.

    The scores would differ if, for example, the engine replayed the CUDA graph of another bucket.
    """
    other = Reference(on_cpu(write_model(tmp_path / "other.onnx")), 3)
    with pytest.raises(ProviderMissing, match="may differ from the CPU's"):
        open_on_cuda(files["float32"], other, max_batch_rows=4, options=CudaOptions())


def hardmax_model(path: Path) -> Path:
    """Write a tiny model that contains Hardmax, an operator that ONNX Runtime supports only on the CPU."""
    model = onnx.load(write_model(path))
    softmax = model.graph.node[-1]
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Hardmax", [softmax.input[0]], ["hard"]))
    softmax.input[0] = "hard"
    onnx.save(model, path)
    return path


def test_a_model_must_run_on_cuda_as_a_whole(tmp_path):
    """If one node of a model cannot run on CUDA, provider `cuda` refuses the model.

    Provider `auto` then serves the whole model on the CPU.
    """
    path = hardmax_model(tmp_path / "hard.onnx")
    with pytest.raises(ProviderMissing, match="provider cuda was asked for, but the model cannot run on CUDA alone"):
        load_models(path, LoadOptions(provider="cuda"))
    assert load_models(path, LoadOptions(provider="auto")).get("", "").provider == CPU


def test_auto_uses_cuda(files):
    """Provider `auto` prefers CUDA to the CPU."""
    assert load_models(files["float32"], LoadOptions(provider="auto")).get("", "").provider == CUDA


def test_workers_are_spread_over_all_devices(files):
    """A worker's device is the worker's number modulo the number of devices; each device returns correct scores."""
    count = 1 + max(Device.cuda(number).id for number in range(64))
    for number in range(17, 17 + count):
        assert Device.cuda(number).id == number % count
        engine, bitmaps = on_cuda(files["float32"], 8, device=number), noise(5, number)
        expected = on_cpu(files["float32"]).run(["scores"], {"bitmaps": bitmaps})[0]
        assert np.abs(engine.predict(bitmaps) - expected).max() <= FLOAT32_TOLERANCE


def test_pinned_memory_is_freed_with_its_array():
    """Pinned memory is freed with its array, so that repeated allocations do not exhaust the pinned memory."""
    for _ in range(100):
        rows = Device.cuda().host_rows(1024)
        rows[:] = 7
        assert rows.sum() == 7 * 784 * 1024


@contextmanager
def service(*flags: object) -> Iterator[tuple[str, list[dict]]]:
    """Run a service on a free port; yield its address and its log up to SERVING."""
    command = [sys.executable, "-m", "sketchbatch_service", "--address", "127.0.0.1:0", *map(str, flags)]
    paths = [str(ROOT / folder) for folder in ("protos", "service", "client")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        lines: list[str] = []
        while not lines or '"SERVING"' not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], f"the service ended before it logged SERVING: {lines}"
        events = [json.loads(line) for line in lines if line.startswith("{")]
        yield events[-1]["address"], events
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("variant", ["float32", "float16"])
def test_the_service_on_cuda_scores_as_onnx_runtime_on_the_cpu(files, variant):
    """A client of a service on CUDA receives the scores of the CPU, even for more rows than one batch can hold.

    The log contains the properties of the CUDA engine.
    """
    bitmaps = noise(3000, 3)
    flags = ("--model", files[variant], "--provider", "cuda", "--max-batch-rows", ROWS)
    with service(*flags) as (address, log), Client(address) as client:
        assert client.model().provider == CUDA
        scores = client.classify(bitmaps).scores
    expected = np.concatenate(
        [on_cpu(files[variant]).run(["scores"], {"bitmaps": part})[0] for part in np.split(bitmaps, 10)]
    )
    assert np.abs(scores - expected).max() <= TOLERANCES[variant]
    (event,) = [each for each in log if each["message"] == "on CUDA"]
    assert event["cuda_graphs"] is True
    assert event["tf32"] is False
    assert event["channels_last"] is (variant == "float16")
    assert event["largest_difference"] <= TOLERANCES[variant]


@pytest.mark.timeout(120)
def test_a_model_that_cannot_be_captured_runs_without_graphs_or_not_at_all(tmp_path):
    """If the CUDA graph of a model cannot be captured, the model runs without CUDA graphs, or not at all.

    With CUDA graphs set to `auto`, it runs without them; with `on`, the service does not start. The operator Compress
    copies its number of columns to the host, which a capture forbids. Each service of this test runs in its own
    process, so that a failed capture cannot affect other tests.
    """
    path = write_model(tmp_path / "open.onnx", open_classes=True)
    with service("--model", path, "--provider", "cuda", "--max-batch-rows", 4) as (address, log):
        assert [event["cuda_graphs"] for event in log if event["message"] == "on CUDA"] == [False]
        assert "no CUDA graphs for this model" in [event["message"] for event in log]
        with Client(address) as client:
            scores = client.classify(noise(9, 9)).scores
    assert np.allclose(scores, on_cpu(path).run(["scores"], {"bitmaps": noise(9, 9)})[0], atol=FLOAT32_TOLERANCE)
    refused = pytest.raises(AssertionError, match="the service ended before it logged SERVING")
    with refused, service("--model", path, "--provider", "cuda", "--cuda-graphs", "on"):
        pass
