"""A queue for tests: a real Redis, real workers as processes, jobs on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from helios_batch.queue.connection import connect
from helios_batch.queue.embedded import EmbeddedRedis
from helios_batch.queue.jobs import JobState, JobTable
from helios_batch.queue.keys import Keys
from helios_batch.queue.settings import DEFAULT_QUEUE, QueueSettings
from helios_batch.queue.submission import submit
from helios_batch.spec_file import load_spec
from tests.support.jobs import ROOT, write_spec
from tests.support.parquet import write_rows
from tests.support.stub import open_stub

PATIENCE = 60.0


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until `condition` gives something true, and return it; `what` names it in the error."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.02)
    return found


def no_model() -> Any:
    """Put the stub in the place of models, in this process, within a context."""
    return patch("helios_batch.job.open_model", open_stub)


class Fleet:
    """A Redis, and workers with the stub engine unless `real`; short leases, quick rounds."""

    def __init__(self, folder: Path, redis: EmbeddedRedis, real: bool = False) -> None:
        self.folder, self.redis = folder, redis
        self.module = "helios_batch.cli" if real else "tests.support.stub"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.env = {
            "HELIOS_REDIS_URL": redis.url,
            "HELIOS_REDIS_PREFIX": "test",
            "HELIOS_INPUT_ROOTS": str(folder.parent),
            "HELIOS_OUTPUT_ROOTS": str(folder),
            "HELIOS_LEASE_SECONDS": "1.5",
            "HELIOS_REDELIVERY_SECONDS": "0.5",
            "HELIOS_TICK_SECONDS": "0.1",
            "HELIOS_SOFT_SHUTDOWN_SECONDS": "1",
            "HELIOS_STUB_SECONDS": "0.005",
            "HELIOS_CACHE": str(folder / "cache"),
        }

    def environment(self, **changes: str) -> dict[str, str]:
        """The environment of this fleet's processes."""
        return os.environ | self.env | {"PYTHONPATH": str(ROOT)} | changes

    def worker(self, *arguments: str, **changes: str) -> subprocess.Popen[bytes]:
        """Start a worker in a session of its own; its log lies in the folder."""
        with (self.folder / f"worker-{len(self.workers)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", self.module, "worker", *arguments],
                env=self.environment(**changes),
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.workers.append(process)
        return process

    def run(self, *arguments: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line to its end."""
        return subprocess.run(
            [sys.executable, "-m", self.module, *map(str, arguments)],
            env=self.environment(**changes),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @property
    def settings(self) -> QueueSettings:
        """The fleet's settings, for this process."""
        return QueueSettings(
            self.redis.url,
            "test",
            1.5,
            0.5,
            0.1,
            1.0,
            input_roots=(str(self.folder.parent),),
            output_roots=(str(self.folder),),
        )

    @cached_property
    def jobs(self) -> JobTable:
        """The jobs that this fleet's Redis knows."""
        return JobTable(connect(self.settings), Keys("test"))

    def spec(self, rows: int = 64, per_shard: int = 4, name: str = "job", **changes: Any) -> Path:
        """Write input and spec of a job in a folder of its own; return the spec's path."""
        folder = self.folder / name
        if not (folder / "in.parquet").exists():
            write_rows(folder / "in.parquet", rows)
        output = {"path": str(folder / "out"), "rows_per_shard": per_shard}
        return write_spec(folder, changes.pop("model", "stub"), output=output, **changes)

    def submit(self, spec: Path, *arguments: str) -> str:
        """Submit a job through the command line; return its id."""
        done = self.run("submit", spec, "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["id"])

    def queue(self, spec: Path, priority: int = 0, queue: str = DEFAULT_QUEUE) -> str:
        """Submit a job from this process, which takes no time; return its id."""
        with no_model():
            return submit(load_spec(spec), self.jobs, queue=queue, priority=priority).id

    def state(self, job_id: str) -> JobState:
        """Return a job as it stands."""
        state = self.jobs.get(job_id)
        assert state is not None, f"Redis does not know job {job_id}"
        return state

    def wait_for_status(self, job_id: str, *wanted: str, seconds: float = PATIENCE) -> JobState:
        """Wait until a job has one of the statuses."""

        def reached() -> JobState | None:
            state = self.jobs.get(job_id)
            return state if state is not None and state.status in wanted else None

        return wait_for(reached, f"job {job_id} to be {wanted}", seconds)

    def parts(self, name: str = "job") -> list[Path]:
        """Return the published parts of a job."""
        return sorted((self.folder / name / "out").glob("part-*.parquet"))

    def rows(self, name: str = "job") -> list[dict[str, Any]]:
        """Return a job's output rows."""
        return pa.concat_tables([pq.read_table(part) for part in self.parts(name)]).to_pylist()

    def holder(self, job_id: str) -> dict[str, Any] | None:
        """Return who holds one of a job's shards, if anyone does."""
        (holders,) = self.jobs.keys.job(job_id).parts("holders")
        found = self.jobs.client.hgetall(holders)
        return (
            {"unit": next(iter(found))} | json.loads(next(iter(found.values()))) if found else None
        )

    def check_whole(self, rows: int, name: str = "job") -> None:
        """Check that each input row is in the output once, in order, and nothing is left over."""
        found = [row["row_id"]["row"] for row in self.rows(name)]
        assert list(range(rows)) == found
        out = self.folder / name / "out"
        assert (out / "_SUCCESS").exists()
        assert not list(out.glob("_tmp/*")), "debris was left"

    def stop(self) -> None:
        """Kill every process of the fleet's workers."""
        for process in self.workers:
            kill_tree(process)
        self.jobs.client.close()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and all that it started."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for member in family:
            if member.is_running():
                member.kill()
    process.wait()


def child_of(process: subprocess.Popen[bytes]) -> int | None:
    """Return the process of a worker that computes, if it lives."""
    try:
        children = psutil.Process(process.pid).children()
        found = [c.pid for c in children if "spawn_main" in " ".join(c.cmdline())]
    except psutil.NoSuchProcess:
        return None
    return found[-1] if found else None


def signal_child(process: subprocess.Popen[bytes], number: signal.Signals) -> bool:
    """Send a signal to the process that computes; return False if there is none now."""
    child = child_of(process)
    if child is None:
        return False
    try:
        os.kill(child, number)
    except ProcessLookupError:
        return False
    return True
