"""What people see of the queue, during a job and after it."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helios_batch.queue.views import make_grid
from helios_batch.report.queue import shard_grid
from helios_batch.report.snapshot import Cell
from tests.queue.test_kills import wait_for_a_holder
from tests.support.fleet import Fleet


def seen(fleet: Fleet, *arguments: str) -> object:
    """Return the JSON that a command prints."""
    done = fleet.run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_job_and_its_worker_are_seen(fleet: Fleet) -> None:
    """While a job runs: who holds what, for how long, how fast it goes; afterwards its totals."""
    job_id = fleet.submit(fleet.spec(rows=60, per_shard=4))
    fleet.worker("--name", "solo", HELIOS_STUB_SECONDS="0.15")
    wait_for_a_holder(fleet, job_id)
    job = seen(fleet, "status", job_id[:8])
    assert isinstance(job, dict)
    assert (job["status"], job["rows"], job["shards"]) == ("running", 60, 15)
    assert sum(cell["shards"] for cell in job["grid"]) == 15
    for shard in job["running"]:
        assert shard["worker"].startswith("solo@")
        assert 0 < shard["lease_left"] <= 1.5
    (worker,) = seen(fleet, "workers")  # type: ignore[misc]
    assert worker["worker"].startswith("solo@")
    assert worker["queues"] == "shards"
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


@pytest.mark.parametrize("shards", [1, 59, 60, 61, 1_000_000])
def test_the_grid_covers_every_shard(shards: int) -> None:
    """At most 60 cells, whose shards are all shards; each state is counted where it is."""
    grid = make_grid(shards, [0], {str(shards - 1)}, {"survey"}, [])
    assert sum(cell.shards for cell in grid) == shards
    assert len(grid) <= 60
    assert grid[0].done == 1
    assert grid[-1].held == 1


def test_cells_show_what_matters_most() -> None:
    """Done, running, due again, sent, part done and untouched look different."""
    cells = [Cell(2, 2), Cell(2, held=1), Cell(2, due=1), Cell(2, sent=1), Cell(4, 1), Cell(2)]
    assert shard_grid(cells).plain == "█▶!·▒░"
