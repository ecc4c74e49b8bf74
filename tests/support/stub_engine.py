"""An engine that needs no model, and no torch: processes that use it start at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from helios_batch.records import (
    EngineFacts,
    EngineStats,
    ExitRecord,
    FinishReason,
    Generation,
    Progress,
    Prompt,
)
from helios_batch.spec import SamplingSpec


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

    def label(
        self,
        prompts: Sequence[Prompt],
        choices: Sequence[str],
        on_step: Callable[[Progress], None] | None = None,
    ) -> list[Generation]:
        """Return the first choice for each prompt, all choices being as likely."""
        shares = (1 / len(choices),) * len(choices)
        echoes = self.generate(prompts, SamplingSpec(), on_step)
        return [
            replace(echo, text=choices[0], label=choices[0], label_probability=shares)
            for echo in echoes
        ]
