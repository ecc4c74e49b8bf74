"""What a message of ours looks like, and why another one is refused."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping

RUN_UNIT = "helios_batch.run_unit"
"""The name of the one task."""

_JOB_ID = re.compile(r"[0-9a-f]{16}")
_UNIT = re.compile(r"survey|[0-9]{1,10}")
_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_LARGEST_ITEM = 16384  # bytes; a message of ours takes about 1,200

Check = Callable[[object], bool]


def valid_unit(job_id: object, unit: object) -> bool:
    """Whether the arguments name a job and a unit of one."""
    return (
        isinstance(job_id, str)
        and isinstance(unit, str)
        and bool(_JOB_ID.fullmatch(job_id))
        and bool(_UNIT.fullmatch(unit))
    )


def problem_with_item(item: bytes) -> str | None:
    """Return why an item of a task queue's list is none of ours, or None if it is."""
    if len(item) > _LARGEST_ITEM:
        return "the message is too large"
    try:
        message = json.loads(item.decode())
    except (ValueError, RecursionError):
        return "the envelope is not JSON"
    return problem_with(message)


def problem_with(message: object) -> str | None:
    """Return why an envelope from the broker is none of ours, or None if it is.

    Everything that Celery or kombu would act on is looked at; what is not known must be empty.
    """
    problem = _problem_with_fields("the envelope", message, _ENVELOPE)
    if problem is not None or not isinstance(message, dict):
        return problem
    return (
        _problem_with_fields("headers", message["headers"], _HEADERS)
        or problem_with_delivery(message)
        or _problem_with_body(message["body"])
    )


def problem_with_delivery(message: object) -> str | None:
    """Return why kombu could not take an envelope in, whatever it carries, or None."""
    if not isinstance(message, dict) or not isinstance(message.get("headers"), dict):
        return "the envelope is no object with headers"
    if not isinstance(message.get("body"), str):
        return "the body is no text"
    properties = message.get("properties")
    problem = _problem_with_fields("properties", properties, _PROPERTIES)
    if problem is not None or not isinstance(properties, dict):
        return problem
    return _problem_with_fields("delivery_info", properties["delivery_info"], _DELIVERY_INFO)


def _problem_with_fields(name: str, found: object, shape: Mapping[str, Check]) -> str | None:
    if not isinstance(found, dict):
        return f"{name}: no object"
    for key, check in shape.items():
        if not check(found.get(key)):
            return f"{name}: {key} is wild"
    if any(value for key, value in found.items() if key not in shape):
        return f"{name}: what no message of ours has"
    return None


def _problem_with_body(body: str) -> str | None:
    try:
        arguments, named, callbacks = json.loads(base64.b64decode(body, validate=True).decode())
    except (ValueError, TypeError, RecursionError):
        return "the body is not JSON of a task"
    if not isinstance(arguments, list) or len(arguments) != 2 or named != {}:
        return "the arguments are not a job and a unit"
    if not isinstance(callbacks, dict) or any(callbacks.values()):
        return "it asks for callbacks"
    return None if valid_unit(*arguments) else "the arguments are not a job and a unit"


def _is(*allowed: object) -> Check:
    # 1 == 1.0 == True
    return lambda value: any(type(value) is type(one) and value == one for one in allowed)


def _object(value: object) -> bool:
    return isinstance(value, dict)


def _id(value: object) -> bool:
    return isinstance(value, str) and bool(_ID.fullmatch(value))


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 256 and value.isprintable()


def _maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _small(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255


_ENVELOPE: Mapping[str, Check] = {
    "headers": _object,
    "properties": _object,
    "body": lambda value: isinstance(value, str),
    "content-type": _is("application/json"),
    "content-encoding": _is("utf-8"),
}
_HEADERS: Mapping[str, Check] = {
    "task": _is(RUN_UNIT),
    "id": _id,
    "lang": _is("py"),
    # nothing of ours is retried by Celery, delayed, timed or part of a larger thing
    "retries": _is(0),
    "timelimit": _is(None, [None, None]),
    "root_id": _maybe(_id),
    "parent_id": _maybe(_id),
    "argsrepr": _maybe(_text),
    "kwargsrepr": _maybe(_text),
    "origin": _maybe(_text),
    "ignore_result": _is(None, True, False),
    "replaced_task_nesting": _is(None, 0),
    "redelivered": _is(None, True, False),
}
_PROPERTIES: Mapping[str, Check] = {
    "delivery_tag": _id,
    "delivery_info": _object,
    "body_encoding": _is("base64"),
    "delivery_mode": _maybe(_small),
    "priority": _maybe(_small),
    "correlation_id": _maybe(_id),
    "reply_to": _maybe(_id),
}
_DELIVERY_INFO: Mapping[str, Check] = {
    "exchange": _text,
    "routing_key": _text,
    "priority": _maybe(_small),
    "redelivered": _is(None, True, False),
}
