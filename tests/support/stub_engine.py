"""Engines that need no model, and no torch: processes that use them start at once."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
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


class LayeredStub(StubEngine):
    """A stub of two layers: after the first one it is twice as fast, and sure of every row.

    What it says there of the rows in `wrong` is not what it says after the second.
    """

    def __init__(self, wrong: Container[int] = ()) -> None:
        super().__init__()
        self._wrong, self._depth = wrong, 2

    @property
    def current(self) -> LayeredStub:
        """It stands for `SoleEngine` too."""
        return self

    def holds(self, model: str, layers: int) -> bool:
        """Any depth fits."""
        return True

    def at(self, model: str, layers: int) -> LayeredStub:
        """Go to a depth."""
        self._depth = layers
        return self

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSpec,
        on_step: Callable[[Progress], None] | None = None,
    ) -> list[Generation]:
        """Return one token per prompt, after a step for each."""
        found = []
        for index, (prompt, echo) in enumerate(
            zip(prompts, super().generate(prompts, sampling), strict=True)
        ):
            self.ran(prompt)
            wrong = self._depth == 1 and prompt.row in self._wrong
            record = ExitRecord("stub", 2, (self._depth,), (0.95,))
            found.append(replace(echo, exit=record, token_ids=(int(wrong),)))
            if on_step is not None:
                on_step(Progress(index + 1, 1, 1))
        self.stats.decode_seconds = 0.001 * self._depth * len(prompts)
        return found

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]) -> list[float]:
        """Find all texts equally likely."""
        return [0.0] * len(prompts)

    def ran(self, prompt: Prompt) -> None:
        """Do what a row asks for; here nothing."""
