"""Messages: ours are taken in, and nothing else is."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_batch.queue.app import make_app
from helios_batch.queue.messages import (
    RUN_UNIT,
    problem_with,
    problem_with_delivery,
    problem_with_item,
    valid_unit,
)
from helios_batch.queue.settings import QueueSettings

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """What Celery's `send_task` puts into the broker's list."""
    app = make_app(QueueSettings("redis://unused"))
    app.conf.update(broker_url="memory://", broker_transport=None, broker_transport_options={})
    app.conf.update(broker_use_ssl=None)
    with app.connection_for_write() as connection:
        app.send_task(RUN_UNIT, ("0123456789abcdef", "7"), queue="shards", connection=connection)
        message: dict[str, Any] = connection.default_channel._get("shards")
    return message


def body(*parts: object) -> str:
    return base64.b64encode(json.dumps(parts).encode()).decode()


def test_what_celery_sends_is_taken(real: dict[str, Any]) -> None:
    """A message of `send_task` passes, and passes again after a rejection has marked it."""
    assert problem_with(real) is None
    assert problem_with_item(json.dumps(real).encode()) is None
    again = deepcopy(real)
    again["headers"]["redelivered"] = True
    again["properties"]["delivery_info"]["redelivered"] = True
    assert problem_with(again) is None


WILD: list[tuple[str, Any]] = [
    *(
        (f"headers.{key}", value)
        for key in ("eta", "expires", "chord", "group")
        for value in ("x", 1)
    ),
    ("headers.timelimit", [1, None]),
    ("headers.timelimit", "soon"),
    ("headers.retries", "3"),
    ("headers.retries", 1),
    ("headers.retries", True),
    ("headers.retries", -(10**400)),
    ("headers.task", "celery.backend_cleanup"),
    ("headers.task", None),
    ("headers.id", "x" * 65),
    ("headers.id", "line\nbreak"),
    ("headers.id", ["a"]),
    ("headers.lang", "cobol"),
    ("headers.compression", "bzip2"),
    ("headers.stamped_headers", ["a"]),
    ("headers.stamps", {"a": "b"}),
    ("headers.shadow", "another name"),
    ("headers.argsrepr", "x" * 300),
    ("headers.argsrepr", "\x1b[2J"),
    ("headers.origin", "\ud800"),
    ("headers.ignore_result", "yes"),
    ("headers.replaced_task_nesting", 10**9),
    ("headers", []),
    ("properties", None),
    ("properties.body_encoding", "rot13"),
    ("properties.body_encoding", {}),
    ("properties.body_encoding", None),
    ("properties.delivery_tag", None),
    ("properties.delivery_tag", {"a": 1}),
    ("properties.reply_to", {}),
    ("properties.reply_to", "x" * 100),
    ("properties.priority", "high"),
    ("properties.priority", 1e9),
    ("properties.expiration", "1"),
    ("properties.delivery_info", "shards"),
    ("properties.delivery_info.exchange", None),
    ("properties.delivery_info.routing_key", ["shards"]),
    ("content-type", "application/x-python-serialize"),
    ("content-type", "application/x-yaml"),
    ("content-type", None),
    ("content-encoding", "zlib_codec"),
    ("content-encoding", "utf-16"),
    ("body", None),
    ("body", "not base64!"),
    ("body", base64.b64encode(b"\x80\x04K\x01.").decode()),
    ("body", body(["0123456789abcdef"], {}, {})),
    ("body", body(["0123456789abcdef", 7], {}, {})),
    ("body", body(["0123456789ABCDEF", "7"], {}, {})),
    ("body", body(["0123456789abcdef", "-1"], {}, {})),
    ("body", body(["0123456789abcdef", "7\n"], {}, {})),
    ("body", body(["0123456789abcdef", "7"], {"unit": "8"}, {})),
    ("body", body(["0123456789abcdef", "7"], {}, {"callbacks": [{"task": "x"}]})),
    ("body", body(["0123456789abcdef", "7"], {}, {"chord": {"task": "x"}})),
    ("body", body(["0123456789abcdef", "7"], {}, [])),
    ("body", base64.b64encode(b"[" * 100_000).decode()),
    ("more", "than there is"),
]


@pytest.mark.parametrize(("place", "value"), WILD)
def test_one_wild_field_is_enough(real: dict[str, Any], place: str, value: object) -> None:
    """A real message with one field changed is refused."""
    changed = deepcopy(real)
    *way, last = place.split(".")
    inner = changed
    for key in way:
        inner = inner[key]
    inner[last] = value
    assert problem_with(changed) is not None


def test_a_lost_field_is_noticed(real: dict[str, Any]) -> None:
    """What Celery can't do without must be there."""
    for place in ("headers", "properties", "body", "content-type", "content-encoding"):
        assert problem_with({key: value for key, value in real.items() if key != place})
    for section, names in (
        ("headers", ("task", "id", "lang", "retries")),
        ("properties", ("delivery_tag", "delivery_info", "body_encoding")),
    ):
        for name in names:
            changed = deepcopy(real)
            del changed[section][name]
            assert problem_with(changed), f"without {section}.{name}"


@pytest.mark.parametrize(
    "item",
    [
        b"",
        b"not JSON",
        b"\xff\xfe{}",
        b"null",
        b"[]",
        b"[" * 16_000,
        b'{"a":' * 3_000,
        b'{"headers": {}, "x": "' + b"x" * 5_000_000 + b'"}',
        json.dumps({"__type__": "decimal", "__value__": "x"}).encode(),
    ],
    ids=lambda item: f"{item[:12]!r} {len(item)}",
)
def test_what_is_no_message_at_all(item: bytes) -> None:
    """Bytes of any kind get a reason, never an exception."""
    assert problem_with_item(item) is not None


@given(JSON)
def test_no_value_raises(value: object) -> None:
    """Any JSON value, on its own, is refused with a reason."""
    assert isinstance(problem_with(value), str)
    assert isinstance(problem_with_delivery(value), str)


@given(data=st.data(), value=JSON)
def test_no_value_in_any_place_raises(
    real: dict[str, Any], data: st.DataObject, value: object
) -> None:
    """Any JSON value in any place of a real message: taken or refused, without an exception."""
    changed = deepcopy(real)
    section = data.draw(st.sampled_from(["", "headers", "properties"]))
    inner = changed[section] if section else changed
    inner[data.draw(st.sampled_from(sorted(inner)))] = value
    found: list[Callable[[object], str | None]] = [problem_with, problem_with_delivery]
    assert all(isinstance(check(changed), str | None) for check in found)


@given(st.binary(max_size=200))
def test_no_bytes_raise(item: bytes) -> None:
    """Any bytes are refused with a reason."""
    assert isinstance(problem_with_item(item), str)


@given(JSON, JSON)
def test_units(job_id: object, unit: object) -> None:
    """Arguments that are no job and unit are told apart, whatever their types."""
    assert not valid_unit(job_id, unit)
    assert valid_unit("0123456789abcdef", "survey")
