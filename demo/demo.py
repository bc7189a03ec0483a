"""Runs the main job on one screen: drawings -> CNN -> ONNX -> running service -> bulk scores -> metrics, report.

Every step is a command that a person can type, and is shown before it runs. Only the order of them lives here.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from sketchbatch_client.atomic import unwind_on_signals

BIN = Path(sys.executable).parent
CLASSES = "bear,cat,dog"
FETCHED_ROWS = 4000  # of each class; 9.4 MB in all
SYNTHETIC_ROWS = 1000  # of each class; the sketches are easy to tell apart
EPOCHS = 12  # of the recipe's 30: most of what they give, in a minute
SERVING_WITHIN_S = 60

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Reads the arguments and runs the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/demo", help="folder for everything made (default: %(default)s)")
    parser.add_argument(
        "--data", default="", help="drawings in Google's layout (default: Google's bucket, or sketches)"
    )
    parser.add_argument("--epochs", default=EPOCHS, help="most epochs (default: %(default)s)")
    arguments = parser.parse_args()
    started_at = time.monotonic()
    run = Path(arguments.run)

    data = get_drawings(arguments.data, run)
    step("train a CNN")
    command(
        "sketchbatch-train", "train", "--data", data, "--classes", CLASSES, "--run", run, "--epochs", arguments.epochs
    )
    step("export it to ONNX")
    command("sketchbatch-train", "export", "--run", run)
    step("serve it, and score the held-out drawings over gRPC")
    with serving(run / "model.onnx", run / "serve.log") as server:
        command(
            "sketchbatch", "score", run / "test", "--server", server, "--all-scores", "--output", run / "scores.csv"
        )
        command("sketchbatch", "evaluate", run / "test", "--server", server, "--json", run / "metrics.json")
    step("write the report")
    command("sketchbatch-train", "report", "--run", run)
    console.print(f"\n[bold]done[/] in {time.monotonic() - started_at:.0f} s: open [bold]{run / 'report.html'}[/]")


def get_drawings(data: str, run: Path) -> Path:
    """Says where the drawings come from, in the first line, and gets them: DATA, else the bucket, else sketches.

    Real drawings and sketches have folders of their own, so that one never passes for the other.
    """
    if data:
        console.print(f"[bold]Sketchbatch demo[/] on the drawings in {data}")
        return Path(data)
    from sketchbatch_trainer.fetch.fetching import is_reachable

    if is_reachable():
        console.print("[bold]Sketchbatch demo[/] on real drawings from Google's Quick, Draw! bucket (CC BY 4.0)")
        step("fetch drawings")
        folder = run / "drawings"
        command("sketchbatch-train", "fetch", "--folder", folder, "--classes", CLASSES, "--rows", FETCHED_ROWS)
    else:
        console.print(
            "[bold]Sketchbatch demo[/] on synthetic sketches, not real drawings: Google's bucket cannot be reached "
            "(offline?); DATA=folder takes your own"
        )
        step("sketch drawings")
        folder = run / "sketches"
        command("sketchbatch-train", "sketch", "--folder", folder, "--rows", SYNTHETIC_ROWS)
    return folder


def step(title: str) -> None:
    """Announces a step."""
    console.print(f"\n[bold blue]{title}[/]")


def command(program: str, *arguments: object) -> None:
    """Shows and runs one of our commands; the demo ends with its exit code if it fails."""
    words = [program, *map(str, arguments)]
    console.print(f"$ {shlex.join(words)}", style="dim", markup=False)
    finished = subprocess.run([BIN / program, *words[1:]], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """Runs the service on a free port of this machine; yields host:port once it says SERVING; then drains it."""
    words = ["sketchbatch-serve", "--model", str(model), "--address", "127.0.0.1:0"]
    console.print(f"$ {shlex.join(words)}", style="dim", markup=False)
    with log.open("w", encoding="utf-8") as file:
        service = subprocess.Popen([BIN / words[0], *words[1:]], stderr=file)
    try:
        event = _wait_until_serving(service, log)
        console.print(f"SERVING {', '.join(event['models'])} at {event['address']}")
        yield event["address"]
    finally:
        service.terminate()
        service.wait()


def _wait_until_serving(service: "subprocess.Popen[bytes]", log: Path) -> dict[str, str]:
    """The service's SERVING event, from its log."""
    give_up_at = time.monotonic() + SERVING_WITHIN_S
    while service.poll() is None and time.monotonic() < give_up_at:
        for line in log.read_text(encoding="utf-8").splitlines():
            if line.endswith('"message": "SERVING"}'):
                event: dict[str, str] = json.loads(line)
                return event
        time.sleep(0.05)
    sys.exit(f"the service did not start; its log:\n{log.read_text(encoding='utf-8')}")


if __name__ == "__main__":
    unwind_on_signals()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
