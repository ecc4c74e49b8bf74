"""What each depth of a model says: predictions and confidences, read off its hidden states."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

_BATCH = 32


@dataclass(frozen=True)
class Depths:
    """Of every counted token, by depth: [num_layers, tokens]."""

    predictions: torch.Tensor
    confidences: torch.Tensor

    @property
    def agree(self) -> torch.Tensor:
        """Whether each depth predicts what the last one does."""
        return self.predictions == self.predictions[-1]


def load(folder: Path) -> Any:
    """Return the model as transformers runs it, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def sample_pieces(
    tokenizer: Tokenizer, documents: Sequence[str], count: int, length: int, seed: int
) -> torch.Tensor:
    """Return `count` pieces of `length` tokens [count, length], none across two documents."""
    encoded = [tokenizer.encode(text).ids for text in documents]
    long = [ids for ids in encoded if len(ids) >= length]
    draw = random.Random(seed)
    pieces = []
    for _ in range(count):
        ids = draw.choice(long)
        start = draw.randrange(len(ids) - length + 1)
        pieces.append(ids[start : start + length])
    return torch.tensor(pieces)


@torch.no_grad()
def write(model: Any, prompts: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """Return prompts [N, P] and what the model writes greedily after them: [N, P + new_tokens].

    A row that ends early is filled up with the end token.
    """
    rows = []
    for batch in _batches(prompts):
        written = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=new_tokens,
            do_sample=False,
        )
        missing = prompts.shape[1] + new_tokens - written.shape[1]
        rows.append(torch.nn.functional.pad(written, (0, missing), value=0))
    return torch.cat(rows)


def counted(tokens: torch.Tensor, prompt: int) -> torch.Tensor:
    """Return which tokens after the prompt count: all up to the first end token, it included."""
    ended = (tokens[:, prompt:] == 0).int().cumsum(1)
    return (ended - (tokens[:, prompt:] == 0).int()) == 0


@torch.no_grad()
def read(model: Any, tokens: torch.Tensor, prompt: int) -> Depths:
    """Return what each depth predicts for the tokens after the prompt, given those before.

    Every depth goes through the model's own final norm and output head, as an early exit does.
    """
    mask = counted(tokens, prompt)
    predictions, confidences = [], []
    for batch, wanted in zip(_batches(tokens), _batches(mask), strict=True):
        states = model(batch, output_hidden_states=True, use_cache=False).hidden_states
        # the last of these is normed already
        normed = [model.model.norm(state[:, prompt - 1 : -1]) for state in states[1:-1]]
        normed.append(states[-1][:, prompt - 1 : -1])
        best = [model.lm_head(state[wanted]).softmax(-1).max(-1) for state in normed]
        confidences.append(torch.stack([found.values for found in best]))
        predictions.append(torch.stack([found.indices for found in best]))
    return Depths(torch.cat(predictions, 1), torch.cat(confidences, 1))


def repeated_share(tokens: torch.Tensor, prompt: int, span: int = 8) -> float:
    """Return the share of counted tokens that end `span` tokens which the row had before."""
    mask = counted(tokens, prompt)
    repeats = 0
    for row, wanted in zip(tokens.tolist(), mask.tolist(), strict=True):
        seen = set()
        for end in range(span, len(row) + 1):
            piece = tuple(row[end - span : end])
            if end > prompt and wanted[end - 1 - prompt]:
                repeats += piece in seen
            seen.add(piece)
    return repeats / int(mask.sum())


def _batches(rows: torch.Tensor) -> list[torch.Tensor]:
    return [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
