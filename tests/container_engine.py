"""Provide a container engine, a base image and containers for tests/image; needs root.

`engine` uses a running Docker daemon, or else starts one from Debian's package docker.io. `base_image` uses the base of
the Dockerfile if it can be pulled, or else builds a Debian with debootstrap. `Pod` runs a container as Kubernetes does.
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
    "--network=none",  # loopback remains
    "--read-only",  # /tmp included
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--cpus=1",
    "--pids-limit=128",
]
"""Flags of a container: Pod Security's level "restricted" and a few limits. The image sets the user."""


class NoEngine(Exception):
    """No container engine is running, and none can be started."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A running Docker daemon."""

    host: str = ""
    """Address of the daemon; empty = the default of the docker command."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the docker command."""
        return {**os.environ, **({"DOCKER_HOST": self.host} if self.host else {})}

    @property
    def build_flags(self) -> str:
        """Flags with which a build reaches a package index."""
        return "" if self.attempt("network", "inspect", "bridge").returncode == 0 else "--network=host"

    def __call__(self, *words: object, limit_s: float = 60) -> str:
        """Run `docker WORDS`, which must succeed; return its standard output."""
        finished = self.attempt(*words, limit_s=limit_s)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    def attempt(self, *words: object, limit_s: float = 60) -> subprocess.CompletedProcess:
        """Run `docker WORDS`; return the result, also of a failure."""
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
        command += ["--ip-forward=false"]  # it leaves the machine's network alone
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
    """Return the name of an available base image: BASE_IMAGE, the default of the Dockerfile, or a built Debian."""
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
    """Build a Debian like its slim images, without documentation, locales and caches; the Dockerfile adds Python."""
    with tempfile.TemporaryDirectory(prefix="sketchbatch-") as folder:
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", folder], check=True, capture_output=True)
        for dropped in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(Path(folder, dropped))
        changes = ["--change", 'CMD ["bash"]']
        if authority := os.environ.get("PIP_CERT"):  # certificate authority of a private package index
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
    """A container with the restrictions of Kubernetes; `remove` deletes it."""

    def __init__(self, docker: Engine, image: str, memory: str, *flags: object) -> None:
        self._docker = docker
        limits = [f"--memory={memory}", f"--memory-swap={memory}"]  # equal values: no swap, as in Kubernetes
        self.id = docker("run", "--detach", *RESTRICTED, *limits, *flags, image)

    def log(self) -> list[dict]:
        """Return the events of its log; every line must be one."""
        lines = self._docker.attempt("logs", self.id).stderr.splitlines()
        return [json.loads(line) for line in lines]

    def wait_for_serving(self, limit_s: float = 60) -> None:
        """Wait for SERVING in its log."""
        give_up_at = time.monotonic() + limit_s
        while not any(event["message"] == "SERVING" for event in self.log()):
            assert time.monotonic() < give_up_at
            assert self.state()["Running"], self._docker.attempt("logs", self.id).stderr
            time.sleep(0.1)

    def state(self) -> dict:
        """Return its state: Running, ExitCode, OOMKilled, Health, Pid."""
        return json.loads(self._docker("inspect", "--format", "{{json .State}}", self.id))

    def inside(self, *words: object) -> subprocess.CompletedProcess:
        """Run a command in the container."""
        return self._docker.attempt("exec", self.id, *words)

    def in_network(self, *words: object) -> list[str]:
        """Return a command that runs `words` of this machine in the container's network and reaches its loopback."""
        return ["nsenter", f"--net=/proc/{self.state()['Pid']}/ns/net", *map(str, words)]

    def stop(self) -> int:
        """Send the image's stop signal as a kubelet does, kill after 45 s, and return the exit code."""
        self._docker("stop", "--time", "45", self.id)
        return self.state()["ExitCode"]

    def remove(self) -> None:
        """Kill and delete it."""
        self._docker("rm", "--force", self.id)
