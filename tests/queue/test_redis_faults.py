"""A Redis that is killed, wiped or full, and an output folder that is gone."""

from __future__ import annotations

import json
import random
import shutil

from tests.support.fleet import Fleet, wait_for

SEED = 20261123


def test_redis_killed_twenty_times(lone_fleet: Fleet) -> None:
    """Consumption resumes after each restart, and every row is there once."""
    print(f"seed {SEED}")
    fleet, moments = lone_fleet, random.Random(SEED)
    job_id = fleet.submit(fleet.spec(rows=2000, per_shard=10))
    for _ in range(2):
        fleet.worker()
    for _ in range(20):
        enough = len(fleet.parts()) + moments.randint(1, 4)
        wait_for(lambda n=enough: len(fleet.parts()) >= n, "work between two kills")
        fleet.redis.kill()
        fleet.redis.start()
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(2000)
    assert all(row["error"] is None for row in fleet.rows())


def test_a_wiped_redis_is_rebuilt(lone_fleet: Fleet) -> None:
    """`FLUSHALL` in the middle of two jobs, one of them paused: both are put back as they were."""
    fleet = lone_fleet
    job_id = fleet.submit(fleet.spec(rows=400, per_shard=4), "--priority", "3")
    paused = fleet.submit(fleet.spec(rows=8, per_shard=4, name="paused"))
    fleet.worker()
    assert fleet.run("pause", paused).returncode == 0
    record = fleet.folder / "paused" / "out" / "_job.json"
    wait_for(lambda: json.loads(record.read_text())["status"] == "paused", "the folder to know")
    wait_for(lambda: len(fleet.parts()) > 5, "some shards")
    done = {part: part.stat().st_ino for part in fleet.parts()}
    fleet.jobs.client.flushall()
    state = fleet.wait_for_status(job_id, "done")
    assert state.job.priority == 3
    fleet.check_whole(400)
    assert {part: part.stat().st_ino for part in fleet.parts()}.items() >= done.items()
    assert fleet.state(paused).status == "paused"
    assert fleet.run("resume", paused[:6]).returncode == 0
    fleet.wait_for_status(paused, "done")
    fleet.check_whole(8, "paused")


def test_the_data_of_redis_deleted(lone_fleet: Fleet) -> None:
    """Killed, its files removed, started empty: the job goes on, and redoes no shard."""
    fleet = lone_fleet
    job_id = fleet.queue(fleet.spec(rows=200, per_shard=4))
    fleet.worker()
    wait_for(lambda: len(fleet.parts()) > 5, "some shards")
    fleet.redis.kill()
    done = {part: part.stat().st_ino for part in fleet.parts()}
    kept = {"password", "redis.conf", "redis.log"}
    data = [path for path in fleet.redis.folder.iterdir() if path.name not in kept]
    assert any("aof" in path.name or "appendonly" in path.name for path in data)
    for path in data:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    fleet.redis.start()
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(200)
    assert {part: part.stat().st_ino for part in done} == done
    assert "rebuilt" in {event["kind"] for event in fleet.jobs.events(job_id)}


def test_a_job_is_found_by_workers_that_never_saw_it(lone_fleet: Fleet) -> None:
    """Redis wiped and every worker gone: the output folder alone suffices to go on."""
    fleet = lone_fleet
    job_id = fleet.submit(fleet.spec(rows=400, per_shard=4))
    fleet.worker()
    wait_for(lambda: len(fleet.parts()) > 5, "some shards")
    fleet.stop()
    fleet.jobs.client.flushall()
    fleet.worker()
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(400)


def test_the_output_folder_deleted(lone_fleet: Fleet) -> None:
    """Parts that vanish while the job runs are made again before it is called done."""
    fleet = lone_fleet
    job_id = fleet.submit(fleet.spec(rows=200, per_shard=4))
    fleet.worker()
    wait_for(lambda: len(fleet.parts()) > 10, "some shards")
    shutil.rmtree(fleet.folder / "job" / "out", ignore_errors=True)
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(200)


def test_a_full_redis(lone_fleet: Fleet) -> None:
    """At maxmemory submitting fails loudly; what runs loses nothing and goes on afterwards."""
    fleet = lone_fleet
    job_id = fleet.submit(fleet.spec(rows=400, per_shard=4))
    fleet.worker()
    wait_for(lambda: len(fleet.parts()) > 5, "some shards")
    client = fleet.jobs.client
    client.config_set("maxmemory", "1mb")
    refused = fleet.run("submit", fleet.spec(rows=8, name="late"))
    assert refused.returncode == 1
    assert "memory limit" in refused.stderr
    assert "Traceback" not in refused.stderr
    before = len(fleet.parts())
    client.config_set("maxmemory", "0")
    wait_for(lambda: len(fleet.parts()) > before or fleet.state(job_id).status == "done", "work")
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(400)
    assert fleet.submit(fleet.spec(rows=8, name="late"))
