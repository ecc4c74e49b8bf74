"""Ten minutes of random faults on three workers: every row once, whatever happens.

`python -m tests.soak [--minutes M] [--seed N]`, or `make soak`. Jobs follow one another; workers
are killed, stopped, told to end, cut off and started again, Redis is killed and wiped, jobs are
cancelled and retried, some rows kill their process. At the end each job's input ids are its output
ids, each once. The seed is printed; a failure is replayed by giving it, as far as time allows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq

from helios_batch.errors import HeliosError
from helios_batch.queue import control
from helios_batch.queue.embedded import EmbeddedRedis
from tests.support.fleet import Fleet, child_of, kill_tree, signal_child, wait_for
from tests.support.proxy import Proxy

ROWS, PER_SHARD, WORKERS = 2000, 10, 3
POISON = {77, 1234}
PATIENT = {"HELIOS_MAX_DEATHS": "4", "HELIOS_MAX_FAILURES": "1000", "HELIOS_STUB_SECONDS": "0.003"}


class Soak:
    """A fleet under random faults."""

    def __init__(self, fleet: Fleet, proxy: Proxy, seed: int) -> None:
        self.fleet, self.proxy, self.chance = fleet, proxy, random.Random(seed)
        parts = urlsplit(fleet.redis.url)
        user = parts.netloc.rpartition("@")[0]
        detour = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}"))
        self.env = PATIENT | {"HELIOS_REDIS_URL": detour}
        self.team = [fleet.worker(**self.env) for _ in range(WORKERS)]
        self.counts: Counter[str] = Counter()
        self.jobs: list[str] = []

    def submit(self) -> str:
        """Submit the next job; two of its rows kill their process."""
        name = f"job-{len(self.jobs)}"
        folder = self.fleet.folder / name
        folder.mkdir()
        texts = [f"KILL {i}" if i in POISON else f"text of row {i}" for i in range(ROWS)]
        pq.write_table(pa.table({"text": texts}), folder / "in.parquet")
        job_id = self.fleet.submit(self.fleet.spec(per_shard=PER_SHARD, name=name))
        self.jobs.append(job_id)
        return job_id

    def disturb(self, job_id: str) -> None:
        """Do one random thing that must not matter."""
        faults: dict[str, Callable[[], object]] = {
            "kill child": lambda: signal_child(self.someone(), signal.SIGKILL),
            "kill worker": lambda: self.someone().kill(),
            "tell worker to end": lambda: self.someone().terminate(),
            "stop child a while": self.stop_a_while,
            "cut connections": self.proxy.cut,
            "black hole": self.black_hole,
            "kill Redis": self.restart_redis,
            "wipe Redis": self.fleet.jobs.client.flushall,
            "delete the dispatcher's lock": self.delete_lock,
            "cancel and retry": lambda: self.cancel(job_id),
        }
        name = self.chance.choice(list(faults))
        self.counts[name] += 1
        faults[name]()

    def someone(self) -> subprocess.Popen[bytes]:
        """Return a random worker."""
        return self.chance.choice(self.team)

    def stop_a_while(self) -> None:
        """Stop a pool child for longer than its lease, then let it go on."""
        child = child_of(self.someone())
        if child is not None:
            os.kill(child, signal.SIGSTOP)
            time.sleep(self.chance.uniform(0.2, 2.5))
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)

    def black_hole(self) -> None:
        """Let nothing through for a while."""
        self.proxy.swallow()
        time.sleep(self.chance.uniform(0.2, 3.0))
        self.proxy.heal()

    def restart_redis(self) -> None:
        """Kill Redis as a power cut would, and start it again."""
        self.fleet.redis.kill()
        time.sleep(self.chance.uniform(0, 1))
        self.fleet.redis.start()

    def delete_lock(self) -> None:
        """Let everyone think that nobody dispatches."""
        self.fleet.jobs.client.delete(self.fleet.jobs.keys.lock("dispatcher"))

    def cancel(self, job_id: str) -> None:
        """Cancel the job, and open it again."""
        try:
            state = control.find(self.fleet.jobs, job_id)
            if state.live:
                control.cancel(self.fleet.jobs, state, self.fleet.settings)
            control.retry(
                self.fleet.jobs, control.find(self.fleet.jobs, job_id), self.fleet.settings
            )
        except HeliosError as exc:
            print(f"  cancel: {exc.what}")

    def hire(self) -> None:
        """Start a new worker for each that is gone."""
        for index, worker in enumerate(self.team):
            if worker.poll() is not None:
                kill_tree(worker)
                self.team[index] = self.fleet.worker(**self.env)

    def name(self, job_id: str) -> str:
        """Return the name of a job's folder."""
        return f"job-{self.jobs.index(job_id)}"

    def status_in_folder(self, job_id: str) -> str:
        """Return what a job's output folder says of it."""
        record = self.fleet.folder / self.name(job_id) / "out" / "_job.json"
        return str(json.loads(record.read_text())["status"])

    def finished(self, job_id: str) -> bool:
        """Whether the job is done; one that was given up is retried, as a person would."""
        self.hire()
        state = self.fleet.jobs.get(job_id)
        if state is not None and state.status == "failed":
            self.counts["job given up, retried"] += 1
            control.retry(self.fleet.jobs, state, self.fleet.settings)
        if state is None and self.status_in_folder(job_id) in ("cancelled", "failed"):
            # Redis was wiped between a stop and its retry: nothing brings a stopped job back
            self.counts["stopped job, submitted again"] += 1
            self.fleet.submit(self.fleet.folder / self.name(job_id) / "job.yaml")
        out = self.fleet.folder / self.name(job_id) / "out"
        return (out / "_SUCCESS").exists()

    def check(self, number: int) -> Counter[str]:
        """Check a finished job: each input id once; return its rows by fate."""
        rows = self.fleet.rows(f"job-{number}")
        ids = [row["row_id"]["row"] for row in rows]
        assert ids == list(range(ROWS)), "a row is missing, doubled or out of order"
        return Counter("ok" if row["error"] is None else row["error"]["code"] for row in rows)


def main() -> int:
    """Run the soak; return 0 if every row of every job is there once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    end = time.monotonic() + options.minutes * 60
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedRedis(Path(folder) / "redis") as server,
        Proxy(server.port) as proxy,
    ):
        fleet = Fleet(Path(folder), server)
        soak = Soak(fleet, proxy, options.seed)
        try:
            while time.monotonic() < end:
                job_id = soak.submit()
                while not soak.finished(job_id) and time.monotonic() < end:
                    time.sleep(soak.chance.uniform(0.3, 3))
                    soak.disturb(job_id)
                wait_for(lambda j=job_id: soak.finished(j), "the job, left in peace", 300)
                number = len(soak.jobs) - 1
                print(f"job {number}: {dict(soak.check(number))}", flush=True)
        finally:
            fleet.stop()
        print(f"{len(soak.jobs)} jobs, {len(soak.jobs) * ROWS} rows, each once")
        print("faults:", dict(soak.counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
