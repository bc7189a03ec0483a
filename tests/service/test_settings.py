"""Test that settings are read from flags, environment variables and defaults, and are checked and documented."""

import math
import re
import signal
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from sketchbatch_client import Client
from sketchbatch_service import __main__, settings
from sketchbatch_service.__main__ import main as serve
from sketchbatch_service.settings import Settings


def read(*flags: str, **environment: str):
    """Return the settings from command line flags and environment variables, or the output with the error."""
    found = []

    @click.command()
    @settings.options
    def command(**values):
        found.append(Settings(**values))

    result = CliRunner().invoke(command, ["--model", "m", *flags], env=environment)
    return found[0] if found else result.output


def test_a_flag_wins_over_the_environment_and_that_over_the_default():
    """A flag overrides the environment, and the environment overrides the default, for every setting."""
    assert read().max_batch_rows == 0
    assert read(SKETCHBATCH_MAX_BATCH_ROWS="32").max_batch_rows == 32
    assert read("--max-batch-rows", "16", SKETCHBATCH_MAX_BATCH_ROWS="32").max_batch_rows == 16
    assert read("--no-reflection").reflection is False
    assert read(SKETCHBATCH_REFLECTION="0").reflection is False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-batch-rows", "-1"], "-1 is not in the range 0<=x<=1000000"),
        (["--threads", "-1"], "-1 is not in the range 0<=x<=1024"),
        (["--watch-models-s", "-1"], "-1.0 is not in the range 0<=x<=86400"),
        (["--drain-s", "soon"], "'soon' is not a valid float"),
        (["--provider", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["--address", "localhost"], "must be HOST:PORT or [IPV6]:PORT, PORT 0..65535, got 'localhost'"),
        (["--address", "127.0.0.1:99999"], "got '127.0.0.1:99999'"),
        (
            ["--address", "unix:"],
            "must be unix:PATH, PATH of 1..107 bytes without any of '%?#,', and not a folder, got 'unix:'",
        ),
        (["--address", f"unix:/{'x' * 107}"], "must be unix:PATH, PATH of 1..107 bytes"),
        (["--address", "unix:/run/a%20b.sock"], "without any of '%?#,'"),
        (["--address", "unix:/run/a?b.sock"], "without any of '%?#,'"),
        (["--address", "unix:/run/a#b.sock"], "without any of '%?#,'"),
        (["--address", "unix:/run/a,b.sock"], "without any of '%?#,'"),
        (["--address", "unix:/run/folder/"], "not a folder"),
        (["--address", "unix://run/x.sock"], "must be unix:PATH"),
        (["--address", "unix:/run/x.sock", "--workers", "2"], "several processes cannot share unix:PATH"),
        (["--address", "unix-abstract:x"], "must be HOST:PORT or unix:PATH, not an abstract socket"),
        (["--address", "unix-abstract:50051"], "not an abstract socket, which any process may use"),
        (["--probe-address", "unix:/run/x.sock"], "must be HOST:PORT or [IPV6]:PORT, not a socket file"),
        (["--probe-address", "unix:50052"], "must be HOST:PORT or [IPV6]:PORT, not a socket file"),
        (["--metrics-address", "unix:9090"], "must be HOST:PORT or [IPV6]:PORT, not a socket file"),
        (["--metrics-address", "unix-abstract:9090"], "must be HOST:PORT or [IPV6]:PORT, not a socket"),
        (["--address", "::1:50051"], "must be HOST:PORT or [IPV6]:PORT"),
        (["--probe-address", "unix:/run/x.sock:1"], "must be HOST:PORT or [IPV6]:PORT"),
        (["--metrics-address", "9090"], "must be HOST:PORT or [IPV6]:PORT, PORT 0..65535, got '9090'"),
        (["--otlp-endpoint", "collector:4318"], "must be http://HOST:PORT or https://..., got 'collector:4318'"),
        (["--max-request-rows", "2000000"], "is not in the range 1<=x<=1000000"),
        (
            ["--probe-address", "50052"],
            "Invalid value for --probe-address: must be HOST:PORT or [IPV6]:PORT, PORT 0..65535, got '50052'",
        ),
        (["--tls-cert", "c.pem"], "Invalid value for --tls-cert: must be set together with --tls-key"),
        (["--tls-key", "k.pem"], "Invalid value for --tls-cert: must be set together with --tls-key"),
        (["--tls-client-ca", "ca.pem"], "Invalid value for --tls-client-ca: needs --tls-cert"),
        (["--max-connections", "0"], "0 is not in the range 1<=x<=1000000"),
        (
            ["--versions", "newest"],
            "Invalid value for --versions: must be latest:N, all or numbers such as 3,5, and NAME=... for a single "
            "model, separated by ';', got 'newest'",
        ),
        (["--max-queued-rows", "5"], "must be at least --max-request-rows (16384), got 5"),
    ],
)
def test_an_invalid_value_is_rejected_with_the_expected_one(flags, message):
    """An invalid setting prevents the start of the service, and the error names the expected value."""
    assert message in read(*flags)


def test_a_second_model_is_refused():
    """Click would serve the last model without a word."""
    result = CliRunner().invoke(serve, ["--model", "a", "--model=b"])
    assert result.exit_code == 2
    assert "--model: expected once, got it 2 times; put several models into a repository" in result.output


NUMBERS = {
    f"--{option.name.replace('_', '-')}": option.type
    for option in settings.options(click.Command("serve")).params
    if isinstance(option.type, (click.types.IntParamType, click.types.FloatParamType))
}


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1", "1e300", "1000000000000"])
@pytest.mark.parametrize("flag", NUMBERS)
def test_a_number_outside_its_range_is_rejected_in_one_line(flag, number):
    """Every number has a lowest and a highest value; NaN and infinity are outside the range of every setting."""
    message = read(flag, number).splitlines()[-1]
    assert message.startswith(f"Error: Invalid value for '{flag}' ")
    assert " is not " in message


@pytest.mark.parametrize("flag", NUMBERS)
def test_the_lowest_and_the_highest_number_are_accepted(flag):
    """The limits in the error message are themselves accepted."""
    number = NUMBERS[flag]
    rows = ("--max-queued-rows", "1000000", "--max-request-rows", "1")  # the queue must have room for a request
    for limit in (number.min, number.max):
        found = read(*rows, flag, str(limit))
        assert getattr(found, flag[2:].replace("-", "_")) == limit


def test_a_service_starts_with_the_highest_numbers(start_service, tiny_model):
    """The highest values work; workers, threads and rows per batch are left out, because they cost memory."""
    costly = ("--workers", "--threads", "--max-batch-rows")
    flags = [word for flag, number in NUMBERS.items() if flag not in costly for word in (flag, str(number.max))]
    service = start_service(tiny_model, *flags)
    with Client(service.address) as client:
        assert client.health() == "SERVING"
    assert service.stop(signal.SIGINT)[0] == 0


@pytest.mark.parametrize(
    ("name", "value"), [("drain_s", math.nan), ("lame_duck_s", math.inf), ("workers", 0), ("threads", -1)]
)
def test_settings_made_in_python_are_checked_like_flags(name, value):
    """A program that embeds the service receives the same error as the command."""
    with pytest.raises(click.BadParameter, match=r"is not (in the range|a number)") as refused:
        Settings(model=Path("m"), **{name: value})
    assert refused.value.param_hint == f"--{name.replace('_', '-')}"


def test_every_setting_is_documented(root):
    """Each setting has a help text, and a row in docs/settings.md with its flag and its environment variable."""
    page = (root / "docs" / "settings.md").read_text()
    for field in fields(Settings):
        assert field.metadata["help"].endswith("."), field.name
        flag, variable = f"--{field.name.replace('_', '-')}", f"SKETCHBATCH_{field.name.upper()}"
        assert f"| `{flag}` | `{variable}` |" in page


def shown_default(default: object) -> str:
    """Return the begin of the cell with a default in docs/settings.md; "" = the cell describes the default in words."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if default is None:
        return "none"
    if default in ("", settings.SHIPPED_MODELS):
        return ""
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_the_documented_defaults_and_ranges_are_those_of_the_code(root):
    """The default of each setting in docs/settings.md is the default of its field, and so is the range of a number."""
    page = (root / "docs" / "settings.md").read_text()
    for field in fields(Settings):
        flag = f"--{field.name.replace('_', '-')}"
        [default] = re.findall(rf"^\| `{flag}` \| `\w+` \| (.*?) \| ", page, re.MULTILINE)
        assert default.startswith(shown_default(field.default)), flag
    table = page.partition("| settings | range |")[2].partition("\n\n")[0]
    ranges = {
        flag: (least, int(most.replace(",", "")))
        for flags, least, most in re.findall(r"^\| (`--.*?) \| (\S+) to ([\d,]+)", table, re.MULTILINE)
        for flag in re.findall(r"`(--[\w-]+)`", flags)
    }
    assert ranges.keys() == NUMBERS.keys()
    for flag, (least, most) in ranges.items():
        assert most == NUMBERS[flag].max, flag
        assert least == ("`--max-request-rows`" if flag == "--max-queued-rows" else f"{NUMBERS[flag].min}"), flag


def test_no_variable_is_one_that_kubernetes_sets():
    """No setting reads a variable that Kubernetes sets, such as SKETCHBATCH_PORT for a Service named sketchbatch."""
    names = {field.name for field in fields(Settings)}
    assert not {name for name in names if name.startswith(("port", "service_"))}


def test_a_service_without_onnx_runtime_names_the_extras(monkeypatch, tiny_model):
    """`pip install sketchbatch-service` installs no ONNX Runtime, because one of two packages must be chosen."""
    monkeypatch.setattr(__main__, "find_spec", lambda name: None)
    result = CliRunner().invoke(__main__.main, ["--model", str(tiny_model)])
    assert result.exit_code == 1
    assert "sketchbatch-serve: ONNX Runtime is not installed: pip install 'sketchbatch-service[cpu]'" in result.output
