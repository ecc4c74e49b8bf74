"""What the containers of docker/ run, run here: Redis's start and the workers' health check."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from helios_batch.queue.embedded import find_server, free_port
from tests.queue.conftest import require_redis
from tests.support.fleet import Fleet, wait_for
from tests.support.jobs import ROOT

PASSWORD = "letters1and2digits"


@pytest.fixture
def started_redis(tmp_path: Path) -> Iterator[int]:
    """Redis as docker/start-redis.sh starts it, on a port and a folder of the test's."""
    require_redis()
    server, port = find_server(), free_port()
    assert server is not None
    environment = os.environ | {"HELIOS_REDIS_PASSWORD": PASSWORD, "TMPDIR": str(tmp_path)}
    environment["PATH"] = f"{server.parent}:{environment['PATH']}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", ROOT / "docker" / "start-redis.sh", "--port", str(port), "--dir", tmp_path],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    yield port
    process.terminate()
    process.wait()


def test_redis_starts_with_its_users_and_settings(started_redis: int, tmp_path: Path) -> None:
    """The user of users.acl gets in, nobody else does; it appends; the password is not on disk."""
    url = f"redis://helios:{PASSWORD}@127.0.0.1:{started_redis}/0"
    with redis.Redis.from_url(url) as client:
        wait_for(lambda: answers(client), "Redis to answer", 10)
        assert client.set("helios:x", "1")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.set("other", "1")
    for stranger in ("", f":{PASSWORD}@", "helios:wrong@", f"default:{PASSWORD}@"):
        client = redis.Redis.from_url(f"redis://{stranger}127.0.0.1:{started_redis}/0")
        with client, pytest.raises(redis.AuthenticationError):
            client.ping()
    assert list(tmp_path.rglob("*.aof"))
    assert (tmp_path / "users.acl").stat().st_mode & 0o077 == 0
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if PASSWORD.encode() in file.read_bytes()]


def answers(client: redis.Redis) -> bool:
    """Whether Redis is up."""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.mark.parametrize("given", [{}, {"HELIOS_REDIS_PASSWORD": ""}])
def test_redis_does_not_start_without_a_password(tmp_path: Path, given: dict[str, str]) -> None:
    """Forgetting the password is an error, not an open door."""
    server = tmp_path / "redis-server"
    server.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    server.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)} | given
    ended = subprocess.run(
        ["sh", ROOT / "docker" / "start-redis.sh"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "HELIOS_REDIS_PASSWORD: is not set" in ended.stderr
    assert not (tmp_path / "started").exists()


def health(fleet: Fleet) -> subprocess.CompletedProcess[str]:
    """Run the health check of the images."""
    return subprocess.run(
        [sys.executable, "-m", "helios_batch.queue.health"],
        env=fleet.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_health_is_the_main_process_that_beats(fleet: Fleet) -> None:
    """No worker, a worker, one that hangs: the check tells them apart, and says what is wrong."""
    before = health(fleet)
    assert before.returncode == 1
    assert "no worker of this host" in before.stderr
    worker = fleet.worker()
    wait_for(lambda: fleet.jobs.client.scard(fleet.jobs.keys.workers), "a worker")
    assert health(fleet).returncode == 0
    worker.send_signal(signal.SIGSTOP)
    wait_for(lambda: health(fleet).returncode == 1, "the entry to expire", 15)
    worker.send_signal(signal.SIGCONT)
    wait_for(lambda: health(fleet).returncode == 0, "the worker to show itself again", 15)
    fleet.env["HELIOS_REDIS_URL"] = "redis://127.0.0.1:1/0"
    away = health(fleet)
    assert away.returncode == 1
    assert "can't be reached" in away.stderr
    assert "Traceback" not in away.stderr
