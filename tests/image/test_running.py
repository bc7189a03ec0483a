"""Test that a container of the service's image serves under the restrictions of Kubernetes.

The container has no root user, no writable files, and only the loopback interface.
"""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx_models import write_model
from polling import wait_until

pytestmark = [pytest.mark.image, pytest.mark.timeout(120, func_only=True)]

BIN = Path(sys.executable).parent

LONG_REQUEST = """
import numpy as np
from sketchbatch_client import Client
bitmaps = np.zeros((16384, 28, 28), np.uint8)
with Client("127.0.0.1:50051", rows_per_request=16384) as client:
    client.classify(bitmaps[:1])
    print(len(client.classify(bitmaps, top_k=1)))
"""


METRICS = "127.0.0.1:9090"
READ_METRICS = f"import urllib.request; print(urllib.request.urlopen('http://{METRICS}/metrics').read().decode())"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder for models that is mounted as a volume; the user of the container may read it."""
    tmp_path.chmod(0o755)
    return tmp_path


def mount(folder: Path) -> list[str]:
    """Return the flags of `docker run` that replace the repository in the image by the repository `folder`."""
    return ["--volume", f"{folder}:/models:ro"]


def score(pod, bitmaps: np.ndarray, folder: Path) -> np.ndarray:
    """Return the scores of bitmaps, which `sketchbatch score` computes with the service in the container `pod`."""
    np.save(folder / "drawings.npy", bitmaps)
    words = ["score", folder / "drawings.npy", "--server", "127.0.0.1:50051", "--all-scores"]
    command = pod.in_network(BIN / "sketchbatch", *words, "--output", folder / "scores.csv")
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    with (folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("score_")]
    return np.array([[float(row[name]) for name in names] for row in rows])


def test_the_container_returns_the_scores_of_onnx_runtime(start_pod, folder, noise, root):
    """A container of the image returns the scores of ONNX Runtime for 20,000 drawings, with the model in the image."""
    pod = start_pod()
    pod.wait_for_serving()
    bitmaps = noise(20_000)
    served = score(pod, bitmaps, folder)
    session = ort.InferenceSession(root / "models/bear-cat-dog/2/model.onnx", providers=["CPUExecutionProvider"])
    assert np.allclose(served[:500], session.run(["scores"], {"bitmaps": bitmaps[:500]})[0], atol=1e-5)
    assert np.allclose(served[-500:], session.run(["scores"], {"bitmaps": bitmaps[-500:]})[0], atol=1e-5)
    serving = next(event for event in pod.log() if event["message"] == "SERVING")
    assert serving["models"] == ["bear-cat-dog/2 on CPUExecutionProvider"]


def test_the_container_serves_without_privileges(start_pod):
    """The process in the container does not run as root, has no capabilities, and cannot gain privileges.

    Its system calls are filtered, and it cannot write any file.
    """
    pod = start_pod()
    pod.wait_for_serving()
    status = dict(line.split(":\t", 1) for line in pod.inside("cat", "/proc/1/status").stdout.splitlines())
    assert status["Uid"].split() == ["65532"] * 4
    assert {int(status[name], 16) for name in status if name.startswith("Cap")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for place in ("/x", "/tmp/x", "/models/x", "/opt/sketchbatch/x"):
        assert "Read-only file system" in pod.inside("touch", place).stderr


def test_docker_reports_the_container_as_healthy(start_pod):
    """Docker reports the container as healthy; the image's health check needs neither a shell nor privileges."""
    pod = start_pod("--health-interval=0.5s")
    wait_until(lambda: pod.state()["Health"]["Status"] == "healthy", limit_s=60)
    assert pod.state()["Health"]["Log"][-1]["Output"] == "SERVING\n"


def test_sigterm_drains_the_container(start_pod):
    """After SIGTERM, the service finishes its accepted requests and exits with 0.

    The service is process 1 of the container, without an init process that would pass the signal on.
    """
    pod = start_pod("--cpus=0.5", f"--env=SKETCHBATCH_METRICS_ADDRESS={METRICS}")
    pod.wait_for_serving()

    def queued_rows() -> float:
        command = pod.in_network(sys.executable, "-c", READ_METRICS)
        metrics = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return sum(
            float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("sketchbatch_queued_rows")
        )

    command = pod.in_network(sys.executable, "-c", LONG_REQUEST)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        wait_until(lambda: queued_rows() > 1)  # the long request is in the queue; with half a CPU, it takes 3 s
        assert pod.stop() == 0
        assert client.stdout.read() == "16384\n"
    assert [event["message"] for event in pod.log()][-2:] == ["draining", "stopped"]


def test_a_container_with_too_little_memory_exits_with_137(start_pod, docker):
    """With too little memory, the kernel kills the service: exit code 137, which Kubernetes shows as OOMKilled."""
    pod = start_pod(memory="20m")
    docker("wait", pod.id)
    assert (pod.state()["ExitCode"], pod.state()["OOMKilled"]) == (137, True)


def test_a_mounted_repository_replaces_the_model(start_pod, folder):
    """A repository that is mounted at /models replaces the repository in the image, without any setting."""
    (folder / "insects/3").mkdir(parents=True)
    write_model(folder / "insects/3/model.onnx")
    pod = start_pod(*mount(folder))
    pod.wait_for_serving()
    assert next(event for event in pod.log() if event["message"] == "SERVING")["models"][0].startswith("insects/3 ")


def test_an_invalid_model_stops_the_start_with_one_line(failed_start, folder):
    """An invalid model ends the start with exit code 1 and one line that names the file and the error."""
    (folder / "insects/1").mkdir(parents=True)
    (folder / "insects/1/model.onnx").write_text("<html>sign in</html>")
    code, lines = failed_start(*mount(folder))
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(
        "sketchbatch-serve: /models/insects/1/model.onnx: expected an ONNX model, got a web page"
    )


def test_without_a_gpu_cuda_stops_the_start_and_auto_uses_the_cpu(start_pod, failed_start, image):
    """Without a GPU, a service with provider `cuda` ends with one line of error; with `auto`, it uses the CPU.

    The log of `auto` names the provider. In the GPU image, the log also has the reason why the provider is not CUDA.
    """
    code, lines = failed_start("--env=SKETCHBATCH_PROVIDER=cuda")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("sketchbatch-serve: provider cuda was asked for, but ")
    pod = start_pod("--env=SKETCHBATCH_PROVIDER=auto")
    pod.wait_for_serving()
    events = {event["message"]: event for event in pod.log()}
    assert events["SERVING"]["models"] == ["bear-cat-dog/2 on CPUExecutionProvider"]
    assert ("on the CPU, not on CUDA" in events) == (image.extra == "gpu")
