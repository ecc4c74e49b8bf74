"""Totals of rows, tokens, exits and seconds: of one part, and summed over a job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from helios_batch.records import EngineFacts, Generation


@dataclass(slots=True)
class Totals:
    """What came out and what it took; `+=` of parts gives a job's.

    `decode_tokens` over `decode_steps` is the mean batch; `largest_batch` the largest.
    `errors` counts rows by error code, `exit_histogram` completion tokens by the layer they left
    at, `labels` rows by label, `stages` rows by the stage of the policy where they left,
    `audited_agreement` sums up that of the `audited_rows`, `audit_losses` counts all rows drawn to
    be audited by their loss (see `audit.in_thousandths`). `moves` counts those of a policy by kind;
    `longest_stall` and `expected_stall` are in seconds, see `EngineStats`. `seconds` is time by
    phase: read (and render), load (moving between depths and models), profile (requests tried on
    the candidates), prefill, decode, write (building and encoding the part).
    `engines` lists each engine that took part, once.
    """

    rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    largest_batch: int = 0
    decode_steps: int = 0
    decode_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    exit_histogram: Counter[int] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    stages: Counter[int] = field(default_factory=Counter)
    audited_rows: int = 0
    audited_agreement: float = 0.0
    moves: Counter[str] = field(default_factory=Counter)
    longest_stall: float = 0.0
    expected_stall: float = 0.0
    audit_losses: Counter[int] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    engines: list[EngineFacts] = field(default_factory=list)

    @classmethod
    def of(cls, generations: Iterable[Generation]) -> Self:
        """Count the rows of one part."""
        totals = cls()
        for generation in generations:
            totals.rows += 1
            totals.prompt_tokens += generation.prompt_tokens
            totals.completion_tokens += generation.completion_tokens
            totals.finish_reasons[generation.finish_reason.value] += 1
            if generation.error is not None:
                totals.errors[generation.error.code.value] += 1
            if generation.exit is not None:
                totals.exit_histogram.update(generation.exit.token_layers)
                totals.stages[generation.exit.stage] += 1
                if generation.exit.agreement is not None:
                    totals.audited_rows += 1
                    totals.audited_agreement += generation.exit.agreement
            if generation.label is not None:
                totals.labels[generation.label] += 1
        return totals

    @property
    def failed_rows(self) -> int:
        """Rows that carry an error."""
        return self.errors.total()

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens per second of all phases together; 0 if nothing ran."""
        spent = sum(self.seconds.values())
        return self.completion_tokens / spent if spent else 0.0

    @property
    def mean_batch(self) -> float:
        """Sequences that a decode step advanced, on average; 0 if there was none."""
        return self.decode_tokens / self.decode_steps if self.decode_steps else 0.0

    def __iadd__(self, other: Totals) -> Self:
        self.rows += other.rows
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.largest_batch = max(self.largest_batch, other.largest_batch)
        self.decode_steps += other.decode_steps
        self.decode_tokens += other.decode_tokens
        self.errors.update(other.errors)
        self.finish_reasons.update(other.finish_reasons)
        self.exit_histogram.update(other.exit_histogram)
        self.labels.update(other.labels)
        self.stages.update(other.stages)
        self.audited_rows += other.audited_rows
        self.audited_agreement += other.audited_agreement
        self.moves.update(other.moves)
        self.longest_stall = max(self.longest_stall, other.longest_stall)
        self.expected_stall = max(self.expected_stall, other.expected_stall)
        self.audit_losses.update(other.audit_losses)
        for phase, seconds in other.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self.engines += [engine for engine in other.engines if engine not in self.engines]
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the totals as JSON values; `from_json` reads them back."""
        return {
            "rows": self.rows,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "largest_batch": self.largest_batch,
            "decode_steps": self.decode_steps,
            "decode_tokens": self.decode_tokens,
            "errors": dict(self.errors),
            "finish_reasons": dict(self.finish_reasons),
            "exit_histogram": {str(k): v for k, v in sorted(self.exit_histogram.items())},
            "labels": dict(self.labels),
            "stages": {str(k): v for k, v in sorted(self.stages.items())},
            "audited_rows": self.audited_rows,
            "audited_agreement": self.audited_agreement,
            "moves": dict(self.moves),
            "longest_stall": round(self.longest_stall, 6),
            "expected_stall": round(self.expected_stall, 6),
            "audit_losses": {str(k): v for k, v in sorted(self.audit_losses.items())},
            "seconds": {phase: round(value, 6) for phase, value in self.seconds.items()},
            "engines": [asdict(engine) for engine in self.engines],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read totals written by `to_json`."""
        fields = dict(data)
        fields["errors"] = Counter(data["errors"])
        fields["finish_reasons"] = Counter(data["finish_reasons"])
        fields["labels"] = Counter(data.get("labels", {}))  # parts of before there were labels
        fields["moves"] = Counter(data.get("moves", {}))
        fields["stages"] = Counter({int(k): v for k, v in data.get("stages", {}).items()})
        losses = data.get("audit_losses", {})  # parts of before they were counted
        fields["audit_losses"] = Counter({int(k): v for k, v in losses.items()})
        fields["exit_histogram"] = Counter({int(k): v for k, v in data["exit_histogram"].items()})
        fields["engines"] = [EngineFacts(**engine) for engine in data["engines"]]
        return cls(**fields)
