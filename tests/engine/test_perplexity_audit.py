"""A policy that promises a perplexity, on a real engine: audited, and given up when it breaks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from helios_batch.helios.agreement import excess_loss
from helios_batch.helios.audit import Audit
from helios_batch.helios.policy import Policy
from helios_batch.records import Generation
from helios_batch.spec import SamplingSpec
from helios_batch.staged import StagedEngine
from tests.engine.test_score import expected
from tests.support.engines import make_engine, make_sole, prompts

TEXTS = [f"{word} {number} the quick " for number in range(8) for word in ("fox", "lazy dog")]
SAMPLING = SamplingSpec(max_tokens=5)


class Unbroken:
    """A promise that is kept."""

    def is_broken(self) -> bool:
        return False


def staged(tiny: Path, ratio: float, threshold: float = 0.0) -> StagedEngine:
    """Return the tiny model at 3 of its 4 layers, then at all; each row is audited."""
    policy = Policy((str(tiny),) * 2, (3, 4), threshold, ratio, 0.95, "perplexity", 60, "as told")
    return StagedEngine(make_sole(tiny), policy, 1.0, {}, Unbroken())


def test_audited_rows_are_compared_by_full_depths_likelihoods(tiny: Path, reference: Any) -> None:
    """Each row that left early has its excess over full depth's own text, by transformers."""
    rows = prompts(*TEXTS)
    whole = make_engine(tiny).generate(rows, SAMPLING)
    engine = staged(tiny, 7.0)
    found = engine.generate(rows, SAMPLING)
    losses = []
    for text, row, best in zip(TEXTS, found, whole, strict=True):
        assert row.exit is not None
        assert (row.exit.stage, row.exit.audited) == (0, True)
        excess = expected(reference, text, list(best.token_ids)) - expected(
            reference, text, list(row.token_ids)
        )
        losses.append(excess_loss(excess))
        assert row.exit.agreement == pytest.approx(1 - losses[-1], abs=1e-5)
    assert any(0 < loss < 1 for loss in losses)
    assert engine.stats.prefill_seconds > 0


def test_what_is_lost_counts_against_the_promise(tiny: Path) -> None:
    """A random model's middle breaks any tight promise, by the losses that the audit is given."""
    engine = staged(tiny, 1.05)
    engine.generate(prompts(*TEXTS), SAMPLING)
    audit = Audit(math.log(1.05) / 2, 0.01)
    audit.add(engine.stats.audit_losses)
    assert (audit.rows, audit.violated) == (len(TEXTS), True)


def test_rows_it_is_unsure_of_go_on(tiny: Path) -> None:
    """They are full depth's own, and have nothing to be audited for."""
    found = staged(tiny, 1.05, threshold=2.0).generate(prompts(*TEXTS), SAMPLING)
    assert {stage(row) for row in found} == {1}
    assert all(row.exit is not None and row.exit.agreement is None for row in found)


def stage(row: Generation) -> int:
    assert row.exit is not None
    return row.exit.stage
