"""A job's events in plain words."""

from __future__ import annotations

from collections.abc import Mapping

_WORDS = {
    "created": "the job was submitted",
    "reopened": "the job was opened again",
    "rebuilt": "the job was put back into Redis from {folder}",
    "surveyed": "its folder was read: {finished} shards are finished, the job is {status}",
    "loaded": "{worker} loaded {model}, {depth} layers, on {device}",
    "published": "{unit} is published, {rows} rows",
    "died": "{worker} lost its process while it held {unit}",
    "lease_expired": "the lease of {worker} on {unit} ran out; it is due again",
    "republished": "the message for {unit} was lost; it is sent again",
    "probing": "{unit} keeps losing its process: rows {rows} are tried alone",
    "engine_lost": "the engine of {worker} died with {unit}",
    "error": "{unit} failed on {worker}",
    "fenced": "an attempt at {unit} was refused: {why}",
    "queued": "the job goes on",
    "paused": "the job was paused",
    "cancelled": "the job was cancelled",
    "failed": "the job failed",
}
_DETAILS = ("error", "traceback")


class _Fields(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "?"


def event_words(event: Mapping[str, str]) -> str:
    """Return what an event says; error texts follow, indented. Unknown kinds show their fields."""
    kind = event.get("kind", "?")
    fields = _Fields(event)
    unit = event.get("unit", "?")
    fields["unit"] = "the survey" if unit == "survey" else f"shard {unit}"
    words = _WORDS.get(kind)
    if words is None:
        rest = (f"{k}={v}" for k, v in event.items() if k not in ("id", "kind", *_DETAILS) and v)
        text = " ".join([kind, *rest])
    else:
        text = words.format_map(fields)
    details = [event[name] for name in _DETAILS if event.get(name)]
    lines = [line for detail in details for line in detail.rstrip().splitlines()]
    return "\n".join([text, *(f"    {line}" for line in lines)])
