"""What a message of ours looks like, and why another one is refused."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

RUN_UNIT = "helios_batch.run_unit"
"""The name of the one task."""

_JOB_ID = re.compile(r"[0-9a-f]{16}")
_UNIT = re.compile(r"survey|[0-9]{1,10}")
_LARGEST_BODY = 4096


def valid_unit(job_id: object, unit: object) -> bool:
    """Whether the arguments name a job and a unit of one."""
    return (
        isinstance(job_id, str)
        and isinstance(unit, str)
        and bool(_JOB_ID.fullmatch(job_id))
        and bool(_UNIT.fullmatch(unit))
    )


def problem_with(message: object) -> str | None:
    """Return why an envelope from the broker is none of ours, or None if it is.

    Everything that Celery would act on is looked at: nothing unexpected reaches it.
    """
    if not isinstance(message, dict):
        return "the envelope is no object"
    headers, properties = message.get("headers"), message.get("properties")
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        return "headers or properties are missing"
    if headers.get("task") != RUN_UNIT:
        return "unknown task"
    if not isinstance(headers.get("id"), str) or len(headers["id"]) > 64:
        return "the id is no text"
    if type(headers.get("retries", 0)) is not int:
        return "the retries are no number"
    wild = [key for key in ("eta", "expires", "chord", "group") if headers.get(key) is not None]
    if wild or headers.get("timelimit") not in (None, [None, None]):
        return "it asks for what no message of ours asks for"
    info = properties.get("delivery_info")
    if not isinstance(properties.get("delivery_tag"), str) or not isinstance(info, dict):
        return "delivery data is missing"
    if not isinstance(info.get("exchange"), str) or not isinstance(info.get("routing_key"), str):
        return "delivery data is wild"
    if message.get("content-type") != "application/json":
        return "the content is not JSON"
    return _problem_with_body(message, properties)


def _problem_with_body(message: dict[str, Any], properties: dict[str, Any]) -> str | None:
    body = message.get("body")
    if not isinstance(body, str) or len(body) > _LARGEST_BODY:
        return "the body is no text or too large"
    try:
        encoded = properties.get("body_encoding") == "base64"
        text = base64.b64decode(body, validate=True) if encoded else body.encode()
        arguments, named, callbacks = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return "the body is not JSON of a task"
    if not isinstance(arguments, list) or len(arguments) != 2 or named != {}:
        return "the arguments are not a job and a unit"
    if not isinstance(callbacks, dict) or any(callbacks.values()):
        return "it asks for callbacks"
    return None if valid_unit(*arguments) else "the arguments are not a job and a unit"
