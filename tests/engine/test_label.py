"""Labels against transformers' scores of whole texts, and against themselves in other batches."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from helios_batch.engine.head import log_probability
from helios_batch.engine.memory import StepShape
from helios_batch.records import ErrorCode, FinishReason, Generation, Progress, Prompt
from tests.support.engines import make_engine, prompts
from tests.support.tiny import CHAT_TEMPLATE, CONTEXT, make_model, tokenizer

TEXTS = [
    "the quick brown fox",
    "lazy",
    "jumps over " * 9,
    "zebra the qui",
    "over the ",
    "0123456789 " * 20,
]
CHOICES = [" fox", "ck dog", "the", "z", " over the lazy dog 12"]


@torch.inference_mode()
def scores(reference: Any, text: str, choices: list[str]) -> list[float]:
    """Return transformers' log-probability of each whole text, its first token given."""
    whole = tokenizer()([text + choice for choice in choices])["input_ids"]
    longest = max(map(len, whole))
    # behind a text nothing that it says depends on what follows
    ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in whole])
    steps = reference(ids).logits[:, :-1].double().log_softmax(-1)
    each = steps.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return [float(row[: len(tokens) - 1].sum()) for row, tokens in zip(each, whole, strict=True)]


def check(reference: Any, text: str, choices: list[str], found: Generation) -> None:
    """Check a row against the soft-max of the whole texts' scores: all that they share cancels."""
    expected = torch.tensor(scores(reference, text, choices)).softmax(-1).tolist()
    assert found.error is None
    assert found.label_probability == pytest.approx(expected, abs=1e-5)
    assert found.label == found.text == choices[expected.index(max(expected))]


@pytest.mark.parametrize("kind", ["llama3", "mistral", "gemma3"])
def test_probabilities_are_those_of_the_whole_texts(kind: str, tmp_path: Path) -> None:
    """Choices of one token and of many, that merge with the prompt or not, at every position
    and window."""
    reference = make_model(tmp_path, kind)
    found = make_engine(tmp_path).label(prompts(*TEXTS), CHOICES)
    for text, row in zip(TEXTS, found, strict=True):
        check(reference, text, CHOICES, row)
    assert len({row.label for row in found}) > 1, "the models say the same of all rows"


def test_the_texts_test_what_they_should() -> None:
    """Some prompts keep all their tokens before every choice, and some only before a few."""
    merged = []
    for text in TEXTS:
        own = tokenizer()(text)["input_ids"]
        whole = [tokenizer()(text + choice)["input_ids"] for choice in CHOICES]
        merged.append(sum(ids[: len(own)] != own for ids in whole))
    assert 0 in merged
    assert 0 < max(merged) < len(CHOICES)
    lengths = {len(tokenizer()(choice)["input_ids"]) for choice in CHOICES}
    assert 1 in lengths
    assert max(lengths) > 3


def test_a_row_tells_its_label(tiny: Path) -> None:
    """The text is the label, and each of its tokens has the label's probability."""
    choices = ["q", " over the lazy dog 12"]
    for row in make_engine(tiny, depth=3).label(prompts(*TEXTS), choices):
        assert row.exit is not None
        assert row.label_probability is not None
        assert math.fsum(row.label_probability) == pytest.approx(1)
        confidence = max(row.label_probability)
        assert row.finish_reason is FinishReason.STOP
        assert row.exit.token_confidences == (confidence,) * row.completion_tokens
        assert row.exit.token_layers == (3,) * row.completion_tokens
    [one] = make_engine(tiny).label(prompts("a"), [" over the lazy dog 12", " over the lazy dog 1"])
    tokens = len(tokenizer()(one.label)["input_ids"])
    assert (one.prompt_tokens, one.completion_tokens) == (1, tokens)


def test_of_equal_choices_the_first_is_the_label(tmp_path: Path) -> None:
    """A model that is undecided to the bit gives the first of the likeliest."""
    model = make_model(tmp_path, "llama3")
    ids = [tokenizer().convert_tokens_to_ids(token) for token in "xyz"]
    with torch.no_grad():
        model.lm_head.weight[ids[1]] = model.lm_head.weight[ids[2]]
    model.save_pretrained(tmp_path)
    engine = make_engine(tmp_path)
    for choices in (["y", "z"], ["z", "y"]):
        [row] = engine.label(prompts("0"), choices)
        assert row.label == choices[0]
        assert row.label_probability == (0.5, 0.5)


def test_chats_get_the_choice_as_the_assistants_turn(tiny: Path, reference: Any) -> None:
    """The choice follows the chat template's opening of the turn; no special token is added."""
    chat = ({"role": "user", "content": "the fox"},)
    assert "<|assistant|>" in CHAT_TEMPLATE
    [row] = make_engine(tiny).label([Prompt(0, chat)], CHOICES)
    check(reference, "<|user|>the fox\n<|assistant|>", CHOICES, row)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_its_batch(tiny: Path, dtype: str) -> None:
    """Probabilities are bit-identical alone, in small batches, in any order, and when chunked."""
    rows = [Prompt(row, text) for row, text in enumerate([*TEXTS, *TEXTS[:5] * 2])]
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)
    engine = make_engine(tiny, dtype=dtype)
    for chunk, others in ((512, [(1024, 7), (512, 64), (512, 1)]), (16, [(64, 64)])):
        engine.shape = StepShape(chunk, 2 * chunk, 64)
        expected = engine.label(rows, CHOICES)
        for tokens, batch in others:
            engine.shape = StepShape(chunk, tokens, batch)
            found = {row.row: row for row in engine.label(shuffled, CHOICES)}
            assert [found[row.row] for row in rows] == expected


@pytest.mark.parametrize("kind", ["llama3", "mistral"])
def test_long_prompts_run_in_chunks(kind: str, tmp_path: Path) -> None:
    """A prompt of many chunks, and choices that lie across chunks, score as ever."""
    reference = make_model(tmp_path, kind)
    engine = make_engine(tmp_path)
    engine.shape = StepShape(chunk_tokens=16, prefill_tokens=32, max_batch=8)
    steps: list[Progress] = []
    found = engine.label(prompts(*TEXTS), CHOICES, steps.append)
    for text, row in zip(TEXTS, found, strict=True):
        check(reference, text, CHOICES, row)
    assert len(steps) > found[-1].prompt_tokens / 16
    assert steps[-1].rows_done == len(TEXTS)
    assert sum(step.new_tokens for step in steps) == sum(row.completion_tokens for row in found)
    assert engine.stats.largest_batch > 1


def test_choices_may_outgrow_the_context_together(tiny: Path, reference: Any) -> None:
    """Only the longest choice must fit behind the prompt; all together may be far longer."""
    choices = [f"{i} the lazy dog 0123456789" for i in range(40)]
    text = "the quick brown fox"
    [row] = make_engine(tiny, max_batch=8).label(prompts(text), choices)
    total = sum(len(tokenizer()(choice)["input_ids"]) for choice in choices)
    assert total > 2 * CONTEXT
    check(reference, text, choices, row)


def test_prompts_that_cannot_run_do_not_disturb_the_others(tiny: Path) -> None:
    """Too long for the context or the memory, empty, or merged away: an error in that row."""
    engine = make_engine(tiny)
    texts = ["0123456789 " * 30, "fox", "", "q"]
    found = engine.label(prompts(*texts), ["uick", " a"])
    assert [row.error and row.error.code for row in found] == [
        ErrorCode.PROMPT_TOO_LONG,
        None,
        ErrorCode.EMPTY_PROMPT,
        ErrorCode.EMPTY_PROMPT,
    ]
    assert "256" in str(found[0].error)
    assert found[0].prompt_tokens > CONTEXT
    assert found[0].label is found[0].label_probability is None
    assert found[1].label == engine.label([Prompt(1, "fox")], ["uick", " a"])[0].label
    plan = engine.plan
    least = plan.weights + plan.activations + 32 * plan.kv_per_token
    [tight] = make_engine(tiny, memory=least).label(prompts("0123456789 " * 9), ["a", "b"])
    assert tight.error is not None
    assert tight.error.code is ErrorCode.EXCEEDS_MEMORY
    fits = [Prompt(row, "0" * 25) for row in range(3)]
    rows = make_engine(tiny, memory=least).label(fits, ["a", "b"])
    assert [row.label_probability for row in rows] == [
        row.label_probability for row in engine.label(fits, ["a", "b"])
    ]


@pytest.mark.parametrize("vocabulary", [100, 512, 1300])
def test_log_probabilities_are_those_of_the_whole_soft_max(vocabulary: int) -> None:
    """Tile by tile, several tokens after one row, in float32."""
    random_ = torch.Generator().manual_seed(0)
    hidden = torch.randn(16, 24, generator=random_)
    head = torch.randn(vocabulary, 24, generator=random_)
    rows = torch.tensor([0, 0, 3, 7, 7, 7, 15])
    tokens = torch.tensor([0, vocabulary - 1, 99, 50, 51, vocabulary // 2, 1])
    expected = (hidden.double() @ head.double().T).log_softmax(-1)[rows, tokens]
    found = log_probability(hidden, head, rows, tokens)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    half = hidden.bfloat16(), head.bfloat16()
    expected = (half[0].double() @ half[1].double().T).log_softmax(-1)[rows, tokens]
    found = log_probability(*half, rows, tokens)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
