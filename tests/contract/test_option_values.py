"""Every numeric option of every command either works or is refused with exit code 2 and one line, for any number."""

import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from signal_handlers import signal_handlers_kept
from sketchbatch_client import cli
from sketchbatch_client.commands.app import app
from sketchbatch_client.demo.server import PageServer

NUMBERS = ["nan", "inf", "-inf", "-1", "0", "1e300", "1" + 30 * "0"]
CLIENT = {  # command -> its numeric options
    "score": ["--timeout-s", "--top-k", "--readers", "--part-rows", "--scale"],
    "evaluate": ["--timeout-s", "--min-accuracy"],
    "model": ["--timeout-s"],
    "health": ["--timeout-s"],
    "demo": ["--timeout-s"],
}
WORKS = {("--timeout-s", "inf"), ("--timeout-s", "1e300"), ("--timeout-s", "1" + 30 * "0"), ("--min-accuracy", "0")}
WORKS |= {("--readers", "0"), ("--part-rows", "0"), ("--scale", "0")}


def client_options() -> list[tuple[str, str, str]]:
    return [(command, option, value) for command, names in CLIENT.items() for option in names for value in NUMBERS]


def test_the_table_has_every_numeric_option_of_the_client():
    """A new numeric option must be added to the table of this test."""
    found = {
        name: {option.opts[0] for option in command.params if option.default is not None and _is_number(option.default)}
        for name, command in typer.main.get_command(app).commands.items()
    }
    assert {name: options for name, options in found.items() if options} == {
        name: set(options) for name, options in CLIENT.items()
    }


def _is_number(default: object) -> bool:
    return isinstance(default, (int, float)) and not isinstance(default, bool)


@pytest.fixture
def drawings(tmp_path, noise) -> Path:
    """Write a folder with a file of drawings for each of two labels of the tiny model."""
    for label in ("ant", "bee"):
        np.save(tmp_path / f"{label}.npy", noise(5))
    return tmp_path


@pytest.mark.parametrize(("command", "option", "value"), client_options())
def test_a_command_of_the_client_works_or_refuses_a_number(
    command, option, value, tiny_service, drawings, monkeypatch, capfd
):
    """A refused number is named in the last line, with the option."""
    monkeypatch.setattr(PageServer, "serve_forever", lambda self: None)
    words = ["sketchbatch", command, "--server", tiny_service.address, option, value]
    words += {
        "score": [str(drawings / "ant.npy"), "--output", str(drawings / "out.csv")],
        "evaluate": [str(drawings)],
        "demo": ["--address", "127.0.0.1:0"],
    }.get(command, [])
    monkeypatch.setattr(sys, "argv", words)
    with signal_handlers_kept(), pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    if (option, value) in WORKS:
        assert ended.value.code in (0, None), printed
    else:
        assert ended.value.code == 2, printed
        assert f"Invalid value for '{option}'" in printed
