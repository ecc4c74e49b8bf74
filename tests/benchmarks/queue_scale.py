"""The queue at scale: a million shards and 32 claimers on one Redis, and one real worker.

`python -m tests.benchmarks.queue_scale` prints claims per second, what Redis holds, how long a
choice of the dispatcher takes, and what a shard costs more through the queue than without it. The
claimers do what a worker does, message and engine left out; the worker runs a stub engine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import tempfile
import time
from pathlib import Path

import redis

from helios_batch.job import prepare
from helios_batch.local import run_local
from helios_batch.queue.connection import connect
from helios_batch.queue.dispatcher import Dispatcher
from helios_batch.queue.embedded import EmbeddedRedis
from helios_batch.queue.jobs import JobTable, QueuedJob
from helios_batch.queue.keys import Keys
from helios_batch.queue.leases import Holder, Lease, LeaseTable
from helios_batch.queue.settings import QueueSettings
from helios_batch.spec_file import load_spec
from helios_batch.totals import Totals
from tests.support import stub
from tests.support.engines import Silent
from tests.support.fleet import Fleet

JOB = "0123456789abcdef"
ROWS_PER_SHARD = 1000


def tables(settings: QueueSettings) -> tuple[JobTable, LeaseTable]:
    """Return the jobs and leases over a connection of this process's own."""
    jobs = JobTable(connect(settings), Keys(settings.prefix))
    return jobs, LeaseTable(jobs.client, jobs.keys, settings.lease)


def add_job(jobs: JobTable, shards: int) -> None:
    """Put one running job of that many shards into Redis."""
    spec = {"name": "scale", "output": {"path": "/nowhere", "rows_per_shard": ROWS_PER_SHARD}}
    jobs.submit(QueuedJob(JOB, "scale", "f", spec, "/nowhere", shards * ROWS_PER_SHARD, shards))
    jobs.set_status(JOB, "running", ("queued",))


def work(settings: QueueSettings, number: int, seconds: float, count: object) -> None:
    """Claim, renew, confirm and complete shards as a worker does, with nothing between."""
    jobs, leases = tables(settings)
    dispatcher = Dispatcher(settings, jobs, send=lambda *_: None)
    holder, totals = Holder(f"worker-{number}", f"boot-{number}", str(number)), Totals(rows=1000)
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for unit in dispatcher.choose(JOB, 4):
            lease = leases.claim(JOB, unit, "shards", holder)
            if isinstance(lease, Lease):
                leases.begin(lease)
                leases.renew(lease)
                done += leases.complete(lease, totals)
    with count.get_lock():
        count.value += done


def memory(client: redis.Redis) -> float:
    """Return the MB that Redis has in use."""
    return float(client.info("memory")["used_memory"]) / 1e6


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--claimers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--whole", type=int, default=1000, help="shards for the real worker")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedRedis(Path(folder)) as server,
    ):
        settings = QueueSettings(server.url, "scale")
        jobs, leases = tables(settings)
        empty = memory(jobs.client)
        add_job(jobs, options.shards)

        count = multiprocessing.Value("q", 0)
        crew = [
            multiprocessing.Process(target=work, args=(settings, n, options.seconds, count))
            for n in range(options.claimers)
        ]
        started = time.monotonic()
        for process in crew:
            process.start()
        for process in crew:
            process.join()
        claims = count.value / (time.monotonic() - started)

        jobs.client.setbit(*jobs.keys.job(JOB).parts("done"), options.shards - 2, 1)
        peak = memory(jobs.client) - empty
        dispatcher = Dispatcher(settings, jobs, send=lambda *_: None)
        choices, costs = [], []
        for _ in range(500):
            begin = time.perf_counter()
            units = dispatcher.choose(JOB, 1)
            choices.append(time.perf_counter() - begin)
            for unit in units:
                lease = leases.claim(JOB, unit, "shards", Holder("solo", "solo", "1"))
                assert isinstance(lease, Lease)
                leases.begin(lease)
                leases.renew(lease)
                leases.complete(lease, Totals(rows=1000))
            costs.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        dispatcher.tick()
        tick = time.perf_counter() - begin

        version = jobs.client.info("server")["redis_version"]
        print(f"{platform.machine()}, {multiprocessing.cpu_count()} cores, Redis {version}")
        print(f"{options.claimers} processes on one Redis, a job of {options.shards:,} shards")
        print(f"claimed, renewed and completed   {claims:10,.0f} shards/s")
        print(f"Redis holds for the job          {peak:10.2f} MB")
        print(f"one choice of the dispatcher     {1e3 * statistics.median(choices):10.2f} ms")
        print(f"one round of the dispatcher      {1e3 * tick:10.2f} ms")
        print(f"Redis's part of a shard          {1e3 * statistics.median(costs):10.2f} ms")
        seconds = 1e9 / ROWS_PER_SHARD / claims
        print(f"a billion rows, {ROWS_PER_SHARD} a shard       {seconds:10,.0f} s of this Redis")
        queued, local = whole_shards(Path(folder), server, options.whole)
        print(f"a shard through one worker       {1e3 * queued:10.2f} ms, stub engine")
        print(f"a shard in a local run           {1e3 * local:10.2f} ms, stub engine")
        print(f"the queue adds                   {1e3 * (queued - local):10.2f} ms")


def whole_shards(folder: Path, server: EmbeddedRedis, shards: int) -> tuple[float, float]:
    """Return the seconds of a shard of four rows through a real worker, and in a local run."""
    fleet = Fleet(folder, server)
    fleet.env |= {"HELIOS_STUB_SECONDS": "0", "HELIOS_TICK_SECONDS": "0.5"}
    try:
        fleet.worker()
        # the first job loads what there is to load
        for name, rows in (("warm", 40), ("measured", 4 * shards)):
            job_id = fleet.submit(fleet.spec(rows=rows, per_shard=4, name=name))
            fleet.wait_for_status(job_id, "done", seconds=600)
        events = fleet.jobs.events(job_id, count=5000)
        times = [int(e["id"].split("-")[0]) for e in events if e["kind"] == "published"]
        queued = (times[-1] - times[0]) / 1e3 / (len(times) - 1)
    finally:
        fleet.stop()
    stub.install()
    spec = load_spec(fleet.spec(rows=4 * shards, per_shard=4, name="local"))
    began = time.perf_counter()
    run_local(prepare(spec), lambda job: stub.ObedientEngine(), Silent())
    return queued, (time.perf_counter() - began) / shards


if __name__ == "__main__":
    main()
