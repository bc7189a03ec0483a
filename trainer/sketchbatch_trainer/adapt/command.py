"""The command `sketchbatch-train adapt`: make a model file of a model that was made elsewhere."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from sketchbatch_client.output_file import local_path

from ..extras import importing
from ..progress import console
from .options import Layout, Softmax


def adapt(
    source: Annotated[
        Path,
        typer.Argument(
            parser=local_path,
            metavar="SOURCE",
            help="Model: .onnx, .keras or .h5 file, or SavedModel folder.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(parser=local_path, help="Model file to write, such as model.onnx.")],
    labels: Annotated[
        str,
        typer.Option(
            help="Class names in the order of the scores: A,B,C, or a file with one name per line, a JSON list or "
            "a JSON dictionary.",
            show_default="those in the model",
        ),
    ] = "",
    scale: Annotated[
        str,
        typer.Option(
            help="What the model expects of pixels: a factor (1/255), a range (0..255, -1..1) or MEAN,STD "
            "(0.1307,0.3081).",
            show_default="1/255, or none if the model scales pixels itself",
        ),
    ] = "",
    invert: Annotated[bool, typer.Option("--invert", help="The model expects dark ink (0) on white paper.")] = False,
    layout: Annotated[
        Layout | None,
        typer.Option(help="Shape of a row: (28, 28), (784), (1, 28, 28) or (28, 28, 1).", show_default="by the input"),
    ] = None,
    scores_output: Annotated[
        str, typer.Option(help="Name of the output with the scores.", show_default="the one that fits the labels")
    ] = "",
    softmax: Annotated[
        Softmax,
        typer.Option(help="Make probabilities of the scores: auto = if they are logits or logarithms."),
    ] = Softmax.AUTO,
    drawings: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="Folder of drawings of the labels, on which other scalings are compared.",
            show_default="synthetic sketches, for bear, cat and dog",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the model.", show_default="that of the source")] = "",
    version: Annotated[int | None, typer.Option(min=1, help="Version to store in the file.", show_default="1")] = None,
    licence: Annotated[str, typer.Option(help="Licence to store in the file.", show_default="not stated")] = "",
    origin: Annotated[
        str, typer.Option("--source", help="Origin to store in the file.", show_default="file name and SHA-256")
    ] = "",
) -> None:
    """Make a model file of a model from PyTorch, Keras, scikit-learn or another tool.

    The command finds out what the model expects, proves that the file has the scores of the original, and compares
    the accuracy under other scalings of the pixels. An .onnx file needs no TensorFlow.
    """
    with importing("adapt"):
        from .adapting import AdaptRequest, Finding
        from .adapting import adapt as adapt_model

    def report(finding: Finding) -> None:
        flag = f"   [{finding.flag}]" if finding.flag else ""
        console.print(f"{finding.subject + ':':<10}{finding.value}{flag}", markup=False)

    request = AdaptRequest(
        source=source,
        output=output,
        labels=labels,
        scale=scale,
        invert=invert,
        layout=layout,
        softmax=softmax,
        scores_output=scores_output,
        drawings=drawings,
        name=name,
        version=version,
        licence=licence,
        origin=origin,
    )
    adapt_model(request, report)
    console.print(f"ONNX model -> {output} ({output.stat().st_size / 1e6:.1f} MB)", markup=False)
    command = f"sketchbatch-serve --model {shlex.quote(str(output))} --address 127.0.0.1:50051"
    console.print(f"serve it: {command}", markup=False, soft_wrap=True)
