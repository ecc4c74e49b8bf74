"""A worker's metrics, scraped as Prometheus does."""

from __future__ import annotations

import signal
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from helios_batch.queue.embedded import free_port
from tests.support.fleet import Fleet, kill_tree, wait_for


def scrape(port: int, timeout: float = 30) -> dict[str, float]:
    """Return the samples that are served, by name, labels left out; nothing if none is."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=timeout) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_during_and_after_redis(lone_fleet: Fleet) -> None:
    """Counters grow with the job; without Redis the worker says so and serves on."""
    fleet, port = lone_fleet, free_port()
    job_id = fleet.submit(fleet.spec(rows=40, per_shard=4))
    fleet.worker("--metrics-port", str(port))
    fleet.wait_for_status(job_id, "done")
    wait_for(lambda: scrape(port).get("helios_batch_worker_rows_total") == 40, "40 rows")
    found = scrape(port)
    assert found["helios_batch_worker_shards_total"] == 10
    assert found["helios_batch_worker_tokens_total"] == 40
    assert found["helios_batch_job_rows_done"] == found["helios_batch_job_rows"] == 40
    assert found["helios_batch_jobs"] == 1
    assert found["helios_batch_queue_messages"] == 0
    assert found["helios_batch_redis_up"] == 1
    busy = fleet.run("worker", "--metrics-port", str(port))
    assert (busy.returncode, "metrics can't be served" in busy.stderr) == (2, True)
    fleet.redis.kill()
    assert scrape(port) == {"helios_batch_redis_up": 0}
    fleet.redis.start()
    wait_for(lambda: scrape(port).get("helios_batch_redis_up") == 1, "Redis to be back")


def test_a_worker_that_takes_over_a_name(fleet: Fleet) -> None:
    """Killed and started again under its name, a worker counts anew, and shows itself once."""
    job_id, port = fleet.submit(fleet.spec(rows=8, per_shard=4)), free_port()
    slow = {"HELIOS_TICK_SECONDS": "1"}  # the dead worker's entry stays 20 times as long
    first = fleet.worker("--name", "same", "--metrics-port", str(port), **slow)
    fleet.wait_for_status(job_id, "done")
    wait_for(lambda: scrape(port).get("helios_batch_worker_rows_total") == 8, "8 rows")
    kill_tree(first)
    fleet.worker("--name", "same", "--metrics-port", str(port), **slow)
    wait_for(lambda: "helios_batch_worker_rows_total" in scrape(port), "the worker's own metrics")
    assert fleet.jobs.client.scard(fleet.jobs.keys.workers) == 2
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    own = [line for line in lines if line.startswith("helios_batch_worker_rows_total")]
    assert own == ["helios_batch_worker_rows_total 0.0"]


def test_a_silent_redis_is_told_in_time(lone_fleet: Fleet) -> None:
    """Redis that is there and does not answer: the scrape ends before Prometheus gives up."""
    fleet, port = lone_fleet, free_port()
    fleet.worker("--metrics-port", str(port))
    wait_for(lambda: scrape(port).get("helios_batch_redis_up") == 1, "the first scrape")
    assert fleet.redis.process is not None
    fleet.redis.process.send_signal(signal.SIGSTOP)
    try:
        assert scrape(port, timeout=10) == {"helios_batch_redis_up": 0}
    finally:
        fleet.redis.process.send_signal(signal.SIGCONT)
