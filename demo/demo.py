"""Run the main job: drawings -> CNN -> ONNX file -> running service -> bulk scores -> metrics and report.

Every step is a command of Sketchbatch and is printed before it runs.
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
CLASSES = "bear,cat,dog"  # of the drawings that the demo fetches or sketches
FETCHED_ROWS = 4000  # drawings per class; 9.4 MB for all three classes
SYNTHETIC_ROWS = 1000  # drawings per class; few are enough, because synthetic sketches are easy to classify
EPOCHS = 12  # the recipe has 30 epochs; 12 epochs take a minute and reach most of the accuracy
RECIPE = "compact"
SHIPPED = "bear-cat-dog"  # the model that `sketchbatch-serve` serves without --model
START_TIMEOUT_S = 60

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Parse the arguments and run the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/demo", help="output folder (default: %(default)s)")
    parser.add_argument(
        "--data",
        default="",
        help="folder of drawings: LABEL.npy and others, or folders LABEL/ of pictures "
        "(default: Google's bucket, or synthetic sketches)",
    )
    parser.add_argument("--epochs", default=EPOCHS, type=int, help="maximum number of epochs (default: %(default)s)")
    parser.add_argument("--restart", action="store_true", help="discard an earlier training of the output folder")
    arguments = parser.parse_args()
    started_at = time.monotonic()
    run = Path(arguments.run)

    data = get_drawings(arguments.data, run)
    step(f"train a CNN with the recipe {RECIPE}, from random weights")
    options = ["--data", data, "--run", run, "--recipe", RECIPE, "--epochs", arguments.epochs]
    command("sketchbatch-train", "train", *options, *(["--restart"] if arguments.restart else []))
    step("export the CNN to ONNX")
    command("sketchbatch-train", "export", "--run", run)
    step("serve the model, and score the held-out drawings over gRPC")
    with serving(run / "serve.log", "--model", run / "model.onnx") as server:
        command(
            "sketchbatch", "score", run / "test", "--server", server, "--all-scores", "--output", run / "scores.csv"
        )
        evaluate = ["evaluate", run / "test", "--server", server]
        command("sketchbatch", *evaluate, "--json", run / "metrics.json")
        if shipped_model_fits(run):
            compare_with_shipped(run, evaluate, arguments.epochs)
    step("write the report")
    command("sketchbatch-train", "report", "--run", run)
    console.print(f"\n[bold]done[/] in {time.monotonic() - started_at:.0f} s: open [bold]{run / 'report.html'}[/]")


def get_drawings(data: str, run: Path) -> Path:
    """Print which drawings are used, and return their folder: `data`, else fetched drawings, else synthetic sketches.

    Real and synthetic drawings have different folders, so that they cannot be mixed up.
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
            "(offline?); DATA=folder uses your own drawings"
        )
        step("generate synthetic sketches")
        folder = run / "sketches"
        command("sketchbatch-train", "sketch", "--folder", folder, "--rows", SYNTHETIC_ROWS)
    return folder


def shipped_model_fits(run: Path) -> bool:
    """Return whether the shipped model can be compared: it was made for real drawings, and knows three classes."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    return not config["source"].startswith("synthetic") and {*config["labels"]} <= {*CLASSES.split(",")}


def compare_with_shipped(run: Path, evaluate: list[object], epochs: int) -> None:
    """Print the accuracy of the shipped model, and why it is higher: on the same drawings, or on ones it did not know.

    If the shipped model was trained on these drawings, its accuracy on them says little. Then the accuracy of the
    cross-validation, which its file states, is printed.
    """
    step(f"compare with the shipped model {SHIPPED} on the same drawings")
    with serving(run / "shipped.log") as shipped:
        command("sketchbatch", *evaluate, "--against-server", shipped, "--json", run / "comparison.json", "--quiet")
    comparison = json.loads((run / "comparison.json").read_text(encoding="utf-8"))
    other = comparison["against"]
    if other["trained_on"] and other["trained_on"]["matches"]:
        stored = other["drift"]["metrics"]["accuracy"]["stored"]
        shipped_accuracy = f"{stored:.3f} in a cross-validation of {SHIPPED}, which was trained on these drawings, too"
    else:
        shipped_accuracy = f"{other['accuracy']:.3f} for {SHIPPED}"
    console.print(
        f"accuracy: {comparison['accuracy']:.3f} for the model of the demo (recipe {RECIPE}, {epochs} epochs from "
        f"random weights); {shipped_accuracy}; its training started from a model of 345 classes (docs/training.md)"
    )


def step(title: str) -> None:
    """Print the title of a step."""
    console.print(f"\n[bold blue]{title}[/]")


def command(program: str, *arguments: object) -> None:
    """Print and run a command; exit with its exit code if it fails."""
    words = [program, *map(str, arguments)]
    console.print(f"$ {shlex.join(words)}", style="dim", markup=False)
    finished = subprocess.run([BIN / program, *words[1:]], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


@contextmanager
def serving(log: Path, *options: object) -> Iterator[str]:
    """Run the service on a free local port; yield HOST:PORT when the service is SERVING; drain it at the end."""
    words = ["sketchbatch-serve", *map(str, options), "--address", "127.0.0.1:0"]
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
    """Return the SERVING event from the log of the service."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while service.poll() is None and time.monotonic() < deadline:
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
