"""Totals add up, and survive the footer of a part."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from helios_batch.records import (
    EngineFacts,
    ErrorCode,
    ExitRecord,
    FinishReason,
    Generation,
    RowError,
)
from helios_batch.totals import Totals

ENGINE = EngineFacts("m", 4, 2, "cpu", "float32", 10, 20, 1000, 8)
good = st.lists(st.integers(1, 40), min_size=1, max_size=5).map(
    lambda layers: Generation(
        0,
        "text",
        FinishReason.LENGTH,
        3,
        len(layers),
        ExitRecord("m", 40, tuple(layers), (0.5,) * len(layers)),
    )
)
bad = st.sampled_from(ErrorCode).map(lambda code: Generation.failed(0, RowError(code, "why"), 2))
rows = st.lists(good | bad, max_size=12)


@given(rows, rows)
def test_totals_of_parts_are_totals_of_all(one: list[Generation], other: list[Generation]) -> None:
    """Counting two parts and adding is counting all rows; JSON keeps every number."""
    added = Totals.of(one)
    added.seconds, added.engines = {"read": 1.0}, [ENGINE]
    second = Totals.of(other)
    second.seconds, second.engines = {"read": 2.0, "write": 1.0}, [ENGINE]
    second.decode_steps, second.decode_tokens, second.largest_batch = 4, 10, 3
    added.audit_losses, second.audit_losses = Counter({0: 2}), Counter({0: 1, 250: 4})
    added += Totals.from_json(json.loads(json.dumps(second.to_json())))
    together = Totals.of(one + other)
    together.seconds, together.engines = {"read": 3.0, "write": 1.0}, [ENGINE]
    together.decode_steps, together.decode_tokens, together.largest_batch = 4, 10, 3
    together.audit_losses = Counter({0: 3, 250: 4})
    assert together.mean_batch == 2.5
    assert added == together
    assert together.failed_rows == sum(g.error is not None for g in one + other)
    assert together.completion_tokens == together.exit_histogram.total()
