"""Run the command `sketchbatch-serve`: read the settings and start the server."""

import asyncio
import sys
from collections.abc import Coroutine
from importlib.util import find_spec
from typing import Any

import click
from sketchbatch import versions

from .app import process
from .errors import StartError
from .settings import Settings, options


def _print_version(context: click.Context, _: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        libraries = ("onnxruntime/onnxruntime-gpu", "grpcio", "numpy")
        click.echo(versions.describe("sketchbatch-serve", "sketchbatch-service", *libraries))
        context.exit()


class _Command(click.Command):
    """A command that refuses a second --model: click would take the last one without a word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        models = [word for word in args if word == "--model" or word.startswith("--model=")]
        if len(models) > 1:
            advice = "put several models into a repository NAME/VERSION/model.onnx"
            raise click.BadParameter(f"expected once, got it {len(models)} times; {advice}", param_hint="--model")
        return super().parse_args(ctx, args)


@click.command(cls=_Command, context_settings={"max_content_width": 110})
@options
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the versions of the service, its libraries and Python, and exit.",
)
def main(**values: Any) -> None:
    """Serve ONNX models of 28x28 drawings over gRPC.

    The command loads one model, or every model of a repository, and warms it up. Then it listens, and reports SERVING
    in its log and over grpc.health.v1. After SIGTERM it finishes the accepted requests and exits with 0.

    Try: sketchbatch-serve, which serves the model of the package, and in another terminal: sketchbatch model
    """
    if not find_spec("onnxruntime"):
        extras = "pip install 'sketchbatch-service[cpu]', or 'sketchbatch-service[gpu]' for an NVIDIA GPU"
        sys.exit(f"sketchbatch-serve: ONNX Runtime is not installed: {extras}")
    settings = Settings(**values)
    process.prepare(settings.log_level)
    # ONNX Runtime and gRPC load slowly. --help, an invalid flag and the supervisor do not need ONNX Runtime.
    run: Coroutine[Any, Any, None]
    if settings.workers > 1:
        from .app.supervisor import supervise

        run = supervise(settings)
    else:
        from .app.server import serve

        run = serve(settings, ends_process=True)
    try:
        asyncio.run(run)
    except StartError as exc:
        sys.exit(f"sketchbatch-serve: {exc}")


if __name__ == "__main__":
    main()
