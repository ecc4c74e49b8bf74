"""Prometheus metrics of a worker and its queue, read from Redis when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

import redis
from prometheus_client import start_http_server
from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from helios_batch.errors import QueueUsageError
from helios_batch.queue.connection import connect
from helios_batch.queue.jobs import JobTable
from helios_batch.queue.keys import Keys
from helios_batch.queue.settings import QueueSettings
from helios_batch.queue.views import JOB_COUNTERS, view_queue
from helios_batch.report.snapshot import QueueView, WorkerView

Metric = GaugeMetricFamily | CounterMetricFamily


class QueueCollector(Collector):
    """Reads the queue at each scrape; with Redis away only `helios_batch_redis_up` 0 is left.

    Args:
        jobs: the jobs, over a connection that gives up before Prometheus does.
        boot: the worker whose own metrics are shown.
    """

    def __init__(self, jobs: JobTable, boot: str) -> None:
        self._jobs, self._boot = jobs, boot

    def describe(self) -> list[Metric]:
        """Describe nothing before the first scrape: Redis may be away."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        try:
            view = view_queue(self._jobs)
            queues = {job.queue for job in view.jobs}
            queues |= {name for worker in view.workers for name in worker.queues.split(",")}
            waiting = {
                queue: self._jobs.client.llen(f"{self._jobs.keys.broker}{queue}")
                for queue in queues
            }
        except redis.RedisError:
            yield GaugeMetricFamily("helios_batch_redis_up", "Whether Redis answers", 0)
            return
        yield GaugeMetricFamily("helios_batch_redis_up", "Whether Redis answers", 1)
        for worker in view.workers:
            if worker.boot == self._boot:
                yield from _of_worker(worker)
        yield from _of_queue(view, waiting)


def serve_metrics(settings: QueueSettings, boot: str, host: str, port: int) -> None:
    """Serve the metrics of the worker `boot` at `http://host:port/metrics` from a thread.

    Raises:
        QueueUsageError: the address can't be had.
    """
    registry = CollectorRegistry()
    # a silent Redis is waited for once: Prometheus gives a scrape 10 seconds
    jobs = JobTable(connect(settings, retries=0), Keys(settings.prefix))
    registry.register(QueueCollector(jobs, boot))
    try:
        start_http_server(port, host, registry)
    except OSError as exc:
        raise QueueUsageError(
            f"metrics can't be served at {host}:{port}: {exc}",
            where="--metrics-port, --metrics-host",
            fix="choose a free port, another for each worker of a machine",
        ) from None


def _of_worker(worker: WorkerView) -> Iterator[Metric]:
    for name, text, value in (
        ("rows", "Rows that this worker has finished", worker.rows),
        ("tokens", "Completion tokens that this worker has made", worker.tokens),
        ("shards", "Shards that this worker has published", worker.shards),
    ):
        yield CounterMetricFamily(f"helios_batch_worker_{name}", text, value)
    info = GaugeMetricFamily(
        "helios_batch_worker_info",
        "What this worker runs on",
        labels=("worker", "device", "model", "depth"),
    )
    info.add_metric((worker.worker, worker.device, worker.model, str(worker.depth)), 1)
    yield info


def _of_queue(view: QueueView, waiting: dict[str, int]) -> Iterator[Metric]:
    labels = ("job", "name")
    done = GaugeMetricFamily("helios_batch_job_rows_done", "Rows finished", labels=labels)
    rows = GaugeMetricFamily("helios_batch_job_rows", "Rows of the job", labels=labels)
    failed = GaugeMetricFamily("helios_batch_job_failed_rows", "Rows with errors", labels=labels)
    counters = [
        CounterMetricFamily(f"helios_batch_job_{name}", name.replace("_", " "), labels=("job",))
        for name in JOB_COUNTERS
    ]
    statuses: dict[str, int] = {}
    for job in view.jobs:
        for gauge, value in ((done, job.rows_done), (rows, job.rows), (failed, job.failed_rows)):
            gauge.add_metric((job.id, job.name), value)
        for counter, name in zip(counters, JOB_COUNTERS, strict=True):
            counter.add_metric((job.id,), job.counters[name])
        statuses[job.status] = statuses.get(job.status, 0) + 1
    yield from (done, rows, failed)
    yield from counters
    jobs = GaugeMetricFamily("helios_batch_jobs", "Jobs by status", labels=("status",))
    for status, count in statuses.items():
        jobs.add_metric((status,), count)
    messages = GaugeMetricFamily("helios_batch_queue_messages", "Waiting", labels=("queue",))
    for queue, count in waiting.items():
        messages.add_metric((queue,), count)
    yield from (jobs, messages)
    refused = view.counters.get("refused_messages", 0)
    yield CounterMetricFamily("helios_batch_refused_messages", "Hostile messages", refused)
