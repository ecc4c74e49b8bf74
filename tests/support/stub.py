"""The command line with a stub engine that needs no model; its rows tell it how to behave.

`python -m tests.support.stub worker ...`: the processes that the worker starts import this module
too, and so have the same stub.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from helios_batch import cli, job
from helios_batch.queue import app, engines, transport
from helios_batch.records import EngineStats, ExitRecord, FinishReason, Generation, Progress, Prompt
from helios_batch.spec import SamplingSpec
from tests.support.stub_engine import StubEngine

MODEL: Any = SimpleNamespace(
    name="stub",
    digest="0" * 64,
    path=Path(),
    exit_folders=[],
    native_exits=False,
    config=SimpleNamespace(num_layers=2),
)

LAYERED: Any = SimpleNamespace(**vars(MODEL) | {"native_exits": True})


def open_stub(name: str) -> Any:
    """Return the stub of a model; the one that is named `layered` can be left after layer 1."""
    return LAYERED if name == "layered" else MODEL


class ObedientEngine(StubEngine):
    """Echoes prompts at `HELIOS_STUB_SECONDS` a row; some words in them are orders."""

    def __init__(self) -> None:
        super().__init__()
        self._pause = float(os.environ.get("HELIOS_STUB_SECONDS", "0"))

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSpec,
        on_step: Callable[[Progress], None] | None = None,
    ) -> list[Generation]:
        """Return one token per prompt, unless one of them says KILL, MEMORY or HANG."""
        self.stats = EngineStats(largest_batch=len(prompts))
        record, done = ExitRecord("stub", 2, (2,), (0.5,)), []
        for prompt in prompts:
            text = str(prompt.content)
            if "KILL" in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if "MEMORY" in text:
                raise MemoryError("no memory for this row")
            time.sleep(self._pause)
            done.append(Generation(prompt.row, f"echo {text:.20}", FinishReason.STOP, 3, 1, record))
            if on_step is not None:
                on_step(Progress(len(done), 1, 1))
        return done


def fail(*_: object) -> Any:
    """Fail as a device without memory does."""
    raise RuntimeError("CUDA error: out of memory")


def install() -> None:
    """Put the stub in the place of models and engines, in this process.

    `HELIOS_STUB_CLOCK` puts its wall clock off by seconds, `HELIOS_STUB_VISIBILITY` sets how soon
    the broker delivers a message again that is not acknowledged, `HELIOS_STUB_BRPOP` how long one
    request for a message waits; `HELIOS_STUB_BROKEN` what fails outright: `model` or `engine`.
    """
    clock, offset = time.time, float(os.environ.get("HELIOS_STUB_CLOCK", "0"))
    if offset:
        time.time = lambda: clock() + offset
    if visibility := os.environ.get("HELIOS_STUB_VISIBILITY"):
        app._VISIBILITY_SECONDS = int(visibility)
    if seconds := os.environ.get("HELIOS_STUB_BRPOP"):
        transport.Transport.brpop_timeout = int(seconds)
    broken = os.environ.get("HELIOS_STUB_BROKEN")
    job.open_model = fail if broken == "model" else open_stub
    engines.load_engine = fail if broken == "engine" else lambda *_: ObedientEngine()
    engines.adopt_engine = lambda engine, job: None


if __name__ in ("__main__", "__mp_main__"):
    install()
if __name__ == "__main__":
    cli.main()
