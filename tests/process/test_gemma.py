"""Gemma 3 270M itself, where its pack has been fetched: the same tokens as transformers."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from helios_batch.models.packs import PACKS, is_fetched, pack_folder
from helios_batch.samples import docstrings
from helios_batch.spec import SamplingSpec
from tests.support.engines import make_engine, prompts

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(900)]

MAX_TOKENS = 12
WINDOW = 512
SHORT = [
    "The capital of France is",
    "Once upon a time,  there was",
    "def fibonacci(n):\n    ",
    "Zürich, 日本語 and 🙂 are",
    "Q: What is 2 + 2?\nA:",
]


@pytest.fixture(scope="module")
def gemma() -> Path:
    """The pack's folder. It is never fetched here: its licence is the user's to accept."""
    pack = PACKS["gemma3-270m"]
    if not is_fetched(pack):
        pytest.skip("gemma3-270m has not been fetched")
    return pack_folder(pack)


@pytest.fixture(scope="module")
def tokenizer(gemma: Path) -> Any:
    """The converted tokenizer, in transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gemma)


@pytest.fixture(scope="module")
def texts(tokenizer: Any) -> list[str]:
    """Short prompts, and one that is longer than the window of most layers."""
    words = " ".join(row["docstring"] for row in islice(docstrings(), 40)).split()
    long = " ".join(words[: WINDOW + 50])
    assert len(tokenizer(long)["input_ids"]) > WINDOW + 20
    return [*SHORT, long]


@pytest.fixture(scope="module")
def expected(gemma: Path, tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """What `generate` of transformers says in float32, greedily."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.float32).eval()
    found = []
    for text in texts:
        batch = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            [out] = model.generate(**batch, max_new_tokens=MAX_TOKENS, do_sample=False)
        found.append(out[batch["input_ids"].shape[1] :].tolist())
    return found


def test_the_tokenizer_is_gemmas(tokenizer: Any) -> None:
    """The ids are those of Gemma's own tokenizer, with its merges and its beginning of text."""
    assert tokenizer("Hello world")["input_ids"] == [2, 9259, 1902]
    text = "  two  spaces\n\n    and\t12 naïve lines 🙂\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[:5] == ["<bos>", "▁▁", "two", "▁▁", "spaces"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("batch", [1, 4])
def test_tokens_are_those_of_transformers(
    gemma: Path, texts: list[str], expected: list[list[int]], batch: int
) -> None:
    """Full depth, float32, temperature 0: the same tokens, whatever the batch."""
    engine = make_engine(gemma, sequence_tokens=1024, memory="2GiB", max_batch=batch)
    found = engine.generate(prompts(*texts), SamplingSpec(max_tokens=MAX_TOKENS))
    assert [list(generation.token_ids) for generation in found] == expected
