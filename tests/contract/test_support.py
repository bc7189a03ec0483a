"""Test that the documents on supported versions, and the files for contributors, agree with the code."""

import json
import re
import tomllib
from configparser import ConfigParser
from dataclasses import replace

import pytest
import yaml
from google.protobuf import descriptor_pb2
from packaging.requirements import Requirement
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_client.scoring.plan import FORMAT, Input, Plan
from sketchbatch_service.transport.selection import CORE_GRPCIO

LOCKS = {"onnxruntime-gpu": "service-gpu", "tritonclient": "openinference", "kserve": "openinference"}


@pytest.fixture(scope="module")
def page(root) -> str:
    """Return the text of docs/support.md, with each line end as a space."""
    return (root / "docs/support.md").read_text().replace("\n", " ")


def locked(root, package: str) -> set[str]:
    """Return the versions of a package in its lock file."""
    text = (root / f"locks/{LOCKS.get(package, 'dev')}.txt").read_text()
    return set(re.findall(rf"^{re.escape(package)}==([\w.]+)", text, re.MULTILINE))


def test_the_lowest_and_the_locked_versions_are_those_of_the_packages(root):
    """The table of packages has the lowest version of each pyproject.toml, and a version of the lock file."""
    table = re.findall(
        r"^\| ([\w-]+) \| (protos|client|service|trainer) \| (\S+) \| (\S+) \|$",
        (root / "docs/support.md").read_text(),
        re.MULTILINE,
    )
    assert len(table) == 9
    for package, distribution, lowest, version in table:
        project = tomllib.loads((root / distribution / "pyproject.toml").read_text())["project"]
        texts = [
            *project["dependencies"],
            *(each for extra in project.get("optional-dependencies", {}).values() for each in extra),
        ]
        [wanted] = {str(r.specifier) for r in map(Requirement, texts) if r.name == package}
        assert (package, wanted) == (package, f">={lowest}")
        assert version in locked(root, package)


def test_the_other_versions_are_those_of_the_tests(root, page):
    """Versions of grpcio, Kubernetes, tritonclient and kserve are those that the tests use."""
    *first, last = sorted(CORE_GRPCIO)
    assert f"grpcio {', '.join(first)} and {last}." in page
    policies = (root / "tests/deploy/test_policies.py").read_text()
    versions = json.loads(re.search(r"^VERSIONS = (\[.*\])$", policies, re.MULTILINE)[1])
    assert f"| Kubernetes | {', '.join(versions)} |" in page
    for package in ("tritonclient", "kserve"):
        [version] = locked(root, package)
        assert f"| {package} | {version} |" in page


def test_the_wire_contract_has_every_field_and_method_of_0_1_0(root):
    """Number, name, type and label of each field, and the types of each method, are as in version 0.1.0."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    now = {
        f"{message.name} {field.name} {field.number} {field.type} {field.label} {field.type_name or '-'}"
        for message in file.message_type
        for field in message.field
    } | {
        f"{service.name} {method.name} {method.input_type} {method.output_type} "
        f"{method.client_streaming} {method.server_streaming}"
        for service in file.service
        for method in service.method
    }
    published = (root / "tests/contract/fields-0.1.0.txt").read_text().splitlines()
    assert len(published) > 40
    assert sorted(set(published) - now) == []


def plan() -> Plan:
    """Return the plan of a job with one input."""
    return Plan(
        inputs=(Input(source="a", rows=100, stamp="s"),),
        model="m",
        version="1",
        model_digest="d",
        labels=("x", "y"),
        top_k=1,
        with_all_scores=False,
        part_rows=40,
    )


def test_a_plan_without_the_newer_fields_is_that_of_an_older_client(page):
    """A manifest that lacks the fields which were added later has their defaults."""
    written = plan().to_json()
    newer = {"column", "scale", "score_kind", "renderer", "reject", "reject_below"}
    older = {key: value for key, value in written.items() if key not in newer}
    assert len(written) - len(older) == len(newer)
    assert Plan.from_json(older) == plan()
    assert f"a manifest of format {FORMAT} " in page


def test_a_plan_of_another_format_is_refused():
    """A manifest of another format is refused with both numbers."""
    with pytest.raises(ValueError, match=f"the format must be {FORMAT}, got {FORMAT + 1}"):
        Plan.from_json(plan().to_json() | {"format": FORMAT + 1})
    assert Plan.from_json(replace(plan(), part_rows=7).to_json()).part_rows == 7


def test_editors_use_the_widths_that_the_linters_check(root):
    """The line length in .editorconfig is that of ruff for Python, and 100 for Markdown."""
    config = ConfigParser()
    config.read_string("[top]\n" + (root / ".editorconfig").read_text())
    ruff = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["ruff"]
    assert config.getint("*.{py,pyi}", "max_line_length") == ruff["line-length"]
    assert config.getint("*.md", "max_line_length") == 100
    assert config["Makefile"]["indent_style"] == "tab"


def test_no_line_of_prose_is_longer_than_100_characters(root):
    """Lines of the pages for users are wrapped, except tables, code, headings, links of their own and pictures."""
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "UPGRADING.md")
    pages = [*(root / name for name in names), *(root / "docs").glob("*.md")]
    long = []
    for page in pages:
        text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        found = [line for line in text.splitlines() if len(line) > 100 and not re.match(r" *(\||#|http|\[|!|<)", line)]
        long += [f"{page.relative_to(root)}: {line}" for line in found]
    assert long == []


def test_the_hooks_run_the_tools_of_the_project(root):
    """Each hook of pre-commit runs a tool of .venv or a target of the Makefile."""
    config = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    targets = re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE)
    assert len(hooks) >= 4
    for hook in hooks:
        program, *words = hook["entry"].split()
        assert hook["language"] == "system"
        assert words[-1] in targets if program == "make" else (root / program).is_file()


@pytest.mark.parametrize("name", ["bug_report.yml", "feature_request.yml"])
def test_an_issue_form_has_what_github_requires(root, name):
    """A form has a name, a description and fields; each field has an id of its own and a label."""
    form = yaml.safe_load((root / ".github/ISSUE_TEMPLATE" / name).read_text())
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert form["name"]
    assert form["description"]
    assert len({field["id"] for field in fields}) == len(fields) >= 3
    assert all(field["attributes"]["label"] for field in fields)


WORKFLOWS = ("tests", "client", "images", "release")


def commands(root, name: str) -> str:
    """Return the commands of all steps of a workflow, one per line."""
    workflow = yaml.safe_load((root / f".github/workflows/{name}.yml").read_text())
    return "\n".join(step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"])


def test_the_workflows_call_targets_and_tests_that_exist(root):
    """Each `make` command of a workflow names a target, and each test file exists."""
    targets = set(re.findall(r"^((?:[a-z0-9-]+ ?)+):", (root / "Makefile").read_text(), re.MULTILINE))
    known = {target for line in targets for target in line.split()}
    for name in ("tests", "client", "images", "release"):
        text = commands(root, name)
        assert set(re.findall(r"\bmake ([a-z0-9-]+)", text)) <= known
        assert [file for file in re.findall(r"tests/\S+\.py", text) if not (root / file).is_file()] == []


def test_the_workflows_test_the_versions_of_python_in_the_documents(root, page):
    """The matrix of each workflow has the versions that docs/support.md names."""
    matrix = {
        name: [job["strategy"]["matrix"].get("python", []) for job in workflow["jobs"].values() if "strategy" in job]
        for name in ("tests", "client")
        for workflow in [yaml.safe_load((root / f".github/workflows/{name}.yml").read_text())]
    }
    assert matrix["tests"] == [["3.11", "3.12", "3.13"], ["3.11", "3.12", "3.13", "3.14"]]
    assert matrix["client"] == [["3.11", "3.14"]]
    for version in ("3.12, 3.13 | all | not run yet: workflow `tests`", "3.14 | protos, client, service |"):
        assert f"| {version}" in page


def test_the_actions_have_one_full_version_each(root):
    """Each action is used with one full version in all workflows, and no step keeps the token of the checkout."""
    text = "\n".join((root / f".github/workflows/{name}.yml").read_text() for name in WORKFLOWS)
    used = set(re.findall(r"uses: (\S+)@(\S+)", text))
    assert len(used) == len({action for action, _ in used}) >= 8
    assert [version for _, version in used if not re.fullmatch(r"v\d+\.\d+\.\d+", version)] == []
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
