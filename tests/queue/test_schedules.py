"""Schedules: one job a fire, over what is new."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import yaml

from helios_batch.queue import control, firing
from helios_batch.queue.schedules import ScheduleTable
from tests.support.fleet import Fleet, kill_tree, no_model, wait_for
from tests.support.parquet import write_rows

FIRE = "2026-01-02T03:04:00+00:00"
LATER = "2026-01-03T03:04:00+00:00"


def make_schedule(fleet: Fleet, *options: str) -> Path:
    """Add a schedule over the partitions in `in`; return its output folder."""
    folder = fleet.folder / "labels"
    write_rows(folder / "in" / "a.parquet", 8)
    write_rows(folder / "in" / "b.parquet", 8, first=8)
    spec = {
        "name": "labels",
        "input": {"path": str(folder / "in")},
        "prompt": {"template": "{{ text }}"},
        "models": ["stub"],
        "output": {"path": str(folder / "out"), "rows_per_shard": 4},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(spec))
    added = fleet.run(
        *("schedule", "add", "nightly", str(folder / "job.yaml")),
        *("--cron", "0 2 * * *", "--tz", "Europe/Zurich", *options),
    )
    assert added.returncode == 0, added.stderr
    return folder / "out"


def fire(fleet: Fleet, time: str = FIRE, **changes: str) -> str:
    """Do the fire of a time; return what it came to."""
    done = fleet.run("schedule", "fire", "nightly", time, **changes)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().rpartition(" ")[2]


def wait_for_no_fire(fleet: Fleet) -> None:
    """Wait until the lock of a fire that was killed or stopped has run out."""
    lock = fleet.jobs.keys.lock("fire:nightly")
    wait_for(lambda: not fleet.jobs.client.exists(lock), "the lock to run out")


def names(output: Path) -> list[str]:
    """Return the file names of all labelled rows, in order of runs."""
    table = ds.dataset(sorted(map(str, output.glob("run-*/*.parquet")))).to_table()
    return [Path(row["file"]).stem + str(row["row"]) for row in table["row_id"].to_pylist()]


def test_only_what_is_new_is_labelled(fleet: Fleet) -> None:
    """A second fire takes the new file alone, a third nothing; a changed file is new again."""
    output = make_schedule(fleet)
    fleet.worker()
    fleet.wait_for_status(fire(fleet), "done")
    first = [f"{file}{row}" for file in "ab" for row in range(8)]
    assert names(output) == first
    assert fire(fleet, LATER).endswith("new")
    write_rows(fleet.folder / "labels" / "in" / "c.parquet", 4, first=16)
    fleet.wait_for_status(fire(fleet, "2026-01-04T03:04:00+00:00"), "done")
    assert names(output) == first + [f"c{row}" for row in range(4)]
    write_rows(fleet.folder / "labels" / "in" / "a.parquet", 2, first=90)
    fleet.wait_for_status(fire(fleet, "2026-01-05T03:04:00+00:00"), "done")
    assert names(output)[-2:] == ["a0", "a1"]


def test_a_cancelled_run_has_taken_nothing(fleet: Fleet) -> None:
    """What a run did not begin is new to the next one."""
    make_schedule(fleet)
    first = fire(fleet)
    assert fleet.run("cancel", first).returncode == 0
    second = fire(fleet, LATER)
    assert second != first
    assert fleet.state(second).job.rows == 16


@pytest.mark.parametrize("point", ["fire.claimed", "submit.claimed", "fire.submitted"])
def test_a_fire_that_is_killed_and_repeated(fleet: Fleet, point: str) -> None:
    """One fire time, one job, over all that was new."""
    make_schedule(fleet)
    killed = fleet.run("schedule", "fire", "nightly", FIRE, HELIOS_CRASHPOINT=point)
    assert killed.returncode == -9
    wait_for_no_fire(fleet)
    job_id = fire(fleet)
    assert fleet.jobs.ids() == [job_id]
    assert fleet.state(job_id).job.rows == 16


@contextmanager
def beats(fleet: Fleet, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run some beats."""
    command = [sys.executable, "-m", fleet.module, "beat"]
    running = [
        subprocess.Popen(command, env=fleet.environment(), cwd=fleet.folder) for _ in range(count)
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_two_beats_and_no_lock(fleet: Fleet) -> None:
    """Two beats, their lock taken away again and again: the missed fire gives one job."""
    make_schedule(fleet)
    client, keys = fleet.jobs.client, fleet.jobs.keys
    # it last fired days ago: the latest of the fires since is due now
    client.hset(
        f"{keys.schedules}:last", "nightly", json.dumps({"time": 1700000000, "result": "old"})
    )
    with beats(fleet, 2) as running:

        def fired() -> bool:
            client.delete(keys.lock("dispatcher"))
            return ScheduleTable(fleet.jobs).last("nightly").result != "old"

        wait_for(fired, "the fire")
        for process in running:
            process.terminate()
            assert process.wait(timeout=20) == 0
    result = ScheduleTable(fleet.jobs).last("nightly").result
    assert fleet.jobs.ids() == [result]
    assert len(list((fleet.folder / "labels" / "out").glob("run-*"))) == 1


def test_a_schedule_outlives_a_wiped_redis(fleet: Fleet) -> None:
    """After `FLUSHALL` it is read back from beside its runs; removed, it stays away."""
    make_schedule(fleet, "--priority", "2")
    fleet.jobs.client.flushall()
    with beats(fleet, 1):
        back = wait_for(lambda: ScheduleTable(fleet.jobs).get("nightly"), "the schedule")
    assert (back.cron, back.zone, back.priority) == ("0 2 * * *", "Europe/Zurich", 2)
    (listed,) = json.loads(fleet.run("schedule", "list", "--json").stdout)
    assert (listed["name"], listed["tz"]) == ("nightly", "Europe/Zurich")
    assert "nightly" in fleet.run("schedule", "list").stdout
    assert fleet.run("schedule", "remove", "nightly").returncode == 0
    assert not (fleet.folder / "labels" / "out" / "_schedule.json").exists()
    gone = fleet.run("schedule", "remove", "nightly")
    assert (gone.returncode, "no schedule is named" in gone.stderr) == (2, True)


def test_run_now_and_what_is_refused(fleet: Fleet) -> None:
    """`run-now` fires at once; a wrong cron, zone or second definition is refused."""
    make_schedule(fleet)
    assert fleet.run("schedule", "run-now", "nightly").returncode == 0
    assert len(fleet.jobs.ids()) == 1
    spec = str(fleet.folder / "labels" / "job.yaml")
    for options, problem in (
        (["nightly", spec, "--cron", "1 1 * * *"], "there is another schedule"),
        (["other", spec, "--cron", "every night"], "no cron expression"),
        (["other", spec, "--cron", "0 2 * * *", "--tz", "Mars/Base"], "unknown time zone"),
    ):
        refused = fleet.run("schedule", "add", *options)
        assert (refused.returncode, problem in refused.stderr) == (2, True), refused.stderr


def fire_here(fleet: Fleet, time: str) -> str:
    """Do the fire of a time in this process; return what it came to."""
    schedule, moment = ScheduleTable(fleet.jobs).find("nightly"), datetime.fromisoformat(time)
    with no_model():
        return firing.fire(schedule, moment, fleet.jobs, fleet.settings)


def stopped_half_way(fleet: Fleet, output: Path) -> str:
    """Fire, and cancel the run after its first part, with no worker left; return its job."""
    worker = fleet.worker(HELIOS_STUB_SECONDS="0.1")
    job_id = fire_here(fleet, FIRE)
    wait_for(lambda: list(output.glob("run-*/part-*.parquet")), "a part")
    assert control.cancel(fleet.jobs, fleet.state(job_id), fleet.settings)
    kill_tree(worker)
    return job_id


def test_a_run_stopped_half_way_is_completed_by_the_next_fire(fleet: Fleet) -> None:
    """Its rows are done once each, though Redis was wiped; what is new is a job of its own."""
    output = make_schedule(fleet)
    schedule = ScheduleTable(fleet.jobs).find("nightly")
    first = stopped_half_way(fleet, output)
    done = {part: part.stat().st_ino for part in output.glob("run-*/part-*.parquet")}
    fleet.jobs.client.flushall()
    ScheduleTable(fleet.jobs).restore(schedule)
    write_rows(output.parent / "in" / "c.parquet", 4, first=16)
    second = fire_here(fleet, LATER)
    assert sorted(fleet.jobs.ids()) == sorted([first, second])
    assert fleet.state(second).job.rows == 4
    assert fire_here(fleet, "2026-01-04T03:04:00+00:00") == "nothing new"
    fleet.worker()
    fleet.wait_for_status(first, "done")
    fleet.wait_for_status(second, "done")
    old = [f"{file}{row}" for file in "ab" for row in range(8)]
    assert names(output) == [*old, *(f"c{row}" for row in range(4))]
    assert {part: part.stat().st_ino for part in done} == done


def test_a_run_of_other_work_stays_stopped(fleet: Fleet) -> None:
    """Cancelled because its spec was wrong, a run is not paid for after the spec was replaced."""
    output = make_schedule(fleet)
    first, table = stopped_half_way(fleet, output), ScheduleTable(fleet.jobs)
    old = table.find("nightly")
    assert fire_here(fleet, LATER) == f"nothing new, goes on with {first}"
    assert control.cancel(fleet.jobs, fleet.state(first), fleet.settings)
    table.add(replace(old, spec=old.spec | {"depth": 1}), replace=True)
    second = fire_here(fleet, "2026-01-04T03:04:00+00:00")
    assert fleet.state(second).job.rows == 16
    assert fleet.state(first).status == "cancelled"
