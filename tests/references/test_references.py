"""Test that the references of `make docs` have every name of the code, and that the site builds without a warning."""

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import sketchbatch_client
import typer
from fakes import FakeModel
from in_process import serving
from sketchbatch_client.commands.app import app as client_app
from sketchbatch_service.__main__ import main as serve_command
from sketchbatch_service.settings import SHIPPED_MODELS, Settings
from sketchbatch_service.telemetry.background_metrics import supervisor_metrics
from sketchbatch_trainer.cli import app as train_app

MODULES = {
    "drawings": ("readers", "strokes", "images", "rasterize", "simplify"),
    "evaluation": (),
    "ray": (),
}
COMMANDS = {
    "sketchbatch": typer.main.get_command(client_app),
    "sketchbatch-serve": serve_command,
    "sketchbatch-train": typer.main.get_command(train_app),
}


@pytest.fixture(scope="module")
def source(root, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the source of the site."""
    folder = tmp_path_factory.mktemp("source")
    subprocess.run([sys.executable, "-m", "tools.references", folder], cwd=root, check=True)
    return folder


def page(source: Path, name: str) -> str:
    """Return the text of a page of the reference."""
    return (source / f"pages/reference/{name}.md").read_text()


def entries(source: Path, name: str) -> set[str]:
    """Return the names that have an entry on a page of the reference."""
    return set(re.findall(r"^::: (\S+)$", page(source, name), re.MULTILINE))


def test_every_public_name_of_the_client_has_an_entry(source):
    """Each name in `__all__` has an entry: errors on their page, all other names on the page of the client."""
    found = entries(source, "client"), entries(source, "errors")
    for name in sketchbatch_client.__all__:
        is_error = name in vars(sketchbatch_client.errors)
        assert f"sketchbatch_client.{name}" in found[is_error]
    assert len(found[0] | found[1]) == len(sketchbatch_client.__all__)


@pytest.mark.parametrize("package", MODULES)
def test_every_public_name_of_the_submodules_has_an_entry(source, package):
    """Each public function and class that a documented module defines or lists in `__all__` has an entry."""
    path = f"sketchbatch_client.{package}"
    modules = [importlib.import_module(name) for name in ([f"{path}.{each}" for each in MODULES[package]] or [path])]
    for module in modules:
        defined = {
            name
            for name, member in vars(module).items()
            if (inspect.isfunction(member) or inspect.isclass(member)) and member.__module__ == module.__name__
        }
        names = {name for name in defined if not name.startswith("_")} | set(getattr(module, "__all__", ()))
        assert names
        assert {f"{module.__name__}.{name}" for name in names} | {module.__name__} <= entries(source, package)


def test_the_types_of_results_have_entries(source):
    """A user of an `Evaluation` finds the types of its attributes, and the types of their attributes."""
    found = {name.rpartition(".")[2] for name in entries(source, "evaluation")}
    assert {"Figures", "Measured", "Paired", "Calibration", "Mistake", "TrainedOn", "Recognized"} <= found


def test_every_error_has_its_cause_and_its_cure(source):
    """The table of errors has each error, and whether the same call fails again."""
    rows = re.findall(r"^\| \[`(\w+)`\].* \| (\S.+) \| (\S.+) \| (yes|no) \|$", page(source, "errors"), re.MULTILINE)
    assert {name for name, *_ in rows} | {"SketchbatchError"} == {
        name for name in sketchbatch_client.__all__ if name in vars(sketchbatch_client.errors)
    }
    for name, _, _, is_permanent in rows:
        assert getattr(sketchbatch_client, name).is_permanent == (is_permanent == "yes")


def test_a_choice_lists_its_values(source):
    """An option with a closed set of values names all of them."""
    assert "| `--format [npy|simplified|raw|binary]`{.name} | " in page(source, "sketchbatch-train")


def sections(source: Path, command: str) -> dict[str, str]:
    """Return the sections of the page of a command by their headings; that of the command itself by its name."""
    text = page(source, command)
    parts = re.split(r"^##? `?([^`\n]+)`?$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def commands(name: str) -> Iterator[tuple[str, object]]:
    """Yield a command and its subcommands with their names."""
    yield name, COMMANDS[name]
    for subcommand, each in getattr(COMMANDS[name], "commands", {}).items():
        yield f"{name} {subcommand}", each


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_has_a_row(source, name):
    """Each option has a row in the section of its command, with its help text."""
    found = sections(source, name)
    assert found.keys() == {each for each, _ in commands(name)}
    for path, command in commands(name):
        rows = [line for line in found[path].splitlines() if line.startswith("| `")]
        assert command.help.split()[0] in found[path]
        for option in command.params:
            assert option.help
            flags = [*option.opts, *option.secondary_opts] if option.opts[0].startswith("-") else [option.metavar]
            for flag in flags:
                [row] = [row for row in rows if re.search(rf"`{re.escape(flag)}[` ]", row.split(" | ")[0])]
                assert option.help.split()[0] in row


def test_every_setting_has_its_variable_and_its_default(source):
    """The row of each flag of the service names the environment variable and the default of the setting."""
    rows = sections(source, "sketchbatch-serve")["sketchbatch-serve"].splitlines()
    for field in fields(Settings):
        [row] = [row for row in rows if f"`SKETCHBATCH_{field.name.upper()}`{{.name}} |" in row]
        default = row.split(" | ")[-1]
        if isinstance(field.default, bool):
            assert default == ("on |" if field.default else "off |")
        elif field.default not in (None, "", SHIPPED_MODELS):
            shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
            assert default.startswith(f"`{shown}`")


async def test_every_metric_has_a_row_with_its_type_and_its_labels(source):
    """The page of the metrics has the metrics of a running service and of its supervisor, and no others."""
    async with serving(bear=FakeModel()) as service:
        await service.classify(1)
        await service.rejection()
        metrics = [*service.metrics.collect(), *supervisor_metrics(wanted=2, serving=1)]
    text = page(source, "metrics")
    rows = {
        name: rest
        for name, *rest in (re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line.startswith("|"))
    }
    names = {each.name + "_total" * (each.type == "counter"): each for each in metrics}
    assert rows.keys() - {"---", "metric"} == {f"`{name}`{{.name}}" for name in names}
    for name, metric in names.items():
        kind, labels, meaning = rows[f"`{name}`{{.name}}"]
        assert kind == metric.type
        assert metric.documentation.split()[0] in meaning
        for sample in metric.samples:
            assert set(re.findall(r"`(\w+)`", labels)) == sample.labels.keys() - {"worker", "le"}


def test_links_lead_to_pages_of_the_site_or_to_the_repository(root, source):
    """A link of docs/ to a file outside docs/ becomes an address of the repository; other links stay."""
    pages = source / "pages"
    copies = [each for each in pages.rglob("*.md") if each.parent.name != "reference"]
    assert {each.relative_to(pages) for each in copies} == {
        each.relative_to(root / "docs") for each in root.glob("docs/**/*.md")
    }
    text = (pages / "decisions/0026-packages-and-layers.md").read_text()
    repository = "https://github.com/sketchbatch/sketchbatch"
    assert f"]({repository}/blob/main/pyproject.toml)" in text
    assert "](../glossary.md)" in text
    start = (pages / "README.md").read_text()
    assert f"[models/]({repository}/tree/main/models)" in start
    assert "[decisions/](decisions/README.md)" in start
    assert "](reference/client.md)" in start


def test_the_items_of_a_list_are_one_list_in_the_site(source):
    """A block of code between two items of a list is indented by four columns, as Python-Markdown needs it."""
    text = (source / "pages/operations.md").read_text()
    assert re.search(
        r"^1\. Install and start the service.*?^    ```\n    make serve$.*?^2\. ", text, re.MULTILINE | re.DOTALL
    )


@pytest.mark.timeout(180)
def test_the_site_builds_without_a_warning_and_loads_nothing_from_other_hosts(root, source, tmp_path):
    """In strict mode, mkdocs finds the target of each link and name. No page loads a file of another host."""
    mkdocs = root / ".tools/docs/bin/mkdocs"
    if not mkdocs.exists():
        pytest.skip("mkdocs is not installed: run `make docs` once")
    command = [mkdocs, "build", "--strict", "--config-file", source / "mkdocs.yml", "--site-dir", tmp_path]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    pages = {file: file.read_text() for file in tmp_path.rglob("*.html")}
    assert len(pages) > 50
    for file, text in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\s\"'>]+)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=[\"']?([^\s\"'>]+)", text)
        assert loaded
        assert [each for each in loaded if "//" in each] == [], file
        assert "mermaid" not in text  # the theme would load the library for such a diagram from another host
    client = pages[tmp_path / "reference/client/index.html"]
    for method in ("classify", "score", "models", "model", "health", "close"):
        for name in ("Client", "AsyncClient"):
            assert f'id="sketchbatch_client.{name}.{method}"' in client
    assert "Longest time for one request in seconds" in client
