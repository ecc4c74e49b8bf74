"""A worker's metrics, scraped as Prometheus does."""

from __future__ import annotations

from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from helios_batch.queue.embedded import free_port
from tests.support.fleet import Fleet, wait_for


def scrape(port: int) -> dict[str, float]:
    """Return the samples that are served, by name, labels left out; nothing if none is."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
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
