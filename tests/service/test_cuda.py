"""Test the CUDA engine without a GPU.

The engine has the same buckets, bindings and threads as on a GPU, but its tensors are in host memory, and ONNX Runtime
computes on the CPU. tests/gpu runs the engine on a GPU.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from gates import ObservedCondition
from onnx import numpy_helper
from onnx_models import write_model
from sketchbatch_service.engines.cpu import CPU, open_session
from sketchbatch_service.engines.cuda import CudaEngine, CudaOptions
from sketchbatch_service.engines.cuda_captures import CAPTURES
from sketchbatch_service.engines.cuda_device import Device, is_built_in
from sketchbatch_service.engines.parity import Reference, random_drawings
from sketchbatch_service.errors import ModelRefused, ProviderMissing
from sketchbatch_service.models.loader import LoadOptions, load_models

HOST = Device("cpu")


@pytest.fixture
def session(tiny_model):
    """Return an ONNX Runtime session of the tiny model on the CPU."""
    return open_session(tiny_model)


def engine_of(session, *, rows=12, slots=2, reference=None, classes=3):
    """Return an engine whose parity check uses the session `reference`, by default `session` itself."""
    reference = Reference(reference or session, classes)
    return CudaEngine(session, HOST, reference, max_batch_rows=rows, options=CudaOptions(slots=slots))


@pytest.mark.parametrize(("most", "buckets"), [(1, (1,)), (2, (1, 2)), (12, (1, 2, 4, 8, 12)), (16, (1, 2, 4, 8, 16))])
def test_buckets_double_up_to_the_batch_size(session, most, buckets):
    """Each bucket is twice as large as the previous one, up to the batch size.

    Thus warm-up records few CUDA graphs, and less than half of the rows of a padded batch are padding.
    """
    engine = engine_of(session, rows=most)
    assert engine.buckets == buckets
    assert engine.batch_rows == most


@pytest.mark.parametrize(
    ("most", "largest"), [(0, (1024, 1536, 2048, 3072, 4096)), (1600, (512, 1024, 1536, 1600)), (1024, (512, 1024))]
)
def test_large_buckets_are_closer_together(session, most, largest):
    """Large buckets differ by less than a factor of two, so that at most a third of their rows are padding."""
    assert engine_of(session, rows=most, slots=1).buckets[-len(largest) :] == largest


def test_scores_equal_onnx_runtimes_for_any_number_of_rows(session, noise):
    """The scores of a padded batch are bit-identical to those that ONNX Runtime returns for the same padded rows."""
    engine = engine_of(session)
    engine.warm_up()
    for rows in range(1, 13):
        bucket = next(each for each in engine.buckets if each >= rows)
        padded = np.concatenate([noise(rows), np.zeros((bucket - rows, 28, 28), np.uint8)])
        scores = engine.predict(noise(rows))
        assert scores.shape == (rows, 3)
        assert np.array_equal(scores, session.run(["scores"], {"bitmaps": padded})[0][:rows])


@pytest.fixture
def waits(monkeypatch):
    """Return a semaphore that is released each time a thread is about to wait for a capture or for a model call."""
    condition = ObservedCondition()
    monkeypatch.setattr(CAPTURES, "_changed", condition)
    return condition.waits


def test_a_model_call_waits_for_a_capture(session, noise, waits):
    """A model call waits while a CUDA graph is captured; otherwise both the call and the capture would fail."""
    engine = engine_of(session)
    with ThreadPoolExecutor(1) as thread:
        with CAPTURES.capture():
            call = thread.submit(engine.predict, noise(3))
            assert waits.acquire(timeout=30)
            assert not call.done()
        assert call.result(5).shape == (3, 3)


def test_a_capture_waits_for_the_running_calls(waits):
    """The capture of a CUDA graph starts only after the running model calls have ended."""

    def capture() -> str:
        with CAPTURES.capture():
            return "captured"

    with ThreadPoolExecutor(1) as thread:
        with CAPTURES.call():
            capturing = thread.submit(capture)
            assert waits.acquire(timeout=30)
            assert not capturing.done()
        assert capturing.result(5) == "captured"


def test_a_batch_does_not_change_the_scores_of_an_earlier_one(session):
    """A batch reuses the buffers of the engine, but does not change the scores that an earlier call has returned."""
    engine = engine_of(session, slots=1)
    drawings = random_drawings(16)
    first = engine.predict(drawings[:8])
    kept = first.copy()
    second = engine.predict(drawings[8:13])
    assert np.array_equal(first, kept)
    assert np.allclose(second, session.run(["scores"], {"bitmaps": drawings[8:13]})[0], atol=1e-6)


def test_concurrent_threads_receive_their_own_scores(session):
    """Eight concurrent threads share two buffer sets of an engine, and each thread receives the scores of its rows."""
    engine = engine_of(session)
    drawings = random_drawings(212)
    expected = session.run(["scores"], {"bitmaps": drawings})[0]

    def scores_match(start: int) -> bool:
        part = slice(start, start + 1 + start % 12)
        return np.allclose(engine.predict(drawings[part]), expected[part], atol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(scores_match, list(range(200)) * 3))


def test_every_model_call_is_made_by_one_thread(tmp_path, tiny_model):
    """One thread makes every model call, because ONNX Runtime ties a captured graph to the thread that captured it.

    The test reads the calling threads from ONNX Runtime's profile.
    """
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = ort.InferenceSession(tiny_model, options, providers=[CPU])
    engine = engine_of(session, reference=open_session(tiny_model))
    engine.warm_up()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda rows: engine.predict(random_drawings(rows)), [1, 5, 12, 3] * 5))
    events = json.loads(Path(session.end_profiling()).read_text())
    calls = [event["tid"] for event in events if event["name"] == "model_run"]
    assert len(calls) == 2 * 2 * len(engine.buckets) + 20
    assert len(set(calls)) == 1


def test_warm_up_measures_the_difference_from_the_cpu(session):
    """Warm-up measures the largest difference between the scores of the engine and those of the CPU.

    The engine's description, which is logged, contains this difference and the tolerance.
    """
    engine = engine_of(session)
    engine.warm_up()
    assert engine.largest_difference < 1e-6
    assert engine.description() == {
        "device_id": 0,
        "buckets": [1, 2, 4, 8, 12],
        "cuda_graphs": False,
        "channels_last": False,
        "largest_difference": engine.largest_difference,
        "tolerance": 1e-2,
    }


def test_scores_that_differ_from_the_cpus_are_refused(session, root):
    """CUDA is not used for a model if the engine's scores differ from the scores on the CPU.

    The scores would differ if, for example, the engine replayed the CUDA graph of another bucket.
    """
    other = open_session(root / "models/bear-cat-dog/2/model.onnx")
    with pytest.raises(ProviderMissing, match=r"scores of 1 rows may differ from the CPU's by 0\.001, got 0\."):
        engine_of(session, reference=other).warm_up()


def test_scores_of_nan_are_refused(session, tiny_model, tmp_path):
    """CUDA is not used for a model whose scores are NaN, for example after an overflow in float16.

    A check `difference > tolerance` would accept these scores, because every comparison with NaN is false.
    """
    model = onnx.load(tiny_model)
    (weights,) = (each for each in model.graph.initializer if each.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(np.full((784, 3), np.nan, np.float32), "weights"))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(ProviderMissing, match="got nan"):
        engine_of(open_session(tmp_path / "nan.onnx"), reference=session).warm_up()


def test_every_bucket_is_compared(session, tiny_model, tmp_path):
    """Warm-up compares the scores of every bucket with the CPU.

    The model of this test is incorrect only for rows after the eighth, so only the bucket of 12 rows is different.
    """
    model = write_model(tmp_path / "short.onnx", correct_rows=8)
    with pytest.raises(ProviderMissing, match="scores of 12 rows may differ"):
        engine_of(open_session(model), reference=session).warm_up()


@pytest.mark.parametrize("name", ["bear-cat-dog", "animals-10", "quickdraw-345"])
def test_the_drawings_of_the_comparison_have_different_scores(root, name):
    """The drawings of the parity check have different scores, so that the check detects swapped scores.

    Random noise would give about equal scores.
    """
    [path] = (root / "models" / name).glob("*/model.onnx")
    session = open_session(path)
    scores = session.run(["scores"], {"bitmaps": random_drawings(64)})[0]
    differences = np.abs(scores[:, None] - scores[None]).max(axis=2) + np.eye(64)
    assert np.median(differences) > 0.1
    assert (differences > 1e-2).mean() > 0.99


def test_a_model_that_fails_on_the_cpu_too_is_refused(session, tmp_path):
    """Warm-up raises ModelRefused if the model fails on the device and also on the CPU.

    After this error, provider `auto` does not load the model on the CPU.
    """
    wide = open_session(write_model(tmp_path / "wide.onnx", flat_width=785))
    with pytest.raises(ModelRefused, match=r"the model fails on \d+ rows"):
        engine_of(wide, reference=wide).warm_up()
    with pytest.raises(ModelRefused, match=r"scores of \d+ rows must be \(\d+, 2\), got \(\d+, 3\)"):
        engine_of(session, classes=2).warm_up()


def test_a_model_that_fails_only_on_the_device_is_not_refused(session, tmp_path):
    """Warm-up raises ProviderMissing if the model fails only on the device; `auto` then serves the model on the CPU."""
    wide = open_session(write_model(tmp_path / "wide.onnx", flat_width=785))
    with pytest.raises(ProviderMissing, match="the model fails on 1 row"):
        engine_of(wide, reference=session).warm_up()


def test_a_device_without_free_memory_counts_as_missing():
    """An allocation above the device's free memory raises ProviderMissing, for example if other processes use the GPU.

    After this error, provider `auto` serves the model on the CPU.
    """
    with pytest.raises(ProviderMissing, match=r"cpu device 0 has no memory for \(1125899906842624, 28, 28\)"):
        HOST.tensor((2**50, 28, 28), np.uint8)


def test_provider_cuda_does_not_fall_back_to_the_cpu(tiny_model):
    """If CUDA or the GPU is missing, provider `cuda` raises an error that names the cause, and does not use the CPU."""
    if is_built_in():
        pytest.skip("this ONNX Runtime is built with CUDA; tests/gpu")
    expected = r"provider cuda was asked for, but this ONNX Runtime is built without it: .*service\[gpu\]"
    with pytest.raises(ProviderMissing, match=expected):
        load_models(tiny_model, LoadOptions(provider="cuda"))
