"""Engines for tests: a real one on a tiny model, and one that needs no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from helios_batch.engine.device import resolve
from helios_batch.engine.engine import Engine
from helios_batch.models.folder import open_model
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.records import (
    EngineFacts,
    EngineStats,
    ExitRecord,
    FinishReason,
    Generation,
    Progress,
    Prompt,
)
from helios_batch.spec import ResourceSpec, SamplingSpec


def make_engine(
    folder: Path, depth: int | None = None, sequence_tokens: int = 32, **resources: object
) -> Engine:
    """Load an engine; `resources` are keys of the spec's section, float32 by default."""
    model = open_model(str(folder))
    spec = ResourceSpec.model_validate({"dtype": "float32", "memory": "64MiB"} | resources)
    layers = model.config.num_layers if depth is None else depth
    tokenizer = Tokenizer(folder, datetime(2026, 1, 2, tzinfo=UTC))
    return Engine(model, tokenizer, layers, resolve(spec), sequence_tokens)


def prompts(*texts: str) -> list[Prompt]:
    """Return prompts of rows 0, 1, ..."""
    return [Prompt(row, text) for row, text in enumerate(texts)]


class StubEngine:
    """Echoes each prompt's first characters; for tests of everything around the engine."""

    facts = EngineFacts("stub", 2, 2, "cpu", "float32", 100, 0, 1000, 8)

    def __init__(self) -> None:
        self.stats = EngineStats()
        self.calls = 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSpec,
        on_step: Callable[[Progress], None] | None = None,
    ) -> list[Generation]:
        """Return one token per prompt."""
        self.calls += 1
        self.stats = EngineStats(largest_batch=len(prompts))
        record = ExitRecord("stub", 2, (2,), (0.5,))
        return [
            Generation(p.row, f"echo {p.content!s:.20}", FinishReason.STOP, 3, 1, record)
            for p in prompts
        ]


class Silent:
    """Watches a run and says nothing."""

    def loading(self) -> None:
        """Ignore."""

    def started(self, engine: EngineFacts, rows: int, rows_done: int) -> None:
        """Ignore."""

    def step(self, progress: Progress) -> None:
        """Ignore."""

    def shard_done(self, rows: int) -> None:
        """Ignore."""
