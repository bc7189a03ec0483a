"""Provide a container engine, a base image and containers for tests/image; this module needs root.

`engine` uses a running Docker daemon, or else starts a daemon from Debian's package docker.io. `base_image` uses the
base image of the Dockerfile if this image can be pulled, or else builds a Debian image with debootstrap. `Pod` runs a
container with the restrictions of Kubernetes.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STAND_IN = "sketchbatch-base:bookworm"

RESTRICTED = [
    "--network=none",  # only the loopback interface remains
    "--read-only",  # /tmp is read-only, too
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--cpus=1",
    "--pids-limit=128",
]
"""Flags of `docker run` with the limits of Kubernetes' Pod Security level "restricted" and a few stricter limits.

The image itself sets a user other than root.
"""


class NoEngine(Exception):
    """No container engine is running, and the tests cannot start one."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Send commands to a running Docker daemon."""

    host: str = ""
    """Address of the Docker daemon; empty means the default of the docker command."""

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables of the docker command."""
        return {**os.environ, **({"DOCKER_HOST": self.host} if self.host else {})}

    @property
    def build_flags(self) -> str:
        """Return the flags with which `docker build` reaches a package index."""
        return "" if self.attempt("network", "inspect", "bridge").returncode == 0 else "--network=host"

    def __call__(self, *words: object, limit_s: float = 60) -> str:
        """Run `docker WORDS` and return its standard output; fail if the command fails."""
        finished = self.attempt(*words, limit_s=limit_s)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    def attempt(self, *words: object, limit_s: float = 60) -> subprocess.CompletedProcess:
        """Run `docker WORDS` and return the finished process, even if the command failed."""
        command = ["docker", *map(str, words)]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=limit_s
        )


@contextmanager
def engine() -> Iterator[Engine]:
    """Yield the running Docker daemon, or start one for the duration of the context.

    Raises:
        NoEngine: No daemon is running and none can be started, or the user is not root.
    """
    if os.geteuid():
        raise NoEngine("needs root, to enter the network of a container")
    if shutil.which("docker") and Engine().attempt("info").returncode == 0:
        yield Engine()
        return
    if not all(map(shutil.which, ["docker", "dockerd", "debootstrap"])):
        raise NoEngine("no Docker daemon is running; starting one needs Debian's docker.io and debootstrap")
    with tempfile.TemporaryDirectory(prefix="sketchbatch-") as folder:
        host = f"unix://{folder}/socket"
        command = ["dockerd", "--host", host, "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
        command += ["--pidfile", f"{folder}/pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]
        command += ["--ip-forward=false"]  # Docker must not change the machine's network settings
        with (Path(folder) / "log").open("w+") as log:
            daemon = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                started = Engine(host)
                _wait_for(started, daemon, log.name)
                yield started
            finally:
                daemon.terminate()
                daemon.wait(60)
                left_mounted = f"{folder}/exec/netns/default"
                subprocess.run(["umount", left_mounted], check=False, capture_output=True)


def _wait_for(started: Engine, daemon: subprocess.Popen, log: str) -> None:
    give_up_at = time.monotonic() + 30
    while started.attempt("info").returncode:
        if daemon.poll() is not None or time.monotonic() > give_up_at:
            last = Path(log).read_text().splitlines()[-1:]
            raise NoEngine(f"dockerd does not start: {' '.join(last)}")
        time.sleep(0.2)


def base_image(docker: Engine, dockerfile: Path) -> str:
    """Return the name of the base image from which a test can build: pull it, or build it.

    It is the value of the environment variable BASE_IMAGE, or the default in the Dockerfile. If that cannot be pulled,
    it is a Debian image that this function builds.
    """
    if chosen := os.environ.get("BASE_IMAGE"):
        return chosen
    default = re.search(r"^ARG BASE_IMAGE=(.+)$", dockerfile.read_text(), re.MULTILINE)[1]
    for name in (default, STAND_IN):
        if docker.attempt("image", "inspect", name).returncode == 0:
            return name
    if docker.attempt("pull", default, limit_s=300).returncode == 0:
        return default
    _make_stand_in(docker)
    return STAND_IN


def _make_stand_in(docker: Engine) -> None:
    """Build a Debian image without documentation, locales and caches, as Debian's slim images are.

    The Dockerfile adds Python.
    """
    with tempfile.TemporaryDirectory(prefix="sketchbatch-") as folder:
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", folder], check=True, capture_output=True)
        for dropped in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(Path(folder, dropped))
        changes = ["--change", 'CMD ["bash"]']
        # PIP_CERT is the path of the certificate authority of a private package index
        if authority := os.environ.get("PIP_CERT"):
            shutil.copy(authority, Path(folder, "etc/pip-ca.crt"))
            changes += ["--change", "ENV PIP_CERT=/etc/pip-ca.crt"]
        with subprocess.Popen(["tar", "-C", folder, "--numeric-owner", "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(
                ["docker", "import", *changes, "-", STAND_IN],
                stdin=tar.stdout,
                env=docker.environment,
                check=True,
                capture_output=True,
            )


class Pod:
    """Run a container with the restrictions of Kubernetes until `remove` deletes the container."""

    def __init__(self, docker: Engine, image: str, memory: str, *flags: object) -> None:
        self._docker = docker
        limits = [f"--memory={memory}", f"--memory-swap={memory}"]  # equal values forbid swap, as in Kubernetes
        self.id = docker("run", "--detach", *RESTRICTED, *limits, *flags, image)

    def log(self) -> list[dict]:
        """Return the events of the container's log; every log line must be one event."""
        lines = self._docker.attempt("logs", self.id).stderr.splitlines()
        return [json.loads(line) for line in lines]

    def wait_for_serving(self, limit_s: float = 60) -> None:
        """Wait for the event SERVING in the container's log."""
        give_up_at = time.monotonic() + limit_s
        while not any(event["message"] == "SERVING" for event in self.log()):
            assert time.monotonic() < give_up_at
            assert self.state()["Running"], self._docker.attempt("logs", self.id).stderr
            time.sleep(0.1)

    def state(self) -> dict:
        """Return the container's state: Running, ExitCode, OOMKilled, Health, Pid."""
        return json.loads(self._docker("inspect", "--format", "{{json .State}}", self.id))

    def inside(self, *words: object) -> subprocess.CompletedProcess:
        """Run a command inside the container."""
        return self._docker.attempt("exec", self.id, *words)

    def in_network(self, *words: object) -> list[str]:
        """Return a command that runs the program `words` of this machine in the container's network namespace."""
        return ["nsenter", f"--net=/proc/{self.state()['Pid']}/ns/net", *map(str, words)]

    def stop(self) -> int:
        """Stop the container as a kubelet does, and return the container's exit code.

        The container receives the stop signal of the image, and is killed if it still runs after 45 s.
        """
        self._docker("stop", "--time", "45", self.id)
        return self.state()["ExitCode"]

    def remove(self) -> None:
        """Kill and delete the container."""
        self._docker("rm", "--force", self.id)
