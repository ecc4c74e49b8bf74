"""Rows that kill, exhaust or are malformed, and disks that fail: the rest completes."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.queue.test_kills import wait_for_a_holder
from tests.support.fleet import Fleet, wait_for

COMMIT_POINTS = [
    "lease.claimed",
    "publish.created",
    "publish.written",
    "publish.confirmed",
    "publish.linked",
    "shard.published",
    "shard.completed",
    "survey.recorded",
    "dispatch.chosen",
]


def write_texts(fleet: Fleet, texts: list[str | None]) -> None:
    """Write a job's input before its spec is made."""
    folder = fleet.folder / "job"
    folder.mkdir()
    pq.write_table(pa.table({"text": texts}), folder / "in.parquet")


def test_rows_that_kill_their_process(fleet: Fleet) -> None:
    """A row that kills, one that exhausts memory, a null: each is reported, the others complete."""
    texts: list[str | None] = [f"text of row {i}" for i in range(40)]
    texts[5], texts[17], texts[18], texts[30] = "KILL", "MEMORY", "KILL", None
    write_texts(fleet, texts)
    job_id = fleet.submit(fleet.spec(per_shard=8))
    fleet.worker()
    state = fleet.wait_for_status(job_id, "done", seconds=120)
    fleet.check_whole(40)
    errors = {row["row_id"]["row"]: row["error"]["code"] for row in fleet.rows() if row["error"]}
    quarantined = "quarantined"
    assert errors == {5: quarantined, 17: quarantined, 18: quarantined, 30: "null_prompt"}
    assert state.error_rows == {"quarantined": 3, "null_prompt": 1}
    kinds = [event["kind"] for event in fleet.jobs.events(job_id)]
    assert kinds.count("died") + kinds.count("engine_lost") <= 3 * 9


def test_a_disk_that_refuses(fleet: Fleet) -> None:
    """A worker that can't write reports it and leaves nothing; another one finishes the job."""
    job_id = fleet.submit(fleet.spec(rows=48, per_shard=8))
    fleet.worker("--name", "unlucky", HELIOS_STUB_SECONDS="0.05")
    child = int(str(wait_for_a_holder(fleet, job_id)["pid"]))
    # from now on no file of this process may grow beyond a few hundred bytes
    resource.prlimit(child, resource.RLIMIT_FSIZE, (200, 200))
    wait_for(lambda: [e for e in fleet.jobs.events(job_id) if e["kind"] == "error"], "the error")
    (error, *_) = [e for e in fleet.jobs.events(job_id) if e["kind"] == "error"]
    assert "the output could not be written" in error["error"]
    assert error["worker"].startswith("unlucky@")
    os.kill(fleet.workers[0].pid, signal.SIGKILL)
    fleet.worker()
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(48)


def test_a_disk_that_always_refuses(fleet: Fleet) -> None:
    """Retries are bounded: the job fails and says why; `retry` goes on once the disk is well."""
    job_id = fleet.submit(fleet.spec(rows=8, per_shard=8))
    out = fleet.folder / "job" / "out"
    (out / "_tmp").rmdir() if (out / "_tmp").exists() else None
    (out / "_tmp").write_text("in the way")
    fleet.worker(HELIOS_MAX_FAILURES="2")
    state = fleet.wait_for_status(job_id, "failed")
    assert "the output could not be written" in state.error
    assert not fleet.parts()
    (out / "_tmp").unlink()
    assert fleet.run("retry", job_id).returncode == 0
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(8)


@pytest.mark.parametrize("broken", ["engine", "model"])
def test_an_engine_that_never_loads(fleet: Fleet, broken: str) -> None:
    """Errors that are none of ours, before a row has run, end the job after a few tries."""
    job_id = fleet.queue(fleet.spec(rows=4, per_shard=4))
    fleet.worker(HELIOS_MAX_FAILURES="2", HELIOS_STUB_BROKEN=broken)
    state = fleet.wait_for_status(job_id, "failed", seconds=20)
    assert "CUDA error: out of memory" in state.error
    lost = [e for e in fleet.jobs.events(job_id) if e["kind"] == "engine_lost"]
    assert {e["unit"] for e in lost} == {"0" if broken == "engine" else "survey"}
    assert len(lost) == 2
    first, second = (int(e["id"].split("-")[0]) for e in lost)
    assert second - first > 250, "the second try came without a pause"


@pytest.mark.parametrize("point", COMMIT_POINTS)
def test_a_crash_at_each_point(fleet: Fleet, point: str) -> None:
    """Killed once at any step of a shard's way, its part is absent or whole, and the job ends."""
    once = fleet.folder / "once"
    job_id = fleet.submit(fleet.spec(rows=24, per_shard=4))
    fleet.worker(HELIOS_CRASHPOINT=point, HELIOS_CRASHPOINT_ONCE=str(once))
    wait_for(once.exists, f"a crash at {point}")
    if point == "dispatch.chosen":  # the worker's main process may have been hit
        fleet.worker()
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(24)
    assert all(row["error"] is None for row in fleet.rows())


@pytest.mark.parametrize("point", ["submit.prepared", "submit.claimed", "submit.queued"])
def test_a_submission_killed_half_way(fleet: Fleet, point: str) -> None:
    """Repeated, it gives one job."""
    spec = fleet.spec(rows=8)
    assert fleet.run("submit", spec, HELIOS_CRASHPOINT=point).returncode == -9
    again = json.loads(fleet.run("submit", spec, "--json").stdout)
    assert again["state"] == ("queued" if point == "submit.queued" else "created")
    assert fleet.jobs.ids() == [again["id"]]
    fleet.worker()
    fleet.wait_for_status(again["id"], "done")
    fleet.check_whole(8)
    assert Path(again["output"]).name == "out"
