"""The performance history table on disk: beside the job's parts, and on this machine for others.

Both hold it under the fingerprint of what it depends on: models, exits, prompt, task, threshold.
Whoever writes last is kept. What another has observed and is lost by that costs a profile at most.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from helios_batch.cache import cache_folder
from helios_batch.errors import HeliosError
from helios_batch.helios.history import History, ModelHistory
from helios_batch.job import Job
from helios_batch.spec import digest

_NOTE = "_pht.json"
_HISTORY: TypeAdapter[dict[str, ModelHistory]] = TypeAdapter(dict[str, ModelHistory])


class TableFile:
    """Where a job's table is kept.

    Args:
        job: the job.
        hardware: that it runs on, as `hardware_name` tells it.
        dtype: that it runs in.
    """

    def __init__(self, job: Job, hardware: str, dtype: str) -> None:
        self._output = job.output
        self._key = {"fingerprint": _fingerprint(job, dtype), "hardware": hardware}
        self._cached = cache_folder() / "pht" / f"{digest(self._key)}.json"

    def recall(self, history: History) -> bool:
        """Add what is known to a table of sizes; tell whether all candidates have requests.

        What the job's own folder says goes before what the machine has kept. A table that can't be
        read is done without: profiles make another.
        """
        for text in (self._beside_the_job(), self._on_this_machine()):
            found = self._read(text)
            if found is not None and _merge(history, found):
                return True
        return False

    def save(self, history: History) -> None:
        """Write the table to both places, as far as they can be written."""
        models = {name: asdict(model) for name, model in history.models.items()}
        text = json.dumps(self._key | {"models": models})
        with suppress(HeliosError):
            self._output.publish_note(_NOTE, text, replace=True)
        with suppress(OSError):
            self._cached.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._cached.with_name(f"{self._cached.name}.{os.getpid()}")
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(self._cached)

    def forget(self) -> None:
        """Take away what this machine has kept."""
        self._cached.unlink(missing_ok=True)

    def _beside_the_job(self) -> str | None:
        with suppress(HeliosError):
            return self._output.read_note(_NOTE)
        return None

    def _on_this_machine(self) -> str | None:
        return _text_of(self._cached)

    def _read(self, text: str | None) -> dict[str, ModelHistory] | None:
        try:
            data: dict[str, Any] = json.loads(text or "null") or {}
            if {name: data.get(name) for name in self._key} != self._key:
                return None
            return _HISTORY.validate_python(data["models"])
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
            return None


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _merge(history: History, found: dict[str, ModelHistory]) -> bool:
    """Take over what was observed and measured; sizes are this run's own."""
    if any(
        name not in found
        or not found[name].requests
        or [d.layers for d in found[name].depths] != [d.layers for d in model.depths]
        for name, model in history.models.items()
    ):
        return False
    for name, model in history.models.items():
        known = found[name]
        model.requests, model.reliability = known.requests, known.reliability
        model.bytes_read, model.read_seconds = known.bytes_read, known.read_seconds
        for depth, old in zip(model.depths, known.depths, strict=True):
            depth.tried, depth.served = old.tried, old.served
    return True


def _fingerprint(job: Job, dtype: str) -> str:
    spec = job.spec.identity()
    parts = ("prompt", "task", "sampling", "exits", "policy")
    models = [
        [c.model.digest, {str(depth): c.exits[depth].digest for depth in sorted(c.exits)}]
        for c in job.candidates
    ]
    return digest({"models": models, "dtype": dtype, **{key: spec.get(key) for key in parts}})
