"""Pausing, cancelling, retrying, priorities, fairness and deadlines, with real workers."""

from __future__ import annotations

import json
import random
import time

import pyarrow as pa
import pyarrow.parquet as pq

from helios_batch.queue import control
from tests.queue.test_kills import wait_for_a_holder
from tests.support.fleet import Fleet, wait_for

SEED = 20261124


def test_cancel_at_fifty_moments(fleet: Fleet) -> None:
    """Whenever it comes, a cancelled job is cancelled, and nothing is published afterwards."""
    print(f"seed {SEED}")
    moments = random.Random(SEED)
    job_id = fleet.submit(fleet.spec(rows=6000, per_shard=4))
    fleet.worker()
    fleet.worker()
    fleet.wait_for_status(job_id, "running")
    for _ in range(50):
        before = len(fleet.parts())
        wait_for(lambda n=before: len(fleet.parts()) > n, "work between two cancels")
        time.sleep(moments.uniform(0, 0.04))
        assert control.cancel(fleet.jobs, fleet.state(job_id), fleet.settings)
        published = {part: part.stat().st_ino for part in fleet.parts()}
        wait_for(lambda: fleet.holder(job_id) is None, "the workers to let go")
        assert {part: part.stat().st_ino for part in fleet.parts()} == published
        record = json.loads((fleet.folder / "job" / "out" / "_job.json").read_text())
        assert (record["status"], fleet.state(job_id).status) == ("cancelled", "cancelled")
        control.retry(fleet.jobs, fleet.state(job_id), fleet.settings)
    assert fleet.state(job_id).status != "done", "the job ended before it was cancelled often"


def test_cancel_and_retry_by_command(fleet: Fleet) -> None:
    """The commands do what they say, refuse what makes no sense, and a retried job ends whole."""
    job_id = fleet.submit(fleet.spec(rows=200, per_shard=4))
    fleet.worker()
    wait_for(lambda: len(fleet.parts()) > 3, "some shards")
    assert "is cancelled" in fleet.run("cancel", job_id).stdout
    kept = {part: part.stat().st_ino for part in fleet.parts()}
    assert kept
    refused = fleet.run("pause", job_id)
    assert (refused.returncode, "the job is cancelled" in refused.stderr) == (2, True)
    unknown = fleet.run("cancel", "feedfeed")
    assert (unknown.returncode, "no job begins with" in unknown.stderr) == (2, True)
    assert fleet.run("retry", job_id).returncode == 0
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(200)
    assert {part: part.stat().st_ino for part in fleet.parts()}.items() >= kept.items()
    done = fleet.run("retry", job_id)
    assert (done.returncode, "the job is done" in done.stderr) == (2, True)


def test_failed_rows_are_run_again(fleet: Fleet) -> None:
    """`retry --failed` runs the shards that hold failed rows anew, and no others."""
    folder = fleet.folder / "job"
    folder.mkdir()
    texts = ["KILL" if i == 6 else f"text of row {i}" for i in range(12)]
    pq.write_table(pa.table({"text": texts}), folder / "in.parquet")
    job_id = fleet.submit(fleet.spec(per_shard=4))
    fleet.worker(HELIOS_MAX_DEATHS="1")
    fleet.wait_for_status(job_id, "done")
    before = {part.name: part.stat().st_ino for part in fleet.parts()}
    assert [row["row_id"]["row"] for row in fleet.rows() if row["error"]] == [6]
    assert "1 finished shards" in fleet.run("retry", job_id, "--failed").stdout
    fleet.wait_for_status(job_id, "done")
    after = {part.name: part.stat().st_ino for part in fleet.parts()}
    fleet.check_whole(12)
    assert {name for name in before if before[name] != after[name]} == {"part-00001.parquet"}


def test_pause_lets_running_shards_finish(fleet: Fleet) -> None:
    """A paused job begins nothing; resumed, it goes on."""
    job_id = fleet.submit(fleet.spec(rows=40, per_shard=4))
    fleet.worker(HELIOS_STUB_SECONDS="0.1")
    wait_for_a_holder(fleet, job_id)
    control.pause(fleet.jobs, fleet.state(job_id))
    wait_for(lambda: fleet.holder(job_id) is None, "the running shard to finish")
    finished = len(fleet.parts())
    assert finished >= 1
    (opened,) = fleet.jobs.keys.job(job_id).parts("open")
    wait_for(lambda: not fleet.jobs.client.zcard(opened), "messages to be used up")
    assert len(fleet.parts()) == finished
    control.resume(fleet.jobs, fleet.state(job_id), fleet.settings)
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(40)


def test_priority_and_fairness(fleet: Fleet) -> None:
    """The higher priority is served first; jobs of one priority take turns."""
    jobs = {
        name: fleet.queue(fleet.spec(rows=80, per_shard=4, name=name), priority)
        for name, priority in (("low", 0), ("fair-1", 5), ("fair-2", 5))
    }
    fleet.worker(HELIOS_STUB_SECONDS="0.01")
    for job_id in jobs.values():
        fleet.wait_for_status(job_id, "done")
    began = {
        name: [
            int(e["id"].split("-")[0])
            for e in fleet.jobs.events(job_id)
            if e["kind"] == "published"
        ]
        for name, job_id in jobs.items()
    }
    # a few messages of the lower priority may be on their way when the others arrive
    late = [moment for moment in began["low"] if moment > max(began["fair-1"])]
    assert len(late) >= 15
    assert began["fair-1"][10] < began["fair-2"][-1]
    assert began["fair-2"][10] < began["fair-1"][-1]


def test_jobs_of_two_engines_change_seldom(fleet: Fleet) -> None:
    """Of equal priority, they don't load their weights anew for each shard."""
    jobs = [
        fleet.queue(fleet.spec(rows=40, per_shard=4, name=f"depth-{depth}", depth=depth))
        for depth in (1, 2)
    ]
    fleet.worker(HELIOS_STUB_SECONDS="0")
    for job_id in jobs:
        fleet.wait_for_status(job_id, "done")
    events = [event for job_id in jobs for event in fleet.jobs.events(job_id)]
    assert 2 <= sum(event["kind"] == "loaded" for event in events) <= 4


def test_a_deadline_stops_a_job(fleet: Fleet) -> None:
    """What is finished stays; the job fails and says why; retried, it has no deadline any more."""
    spec = fleet.spec(rows=400, per_shard=4, limits={"deadline": "4s"})
    job_id = fleet.submit(spec)
    fleet.worker(HELIOS_STUB_SECONDS="0.02")
    state = fleet.wait_for_status(job_id, "failed")
    assert "deadline has passed" in state.error
    assert 0 < len(fleet.parts()) < 100
    assert fleet.run("retry", job_id).returncode == 0
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(400)


def test_too_many_failed_rows_stop_a_job(fleet: Fleet) -> None:
    """`limits.max_failed_rows` holds in the queue as it does in a local run."""
    folder = fleet.folder / "job"
    folder.mkdir()
    texts = [None if i % 2 else f"text of row {i}" for i in range(400)]
    pq.write_table(pa.table({"text": texts}), folder / "in.parquet")
    job_id = fleet.submit(fleet.spec(per_shard=4, limits={"max_failed_rows": 9}))
    fleet.worker()
    state = fleet.wait_for_status(job_id, "failed")
    assert "limits.max_failed_rows allows 9 of 400" in state.error
    assert len(fleet.parts()) < 100


def damage(fleet: Fleet, job_id: str, how: str) -> None:
    """Break what Redis has of a job."""
    client, key = fleet.jobs.client, fleet.jobs.keys.job(job_id).job
    if how == "type":
        client.delete(key)
        client.set(key, "not a hash")
    elif how == "bitmap":
        client.delete(f"{key}:done")
        client.hset(f"{key}:done", "a", "b")
    elif how == "status":
        client.hdel(key, "status")
    else:
        client.hset(key, how, {"shards": "x", "spec": "{", "priority": b"\xff"}[how])


def test_damaged_jobs_stop_no_other(fleet: Fleet) -> None:
    """Broken while they run and go first, jobs are left out loudly; submitting mends one."""
    ways = ["shards", "spec", "type", "bitmap", "status", "priority"]
    fleet.worker()
    # else the worker would put the jobs back from their folders
    wait_for(lambda: fleet.jobs.client.exists(fleet.jobs.keys.epoch), "the worker")
    broken = {
        how: fleet.queue(fleet.spec(rows=2000, per_shard=1, name=how), priority=5) for how in ways
    }
    for how, job_id in broken.items():
        fleet.wait_for_status(job_id, "running")
        damage(fleet, job_id, how)
    job_id = fleet.queue(fleet.spec(rows=8))
    (holders,) = fleet.jobs.keys.job(job_id).parts("holders")
    fleet.jobs.client.hset(holders, "99", "no JSON")
    fleet.wait_for_status(job_id, "done", seconds=8)
    fleet.check_whole(8)
    shown = fleet.run("status")
    assert (shown.returncode, "is damaged: 6" in shown.stdout) == (0, True), shown.stdout
    unreadable = fleet.run("logs", broken["type"])
    assert (unreadable.returncode, "submit its spec again" in unreadable.stderr) == (2, True)
    assert fleet.queue(fleet.folder / "type" / "job.yaml") == broken["type"]
    wait_for(lambda: fleet.state(broken["type"]).status == "running", "the mended job")


def test_retry_deletes_nothing_outside_the_roots(fleet: Fleet) -> None:
    """Whatever folder Redis names, `retry --failed` takes parts away under the roots alone."""
    folder = fleet.folder / "job"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["fine", None]}), folder / "in.parquet")
    job_id = fleet.submit(fleet.spec(per_shard=4))
    fleet.worker()
    fleet.wait_for_status(job_id, "done")
    other = str(fleet.folder / "elsewhere")
    refused = fleet.run("retry", job_id, "--failed", HELIOS_OUTPUT_ROOTS=other)
    assert (refused.returncode, "lies outside" in refused.stderr) == (2, True)
    assert len(fleet.parts()) == 1
