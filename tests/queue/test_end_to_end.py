"""A job through the queue: real Redis, real worker processes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helios_batch.queue.embedded import EmbeddedRedis
from tests.support.fleet import Fleet
from tests.support.parquet import write_rows


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


@pytest.fixture
def real_fleet(tmp_path: Path, redis_server: EmbeddedRedis) -> Iterator[Fleet]:
    """Workers with the real engine."""
    found = Fleet(tmp_path, redis_server, real=True)
    found.jobs.client.flushall()
    yield found
    found.stop()


def without_folder(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop the input file's path."""
    return [row | {"row_id": row["row_id"]["row"]} for row in rows]


def test_the_queue_gives_what_a_local_run_gives(real_fleet: Fleet, tiny: Path) -> None:
    """Two workers with the real engine on a tiny model: sampled rows equal a local run's, and the
    engine stays for the next job of the same model."""
    fleet, sampling = real_fleet, {"max_tokens": 12, "temperature": 0.8, "seed": 5}
    local = fleet.spec(rows=40, per_shard=40, name="local", model=tiny, sampling=sampling)
    assert fleet.run("run", local).returncode == 0
    fleet.worker("--threads", "1")
    fleet.worker("--threads", "1")
    loads: Counter[str] = Counter()
    for name in ("first", "second"):
        spec = fleet.spec(rows=40, per_shard=4, name=name, model=tiny, sampling=sampling)
        job_id = fleet.submit(spec)
        fleet.wait_for_status(job_id, "done")
        events = fleet.jobs.events(job_id)
        loads.update(event["worker"] for event in events if event["kind"] == "loaded")
        fleet.check_whole(40, name)
        assert without_folder(fleet.rows(name)) == without_folder(fleet.rows("local"))
    assert loads
    assert set(loads.values()) == {1}, "an engine was loaded again for a job of the same model"


def test_a_changed_input_is_refused(fleet: Fleet) -> None:
    """A job whose input has changed since it was submitted fails, and says so."""
    spec = fleet.spec(rows=8)
    job_id = fleet.submit(spec)
    write_rows(fleet.folder / "job" / "in.parquet", 9)
    fleet.worker(HELIOS_MAX_FAILURES="1")
    state = fleet.wait_for_status(job_id, "failed")
    assert "has changed since the job was submitted" in state.error


def test_labels_go_through_the_queue(fleet: Fleet) -> None:
    """A label task keeps its columns and counts on the way over Redis and a worker."""
    task = {"type": "label", "choices": ["io", "math"]}
    job_id = fleet.submit(fleet.spec(rows=6, per_shard=3, task=task))
    fleet.worker()
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(6)
    for row in fleet.rows():
        assert (row["label"], row["label_probability"]) == ("io", {"io": 0.5, "math": 0.5})
    record = json.loads((fleet.folder / "job" / "out" / "_job.json").read_text())
    assert record["totals"]["labels"] == {"io": 6}


def test_workers_follow_one_policy(real_fleet: Fleet) -> None:
    """With `depth: auto` two workers may both calibrate; the first to publish decides for both."""
    fleet, quality = real_fleet, {"min_agreement": 0.5, "confidence": 0.8, "calibration_rows": 40}
    spec = fleet.spec(
        rows=160,
        per_shard=20,
        model="helios-nano-docs",
        depth="auto",
        quality=quality,
        sampling={"max_tokens": 4},
        resources={"dtype": "float32", "memory": "128MiB"},
    )
    job_id = fleet.submit(spec)
    fleet.worker("--threads", "1")
    fleet.worker("--threads", "1")
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(160)
    policy = json.loads((fleet.folder / "job" / "out" / "_job.json").read_text())["policy"]
    for row in fleet.rows("job"):
        exit_ = row["exit"]
        assert exit_["layers_loaded"] == policy["depths"][exit_["stage"]]
        if exit_["stage"] < len(policy["depths"]) - 1:
            assert exit_["mean_confidence"] >= policy["threshold"]


def test_a_worker_goes_where_helios_says(real_fleet: Fleet) -> None:
    """Under policy helios a worker tries both models, and its parts say what ran; a second job of
    the kind is not tried again."""
    fleet = real_fleet
    for name in ("first", "second"):
        spec = fleet.spec(
            rows=40,
            per_shard=10,
            name=name,
            models=["helios-nano-docs", "helios-nano-code"],
            depth="auto",
            policy={"type": "helios", "threshold": 0.05, "requests": 3},
            sampling={"max_tokens": 4},
            resources={"dtype": "float32", "memory": "128MiB"},
        )
        job_id = fleet.submit(spec)
        if name == "first":
            fleet.worker("--threads", "1")
        fleet.wait_for_status(job_id, "done")
        fleet.check_whole(40, name)
        record = json.loads((fleet.folder / name / "out" / "_job.json").read_text())
        assert record["policy"]["decided_by"] == "helios"
        assert ("profile" in record["totals"]["seconds"]) == (name == "first")
        ran = {engine["model"] for engine in record["totals"]["engines"]}
        assert {row["exit"]["model"] for row in fleet.rows(name)} <= ran
