"""Read rendered Kubernetes manifests: pods, containers, and the settings that the service would read from them."""

import re
from collections.abc import Iterator
from typing import Any

import click
from click.testing import CliRunner
from sketchbatch_service import settings as service_settings
from sketchbatch_service.settings import Settings

Manifest = dict[str, Any]


def of(kind: str, manifests: list[Manifest]) -> list[Manifest]:
    """Return the manifests of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def name_of(manifest: Manifest) -> str:
    return manifest["metadata"]["name"]


def pods(manifests: list[Manifest]) -> list[Manifest]:
    """Return one manifest of a pod, with `metadata` and `spec`, for each Deployment, Job and bare Pod.

    The metadata have the name of the Deployment, Job or Pod, and the labels of the pod.
    """
    owners = of("Deployment", manifests) + of("Job", manifests)
    templates = [(name_of(owner), owner["spec"]["template"]) for owner in owners]
    templates += [(name_of(pod), pod) for pod in of("Pod", manifests)]
    return [
        {"metadata": {"name": owner, "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
        for owner, template in templates
    ]


def containers(pod: Manifest) -> list[Manifest]:
    """Return the containers, init containers included, of the specification of a pod."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def services(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest, dict[str, str]]]:
    """Yield each Deployment with its first container and the environment variables of this container."""
    maps = {name_of(m): m["data"] for m in of("ConfigMap", manifests)}
    for deployment in of("Deployment", manifests):
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        environment = {each["name"]: each["value"] for each in container.get("env", [])}
        for source in container["envFrom"]:
            environment |= maps[source["configMapRef"]["name"]]
        yield deployment, container, environment


def variables() -> set[str]:
    """Return the names of all environment variables that the service reads."""
    return {parameter.envvar for parameter in _reader([]).params}


def read_settings(environment: dict[str, str]) -> Settings | str:
    """Return the settings that the service would read from `environment`, or the error message of the service."""
    read: list[Settings] = []
    result = CliRunner().invoke(_reader(read), [], env=environment)
    return read[0] if read else result.output.strip().splitlines()[-1]


def port_of(address: str) -> int:
    """Return the port of HOST:PORT, or 0 if `address` is empty."""
    return int(re.sub(r".*:", "", address) or 0)


def unknown_fields(value: Any, known: dict, path: str) -> Iterator[str]:
    """Yield the path of each field of `value` that is missing in `known`, a tree of field names."""
    if isinstance(value, list):
        for each in value:
            yield from unknown_fields(each, known, path)
    elif isinstance(value, dict):
        for field, inner in value.items():
            at = f"{path}.{field}"
            yield from unknown_fields(inner, known[field], at) if field in known else [at]


def _reader(read: list[Settings]) -> click.Command:
    return click.command()(service_settings.options(lambda **values: read.append(Settings(**values))))
