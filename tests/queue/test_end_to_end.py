"""A job through the queue: real Redis, real worker processes."""

from __future__ import annotations

import json

from tests.support.fleet import Fleet


def test_a_job_runs_to_its_end(fleet: Fleet) -> None:
    """Two workers finish a job; its folder is what a local run leaves."""
    job_id = fleet.submit(fleet.spec(rows=50, per_shard=4))
    fleet.worker()
    fleet.worker()
    state = fleet.wait_for_status(job_id, "done")
    fleet.check_whole(50)
    record = json.loads((fleet.folder / "job" / "out" / "_job.json").read_text())
    assert record["status"] == "done"
    assert record["totals"]["rows"] == 50
    assert (state.counters["rows_done"], state.done_shards) == (50, 13)


def test_submitting_twice_is_submitting_once(fleet: Fleet) -> None:
    """The id is made from the job: the second time finds the first."""
    spec = fleet.spec()
    first, second = (json.loads(fleet.run("submit", spec, "--json").stdout) for _ in range(2))
    assert first["id"] == second["id"]
    assert (first["state"], second["state"]) == ("created", "queued")
    assert fleet.jobs.ids() == [first["id"]]
