"""Replace kubectl and a cluster in tests: run the pods of bulk Jobs one after the other, without Kubernetes.

As a script, this module accepts the kubectl commands of docs/bulk-scoring.md. The real kubectl renders the manifests
and evaluates JSONPath. Jobs behave as the documentation of Kubernetes describes. A Job that exists cannot be
changed. An index of an Indexed Job is retried up to `backoffLimitPerIndex` times. `podFailurePolicy` chooses an action
by the exit code of the container.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

_GROUPS = {"Job": "job.batch", "NetworkPolicy": "networkpolicy.networking.k8s.io"}
_CONFIG = "BULK_CLUSTER"  # this environment variable gives the script the path of the configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkCluster:
    """Emulate a cluster; `folder` holds its volumes `drawings` and `scores`, and its objects with their status."""

    folder: str
    kubectl: str
    """The real kubectl."""
    server: str
    """Address of the running service."""
    container: list[str] = field(default_factory=list)
    """Command that starts a container, to which flags and the client's image are appended; empty = no containers.

    Without containers, pods run as processes of this machine.
    """
    image: str = ""

    def environment(self) -> dict[str, str]:
        """Create the folders of the cluster; return the environment variables of commands that use it.

        Their PATH has a script `kubectl`, which runs this module in place of the real `kubectl`.
        """
        root = Path(self.folder)
        for name in ("drawings", "scores", "objects", "bin"):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name).chmod(0o777)
        (root / "config.json").write_text(json.dumps(asdict(self)))
        script = root / "bin" / "kubectl"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n')
        script.chmod(0o755)
        path = f"{script.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, _CONFIG: str(root / "config.json")}

    def apply(self, folder: str) -> None:
        """Create the objects of a folder with manifests, and run each new Job to its end.

        Exit with an error if an object exists with another `spec`.
        """
        rendered = subprocess.run([self.kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
        if rendered.returncode:
            sys.exit(rendered.stderr)
        for manifest in yaml.safe_load_all(rendered.stdout):
            name = f"{_GROUPS.get(manifest['kind'], manifest['kind'].lower())}/{manifest['metadata']['name']}"
            known = self._object(manifest["metadata"]["name"])
            if known.exists():
                if json.loads(known.read_text())["spec"] != manifest["spec"]:
                    sys.exit(f"The {manifest['kind']} is invalid: spec.template: field is immutable")
                print(f"{name} unchanged")
                continue
            status = self._run(manifest) if manifest["kind"] == "Job" else {}
            known.write_text(json.dumps({**manifest, "status": status}))
            print(f"{name} created")

    def get(self, name: str, output: str) -> None:
        """Print the value of the JSONPath `output` for an object; the real kubectl evaluates the path."""
        command = [self.kubectl, "label", "--local", "-f", self._object(name), "test=test", "-o", output]
        subprocess.run(command, check=True)

    def delete(self, names: list[str]) -> None:
        """Delete Jobs and the logs of their pods."""
        for name in names:
            self._object(name).unlink()
            self._log(name).unlink(missing_ok=True)
            print(f'job.batch "{name}" deleted')

    def copy(self, source: str, target: str) -> None:
        """Copy a file or a folder from or to the volumes of the pod `files`."""
        origin, destination = (self._path(each.removeprefix("sketchbatch/files:")) for each in (source, target))
        if Path(origin).is_dir():
            shutil.copytree(origin, destination, dirs_exist_ok=True)
        else:
            shutil.copy2(origin, destination)

    def logs(self, name: str) -> None:
        """Print the last line of each pod of a Job."""
        print(self._log(name).read_text(), end="")

    def _run(self, job: Manifest) -> Manifest:
        """Run the pods of a Job; return the status of the finished Job."""
        spec, failed = job["spec"], []
        limit = spec.get("backoffLimitPerIndex", spec.get("backoffLimit"))
        for index in range(spec.get("completions", 1)):
            action = "Count"
            for _ in range(limit + 1):
                if (code := self._run_pod(job, index)) == 0:
                    break
                if (action := _action(spec, code)) != "Count":
                    break
            if code:
                failed.append(index)
            if action == "FailJob":
                break
        types = ["FailureTarget", "Failed"] if failed else ["SuccessCriteriaMet", "Complete"]
        conditions = [{"type": each, "status": "True"} for each in types]
        return {"conditions": conditions, "failedIndexes": ",".join(map(str, failed))}

    def _run_pod(self, job: Manifest, index: int) -> int:
        name, container = job["metadata"]["name"], job["spec"]["template"]["spec"]["containers"][0]
        values = {each["name"]: each["value"] for each in container["env"]}
        words = [
            re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], word)
            for word in [*container["command"], *container["args"]]
        ]
        values |= {"JOB_COMPLETION_INDEX": str(index), "SKETCHBATCH_SERVER": self.server}
        if self.container:
            variables = [f"--env={key}={value}" for key, value in values.items()]
            words = [*self.container, *variables, f"--entrypoint={words[0]}", self.image, *words[1:]]
        else:
            words = [re.sub(r"(?<![\w.])/(?:drawings|scores)\b", lambda path: self._path(path[0]), w) for w in words]
        environment = {**os.environ, **values}
        finished = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        with self._log(name).open("a") as log:
            for line in finished.stderr.splitlines()[-1:]:
                log.write(f"[pod/{name}-{index}/{container['name']}] {line}\n")
        return finished.returncode

    def _path(self, path: str) -> str:
        """Return the path on this machine for a path in a pod; only paths of volumes differ."""
        return f"{self.folder}{path}" if path.startswith(("/drawings", "/scores")) else path

    def _object(self, name: str) -> Path:
        return Path(self.folder) / "objects" / f"{name}.json"

    def _log(self, name: str) -> Path:
        return Path(self.folder) / "objects" / f"{name}.log"


def _action(spec: Manifest, code: int) -> str:
    """Return the action of the first rule in `podFailurePolicy` that lists the exit code; "Count" if there is none."""
    for rule in spec.get("podFailurePolicy", {}).get("rules", []):
        if code in rule.get("onExitCodes", {}).get("values", []):
            return str(rule["action"])
    return "Count"


def main() -> None:
    """Run one kubectl command."""
    cluster = BulkCluster(**json.loads(Path(os.environ[_CONFIG]).read_text()))
    parser = argparse.ArgumentParser(prog="kubectl")
    parser.add_argument("-n", "--namespace")
    verbs = parser.add_subparsers(required=True)
    for verb, run, options in (
        ("apply", lambda given: cluster.apply(given.k), ["-k"]),
        ("get", lambda given: cluster.get(given.name.removeprefix("job/"), given.o), ["name", "-o"]),
        ("cp", lambda given: cluster.copy(given.source, given.target), ["source", "target"]),
        ("logs", lambda given: cluster.logs(given.l.rpartition("=")[2]), ["-l", "--prefix", "--tail"]),
    ):
        command = verbs.add_parser(verb)
        for option in options:
            command.add_argument(option, **({"action": "store_true"} if option == "--prefix" else {}))
        command.set_defaults(run=run)
    delete = verbs.add_parser("delete")
    delete.add_argument("kind", choices=["job"])
    delete.add_argument("names", nargs="+")
    delete.set_defaults(run=lambda given: cluster.delete(given.names))
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
