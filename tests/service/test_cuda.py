"""The CUDA engine without a GPU: the same buckets, bindings and threads, with its tensors in this machine's memory.

tests/gpu runs it on one.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx_models import write_model
from sketchbatch_service.engines.cpu import CPU, open_session
from sketchbatch_service.engines.cuda import CudaEngine, CudaOptions
from sketchbatch_service.engines.cuda_captures import CAPTURES
from sketchbatch_service.engines.cuda_device import Device, is_built_in
from sketchbatch_service.engines.parity import Reference, random_drawings
from sketchbatch_service.errors import ModelRefused, ProviderMissing
from sketchbatch_service.models.loader import LoadOptions, load_models

HERE = Device("cpu")


@pytest.fixture
def session(tiny_model):
    """The tiny model on the CPU."""
    return open_session(tiny_model)


def engine_of(session, *, rows=12, slots=2, reference=None, classes=3):
    """An engine that is compared with `session` itself, unless told otherwise."""
    reference = Reference(reference or session, classes)
    return CudaEngine(session, HERE, reference, max_batch_rows=rows, options=CudaOptions(slots=slots))


@pytest.mark.parametrize(("most", "buckets"), [(1, (1,)), (2, (1, 2)), (12, (1, 2, 4, 8, 12)), (16, (1, 2, 4, 8, 16))])
def test_buckets_double_up_to_the_batch_size(session, most, buckets):
    """Few sizes to capture, and none more than half empty."""
    engine = engine_of(session, rows=most)
    assert engine.buckets == buckets
    assert engine.batch_rows == most


@pytest.mark.parametrize(
    ("most", "largest"), [(0, (1024, 1536, 2048, 3072, 4096)), (1600, (512, 1024, 1536, 1600)), (1024, (512, 1024))]
)
def test_where_time_goes_with_rows_buckets_are_closer_together(session, most, largest):
    """No more than a third of a large one is padding."""
    assert engine_of(session, rows=most, slots=1).buckets[-len(largest) :] == largest


def test_scores_are_onnx_runtimes_own_for_any_number_of_rows(session, noise):
    """Padding, bound buffers and cutting back add and lose nothing: bit for bit what the padded bucket gives."""
    engine = engine_of(session)
    engine.warm_up()
    for rows in range(1, 13):
        bucket = next(each for each in engine.buckets if each >= rows)
        padded = np.concatenate([noise(rows), np.zeros((bucket - rows, 28, 28), np.uint8)])
        scores = engine.predict(noise(rows))
        assert scores.shape == (rows, 3)
        assert np.array_equal(scores, session.run(["scores"], {"bitmaps": padded})[0][:rows])


def test_calls_wait_while_another_model_captures_its_graphs(session, noise):
    """One that used CUDA meanwhile would fail, and the capture with it; captures wait for the calls under way."""
    engine = engine_of(session)
    with ThreadPoolExecutor(2) as threads:
        with CAPTURES.alone():
            waiting = threads.submit(engine.predict, noise(3))
            with pytest.raises(TimeoutError):
                waiting.result(0.05)
        assert waiting.result(5).shape == (3, 3)
        with CAPTURES.call():

            def capture() -> str:
                with CAPTURES.alone():
                    return "captured"

            waiting = threads.submit(capture)
            with pytest.raises(TimeoutError):
                waiting.result(0.05)
        assert waiting.result(5) == "captured"


def test_a_batch_sees_nothing_of_the_one_before_it(session):
    """The bound buffers are refreshed in place, and scores handed out are the caller's to keep."""
    engine = engine_of(session, slots=1)
    drawings = random_drawings(16)
    first = engine.predict(drawings[:8])
    kept = first.copy()
    second = engine.predict(drawings[8:13])
    assert np.array_equal(first, kept)
    assert np.allclose(second, session.run(["scores"], {"bitmaps": drawings[8:13]})[0], atol=1e-6)


def test_callers_on_several_threads_get_their_own_scores(session):
    """Two slots, eight threads: whoever finds no lane free waits for one, and no rows are mixed up."""
    engine = engine_of(session)
    drawings = random_drawings(212)
    expected = session.run(["scores"], {"bitmaps": drawings})[0]

    def ask(start: int) -> bool:
        part = slice(start, start + 1 + start % 12)
        return np.allclose(engine.predict(drawings[part]), expected[part], atol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, list(range(200)) * 3))


def test_every_model_call_is_made_by_one_thread(tmp_path, tiny_model):
    """ONNX Runtime keeps a captured graph with the thread that captured it; its own profile says who called."""
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


def test_warm_up_says_how_far_from_the_cpu_the_scores_are(session):
    """The operator reads it in the log."""
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


def test_a_model_that_scores_otherwise_than_on_the_cpu_is_refused(session, root):
    """What a graph under the wrong id would do: scores of the right shape, and wrong."""
    other = open_session(root / "models/bear-cat-dog/1/model.onnx")
    with pytest.raises(ProviderMissing, match=r"scores of 1 rows may differ from the CPU's by 0\.001, got 0\."):
        engine_of(session, reference=other).warm_up()


def test_scores_that_are_no_numbers_are_refused(session, tiny_model, tmp_path):
    """What overflows in float16 ends as NaN, which no comparison finds larger than anything."""
    model = onnx.load(tiny_model)
    (weights,) = (each for each in model.graph.initializer if each.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(np.full((784, 3), np.nan, np.float32), "weights"))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(ProviderMissing, match="got nan"):
        engine_of(open_session(tmp_path / "nan.onnx"), reference=session).warm_up()


def test_each_bucket_is_compared_on_drawings_of_its_own(session, tiny_model, tmp_path):
    """A difference that only rows past the eighth show is found by the bucket that holds them."""
    model = write_model(tmp_path / "short.onnx", right_rows=8)
    with pytest.raises(ProviderMissing, match="scores of 12 rows may differ"):
        engine_of(open_session(model), reference=session).warm_up()


@pytest.mark.parametrize("name", ["bear-cat-dog", "animals-10", "quickdraw-345"])
def test_no_two_drawings_of_the_comparison_score_alike(root, name):
    """Else another batch's scores would pass for the right ones; noise, for one, all looks the same to a model."""
    session = open_session(root / "models" / name / "1" / "model.onnx")
    scores = session.run(["scores"], {"bitmaps": random_drawings(64)})[0]
    differences = np.abs(scores[:, None] - scores[None]).max(axis=2) + np.eye(64)
    assert np.median(differences) > 0.1
    assert (differences > 1e-2).mean() > 0.99


def test_a_model_that_breaks_is_refused_not_sent_to_the_cpu(session, tmp_path):
    """It would break there, too."""
    wide = open_session(write_model(tmp_path / "wide.onnx", flat_width=785))
    with pytest.raises(ModelRefused, match=r"the model breaks on \d+ rows"):
        engine_of(wide, reference=wide).warm_up()
    with pytest.raises(ModelRefused, match=r"scores of \d+ rows must be \(\d+, 2\), got \(\d+, 3\)"):
        engine_of(session, classes=2).warm_up()


def test_a_model_that_breaks_only_on_the_device_is_no_reason_to_refuse_the_file(session, tmp_path):
    """`auto` may still serve it on the CPU."""
    wide = open_session(write_model(tmp_path / "wide.onnx", flat_width=785))
    with pytest.raises(ProviderMissing, match="the model breaks on 1 rows"):
        engine_of(wide, reference=session).warm_up()


def test_a_device_that_is_full_is_refused_like_one_that_is_missing():
    """`auto` then serves on the CPU: another process may hold the GPU's memory."""
    with pytest.raises(ProviderMissing, match=r"cpu device 0 has no memory for \(1125899906842624, 28, 28\)"):
        HERE.tensor((2**50, 28, 28), np.uint8)


def test_cuda_is_refused_where_it_cannot_run(tiny_model):
    """No silent fallback: `cuda` on a build or a machine without it does not start, and says which of the two it is."""
    if is_built_in():
        pytest.skip("this ONNX Runtime is built with CUDA; tests/gpu")
    expected = r"provider cuda was asked for, but this ONNX Runtime is built without it: .*service\[gpu\]"
    with pytest.raises(ProviderMissing, match=expected):
        load_models(tiny_model, LoadOptions(provider="cuda"))
