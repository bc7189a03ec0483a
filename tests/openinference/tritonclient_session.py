"""Call services with tritonclient and with our client in one process; print the responses as a JSON list.

Usage: .tools/openinference/bin/python tritonclient_session.py BITMAPS.npy ADDRESS...
"""

import asyncio
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from field_numbers import differences
from sketchbatch_client import Client
from tritonclient.grpc import model_config_pb2, service_pb2


def tensor(bitmaps: np.ndarray, datatype: str = "UINT8", name: str = "bitmaps") -> list:
    """Return a list with one input tensor, which contains the bitmaps."""
    made = triton.InferInput(name, bitmaps.shape, datatype)
    made.set_data_from_numpy(bitmaps)
    return [made]


def scores(result: triton.InferResult) -> list:
    return result.as_numpy("scores").tolist()


def rejection(call, *arguments, **options) -> list:
    """Return the status and the message of the error that `call` raises."""
    try:
        call(*arguments, **options)
    except triton.InferenceServerException as exc:
        return [exc.status(), exc.message()]
    return ["OK", ""]


def sequential_responses(client: triton.InferenceServerClient, bitmaps: np.ndarray) -> dict:
    """Send the same bitmaps in different encodings, one request after another; return the responses by encoding."""
    ink = (bitmaps / np.float32(255)).astype(np.float32)
    best = triton.InferRequestedOutput("scores", class_count=2)
    responses: queue.Queue = queue.Queue()
    client.async_infer("tiny", tensor(bitmaps), lambda result, error: responses.put((result, error)))
    plain = client.infer(
        "tiny", tensor(bitmaps), model_version="1", request_id="number 7", timeout=10_000_000, priority=1
    )
    return {
        "id": plain.get_response().id,
        "digest": plain.get_response().parameters["digest"].string_param,
        "uint8": scores(plain),
        "fp32": scores(client.infer("tiny", tensor(ink.reshape(-1, 28, 28, 1), "FP32"))),
        "flat": scores(client.infer("tiny", tensor(bitmaps.reshape(-1, 784)))),
        "compressed": scores(client.infer("tiny", tensor(bitmaps), compression_algorithm="gzip")),
        "async": scores(responses.get(timeout=20)[0]),
        "best": client.infer("tiny", tensor(bitmaps), outputs=[best]).as_numpy("scores").astype(str).tolist(),
    }


def descriptions(client: triton.InferenceServerClient) -> dict:
    """Return the service's descriptions of itself and of its model."""
    return {
        "ready": [client.is_server_live(), client.is_server_ready(), client.is_model_ready("tiny")],
        "unknown_ready": client.is_model_ready("zebra"),
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata("tiny", as_json=True),
        "config": client.get_model_config("tiny", as_json=True)["config"],
        "index": client.get_model_repository_index(as_json=True)["models"],
        "statistics": client.get_inference_statistics("tiny", as_json=True)["model_stats"][0],
    }


def rejections(client: triton.InferenceServerClient, bitmaps: np.ndarray) -> dict:
    """Return the errors that the service returns for invalid requests."""
    return {
        "name": rejection(client.infer, "tiny", tensor(bitmaps, name="image")),
        "datatype": rejection(client.infer, "tiny", tensor(bitmaps.astype(np.int32), "INT32")),
        "range": rejection(client.infer, "tiny", tensor(bitmaps.astype(np.float32), "FP32")),
        "model": rejection(client.infer, "zebra", tensor(bitmaps)),
        "version": rejection(client.infer, "tiny", tensor(bitmaps), model_version="9"),
        "load": rejection(client.load_model, "tiny"),
    }


def streamed(client: triton.InferenceServerClient, bitmaps: np.ndarray) -> list:
    """Send three messages over one stream, of which the second is invalid.

    Return one list per response: the id and the scores, or the word "error" and the message of the error.
    """
    responses: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: responses.put((result, error)))
    client.async_stream_infer("tiny", tensor(bitmaps[:2]), request_id="a")
    client.async_stream_infer("tiny", tensor(bitmaps[:, :27]), request_id="b")
    client.async_stream_infer("tiny", tensor(bitmaps[2:]), request_id="c")
    received = [responses.get(timeout=20) for _ in range(3)]
    client.stop_stream()
    return [
        ["error", error.message()] if error else [result.get_response().id, scores(result)]
        for result, error in received
    ]


async def concurrent_responses(address: str, bitmaps: np.ndarray) -> dict:
    """Send each row as a request of its own with tritonclient's asyncio client; return the responses.

    The rows are first sent as concurrent calls, and then as messages of one stream.
    """

    async def messages():
        for row in range(len(bitmaps)):
            yield {"model_name": "tiny", "inputs": tensor(bitmaps[row : row + 1]), "request_id": str(row)}

    async with triton_aio.InferenceServerClient(address) as client:
        calls = [client.infer("tiny", tensor(bitmaps[row : row + 1])) for row in range(len(bitmaps))]
        concurrent = [scores(result)[0] for result in await asyncio.gather(*calls)]
        stream = [
            [
                result.get_response().id,
                scores(result)[0],
                result.get_response().parameters["triton_final_response"].bool_param,
            ]
            async for result, _ in client.stream_infer(messages())
        ]
    return {"aio": concurrent, "aio_stream": stream}


def all_responses(address: str, bitmaps: np.ndarray) -> dict:
    """Return the responses of one service."""
    with Client(address) as ours, triton.InferenceServerClient(address) as client:
        return {
            "ours": ours.classify(bitmaps).scores.tolist(),
            **sequential_responses(client, bitmaps),
            "stream": streamed(client, bitmaps),
            **asyncio.run(concurrent_responses(address, bitmaps)),
            "rejected": rejections(client, bitmaps),
            "about": descriptions(client),
            "differences": differences(service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR),
        }


def main(file: str, *addresses: str) -> None:
    bitmaps = np.load(file)
    json.dump([all_responses(address, bitmaps) for address in addresses], sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
