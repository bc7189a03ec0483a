"""Call services with kserve's gRPC client and with our client in one process; print the responses as a JSON list.

Usage: .tools/openinference/bin/python kserve_session.py BITMAPS.npy ADDRESS...
"""

import asyncio
import json
import sys

import grpc
import numpy as np
from field_numbers import differences
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2
from kserve.protocol.infer_type import RequestedOutput
from sketchbatch_client import Client


def request(tensor: InferInput, **options) -> InferRequest:
    return InferRequest(model_name="tiny", infer_inputs=[tensor], request_id="number 7", **options)


def typed(bitmaps: np.ndarray, datatype: str = "UINT8") -> InferInput:
    """Return an input tensor with the bitmaps as typed numbers."""
    return InferInput("bitmaps", list(bitmaps.shape), datatype, data=bitmaps.ravel().tolist())


def raw(bitmaps: np.ndarray) -> InferInput:
    """Return an input tensor with the bitmaps as raw bytes."""
    tensor = InferInput("bitmaps", list(bitmaps.shape), "UINT8")
    tensor.set_data_from_numpy(bitmaps, binary_data=True)
    return tensor


async def rejection(client: InferenceGRPCClient, invalid: InferRequest) -> list:
    """Send an invalid request; return the status and the message of its error."""
    try:
        await client.infer(invalid)
    except grpc.RpcError as exc:
        return [exc.code().name, exc.details()]
    return ["OK", ""]


async def responses(address: str, bitmaps: np.ndarray) -> dict:
    ink = (bitmaps / np.float32(255)).reshape(-1, 28, 28, 1)
    best = RequestedOutput("scores", {"classification": 1})
    async with InferenceGRPCClient(address) as client:
        response = await client.infer(request(typed(bitmaps)))
        from_raw = await client.infer(request(raw(bitmaps)))
        from_ink = await client.infer(request(typed(ink, "FP32")))
        from_best = await client.infer(request(typed(bitmaps), request_outputs=[best]))
        return {
            "ready": [
                await client.is_server_live(),
                await client.is_server_ready(),
                await client.is_model_ready("tiny"),
            ],
            "id": response.id,
            "digest": response.parameters["digest"].string_param,
            "model": [response.model_name, response.model_version],
            "typed": response.outputs[0].as_numpy().tolist(),
            "typed_data": response.outputs[0].data,
            "raw": from_raw.outputs[0].as_numpy().tolist(),
            "fp32": from_ink.outputs[0].as_numpy().tolist(),
            "best": [text.decode() for text in from_best.outputs[0].data],
            "rejected": await rejection(client, request(typed(bitmaps.astype(int) + 1))),
        }


def all_responses(address: str, bitmaps: np.ndarray) -> dict:
    """Return the responses of one service."""
    with Client(address) as ours:
        output = {"ours": ours.classify(bitmaps).scores.tolist()}
    output |= asyncio.run(responses(address, bitmaps))
    output["differences"] = differences(grpc_predict_v2_pb2.DESCRIPTOR)
    return output


def main(file: str, *addresses: str) -> None:
    bitmaps = np.load(file)
    json.dump([all_responses(address, bitmaps) for address in addresses], sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
