"""What people see of the queue, during a job and after it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helios_batch.queue.leases import Lease, LeaseTable
from helios_batch.queue.views import view_workers
from helios_batch.totals import Totals
from tests.queue.test_kills import wait_for_a_holder
from tests.support.fleet import Fleet, wait_for


def seen(fleet: Fleet, *arguments: str) -> object:
    """Return the JSON that a command prints."""
    done = fleet.run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_job_and_its_worker_are_seen(fleet: Fleet) -> None:
    """While a job runs: who holds what, for how long, how fast it goes; afterwards its totals."""
    job_id = fleet.submit(fleet.spec(rows=60, per_shard=4))
    fleet.worker("--name", "solo", HELIOS_STUB_SECONDS="0.15")
    wait_for(lambda: len(fleet.parts()) >= 2, "a rate")
    wait_for_a_holder(fleet, job_id)
    job = seen(fleet, "status", job_id[:8])
    assert isinstance(job, dict)
    assert (job["status"], job["rows"], job["shards"]) == ("running", 60, 15)
    assert sum(cell["shards"] for cell in job["grid"]) == 15
    # a token a row
    assert job["tokens_per_second"] == job["rows_per_second"]
    left = (60 - job["rows_done"]) / job["rows_per_second"]
    assert job["eta"] == pytest.approx(left)
    for shard in job["running"]:
        assert shard["worker"].startswith("solo@")
        assert 0 < shard["lease_left"] <= 1.5
        assert 0 <= shard["held_for"] < 4 * 0.15 + 2
        assert (shard["device"], shard["model"], shard["depth"]) == ("cpu", "stub", 2)
    (worker,) = seen(fleet, "workers")
    assert worker["worker"].startswith("solo@")
    assert worker["queues"] == "shards"
    assert (worker["device"], worker["model"], worker["depth"]) == ("cpu", "stub", 2)
    assert 0 <= fleet.jobs.now() - worker["since"] < 60
    watched = fleet.run("status", job_id, "--watch")
    assert watched.returncode == 0, watched.stderr
    lines = watched.stdout.splitlines()
    assert "done · 60/60 rows" in lines[-1]
    assert len(lines) > 1
    fleet.wait_for_status(job_id, "done")
    job = seen(fleet, "status", job_id)
    assert isinstance(job, dict)
    assert (job["rows_done"], job["shards_done"], job["running"]) == (60, 15, [])
    assert all(cell["done"] == cell["shards"] for cell in job["grid"])
    # 4 rows of 0.15 s a shard, so at most 6.7 rows a second
    assert 1 < job["rows_per_second"] < 6.7
    queue = seen(fleet, "status")
    assert isinstance(queue, dict)
    assert [each["id"] for each in queue["jobs"]] == [job_id]
    for arguments in (["status"], ["status", job_id], ["workers"]):
        shown = fleet.run(*arguments)
        assert shown.returncode == 0, shown.stderr
        assert "done" in shown.stdout or "solo" in shown.stdout


def test_logs_and_errors(fleet: Fleet) -> None:
    """A job's story is told in order; failed attempts and rows are shown with where and why."""
    folder = fleet.folder / "job"
    folder.mkdir()
    texts = ["MEMORY" if i == 5 else None if i == 9 else f"text of row {i}" for i in range(12)]
    pq.write_table(pa.table({"text": texts}), folder / "in.parquet")
    job_id = fleet.submit(fleet.spec(per_shard=4))
    fleet.worker(HELIOS_MAX_DEATHS="1")
    fleet.wait_for_status(job_id, "done")
    words = fleet.run("logs", job_id).stdout
    assert "shard 0 is published, 4 rows" in words
    told = fleet.run("logs", job_id, "--follow", "--json").stdout.splitlines()
    kinds = [json.loads(line)["kind"] for line in told]
    assert kinds[0] == "created"
    assert {"surveyed", "loaded", "published", "probing", "engine_lost"} <= set(kinds)
    found = seen(fleet, "errors", job_id)
    assert isinstance(found, dict)
    assert found["rows_by_code"] == {"quarantined": 1, "null_prompt": 1}
    assert [example["row"] for example in found["examples"]] == [5, 9]
    told = [attempt.get("error", "") for attempt in found["attempts"]]
    assert any("no memory for this row" in error for error in told)
    text = fleet.run("errors", job_id).stdout
    assert "1 rows: null_prompt" in text
    assert "Traceback" in text, "the attempt's own traceback is what explains it"


def test_errors_of_the_commands(fleet: Fleet) -> None:
    """No Redis named, none there, a wrong password, an unknown job: what, where, and what to do."""
    none = fleet.run("status", HELIOS_REDIS_URL="")
    assert (none.returncode, "no Redis is named" in none.stderr) == (2, True)
    away = fleet.run("status", HELIOS_REDIS_URL="redis://127.0.0.1:1/0")
    assert (away.returncode, "can't be reached" in away.stderr) == (1, True)
    wrong = fleet.redis.url.replace("redis://:", "redis://:very-secret-")
    refused = fleet.run("status", HELIOS_REDIS_URL=wrong)
    assert (refused.returncode, "refused the user or password" in refused.stderr) == (1, True)
    assert "very-secret" not in refused.stderr + refused.stdout
    flower = subprocess.run(
        [sys.executable, "-m", "celery", "--app", "helios_batch.queue.celery_app", "report"],
        env=fleet.environment(HELIOS_REDIS_URL=""),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (flower.returncode, "no Redis is named" in flower.stderr) == (1, True)
    assert "Traceback" not in flower.stderr
    unknown = fleet.run("status", "feed")
    assert (unknown.returncode, "no job begins with 'feed'" in unknown.stderr) == (2, True)


def test_watch_ends_on_ctrl_c(fleet: Fleet) -> None:
    """Watching a job that does not move ends with 130 and one message."""
    job_id = fleet.submit(fleet.spec(rows=8))
    with subprocess.Popen(
        [sys.executable, "-m", fleet.module, "status", job_id, "--watch"],
        env=fleet.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watcher:
        assert watcher.stdout is not None
        assert "queued" in watcher.stdout.readline()
        watcher.terminate()
        _, err = watcher.communicate(timeout=20)
    assert watcher.returncode == 130
    assert "Traceback" not in err


def test_all_events_are_told(fleet: Fleet) -> None:
    """A long story is told from its beginning, however many pages it takes."""
    job_id = fleet.submit(fleet.spec(rows=8))
    for unit in range(1500):
        fleet.jobs.event(job_id, "published", unit=unit, rows=4)
    told = [json.loads(line) for line in fleet.run("logs", job_id, "--json").stdout.splitlines()]
    assert [event["kind"] for event in told] == ["created"] + ["published"] * 1500


def test_trouble_is_not_pushed_out_by_success(fleet: Fleet) -> None:
    """After thousands of finished shards the first error is told; what is gone is said to be."""
    job_id = fleet.queue(fleet.spec(rows=6000, per_shard=1))
    fleet.jobs.event(job_id, "error", unit="3", worker="one", error="a disk that was full")
    table = LeaseTable(fleet.jobs.client, fleet.jobs.keys, 1.0)
    for unit in range(5300):
        table.complete(Lease(job_id, str(unit), "1"), Totals(rows=1))
    found = seen(fleet, "errors", job_id)
    assert isinstance(found, dict)
    assert [attempt["error"] for attempt in found["attempts"]] == ["a disk that was full"]
    assert found["attempts_complete"]
    told = [json.loads(line) for line in fleet.run("logs", job_id, "--json").stdout.splitlines()]
    assert [event["kind"] for event in told[:3]] == ["not_kept", "created", "error"]
    assert told[-1]["unit"] == "5299"
    assert len(told) >= 5000
    for _ in range(5200):
        fleet.jobs.event(job_id, "republished", unit="4")
    text = fleet.run("errors", job_id).stdout
    assert "earlier events are not kept" in text
    assert "nothing went wrong" not in text


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_watching_a_job_that_fails(fleet: Fleet, options: list[str]) -> None:
    """The exit status tells a script: 1 for a failed or cancelled job."""
    job_id = fleet.queue(fleet.spec(rows=8))
    fleet.jobs.set_status(job_id, "failed", ("queued",), "the disk is full")
    watched = fleet.run("status", job_id, "--watch", *options)
    assert watched.returncode == 1, watched.stderr
    assert "failed" in watched.stdout
    assert fleet.run("status", job_id, *options).returncode == 0


def test_a_queue_of_its_own(fleet: Fleet) -> None:
    """A worker takes from the queues that it is told, in any order, and from no others."""
    fleet.worker("--queues", "small, large")
    large = fleet.queue(fleet.spec(rows=8, name="large"), queue="large")
    other = fleet.queue(fleet.spec(rows=8))
    small = fleet.queue(fleet.spec(rows=8, name="small"), queue="small")
    for job_id in (large, small):
        fleet.wait_for_status(job_id, "done")
    assert fleet.state(other).status == "queued"
    (worker,) = view_workers(fleet.jobs)
    assert worker.queues == "small,large"


def test_examples_that_can_not_be_had_are_explained(fleet: Fleet) -> None:
    """A folder out of reach or a damaged part does not hide the rest of what went wrong."""
    folder = fleet.folder / "job"
    folder.mkdir()
    pq.write_table(pa.table({"text": [None, "a", "b", "c", None]}), folder / "in.parquet")
    job_id = fleet.submit(fleet.spec(per_shard=4))
    fleet.worker()
    fleet.wait_for_status(job_id, "done")
    away = fleet.run("errors", job_id, HELIOS_OUTPUT_ROOTS="/nowhere")
    assert (away.returncode, "is not under HELIOS_OUTPUT_ROOTS" in away.stdout) == (0, True)
    fleet.parts()[1].write_bytes(b"junk")
    found = seen(fleet, "errors", job_id)
    assert isinstance(found, dict)
    assert found["rows_by_code"] == {"null_prompt": 2}
    assert [example["row"] for example in found["examples"]] == [0]
    assert "damaged" in found["examples_problem"]


def test_a_terminal_is_kept_up_to_date(fleet: Fleet) -> None:
    """A shard that takes long is seen to grow older, though no row is finished meanwhile."""
    job_id = fleet.submit(fleet.spec(rows=1, per_shard=1))
    fleet.worker(HELIOS_STUB_SECONDS="3")
    wait_for_a_holder(fleet, job_id)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", fleet.module, "status", job_id, "--watch"],
        env=fleet.environment(COLUMNS="80", LINES="40", TERM="xterm"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as watcher:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        assert watcher.wait() == 0
    os.close(ours)
    assert shown.count(b"lease left") >= 3


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux tells that the other end is closed
        return b""
