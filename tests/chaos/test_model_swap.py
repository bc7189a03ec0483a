"""Change, break, add and remove model files for 20 seconds under load from clients that never retry."""

import random
import shutil
import time

import pytest
from model_callers import Callers, Repository
from worker_processes import resident_mib

pytestmark = [pytest.mark.chaos, pytest.mark.both_transports, pytest.mark.timeout(120)]

SECONDS = 20


def test_models_change_under_load_and_no_answer_is_lost_or_wrong(start_service, tmp_path, capsys):
    """While model files change, every request receives the scores of the model version that its response names.

    The requests are calls of Classify, messages of ClassifyStream and calls of the Open Inference Protocol.
    """
    repository = Repository(tmp_path / "models")
    repository.write(1)
    service = start_service(
        repository.path, "--watch-models-s", "0.1", "--provider", "cpu", "--max-queued-rows", "16384"
    )
    chance = random.Random(7)
    done = dict.fromkeys(("new", "broken", "half", "replaced", "removed"), 0)
    versions, newest = [1], 1
    with Callers(service.address, repository, each=2) as callers:
        memory_before = resident_mib(service.process.pid)
        ends_at = time.monotonic() + SECONDS
        while time.monotonic() < ends_at:
            what = chance.choice(list(done))
            if what == "new":
                newest += 1
                repository.write(newest)
                versions.append(newest)
            elif what == "broken":
                newest += 1
                repository.write(newest, flat_width=785)
            elif what == "half":
                whole = (repository.path / "farm" / str(versions[-1]) / "model.onnx").read_bytes()
                newest += 1
                place = repository.path / "farm" / str(newest)
                place.mkdir()
                # the second half of the file is never written
                (place / "model.onnx").write_bytes(whole[: len(whole) // 2])
            elif what == "replaced":
                repository.write(chance.choice(versions))
            elif len(versions) == 1:
                continue
            else:
                shutil.rmtree(repository.path / "farm" / str(versions.pop()))
            done[what] += 1
            time.sleep(chance.uniform(0, 0.8))
        while callers.newest() != str(versions[-1]):
            time.sleep(0.05)
        memory_after = resident_mib(service.process.pid)
    code, log = service.stop()
    events = [event["message"] for event in log]
    counts = {event: events.count(event) for event in sorted(set(events)) if event.startswith("model ")}
    with capsys.disabled():
        print(
            f"\n{SECONDS} s of changes: {done}; {callers.outcomes.total():,} answers, {dict(callers.outcomes)}, "
            f"of {len(callers.versions)} versions; {counts}; {memory_before:.0f} MiB before, {memory_after:.0f} after"
        )
    assert code == 0
    assert callers.outcomes == {"right": callers.outcomes.total()}
    assert len(callers.versions) > 3
    assert counts["model refused, what is served stays"] > 1
