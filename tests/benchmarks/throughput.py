"""Tokens per second beside transformers' `generate`, in one run on one machine.

    helios-batch models fetch smollm2-135m
    python -m tests.benchmarks.throughput

256 short prompts, 64 new tokens each, bfloat16 if the machine has it. The engines take turns;
medians over the rounds are shown, and ratios to transformers at its best batch size. Nothing is
timed unless the engine first says in float32 what transformers says.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from helios_batch.engine.device import resolve
from helios_batch.engine.engine import Engine
from helios_batch.models.folder import ModelFolder, open_model
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.records import Prompt
from helios_batch.samples import docstrings
from helios_batch.spec import ResourceSpec, SamplingSpec

ROWS = 256
NEW_TOKENS = 64
SAMPLING = SamplingSpec(max_tokens=NEW_TOKENS, ignore_eos=True)
PEER_BATCHES = (32, 64, 128, 256)


def load(model: ModelFolder, depth: int, dtype: str) -> Engine:
    """Return an engine with room for all rows at once."""
    resources = ResourceSpec.model_validate({"dtype": dtype, "memory": "6GiB"})
    tokenizer = Tokenizer(model.path, datetime(2026, 1, 1, tzinfo=UTC))
    return Engine(model, tokenizer, depth, resolve(resources), 128)


class Peer:
    """transformers' `generate` over left-padded batches."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        auto = transformers.AutoTokenizer
        self.tokenizer: Any = auto.from_pretrained(folder, padding_side="left")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model: Any = model.eval()

    @torch.inference_mode()
    def generate(self, texts: list[str], batch_size: int) -> list[str]:
        """Return greedy continuations of exactly `NEW_TOKENS` tokens."""
        found = []
        for begin in range(0, len(texts), batch_size):
            some = texts[begin : begin + batch_size]
            batch = self.tokenizer(some, return_tensors="pt", padding=True)
            out = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
            )
            new = out[:, batch["input_ids"].shape[1] :]
            found += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return found


def check(model: ModelFolder, texts: list[str]) -> None:
    """End the benchmark unless both say the same in float32."""
    engine = load(model, model.config.num_layers, "float32")
    ours = engine.generate([Prompt(i, text) for i, text in enumerate(texts)], SAMPLING)
    theirs = Peer(model.path, torch.float32).generate(texts, len(texts))
    if [g.text for g in ours] != theirs:
        sys.exit("the engine does not say what transformers says; nothing was timed")


def timed(work: Callable[[], object]) -> float:
    """Return tokens per second of one go."""
    started = time.perf_counter()
    work()
    return ROWS * NEW_TOKENS / (time.perf_counter() - started)


def main() -> None:
    """Check, time in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = open_model("smollm2-135m")
    texts = [row["docstring"][:160] for row in docstrings()]
    texts = texts[:: len(texts) // ROWS][:ROWS]
    check(model, texts[:8])
    prompts = [Prompt(i, text) for i, text in enumerate(texts)]
    layers = model.config.num_layers
    engines = {depth: load(model, depth, "auto") for depth in (layers, layers // 2, layers // 3)}
    dtype = resolve(ResourceSpec()).dtype
    peer = Peer(model.path, dtype)
    best = max(PEER_BATCHES, key=lambda size: timed(lambda: peer.generate(texts, size)))
    contenders: dict[str, Callable[[], object]] = {
        f"transformers generate, batch {best}": lambda: peer.generate(texts, best)
    }
    for depth, engine in engines.items():
        name = f"helios_batch, {depth} of {layers} layers"
        contenders[name] = lambda engine=engine: engine.generate(prompts, SAMPLING)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, work in contenders.items():
            rates[name].append(timed(work))
    base = statistics.median(next(iter(rates.values())))
    print(
        f"machine: {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {dtype}")
    for name, found in rates.items():
        middle = statistics.median(found)
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        print(f"{name:36} {middle:8,.0f} tokens/s ({spread}) {middle / base:6.2f}x")


if __name__ == "__main__":
    main()
