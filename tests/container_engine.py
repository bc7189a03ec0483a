"""A container engine for tests/image, a base that needs no registry, and one container run as Kubernetes would run it.

`engine` takes the Docker that answers, else starts one of its own from Debian's docker.io; it all needs root.
`base_image` takes the Dockerfile's own base where it can be pulled, else makes a Debian with debootstrap.
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
    "--network=none",  # loopback is there
    "--read-only",  # no /tmp either
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--cpus=1",
    "--pids-limit=128",
]
"""A pod under Pod Security's "restricted", and a little more. The user is the image's own."""


class NoEngine(Exception):
    """No container engine answers, and none can be started."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A Docker daemon that answers."""

    host: str = ""
    """Its address, where that is not the client's default."""

    @property
    def environment(self) -> dict[str, str]:
        """For whoever calls the client."""
        return {**os.environ, **({"DOCKER_HOST": self.host} if self.host else {})}

    @property
    def build_flags(self) -> str:
        """What a build needs to reach a package index."""
        return "" if self.attempt("network", "inspect", "bridge").returncode == 0 else "--network=host"

    def __call__(self, *words: object, limit_s: float = 60) -> str:
        """Runs `docker WORDS`; its standard output."""
        finished = self.attempt(*words, limit_s=limit_s)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    def attempt(self, *words: object, limit_s: float = 60) -> subprocess.CompletedProcess:
        """Runs `docker WORDS`, whatever comes of it."""
        command = ["docker", *map(str, words)]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=limit_s
        )


@contextmanager
def engine() -> Iterator[Engine]:
    """The Docker that answers, or one started for as long as this lasts.

    Raises:
        NoEngine: Neither is to be had.
    """
    if os.geteuid():
        raise NoEngine("needs root, to enter the network of a container")
    if shutil.which("docker") and Engine().attempt("info").returncode == 0:
        yield Engine()
        return
    if not all(map(shutil.which, ["docker", "dockerd", "debootstrap"])):
        raise NoEngine("no Docker answers; to start one here takes Debian's docker.io and debootstrap")
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
            raise NoEngine(f"dockerd does not start here: {' '.join(last)}")
        time.sleep(0.2)


def base_image(docker: Engine, dockerfile: Path) -> str:
    """The name of a base that `docker` has: BASE_IMAGE, the Dockerfile's default, or a Debian made here."""
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
    """As Debian's slim images: no documentation, no locales, no caches; Python comes with the build."""
    with tempfile.TemporaryDirectory(prefix="sketchbatch-") as folder:
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", folder], check=True, capture_output=True)
        for dropped in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(Path(folder, dropped))
        changes = ["--change", 'CMD ["bash"]']
        if authority := os.environ.get("PIP_CERT"):  # a package index behind an authority of one's own
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
    """One container of an image, restricted as in Kubernetes, and removed by `remove`."""

    def __init__(self, docker: Engine, image: str, memory: str, *flags: object) -> None:
        self._docker = docker
        limits = [f"--memory={memory}", f"--memory-swap={memory}"]  # the same twice: no swap, as in Kubernetes
        self.id = docker("run", "--detach", *RESTRICTED, *limits, *flags, image)

    def log(self) -> list[dict]:
        """Its events so far; every line is one."""
        lines = self._docker.attempt("logs", self.id).stderr.splitlines()
        return [json.loads(line) for line in lines]

    def wait_for_serving(self, limit_s: float = 60) -> None:
        """Returns once it says SERVING."""
        give_up_at = time.monotonic() + limit_s
        while not any(event["message"] == "SERVING" for event in self.log()):
            assert time.monotonic() < give_up_at
            assert self.state()["Running"], self._docker.attempt("logs", self.id).stderr
            time.sleep(0.1)

    def state(self) -> dict:
        """What the engine says of it: Running, ExitCode, OOMKilled, Health, Pid."""
        return json.loads(self._docker("inspect", "--format", "{{json .State}}", self.id))

    def inside(self, *words: object) -> subprocess.CompletedProcess:
        """Runs a command in the container."""
        return self._docker.attempt("exec", self.id, *words)

    def beside(self, *words: object) -> list[str]:
        """A command of this machine, as it runs in the container's network, whose loopback nobody else reaches."""
        return ["nsenter", f"--net=/proc/{self.state()['Pid']}/ns/net", *map(str, words)]

    def stop(self) -> int:
        """As a kubelet does: the image's stop signal, and 45 s until it is killed; the exit code."""
        self._docker("stop", "--time", "45", self.id)
        return self.state()["ExitCode"]

    def remove(self) -> None:
        """Kills it if it still runs."""
        self._docker("rm", "--force", self.id)
