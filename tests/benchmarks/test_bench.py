"""Test the arithmetic of the benchmark, and run the whole benchmark once on one small model.

The benchmark compares peers: ways to score drawings, such as our service, other servers and raw ONNX Runtime. A window
is the period of one measurement.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from bench import choose
from callers import at_rate
from contest import PeerFailed, Server
from h2load import keep_in_flight
from peers import find_peer
from processes import cpu_s, memory, tree
from results import Results, figures, mix_figures
from sketchbatch.v1 import classifier_pb2 as pb

WINDOW = {
    "requests": 100,
    "rows": 6400,
    "took_s": 2.0,
    "p50_ms": 9.0,
    "p99_ms": 11.0,
    "client_cpu_s": 0.5,
    "server_cpu_s": 1.0,
    "other_cpus": 0.1,
}

LIAR = """
import numpy as np
from . import Peer


class Liar:
    def __init__(self, model, peer): ...
    def classify(self, bitmaps): return np.full((len(bitmaps), 3), 1 / 3, np.float32)


PEERS = (Peer(name="liar", about="always says the same", connect=Liar, workloads=("1x1",)),)
"""


def measured(**rates: list[float]) -> Results:
    """Return results with the given rates in rows per second.

    An argument's name is the name of a peer ("contestant" in the results), and its list has one rate per repeat.
    """
    results = Results()
    for contestant, values in rates.items():
        for value in values:
            results.add("small", "64x8", contestant.replace("_", "-"), {"rows_per_s": value})
    return results


def run_bench(folder, *flags: str) -> subprocess.CompletedProcess:
    words = [sys.executable, str(folder / "bench.py"), *flags]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def test_a_window_gives_rates_and_cpu_seconds_of_client_and_server():
    """Rates are divided by the whole time of the window; CPU times are given per request and per 1,000 rows."""
    found = figures(WINDOW)
    assert found["rows_per_s"] == 3200
    assert found["requests_per_s"] == 50
    assert (found["client_cpu_us_per_request"], found["server_cpu_us_per_request"]) == (5000, 10000)
    assert found["client_cpu_s_per_1000_rows"] == pytest.approx(0.5 / 6.4)


def test_a_ratio_compares_values_of_the_same_repeat():
    """Each ratio compares rates of the same repeat, so a machine that slows down between repeats changes no ratio.

    In this test, each repeat is ten times slower than the one before. The ratios 300/100, 30/10 and 3/1 are all 3.
    """
    results = measured(raw_default=[100, 10, 1], ours=[300, 30, 3], plain=[100, 10, 2])
    ratios = results.ratios(results.cell("small", "64x8", "ours"))
    assert ratios == {"rows_per_s_to_raw": 3, "rows_per_s_to_raw_default": 3, "rows_per_s_to_plain": 3}
    assert results.ratios(results.cell("small", "64x8", "plain"))["rows_per_s_to_raw"] == 1


def test_the_fastest_way_to_call_onnx_runtime_is_raw():
    """The fastest way to call ONNX Runtime is chosen by its median rate, not by its best repeat."""
    results = measured(raw_default=[10, 10, 99], raw_per_cpu=[20, 20, 20], ours=[10, 10, 10])
    assert results.raw("small", "64x8").contestant == "raw-per-cpu"
    assert results.ratios(results.cell("small", "64x8", "ours"))["rows_per_s_to_raw"] == 0.5


def test_a_mix_is_compared_with_its_own_bulk_rate():
    """`bulk_kept` is the rate of a bulk job in the workload `mix`, divided by the rate of the same job alone.

    In the workload `mix`, another client sends requests of one row while the bulk job runs.
    """
    results = Results()
    results.add("small", "1024x4", "ours", figures(WINDOW))
    results.add("small", "mix", "ours", mix_figures(WINDOW | {"rows": 4800}, WINDOW | {"p99_ms": 30.0}))
    mix = results.cell("small", "mix", "ours")
    assert results.ratios(mix)["bulk_kept"] == 0.75
    assert mix.median("single_p99_ms") == 30


def test_a_rate_is_a_share_of_its_lowest_limit():
    """The limit of a contestant is the lower of two rates: of the model alone, and of an empty server.

    The share of the limit has a minimum and a maximum over the repeats. A peer that shows a limit has no share.
    """
    limits = {name: find_peer(name).limits for name in ("plain", "ours", "ours@aio", "raw64", "instant-core")}
    assert limits["ours@aio"] == ("raw64", "instant-core@aio")
    results = Results(limits)
    rates = {"raw64": [200, 100], "instant-core": [100, 90], "plain": [50, 50], "ours": [60, 45]}
    for contestant, values in rates.items():
        for value in values:
            results.add("small", "64x8", contestant, {"rows_per_s": value})
    shares = {name: results.share(results.cell("small", "64x8", name)) for name in rates}
    assert shares["ours"] == {"of": "instant-core", "median": 0.55, "min": 0.5, "max": 0.6}
    assert shares["plain"] == {"of": "raw64", "median": 0.375, "min": 0.25, "max": 0.5}
    assert (shares["raw64"], shares["instant-core"]) == (None, None)


def test_a_machine_without_h2load_leaves_its_rows_out_with_a_reason(monkeypatch, tmp_path, capsys):
    """Without h2load on the PATH, the benchmark leaves out the rows @h2load, and prints the reason."""
    monkeypatch.setenv("PATH", str(tmp_path))
    peers, left_out = choose(["plain", "ours@h2load"], ["64x8"], channels=1)
    assert [peer.name for peer in peers] == ["plain"]
    assert left_out == {"ours@h2load": "h2load is not on the PATH (Debian: nghttp2-client)"}
    assert "left out: ours@h2load: h2load is not on the PATH" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("h2load"), reason="no h2load on the PATH")
def test_h2load_counts_answers_and_reports_errors(tiny_model):
    """Each request of h2load counts once, with its seconds; answers without scores end the run with an error."""
    peer, stop = find_peer("instant-core"), threading.Event()
    stop.set()
    server = Server(peer, tiny_model)
    try:
        message = pb.ClassifyRequest(bitmaps=bytes(3 * 784)).SerializeToString()
        took_s = keep_in_flight(server.address, message, 3 * 3 * 4, 8, stop)
        assert len(took_s) == 32
        assert 0 < min(took_s) <= max(took_s) < 10
        with pytest.raises(RuntimeError, match="h2load must receive 32 answers"):
            keep_in_flight(server.address, message, 1000, 8, stop)
    finally:
        server.close()


def test_the_cost_of_a_process_includes_its_children():
    """CPU time and memory of a server are the sums over all its workers."""
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        pids = tree(process.pid)
        assert len(pids) == 2
        assert 0.28 <= cpu_s(pids) - cpu_s(pids[:1]) < 2
        assert memory(pids).after_mib > memory(pids[:1]).after_mib > 1
    finally:
        process.communicate()


def test_only_peers_that_take_part_are_started():
    """For the workload `mix`, `choose` omits raw ONNX Runtime and our client library, which cannot run this workload.

    In a peer's name, the style follows `@`. A style is a way to keep several requests in flight, for example `aio`.
    An unknown peer and an unknown style are errors.
    """
    peers, _ = choose(["raw-default", "plain@aio", "ours-client"], ["mix"], channels=2)
    assert [(peer.name, peer.style, peer.channels) for peer in peers] == [("plain@aio", "aio", 2)]
    with pytest.raises(SystemExit, match="plain@ must be one of threads, futures, aio, h2load, got 'fork'"):
        choose(["plain@fork"], ["mix"], channels=1)
    with pytest.raises(SystemExit, match="no contestant 'triton'; there are: raw-default, "):
        choose(["triton"], ["mix"], channels=1)


def test_the_error_of_a_server_that_does_not_start_has_its_last_line(tiny_model):
    """If a server does not start, the benchmark's error contains the last line of the server's output."""
    words = [sys.executable, "-c", "print('hello'); print('no licence')"]
    broken = replace(find_peer("plain"), command=lambda model: words)
    with pytest.raises(PeerFailed, match=r"server of plain was not ready .* its last line: no licence"):
        Server(broken, tiny_model)


def test_requests_at_a_rate_count_from_their_planned_time():
    """Requests behind a slow one wait for their turn, and this wait counts; no request is sent before its time."""
    stop, sent_at = threading.Event(), []

    def call(number):
        sent_at.append(time.perf_counter())
        if number == 0:
            time.sleep(0.2)
        elif number == 4:
            stop.set()

    began_at = time.perf_counter()
    took_s = at_rate(call, range(5), per_s=100, in_flight=1, stop=stop)
    assert len(took_s) == 5
    assert [took >= 0.2 - 0.01 * number for number, took in enumerate(took_s)] == [True] * 5
    stop.clear()
    at_rate(call, range(5), per_s=100, in_flight=1, stop=stop)
    assert sent_at[-1] - began_at >= 0.04


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_one_run_measures_every_contestant(root, tmp_path):
    """The benchmark writes a plot, and a results file with all figures of each peer.

    These are rates, latencies, CPU times, memory, start-up times and ratios.
    """
    flags = ["--models", "small", "--workloads", "1024x4,1x1,mix,paced"]
    flags += ["--contestants", "raw-default,raw64,plain,ours,instant-core"]
    started_at = time.monotonic()
    flags += ["--repeats", "1", "--attempts", "1", "--seconds", "0.2"]
    finished = run_bench(root / "benchmarks", *flags, "--output", str(tmp_path / "found.json"))
    assert finished.returncode == 0, finished.stderr
    record = json.loads((tmp_path / "found.json").read_text())
    cells = {(cell["contestant"], cell["workload"]): cell for cell in record["measured"]}
    peers_of = {"1024x4": set(record["contestants"]), "1x1": set(record["contestants"]), "mix": {"plain", "ours"}}
    peers_of["paced"] = {"plain", "ours"}
    peers_of["server"] = {"plain", "ours", "instant-core"}
    assert set(cells) == {(name, workload) for workload, names in peers_of.items() for name in names}
    assert (tmp_path / "found.png").stat().st_size > 10_000
    assert record["models"]["small"]["mflop_per_row"] == 1.032
    single, bulk, mix = (cells["ours", workload] for workload in ("1x1", "1024x4", "mix"))
    assert 0 < single["medians"]["p50_ms"] <= single["medians"]["p99_ms"]
    # With one request in flight, the rate is 1 / (mean latency), and the median latency is at most twice the mean.
    assert 0 < single["medians"]["requests_per_s"] * single["medians"]["p50_ms"] <= 2000
    assert bulk["medians"]["client_cpu_us_per_request"] > 0
    assert bulk["medians"]["server_cpu_us_per_request"] > 0
    assert cells["raw-default", "1x1"]["medians"]["server_cpu_us_per_request"] == 0
    rates = {name: cells[name, "1024x4"]["medians"]["rows_per_s"] for name in ("raw-default", "plain", "ours")}
    assert bulk["ratios"]["rows_per_s_to_raw"] == pytest.approx(rates["ours"] / rates["raw-default"], rel=0.002)
    assert bulk["ratios"]["rows_per_s_to_plain"] == pytest.approx(rates["ours"] / rates["plain"], rel=0.002)
    assert mix["ratios"]["bulk_kept"] == pytest.approx(mix["medians"]["bulk_rows_per_s"] / rates["ours"], rel=0.002)
    paced = cells["ours", "paced"]["medians"]
    assert 0 < paced["single_p50_ms"] <= paced["single_p99_ms"]
    assert 0 < paced["single_requests_per_s"] <= 120  # 100, and at most one more of each thread in 0.4 s
    limit = min(("raw64", "instant-core"), key=lambda name: cells[name, "1x1"]["medians"]["rows_per_s"])
    share = single["medians"]["rows_per_s"] / cells[limit, "1x1"]["medians"]["rows_per_s"]
    assert (single["share"]["of"], single["share"]["median"]) == (limit, pytest.approx(share, rel=0.002))
    server = cells["ours", "server"]["medians"]
    assert 0 < server["ready_s"] <= server["healthy_s"] < time.monotonic() - started_at
    assert 20 < server["after_mib"] <= server["peak_mib"] < 2000
    assert "ours" in finished.stdout


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_the_other_protocol_and_the_other_transport_are_measured(root, tmp_path):
    """One run measures `ModelInfer`, whose scores agree with ONNX Runtime, and the empty server of `aio`."""
    flags = ["--models", "small", "--workloads", "1x1", "--repeats", "1", "--attempts", "1", "--seconds", "0.2"]
    flags += ["--contestants", "raw64,ours-openinference,instant-aio", "--output", str(tmp_path / "found.json")]
    finished = run_bench(root / "benchmarks", *flags)
    assert finished.returncode == 0, finished.stderr
    measured = json.loads((tmp_path / "found.json").read_text())["measured"]
    shares = {cell["contestant"]: cell["share"] for cell in measured if cell["workload"] == "1x1"}
    assert (shares["raw64"], shares["instant-aio"], shares["ours-openinference"]["of"]) == (None, None, "raw64")


def test_a_new_module_is_a_new_peer_and_wrong_scores_stop_the_run(root, tmp_path):
    """The benchmark finds every module in peers/ without a registration.

    A peer whose scores differ from those of raw ONNX Runtime ends the benchmark with an error.
    """
    copy = shutil.copytree(root / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("results"))
    (copy / "peers" / "liar.py").write_text(LIAR)
    finished = run_bench(copy, "--models", "small", "--contestants", "raw-default,liar", "--workloads", "1x1")
    assert finished.returncode != 0
    assert "raw-default and liar must agree within 0.0001, got" in finished.stderr


def test_a_server_takes_flags_from_the_name_of_its_peer():
    """The peer name NAME+FLAG=VALUE means the server of the peer NAME, started with --FLAG=VALUE.

    With such names, one run of the benchmark can compare several settings of a server. The name of a peer without a
    server must have no flags.
    """
    tuned = find_peer("ours+threads=1+max-batch-rows=64@aio")
    assert tuned.command(Path("m.onnx"))[-2:] == ["--threads=1", "--max-batch-rows=64"]
    assert (tuned.name, tuned.style) == ("ours+threads=1+max-batch-rows=64@aio", "aio")
    with pytest.raises(ValueError, match="raw-default has no server to give threads=1 to"):
        find_peer("raw-default+threads=1")
