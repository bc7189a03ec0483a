"""Run one measurement of `gpu.py`: model, raw, engine, service or one_row; print the result as one line of JSON.

`engine` measures the service's CUDA engine without gRPC, because the cost of gRPC hides the gain of a second execution
slot.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Run the measurement that the first argument names, and print its result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("model", "raw", "engine", "service", "one_row", "caller"))
    parser.add_argument("--provider", choices=("cuda", "cpu"))
    parser.add_argument("--measure-s", type=float)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--write-float16", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--options", type=json.loads, help="Of ONNX Runtime's CUDA provider, as JSON.")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--address")
    parser.add_argument("--callers", type=int)
    parser.add_argument("--in-flight", type=int, default=4, help="Requests of each caller.")
    parser.add_argument("--seconds", type=float)
    arguments = parser.parse_args()
    print(json.dumps(globals()[arguments.part](arguments)))


def model(arguments: argparse.Namespace) -> dict[str, Any]:
    """Count the model's FLOPs, write the model in float16, and measure the bus to the device."""
    import onnx
    import onnxruntime as ort
    from sketchbatch_trainer.export.float16 import to_float16

    graph = onnx.load(arguments.model)
    half = to_float16(graph)
    onnx.helper.set_model_props(
        half,
        {each.key: each.value for each in graph.metadata_props} | {"sketchbatch.metrics": '{"variant": "float16"}'},
    )
    arguments.write_float16.parent.mkdir(parents=True)
    onnx.save(half, arguments.write_float16)
    return {
        "file": "/".join(arguments.model.parts[-3:]),
        "mflop_per_row": mflop_per_row(graph),
        "bus_gb_per_s": bus_gb_per_s() if arguments.provider == "cuda" else None,
        "versions": {"numpy": np.__version__, "onnxruntime": ort.__version__, "cuda": ort.cuda_version},
    }


def mflop_per_row(graph: Any) -> float:
    """Return the MFLOP per row of convolutions and matrix products, two operations per multiplication."""
    import onnx

    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    known = onnx.shape_inference.infer_shapes(graph, data_prop=True).graph
    shapes = {each.name: list(each.dims) for each in known.initializer}
    for each in (*known.value_info, *known.output):
        shapes[each.name] = [dim.dim_value for dim in each.type.tensor_type.shape.dim]
    flop = 0
    for node in known.node:
        weights = shapes.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Conv" and weights:
            flop += 2 * int(np.prod(weights)) * int(np.prod(shapes[node.output[0]][2:]))
        elif node.op_type in {"MatMul", "Gemm"} and weights:
            flop += 2 * int(np.prod(weights))
    return flop / 1e6


def bus_gb_per_s() -> float:
    """Return the rate of the fastest of ten copies of 256 MB from pinned memory to the device."""
    from sketchbatch_service.engines.cuda_device import Device

    device, rows = Device.cuda(), 2**28 // 784
    host, there = device.host_rows(rows), device.tensor((rows, 28, 28), np.uint8)
    host[:] = noise(1)
    return host.nbytes / min(timed(lambda: there.update_inplace(host)) for _ in range(10)) / 1e9


def raw(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the milliseconds per call for each bucket, without and with copies to and from the device.

    `ms_switching` is the time of a call that follows a call with another number of rows.
    """
    import onnxruntime as ort

    session = open_session(arguments)
    reference = ort.InferenceSession(str(arguments.model), quiet(), providers=["CPUExecutionProvider"])
    sizes = [*(1 << number for number in range((arguments.rows - 1).bit_length())), arguments.rows]
    calls = [BoundCall(session, arguments.provider, rows, graph_id) for graph_id, rows in enumerate(sizes, 1)]
    for call in calls:
        call.with_copies(noise(call.rows))  # the first call captures a CUDA graph, if graphs are enabled
    difference = []
    for call in calls:
        bitmaps = noise(call.rows)
        expected = reference.run(["scores"], {"bitmaps": bitmaps})[0]
        difference.append(float(np.abs(call.with_copies(bitmaps) - expected).max()))
    found: dict[str, Any] = {"rows": [call.rows for call in calls], "difference": difference}
    found["ms_computing"] = [median_ms(call.compute, arguments.measure_s) for call in calls]
    for call in calls:
        call.bitmaps = noise(call.rows)
    found["ms_with_copies"] = [median_ms(call.again, arguments.measure_s) for call in calls]
    in_turn = [[timed(call.compute) * 1e3 for call in calls] for _ in range(5)]
    found["ms_switching"] = [statistics.median(each) for each in zip(*in_turn, strict=True)]
    return found


class BoundCall:
    """Device tensors for one batch size (bucket), bound to the session once, with a CUDA graph id of their own."""

    def __init__(self, session: Any, device: str, rows: int, graph_id: int) -> None:
        import onnxruntime as ort

        classes = session.get_outputs()[0].shape[1]
        self.rows = rows
        self.bitmaps = noise(rows)
        self._session = session
        self._there = ort.OrtValue.ortvalue_from_shape_and_type((rows, 28, 28), np.uint8, device, 0)
        self._scores = ort.OrtValue.ortvalue_from_shape_and_type((rows, classes), np.float32, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("bitmaps", self._there)
        self._binding.bind_ortvalue_output("scores", self._scores)
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(graph_id))

    def compute(self) -> None:
        """Run the model on rows that are already on the device."""
        self._session.run_with_iobinding(self._binding, self._options)

    def with_copies(self, bitmaps: np.ndarray) -> np.ndarray:
        """Copy `bitmaps` to the device, run the model, and copy the scores back to host memory."""
        self._there.update_inplace(bitmaps)
        self.compute()
        return np.array(self._scores.numpy())

    def again(self) -> None:
        """Run `with_copies` on the same bitmaps."""
        self.with_copies(self.bitmaps)


def open_session(arguments: argparse.Namespace) -> Any:
    """Open a session on CUDA without CPU fallback, or on the CPU."""
    import onnxruntime as ort

    if arguments.provider == "cpu":
        return ort.InferenceSession(str(arguments.model), quiet(), providers=["CPUExecutionProvider"])
    ort.preload_dlls()
    options = quiet()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {"cudnn_conv_algo_search": "HEURISTIC"} | arguments.options
    return ort.InferenceSession(str(arguments.model), options, providers=[("CUDAExecutionProvider", settings)])


def quiet() -> Any:
    """Return session options that hide warnings."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options


def engine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return rows/s of the service's engine at its largest batch, with a thread per execution slot."""
    import onnxruntime as ort
    from sketchbatch_service.engines.cuda import CudaEngine, CudaOptions, open_on_cuda
    from sketchbatch_service.engines.cuda_device import Device
    from sketchbatch_service.engines.parity import Reference

    session = ort.InferenceSession(str(arguments.model), quiet(), providers=["CPUExecutionProvider"])
    reference = Reference(session, session.get_outputs()[0].shape[1])
    options = CudaOptions(slots=arguments.slots)
    started_at = time.perf_counter()
    if arguments.provider == "cuda":
        found = open_on_cuda(arguments.model, reference, max_batch_rows=arguments.rows, options=options)
    else:
        found = CudaEngine(session, Device("cpu"), reference, max_batch_rows=arguments.rows, options=options)
        found.warm_up()
    warm_up_s = time.perf_counter() - started_at
    rows_per_s = rate(found.predict, arguments.rows, arguments.slots, 5 * arguments.measure_s)
    return {"rows_per_s": rows_per_s, "open_and_warm_up_s": warm_up_s, **found.description()}


def rate(predict: Callable[[np.ndarray], object], rows: int, threads: int, seconds: float) -> float:
    """Return rows/s of `threads` threads that call `predict` repeatedly."""
    ends_at = time.perf_counter() + seconds
    counts = [0] * threads

    def call(number: int) -> None:
        bitmaps = noise(rows)
        while time.perf_counter() < ends_at:
            predict(bitmaps)
            counts[number] += rows

    started_at = time.perf_counter()
    running = [threading.Thread(target=call, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts) / (time.perf_counter() - started_at)


def service(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return rows/s of a running service, from `callers` concurrent processes."""
    words = ["--address", arguments.address, "--rows", arguments.rows, "--in-flight", arguments.in_flight]
    words += ["--seconds", arguments.seconds]
    command = [sys.executable, __file__, "caller", *map(str, words)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(arguments.callers)]
    for process in processes:
        process.stdout.readline()  # the line means that the process has opened its connections
    start_at = f"{time.time() + 0.1}\n"
    for process in processes:
        process.stdin.write(start_at)
        process.stdin.flush()
    answers = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    return {
        "rows_per_s": sum(answer["rows_per_s"] for answer in answers),
        "callers": arguments.callers,
        "in_flight_each": arguments.in_flight,
        "p50_ms": statistics.median(answer["p50_ms"] for answer in answers),
    }


def one_row(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the latency of single one-row requests to a running service."""
    return service(arguments)


def caller(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keep `in_flight` requests in flight, each on its own channel, and count the rows answered in the window.

    The window has `seconds`, and is longer if the first answer takes longer. Requests are serialised once and answers
    are not parsed, so that the client costs little.
    """
    import grpc
    from sketchbatch.v1 import classifier_pb2 as pb

    request = pb.ClassifyRequest(bitmaps=noise(arguments.rows).tobytes()).SerializeToString()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    channels = [grpc.insecure_channel(arguments.address, options) for _ in range(arguments.in_flight)]
    calls = [channel.unary_unary("/sketchbatch.v1.ClassifierService/Classify") for channel in channels]
    for call in calls:
        call(request)  # the first request opens the connection
    print("ready", flush=True)
    start_at = float(sys.stdin.readline())
    waiting = deque((call, time.time(), call.future(request)) for call in calls)
    took_s: list[float] = []
    ends_at = start_at + arguments.seconds
    while not took_s or time.time() < ends_at:
        call, asked_at, answer = waiting.popleft()
        answer.result()
        now = time.time()
        if start_at <= now and (now < ends_at or not took_s):
            took_s.append(now - asked_at)
            ends_at = max(ends_at, now)
        waiting.append((call, now, call.future(request)))
    for _, _, answer in waiting:
        answer.result()
    rows_per_s = arguments.rows * len(took_s) / (ends_at - start_at)
    return {"rows_per_s": rows_per_s, "p50_ms": statistics.median(took_s) * 1e3}


def noise(rows: int) -> np.ndarray:
    """Return new random bitmaps, partly inked, uint8 (rows, 28, 28)."""
    random = np.random.default_rng()
    grey = random.integers(0, 256, (rows, 28, 28), np.uint8)
    return np.where(random.random((rows, 28, 28)) < random.random((rows, 1, 1)), grey, 0).astype(np.uint8)


def median_ms(call: Callable[[], object], seconds: float) -> float:
    """Return the median duration of calls during `seconds`, after three warm-up calls."""
    for _ in range(3):
        call()
    ends_at, took = time.perf_counter() + seconds, []
    while not took or time.perf_counter() < ends_at:
        took.append(timed(call) * 1e3)
    return statistics.median(took)


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    started_at = time.perf_counter()
    call()
    return time.perf_counter() - started_at


if __name__ == "__main__":
    main()
