"""The engine against transformers' `generate`, and against itself in other batches."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from helios_batch.records import ErrorCode, FinishReason, Progress, Prompt
from helios_batch.spec import SamplingSpec
from tests.support.engines import make_engine, prompts
from tests.support.tiny import CONFIGS, CONTEXT, make_model, tokenizer

TEXTS = [
    "the quick brown fox",
    "lazy",
    "over the dog, a fox jumps; the end of a long sentence " * 3,
    "jumps over " * 9,
    "q",
    "zebra 0123456789",
    "the the the",
]
# stop strings make rows leave at different times, so that others move in the cache
STOPS = ("Z", "D", "_", "e")
GREEDY = SamplingSpec(max_tokens=24, stop=STOPS)
SAMPLED = SamplingSpec(max_tokens=24, stop=STOPS, temperature=0.9, top_p=0.95, top_k=50, seed=3)


@torch.inference_mode()
def generate(reference: Any, texts: list[str], max_tokens: int) -> list[str]:
    """Return transformers' greedy continuations of a left-padded batch."""
    batch = tokenizer()(texts, return_tensors="pt", padding=True)
    out = reference.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=max_tokens,
        do_sample=False,
    )
    new = out[:, batch["input_ids"].shape[1] :]
    return [tokenizer().decode(row, skip_special_tokens=True) for row in new]


@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_text_equals_transformers(kind: str, tmp_path: Path) -> None:
    """Greedy continuations of a padded batch are identical for every architecture."""
    reference = make_model(tmp_path, kind)
    engine = make_engine(tmp_path)
    found = engine.generate(prompts(*TEXTS), SamplingSpec(max_tokens=20))
    assert [g.text for g in found] == generate(reference, TEXTS, 20)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_does_not_depend_on_its_batch(tiny: Path, dtype: str, sampling: SamplingSpec) -> None:
    """Text and confidences are bit-identical alone, in small batches, and in any order."""
    rows = [Prompt(row, text) for row, text in enumerate(TEXTS * 5)]
    expected = make_engine(tiny, dtype=dtype).generate(rows, sampling)
    assert len({g.completion_tokens for g in expected}) >= 3, "all rows leave together"
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)
    for batch in (1, 7, 64):
        engine = make_engine(tiny, dtype=dtype, max_batch=batch)
        found = {g.row: g for g in engine.generate(shuffled, sampling)}
        assert [found[row.row] for row in rows] == expected
    engine = make_engine(tiny, dtype=dtype)
    halves = engine.generate(rows[:9], sampling) + engine.generate(rows[9:], sampling)
    assert halves == expected


def test_confidence_is_the_probability_of_the_most_likely_token(tiny: Path, reference: Any) -> None:
    """Confidences are transformers' soft-max maxima at each generated position."""
    [generation] = make_engine(tiny).generate(
        prompts(TEXTS[0]), SamplingSpec(max_tokens=8, ignore_eos=True)
    )
    assert generation.exit is not None
    prompt = tokenizer()(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        out = reference.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        # min_new_tokens only forbids ending early; compare positions where both said the same
        logits = reference(out).logits[0, prompt.shape[1] - 1 : -1]
    expected = logits.softmax(-1).amax(-1)
    found = torch.tensor(generation.exit.token_confidences)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [1, 3])
def test_an_exit_is_the_final_norm_and_head_after_that_layer(
    tiny: Path, reference: Any, depth: int
) -> None:
    """At depth k every token leaves after layer k through the model's own norm and head."""
    [generation] = make_engine(tiny, depth).generate(prompts(TEXTS[0]), SamplingSpec(max_tokens=1))
    assert generation.exit is not None
    ids = tokenizer()(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        reference_layers = reference.model.layers
        try:
            reference.model.layers = reference_layers[:depth]
            reference.config.num_hidden_layers = depth
            logits = reference(ids, use_cache=False).logits[0, -1]
        finally:
            reference.model.layers = reference_layers
            reference.config.num_hidden_layers = len(reference_layers)
    assert generation.text == tokenizer().decode([int(logits.argmax())], skip_special_tokens=True)
    assert generation.exit.token_layers == (depth,)
    assert generation.exit.token_confidences[0] == pytest.approx(
        float(logits.softmax(-1).max()), abs=1e-5
    )


def test_ends(tiny: Path) -> None:
    """max_tokens, the context and ignore_eos end a row as the field's names say."""
    engine = make_engine(tiny)
    [plain] = engine.generate(prompts("fox"), SamplingSpec(max_tokens=5, ignore_eos=True))
    assert (plain.completion_tokens, plain.finish_reason) == (5, FinishReason.LENGTH)
    [full] = engine.generate(prompts("fox"), SamplingSpec(max_tokens=10_000, ignore_eos=True))
    assert full.prompt_tokens + full.completion_tokens == CONTEXT
    assert full.finish_reason is FinishReason.LENGTH


def test_end_of_text_is_counted_and_not_shown(tmp_path: Path) -> None:
    """A row that ends by itself has reason `stop`; its last token is the end-of-text token."""
    make_model(tmp_path, "llama3")
    rows = prompts(*TEXTS * 10)
    sampling = SamplingSpec(max_tokens=60, temperature=1.5)
    ended = make_engine(tmp_path).generate(rows, sampling)
    free = make_engine(tmp_path).generate(rows, sampling.model_copy(update={"ignore_eos": True}))
    stopped = [g for g in ended if g.finish_reason is FinishReason.STOP]
    assert stopped, "no row of this seed ends by itself"
    for ours, whole in zip(ended, free, strict=True):
        assert whole.exit is not None
        assert ours.exit is not None
        count = ours.completion_tokens
        assert ours.exit.token_confidences == whole.exit.token_confidences[:count]
        # the last character may be half of one that the longer text completes
        assert (whole.text or "").startswith((ours.text or "").rstrip("\ufffd"))


def test_stop_strings_cut_across_tokens(tiny: Path) -> None:
    """A stop string ends the row wherever token borders fall, and is not part of the text."""
    engine = make_engine(tiny)
    sampling = SamplingSpec(max_tokens=24, ignore_eos=True)
    whole = engine.generate(prompts(*TEXTS), sampling)
    for generation, prompt in zip(whole, prompts(*TEXTS), strict=True):
        text = generation.text or ""
        for begin in range(len(text) - 3):
            stop = text[begin : begin + 3]
            if "\ufffd" in stop:  # half of a character: not a string anyone can ask for
                continue
            [cut] = engine.generate([prompt], sampling.model_copy(update={"stop": (stop,)}))
            assert cut.text == text[: text.index(stop)]
            assert cut.finish_reason is FinishReason.STOP
            assert cut.completion_tokens <= generation.completion_tokens


def test_sampling_follows_the_distribution(tiny: Path, reference: Any) -> None:
    """First tokens of 2,000 rows of one prompt are distributed as the filtered soft-max."""
    sampling = SamplingSpec(max_tokens=1, temperature=1.0, top_k=5, seed=11)
    rows = [Prompt(row, "the quick") for row in range(2000)]
    texts = [g.text for g in make_engine(tiny).generate(rows, sampling)]
    ids = tokenizer()("the quick", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        top = reference(ids).logits[0, -1].topk(5)
    shares = top.values.softmax(-1)
    expected: Counter[str] = Counter()
    for token, share in zip(top.indices.tolist(), shares.tolist(), strict=True):
        expected[tokenizer().decode([token], skip_special_tokens=True)] += share
    assert set(texts) == set(expected)
    for text, share in expected.items():
        tolerance = 4 * (share * (1 - share) / len(rows)) ** 0.5
        assert texts.count(text) / len(rows) == pytest.approx(share, abs=tolerance + 1e-9)
    reseeded = sampling.model_copy(update={"seed": 12})
    assert texts != [g.text for g in make_engine(tiny).generate(rows, reseeded)]


def test_prompts_that_cannot_run_do_not_disturb_the_others(tiny: Path) -> None:
    """Too long for the context, too long for the memory, or empty: an error in that row alone."""
    long = "0123456789 " * 30
    engine = make_engine(tiny)
    alone = engine.generate([Prompt(1, "fox")], SamplingSpec(max_tokens=4))
    found = engine.generate(
        [Prompt(0, long), Prompt(1, "fox"), Prompt(2, "")], SamplingSpec(max_tokens=4)
    )
    assert [g.error and g.error.code for g in found] == [
        ErrorCode.PROMPT_TOO_LONG,
        None,
        ErrorCode.EMPTY_PROMPT,
    ]
    assert "256" in str(found[0].error)
    assert found[1] == alone[0]
    one_slot = make_engine(tiny, sequence_tokens=32, memory=engine_budget(tiny, 32))
    [tight] = one_slot.generate(prompts("0123456789 " * 9), SamplingSpec(max_tokens=60))
    assert tight.error is not None
    assert tight.error.code is ErrorCode.EXCEEDS_MEMORY
    assert "resources.memory" in tight.error.message


def engine_budget(folder: Path, tokens: int) -> int:
    """Return the least budget that holds one sequence of `tokens` tokens."""
    plan = make_engine(folder).plan
    return plan.weights + plan.activations + tokens * plan.kv_per_token


def test_a_long_prompt_does_not_stall_the_batch(tiny: Path) -> None:
    """Between the chunks of a long prompt the other rows go on decoding."""
    engine = make_engine(tiny)
    engine.shape = type(engine.shape)(chunk_tokens=16, prefill_tokens=32, max_batch=8)
    long = "0123456789 " * 20
    sampling = SamplingSpec(max_tokens=9, ignore_eos=True)
    expected = make_engine(tiny).generate(prompts("fox", long), sampling)
    steps: list[Progress] = []
    found = engine.generate(prompts("fox", long), sampling, steps.append)
    assert [g.text for g in found] == [g.text for g in expected]
    first_row_done = next(i for i, step in enumerate(steps) if step.rows_done)
    chunks = -(-found[1].prompt_tokens // 16)
    assert chunks > 9
    assert first_row_done < chunks + 9, "the short row waited for the long prompt"


def test_batch_size_is_reached(tiny: Path) -> None:
    """As many rows run at once as max_batch allows, and never more."""
    engine = make_engine(tiny, max_batch=5)
    engine.generate(prompts(*TEXTS * 3), SamplingSpec(max_tokens=4))
    assert engine.stats.largest_batch == 5
