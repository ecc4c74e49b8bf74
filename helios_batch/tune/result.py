"""What a tuning came to, as it is shown and written down."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from helios_batch.models.exits.metadata import ExitMetadata


@dataclass(frozen=True)
class CurvePoint:
    """Agreement on the watched texts after `tokens` tokens and `seconds` of training.

    Without a loss, the point is of the closed form, fitted on so many tokens.
    """

    tokens: int
    seconds: float
    agreement: float
    loss: float | None = None


@dataclass(frozen=True)
class LabelMeasure:
    """Labels at an exit against full depth's on held-out rows.

    `kappa` is Cohen's (Educational and Psychological Measurement 20, 1960); `decisive` the mean
    confidence at full depth, `largest_class` the share of its most frequent label; `cost` the time
    of a row at the exit over that at full depth, prefill alone.
    """

    rows: int
    agreement: float
    kappa: float
    ece: float
    decisive: float
    largest_class: float
    cost: float


@dataclass(frozen=True)
class ExitReport:
    """What is told of one exit; rates in FLOP/s."""

    metadata: ExitMetadata
    path: Path
    size: int
    curve: tuple[CurvePoint, ...]
    ended: str
    flops_per_second: float
    labels: LabelMeasure | None = None


@dataclass(frozen=True)
class TuneResult:
    """What a tuning came to; `seconds` by phase, `matrix_flops_per_second` measured here."""

    model: str
    output: Path
    fingerprint: str
    learned_texts: int
    learned_tokens: int
    held_out_tokens: int
    matrix_flops_per_second: float
    exits: tuple[ExitReport, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return data
