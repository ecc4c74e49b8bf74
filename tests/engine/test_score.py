"""Scores of completions against transformers' log-soft-max, and against themselves."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from helios_batch.engine.memory import StepShape
from helios_batch.spec import SamplingSpec
from tests.support.engines import make_engine, prompts
from tests.support.exits import reference_logits
from tests.support.tiny import CONTEXT, VOCABULARY, make_model, tokenizer

TEXTS = ["the quick brown fox", "q", "jumps over " * 9, "zebra the qui", "0123456789 " * 19]
LENGTHS = [7, 1, 31, 2, 13]
SMALL = StepShape(chunk_tokens=16, prefill_tokens=32, max_batch=8)


def completions(seed: int = 0) -> list[list[int]]:
    """Return random tokens of odd lengths for each of the texts."""
    draw = random.Random(seed)
    return [[draw.randrange(VOCABULARY) for _ in range(length)] for length in LENGTHS]


def mean(logits: torch.Tensor, completion: list[int]) -> float:
    """Return the mean log-probability of a text's last tokens by its logits [T, vocabulary]."""
    each = logits.double().log_softmax(-1)[-len(completion) - 1 : -1]
    return float(each[range(len(completion)), completion].mean())


@torch.inference_mode()
def expected(reference: Any, text: str, completion: list[int]) -> float:
    """Return what transformers makes of a completion."""
    ids = tokenizer()(text)["input_ids"] + completion
    return mean(reference(torch.tensor([ids])).logits[0], completion)


@pytest.mark.parametrize("kind", ["llama3", "mistral", "gpt2"])
@pytest.mark.parametrize("shape", [StepShape(), SMALL], ids=["whole", "chunks"])
def test_scores_are_transformers(kind: str, shape: StepShape, tmp_path: Path) -> None:
    """One token or many, in one chunk or several, with or without a window."""
    reference = make_model(tmp_path, kind)
    engine = make_engine(tmp_path)
    engine.shape = shape
    found = engine.score(prompts(*TEXTS), completions())
    for text, completion, score in zip(TEXTS, completions(), found, strict=True):
        assert score == pytest.approx(expected(reference, text, completion), abs=1e-5)
    assert engine.stats.largest_batch > 1
    assert engine.stats.prefill_seconds > 0


def test_the_layers_loaded_now_score(tiny: Path, reference: Any) -> None:
    """An engine that has moved scores by where it is."""
    engine = make_engine(tiny)
    engine.move_to(2)
    [completion] = completions()[:1]
    ids = torch.tensor(tokenizer()(TEXTS[0])["input_ids"] + completion)
    norm = {"norm.weight": reference.model.norm.weight}
    logits = reference_logits(reference, ids, 2, (), norm)
    [found] = engine.score(prompts(TEXTS[0]), [completion])
    assert found == pytest.approx(mean(logits, completion), abs=1e-5)
    engine.move_to(4)
    [whole] = engine.score(prompts(TEXTS[0]), [completion])
    assert whole == pytest.approx(expected(reference, TEXTS[0], completion), abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_score_does_not_depend_on_its_batch(tiny: Path, dtype: str) -> None:
    """Bit-identical alone, in small batches and in any order."""
    rows, texts = prompts(*TEXTS * 4), completions() * 4
    engine = make_engine(tiny, dtype=dtype)
    whole = engine.score(rows, texts)
    order = random.Random(1).sample(range(len(rows)), len(rows))
    for shape in (StepShape(prefill_tokens=512, max_batch=3), StepShape(max_batch=1)):
        engine.shape = shape
        found = engine.score([rows[i] for i in order], [texts[i] for i in order])
        assert found == [whole[i] for i in order]


def test_a_greedy_texts_score_is_its_confidence(tiny: Path) -> None:
    """What the engine wrote itself, it is as sure of when it reads it."""
    engine = make_engine(tiny)
    written = engine.generate(prompts(*TEXTS), SamplingSpec(max_tokens=9))
    found = engine.score(prompts(*TEXTS), [row.token_ids for row in written])
    for row, score in zip(written, found, strict=True):
        assert row.exit is not None
        sure = torch.tensor(row.exit.token_confidences, dtype=torch.float64)
        assert score == pytest.approx(float(sure.log().mean()), abs=1e-4)


@pytest.mark.parametrize(
    ("text", "completion", "message"),
    [
        ("", [1], "prompt 1 can't be run: the prompt comes to no tokens"),
        ("fox", [], "completion 1 has no tokens"),
        ("fox", [3] * CONTEXT, f"context holds {CONTEXT}"),
        ("fox", [VOCABULARY], "unknown to the model"),
    ],
)
def test_what_cannot_be_scored(tiny: Path, text: str, completion: list[int], message: str) -> None:
    """A row that was never generated is the caller's mistake, and named."""
    with pytest.raises(ValueError, match=message):
        make_engine(tiny).score(prompts("q", text), [[1], completion])
    assert make_engine(tiny).score([], []) == []
