"""What others may push into the queue's lists and channels: refused, counted, survived."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Iterator
from typing import Any

from helios_batch.queue.app import make_app
from helios_batch.queue.messages import RUN_UNIT
from tests.support.fleet import Fleet, wait_for

LIST = "test:celery:shards"


class Bomb:
    """Unpickled, it would leave a file."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return open, (self.file, "w")


def message(**changes: Any) -> dict[str, Any]:
    """Return a message as Celery writes it, with headers, properties or other keys changed."""
    headers = {"task": RUN_UNIT, "id": "a", "lang": "py", "retries": 0, "timelimit": [None, None]}
    properties = {
        "delivery_tag": "a",
        "delivery_info": {"exchange": "", "routing_key": "shards"},
        "body_encoding": "base64",
    }
    body = base64.b64encode(b'[["0123456789abcdef", "0"], {}, {}]').decode()
    whole = {"body": body, "content-type": "application/json", "content-encoding": "utf-8"}
    headers |= changes.pop("headers", {})
    properties |= changes.pop("properties", {})
    return {"headers": headers, "properties": properties} | whole | changes


def hostile(bomb: str) -> Iterator[bytes]:
    """Yield items that are none of ours."""
    yield from (
        b"",
        b"no JSON",
        b"\xff\xfe\x00",
        b"null",
        b"3",
        b'"x"',
        b"[]",
        b"{}",
        b"[" * 100_000,
    )
    yield b'{"a":' * 100_000
    yield b"x" * 6_000_000
    yield json.dumps({"__type__": "decimal", "__value__": "x"}).encode()
    wild: list[dict[str, Any]] = [
        {"headers": {"task": "celery.backend_cleanup"}},
        {"headers": {"task": "os.system"}},
        {"headers": {"eta": "2020-01-01T00:00:00"}},
        {"headers": {"eta": "soon"}},
        {"headers": {"expires": 1}},
        {"headers": {"timelimit": [1, 1]}},
        {"headers": {"chord": {"task": RUN_UNIT}}},
        {"headers": {"retries": "three"}},
        {"headers": {"id": "x" * 1_000_000}},
        {"headers": {"compression": "zlib"}},
        {"properties": {"reply_to": {"a": 1}}},
        {"properties": {"body_encoding": "rot13"}},
        {"properties": {"body_encoding": {}}},
        {"properties": {"delivery_tag": None}},
        {"properties": {"delivery_info": None}},
        {"content-encoding": "zlib_codec"},
        {"body": "x" * 3_000_000},
        {"body": base64.b64encode(b'[["../../etc", "0"], {}, {}]').decode()},
        {"body": base64.b64encode(b"[[], {}, {}]").decode()},
        {
            "body": base64.b64encode(
                b'[["0123456789abcdef", "0"], {}, {"callbacks": [{"task": "x"}]}]'
            ).decode()
        },
        {
            "body": base64.b64encode(pickle.dumps(Bomb(bomb))).decode(),
            "content-type": "application/x-python-serialize",
            "content-encoding": "binary",
        },
    ]
    yield from (json.dumps(message(**changes)).encode() for changes in wild)
    yield json.dumps(message() | {"headers": None}).encode()


def test_hostile_messages_are_refused_and_counted(fleet: Fleet) -> None:
    """Items pushed by hand, before and while a worker takes: it lives on and does its job."""
    bomb, client = fleet.folder / "bomb", fleet.jobs.client
    items = list(hostile(str(bomb)))
    client.lpush(LIST, *items)
    worker = fleet.worker()
    counters = fleet.jobs.keys.counters
    wait_for(lambda: int(client.hget(counters, "refused_messages") or 0) == len(items), "counting")
    job_id = fleet.submit(fleet.spec(rows=100))
    client.rpush(LIST, *items)
    fleet.wait_for_status(job_id, "done")
    wait_for(lambda: int(client.hget(counters, "refused_messages")) == 2 * len(items), "counting")
    fleet.check_whole(100)
    assert worker.poll() is None
    assert not bomb.exists()
    log = (fleet.folder / "worker-0.log").read_text()
    assert "Traceback" not in log
    assert log.count("Connected to") == 1, "the worker had to begin anew"


def test_hostile_broadcasts_are_survived(fleet: Fleet) -> None:
    """Control messages that are none: refused; a real one is answered, and the job is done."""
    worker, client = fleet.worker(), fleet.jobs.client
    channel = "test:celery:/0.celery.pidbox"
    wait_for(client.pubsub_numpat, "the worker to listen")
    items = list(hostile("bomb"))
    for item in items:
        client.publish(channel, item)
    client.publish(channel, json.dumps(message(body=base64.b64encode(b"[1]").decode())))
    client.publish(channel, json.dumps(message(body=base64.b64encode(b"{}").decode())))
    app = make_app(fleet.settings)
    answer = wait_for(lambda: app.control.inspect(timeout=1).ping(), "an answer")
    assert list(answer.values()) == [{"ok": "pong"}]
    job_id = fleet.submit(fleet.spec(rows=20))
    fleet.wait_for_status(job_id, "done")
    assert worker.poll() is None
