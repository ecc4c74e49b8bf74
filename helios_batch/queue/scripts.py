"""The Lua scripts: each changes what it changes in one atomic step."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, Literal

import redis

ScriptName = Literal[
    "submit",
    "claim",
    "begin",
    "renew",
    "complete",
    "release",
    "recover",
    "dispatch",
    "survey",
    "set_status",
]


@cache
def _source(name: ScriptName) -> str:
    return files("helios_batch.queue").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


class Scripts:
    """Runs the scripts on one client; they are sent once and named by digest afterwards."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._loaded: dict[ScriptName, Any] = {}

    def run(self, name: ScriptName, keys: list[str], *arguments: str | bytes | int | float) -> Any:
        """Run a script; its file's head says what it takes and returns."""
        if name not in self._loaded:
            self._loaded[name] = self._client.register_script(_source(name))
        return self._loaded[name](keys=keys, args=list(arguments))
