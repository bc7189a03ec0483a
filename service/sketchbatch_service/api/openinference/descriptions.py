"""Build the metadata, configuration and statistics messages of the Open Inference Protocol and Triton's extensions."""

import json
import re

from sketchbatch.openinference.v2 import open_inference_pb2 as pb
from sketchbatch.rejection import encode as encode_rejection

from ...arrays import ROW_SHAPE
from ...batching.statistics import Counts, Duration
from ...models.registry import ExcludedFile, RefusedFile, ServedModel
from .codec import INPUT, OUTPUT

DIGEST = "digest"
"""Name of the digest of the model file, among the parameters of responses and in the descriptions of a model."""

SCORES = "scores"
"""Name of the kind of the scores (`engines.score_kind`) in the descriptions of a model."""

_PLATFORM = "onnxruntime_onnx"
_PATH = re.compile(r"[^\s'\"]*/[^\s'\"]*")


def metadata(model: ServedModel, versions: list[str]) -> pb.ModelMetadataResponse:
    """Return the tensors of the model; `versions` are all served versions of its name.

    The tensors have the same names for every model, whatever their names in its file, so that a client need not know
    from which tool the model came.
    """
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=model.name,
        versions=versions,
        platform=_PLATFORM,
        inputs=[tensor(name=INPUT, datatype="UINT8", shape=[-1, *ROW_SHAPE])],
        outputs=[tensor(name=OUTPUT, datatype="FP32", shape=[-1, len(model.artifact.labels)])],
        properties={DIGEST: model.artifact.digest, SCORES: model.score_kind},
    )


def config(model: ServedModel, *, max_request_rows: int) -> pb.ModelConfig:
    """Return the configuration of the model in Triton's form."""
    return pb.ModelConfig(
        name=model.name,
        platform=_PLATFORM,
        backend="onnxruntime",
        max_batch_size=max_request_rows,
        input=[pb.ModelInput(name=INPUT, data_type=pb.TYPE_UINT8, dims=ROW_SHAPE)],
        output=[pb.ModelOutput(name=OUTPUT, data_type=pb.TYPE_FP32, dims=[len(model.artifact.labels)])],
        dynamic_batching=pb.ModelDynamicBatching(),
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
        parameters={name: pb.ModelParameter(string_value=text) for name, text in _parameters(model).items() if text},
    )


def _parameters(model: ServedModel) -> dict[str, str]:
    return {
        "labels": json.dumps(model.artifact.labels, ensure_ascii=False),
        "bitmaps": "UINT8, 0 = paper, 255 = ink; or FP32, 0 = paper, 1 = ink; [N,28,28], [N,28,28,1] or [N,784]",
        "provider": model.provider,
        SCORES: model.score_kind,
        DIGEST: model.artifact.digest,
        "created": model.artifact.created,
        "licence": model.artifact.licence,
        "rejection": encode_rejection(model.artifact.rejection) if model.artifact.rejection else "",
    }


def refusal(refused: RefusedFile) -> str:
    """Return the reason why a file is refused, with "..." in place of paths."""
    path = str(refused.file.path)
    return "refused: " + _PATH.sub("...", refused.cause.removeprefix(f"{path}: ").replace(path, "..."))


def exclusion(excluded: ExcludedFile) -> str:
    """Return the reason why a file of the repository is not loaded."""
    return f"not loaded: --versions {excluded.rule} excludes it"


def statistics(model: ServedModel) -> pb.ModelStatistics:
    """Return the counts of the model since the service started."""
    counts = model.batcher.statistics.counts()
    return pb.ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=round(counts.last_answer_at * 1000),
        inference_count=counts.rows,
        execution_count=sum(counts.calls.values()),
        inference_stats=_inference_statistics(counts),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=rows, compute_infer=_duration(Duration(calls, counts.calls_s[rows])))
            for rows, calls in sorted(counts.calls.items())
        ],
    )


def _inference_statistics(counts: Counts) -> pb.InferStatistics:
    """Return the times of requests; all stages have the same count, because perf_analyzer rejects other statistics."""
    answered = counts.success.count
    return pb.InferStatistics(
        success=_duration(counts.success),
        fail=_duration(counts.fail),
        queue=_duration(counts.queue.total()),
        compute_input=_duration(Duration(answered, counts.decoding_s)),
        compute_infer=_duration(counts.inference),
        compute_output=_duration(Duration(answered, counts.encoding.seconds)),
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=round(duration.seconds * 1e9))
