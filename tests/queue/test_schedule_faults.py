"""Schedules in trouble: fires that are stopped, killed, refused, or meet another one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest
import yaml

from helios_batch.queue.schedules import ScheduleTable
from tests.queue.test_schedules import FIRE, LATER, beats, fire, make_schedule, wait_for_no_fire
from tests.support.fleet import Fleet, wait_for
from tests.support.parquet import write_rows


@contextmanager
def stopped_fire(fleet: Fleet, point: str) -> Iterator[subprocess.Popen[bytes]]:
    """Begin the first fire, and stop its process at a point."""
    once = fleet.folder / "once"
    stop = {"HELIOS_CRASHPOINT": f"{point}:SIGSTOP", "HELIOS_CRASHPOINT_ONCE": str(once)}
    command = [sys.executable, "-m", fleet.module, "schedule", "fire", "nightly", FIRE]
    with subprocess.Popen(command, env=fleet.environment(**stop), cwd=fleet.folder) as process:
        try:
            wait_for(once.exists, "the fire to stop")
            yield process
        finally:
            process.kill()


def rows_queued(fleet: Fleet) -> int:
    """Return the rows of all jobs."""
    return sum(fleet.state(job_id).job.rows for job_id in fleet.jobs.ids())


@pytest.mark.parametrize("point", ["submit.prepared", "publish.confirmed"])
def test_a_fire_paused_longer_than_its_lock(fleet: Fleet, point: str) -> None:
    """Another fire takes all that is new; the one that goes on later gives no second job."""
    make_schedule(fleet)
    with stopped_fire(fleet, point) as paused:
        wait_for_no_fire(fleet)
        job_id = fire(fleet, LATER)
        os.kill(paused.pid, signal.SIGCONT)
        assert paused.wait(timeout=20) != 0
    assert fleet.jobs.ids() == [job_id]
    assert rows_queued(fleet) == 16


def test_one_fire_at_a_time(fleet: Fleet) -> None:
    """While one is under way another is refused, and says why."""
    make_schedule(fleet)
    with stopped_fire(fleet, "fire.claimed"):
        fleet.jobs.client.persist(fleet.jobs.keys.lock("fire:nightly"))
        refused = fleet.run("schedule", "run-now", "nightly")
        assert (refused.returncode, "under way" in refused.stderr) == (2, True)


def test_a_killed_fire_is_seen_to_by_the_next(fleet: Fleet) -> None:
    """Killed before its job was queued: the next fire queues that, and takes what came since."""
    make_schedule(fleet)
    fleet.run("schedule", "fire", "nightly", FIRE, HELIOS_CRASHPOINT="submit.claimed")
    assert fleet.jobs.ids() == []
    write_rows(fleet.folder / "labels" / "in" / "c.parquet", 4, first=16)
    wait_for_no_fire(fleet)
    fire(fleet, LATER)
    assert len(fleet.jobs.ids()) == 2
    assert rows_queued(fleet) == 20


def test_a_fire_that_fails_is_tried_again(fleet: Fleet) -> None:
    """A file that is still being written fails the fire; when it is whole, one job is made."""
    make_schedule(fleet)
    half = fleet.folder / "labels" / "in" / "c.parquet"
    half.write_bytes(b"half")
    table, keys = ScheduleTable(fleet.jobs), fleet.jobs.keys
    old = json.dumps({"time": 1700000000, "result": "old"})
    fleet.jobs.client.hset(keys.last_fires, "nightly", old)
    with beats(fleet, 1):
        wait_for(lambda: table.history("nightly"), "the failure")
        write_rows(half, 4, first=16)
        wait_for(fleet.jobs.ids, "the job")
        wait_for(lambda: table.last("nightly").result == fleet.jobs.ids()[0], "the note")
    assert rows_queued(fleet) == 20
    results = [entry["result"] for entry in table.history("nightly")]
    assert results[0] == fleet.jobs.ids()[0]
    assert "failed: not a readable Parquet file" in results[-1]


def test_a_fire_that_keeps_failing_is_given_up(fleet: Fleet) -> None:
    """After three tries it is left; the schedule goes on with the next."""
    make_schedule(fleet)
    (fleet.folder / "labels" / "in" / "c.parquet").write_bytes(b"half")
    table, keys = ScheduleTable(fleet.jobs), fleet.jobs.keys
    old = json.dumps({"time": 1700000000, "result": "old"})
    fleet.jobs.client.hset(keys.last_fires, "nightly", old)
    with beats(fleet, 1):
        wait_for(lambda: "given up" in table.last("nightly").result, "the end of patience")
    assert table.tries("nightly", table.last("nightly").time) == 3


def test_a_fire_that_is_told_to_stop_is_no_try(fleet: Fleet) -> None:
    """A beat that ends takes its fire with it: the next one has all its tries."""
    make_schedule(fleet)
    with stopped_fire(fleet, "fire.claimed") as fire_process:
        fire_process.terminate()
        os.kill(fire_process.pid, signal.SIGCONT)
        assert fire_process.wait(timeout=20) == 130
    table = ScheduleTable(fleet.jobs)
    assert table.tries("nightly", datetime.fromisoformat(FIRE)) == 0
    assert table.history("nightly") == []


def test_an_empty_input_is_nothing_new(fleet: Fleet) -> None:
    """A folder without files yet is no error, and the schedule's history says so."""
    make_schedule(fleet)
    for file in (fleet.folder / "labels" / "in").glob("*.parquet"):
        file.unlink()
    assert fire(fleet) == "new"
    (listed,) = json.loads(fleet.run("schedule", "list", "--json").stdout)
    assert listed["history"] == [{"time": FIRE, "result": "nothing new"}]
    assert listed["input"] == str(fleet.folder / "labels" / "in")


def test_a_replaced_schedule_leaves_nothing_behind(fleet: Fleet) -> None:
    """With a new output folder the old one's file goes: a wiped Redis gets the new one back."""
    output = make_schedule(fleet)
    file = fleet.folder / "labels" / "job.yaml"
    spec = yaml.safe_load(file.read_text())
    spec["output"]["path"] = str(output.parent / "out2")
    file.write_text(yaml.safe_dump(spec))
    add = ("schedule", "add", "nightly", file, "--cron", "0 3 * * *", "--replace")
    assert fleet.run(*add).returncode == 0
    assert [path.parent.name for path in output.parent.glob("*/_schedule.json")] == ["out2"]


def test_what_can_not_be_a_schedule(fleet: Fleet) -> None:
    """Odd names, times, and output folders of others are refused; no bare traceback."""
    output = make_schedule(fleet)
    spec = str(output.parent / "job.yaml")
    for arguments, problem in (
        (("add", "--cron", "0 3 * * *", "--", "--help", spec), "can't be named"),
        (("add", "--cron", "0 3 * * *", "[red]", spec), "can't be named"),
        (("add", "--cron", "0 3 * * *", "other", spec), "of the schedule 'nightly'"),
        (("fire", "nightly", "yesterday"), "is no time"),
    ):
        refused = fleet.run("schedule", *arguments)
        assert (refused.returncode, problem in refused.stderr) == (2, True), refused.stderr
    fleet.jobs.client.hset(fleet.jobs.keys.schedules, "odd", '{"name": "odd"}')
    assert fleet.run("schedule", "list").returncode == 0
