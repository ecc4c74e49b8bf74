"""What a simulated run came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from helios_batch.simulate.models import AGREES_SURE, THRESHOLD, SimulatedModel


@dataclass(frozen=True)
class PolicyResult:
    """A policy on a job.

    Args:
        policy: its name.
        models: that took part.
        chip: that it ran on.
        tokens: that were generated.
        seconds: of all, loading and profiles included; `tokens_per_second` goes by them.
        token_seconds: that a sequence waits for its next token, in the mean, where nothing stalls;
            profiles are left out.
        batch: the most sequences at once.
        memory: the most bytes of weights, and of the KV cache of such a batch.
        earliest: share of tokens that left at the shallowest depth of the model they ran on.
        all_layers: share of tokens for which all layers of it ran.
        unsure: share of tokens that left though their exit was not sure of them.
        agreement: expected share of tokens that are those of full depth of the same model.
        moves: changes of place by kind.
        profiles: how many were taken.
        profile_seconds: spent on them; the answers that they give count too.
        load_seconds: spent on reading weights while nothing ran.
    """

    policy: str
    models: tuple[str, ...]
    chip: str
    tokens: int
    seconds: float
    tokens_per_second: float
    token_seconds: float
    batch: int
    memory: int
    earliest: float
    all_layers: float
    unsure: float
    agreement: float
    moves: dict[str, int]
    profiles: int
    profile_seconds: float
    load_seconds: float

    @property
    def reactions(self) -> int:
        """Moves that answer too many breaches."""
        return self.moves.get("deepen", 0) + self.moves.get("switch", 0)


@dataclass
class Tally:
    """Counts while a simulated run goes on; the clock is `seconds`."""

    seconds: float = 0.0
    waited: float = 0.0
    awaited: int = 0
    tokens: int = 0
    earliest: int = 0
    all_layers: int = 0
    unsure: int = 0
    agreeing: float = 0.0
    batch: int = 0
    memory: int = 0
    moves: Counter[str] = field(default_factory=Counter)
    profiles: int = 0
    profile_seconds: float = 0.0
    load_seconds: float = 0.0

    def left(self, model: SimulatedModel, place: int, confidences: Sequence[float]) -> None:
        """Count tokens that left a model at depth number `place`, by how sure it was of each."""
        full, tokens = place == len(model.depths) - 1, len(confidences)
        sure = sum(confidence >= THRESHOLD for confidence in confidences)
        self.tokens += tokens
        self.earliest += tokens * (place == 0)
        self.all_layers += tokens * full
        self.unsure += 0 if full else tokens - sure
        agreeing = sure * AGREES_SURE + (tokens - sure) * model.agrees_unsure
        self.agreeing += tokens if full else agreeing

    def result(self, policy: str, models: tuple[str, ...], chip: str) -> PolicyResult:
        """Return what it all came to."""
        return PolicyResult(
            policy,
            models,
            chip,
            tokens=self.tokens,
            seconds=self.seconds,
            tokens_per_second=self.tokens / self.seconds,
            token_seconds=self.waited / max(1, self.awaited),
            batch=self.batch,
            memory=self.memory,
            earliest=self.earliest / self.tokens,
            all_layers=self.all_layers / self.tokens,
            unsure=self.unsure / self.tokens,
            agreement=self.agreeing / self.tokens,
            moves=dict(self.moves),
            profiles=self.profiles,
            profile_seconds=self.profile_seconds,
            load_seconds=self.load_seconds,
        )
