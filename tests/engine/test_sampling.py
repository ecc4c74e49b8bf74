"""Draws over large vocabularies, which are taken a few rows at a time."""

from __future__ import annotations

import torch

from helios_batch.engine.memory import DRAWN_LOGITS, SAMPLED_ROWS, rows_drawn
from helios_batch.engine.sampling import draw
from helios_batch.spec import SamplingSpec


def test_a_draw_does_not_depend_on_the_other_rows() -> None:
    """Many rows, drawn in blocks of which the last is short, get what each gets alone."""
    vocab_size, rows = DRAWN_LOGITS // 3, 7
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocab_size, generator=generator) * 4
    uniforms = torch.rand(rows, generator=generator, dtype=torch.float64)
    for sampling in (
        SamplingSpec(temperature=0.7, top_p=0.9),
        SamplingSpec(temperature=1.0, top_k=50),
    ):
        alone = [draw(logits[i : i + 1], sampling, uniforms[i : i + 1]) for i in range(rows)]
        assert draw(logits, sampling, uniforms).tolist() == torch.cat(alone).tolist()


def test_a_larger_vocabulary_is_drawn_in_fewer_rows() -> None:
    """Rows at a time are between one and those that have logits."""
    found = [rows_drawn(size) for size in (384, 49_152, 262_144, 1_000_000)]
    assert found == [SAMPLED_ROWS, 5, 1, 1]
