"""How a container of the image behaves, run as Kubernetes would: no root, no writable file, no right, no network."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx_models import write_model

pytestmark = [pytest.mark.image, pytest.mark.timeout(120, func_only=True)]

BIN = Path(sys.executable).parent

LONG_REQUEST = """
import numpy as np
from sketchbatch_client import Client
bitmaps = np.zeros((16384, 28, 28), np.uint8)
with Client("127.0.0.1:50051", rows_per_request=16384) as client:
    client.classify(bitmaps[:1])
    print("asking", flush=True)
    print(len(client.classify(bitmaps, top_k=1)))
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder for models that the container's user may read, as a volume would be."""
    tmp_path.chmod(0o755)
    return tmp_path


def mount(folder: Path) -> list[str]:
    """Another repository in place of the model that is baked in."""
    return ["--volume", f"{folder}:/models:ro"]


def score(pod, bitmaps: np.ndarray, folder: Path) -> np.ndarray:
    """Scores through `sketchbatch score`, from file to file."""
    np.save(folder / "drawings.npy", bitmaps)
    words = ["score", folder / "drawings.npy", "--server", "127.0.0.1:50051", "--all-scores"]
    command = pod.beside(BIN / "sketchbatch", *words, "--output", folder / "scores.csv")
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    with (folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("score_")]
    return np.array([[float(row[name]) for name in names] for row in rows])


def test_it_scores_drawings_as_onnx_runtime_does(start_pod, folder, noise, root):
    """The model that ships answers at once, with 512 MB for 20,000 drawings on the CPU, and the log is whole."""
    pod = start_pod()
    pod.wait_for_serving()
    bitmaps = noise(20_000)
    served = score(pod, bitmaps, folder)
    session = ort.InferenceSession(root / "models/bear-cat-dog/1/model.onnx", providers=["CPUExecutionProvider"])
    assert np.allclose(served[:500], session.run(["scores"], {"bitmaps": bitmaps[:500]})[0], atol=1e-5)
    assert np.allclose(served[-500:], session.run(["scores"], {"bitmaps": bitmaps[-500:]})[0], atol=1e-5)
    serving = next(event for event in pod.log() if event["message"] == "SERVING")
    assert serving["models"] == ["bear-cat-dog/1 on CPUExecutionProvider"]


def test_it_has_no_rights_and_needs_none(start_pod):
    """Not root, no capability, none to be gained, system calls filtered, nothing writable."""
    pod = start_pod()
    pod.wait_for_serving()
    status = dict(line.split(":\t", 1) for line in pod.inside("cat", "/proc/1/status").stdout.splitlines())
    assert status["Uid"].split() == ["65532"] * 4
    assert {int(status[name], 16) for name in status if name.startswith("Cap")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for place in ("/x", "/tmp/x", "/models/x", "/opt/sketchbatch/x"):
        assert "Read-only file system" in pod.inside("touch", place).stderr


def test_docker_finds_it_healthy(start_pod):
    """The HEALTHCHECK needs no shell and no right, either."""
    pod = start_pod("--health-interval=0.5s")
    give_up_at = time.monotonic() + 30
    while pod.state()["Health"]["Status"] != "healthy":
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
    assert pod.state()["Health"]["Log"][-1]["Output"] == "SERVING\n"


def test_sigterm_drains_it(start_pod):
    """As process 1, without an init: what was accepted is answered, then it ends with 0."""
    pod = start_pod("--cpus=0.5")
    pod.wait_for_serving()
    with subprocess.Popen(pod.beside(sys.executable, "-c", LONG_REQUEST), stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout.readline() == "asking\n"
        time.sleep(0.5)  # 16,384 rows take three seconds of half a CPU
        assert asking.poll() is None
        assert pod.stop() == 0
        assert asking.stdout.read() == "16384\n"
    assert [event["message"] for event in pod.log()][-2:] == ["draining", "stopped"]


def test_too_little_memory_is_seen_from_outside(start_pod, docker):
    """The kernel's kill is no hang and no exit code of ours: 137, which Kubernetes shows as OOMKilled."""
    pod = start_pod(memory="20m")
    docker("wait", pod.id)
    assert (pod.state()["ExitCode"], pod.state()["OOMKilled"]) == (137, True)


def test_another_model_is_mounted(start_pod, folder, noise):
    """A volume over /models replaces the model that is baked in; no setting need change."""
    (folder / "insects/3").mkdir(parents=True)
    write_model(folder / "insects/3/model.onnx")
    pod = start_pod(*mount(folder))
    pod.wait_for_serving()
    assert next(event for event in pod.log() if event["message"] == "SERVING")["models"][0].startswith("insects/3 ")


def test_a_bad_model_is_refused_in_one_line(refused, folder):
    """It ends with 1 and says which file and what is wrong."""
    (folder / "insects/1").mkdir(parents=True)
    (folder / "insects/1/model.onnx").write_text("<html>sign in</html>")
    code, said = refused(*mount(folder))
    assert (code, len(said)) == (1, 1)
    assert said[0].startswith("sketchbatch-serve: /models/insects/1/model.onnx: not a model that ONNX Runtime can load")


def test_without_a_gpu_cuda_is_refused_and_auto_says_cpu(start_pod, refused, image):
    """`cuda` starts on CUDA or not at all, and one line says why; `auto` says where it went, and why not elsewhere."""
    code, said = refused("--env=SKETCHBATCH_PROVIDER=cuda")
    assert (code, len(said)) == (1, 1)
    assert said[0].startswith("sketchbatch-serve: provider cuda was asked for, but ")
    pod = start_pod("--env=SKETCHBATCH_PROVIDER=auto")
    pod.wait_for_serving()
    events = {event["message"]: event for event in pod.log()}
    assert events["SERVING"]["models"] == ["bear-cat-dog/1 on CPUExecutionProvider"]
    assert ("on the CPU, not on CUDA" in events) == (image.extra == "gpu")
