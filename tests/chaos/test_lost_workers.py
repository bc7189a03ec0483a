"""Kill workers 50 times while file descriptors and processes run out at random; all workers must come back."""

import os
import random
import resource
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from polling import wait_until
from prometheus_client.parser import text_string_to_metric_families
from worker_processes import children

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

KILLS = 50
WORKERS = 2
RECOVERY_S = 5.0
PIDS = Path("/sys/fs/cgroup/pids")


@pytest.fixture
def group() -> Iterator[Path | None]:
    """Return a control group whose number of processes can be limited, or None if this machine allows none."""
    folder = PIDS / f"sketchbatch-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        yield None
        return
    yield folder
    for process in (folder / "cgroup.procs").read_text().split():
        (PIDS / "cgroup.procs").write_text(process)
    folder.rmdir()


def serving_workers(address: str) -> float:
    """Return how many workers serve, from the metrics of the supervisor."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as page:
        families = text_string_to_metric_families(page.read().decode())
    samples = [sample for family in families for sample in family.samples if sample.name == "sketchbatch_workers"]
    return next(sample.value for sample in samples if sample.labels["state"] == "serving")


def test_all_workers_come_back_after_descriptors_and_processes_ran_out(start_service, tiny_model, group, capsys):
    """After each shortage, all workers serve again within 5 s. Each death and each failed start is in the log."""
    service = start_service(tiny_model, "--workers", str(WORKERS), "--metrics-address", "127.0.0.1:0")
    supervisor, chance = service.process.pid, random.Random(5)
    if group:
        (group / "cgroup.procs").write_text(str(supervisor))  # later workers are in it, too
    soft, hard = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    shortages, recovery_s, killed = Counter(), [], 0
    while killed < KILLS:
        shortage = chance.choice(["none", "descriptors", *(["processes"] if group else [])])
        shortages[shortage] += 1
        if shortage == "descriptors":
            open_files = len(list(Path(f"/proc/{supervisor}/fd").iterdir()))
            resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (open_files + chance.randrange(6), hard))
        elif shortage == "processes":
            (group / "pids.max").write_text((group / "pids.current").read_text())
        for victim in chance.sample(workers := children(supervisor), chance.randint(1, len(workers))):
            os.kill(victim, signal.SIGKILL)
            killed += 1
        time.sleep(chance.uniform(0, 3))
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (soft, hard))
        if group:
            (group / "pids.max").write_text("max")
        lifted_at = time.monotonic()
        wait_until(lambda: len(children(supervisor)) == WORKERS and serving_workers(service.metrics_address) == WORKERS)
        recovery_s.append(time.monotonic() - lifted_at)
    code, log = service.stop()
    events = Counter(event["message"] for event in log)
    with capsys.disabled():
        print(f"\n{killed} kills, {dict(shortages)}: recovery at most {max(recovery_s):.1f} s; {dict(events)}")
    assert code == 0
    assert max(recovery_s) <= RECOVERY_S
    assert events["worker died, starting another"] >= killed
    assert events["worker serves again"] >= killed
    assert shortages["descriptors"] == 0 or events["worker not started, trying again"] > 0
